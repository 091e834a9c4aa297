"""The section on pass@k: how often one of several answers is right, from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_distill.report.words import Part, Said, human, interval, part, percent, points, short, value


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `pass_at`: an entry for each metric and k, with a line for each arm."""
    return [
        {
            "name": f"pass@{short(one.get('k'), 6)}",
            "metric": human(one.get("metric")),
            "n": one.get("n"),
            "arms": [(arm, part(part(one, "arms"), arm), _against(one, arm)) for arm in part(one, "arms")],
        }
        for one in part(report, "pass_at").get("found") or []
        if isinstance(one, Mapping)
    ]


def _against(one: Part, arm: str) -> Part:
    """The student's comparison with an arm."""
    return part(part(one, "paired"), f"student_vs_{arm}")


def findings(report: Part) -> Iterator[Said]:
    """Where the student is ahead or behind beyond chance, all comparisons allowed for."""
    for one in view(report):
        for arm, of, pair in one["arms"]:
            p, change = value(pair, "p_holm"), value(pair, "difference")
            low, high = value(pair, "low"), value(pair, "high")
            if p is None or change is None or low is None or high is None or p >= 0.05 or not (low > 0 or high < 0):
                continue
            yield Said(
                "good" if change > 0 else "look",
                f"{one['name']} ({one['metric'].lower()}): the student is {points(abs(change))} points "
                f"{'above' if change > 0 else 'below'} {human(arm).lower()} ({interval(pair, 'difference')}; "
                f"{human(arm).lower()} {percent(value(of))}), all such comparisons allowed for.",
            )
