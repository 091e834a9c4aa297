"""How far a judge agrees with people beyond what chance would give: Cohen's kappa, with intervals that know that several
people may have looked at the same row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_distill.evals.statistics import FEWEST, Floats, mean, percentiles, ratio, resampled_counts

#: Below it agreement is at best fair (Landis & Koch 1977).
POOR = 0.4
#: A distance by chance under this is none, but for rounding.
_NONE = 1e-9


def kappa(
    pairs: Mapping[str, Sequence[tuple[int, float]]], size: int, *, ordered: bool, seed: int, resamples: int
) -> Any:
    """Agreement of two raters: by row, the (one's, the other's) categories, each in 0..size-1.

    `kappa` is Cohen's (1960), for `ordered` categories with quadratic weights (Cohen 1968): a judgement that is off by two
    counts four times one that is off by one. With these weights kappa is a matter of means and squares alone, Lin's (1989)
    concordance, so a judge's mean over several runs stays as it is and is not rounded to a category. `raw`: the share of equal
    judgements; a mean equals the category that it is nearest to. Both have an interval from a bootstrap
    over rows; kappa's imagines two rows beyond those seen, spread over the corners of the table. `n` judgements on `rows`. A
    `reason` where there is no kappa.
    """
    n, rows = sum(map(len, pairs.values())), len(pairs)
    counts = {"n": n, "rows": rows, "weights": "quadratic" if ordered else None}
    if not n:
        return {"kappa": None, "raw": None, **counts, "reason": "no judgement is about a row that was judged"}
    values = np.array([_summed(of, size, ordered=ordered) for of in pairs.values()])
    raw = mean(values[:, 1] / values[:, 2], seed, resamples)
    found: dict[str, Any] = {"raw": {"value": raw.value, "low": raw.low, "high": raw.high}, **counts}
    value = float(_of_sums(values.sum(0), size, ordered=ordered))
    if np.isnan(value):
        why = "both give all rows one and the same category, so that chance alone would have them agree"
        return found | {"kappa": None, "reason": why}
    if rows < FEWEST:
        return found | {"kappa": {"value": value, "low": None, "high": None}}
    last = size - 1
    corners = [_summed([at], size, ordered=ordered) for at in ((0, 0), (last, last), (0, last), (last, 0))]
    patterns, weights = np.unique(values, axis=0, return_counts=True)
    drawn = resampled_counts(np.append(2 * weights, [1, 1, 1, 1]), rows, seed, resamples)  # half a row in each corner
    whole = np.concatenate([patterns, corners])
    draws = np.concatenate([_of_sums(of @ whole, size, ordered=ordered) for of in drawn])
    between = percentiles(value, draws, rows)
    return found | {"kappa": {"value": value, "low": between.low, "high": between.high}}


def _summed(of: Sequence[tuple[int, float]], size: int, *, ordered: bool) -> Floats:
    """What kappa needs of a row's judgements: distance, equal ones, all, and of each rater the sum and that of squares (7,), or
    how many by category (3 + 2 size,).
    """
    one, other = np.array(of, dtype=np.float64).T
    if ordered:
        apart, equal = np.square(one - other).sum(), (np.abs(one - other) < 0.5).sum()
        return np.array([apart, equal, len(of), one.sum(), np.square(one).sum(), other.sum(), np.square(other).sum()])
    ours, theirs = (np.bincount(each.astype(np.int64), minlength=size) for each in (one, other))
    return np.concatenate([[(one != other).sum(), (one == other).sum(), len(of)], ours, theirs]).astype(np.float64)


def _of_sums(sums: Floats, size: int, *, ordered: bool) -> Floats:
    """Kappa of sums (..., 7 or 3 + 2 size): 1 less the distance seen over that by chance; NaN where chance leaves none."""
    seen, n = sums[..., 0], sums[..., 2]
    if ordered:
        by_chance = sums[..., 4] + sums[..., 6] - 2 * sums[..., 3] * sums[..., 5] / n
    else:
        by_chance = n - (sums[..., 3 : 3 + size] * sums[..., 3 + size :]).sum(-1) / n
    return 1 - ratio(seen, np.where(by_chance > _NONE, by_chance, 0.0))
