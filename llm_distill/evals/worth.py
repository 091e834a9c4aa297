"""What a teacher's distributions over labels are worth beside its labels alone, on rows like those that are taught.

A target's Brier score is its squared distance to what is true of its row, plus what no target could know; so the difference of
two targets' scores is that of their distances, which is what a student pays for a wrong target (Menon et al. 2021,
arXiv 2005.10419). Labelled rows are mostly no sample of the rows that are taught: filters keep what the teacher is sure of, and
there its labels may be as good as its distributions. So each labelled row counts as often as rows of its confidence are
taught (post-stratification, Holt and Smith 1979).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llm_distill.evals.calibration import BINS, ENOUGH, IN_A_BIN, brier
from llm_distill.evals.statistics import Floats, Ints, percentiles, resampled_counts

#: Of the rows that are taught, so many have labelled ones of their confidence, or those say nothing of them: all but one bin.
COVERED = 0.9
RESAMPLES = 10_000


class Worth(NamedTuple):
    """Of the labelled rows as they count: how many there are (`effective`: equally weighted ones that would tell as much;
    `covered`: the share of the taught rows that are like some of them); how sure the calibrated distributions are and how
    often they, and the labels alone, are right; and by how much the Brier score is better than that of the labels, with an
    interval of 95 %. None where there are too few.
    """

    rows: int
    effective: float
    covered: float
    confidence: float | None = None
    right: float | None = None
    hard_right: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None

    def story(self) -> dict[str, Any]:
        """For training.json."""
        return self._asdict()


def as_taught(sure: Floats, taught: Floats) -> tuple[Floats, float]:
    """(n,) weights of labelled rows with which they are as sure as the taught ones (m,), and the share of these that have any
    like them. Bins have equally many taught rows; outside their range a row has no weight. The weights' mean is 1.
    """
    inside = (sure >= taught.min()) & (sure <= taught.max())
    bins = max(1, min(BINS, int(inside.sum()) // IN_A_BIN, len(taught) // IN_A_BIN))
    edges = np.unique(np.quantile(taught, np.arange(1, bins) / bins, method="higher"))
    theirs, ours = (np.searchsorted(edges, of, side="right") for of in (taught, sure[inside]))
    wanted = np.bincount(theirs, minlength=len(edges) + 1) / len(taught)
    there = np.bincount(ours, minlength=len(edges) + 1)
    weights = np.zeros(len(sure))
    weights[inside] = wanted[ours] / there[ours]
    covered = float(wanted[there > 0].sum())
    return (weights * len(sure) / covered if covered else weights), covered


def worth(probs: Floats, hard: Floats, gold: Ints, sure: Floats, taught: Floats, seed: int) -> Worth:
    """Of calibrated distributions (n, L), each row's calibrated by others, beside the teacher's labels taken for certain (n, L).

    sure: (n,) how sure the teacher is of the labelled rows before any calibration, taught: (m,) of those that are taught.
    """
    weights, covered = as_taught(sure, taught)
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if covered else 0.0  # Kish 1965
    rows = int((weights > 0).sum())
    if effective < ENOUGH or covered < COVERED:
        return Worth(rows, effective, covered)

    def mean(of: Floats) -> float:
        return float(np.average(of, weights=weights))

    right, hard_right = ((one.argmax(-1) == gold).astype(float) for one in (probs, hard))
    better = brier(hard, gold) - brier(probs, gold)
    # Two imagined rows, as in `statistics`: half a row of each outcome of two arms that are right or wrong.
    values = np.concatenate([better, [0.0, 1.0, -1.0, 0.0]])
    loads = np.concatenate([weights, np.ones(4)])
    counts = np.concatenate([np.full(len(better), 2), np.ones(4, np.int64)]).astype(np.int64)
    sums = np.concatenate(
        [
            drawn @ np.column_stack([loads * values, loads])
            for drawn in resampled_counts(counts, len(better), seed, RESAMPLES)
        ]
    )
    gain = percentiles(mean(better), sums[:, 0] / np.maximum(sums[:, 1], 1e-12), rows)
    return Worth(
        rows, effective, covered, mean(probs.max(-1)), mean(right), mean(hard_right), gain.value, gain.low, gain.high
    )
