"""Supervised fine-tuning: the student learns to write the teacher's answers, token by token (TRL's SFTTrainer).

Only what the assistant says is learnt, never what it was asked.
"""

from __future__ import annotations

from llm_distill.trainers import TrainingJob
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.rows import Turns


def sft(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    # Earlier turns of the assistant are somebody else's words: no filter has looked at them, and the teacher wrote none of
    # them. `all` is for conversations whose every answer is worth learning.
    turns: Turns = "last",
    # Several rows in one sequence of up to max_length tokens, of which batch_size then counts: for short rows of uneven length
    # on a GPU. On a CPU it is slower, for there the beginning that rows share is computed once; and few rows become few steps.
    packing: bool = False,
) -> None:
    """Train on the samples' completions and write the adapter (without LoRA: the model) into `job.out`."""
    with stoppable():
        desk = Desk(job, hyper)
        rows = desk.rows(turns=turns)
        story = {"turns": {"rows": len(rows), "earlier_turns": sum(len(row.turns) for row in rows)}}
        settings = {"turns": turns, "packing": packing}
        train(desk, Lesson(rows, None, settings, story if turns == "all" else {}, packing))
