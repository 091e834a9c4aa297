"""What the page says of arms beside their values: which metrics there are, which are missing and why, and their slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_distill.report import words
from llm_distill.report.sections import MOST
from llm_distill.report.words import Part, Said, human, part, percent, short, value

BASES = ("base_few_shot", "base_zero_shot")
RIVALS = ("teacher", "previous", *BASES)  # in the order in which a reviewer asks; students of other runs come last


def measured(arms: Mapping[str, Part]) -> list[str]:
    """The metrics of which some arm has a value."""
    named = dict.fromkeys(m for arm in arms.values() for m in arm if "value" in part(arm, m))
    return [m for m in named if any(value(part(arm, m)) is not None for arm in arms.values())]


def unmeasured(arms: Mapping[str, Part]) -> list[tuple[str, str, list[str]]]:
    """(metric, why it has no value, of which arms), equal reasons together."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm, numbers in arms.items():
        for metric, why in part(numbers, "undefined").items():
            if why != "it is the teacher":
                found.setdefault((metric, str(why)), []).append(arm)
    return [(metric, why, of) for (metric, why), of in found.items()]


def asked_first(pair: str) -> int:
    """Comparisons in the order in which a reviewer asks, others last."""
    rival = pair.partition("_vs_")[2]
    return RIVALS.index(rival) if rival in RIVALS else len(RIVALS)


def weakest_slice(arms: Mapping[str, Part], primary: str) -> Iterator[Said]:
    """The slice on which the student falls furthest behind the teacher."""
    behind = []
    for tag, rows, _ in slices(arms, primary, most=10**6):
        for group, n, metrics in rows:
            student, teacher = value(metrics.get("student", {})), value(metrics.get("teacher", {}))
            if student is not None and teacher is not None:
                behind.append((student - teacher, f"{short(tag)} {short(group)}", n, student, teacher))
    if behind:
        lead, where, n, student, teacher = min(behind)
        shown = f"{percent(student)} against {percent(teacher)}, {words.count(n)} rows"
        if lead < 0:
            yield Said("same", f"Furthest behind the teacher on {where}: {shown}.")
        else:
            yield Said("good", f"On no slice is the student behind the teacher; closest on {where}: {shown}.")


def worse_slices(pairs: Mapping[str, Part]) -> Iterator[Said]:
    """Slices on which the student is behind beyond chance, as many as were tested allowed for."""
    for name, pair in pairs.items():
        cells = [
            (f"{short(tag)} {short(group)}", part(part(part(pair, "slices"), tag), group))
            for tag in part(pair, "slices")
            for group in part(part(pair, "slices"), tag)
        ]
        tested = [(where, cell) for where, cell in cells if value(cell, "p_holm") is not None]
        worse = [where for where, cell in tested if cell["p_holm"] < 0.05 and (value(cell, "difference") or 0) < 0]
        if worse:
            more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
            yield Said(
                "look",
                f"{human(name)}: worse on {', '.join(worse[:5])}{more}, with Holm's correction over {len(tested)} slices.",
            )


def slices(arms: Mapping[str, Part], primary: str, most: int = MOST) -> list[tuple[str, list[Any], int]]:
    """Per tag: (tag, rows of (value of the tag, n, {arm: metric}), how many rows were left out)."""
    tags = dict.fromkeys(tag for arm in arms.values() for tag in part(arm, "slices"))
    found = []
    for tag in tags:
        groups = dict.fromkeys(g for arm in arms.values() for g in part(part(arm, "slices"), tag))
        rows = []
        for group in groups:
            cells = {a: part(part(part(arm, "slices"), tag), group) for a, arm in arms.items()}
            n = next((cell["n"] for cell in cells.values() if cell.get("n") is not None), None)
            rows.append((group, n, {a: part(cell, primary) for a, cell in cells.items()}))
        found.append((tag, rows[:most], len(rows[most:])))
    return found
