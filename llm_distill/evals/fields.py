"""Answers that are JSON: how many of the fields are right, and whether they fit the schema."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from llm_distill import structured
from llm_distill.evals.texts import NO_REFERENCE
from llm_distill.records import Answer
from llm_distill.scorers import Scored


def json_fields(answers: Sequence[Answer]) -> Scored:
    """F1 of the fields of an answer and its reference: (path, value) pairs, as multisets. NaN where the reference is no JSON.

    A list's items may come in any order, and one missing costs its own fields only; which fields stand together in an item is
    left to `json_equal`. `1` is `1.0`, and never `true`. An answer that is no JSON, strictly, has no field right.
    """
    scores, why = zip(*map(_field_f1, answers), strict=True) if answers else ((), ())
    return Scored(scores, why=why)


def schema_valid(answers: Sequence[Answer], schema: str) -> Scored:
    """1 where an answer is JSON that fits the recipe's `answers.schema`, else 0, and what is wrong. Needs no reference."""
    faults = [structured.fault(answer.text, schema) for answer in answers]
    return Scored([float(fault is None) for fault in faults], why=faults)


def _field_f1(answer: Answer) -> tuple[float, str | None]:
    if answer.prompt.reference is None:
        return math.nan, NO_REFERENCE
    try:
        due = Counter(_fields(structured.parsed(answer.prompt.reference)))
    except (ValueError, RecursionError):
        return math.nan, "the reference is not JSON"
    try:
        found = Counter(_fields(structured.parsed(answer.text)))
    except (ValueError, RecursionError):
        return 0.0, "not JSON"
    return 2 * (found & due).total() / (found.total() + due.total()), None


def _fields(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every leaf with its path, where it stands in a list left out; empty objects and lists are leaves."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _fields(inner, (*path, f".{name}"))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _fields(inner, (*path, "[]"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, "number", Fraction(value)
    else:
        yield path, type(value).__name__, value if isinstance(value, str | bool) else None
