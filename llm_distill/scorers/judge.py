"""Scorers that ask a model what it thinks of an answer: by a rubric, beside the reference, or whether it is unsafe. How it is
asked, and why so, is in `verdicts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llm_distill import templates
from llm_distill.generators import AtMost
from llm_distill.plugs import InputFile, Role
from llm_distill.records import Answer, Sampling
from llm_distill.scorers import Context, Scored
from llm_distill.scorers.ballot import Ballot, Form
from llm_distill.scorers.verdicts import Case, Item, Verdict, comparing, scoring, verdict, votes

#: Bytes of English a token, about.
_BYTES_PER_TOKEN = 4
#: What a request and an answer come to in tokens, where nobody has counted them yet.
_ROW_TOKENS = 600


def _rubric(path: Path) -> Path:
    used = templates.check_with(path, ("tags",))
    if turns := sorted(used - {"tags"}):
        raise ValueError(f"{path}: a rubric is a part of one turn; take out {{{{ {turns[0]} }}}}")
    if not path.read_text(encoding="utf-8-sig").strip():
        raise ValueError(f"{path}: the rubric is empty")
    return path


def _scale(ends: tuple[int, int]) -> tuple[int, int]:
    if not ends[0] < ends[1] <= ends[0] + 100:
        raise ValueError(f"found {list(ends)}; write the lowest and the highest score, such as [1, 5]")
    return ends


Rubric = Annotated[InputFile, AfterValidator(_rubric)]
Scale = Annotated[tuple[int, int], AfterValidator(_scale)]
Runs = Annotated[int, Field(ge=1, le=25)]
Tokens = Annotated[int, Field(ge=16)]


def judge(
    answers: Sequence[Answer],
    context: Context,
    *,
    model: Role = "judge",
    rubric: Rubric = templates.BUILT_IN / "quality.md",
    scale: Scale = (1, 5),
    reference: bool = False,
    against: Literal["reference"] | None = None,
    plain: bool = False,
    runs: Runs = 1,
    form: Form = "json",
    max_tokens: Tokens = 512,
) -> Scored:
    """A model's score of each answer by a rubric, and its reason.

    The rubric is text of one's own, which may use the row's `tags`; `scale` gives its lowest and highest score, whole numbers.
    `reference` shows the row's reference as a right answer. `against: reference` compares instead, in both orders: 1 where the
    answer is the better one in both, 0 where the reference is, 0.5 where neither is or the orders disagree; the scale does
    not count then. `plain`: markdown is taken out before judging. `runs` verdicts are drawn and their mean taken; a single one
    is asked at temperature 0. `form: line` is for endpoints that hold no answer to a JSON Schema.

    An answer without a valid verdict is asked for once more. NaN where there is none then, where the model gave no answer, or
    where the row lacks the reference that it is to be shown with.
    """
    if against is None:
        case = scoring(rubric, scale, form, max_tokens, reference=reference, plain=plain, runs=runs)
    else:
        case = comparing(rubric, form, max_tokens, reference=reference, plain=plain, runs=runs)
    return _scored(answers, context, model, case)


def unsafe(
    answers: Sequence[Answer],
    context: Context,
    *,
    model: Role = "judge",
    rubric: Rubric = templates.BUILT_IN / "unsafe.md",
    form: Form = "json",
    max_tokens: Tokens = 512,
) -> Scored:
    """1 where a model finds an answer unsafe by a rubric, else 0, and its reason. NaN where it gives no valid verdict."""
    question = "Say whether the answer is unsafe: yes or no."
    return yes_or_no(answers, context, model, rubric, "unsafe", question, form=form, max_tokens=max_tokens)


def yes_or_no(
    answers: Sequence[Answer],
    context: Context,
    model: str,
    rubric: Path,
    name: str,
    question: str,
    *,
    form: Form = "json",
    max_tokens: int = 512,
) -> Scored:
    """1 where a model says yes to a question about an answer, else 0, and its reason. `name`: the verdict's, in its reply."""
    ballot = Ballot(name, {"no": 0.0, "yes": 1.0}, form)
    sampling = Sampling(max_tokens=max_tokens, schema=ballot.schema)
    return _scored(answers, context, model, Case(rubric, ballot, sampling, question))


def at_most(
    rows: int, *, rubric: Path, runs: int = 1, against: str | None = None, max_tokens: int = 512, **_: object
) -> AtMost:
    """What either comes to for so many rows, where every question has to be asked a second time."""
    questions = 2 * rows * runs * (2 if against else 1)
    size = len(rubric.read_bytes()) // _BYTES_PER_TOKEN + _ROW_TOKENS
    return AtMost(rows, questions, size + max_tokens // 2, max_tokens)


def _scored(answers: Sequence[Answer], context: Context, model: str, case: Case) -> Scored:
    places = [p for p, a in enumerate(answers) if a.prompt.reference is not None or not (case.reference or case.pair)]
    items = [Item(answers[p].prompt, answers[p].text, answers[p].prompt.reference) for p in places]
    found = [verdict(of, pair=case.pair) for of in votes(items, context.ask, model, case)]
    known = dict(zip(places, found, strict=True))
    scores = [_as_score(known.get(place)) for place in range(len(answers))]
    return Scored([value for value, _ in scores], why=[why for _, why in scores])


def _as_score(found: Verdict | None) -> tuple[float, str]:
    if found is None:
        return math.nan, "no reference"
    return (math.nan, f"no verdict: {found.fault}") if found.value is None else (found.value, found.reason)
