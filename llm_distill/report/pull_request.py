"""The report in brief, as Markdown for a pull request: `brief(report.json as a dict) -> report.md`.

Pure, like the page. Everything that others wrote is escaped: it reads as text on any forge, and links nowhere.
"""

from __future__ import annotations

from llm_distill.report import speed_section
from llm_distill.report.gate_section import lines
from llm_distill.report.html import findings, results
from llm_distill.report.judge_section import pair_lines
from llm_distill.report.markdown import plain, table
from llm_distill.report.words import Part, count, duration, human, interval, measure, part, points, value

#: Metrics of the table of arms, where they were measured, after the one that counts.
_SHOWN = ("accuracy", "macro_f1", "token_f1", "exact_match", "agreement_with_teacher", "unparsed_rate")
_MARKS = {"good": "✓", "same": "=", "look": "!"}


def brief(report: Part) -> str:
    """Headline, gate, arms with intervals, findings. `report` is report.json's object; only `name` and `headline` are
    required.
    """
    arms, primary, pairs = results(report)
    said = [f"## {plain(report.get('title') or report.get('name'), 80)}", f"**{plain(report.get('headline'), 600)}**"]
    if gate := lines(report):
        ships = part(report, "gate").get("ships") is True
        said.append(f"### Ship gate: {'the student ships' if ships else 'the student does not ship'}")
        rows = [(one.what, one.found, one.asked, "holds" if one.holds else "FAILS", one.note) for one in gate]
        said.append(table(["Condition", "Found", "Asked", "Verdict", "Details"], rows))
    if arms:
        metrics = [
            metric
            for metric in dict.fromkeys([primary, *_SHOWN])
            if any(value(part(arm, metric)) is not None for arm in arms.values())
        ]
        header = ["Arm", *map(human, metrics), "Time per answer, p50", "Rows"]
        said += [
            "### Arms on the held-out rows",
            table(header, [_arm(name, arm, metrics) for name, arm in arms.items()]),
        ]
    if pairs:
        rows = [
            (
                human(name),
                points(pair["difference"]),
                interval(pair, "difference"),
                _p(value(pair, "p")),
                count(pair.get("n")),
            )
            for name, pair in pairs.items()
        ]
        said.append(table(["Row by row, in points", "Difference", "95 % interval", "p", "Rows"], rows))
    if judged := pair_lines(report):
        header = ["By the judge", "Win rate", "At equal length", "Wins", "Ties", "Losses", "Changed with order"]
        said.append(table(header, judged))
    header, timed = speed_section.table_of(report)
    if timed:
        said += ["### Speed and price of an answer", table(header, timed)]
        said.append(table(["Claim", "Claimed", "Measured", "Verdict"], speed_section.claim_rows(report)))
    if found := list(findings(report, arms, primary, pairs)):
        texts = [(tone, text.replace("set out below", "set out in report.html")) for tone, text in found]
        said += ["### What it says", "\n".join(f"- {_MARKS[tone]} {plain(text, 600)}" for tone, text in texts)]
    said.append("Intervals are 95 %. The whole report is `report.html`, all numbers are `report.json`.")
    return "\n\n".join(said) + "\n"


def _arm(name: str, arm: Part, metrics: list[str]) -> list[str]:
    cells = []
    for metric in metrics:
        of = part(arm, metric)
        some = f"{count(of['n'])} rows" if of.get("n") and of["n"] != arm.get("n") else ""
        said = ", ".join(filter(None, (interval(of), some)))
        between = f" ({said})" if said else ""
        cells.append(f"{measure(value(of), metric)}{between}")
    return [human(name), *cells, duration(part(arm, "seconds_per_answer").get("p50")), count(arm.get("n"))]


def _p(found: float | None) -> str:
    return "—" if found is None else "under 0.001" if found < 0.001 else f"{found:.3f}"
