"""The section on a sweep, from report.json: its trials, the best first, and what they allow one to say.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_distill.report import words
from llm_distill.report.charts import Estimate
from llm_distill.report.words import Part, Said, interval, part, parts, points, short, value

MOST = 40  # trials of the table
DRAWN = 10  # trials of the chart


def view(report: Part) -> dict[str, Any]:
    """What the template shows under `sweep`; empty where there was none."""
    sweep, rows = part(report, "sweep"), trials(report)
    paths = list(dict.fromkeys(path for row in rows for path in part(row, "parameters")))
    return {
        **sweep,
        "knobs": [(path, _last(path, paths)) for path in paths],
        "rows": [(row, remark(row), row.get("trial") == part(sweep, "best").get("trial")) for row in rows[:MOST]],
        "left_out": len(rows[MOST:]),
        "said": _texts(sweep, "said"),
        "notes": _texts(sweep, "notes"),
        "overrides": _texts(part(sweep, "best"), "overrides"),
    } if rows else {}  # fmt: skip


def remark(row: Part) -> str:
    """What is to be said of a trial besides its numbers."""
    if row.get("failed"):
        return f"Cannot be trained: {row['failed']}"
    if row.get("same_as") is not None:
        return f"The same student as {row['same_as'] or 'the own settings'}."
    return ""


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of the sweep: a sentence."""
    best = part(part(report, "sweep"), "best")
    change, tried = part(best, "change"), len(trials(report)) - 1
    if not best or tried < 1:
        return
    said = f"Sweep of {words.count(tried)} other settings: "
    lead = f"{points(value(change, 'difference'))} points, {interval(change, 'difference')}"
    if best.get("verdict") == "gain":
        yield Said("same", f"{said}the best leads the recipe's own on the rows that it was picked by ({lead}).")
    elif best.get("verdict") == "no measurable gain":
        yield Said("same", f"{said}no measurable gain over the recipe's own ({lead}).")
    else:
        yield Said("same", f"{said}none scored above the recipe's own.")


def chart(report: Part) -> list[Estimate]:
    """The trials' differences from the recipe's own settings, the best first."""
    found = []
    for row in trials(report):
        change = part(row, "change")
        if value(change, "difference") is not None:
            label = words.visible(short(f"trial {row.get('trial')}", 19))
            best = row.get("trial") == part(part(report, "sweep"), "best").get("trial")
            number = value(change, "difference") or 0.0
            found.append(Estimate(label, number, value(change, "low"), value(change, "high"), points(number), best))
    return found[:DRAWN]


def trials(report: Part) -> list[Part]:
    """A sweep's trials, the best first."""
    rows = parts(part(report, "sweep"), "trials")
    return sorted(rows, key=lambda row: -score if (score := value(part(row, "score"))) is not None else 1.0)


def _texts(of: Part, key: str) -> list[str]:
    found = of.get(key)
    return [str(one) for one in found if one is not None] if isinstance(found, list) else []


def _last(path: str, paths: list[str]) -> str:
    name = path.rsplit(".", 1)[-1]
    return name if sum(other.rsplit(".", 1)[-1] == name for other in paths) == 1 else path
