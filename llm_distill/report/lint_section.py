"""The part of the section on training that says what the linter found before the first step, and why the last one came early,
from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_distill.report.words import Part, Said, count, human, part, parts, short, value

_ORDER = ("error", "warning", "note")
#: What stands in the section anyway.
_ELSEWHERE = ("example",)


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `lint`, warnings first; empty where nothing was linted."""
    shown = [
        {"level": row.get("level"), "name": human(row.get("name")), "text": _text(row)}
        for row in parts(part(report, "training"), "lint")
        if row.get("name") not in _ELSEWHERE
    ]
    return sorted(shown, key=lambda row: _ORDER.index(row["level"]) if row["level"] in _ORDER else len(_ORDER))


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it: a sentence for each warning, and where training ended before its last step."""
    for row in parts(part(report, "training"), "lint"):
        if row.get("level") in ("error", "warning"):
            yield Said("look", f"Before training, {human(row.get('name')).casefold()}: {short(row.get('found'), 200)}.")
    training = part(report, "training")
    validation, steps = part(training, "validation"), value(training, "steps")
    ended = value(validation, "ended")
    if ended is not None and steps is not None and ended < steps:
        yield Said(
            "same",
            f"Training ended early, after step {count(ended)} of {count(steps)}: rows set aside from it got no better after step "
            f"{count(value(validation, 'best_step'))}, whose weights are the student's.",
        )


def _text(row: Part) -> str:
    right = str(row.get("right") or "")
    return f"{row.get('found')}. {right}".rstrip()
