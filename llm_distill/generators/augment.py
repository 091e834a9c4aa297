"""More rows from those that are there: other words for the same, the same words with slips, near misses of another class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering, prompt_tokens
from llm_distill.generators.lists import between, fault
from llm_distill.generators.noise import CASES, typos
from llm_distill.plugs import Role
from llm_distill.records import Message, Prompt, Request, Sampling, content_id, make_prompt
from llm_distill.templates import BUILT_IN, render_with

Kind = Literal["paraphrase", "rewrite", "hard_negative", "typo", "case"]
#: Kinds that a model is asked for; the others are made here.
ASKED: tuple[Kind, ...] = ("paraphrase", "rewrite", "hard_negative")
#: A rewrite this many times as long as its parent went on to answer it, or to explain itself.
_LONGER = 4
#: Ways of a rewrite: other languages first, since a way through one moves more words than a style does.
_LANGUAGES = ("German", "French")
_STYLES = ("in a formal tone", "as one would write to a friend")


@dataclass(frozen=True)
class _Job:
    """One row to be made: the kind, of which row, and the how-manieth of its kind."""

    kind: Kind
    parent: Prompt
    number: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from other jobs."""
        return self.kind, self.parent.prompt_id, self.number


@dataclass(frozen=True)
class _Ways:
    """How the jobs of a run are carried out."""

    context: Context
    sampling: Sampling
    language: str
    through: Sequence[str]
    styles: Sequence[str]
    typo_share: float

    def request(self, job: _Job, template: str, **variables: Any) -> Request:
        """A job's question; `text` is the parent's last turn unless given."""
        given = {"text": _said(job.parent), **variables}
        messages = render_with(BUILT_IN / f"augment_{template}.md", given, f"row {job.parent.row_id}")
        return Request(messages, self.sampling, sample=job.number)

    def style(self, job: _Job) -> str | None:
        """A rewrite's style; None where it goes through another language."""
        way = self._way(job)
        return None if way < len(self.through) else self.styles[way - len(self.through)]

    def tongue(self, job: _Job) -> str:
        """The language that a rewrite goes through."""
        return self.through[self._way(job)]

    def _way(self, job: _Job) -> int:
        return (int(job.parent.prompt_id[:8], 16) + job.number) % (len(self.through) + len(self.styles))

    def first(self, job: _Job) -> Request:
        """The question of a job that asks; a rewrite through another language has a second one."""
        if job.kind == "paraphrase":
            return self.request(job, "paraphrase")
        if job.kind == "hard_negative":
            labels, label = self.context.task.labels, job.parent.label
            others = [other for other in labels if other != label]
            turn = int(job.parent.prompt_id[:8], 16) + job.number
            aim = others[turn % len(others)] if label is not None else None
            return self.request(job, "hard_negative", labels=labels, label=label, aim=aim)
        style = self.style(job)
        if style is not None:
            return self.request(job, "style", style=style)
        return self.request(job, "translate", language=self.tongue(job))

    def made_here(self, job: _Job) -> str:
        """The text of a job that asks nobody."""
        text, turn = _said(job.parent), int(job.parent.prompt_id[:8], 16) + job.number
        if job.kind == "typo":
            return typos(text, self.typo_share, f"{self.context.seed}:{job.parent.prompt_id}:{job.number}")
        return CASES[turn % len(CASES)][1](text)


def augment(
    context: Context,
    *,
    kinds: Annotated[list[Kind], Field(min_length=1)] = ["paraphrase"],  # noqa: B006 - never changed
    share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    rows: Annotated[int, Field(ge=1)] | None = None,
    per_row: Annotated[int, Field(ge=1, le=16)] = 1,
    model: Role = "teacher",
    language: str = "English",
    through: list[str] = list(_LANGUAGES),  # noqa: B006 - never changed
    styles: list[str] = list(_STYLES),  # noqa: B006 - never changed
    typo_share: Annotated[float, Field(gt=0, le=1)] = 0.1,  # people typing fast err in about so many words
    temperature: Annotated[float, Field(ge=0)] = 0.7,
    max_tokens: Annotated[int, Field(ge=1)] = 512,
) -> Iterator[Prompt]:
    """The rows above, changed: for each, `per_row` of each of the kinds. Only the last turn changes. Nothing is given twice.

    paraphrase: other words, by a model. rewrite: by a model, through another language and back into `language` (Sennrich
    et al. 2016, arXiv 1511.06709), or in another of `styles`; with `through: []` styles alone. hard_negative: classify
    only, by a model: like the row, and of another label. typo: slips of the keyboard in `typo_share` of the words. case:
    lower case, upper case, or no punctuation.

    `share`: that part of the rows, by a hash of their content; `rows`: no more new ones than this. A label or a reference
    goes to what means the same: to all but hard negatives, whose label nobody knows yet. What equals its parent or another
    row (but for case, that is what `case` is about), and an answer that is not the marked text that was asked for, is
    thrown away and counted. Filters such as `exact_duplicate` do not see case: they take a `case` row for its parent.
    Tags: `augmentation`, `parent`.
    """
    if not context.before:
        raise UserError("augment: there are no rows to change; put an entry above it.")
    if "hard_negative" in kinds and context.task.kind != "classify":
        raise UserError("augment.kinds: hard_negative needs labels, and the task is generate; leave it out.")
    if "rewrite" in kinds and not (through or styles):
        raise UserError("augment: a rewrite needs `through` or `styles`, and both are empty.")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    ways = _Ways(context, sampling, language, through, styles, typo_share)
    jobs = list(islice(_jobs(context.before, list(dict.fromkeys(kinds)), share, per_row), rows))
    gathering = Gathering(context)
    texts = _asked([job for job in jobs if job.kind in ASKED], ways, gathering, model)
    there = {content_id(row.messages) for row in context.before}
    for job in jobs:
        asks = job.kind in ASKED
        text = texts.get(job.key) if asks else ways.made_here(job)
        if text is None:
            continue
        row = _row(job, text, context)
        if why := _fault(job, text) if asks else None:
            gathering.gone[why] += 1
        elif row.prompt_id in there or (job.kind != "case" and not gathering.unknown(row)):
            gathering.gone["known"] += row.prompt_id in there
        else:
            there.add(row.prompt_id)
            gathering.rows.append(row)
    gathering.say("augment", len(jobs))
    yield from gathering.rows


def at_most(
    before: int,
    *,
    kinds: Sequence[Kind] = ("paraphrase",),
    share: float = 1.0,
    rows: int | None = None,
    per_row: int = 1,
    through: Sequence[str] = _LANGUAGES,
    max_tokens: int = 512,
    **_others: Any,
) -> AtMost:
    """What it may come to: a share by hash is a few rows more or less than the share itself (four standard deviations)."""
    parents = min(before, ceil(before * share + 4 * sqrt(before * share * (1 - share))))
    jobs = parents * per_row * len(set(kinds))
    limited = jobs if rows is None else min(rows, jobs)
    asked = {kind: parents * per_row * (2 if kind == "rewrite" and through else 1) for kind in set(kinds) & set(ASKED)}
    each = 2 if "rewrite" in asked and through else 1
    questions = min(sum(asked.values()), limited * each)
    return AtMost(limited, questions, prompt_tokens(Path(BUILT_IN) / "augment_hard_negative.md", 60), max_tokens)


def _jobs(before: Sequence[Prompt], kinds: Sequence[Kind], share: float, per_row: int) -> Iterator[_Job]:
    """What is to be made, row by row; of equal rows the first stands for all."""
    seen: set[str] = set()
    for parent in before:
        chosen = int(content_id(["augment", parent.prompt_id])[:13], 16) / 16**13 < share
        if chosen and parent.prompt_id not in seen:
            seen.add(parent.prompt_id)
            for number in range(per_row):
                yield from (_Job(kind, parent, number) for kind in kinds)


_Texts = dict[tuple[str, str, int], str]


def _asked(jobs: Sequence[_Job], ways: _Ways, gathering: Gathering, model: str) -> _Texts:
    """The texts that a model wrote, in two rounds: all first questions, then the ways back from other languages."""
    if not jobs:
        return {}
    texts = _texts(jobs, [ways.first(job) for job in jobs], gathering, model)
    abroad = [job for job in jobs if job.kind == "rewrite" and ways.style(job) is None and job.key in texts]
    if not abroad:
        return texts
    back = [ways.request(job, "translate", text=texts.pop(job.key), language=ways.language) for job in abroad]
    return texts | _texts(abroad, back, gathering, model)


def _texts(jobs: Sequence[_Job], requests: Sequence[Request], gathering: Gathering, model: str) -> _Texts:
    """What stands between the marks; an answer without them may be anything: a preamble, a refusal, an answer."""
    found: _Texts = {}
    for job, answer in zip(jobs, gathering.ask(model, requests), strict=True):
        text = between(answer, "text") if answer and "<text>" in answer else None
        gathering.gone["malformed"] += answer is not None and not text
        if text:
            found[job.key] = text
    return found


def _said(row: Prompt) -> str:
    return row.messages[-1].content


def _fault(job: _Job, text: str) -> str | None:
    if len(text) > _LONGER * max(len(_said(job.parent)), 40):
        return "too long"
    return fault(text)


def _row(job: _Job, text: str, context: Context) -> Prompt:
    messages = (*job.parent.messages[:-1], Message("user", text))
    tags = context.tagged(job.parent, augmentation=job.kind)
    for belongs in ("group", "attribute", "variant"):  # it differs from the group's rows in more than a term
        tags = {tag: value for tag, value in tags.items() if tag != belongs}
    if job.kind == "hard_negative":
        return make_prompt(messages, tags)
    return make_prompt(messages, tags, job.parent.label, job.parent.reference)
