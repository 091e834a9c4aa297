"""A recipe's history as one HTML page: `render(trend.history(...)) -> str`. Pure; no network, no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from llm_distill.report.curves import Series, lines
from llm_distill.report.html import template
from llm_distill.report.words import Part, count, percent, visible

FILTERS = 5  # whose drop rates are drawn: those that drop most
RUNS = 60  # that are drawn and listed, the latest
MOVED = 5  # of them whose warnings lead the page; the table has all


def render(found: Mapping[str, Any], table: Sequence[Sequence[str]], changes: Sequence[str]) -> str:
    """The page. found: as `trend.history`; table: as `trend.table`."""
    runs = list(found["runs"])[-RUNS:]
    moved = [(run["run"], run["probe"]["said"]) for run in runs if run["probe"] and run["probe"]["said"]]
    charts = [(title, Markup(svg)) for title, svg in _charts(runs)]  # noqa: S704  drawn by us, from numbers
    return template("trend.html.j2").render(
        name=found["name"],
        runs=len(found["runs"]),
        header=table[0],
        rows=table[1:][-RUNS:],
        left_out=max(0, len(found["runs"]) - RUNS),
        charts=charts,
        changes=changes,
        notes=found["notes"],
        moved=moved[-MOVED:],
        moved_before=max(0, len(moved) - MOVED),
    )


def _charts(runs: Sequence[Part]) -> Iterator[tuple[str, str]]:
    ticks = [visible(run["date"]) for run in runs]
    score = [_series("Student", runs, "score", strong=True), _series("Teacher", runs, "teacher")]
    metrics = {run["metric"] for run in runs if run["score"]}
    if score[0].points and len(metrics) == 1:
        yield "Score on the held-out rows", _drawn("score", "Score of the student", score, ticks, percent_=True)
    kept = Series("rows kept", _points(run["rows"]["kept"] for run in runs), strong=True)
    yield from _one("Rows kept", "kept", kept, ticks)
    names = {
        name: max(run["rows"]["dropped"].get(name, 0.0) for run in runs)
        for run in runs
        for name in run["rows"]["dropped"]
    }
    most = sorted(names, key=lambda name: (-names[name], name))[:FILTERS]
    drops = [Series(visible(name[:40]), _points(run["rows"]["dropped"].get(name) for run in runs)) for name in most]
    if any(one.points for one in drops):
        title = "Share of what a filter sees that it drops"
        yield title, _drawn("drops", title, drops, ticks, percent_=True)
    yield from _one(
        "Cost of a run in $", "cost", Series("cost", _points(r["cost_usd"] for r in runs), strong=True), ticks
    )
    agreement = _series(
        "agreement with its first look", [{"probe": {}} | dict(r["probe"] or {}) for r in runs], "agreement", True
    )
    if agreement.points:
        title = "The teacher on frozen rows"
        yield title, _drawn("probe", title, [agreement], ticks, percent_=True)


def _one(title: str, name: str, series: Series, ticks: Sequence[str]) -> Iterator[tuple[str, str]]:
    if series.points:
        yield title, _drawn(name, title, [series], ticks)


def _drawn(name: str, title: str, series: Sequence[Series], ticks: Sequence[str], percent_: bool = False) -> str:
    shown = percent if percent_ else count
    spelt = [(one.label, [f"{ticks[int(x)]} {shown(y)}" for x, y in one.points]) for one in series if one.points]
    told = "; ".join(f"{label}: {', '.join(points)}" for label, points in spelt)
    return lines(series, name=f"{name}-chart", title=title, told=told, ticks=ticks, percent=percent_)


def _series(label: str, runs: Sequence[Part], key: str, strong: bool = False) -> Series:
    known = [(i, run[key]) for i, run in enumerate(runs) if run.get(key)]
    ends = [None if of["low"] is None or of["high"] is None else (of["low"], of["high"]) for _, of in known]
    return Series(label, [(float(i), of["value"]) for i, of in known], ends, strong)


def _points(values: Any) -> list[tuple[float, float]]:
    return [(float(i), float(v)) for i, v in enumerate(values) if v is not None]
