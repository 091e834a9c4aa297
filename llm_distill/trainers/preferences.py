"""Pairs to prefer by: what the teacher said beside what the student itself says to the same row, and which is better.

The teacher is held to be right where nobody compares (Chen et al. 2024, SPIN, arXiv 2401.01335, with the teacher's text for
the human's); else a judge says so, asked in both orders, or a scorer of the recipe.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.logprobs import Logprobs
from llm_distill.reasoning import separate
from llm_distill.records import Answer, Entry, Request, Sample, Sampling
from llm_distill.scorers import Context, Pick
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.rows import Row, make_rows, stop_ids

if TYPE_CHECKING:
    from llm_distill.models.vocabulary import Vocabulary
    from llm_distill.scorers.ballot import Form


#: Why an answer makes no pair: both say the same; the student said it before; neither is better; the judge said nothing valid;
#: the student said nothing; the student's answer is better and was cut off; it could not be asked.
REASONS = ("equal", "repeated", "tie", "unjudged", "empty", "cut", "failed")


@dataclass(frozen=True)
class Comparison:
    """Who says which of two answers is better: a judge by a rubric, else a scorer, else the teacher is."""

    judge: str | None
    rubric: Path
    form: Form
    scorer: Pick | None


@dataclass(frozen=True)
class Said:
    """What the student said to a sample. `ids`: as sampled, where they are known, without what ended it; `whole`: it came to
    an end by itself.
    """

    sample: Sample
    text: str
    ids: tuple[int, ...] | None
    whole: bool


@dataclass(frozen=True)
class Preference:
    """A sample whose two answers differ. `teachers`: the teacher's is the better one."""

    said: Said
    teachers: bool


@dataclass
class Round:
    """The preferences of a round, and what became of the other answers by reason (`REASONS`)."""

    preferences: list[Preference] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    asked: int = 0

    @property
    def story(self) -> dict[str, Any]:
        """Its numbers, for training.json."""
        wins = sum(not p.teachers for p in self.preferences)
        named = {name: self.others[name] for name in REASONS}
        share = round(self.others["equal"] / self.asked, 4) if self.asked else None
        return {
            "answers": self.asked, "pairs": len(self.preferences), "student_preferred": wins, **named, "equal_share": share,
        }  # fmt: skip


def prefer(job: TrainingJob, student: Path | None, sampling: Sampling, samples: int, by: Comparison) -> Round:
    """Ask the student in a folder (None: before training) for its answers to all samples, and compare."""
    if job.student_answers is None:
        raise UserError(
            "train.dpo: the student answers for itself, and nobody is there to ask it; run it from a recipe."
        )
    labels = job.task.labels if job.task and job.task.kind == "classify" else []
    pairs = [(sample, number) for sample in job.samples for number in range(samples)]
    entries = job.student_answers(student, [Request(s.messages, sampling, number) for s, number in pairs])
    found, open_ = Round(asked=len(pairs)), list[Said]()
    for (sample, _), entry in zip(pairs, entries, strict=True):
        said = _said(job, sample, entry, labels)
        if isinstance(said, str):
            found.others[said] += 1
        else:
            open_.append(said)
    once = {(said.sample.row_id, said.text): said for said in reversed(open_)}  # of equal ones the first
    found.others["repeated"] = len(open_) - len(once)
    open_ = list(reversed(once.values()))
    for said, verdict in zip(open_, _verdicts(job, open_, by), strict=True):
        if isinstance(verdict, str):
            found.others[verdict] += 1
        elif not verdict and not said.whole:
            found.others["cut"] += 1  # what is better goes on where it was cut
        else:
            found.preferences.append(Preference(said, verdict))
    return found


def _said(job: TrainingJob, sample: Sample, entry: Entry, labels: Sequence[str]) -> Said | str:
    """An answer that differs from the teacher's, or why there is nothing to compare. A label is taken for itself."""
    if entry.status not in ("ok", "truncated"):
        return "failed"
    label = job.task.prediction(entry.text) if job.task and labels else None
    text = label if label is not None else entry.text
    if text.strip() == sample.completion.strip():
        return "equal"
    if not text.strip():
        return "empty"
    ids = None
    if label is None and entry.logprobs is not None:
        numbers = Logprobs.unpack(entry.logprobs).ids
        ids = None if numbers is None else tuple(numbers.tolist())
    return Said(sample, text, ids, label is not None or entry.status == "ok")


def _verdicts(job: TrainingJob, said: Sequence[Said], by: Comparison) -> list[bool | str]:
    """Whether the teacher's answer is the better one, or why nobody can tell."""
    if by.judge is None and by.scorer is None:
        return [True] * len(said)
    assert job.task is not None
    rows = [one.sample.answer for one in said]
    if any(row is None for row in rows):
        raise UserError("train.dpo: samples without their answers cannot be compared; run it from a recipe.")
    own = [_answer(row, one.text, job) for row, one in zip(rows, said, strict=True)]
    theirs = [_answer(row, one.sample.completion, job) for row, one in zip(rows, said, strict=True)]
    if by.scorer is not None:
        context = Context(job.task)
        scores = zip(by.scorer.scores(own, context), by.scorer.scores(theirs, context), strict=True)
        return ["tie" if mine == teachers else teachers > mine for mine, teachers in scores]
    from llm_distill.scorers.judge import judge

    if job.ask is None or by.judge is None:
        raise UserError("train.dpo.judge: nobody is there to ask; run it from a recipe.")
    # The judge compares an answer with a reference, which here is the teacher's.
    shown = [
        msgspec.structs.replace(a, prompt=msgspec.structs.replace(a.prompt, reference=b.text))
        for a, b in zip(own, theirs, strict=True)
    ]
    context = Context(job.task, ask=job.ask)
    values = judge(shown, context, model=by.judge, rubric=by.rubric, form=by.form, against="reference").values
    return ["unjudged" if math.isnan(v) else "tie" if v == 0.5 else v < 0.5 for v in values]


def _answer(row: Answer | None, text: str, job: TrainingJob) -> Answer:
    """A row with another text, of which nothing else is known."""
    assert row is not None
    assert job.task is not None
    prediction = job.task.prediction(text) if job.task.kind == "classify" else None
    return Answer(row.prompt, separate(text)[1], "ok", prediction=prediction)


@dataclass(frozen=True)
class Pair:
    """A preference as token rows of one prompt. A rejected answer that was cut off has no end token: none was sampled."""

    chosen: Row
    rejected: Row

    @property
    def both(self) -> Row:
        """As one row, whose trained tokens are those of both answers: for what counts and orders rows."""
        ids = self.chosen.input_ids + self.rejected.input_ids[self.rejected.prompt_tokens :]
        return Row(self.chosen.row_id, ids, self.chosen.prompt_tokens)


def make_pairs(
    preferences: Sequence[Preference], model: Any, tokenizer: Any, vocabulary: Vocabulary, max_length: int
) -> tuple[list[Pair], dict[str, int]]:
    """Token rows of preferences, and how many are left out since the student's answer exceeds max_length, and how many have
    the ids that it sampled (others are their text, tokenised again).
    """
    ends = stop_ids(model, tokenizer)
    names = [f"{p.said.sample.row_id}#{place}" for place, p in enumerate(preferences)]
    teachers = [
        Sample(name, p.said.sample.messages, p.said.sample.completion)
        for name, p in zip(names, preferences, strict=True)
    ]
    own = [Sample(name, p.said.sample.messages, p.said.text) for name, p in zip(names, preferences, strict=True)]
    sampled = {}
    for name, p in zip(names, preferences, strict=True):
        ids = list(p.said.ids or ())
        if ids and ids[-1] in ends:
            del ids[-1]
        if ids and b"".join(map(vocabulary.token, ids)) == p.said.text.encode():
            sampled[name] = ids
    pairs, left_out = [], 0
    rows = zip(
        preferences,
        make_rows(teachers, tokenizer, ends, max_length),
        make_rows(own, tokenizer, ends, None, sampled),  # what is too long is counted here, not refused
        strict=True,
    )
    for preference, teachers_row, row in rows:
        if len(row.input_ids) > max_length:
            left_out += 1
            continue
        students_row = row if preference.said.whole else Row(row.row_id, row.input_ids[:-1], row.prompt_tokens)
        both = (teachers_row, students_row) if preference.teachers else (students_row, teachers_row)
        pairs.append(Pair(*both))
    return pairs, {"too_long": left_out, "as_sampled": len(sampled)}
