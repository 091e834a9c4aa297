"""Supervised fine-tuning: the student learns to write the teacher's answers, token by token (TRL's SFTTrainer).

Only what the assistant says is learnt, never what it was asked. Gold may stand beside the teacher, reasoning before the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.trainers import TrainingJob
from llm_distill.trainers.course import Desk, Lesson, Objective, stoppable, train
from llm_distill.trainers.hard_labels import Weighed, WeightedText, with_gold
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.reasoned import reasoned
from llm_distill.trainers.rows import Row, Turns


def sft(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    # Earlier turns of the assistant are somebody else's words: no filter has looked at them, and the teacher wrote none of
    # them. `all` is for conversations whose every answer is worth learning.
    turns: Turns = "last",
    # Half the tokens of a reasoned answer, or more, are reasoning, which the student then writes, and pays for, each time.
    reasoning: Literal["off", "on"] = "off",
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
        samples = taught.samples
        if reasoning == "on":
            samples, story["reasoning"] = reasoned(samples, desk.tokenizer, job.sampling.stop if job.sampling else ())
        rows = desk.rows(samples=samples, turns=turns)
        if turns == "all":
            story["turns"] = {"rows": len(rows), "earlier": sum(len(row.turns) for row in rows)}
        for name, counts in story.items():
            job.say(f"train: {name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
        _say_what_is_cut(job, rows)
        settings = {"turns": turns, "reasoning": reasoning, "gold": gold, "packing": packing}
        objective: Objective | None = None  # TRL's own, where all texts weigh the same
        if any(weight < 1 for weight in taught.weights):
            objective = WeightedText.of(rows, taught.weights)
        train(desk, Lesson(rows, objective, settings, story, packing, taught.groups, samples))


def _say_what_is_cut(job: TrainingJob, rows: Sequence[Row]) -> None:
    """A line where evaluation stops answers earlier than they were learnt, and so would measure the cut."""
    lengths = [len(row.input_ids) - row.prompt_tokens for row in rows]
    if job.max_tokens is None or max(lengths) <= job.max_tokens:
        return
    longer = sum(length > job.max_tokens for length in lengths)
    job.say(
        f"train: {longer:,} of {len(rows):,} answers are longer than the {job.max_tokens:,} tokens that evaluation lets the "
        f"student write; raise evaluate.max_tokens to {max(lengths):,}."
    )
