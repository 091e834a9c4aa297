"""Charts of points along two axes: training curves, calibration, cost against quality, runs over time; inline SVG, too.

Series are told apart by the shape of their marks and by dashes as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_distill.report.charts import ACCENT, INK, LINE, MUTED, POINTS, canvas, inline, locator

_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_HEIGHT, _LEGEND = 210.0, 18.0  # px: of the chart, and of a line of its legend


@dataclass(frozen=True)
class Series:
    """Points (x, y), with the ends of their intervals where there are any; `strong` is drawn in the accent colour."""

    label: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float] | None] = field(default=())
    strong: bool = False
    joined: bool = True


def lines(
    series: Sequence[Series],
    *,
    name: str,
    title: str,
    told: str,
    across: str = "",
    ticks: Sequence[str] = (),
    percent: bool = False,
    log: bool = False,
    square: bool = False,
    most: int = POINTS,
) -> str:
    """Series in one chart. across: our own word under the axis; ticks: texts for x = 0, 1, and so on; percent: y are shares of
    one; log: of x factors count; square: both are shares, and a diagonal shows where they are equal. most: points of a series,
    neighbours averaged where there are more; with up to 40 each has a mark.
    """
    shown = [one for one in series if one.points]
    height = _HEIGHT + (40 if square else 0) + _LEGEND * len(shown)
    figure, axes, style = canvas(height, left=52, right=22, top=12, bottom=44 + _LEGEND * len(shown))
    with style:
        for i, one in enumerate(shown):
            _draw(axes, one, i, most)
        axes.set_axisbelow(True)
        axes.grid(axis="both" if square else "y", color=LINE, linewidth=1)
        axes.yaxis.set_major_locator(locator())
        if percent or square:
            axes.yaxis.set_major_formatter(_share)
        if square:
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, zorder=0)
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(_share)
        elif log:
            axes.set_xscale("log")
            _few_ticks(axes, [x for one in shown for x, _ in one.points])
        elif ticks:
            step = math.ceil(len(ticks) / 4)  # a date is a fifth as wide as the chart
            axes.set_xticks(range(0, len(ticks), step), [f"@{i}" for i in range(0, len(ticks), step)])
            axes.set_xlim(-0.4, len(ticks) - 0.6)
        else:
            axes.xaxis.set_major_locator(locator())
        if not square:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0) if low < 0.4 * high else low, high)
        axes.set_xlabel(across, color=MUTED)
        bottom = -(44 + 4) / (height - 56 - _LEGEND * len(shown))
        labels = [f"@{len(ticks) + i}" for i in range(len(shown))]
        handles = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(-0.02, bottom), frameon=False, borderpad=0, labelcolor=INK,
            fontsize=11, handlelength=2.6, labelspacing=0.35,
        )  # fmt: skip
        return inline(figure, name, title, told, [*ticks, *(one.label for one in shown)])


def _draw(axes: Any, one: Series, place: int, most: int) -> None:
    colour = ACCENT if one.strong else MUTED
    points = _thinned(one.points, most)
    few = len(points) <= 40
    for (x, _), ends in zip(points, one.ends if few else (), strict=False):
        if ends is not None:
            axes.plot([x, x], ends, color=colour, linewidth=4, alpha=0.4, solid_capstyle="round", label="_")
    xs, ys = zip(*points, strict=True)
    axes.plot(
        xs, ys, color=colour, linewidth=2 if one.joined else 0, linestyle=_DASHES[place % len(_DASHES)], clip_on=False,
        marker=_MARKS[place % len(_MARKS)] if few else "", markersize=6, solid_joinstyle="round", label=f"series {place}",
    )  # fmt: skip


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, neighbours averaged."""
    group = math.ceil(len(points) / most)
    batches = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in batches]


def _share(share: float, _place: object) -> str:
    return f"{round(100 * share)} %"


def _few_ticks(axes: Any, values: Sequence[float]) -> None:
    """Powers of ten over a wide range, else the ends alone: a logarithmic axis writes its numbers with markup otherwise."""
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = min(values), max(values)
    powers = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    powers = powers[:: math.ceil(len(powers) / 5)]
    axes.set_xlim(min(low * 0.8, powers[0]), max(high * 1.25, powers[-1]))
    axes.set_xticks(powers, [f"{power:g}" for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
