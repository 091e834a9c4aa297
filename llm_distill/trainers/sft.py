"""Supervised fine-tuning: the student learns to write the teacher's answers, token by token (TRL's SFTTrainer).

Only what the assistant says is learnt, never what it was asked. Gold may stand beside the teacher.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llm_distill.trainers import TrainingJob
from llm_distill.trainers.course import Desk, Lesson, Objective, stoppable, train
from llm_distill.trainers.hard_labels import Weighed, WeightedText, with_gold
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.rows import Turns


def sft(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    # Earlier turns of the assistant are somebody else's words: no filter has looked at them, and the teacher wrote none of
    # them. `all` is for conversations whose every answer is worth learning.
    turns: Turns = "last",
    # The share of a row's weight that its gold takes where the teacher says something else: 0 is the teacher alone, 1 gold
    # alone where there is any. It is the teacher that is distilled, and held-out gold shows what its mistakes cost.
    gold: Annotated[float, Field(ge=0, le=1)] = 0.0,
    # Several rows in one sequence of up to max_length tokens, of which batch_size then counts: for short rows of uneven length
    # on a GPU. On a CPU it is slower, for there the beginning that rows share is computed once; and few rows become few steps.
    packing: bool = False,
) -> None:
    """Train on the samples' completions and write the adapter (without LoRA: the model) into `job.out`."""
    story: dict[str, Any] = {}
    with stoppable():
        taught = with_gold(job.samples, gold) if gold else Weighed.equally(job.samples)
        if gold:
            story["gold"] = dict(taught.counts)
        desk = Desk(job, hyper)
        rows = desk.rows(samples=taught.samples, turns=turns)
        if turns == "all":
            story["turns"] = {"rows": len(rows), "earlier": sum(len(row.turns) for row in rows)}
        for name, counts in story.items():
            job.say(f"train: {name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
        settings = {"turns": turns, "gold": gold, "packing": packing}
        objective: Objective | None = None  # TRL's own, where all texts weigh the same
        if any(weight < 1 for weight in taught.weights):
            objective = WeightedText.of(rows, taught.weights)
        train(desk, Lesson(rows, objective, settings, story, packing, taught.groups))
