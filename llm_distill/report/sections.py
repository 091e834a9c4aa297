"""The sections on how the data was made, from report.json: what leads in each, and what it allows one to say.

Like `html`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_distill.report import (
    bias_section,
    data_set_section,
    general_section,
    judge_section,
    lint_section,
    pass_at_section,
    probe_section,
    robustness_section,
    speed_section,
    sweep_section,
    teaching_section,
    words,
)
from llm_distill.report.charts import Estimate
from llm_distill.report.words import Part, Said, human, interval, part, parts, percent, points, short, value

MOST = 40  # rows of a table whose length the data decides
DRAWN = 10  # rows of a chart of them
TOP = 6  # values of a tag


def views(report: Part) -> dict[str, Any]:
    """What the template shows, by name; each empty where the report has nothing of it."""
    made = parts(part(report, "prompts"), "made")
    fairness = sorted(parts(report, "fairness"), key=_unfairest)
    flips = parts(report, "flips")
    ablation = part(report, "ablation")
    return {
        "made": made,
        "tags": [(m, tag, part(part(m, "tags"), tag)) for m in made for tag in part(m, "tags")],
        "fairness": fairness[:MOST],
        "fairness_left_out": len(fairness[MOST:]),
        "flips": flips[:MOST],
        "flips_left_out": len(flips[MOST:]),
        "ablation": ablation if parts(ablation, "arms") else {},
        "ablated": [(row, ablated(row)) for row in parts(ablation, "arms")],
        "review": part(report, "review"),
        "reviewed": parts(part(report, "review"), "filters"),
        "data_set": data_set_section.view(report),
        "probe": probe_section.view(report),
        "general": general_section.view(report),
        "pass_at": pass_at_section.view(report),
        "judge": judge_section.view(report),
        "lint": lint_section.view(report),
        "robustness": robustness_section.view(report),
        "robustness_of": robustness_section.measured(report),
        "bias": bias_section.view(report),
        "bias_left_out": bias_section.left_out(report),
        "speed": speed_section.view(report),
        "sweep": sweep_section.view(report),
        "calibration": teaching_section.calibration(report),
        "rungs": teaching_section.rungs(report),
        "top": top,
    }


def top(tag: Part, rows: object = None) -> str:
    """The commonest values of a tag with their shares; an identifier, which no two of the generator's rows share, has none."""
    shares = part(tag, "shares")
    if isinstance(rows, int | float) and TOP < rows * (value(tag, "rows") or 0) <= (value(tag, "values") or 0):
        return "each row another"
    known = [(name, share) for name in shares if (share := value(shares, name)) is not None]
    named = [f"{short(name, 30)} {percent(share, 0)}" for name, share in known[:TOP]]
    more = (value(tag, "values") or 0) - len(named)
    return ", ".join(named) + (f", {words.count(more)} more" if named and more > 0 else "")


def ablated(row: Part) -> Said:
    """What an arm of an ablation says of the filter that it lacks."""
    said = str(row.get("verdict") or "")
    if said == "took nothing":
        return Said("same", "It took no row: the student is that of the full run.")
    if said == "no measurable gain":
        return Said("look", "No measurable gain.")
    if said == "harmful":
        return Said("look", "Harmful: the student is better without it.")
    if said == "gain":
        return Said("good", "It helps: without it the student is worse.")
    return Said("same", "" if not said or not row.get("without") else "Not measured.")


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of the data, a sentence each."""
    if aside := value(part(report, "prompts"), "set_aside"):
        yield Said("same", f"{words.count(aside)} prompts nearly equalled held-out rows and were set aside unasked.")
    for name, why in part(report, "owed").items():
        lacking, reason = words.PARTS.get(name, human(name)), short(str(why).rstrip("."), 300)
        yield Said("look", f"{lacking[:1].upper()}{lacking[1:]} is owed: {reason}. Run again to measure it.")
    for one in parts(report, "overlap"):
        named = {"training": "rows learnt from", "few_shot": "few-shot examples", "teacher": "the teacher's examples"}
        seen = named.get(party := str(one.get("with"))) or f"rows that {human(party)} learnt from"
        if (rows := value(one, "rows")) is None:
            yield Said(
                "look",
                f"{human(party)}: nobody knows what it learnt from, as the recipe allows: what was measured of it may be memory.",
            )
            continue
        yield Said(
            "look",
            f"{words.count(rows)}{' or more' if one.get('more') else ''} held-out "
            f"{'row overlaps' if rows == 1 else 'rows overlap'} {seen}, which the recipe allows: "
            "what was measured on them may be memory.",
        )
    unfair = [one for one in parts(report, "fairness") if one.get("unfair")]
    if unfair:
        worst = min(unfair, key=_unfairest)
        where = f"{short(worst.get('by'))} = {short(worst.get('value'))}"
        yield Said(
            "look",
            f"Filters drop more of one part of the rows than of the others ({len(unfair)} found). Most of all, "
            f"{short(worst.get('filter'))} of those with {where}: "
            f"{points(value(part(worst, 'difference')))} points ({interval(part(worst, 'difference'), 'difference')}).",
        )
    for row in parts(report, "flips"):
        low, of = value(part(row, "rate"), "low"), short(row.get("attribute"))
        if row.get("variant") == "*" and low is not None and low > 0 and value(row, "flips"):
            shown = f"{percent(value(part(row, 'rate')))} ({interval(part(row, 'rate'))})"
            yield Said(
                "look", f"{human(row.get('who'))}: {short(row.get('of'))} changes with {of} alone in {shown} of groups."
            )
    for row in parts(part(report, "ablation"), "arms"):
        if row.get("verdict") in ("no measurable gain", "harmful"):
            name, change = short(row.get("arm")), part(row, "change")
            shown = f" ({points(value(change, 'difference'))} points, {interval(change, 'difference')})"
            yield Said(
                "look", f"Ablation, {name}: {ablated(row).text[:-1].lower()}{shown if interval(change) else ''}."
            )
    yield from pass_at_section.findings(report)
    yield from judge_section.findings(report)
    yield from robustness_section.findings(report)
    yield from bias_section.findings(report)
    yield from probe_section.findings(report)
    yield from general_section.findings(report)
    yield from lint_section.findings(report)
    yield from speed_section.findings(report)
    yield from sweep_section.findings(report)
    yield from teaching_section.findings(report)
    clean = part(part(part(report, "review"), "kept"), "clean")
    if value(clean) is not None:
        yield Said(
            "same", f"Reviewers would keep {percent(value(clean))} ({interval(clean)}) of the rows that filters keep."
        )


def _unfairest(one: Part) -> tuple[bool, float]:
    return not one.get("unfair"), -abs(value(part(one, "difference")) or 0.0)


def forests(report: Part) -> Iterator[tuple[str, str, list[Estimate], bool]]:
    """The charts there are numbers for: name, title, rows, whether zero is marked."""
    fairness = [one for one in sorted(parts(report, "fairness"), key=_unfairest) if _known(part(one, "difference"))]
    rows = [
        _estimate(f"{one.get('value')}, {one.get('filter')}", part(one, "difference"), points, bool(one.get("unfair")))
        for one in fairness[:DRAWN]
    ]
    yield "fairness", "Drop rate less that of all other rows, in points", rows, True
    groups = [row for row in parts(report, "flips") if row.get("variant") == "*" and _known(part(row, "rate"))]
    rows = [
        _estimate(f"{row.get('attribute')}: {str(row.get('who')).replace('_', ' ')}", part(row, "rate"), percent, True)
        for row in groups
    ]
    yield "flips", "Groups with different answers", rows[:DRAWN], False
    rows = [
        _estimate(str(row.get("arm")).removeprefix("without "), change, points, ablated(row).tone == "good")
        for row in parts(part(report, "ablation"), "arms")
        if _known(change := {**part(row, "change"), "value": part(row, "change").get("difference")})
        and row.get("verdict") != "took nothing"
    ]
    yield "ablation", "Student's change without a filter, in points", rows, True
    yield "robustness", "Share of the score kept under each perturbation", robustness_section.chart(report), False
    yield "general", "Student less its untrained self, in points", general_section.chart(report), True
    yield "sweep", "Trials against the recipe's own settings, in points", sweep_section.chart(report), True


def _known(of: Part) -> bool:
    return value(of) is not None


def _estimate(label: object, of: Part, shown: Any, strong: bool) -> Estimate:
    label = words.visible(short(label, 19))
    return Estimate(label, value(of) or 0.0, value(of, "low"), value(of, "high"), shown(value(of)), strong)
