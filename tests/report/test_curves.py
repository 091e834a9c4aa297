"""Charts along two axes carry their numbers as text, tell series apart without colour, and are inert."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from llm_distill.report.charts import COLOURS
from llm_distill.report.curves import Series, lines
from llm_distill.report.plots import drawn, tradeoffs
from tests.report.example_report import full

SERIES = [
    Series("Student <script>", [(0.03, 0.873)], [(0.83, 0.91)], strong=True, joined=False),
    Series("$\\frac{a}{b}$", [(4.1, 0.887)], [None], joined=False),
    Series("nothing", []),
]


@pytest.mark.parametrize(
    "how", [{}, {"log": True}, {"square": True}, {"percent": True, "ticks": ["@9", "b", "c", "d", "e"]}]
)
def test_lines(how: dict[str, bool]) -> None:
    svg = lines(SERIES, name="a", title="Cost & quality", told="Student: 87.3 %", across="seconds", **how)  # type: ignore[arg-type]
    root = ET.fromstring(svg)
    texts = [e.text for e in root.iter("text")]
    assert "Student <script>" in texts
    assert "$\\frac{a}{b}$" in texts
    assert "nothing" not in texts, "what has no point is not in the legend"
    assert (root.findtext("title"), root.findtext("desc")) == ("Cost & quality", "Student: 87.3 %")
    assert "<script" not in svg
    assert not any(stand_in in svg for stand_in in COLOURS)
    assert lines(SERIES, name="a", title="Cost & quality", told="Student: 87.3 %", across="seconds", **how) == svg  # type: ignore[arg-type]
    if "ticks" in how:
        assert {"@9", "c", "e"} <= set(texts)


def test_long_curves_are_thinned_and_one_point_is_enough() -> None:
    many = [Series("a", [(float(i), 1 / (i + 1)) for i in range(50_000)])]
    assert len(lines(many, name="a", title="t", told="t")) < 40_000
    ET.fromstring(lines([Series("a", [(1.0, 0.0)])], name="a", title="t", told="t"))


def test_a_report_draws_what_it_has_numbers_for() -> None:
    report = full() | {"speed": None}
    for arm, usd in zip(report["arms"], (0.0, 0.0, 0.0, 0.4), strict=True):
        report["cost"]["stages"][f"evaluate {arm}"] = {"answered": 300, "cost_usd": usd}
    charts = dict(drawn(report, report["arms"], "accuracy"))
    assert list(charts) == ["loss", "calibration", "taught", "price", "pace"]
    assert "rows set aside: from" in charts["loss"]
    assert "Teacher: 88.7\u00a0% at $1.33" in charts["price"], "what costs nothing is drawn at nought"
    assert "Student: 87.3\u00a0% at 28\u00a0ms" in charts["pace"]
    assert "Student: 71\u00a0% sure and 69\u00a0% right" in charts["calibration"]
    report["speed"] = {"arms": {"student": {"usd_per_1000": 0.07, "p50_s": 0.011}}}
    (student,) = [row for row in tradeoffs(report, report["arms"], "accuracy") if row["arm"] == "student"]
    assert (student["usd"], student["seconds"]) == (0.07, 0.011), "what was measured apart goes before"
    assert dict(drawn({"name": "n"}, {}, "accuracy")) == {}
    curve = [{"step": step, "loss": 2 / step} for step in range(1, 400)]
    report["students"] = {
        "student_of_<b>tone</b>": {"named": "tone", "run": "tone/2026", "identity": "9", "loss": curve},
        "previous": {"named": "shipped", "run": None, "identity": "9"},
    }
    for row in report["sweep"]["trials"]:
        row["loss"] = curve[: 10 * (3 - row["trial"])]
    report["sweep"]["trials"].append(report["sweep"]["trials"][1] | {"trial": 3, "same_as": 1})
    charts = dict(drawn(report, report["arms"], "accuracy"))
    losses, trials = ET.fromstring(charts["losses"]), ET.fromstring(charts["trials"])
    assert [e.text for e in losses.iter("text")][-2:] == ["Student", "Student of <b>tone</b>"]
    assert losses.findtext("title") == "Training loss of several students"
    told = losses.findtext("desc") or ""
    assert told.endswith("Student of <b>tone</b>: from 2.000 at step 1 to 0.005 at step 399.")
    assert [e.text for e in trials.iter("text")][-3:] == ["own settings", "trial 1", "trial 2"]
    marked = [e.attrib["href"] for e in losses.iter("use") if "-m" in e.attrib["href"]]
    assert len(set(marked)) > 1, "marks tell them apart without colour, with as many steps too"
    report["students"] = {"previous": report["students"]["previous"]}
    assert "losses" not in dict(drawn(report, report["arms"], "accuracy")), "one curve is that of the training"
    report["cost"] = None
    assert "price" not in dict(drawn(report | {"speed": None}, report["arms"], "accuracy"))
