"""Intervals and tests on numbers: Wilson, exact sign test, paired bootstrap (percentile and BCa), Holm, power. Nothing here
knows what a row is.

Scores lie in [0, 1]; n rows, k arms. Every interval is 95 %. NaN means undefined; a bound may be infinite.

The bootstrap imagines two rows beyond those seen, spread evenly over the corners of [0, 1]^k: for two arms half a row
in each cell of the two-by-two table (Agresti & Min 2005). Without them five equal answers would give an interval of
0 to 0; with 300 rows they change nothing that one would print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
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


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's interval of a share seen in so many trials, which need not be a whole number: that of as much evidence."""
    z = 1.959964
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, min(float(middle - half), share)), min(1.0, max(float(middle + half), share))


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
    values, weights = with_imagined(scores)
    n, unit = len(scores), max(1, 2 ** scores.shape[1] // IMAGINED)  # whole numbers: a corner's share may be half a row
    counts = np.rint(weights * unit).astype(np.int64)
    return np.concatenate([drawn @ values / n for drawn in resampled_counts(counts, n, seed, resamples)])


def with_imagined(scores: Floats) -> tuple[Floats, Floats]:
    """The patterns (p, k) of scores (n, k) and of the imagined rows, and how many rows there are of each, (p,), n + 2 in all."""
    patterns, counts = np.unique(scores, axis=0, return_counts=True)
    corners = np.array(list(product((0.0, 1.0), repeat=scores.shape[1])))
    return np.concatenate([patterns, corners]), np.concatenate([counts, np.full(len(corners), IMAGINED / len(corners))])


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


def bca(
    value: float,
    draws: Floats,
    rows: tuple[Floats, Floats],
    of: Callable[[Floats], Floats],
    n: int,
    level: float = 0.95,
) -> Interval:
    """The bias-corrected and accelerated interval of Efron (1987) from the same draws as the percentile interval.

    `rows` are what was drawn from: values (p, k) and how many there are of each, (p,). `of` gives the statistic, (...,), of
    means (..., k), which is all that the jackknife needs: one step for each pattern. Undefined draws count, and the
    interval is widened, as in `percentiles`; NaN where a row alone decides whether there is a value.
    """
    values, counts = rows
    total = counts.sum()
    centre = counts @ values / total
    left_out = of((total * centre - values) / (total - 1))
    apart = counts @ left_out / total - left_out
    spread, at = counts @ apart**2, float(of(centre))
    if not np.isfinite([value, at, spread]).all():
        return Interval(value, np.nan, np.nan, n)
    acceleration = counts @ apart**3 / (6 * spread**1.5) if spread > 0 else 0.0
    known = np.round(draws[~np.isnan(draws)] - at, 12)  # equal sums may differ in their last bit
    below = ((known < 0).sum() + (known <= 0).sum()) / (2 * max(1, len(known)))
    bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    at_low, at_high = ndtr(bias + ends / (1 - acceleration * ends))
    whole = len(known) == len(draws)  # else there is no interpolating
    low = np.quantile(np.where(np.isnan(draws), -np.inf, draws), at_low, method="linear" if whole else "lower")
    high = np.quantile(np.where(np.isnan(draws), np.inf, draws), at_high, method="linear" if whole else "higher")
    return Interval(value, min(float(low), value), max(float(high), value), n)


def mean(scores: Floats, seed: int, resamples: int) -> Interval:
    """The mean of scores (n,) with its bootstrap interval."""
    if not len(scores):
        return UNDEFINED
    return percentiles(float(scores.mean()), resampled_means(scores[:, None], seed, resamples)[:, 0], len(scores))


def unbounded(rows: Floats, of: Callable[[Floats], Floats], seed: int, resamples: int) -> Interval:
    """A statistic of the means of rows (n, k) that need not lie in [0, 1], with its BCa interval: no row is imagined, for
    there is no telling where. Undefined bounds where all rows are equal, which says nothing of how others would differ.
    """
    n = len(rows)
    if n == 0:
        return UNDEFINED
    values, counts = np.unique(rows, axis=0, return_counts=True)
    value = float(of(rows.mean(0)))
    if len(values) == 1:
        return Interval(value, np.nan, np.nan, n)
    draws = np.concatenate([of(drawn @ values / n) for drawn in resampled_counts(counts, n, seed, resamples)])
    return bca(value, draws, (values, counts.astype(np.float64)), of, n)


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


def rows_needed(differences: Floats) -> float:
    """How many rows like these (n,) would show a mean difference of the size seen, four times out of five: the n at which it is
    the `smallest_visible`. NaN where none was seen, or there are too few rows to say.
    """
    n, seen = len(differences), abs(float(differences.mean())) if len(differences) else 0.0
    if n < FEWEST or seen == 0:
        return np.nan
    sd = np.sqrt((np.sum(differences**2) + IMAGINED / 2) / (n + IMAGINED))
    return float(np.ceil(max(((1.959964 + 0.841621) * sd / seen) ** 2, FEWEST / seen)))


def holm(p: Sequence[float]) -> list[float]:
    """The p values adjusted for being several, by Holm's step-down method (1979): reject where the adjusted one is below 5 %,
    and in 95 of 100 such families nothing is rejected wrongly, however the tests hang together.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]
