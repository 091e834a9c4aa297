"""Charts are inline SVG, inert, the same every time, and carry their numbers as text."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import matplotlib
import pytest

from llm_distill.report.charts import COLOURS, Estimate, forest
from llm_distill.report.curves import Series, lines


def tree(svg: str) -> ET.Element:
    return ET.fromstring(svg)


ROWS = [
    Estimate("Student", 0.873, 0.83, 0.91, "87.3 %", strong=True),
    Estimate("$\\frac{a}{b}$ <script>", 0.2, None, None, "20.0 %"),
    Estimate("@0 日本語 😀", 1.0, 1.0, 1.0, "100.0 %"),
]


def test_forest() -> None:
    svg = forest(ROWS, name="a", title="Accuracy & more")
    root = tree(svg)
    texts = [e.text for e in root.iter("text")]
    for row in ROWS:
        assert row.label in texts
        assert row.shown in texts
    assert [e.text for e in root.iter("title")] == ["Accuracy & more"]
    assert "Student: 87.3 % (95 % interval 83.0 to 91.0); $\\frac{a}{b}$ <script>: 20.0 %" in str(root.findtext("desc"))
    assert "<script" not in svg
    assert "http" not in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert not any(stand_in in svg for stand_in in COLOURS)
    assert "#000" not in svg


def test_differences_show_zero_and_signs() -> None:
    rows = [Estimate("Teacher", 0.1, 0.05, 0.15, "+10.0"), Estimate("Base", -0.1, -0.2, 0.0, "-10.0")]
    texts = [e.text for e in tree(forest(rows, name="p", title="t", signed=True)).iter("text")]
    assert "0" in texts
    assert "-20" in texts


@pytest.mark.parametrize("value", [0.0, 0.5, 0.97, 1.0])
def test_single_and_extreme_values(value: float) -> None:
    estimate = [Estimate("x", value, value, value, "x")]
    tree(forest(estimate, name="x", title="x"))
    tree(forest(estimate, name="x", title="x", signed=True))


def test_same_bytes_whatever_the_users_style() -> None:
    loss = [Series("loss", [(1.0, 2.0), (2.0, 1.0)])]
    plain = forest(ROWS, name="a", title="t") + lines(loss, name="c", title="t", told="")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": None, "lines.linewidth": 9}):
        assert forest(ROWS, name="a", title="t") + lines(loss, name="c", title="t", told="") == plain
