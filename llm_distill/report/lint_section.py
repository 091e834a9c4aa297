"""The part of the section on training that says what the linter found before the first step, from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_distill.report.words import Part, Said, human, part, short

_ORDER = ("error", "warning", "note")
#: What stands in the section anyway.
_ELSEWHERE = ("example",)


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `lint`, warnings first; empty where nothing was linted."""
    shown = [
        {"level": row.get("level"), "name": human(row.get("name")), "text": _text(row)}
        for row in _rows(report)
        if row.get("name") not in _ELSEWHERE
    ]
    return sorted(shown, key=lambda row: _ORDER.index(row["level"]) if row["level"] in _ORDER else len(_ORDER))


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it: a sentence for each warning."""
    for row in _rows(report):
        if row.get("level") in ("error", "warning"):
            yield Said("look", f"Before training, {human(row.get('name')).casefold()}: {short(row.get('found'), 200)}.")


def _rows(report: Part) -> list[Part]:
    found = part(report, "training").get("lint")
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _text(row: Part) -> str:
    right = str(row.get("right") or "")
    return f"{row.get('found')}. {right}".rstrip()
