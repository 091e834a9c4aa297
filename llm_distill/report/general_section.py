"""The section on general ability, from report.json: what the student can do beside its task, against its untrained self.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_distill.report.charts import Estimate
from llm_distill.report.words import Part, Said, count, human, interval, part, percent, points, short, value, visible

_EVERYTHING = "All together"
_DRAWN = 10


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `general`, a task each and all together last; empty where nothing was measured."""
    found = part(report, "general")
    rows = [row for row in found.get("tasks") or [] if isinstance(row, Mapping)]
    if len(rows) > 1 and part(found, "all"):
        rows.append({**part(found, "all"), "name": _EVERYTHING})
    return [
        {
            **row,
            "name": short(row.get("name") or "a task", 40),
            "whole": row.get("name") == _EVERYTHING,
            "lost": _lost(row),
        }
        for row in rows
    ]


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it: whether general ability was lost, and how far these tasks can tell."""
    found = part(report, "general")
    of = part(found, "all")
    if value(of, "rows") is None:
        return
    both = f"{percent(value(part(of, 'base')))} before training, {percent(value(part(of, 'student')))} after"
    difference, rows = part(of, "difference"), count(of.get("rows"))
    shown = f"{points(value(difference, 'difference'))} points, {interval(difference, 'difference')}; {rows} rows"
    small = ", all of the small tasks that ship" if found.get("shipped") else ""
    tone, text = _lost(of)
    yield Said(tone, f"General ability: {text} ({both}: {shown}{small}).")
    tasks = [(row, value(part(row, "difference"), "p_holm")) for row in view(report) if not row["whole"]]
    worse = [row for row, p in tasks if p is not None and p < 0.05]
    for row in worse:
        change = value(part(row, "difference"), "difference") or 0.0
        if change < 0:
            yield Said(
                "look", f"{human(row['name'])}: {points(change)} points after training, several tasks allowed for."
            )
    for side in ("base", "student"):
        if missing := value(part(of, "failed"), side):
            yield Said("look", f"General ability: {side} failed on {count(missing)} rows, which count as wrong.")


def chart(report: Part) -> list[Estimate]:
    """The difference that training made, a task each."""
    drawn = []
    for row in view(report)[-_DRAWN:]:
        of = part(row, "difference")
        if (change := value(of, "difference")) is not None:
            low, high = value(of, "low"), value(of, "high")
            drawn.append(
                Estimate(visible(short(row["name"], 19)), change, low, high, points(change), bool(row["whole"]))
            )
    return drawn


def _lost(of: Part) -> Said:
    """What a comparison allows one to say; not seen is not absent."""
    difference = part(of, "difference")
    low, high = value(difference, "low"), value(difference, "high")
    if low is None or high is None:
        return Said("look", "nothing can be said")
    if high < 0:
        return Said("look", "some was lost")
    if low > 0:
        return Said("good", "none was lost, and some gained")
    seen = value(difference, "smallest_visible")
    power = f"; one of {100 * seen:.1f} points or more would mostly be" if seen else ""
    return Said("same", f"no loss can be seen{power}")
