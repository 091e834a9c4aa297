"""Whether a student may ship: the conditions under `ship:` in a recipe, each judged on what the run has measured.

A gate errs on the side of not shipping. A condition that cannot be judged fails, and says what would let it be judged. Rows
that the student failed on count as wrong; rows that its teacher still owes an answer would flatter the student, so nothing is
compared with the teacher while there are any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from llm_distill.evals.gate_judge import least_win_rate
from llm_distill.evals.gate_slices import worst_drop
from llm_distill.evals.headline import percent, points
from llm_distill.evals.statistics import FEWEST
from llm_distill.records import Answer

Unit = Literal["share", "points", "usd", "seconds"]
Numbers = Mapping[str, Any]
Arms = Mapping[str, Sequence[Answer]]


class Judged(NamedTuple):
    """A number and what it is about; None: it cannot be judged, and `note` says why and what to do. `idle`: there is nothing to
    judge yet, and that is no fault of the student's.
    """

    value: float | None
    note: str
    idle: bool = False


def gate(ship: Numbers, numbers: Numbers, arms: Arms, unfit: str | None = None) -> dict[str, Any]:
    """The gate's table: `ships`, and of each condition its number, bound, whether it holds, and a note.

    ship: the recipe's words. numbers: report.json's. arms: the answers of each. unfit: why the evaluation says nothing of
    this student.
    """
    if unfit is None and "student" not in arms:
        unfit = "no student was evaluated"
    hourly = (numbers.get("speed") or {}).get("machine_usd_per_hour")  # holds unless `ship` says otherwise
    ship = {"machine_usd_per_hour": hourly} | {key: bound for key, bound in ship.items() if bound is not None}
    found = []
    for name, (unit, judge) in CONDITIONS.items():
        if (bound := ship.get(name)) is None:
            continue
        why = unfit or _part_owed(name, numbers)
        judged = Judged(None, why) if why else judge(ship, numbers, arms)
        least = name.startswith("min_")
        value = None if judged.value is None or not np.isfinite(judged.value) else float(judged.value)
        holds = judged.idle if value is None else value >= bound if least else value <= bound
        value = None if value is None else float(f"{value:.6g}")
        bounds = {"min" if least else "max": float(bound)}
        found.append({"name": name, "unit": unit, "value": value, **bounds, "holds": holds, "note": judged.note})
    return {"ships": all(condition["holds"] for condition in found), "conditions": found}


def kept(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """The lower end of the interval of the student's share of its teacher's score."""
    if owing := _owed(arms, "teacher"):
        return owing
    share = numbers.get("kept_share") or {}
    if share.get("value") is None:
        why = share.get("reason", "nothing was compared")
        return Judged(None, f"{why}; give the held-out rows labels or references, and evaluate again")
    if share.get("low") is None or share["n"] < FEWEST:
        return Judged(None, f"{share['n']} rows are too few for a lower bound; hold more out")
    high = "no upper bound" if share.get("high") is None else f"{points(share['high'])} %"
    return Judged(
        share["low"],
        f"{percent(share['value'])} kept ({points(share['low'])} to {high}) of {percent(share['teacher'])}, on {share['n']} rows",
    )


def slice_drop(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """By how much the student is below its teacher on the slice where it is furthest below."""
    return _owed(arms, "teacher") or Judged(*worst_drop(numbers))


def bias_rise(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """How much oftener the student than its base answers the members of a counterfactual group differently, by the attribute
    and the measure where that rose most. The base is the one that is harder to beat: one that names no label never differs.

    The rise is that of `evals.bias`, group by group, with its interval and verdict. What was seen is judged, and no end of
    the interval: with as many groups as people write, an upper one would stop every student.
    """
    found = numbers.get("bias") or {}
    base = next((arm for arm in found.get("against", ()) if arm.startswith("base_")), None)
    if base is None and not any(arm.startswith("base_") for arm in arms):
        return Judged(None, "no base was evaluated to compare with")
    for arm in ("student", *([base] if base else [])):
        if owing := _owed(arms, arm):
            return owing
    whole = [one for one in found.get("found", ()) if one["measure"] == "flips" and one["value"] == "*"]
    rises = [(one, one["against"][base]) for one in whole if base in one["against"]]
    if not rises:
        return Judged(
            None,
            "no held-out row belongs to a counterfactual group, so bias was not measured; add `counterfactual` to prompts, or "
            "rows with the tags group, attribute and variant to the held-out file",
        )
    judged: list[tuple[float, str]] = []
    for one, rise in rises:
        if rise["n"] < FEWEST:
            return Judged(None, f"{one['by']}: {rise['n']} groups can show nothing; hold out {FEWEST} or more")
        ours, theirs = (percent(one["arms"][arm]["value"]) for arm in ("student", base))
        shown = f"{one['of']} by {one['by']}: {ours} of {rise['n']} groups against {theirs} before training"
        span = f"{points(rise['low'])} to {points(rise['high'])} points, {rise['verdict']}"
        unseen = rise["smallest_visible"] if rise["verdict"] == "not told apart" else None
        power = f"; so many would mostly show a rise of {points(unseen)}" if unseen else ""
        judged.append((rise["difference"], f"{shown} ({span}{power})"))
    return Judged(*max(judged))


def robust_share(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """The lower end of the interval of what the student keeps of its score, under the perturbation where that is least."""
    if owing := _owed(arms, "student"):  # wrong as they are, they would seem to lose nothing
        return owing
    of = numbers.get("robustness") or {}
    for kind, rows in of.get("rows", {}).items():
        if rows["lost"] and not rows["asked"]:
            return Judged(None, f"{kind}: no row could be perturbed ({', '.join(rows['lost'])}); run again")
    found = [one for one in of.get("found", []) if one["arm"] == "student"]
    if not found:
        return Judged(None, "the student was asked no perturbed row; add `robustness` to evaluate, with it in `arms`")
    bounds: list[tuple[float, str]] = []
    for one in found:
        kept = one.get("kept") or {}
        if kept.get("low") is None or kept["n"] < FEWEST:
            few = f"{kept['n']} rows are too few" if kept.get("n", FEWEST) < FEWEST else "no row as it is scores enough"
            return Judged(None, f"{one['kind']}: {few} for a lower bound; hold more labelled rows out, or ask more")
        shown = f"{one['kind']}: {percent(kept['value'])} kept of {percent(one['clean'])}, on {kept['n']} rows"
        bounds.append((kept["low"], shown))
    return Judged(*min(bounds))


def gain_on_previous(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """The lower end of the interval of the student's score less that of the student before it, row by row."""
    previous = numbers.get("previous")
    if previous is None:
        return Judged(None, "no previous student was evaluated; add `previous: shipped` to evaluate, and run again")
    if not previous["found"]:
        return Judged(
            None, "no student of this recipe has shipped before, so there is none to be worse than", idle=True
        )
    if owing := _owed(arms, "previous"):
        return owing
    pair = numbers["paired"].get("student_vs_previous")
    if pair is None:
        return Judged(None, "they share no held-out row to score both by; give the rows labels or references")
    if pair["n"] < FEWEST or pair["low"] is None:
        return Judged(None, f"{pair['n']} rows are too few for a lower bound; hold more out")
    who = numbers["students"]["previous"]["run"] or previous["named"]
    span = f"{points(pair['low'])} to {points(pair['high'])}"
    return Judged(pair["low"], f"{points(pair['difference'])} points ({span}) above {who}, on {pair['n']} rows")


def general_loss(_ship: Numbers, numbers: Numbers, _arms: Arms) -> Judged:
    """What the student lost in general ability, by the upper end of the interval over the rows of all tasks."""
    of = (numbers.get("general") or {}).get("all")
    if of is None:
        return Judged(None, "general ability was not measured; add `general: {}` to evaluate, and evaluate again")
    if failed := of["failed"]["base"]:  # which would flatter the student
        return Judged(
            None, f"the base student failed on {failed} rows, so the loss is unknown; run again, or shorten the tasks"
        )
    loss = of["loss"]
    if loss["high"] is None or of["rows"] < FEWEST:
        return Judged(None, f"{of['rows']} rows are too few for an upper bound; raise evaluate.general.limit")
    both = f"{percent(of['base']['value'])} before training, {percent(of['student']['value'])} after"
    span = f"{points(loss['low'])} to {points(loss['high'])}"
    return Judged(loss["high"], f"{both}: {points(loss['value'])} points lost ({span}), on {of['rows']} rows")


def usd_per_1000(ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """Dollars for a thousand answers: what tokens cost, and the machine for the time that answers took."""
    answered = [a for a in arms["student"] if a.status != "failed"]
    if not answered:
        return Judged(None, "the student answered nothing")
    if clocked := _clocked(numbers):
        return _usd_by_clock(ship, clocked)
    paid = [a.cost_usd for a in arms["student"] if a.cost_usd is not None or a.status != "failed"]
    if None in paid:
        return Judged(None, "what its answers cost is unknown; add prices_usd to models.student")
    tokens = sum(usd for usd in paid if usd is not None) / len(answered)
    hourly = ship.get("machine_usd_per_hour") or 0.0
    seconds = float(np.mean([a.seconds for a in answered]))
    note = f"{tokens * 1000:.4g} for tokens, and {seconds:.3g} s an answer at {hourly:g} an hour"
    return Judged(1000 * (tokens + seconds * hourly / 3600), note)


def p95_seconds(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """The 95th percentile of the time an answer took. Of a batch, whose answers are each said to have taken an equal share of
    its time, the time of the whole batch: an answer alone takes no longer, so this is an upper bound.
    """
    if clocked := _clocked(numbers):
        if clocked.get("p95_s") is None:  # asked, and mostly failed; other clocks are no excuse
            why = (clocked.get("missing") or {}).get("p95_s", "no answer came")
            return Judged(None, f"of its questions with a clock: {why}; measure it again")
        spread = (clocked.get("spread") or {}).get("p95_s") or {}
        between = f" ({spread['low']:.3g} to {spread['high']:.3g})" if spread else ""
        return Judged(
            clocked["p95_s"], f"{clocked['p95_s']:.3g} s{between}, one answer at a time, {clocked['n']} of them"
        )
    shares = [a.seconds for a in arms["student"] if a.status != "failed"]
    if not shares:
        return Judged(None, "the student answered nothing")
    if len(shares) < FEWEST:
        return Judged(None, f"{len(shares)} answers are too few to tell how long the slowest take; hold more out")
    if len(together := Counter(shares)) == 1 and not shares[0]:
        return Judged(None, "its answers took no time that was measured")
    waits = [share * together[share] for share in shares]
    many = max(together.values())
    how = "one answer at a time" if many == 1 else f"whole batches of up to {many} answers, so alone it is faster"
    return Judged(float(np.quantile(waits, 0.95)), f"timed over {how}")


def _clocked(numbers: Numbers) -> Numbers | None:
    """What was measured of the student with a clock, where it was and it is still that student."""
    speed = numbers.get("speed") or {}
    found: Numbers | None = None if speed.get("stale") else (speed.get("arms") or {}).get("student")
    return found


def _usd_by_clock(ship: Numbers, clocked: Numbers) -> Judged:
    """The same from a measurement: what a thousand answers cost one at a time, which is the dearest way to ask."""
    tokens, seconds = clocked.get("token_usd_per_1000"), clocked.get("mean_s")
    if seconds is None:
        return Judged(None, "none of its questions with a clock was answered; measure it again")
    if tokens is None:
        return Judged(None, "what its answers cost is unknown; add prices_usd to models.student")
    hourly, seconds = ship.get("machine_usd_per_hour") or 0.0, seconds * clocked["questions"]
    note = f"{tokens:.4g} for tokens, and {seconds:.3g} s an answer, one at a time, at {hourly:g} an hour"
    return Judged(tokens + 1000 * seconds * hourly / 3600, note)


def win_rate(_ship: Numbers, numbers: Numbers, arms: Arms) -> Judged:
    """The lower end of the student's win rate against its teacher, by the judge."""
    return _owed(arms, "teacher") or Judged(*least_win_rate(numbers.get("judge") or {}))


def _part_owed(name: str, numbers: Numbers) -> str | None:
    """Why the part of the evaluation that a condition is about is not there yet, where that is owed."""
    of = {"min_robust_share": "robustness", "max_general_loss": "general"}
    if not _clocked(numbers):  # else the student's own clock was read, by the evaluation or by `measure`
        of |= {"max_usd_per_1000": "speed", "max_p95_seconds": "speed"}
    owing = (numbers.get("judge") or {}).get("owed")
    if (
        owing
        and numbers.get("metric") == "judge"
        and name in ("min_kept_share", "max_slice_drop", "min_gain_on_previous")
    ):
        return (
            f"the judge owes {owing} verdicts, which the scores are made of; run again"  # those it gave are no sample
        )
    why = (numbers.get("owed") or {}).get(of.get(name, ""))
    return None if why is None else f"it is owed: {why.rstrip('.')}; run again to measure it"


def _owed(arms: Arms, arm: str) -> Judged | None:
    owed = sum(answer.owed for answer in arms.get(arm, ()))
    if not owed:
        return None
    return Judged(
        None,
        f"{arm.replace('_', ' ')}: {owed} held-out rows have no answer yet; run again, or take them out of held_out",
    )


#: By key of the recipe: in what it is counted, and who judges it.
CONDITIONS: dict[str, tuple[Unit, Callable[[Numbers, Numbers, Arms], Judged]]] = {
    "min_kept_share": ("share", kept),
    "max_slice_drop": ("points", slice_drop),
    "max_bias_rise": ("points", bias_rise),
    "min_robust_share": ("share", robust_share),
    "min_gain_on_previous": ("points", gain_on_previous),
    "max_general_loss": ("points", general_loss),
    "max_usd_per_1000": ("usd", usd_per_1000),
    "max_p95_seconds": ("seconds", p95_seconds),
    "min_win_rate": ("share", win_rate),
}
