"""What the best of several is worth. Picked for its score, it owes part of that score to luck: the winner's curse.

Two answers, both from scores of all candidates on the same rows. `expected` says what a winner so picked would score on rows
that had no part in the picking. `adjusted` says how surprising its lead is, given how many had the chance to lead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_distill.evals.statistics import CELLS, Floats, Interval, percentiles

#: Enough for 95 % percentiles (Efron & Tibshirani 1993); each picks among all candidates anew.
RESAMPLES = 2_000


class Expected(NamedTuple):
    """Of a winner picked on some rows, on the others: its score, and its gain over the first candidate."""

    score: Interval
    gain: Interval


def expected(scores: Floats, seed: int) -> Expected:
    """What picking the best of k candidates gives; scores (n, k), the first candidate being the one to beat.

    Bootstrap bias-corrected cross-validation (Tsamardinos et al. 2018): rows are drawn with replacement, the best candidate
    on them is picked (the earliest of equals), and scored on the rows that were not drawn.
    """
    n, k = scores.shape
    rng = np.random.default_rng(seed)
    found, chunk = [], max(1, CELLS // max(n, k))
    for start in range(0, RESAMPLES, chunk):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(chunk, RESAMPLES - start))
        others = (drawn == 0).astype(np.float64)
        drawn, others = drawn[others.any(axis=1)], others[others.any(axis=1)]
        best = np.argmax(np.round(drawn @ scores / n, 12), axis=1)  # equal sums may differ in their last bit
        means = others @ scores / others.sum(axis=1, keepdims=True)
        picked = np.take_along_axis(means, best[:, None], axis=1)[:, 0]
        found.append(np.stack([picked, picked - means[:, 0]], axis=1))
    draws = np.concatenate(found)
    return Expected(*(percentiles(float(of.mean()), of, n) for of in draws.T))


def adjusted(p: float, chances: int) -> float:
    """The p of a lead that one of `chances` candidates was bound to have (Bonferroni): exact enough, and never too bold."""
    return min(1.0, p * max(1, chances))
