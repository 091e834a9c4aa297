"""The ship gate's condition on slices: how far below its teacher the student is where it is furthest below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_distill.evals.headline import percent, points
from llm_distill.evals.metrics import AGREEMENT
from llm_distill.evals.statistics import FEWEST

Numbers = Mapping[str, Any]
_LONGEST = 40  # characters of a name


def worst_drop(numbers: Numbers) -> tuple[float | None, str]:
    """By how much the student is below its teacher on the slice where it is furthest below.

    That is what was seen, and not the end of an interval: an upper one would ask hundreds of rows of every slice, a lower one
    would let any small slice pass. The note says where chance alone could have made what was seen. No row decides alone: a
    tag's slices of under `FEWEST` rows are one, and where they are too few together nothing is concluded of them, which the
    note says.
    """
    metric, of = numbers.get("metric"), numbers["arms"]
    if metric in (None, AGREEMENT):
        return None, "no held-out row has gold to score both by; give the rows labels or references"
    if (n := of["student"][metric]["n"]) < FEWEST:
        return None, f"{n} rows are too few to tell slices by; hold more out"
    drops: list[tuple[float, str]] = []
    few: list[str] = []
    for tag, groups in of["student"]["slices"].items():
        small: list[tuple[str, int, float, float]] = []
        shown = _short(tag)
        for name, cell in groups.items():
            student, teacher = cell[metric], of["teacher"]["slices"][tag][name][metric]
            where = f"{shown} {_short(name)}"
            if student["value"] is None or teacher["value"] is None:
                return None, f"no row of {where} has gold to score it by; give one a label or a reference"
            if student["n"] < FEWEST:
                small.append((name, student["n"], student["value"], teacher["value"]))
                continue
            pair = (
                (numbers.get("paired") or {}).get("student_vs_teacher", {}).get("slices", {}).get(tag, {}).get(name, {})
            )
            drops.append(_drop(where, student["n"], student["value"], teacher["value"], pair))
        if small:
            rows = sum(n for _, n, _, _ in small)
            names = ", ".join(_short(name) for name, *_ in small[:3]) + (
                f" and {len(small) - 3} more" if len(small) > 3 else ""
            )
            if rows < FEWEST:
                few.append(f"{shown} {names}: {rows} rows")
                continue
            student_at = sum(n * ours for _, n, ours, _ in small) / rows
            teacher_at = sum(n * theirs for _, n, _, theirs in small) / rows
            where = f"{shown} {names}" if len(small) == 1 else f"{shown} {names} (small slices together)"
            drops.append(_drop(where, rows, student_at, teacher_at, {}))
    if not drops:
        return None, "there are no slices; name tags in evaluate.slices"
    drop, note = max(drops)
    return drop, "; too few to conclude anything from: ".join([note, *(["; ".join(few)] if few else [])])


def _short(name: str) -> str:
    """A tag or its value, which may be a whole text, beside the numbers that are read with it."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _drop(where: str, rows: int, student: float, teacher: float, pair: Numbers) -> tuple[float, str]:
    """How far below its teacher the student is, and in words, with the paired interval where there is one."""
    low, high = pair.get("low"), pair.get("high")
    chance = ", which chance alone could make" if high is not None and student < teacher and high >= 0 else ""
    span = "" if low is None or high is None else f" ({points(-high)} to {points(-low)} points below{chance})"
    return teacher - student, f"{where}, {rows} rows: {percent(student)} against {percent(teacher)}{span}"
