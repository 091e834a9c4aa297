"""How unevenly a rate, or who is named, is spread over groups of people, and whether two arms differ in that.

Statistics on sums: rows are drawn by cluster (a counterfactual group is one), both arms together, and the unevenness of each is
read off the drawn sums. As everywhere two rows are imagined, spread over the corners, so that arms that never differ in a
handful of rows do not seem proven alike.

Chance alone makes rates uneven, and more so those of the arm that is right less often; a largest gap gathers that up. So a
difference is less what chance adds to it, as the draws show it, and its interval is the basic one (Efron & Tibshirani 1993),
for a largest gap at a level that allows for the number of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from llm_distill.evals.statistics import IMAGINED, Floats, Interval, ratio, resampled_counts

#: Standard errors at which a 5 % test sees a difference four times out of five.
_POWER = 1.959964 + 0.841621


@dataclass(frozen=True)
class Uneven:
    """values: of the groups, V of them; `*` stands for all together."""

    values: Sequence[str]
    seed: int
    resamples: int

    def sums(self, clusters: Sequence[str], rows: Floats) -> Floats:
        """(C, k) of rows (n, k): summed by cluster."""
        _, place = np.unique(np.asarray(clusters), return_inverse=True)
        found = np.zeros((int(place.max()) + 1, rows.shape[1]))
        np.add.at(found, place, rows)
        return found

    def draws(self, sums: Floats, corners: Floats) -> Floats:
        """(resamples, k): means of clusters (C, k), drawn together with `IMAGINED` rows spread over the corners (m, k)."""
        patterns, counts = np.unique(sums, axis=0, return_counts=True)
        each = len(corners)  # whole numbers: a corner's share is IMAGINED / m of a row
        weights = np.concatenate([counts * each, np.full(each, IMAGINED)]).astype(np.int64)
        values = np.concatenate([patterns, corners])
        n = len(sums)
        return np.concatenate([drawn @ values / n for drawn in resampled_counts(weights, n, self.seed, self.resamples)])

    def compared(
        self, ours: Floats, theirs: Floats, ours_drawn: Floats, theirs_drawn: Floats, n: int
    ) -> dict[str, Any]:
        """By value: both arms' unevenness, (V + 1,) for `*` and the values; of draws, (resamples, V + 1); and the difference."""
        found = {}
        for place, value in enumerate(("*", *self.values)):
            rise, drawn = float(ours[place] - theirs[place]), ours_drawn[:, place] - theirs_drawn[:, place]
            known = drawn[~np.isnan(drawn)]
            visible = _POWER * float(known.std()) if len(known) else np.nan
            by_chance = float(known.mean()) - rise if len(known) else np.nan  # drawn once more, once more is added
            # Extremes are picked from V values, and chance picks with them: Bonferroni over the V - 1 that could be instead.
            times = len(self.values) - 1 if value == "*" else 1
            tail = 0.025 / times
            interval = _basic(rise - by_chance, 2 * rise - drawn, tail, n)
            found[value] = {
                "ours": float(ours[place]), "theirs": float(theirs[place]), "n": n, "difference": interval.value,
                "low": interval.low, "high": interval.high, "smallest_visible": visible if visible <= 1 else np.nan,
                "p": _two_sided(rise - by_chance, known, times),
            }  # fmt: skip
        return found


def _two_sided(value: float, draws: Floats, times: int) -> float:
    """How likely so large a difference is where there is none, were it normal with the spread of the draws (Efron & Tibshirani
    1993, 12.2): of some thousand draws no share is as small as a correction for many measures needs.
    """
    if not len(draws) or np.isnan(value) or value == 0:
        return 1.0
    spread = float(draws.std())
    return min(1.0, times * 2 * float(ndtr(-abs(value) / spread))) if spread else 0.0


def _basic(value: float, draws: Floats, tail: float, n: int) -> Interval:
    """As `statistics.percentiles`, with other tails: undefined draws count against the interval."""
    last = len(draws) - 1
    low = np.sort(np.where(np.isnan(draws), -np.inf, draws))[int(np.floor(tail * last))]
    high = np.sort(np.where(np.isnan(draws), np.inf, draws))[int(np.ceil((1 - tail) * last))]
    return Interval(value, min(float(low), value), max(float(high), value), n)


def rates_apart(
    table: Uneven, clusters: Sequence[str], values: Sequence[str], hits: Sequence[Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Of rows with a value and both arms' hits in [0, 1]: how uneven each arm's rates are over the values.

    `*`: the largest rate less the smallest; a value: the distance of its rate from that of all other rows.
    """
    size, n = len(table.values), len(values)
    place = {value: i for i, value in enumerate(table.values)}
    own = np.eye(size)[[place[value] for value in values]]
    rows = np.concatenate([own, *(own * np.asarray(of, np.float64)[:, None] for of in hits)], axis=1)
    corners = np.array(
        [[*unit, *(unit * a), *(unit * b)] for unit in np.eye(size) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    )
    sums = table.sums(clusters, rows)
    drawn = table.draws(sums, corners)
    return table.compared(*_both(sums.mean(0), size, _rates), *_both(drawn, size, _rates), n)


def _both(means: Floats, size: int, of: Any) -> tuple[Floats, Floats]:
    counts, ours, theirs = (means[..., i * size : (i + 1) * size] for i in range(3))
    return of(counts, ours), of(counts, theirs)


def _rates(counts: Floats, sums: Floats) -> Floats:
    """(..., V + 1) of counts and sums of hits (..., V)."""
    rates = ratio(sums, counts)
    rest = ratio(sums.sum(-1, keepdims=True) - sums, counts.sum(-1, keepdims=True) - counts)
    widest = rates.max(-1, keepdims=True) - rates.min(-1, keepdims=True)
    return np.concatenate([widest, np.abs(rates - rest)], axis=-1)


def shares_apart(
    table: Uneven, clusters: Sequence[str], counts: Sequence[Sequence[Mapping[str, int]]]
) -> dict[str, dict[str, Any]]:
    """Of both arms' answers to the same rows, how often each names each value: how uneven the shares of what is named are.

    `*`: the largest share less the smallest; a value: the distance of its share from an even one.
    """
    size = len(table.values)
    named = [np.array([[of.get(value, 0) for value in table.values] for of in arm], np.float64) for arm in counts]
    corners = np.array([[*ours, *theirs] for ours in np.eye(size) for theirs in np.eye(size)])
    sums = table.sums(clusters, np.concatenate(named, axis=1))
    drawn = table.draws(sums, corners)
    ours, theirs = _shares(sums.mean(0)[:size]), _shares(sums.mean(0)[size:])
    return table.compared(ours, theirs, _shares(drawn[:, :size]), _shares(drawn[:, size:]), len(counts[0]))


def _shares(named: Floats) -> Floats:
    shares = ratio(named, named.sum(-1, keepdims=True) + np.zeros_like(named))
    widest = shares.max(-1, keepdims=True) - shares.min(-1, keepdims=True)
    return np.concatenate([widest, np.abs(shares - 1 / named.shape[-1])], axis=-1)
