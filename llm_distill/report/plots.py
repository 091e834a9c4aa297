"""The page's charts along two axes, from report.json: training curves, calibration of the arms, cost and speed against quality.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_distill.report import words
from llm_distill.report.curves import Series, lines
from llm_distill.report.sweep_section import trials
from llm_distill.report.words import Part, human, part, parts, percent, short, value

DRAWN = 4  # arms of a chart of calibration
CURVES, MARKED = (
    6,
    25,
)  # trainings of one chart, and points of each: few enough for every curve to have marks of its own


def drawn(report: Part, arms: Mapping[str, Part], primary: str) -> Iterator[tuple[str, str]]:
    """Each chart there are numbers for: its name in the template, and its SVG."""
    training = part(report, "training")
    loss = [
        Series("training", _points(training, "loss"), strong=True),
        Series("rows set aside", _points(training, "validation_loss")),
    ]
    if loss[0].points:
        yield "loss", lines(loss, name="loss-chart", title="Training loss", told=_told(loss), across="step")
    others = part(report, "students")
    rivals = [Series(words.visible(human(arm)), _points(part(others, arm), "loss")) for arm in others]
    students = [Series(words.visible(human("student")), loss[0].points, strong=True), *rivals]
    for name, title, curves in (
        ("losses", "Training loss of several students", students),
        ("trials", "Training loss of trials", _trials(report)),
    ):
        there = [one for one in curves if one.points][:CURVES]
        if len(there) > 1:
            told = _told(there)
            yield name, lines(there, name=f"{name}-chart", title=title, told=told, across="step", most=MARKED)
    sure = [_calibration(arm, of) for arm, of in list(arms.items())[:DRAWN]]
    if any(one.points for one in sure):
        told = "; ".join(
            f"{one.label}: {', '.join(f'{percent(x, 0)} sure and {percent(y, 0)} right' for x, y in one.points)}"
            for one in sure
            if one.points
        )
        title = "How sure, and how often right"
        yield "calibration", lines(sure, name="calibration-chart", title=title, told=told, across="sure", square=True)
    taught = _taught(report)
    if taught:
        told = "; ".join(
            f"{one.label}: {', '.join(f'{percent(x, 0)} sure and {percent(y, 0)} right' for x, y in one.points)}"
            for one in taught
        )
        title = "The teacher: how sure, and how often right"
        yield "taught", lines(taught, name="taught-chart", title=title, told=told, across="sure", square=True)
    for name, title, across, key in (
        ("price", "Score against the cost of 1,000 answers", "$ for 1,000 answers", "usd"),
        ("pace", "Score against the time of an answer", "seconds an answer, p50", "seconds"),
    ):
        known = [row for row in tradeoffs(report, arms, primary) if row[key] is not None and row["score"] is not None]
        if len(known) > 1 and any(row[key] for row in known):
            points = [
                Series(
                    row["name"], [(row[key], row["score"])], [row["ends"]], strong=row["arm"] == "student", joined=False
                )
                for row in known
            ]
            shown = words.usd if key == "usd" else words.duration
            told = "; ".join(f"{row['name']}: {percent(row['score'])} at {shown(row[key])}" for row in known)
            ends = min(row[key] for row in known), max(row[key] for row in known)
            wide = 0 < 5 * ends[0] < ends[1]
            yield (
                name,
                lines(points, name=f"{name}-chart", title=title, told=told, across=across, percent=True, log=wide),
            )


def tradeoffs(report: Part, arms: Mapping[str, Part], primary: str) -> list[dict[str, Any]]:
    """Per arm its score, what a thousand answers cost and how long one takes: as the evaluation measured them apart, else from
    the answers to the held-out rows. A price that nobody stated is None.
    """
    found = []
    for arm, of in arms.items():
        apart = part(part(part(report, "speed"), "arms"), arm)
        spent = part(part(part(report, "cost"), "stages"), f"evaluate {arm}")
        answered, cost = value(spent, "answered"), value(spent, "cost_usd")
        usd = value(apart, "usd_per_1000")
        usd = usd if usd is not None else 1000 * cost / answered if cost is not None and answered else None
        seconds = value(apart, "p50_s")
        seconds = seconds if seconds is not None else value(part(of, "seconds_per_answer"), "p50")
        score = part(of, primary)
        low, high = value(score, "low"), value(score, "high")
        ends = None if low is None or high is None else (low, high)
        row = {"arm": arm, "name": words.visible(human(arm)), "score": value(score), "of": score, "ends": ends}
        found.append(row | {"usd": usd, "seconds": seconds})
    return [row for row in found if row["usd"] is not None or row["seconds"] is not None]


def _told(curves: Sequence[Series]) -> str:
    """Curves of a loss for those who do not see them."""
    ends = [(one.label, one.points[0], one.points[-1]) for one in curves if one.points]
    told = (
        f"{label}: from {first[1]:.3f} at step {first[0]:g} to {last[1]:.3f} at step {last[0]:g}"
        for label, first, last in ends
    )
    return f"{'; '.join(told)}."


def _trials(report: Part) -> list[Series]:
    """Trainings of a sweep, the recipe's own and then the best first; a trial with the student of another is not drawn twice."""
    rows = [row for row in trials(report) if row.get("same_as") is None]
    rows.sort(key=lambda row: row.get("trial") != 0)
    best = part(part(report, "sweep"), "best").get("trial")
    return [
        Series(
            "own settings" if row.get("trial") == 0 else words.visible(short(f"trial {row.get('trial')}", 19)),
            _points(row, "loss"),
            strong=row.get("trial") == best,
        )
        for row in rows
    ]


def _points(of: Part, key: str) -> list[tuple[float, float]]:
    known = [
        (s, v)
        for one in parts(of, key)
        if (s := value(one, "step")) is not None and (v := value(one, "loss")) is not None
    ]
    return [(step, loss) for step, loss in known if abs(loss) < 1e9]


def _calibration(arm: str, of: Part) -> Series:
    rows = parts(of, "calibration")
    known = [(value(one, "confidence"), value(one, "accuracy"), value(one, "low"), value(one, "high")) for one in rows]
    whole = [
        (x, y, (low, high) if low is not None and high is not None else None)
        for x, y, low, high in known
        if x is not None and y is not None
    ]
    return Series(
        words.visible(human(arm)),
        [(x, y) for x, y, _ in whole],
        [ends for _, _, ends in whole],
        strong=arm == "student",
    )


def _taught(report: Part) -> list[Series]:
    found = part(part(report, "training"), "calibration")
    series = []
    for label, key in (("as it is", "before"), ("calibrated", "after")):
        bins = part(found, key).get("bins")
        rows = (
            [one for one in bins if isinstance(one, list | tuple) and len(one) == 3] if isinstance(bins, list) else []
        )
        points = [(x, y) for _, x, y in rows if isinstance(x, int | float) and isinstance(y, int | float)]
        series.append(Series(words.visible(label), points, strong=key == "after"))
    return [one for one in series if one.points]
