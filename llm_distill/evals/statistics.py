"""Intervals and tests on numbers: Wilson, exact sign test, paired bootstrap. Nothing here knows what a row is.

Scores lie in [0, 1]; n rows, k arms. Every interval is 95 %. NaN means undefined; a bound may be infinite.

The bootstrap imagines two rows beyond those seen, spread evenly over the corners of [0, 1]^k: for two arms half a row
in each cell of the two-by-two table (Agresti & Min 2005). Without them five equal answers would give an interval of
0 to 0; with 300 rows they change nothing that one would print.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

IMAGINED = 2  # rows beyond those seen
FEWEST = 6  # 2 / 2**6 < 0.05 < 2 / 2**5: with fewer rows no outcome of the exact test falls below 5 %
CELLS = 2_000_000  # numbers a chunk of resamples may hold: 16 MB
EFFORT = 20_000_000  # draws an interval may cost: 10,000 resamples of 2,000 patterns, under a second


class Interval(NamedTuple):
    """A value with its 95 % interval, on n rows."""

    value: float
    low: float
    high: float
    n: int


UNDEFINED = Interval(np.nan, np.nan, np.nan, 0)


def proportion(successes: int, n: int) -> Interval:
    """A share with Wilson's score interval (Wilson 1927), which stays honest at 0, at n and for small n."""
    if n == 0:
        return UNDEFINED
    ci = binomtest(successes, n).proportion_ci(method="wilson")
    value = successes / n
    return Interval(value, min(float(ci.low), value), max(float(ci.high), value), n)


def difference(successes: int, n: int, others: int, m: int, level: float = 0.95) -> Interval:
    """The difference of two independent shares, successes/n - others/m, with the hybrid score interval of Newcombe (1998,
    method 10): as honest at 0 and at n as Wilson's, of which it is made.
    """
    if n == 0 or m == 0:
        return UNDEFINED
    ours = binomtest(successes, n).proportion_ci(level, method="wilson")
    theirs = binomtest(others, m).proportion_ci(level, method="wilson")
    p, q = successes / n, others / m
    low = p - q - float(np.hypot(p - ours.low, theirs.high - q))
    high = p - q + float(np.hypot(ours.high - p, q - theirs.low))
    return Interval(p - q, low, high, n + m)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p that wins and losses are equally likely: on right-or-wrong pairs, McNemar's exact test."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def resampled_counts(weights: Ints, n: int, seed: int, resamples: int) -> Iterator[Floats]:
    """Chunks (chunk, patterns) of how often each pattern occurs among n rows drawn in proportion to `weights`.

    Equal rows are one pattern, so cost grows with what differs, not with n. Beyond 2,000 patterns there are fewer
    resamples, never below 1,000, enough for 95 % percentiles (Efron & Tibshirani 1993). Each call starts at `seed`.
    """
    rng = np.random.default_rng(seed)
    patterns = len(weights)
    resamples = min(resamples, max(1_000, EFFORT // patterns))
    row_by_row = 10 * patterns > n and weights.sum() <= EFFORT  # a binomial draw costs about ten rows
    chunk = max(1, CELLS // (max(patterns, n) if row_by_row else patterns))
    slots = np.repeat(np.arange(patterns, dtype=np.int32), weights) if row_by_row else None
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        if slots is None:
            yield rng.multinomial(n, weights / weights.sum(), size=size).astype(np.float64)
        else:
            drawn = slots[rng.integers(len(slots), size=(size, n))] + patterns * np.arange(size)[:, None]
            yield np.bincount(drawn.ravel(), minlength=size * patterns).reshape(size, patterns).astype(np.float64)


def resampled_means(scores: Floats, seed: int, resamples: int) -> Floats:
    """Means (resamples, k) of scores (n, k), n > 0, rows drawn together: the source of every paired interval."""
    n, k = scores.shape
    patterns, counts = np.unique(scores, axis=0, return_counts=True)
    corners = np.array(list(product((0.0, 1.0), repeat=k)))
    values = np.concatenate([patterns, corners])
    unit = max(1, len(corners) // IMAGINED)  # so that a corner's share of the imagined rows is a whole number
    weights = np.concatenate([counts * unit, np.full(len(corners), IMAGINED * unit // len(corners))])
    return np.concatenate([drawn @ values / n for drawn in resampled_counts(weights, n, seed, resamples)])


def percentiles(value: float, draws: Floats, n: int) -> Interval:
    """The 2.5th and 97.5th percentile of resampled values, widened where needed so that they hold the value itself.

    An undefined draw counts as -inf below and as +inf above, so that too many of them make the bound infinite.
    """
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, n)
    last = len(draws) - 1
    at_low, at_high = int(np.floor(0.025 * last)), int(np.ceil(0.975 * last))
    low = np.partition(np.where(np.isnan(draws), -np.inf, draws), at_low)[at_low]
    high = np.partition(np.where(np.isnan(draws), np.inf, draws), at_high)[at_high]
    return Interval(value, min(float(low), value), max(float(high), value), n)


def mean(scores: Floats, seed: int, resamples: int) -> Interval:
    """The mean of scores (n,) with its bootstrap interval."""
    if not len(scores):
        return UNDEFINED
    return percentiles(float(scores.mean()), resampled_means(scores[:, None], seed, resamples)[:, 0], len(scores))


def ratio(above: Any, below: Any) -> Floats:
    """The quotient, undefined where `below` is not positive."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    quotient: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return quotient


def smallest_visible(differences: Floats) -> float:
    """The smallest mean paired difference (n,) that a 5 % test would find four times out of five; NaN if there is none.

    (z_.975 + z_.80) sd / sqrt(n), as in Miller 2024 (arXiv 2411.00640), sd taken around zero with the imagined
    rows; never below the `FEWEST` rows that the exact test needs.
    """
    n = len(differences)
    if n < FEWEST:
        return np.nan
    sd = np.sqrt((np.sum(differences**2) + IMAGINED / 2) / (n + IMAGINED))
    found = max((1.959964 + 0.841621) * sd / np.sqrt(n), FEWEST / n)
    return float(found) if found <= 1 else np.nan
