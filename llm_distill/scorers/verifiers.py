"""Verifiers: scorers that know the right answer. 1 where the answer agrees with the row's reference, 0 where it does not."""

from __future__ import annotations

import math as maths
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from llm_distill import structured
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.equating import Equating, check_installed
from llm_distill.scorers.numbers import Mark, Number, boxed, numbers

Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_BRIEF = 120  # characters of what is quoted
#: Rows that are worth a process of their own: it takes a second to start.
_ROWS_EACH = 50


def numeric(
    answers: Sequence[Answer],
    *,
    where: Literal["last", "only", "boxed", "after"] = "last",
    marker: Annotated[str, Field(min_length=1)] = "Answer:",
    tolerance: Tolerance = 1e-6,
    decimal: Mark = ".",
) -> Scored:
    r"""1 where the number that an answer states is the reference's, else 0, and why. NaN where the reference is no number.

    `where` it is stated: the `last` number of the text (GSM8K's usage), its `only` one, the only one in its last
    `\boxed{...}`, or the first `after` the last `marker`. `tolerance` is a share of the reference, at a reference of 0 an
    amount; figures are compared exactly. Currency does not count. Where one of the two has a percent sign, it may be a unit
    (45 % is 45) or a hundredth (45 % is 0.45). A reference with `####` is what follows it.
    """

    def score(answer: Answer) -> tuple[float, str | None]:
        reference = answer.prompt.reference
        if reference is None:
            return maths.nan, "no reference"
        due = numbers(reference.rpartition("####")[2], decimal)
        if len(due) != 1:
            return maths.nan, f"the reference has {len(due)} numbers, and one is due"
        found, fault = _stated(answer.text, where, marker, decimal)
        if found is None:
            return 0.0, fault
        same = _same_number(found, due[0], tolerance)
        return float(same), None if same else f"{_brief(found.text)}, due {_brief(due[0].text)}"

    return _each(score, answers)


def _stated(text: str, where: str, marker: str, decimal: Mark) -> tuple[Number | None, str]:
    """The number that an answer states, or why it states none."""
    if where == "boxed":
        inside = boxed(text)
        if inside is None:
            return None, "nothing is boxed"
        text = inside
    elif where == "after":
        _, said, text = text.rpartition(marker)
        if not said:
            return None, f"no {marker!r}"
    found = numbers(text, decimal)
    if not found:
        return None, "no number"
    if where in ("only", "boxed") and len(found) > 1:
        return None, f"{len(found)} numbers, and one is due"
    return found[0 if where == "after" else -1], ""


def _same_number(found: Number, due: Number, tolerance: float) -> bool:
    scales = (Fraction(1),) if found.percent == due.percent else (Fraction(1), Fraction(1, 100))
    bound = Fraction(tolerance)
    for scale in scales:
        one = found.figure * (scale if found.percent else 1)
        other = due.figure * (scale if due.percent else 1)
        if abs(one - other) <= bound * (abs(other) or 1):
            return True
    return False


def _installed(timeout_s: int) -> int:
    check_installed()
    return timeout_s


def math(
    answers: Sequence[Answer],
    *,
    timeout_s: Annotated[int, Field(ge=1), AfterValidator(_installed)] = 5,
) -> Scored:
    r"""1 where an answer's last mathematical expression equals the reference, else 0, and why; by math-verify.

    Both may be LaTeX (`\frac{1}{2}`, sets, intervals, equations) or plain (`1/2`); a reference without `$` or `\boxed` is
    taken for LaTeX. NaN where the reference holds no expression, or a comparison takes longer than `timeout_s` or more than
    its memory. Expressions are read and compared in processes of their own, which can be ended whatever they do.
    """
    rows = [(place, a.prompt.reference, a.text) for place, a in enumerate(answers) if a.prompt.reference is not None]
    scores: list[tuple[float, str | None]] = [(maths.nan, "no reference")] * len(answers)
    workers = max(1, min(os.cpu_count() or 1, -(-len(rows) // _ROWS_EACH)))

    def share(start: int) -> None:
        with Equating(timeout_s) as equating:
            for place, reference, text in rows[start::workers]:
                scores[place] = equating(reference, text)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers if rows else 0)))
    return Scored([value for value, _ in scores], why=[why for _, why in scores])


def json_equal(answers: Sequence[Answer], *, tolerance: Tolerance = 1e-9, ignore: Sequence[str] = ()) -> Scored:
    """1 where an answer is JSON, strictly, and equals the reference, else 0, and where they differ.

    The order of keys does not count, that of a list does; `1` is `1.0`, and never `true`. `tolerance` is a share of the
    reference's number. Keys in `ignore` may differ or be missing, at any depth. NaN where the reference is no JSON.
    """
    passed_over = frozenset(ignore)

    def score(answer: Answer) -> tuple[float, str | None]:
        if answer.prompt.reference is None:
            return maths.nan, "no reference"
        try:
            due = structured.parsed(answer.prompt.reference)
        except (ValueError, RecursionError) as error:
            return maths.nan, _brief(f"the reference is not JSON: {error}")
        try:
            found = structured.parsed(answer.text)
            difference = _difference(found, due, "$", tolerance, passed_over)
        except RecursionError:
            return 0.0, "nested too deeply"
        except ValueError as error:
            return 0.0, _brief(f"not JSON: {error}")
        return float(difference is None), difference

    return _each(score, answers)


def _difference(found: Any, due: Any, path: str, tolerance: float, ignore: frozenset[str]) -> str | None:
    """Where two JSON values differ first, as `path: found, due`; None where they are equal."""
    if isinstance(due, dict) and isinstance(found, dict):
        for name in (*due, *(name for name in found if name not in due)):
            if name in ignore:
                continue
            if name not in found or name not in due:
                return _brief(f"{path}: {name!r} is {'missing' if name in due else 'not due'}")
            if inner := _difference(found[name], due[name], f"{path}.{name}", tolerance, ignore):
                return inner
        return None
    if isinstance(due, list) and isinstance(found, list):
        if len(found) != len(due):
            return _brief(f"{path}: {len(found)} items, due {len(due)}")
        differences = (
            _difference(one, other, f"{path}[{place}]", tolerance, ignore)
            for place, (one, other) in enumerate(zip(found, due, strict=True))
        )
        return next((inner for inner in differences if inner), None)
    if _is_number(found) and _is_number(due):
        same = abs(Fraction(found) - Fraction(due)) <= Fraction(tolerance) * abs(Fraction(due))
    else:
        same = type(found) is type(due) and found == due
    return None if same else _brief(f"{path}: {found!r}, due {due!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _each(score: Callable[[Answer], tuple[float, str | None]], answers: Sequence[Answer]) -> Scored:
    scores = [score(answer) for answer in answers]
    return Scored([value for value, _ in scores], why=[why for _, why in scores])


def _brief(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:_BRIEF]
