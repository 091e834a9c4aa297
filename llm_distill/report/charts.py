"""The report's charts: numbers -> inline SVG as a string.

matplotlib draws, then its SVG is made fit to live inside an HTML page: colours become the page's CSS variables, so that
light and dark need one drawing; ids get the chart's name; metadata and namespaces go. Same numbers, same bytes.
No text from a recipe or a model reaches matplotlib. It lays out marks such as `@3`, which are replaced in the parsed
tree afterwards: no mathtext to trigger, no missing glyph to warn about, and the serialiser escapes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

WIDTH = 380.0  # px: at this width a phone shows the 12 px text at 10 px and a desktop column at 13 px
ROW = 38.0  # px for one row of a forest plot
POINTS = 400  # of a loss curve: one to a pixel
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
INK, MUTED, LINE, ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"  # stand-ins, replaced by the page's variables
COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)"}


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot. `shown` is the value as the reader sees it; `strong` draws it in the accent colour."""

    label: str
    value: float
    low: float | None
    high: float | None
    shown: str
    strong: bool = False


def forest(rows: Sequence[Estimate], *, name: str, title: str, signed: bool = False) -> str:
    """Values with their intervals, a row each, top to bottom. Shares of one; `signed` marks zero and counts points."""
    low, high = _range(rows, signed)
    height = ROW * len(rows) + 34
    figure, axes, style = canvas(height, left=126, right=66, top=4, bottom=30)
    with style:
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [f"@{2 * i}" for i in range(len(rows))])
        axes.xaxis.set_major_formatter(
            lambda x, _: f"{round(100 * x):+d}".replace("+0", "0") if signed else _percent(x)
        )
        axes.xaxis.set_major_locator(locator())
        axes.grid(axis="x", color=LINE, linewidth=1)
        if signed:
            axes.axvline(0, color=MUTED, linewidth=1)
        for i, row in enumerate(rows):
            colour = ACCENT if row.strong else MUTED
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [i, i], color=colour, linewidth=4, solid_capstyle="round", alpha=0.5)
            axes.plot([row.value], [i], "o", color=colour, markersize=7, clip_on=False)
            axes.text(
                1.03, i, f"@{2 * i + 1}", transform=axes.get_yaxis_transform(), va="center", color=INK, weight="bold"
            )
        texts = [text for row in rows for text in (row.label, row.shown)]
        told = "; ".join(f"{row.label}: {row.shown}{_told(row, signed)}" for row in rows)
        return inline(figure, name, title, told, texts)


def _range(rows: Sequence[Estimate], signed: bool) -> tuple[float, float]:
    """Axis limits on round tenths. Differences include zero; shares reach down to zero only when a value is low."""
    ends = [x for row in rows for x in (row.value, row.low, row.high) if x is not None]
    low, high = min(ends), max(ends)
    if signed:
        low, high = min(low, 0.0), max(high, 0.0)
        pad = max(high - low, 0.02) * 0.08
        return low - pad, high + pad
    low = 0.0 if low < 0.5 else math.floor(low * 10 - 0.2) / 10
    return low, max(1.0, high)


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def _told(row: Estimate, signed: bool) -> str:
    if row.low is None or row.high is None:
        return ""
    return f" (95 % interval {100 * row.low:{'+' if signed else ''}.1f} to {100 * row.high:{'+' if signed else ''}.1f})"


def locator(integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=integer, steps=[1, 2, 2.5, 5, 10])


def canvas(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any, Any]:
    """A figure with one pair of axes placed in px, and the style to draw and save it under."""
    from matplotlib import style  # 0.3 s that `--help` need not pay
    from matplotlib.figure import Figure

    ours = {
        "svg.fonttype": "none",
        "svg.hashsalt": "llm-distill",
        "font.size": 12,
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
    }
    looks = style.context(["default", ours], after_reset=True)  # a user's matplotlibrc must not change the bytes
    with style.context(["default", ours], after_reset=True):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
        axes = figure.add_axes(box)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)
        axes.tick_params(length=0, pad=7, labelcolor=INK)
        axes.tick_params(axis="x", labelcolor=MUTED, labelsize=11)
    return figure, axes, looks


def inline(figure: Any, name: str, title: str, told: str, texts: Sequence[str]) -> str:
    """The figure as an `<svg>` for the inside of an HTML page. `texts[i]` stands where matplotlib wrote `@i`."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    # What is parsed here was written by matplotlib, from numbers and marks alone.
    root = ET.fromstring(drawn.getvalue())  # noqa: S314
    used = {link.removeprefix("#") for e in root.iter() if (link := e.get(LINK))}
    used |= {clip[5:-1] for e in root.iter() if (clip := e.get("clip-path"))}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (SVG + "metadata", SVG + "style"):
                parent.remove(child)
    for e in root.iter():
        e.tag = e.tag.removeprefix(SVG)
        if (own := e.attrib.pop("id", None)) in used:
            e.set("id", f"{name}-{own}")
        if link := e.attrib.pop(LINK, None):
            e.set("href", f"#{name}-{link[1:]}")
        if clip := e.get("clip-path"):
            e.set("clip-path", f"url(#{name}-{clip[5:-1]})")
        if style := e.get("style"):
            kept = [s for s in style.split("; ") if not s.startswith("font-family")]
            e.set("style", "; ".join(kept))
            for stand_in, variable in COLOURS.items():
                e.set("style", e.attrib["style"].replace(stand_in, variable))
        if e.tag == "text" and (e.text or "").startswith("@"):
            e.text = texts[int((e.text or "")[1:])]
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for tag, text in (("desc", told), ("title", title)):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")
