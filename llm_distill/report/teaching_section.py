"""What training found out before it began: how far the teacher's confidence is right, and why a rung was taken.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llm_distill.report import words
from llm_distill.report.words import Part, Said, part, parts, percent, value

#: How `right` was told.
BY = {"gold": "by labelled rows", "agreement": "by how often the teacher repeats its own label"}


def calibration(report: Part) -> dict[str, Any]:
    """What the template shows under `calibration`: the arms of its table, the bins of both, other methods, priors."""
    found = part(part(report, "training"), "calibration")
    before, after = part(found, "before"), part(found, "after")
    arms = [("The teacher as it is", before), ("Calibrated", after), ("Its labels alone", part(found, "hard"))]
    return {
        **found,
        "by_words": BY.get(str(found.get("by")), ""),
        "worth_words": _worth(part(found, "worth")),
        "arms": [(name, arm) for name, arm in arms if arm],
        "bins": [(name, _bins(arm)) for name, arm in arms[:2] if _bins(arm)],
        "tried": parts(found, "candidates"),
    } if found else {}  # fmt: skip


def rungs(report: Part) -> list[Part]:
    """The rungs that `train: auto` looked at, the highest first."""
    return parts(part(report, "training"), "rungs")


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it: a sentence."""
    found = part(part(report, "training"), "calibration")
    before, after = part(found, "before"), part(found, "after")
    ece, mended = value(before, "ece"), value(after, "ece")
    if ece is not None and mended is not None:
        how = (
            f"{words.short(found.get('method'))}: {words.measure(mended, 'ece')}"
            if found.get("method") != "none"
            else "left so"
        )
        yield Said(
            "same",
            f"The teacher is {percent(value(before, 'confidence'))} sure and {percent(value(before, 'right'))} right "
            f"(calibration error {words.measure(ece, 'ece')}, {words.count(value(before, 'rows'))} rows; {how}).",
        )
    for rung in rungs(report):
        if rung.get("taken"):
            yield Said("same", f"Trained by {words.short(rung.get('name'))}: {words.short(rung.get('why'), 300)}.")


def _worth(found: Part) -> str:
    """What the distributions are worth beside the labels, in a sentence; empty where that is not known."""
    gain, low, high = (value(found, name) for name in ("gain", "low", "high"))
    if gain is None or low is None or high is None:
        return ""
    shown = "a gain" if low > 0 else "a loss" if high < 0 else "no gain that these rows show"
    return (
        f"On {words.count(value(found, 'rows'))} labelled rows as sure as those that were taught, the calibrated distributions' "
        f"Brier score is better than that of the teacher's labels by {gain:+.4f} ({low:+.4f} to {high:+.4f}): {shown}."
    )


def _bins(arm: Part) -> list[tuple[Any, Any, Any]]:
    found = arm.get("bins")
    rows = found if isinstance(found, list) else []
    return [(one[0], one[1], one[2]) for one in rows if isinstance(one, Sequence) and len(one) == 3]
