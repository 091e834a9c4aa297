"""The ship gate's table in words, from report.json: for the page, report.md and the command line."""

from __future__ import annotations

from typing import NamedTuple

from llm_distill.report.words import Part, human, part, percent, short, value

_SAID = {
    "min_kept_share": "Share of the teacher kept, lower bound",
    "max_slice_drop": "Below the teacher on the worst slice",
    "max_bias_rise": "More uneven groups than before training",
    "min_robust_share": "Score kept under the worst perturbation, lower bound",
    "min_gain_on_previous": "Above the previous student, lower bound",
    "max_general_loss": "General ability lost, upper bound",
    "max_usd_per_1000": "Cost of 1,000 answers",
    "max_p95_seconds": "Time of an answer, p95",
    "min_win_rate": "Win rate against the teacher, lower bound",
}


class Line(NamedTuple):
    """A condition: what it is about, what was found, what is asked, whether it holds, and the details."""

    what: str
    found: str
    asked: str
    holds: bool
    note: str


def lines(report: Part) -> list[Line]:
    """One for each condition; none where the recipe has no gate."""
    found = part(report, "gate").get("conditions")
    return [_line(one) for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _line(one: Part) -> Line:
    unit = str(one.get("unit"))
    end = "min" if value(one, "min") is not None else "max"
    number = value(one)
    return Line(
        _SAID.get(str(one.get("name")), human(one.get("name"))),
        _shown(number, unit) if number is not None else "nothing to judge" if one.get("holds") else "cannot be judged",
        f"at {'least' if end == 'min' else 'most'} {_shown(value(one, end) or 0.0, unit)}",
        one.get("holds") is True,
        short(one.get("note") or "", 400),
    )


def _shown(number: float, unit: str) -> str:
    if unit == "share":
        return percent(number)
    if unit == "points":
        return f"{100 * number:.1f}\u00a0points"
    return f"${number:.4g}" if unit == "usd" else f"{number:.3g}\u00a0s"
