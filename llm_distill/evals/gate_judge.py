"""What the ship gate makes of a judge's verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_distill.evals.headline import percent, points


def least_win_rate(judge: Mapping[str, Any]) -> tuple[float | None, str]:
    """The lower end of the win rate against the teacher and what it is about, from report.json's `judge`; no number where it
    cannot be judged. Of the plain win rate, rows without a verdict being lost, and of the one at equal length, the lower.
    """
    pair = (judge.get("pairwise") or {}).get("student_vs_teacher")
    if pair is None:
        return None, "no judge compared the student with its teacher; add `pairwise: [teacher]` to evaluate.judge"
    if judge["owed"]:
        return None, f"the judge owes {judge['owed']} verdicts; run again"
    level, plain = pair["length_controlled"], pair["win_rate"]
    if level["value"] is None:
        return None, f"the win rate at equal length is unknown: {level['reason']}"
    counts = f"{pair['wins']}, {pair['ties']} tied, {pair['losses']} lost"
    return (
        min(pair["low_if_lost"], level["low"]),
        f"wins {percent(plain['value'])} on {plain['n']} rows ({counts}), at equal length {percent(level['value'])} "
        f"({points(level['low'])} to {points(level['high'])} %)",
    )
