"""The report as one HTML page: `render(report.json as a dict) -> str`. Pure; same dict, same bytes.

Layout lives in page/, a template for each section that `contents` lists; here is what needs thought: which numbers lead, and
what they allow one to say. Everything printed passes `words.printed` and then Jinja's escaping; any part of the report may be
missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from jinja2 import ChainableUndefined, Environment, PackageLoader, Template
from markupsafe import Markup

from llm_distill.report import charts, contents, gate_section, plots, sections, words
from llm_distill.report.arms import BASES, asked_first, measured, slices, unmeasured, weakest_slice, worse_slices
from llm_distill.report.rows import block
from llm_distill.report.sections import MOST
from llm_distill.report.words import Part, Said, human, interval, measure, part, percent, points, short, value

PRIMARY = ("accuracy", "token_f1", "exact_match", "agreement_with_teacher")  # the first that was measured leads
CERTAINTY = ("brier", "ece", "auroc", "top1_agreement", "kl_from_teacher")  # from label probabilities
WIDEST = 16  # labels of a confusion matrix; beyond that its commonest confusions are listed
SPENT_ON = ("asked", "answered", "reused", "prompt_tokens", "completion_tokens")


class Tile(NamedTuple):
    """A big number, what it is, and what stands beneath it."""

    shown: str
    label: str
    note: str


def render(report: Part, rows: Part | None = None) -> str:
    """The whole page. `report` is report.json's object; only `name` and `headline` are required. `rows`: as `rows.browsed`."""
    arms, primary, pairs = results(report)
    view: dict[str, Any] = dict(
        report=report,
        arms=arms,
        primary=primary,
        metrics=[m for m in measured(arms) if m not in CERTAINTY],
        certainty=[m for m in CERTAINTY if m in measured(arms)],
        curves=[(a, arm["calibration"]) for a, arm in arms.items() if arm.get("calibration")],
        undefined=unmeasured(arms),
        tiles=tiles(report, arms, primary, pairs)[:4],
        findings=list(findings(report, arms, primary, pairs)),
        pairs=[(name, pair, verdict(name, pair, arms)) for name, pair in pairs.items()],
        slices=slices(arms, primary),
        slice_rival=(rival := next((name for name, pair in pairs.items() if part(pair, "slices")), "")),
        slice_tests=part(pairs.get(rival, {}), "slices"),
        confusions=[(a, confusion(part(arm, "confusion"))) for a, arm in arms.items() if part(arm, "confusion")],
        steps=steps(part(report, "funnel")),
        reasons=reasons(part(report, "funnel")),
        stages=stages(report),
        spent_on=[k for k in SPENT_ON if any(spent.get(k) is not None for _, spent, _ in stages(report))],
        tradeoff=plots.tradeoffs(report, arms, primary),
        charts=drawn(report, arms, primary, pairs),
        most=MOST,
        gate=gate_section.lines(report),
        rows=block(rows or {}),
        **sections.views(report),
    )
    view["sections"], view["missing"] = contents.listed(view)
    return template("page.html.j2").render(view)


def results(report: Part) -> tuple[dict[str, Part], str, dict[str, Part]]:
    """What both the page and report.md lead with: the arms in order, the metric that counts, the comparisons."""
    named = part(report, "arms")
    others = [a for a in named if a not in words.ARMS]
    arms = {a: part(named, a) for a in [*list(words.ARMS)[:-1], *others, *list(words.ARMS)[-1:]] if part(named, a)}
    wanted = (str(report.get("metric") or ""), *PRIMARY)
    primary = next((m for m in wanted if any(value(part(a, m)) is not None for a in arms.values())), PRIMARY[0])
    pairs = {p: part(part(report, "paired"), p) for p in part(report, "paired")}
    pairs = {p: pair for p, pair in pairs.items() if value(pair, "difference") is not None}
    return arms, primary, {p: pairs[p] for p in sorted(pairs, key=asked_first)}


@cache
def template(name: str) -> Template:
    """One of page/, which may escape and print as all of them do."""
    environment = Environment(
        loader=PackageLoader("llm_distill", "report/page"),
        autoescape=True,
        undefined=ChainableUndefined,
        finalize=words.printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    said = (
        words.human,
        words.short,
        words.percent,
        words.decimal,
        words.points,
        words.measure,
        words.interval,
        words.usd,
    )
    environment.filters |= {f.__name__: f for f in (*said, words.duration, words.count, words.marked, words.flat)}
    return environment.get_template(name)


def tiles(report: Part, arms: Mapping[str, Part], primary: str, pairs: Mapping[str, Part]) -> list[Tile]:
    """The big numbers, most telling first; a run without a student leads with what it made and cost."""
    found, metric = [], human(primary).lower()
    student, teacher = part(arms.get("student", {}), primary), part(arms.get("teacher", {}), primary)
    if value(student) is not None:
        beside = f"teacher {percent(value(teacher))}" if teacher else ""
        found.append((measure(value(student), primary), f"student's {metric}", student, primary, beside))
    if (kept := value(part(report, "kept_share"))) is not None:
        found.append((percent(kept), f"of the teacher's {metric} kept", part(report, "kept_share"), "", ""))
    for rival in BASES:
        if (pair := pairs.get(f"student_vs_{rival}")) and not mute(f"student_vs_{rival}", arms):
            beside = f"same model, {human(rival).partition(', ')[2] or human(rival)}, before training"
            found.append((points(pair["difference"]), "points gained", pair, "difference", beside))
            break
    if (gap := value(part(report, "gap_closed"))) is not None:
        origin = part(report, "gap_closed").get("from")
        beside = f"from {human(origin).lower()}" if origin else ""
        found.append((percent(gap), "of the gap to the teacher closed", part(report, "gap_closed"), "", beside))
    shown = [Tile(big, label, " · ".join(filter(None, (interval(of, m), note)))) for big, label, of, m, note in found]
    funnel = part(report, "funnel")
    if value(funnel, "kept") is not None:
        shown.append(Tile(words.count(funnel["kept"]), "rows kept", f"of {words.count(funnel.get('asked'))} asked for"))
    if part(report, "cost"):
        shown.append(Tile(words.usd(part(report, "cost").get("total_usd")), "paid for answers", ""))
    if seconds := [s for stage in part(report, "seconds") if (s := value(part(report, "seconds"), stage)) is not None]:
        shown.append(Tile(words.duration(sum(seconds)), "for all stages", ""))
    return shown


def mute(pair: str, arms: Mapping[str, Part]) -> str | None:
    """Which side of a comparison failed on every row, if one did: then the difference says nothing of what it can do."""
    of = {side: arms.get(side, {}) for side in pair.split("_vs_")}
    return next(
        (side for side, arm in of.items() if arm.get("n") and part(arm, "status").get("failed") == arm["n"]), None
    )


def verdict(name: str, pair: Part, arms: Mapping[str, Part]) -> Said:
    """What a paired comparison allows one to say. Calls nothing equal: not seen is not absent."""
    if failed := mute(name, arms):
        return Said("look", f"{human(failed)} failed on every row, so nothing is known of what it can do.")
    left = name.partition("_vs_")[0]
    who = f"The {human(left).lower()}" if left in words.ARMS else short(left)
    low, high, p = value(pair, "low"), value(pair, "high"), value(pair, "p")
    if low is None or high is None:
        return Said("look", "There is no interval, so nothing can be said.")
    if p is not None and (low > 0 or high < 0) != (p < 0.05):
        return Said("same", "Borderline: the interval and the exact test disagree.")
    if low > 0:
        return Said("good", f"{who} is better.")
    if high < 0:
        return Said("look", f"{who} is worse.")
    seen = value(pair, "smallest_visible")
    power = (
        f"; {words.count(pair.get('n'))} rows would mostly show one of {100 * seen:.1f} points or more" if seen else ""
    )
    if power and (needed := value(pair, "rows_needed")):
        power += f", and {words.count(needed)} the one seen"
    return Said("same", f"No difference can be seen, which does not prove that there is none{power}.")


def findings(report: Part, arms: Mapping[str, Part], primary: str, pairs: Mapping[str, Part]) -> Iterator[Said]:
    """What a reviewer should know before the student ships, a sentence each, from the numbers alone."""
    for name, pair in pairs.items():
        tone, text = verdict(name, pair, arms)
        rows = f", {words.count(pair['n'])} rows" if pair.get("n") else ""
        between = f" ({interval(pair, 'difference')}{rows})" if interval(pair, "difference") else ""
        yield Said(tone, f"{human(name)}: {points(pair['difference'])} points{between}. {text}")
    if reason := part(report, "gap_closed").get("reason"):
        yield Said("same", f"Share of the gap to the teacher: not stated, {short(reason, 300)}.")
    if missing := value(report, "without_gold"):
        rows = "1 held-out row has" if missing == 1 else f"{words.count(missing)} held-out rows have"
        agreed = any(value(part(arm, "agreement_with_teacher")) is not None for arm in arms.values())
        counts = "only agreement with the teacher counts there" if agreed else "no score counts them"
        yield Said("same", f"{rows} no gold answer: {counts}.")
    if not mute("student_vs_teacher", arms):
        yield from weakest_slice(arms, primary)
    yield from worse_slices({name: pair for name, pair in pairs.items() if not mute(name, arms)})
    if (unparsed := value(part(arms.get("student", {}), "unparsed_rate"))) is not None:
        labelled = part(report, "task").get("kind") != "generate"
        text = f"Every answer of the student {'names a label' if labelled else 'has text'}." if unparsed == 0 else ""
        lack = "name no label" if labelled else "have no text"
        text = text or f"{percent(unparsed)} of the student's answers {lack}. They count as wrong."
        yield Said("good" if unparsed == 0 else "look", text)
    for name, arm in arms.items():
        bad = {s: n for s, n in part(arm, "status").items() if s != "ok" and n}
        if bad:
            listed = ", ".join(f"{words.count(n)} {short(s)}" for s, n in bad.items())
            yield Said("look", f"{human(name)}: not every row has a whole answer ({listed}).")
    if len({arm.get("n") for arm in arms.values()}) > 1:
        sizes = ", ".join(f"{human(name)} {words.count(arm.get('n'))}" for name, arm in arms.items())
        yield Said("look", f"The arms were not measured on equally many rows: {sizes}.")
    yield from sections.findings(report)
    if arms and (terms := [t for t in report.get("terms") or [] if t]):
        named = dict.fromkeys(short(t.get("licence") or "a licence that is not stated") for t in terms)
        yield Said("look", f"The student comes under the terms of its models, set out below: {', '.join(named)}.")


def confusion(of: Part) -> dict[str, Any]:
    """Rows of (gold, [(count, share of the row, is right)]); with many labels the commonest confusions instead."""
    gold, predicted = list(of.get("rows") or []), list(of.get("columns") or [])
    counts = [[n or 0 for n in row] for row in of.get("counts") or []]
    if len(gold) > WIDEST or len(predicted) > WIDEST + 1:
        cells = [(gold[i], predicted[j], n) for i, j, n in of.get("cells") or []]
        cells = cells or [
            (g, p, n) for g, row in zip(gold, counts, strict=False) for p, n in zip(predicted, row, strict=False)
        ]
        wrong = [(n, g, p) for g, p, n in cells if g != p]
        return {"worst": sorted((w for w in wrong if w[0]), key=lambda w: (-w[0], str(w[1]), str(w[2])))[:MOST]}
    rows = []
    for label, row in zip(gold, counts, strict=False):
        total = sum(row) or 1
        cells = [(n, n / total, label == p) for p, n in zip(predicted, row, strict=False)]
        rows.append((label, cells))
    return {"columns": predicted, "rows": rows}


def steps(funnel: Part) -> list[dict[str, Any]]:
    """The funnel from asked to kept: name, rows left, rows dropped, why, share of the widest step."""
    found: list[dict[str, Any]] = []
    asked, status = value(funnel, "asked"), part(funnel, "status")
    if asked is not None:
        found.append({"name": "Asked for", "left": asked, "dropped": None, "why": ""})
    lost = {s: n for s, n in status.items() if s != "ok" and n}
    why = ", ".join(f"{words.count(n)} {short(s)}" for s, n in lost.items())
    filters, reviewed = funnel.get("filters") or [], value(funnel, "dropped_by_review") or 0
    if (
        found and filters and (value(filters[0], "rows_in") or 0) + reviewed == asked
    ):  # the filters saw the rows without a whole answer too
        found[0]["why"] = why
    elif status:
        found.append({"name": "Answered", "left": status.get("ok") or 0, "dropped": sum(lost.values()), "why": why})
    if reviewed and filters:
        found.append({"name": "Review", "left": filters[0].get("rows_in"), "dropped": reviewed, "why": "by people"})
    for step in filters:
        why = ", ".join(f"{k} {v}" for k, v in part(step, "bounds").items() if v is not None)
        found.append(
            {"name": step.get("name"), "left": step.get("rows_out"), "dropped": step.get("dropped"), "why": why}
        )
    if value(funnel, "kept") is not None:
        found.append({"name": "Kept", "left": funnel["kept"], "dropped": None, "why": ""})
    widest = max([step["left"] or 0 for step in found], default=0) or 1
    return [step | {"share": (step["left"] or 0) / widest} for step in found]


def reasons(funnel: Part) -> list[tuple[str, float]]:
    """(reason, rows), commonest first."""
    counts = {reason: value(part(funnel, "reasons"), reason) or 0.0 for reason in part(funnel, "reasons")}
    return sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))


def stages(report: Part) -> list[tuple[str, Part, float | None]]:
    """(stage, what was asked and paid, seconds), in the pipeline's order; `evaluate student` follows `evaluate`."""
    costs, seconds = part(part(report, "cost"), "stages"), part(report, "seconds")
    parts = [c for s in seconds for c in [s, *(c for c in costs if c.startswith(f"{s} "))]]
    return [(stage, part(costs, stage), value(seconds, stage)) for stage in dict.fromkeys([*parts, *costs])]


def drawn(report: Part, arms: Mapping[str, Part], primary: str, pairs: Mapping[str, Part]) -> dict[str, Markup]:
    """The charts there are numbers for, as markup: the serialiser of `charts` has escaped their text."""

    def row(label: str, of: Part, key: str, shown: str, strong: bool = True) -> charts.Estimate:
        label = words.visible(short(label, 19))
        return charts.Estimate(label, value(of, key) or 0.0, value(of, "low"), value(of, "high"), shown, strong)

    found = {}
    leading = {a: part(arm, primary) for a, arm in arms.items() if value(part(arm, primary)) is not None}
    if leading:
        rows = [row(human(a), m, "value", percent(m["value"]), a == "student") for a, m in leading.items()]
        found["arms"] = charts.forest(rows, name="arms-chart", title=words.visible(f"{human(primary)} of each arm"))
    if pairs:
        rows = [
            row(human(p.removeprefix("student_vs_")), pair, "difference", points(pair["difference"]))
            for p, pair in pairs.items()
        ]
        found["pairs"] = charts.forest(rows, name="pairs-chart", title="Paired differences in points", signed=True)
    found |= plots.drawn(report, arms, primary)
    for name, title, rows, signed in sections.forests(report):
        if rows:
            found[name] = charts.forest(rows, name=f"{name}-chart", title=title, signed=signed)
    return {name: Markup(svg) for name, svg in found.items()}  # noqa: S704  drawn by us, from numbers
