"""Arms held against each other row by row: what they share, and what the student's difference from another is worth."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llm_distill.evals.slice_tests import Slices, by_slice
from llm_distill.evals.statistics import (
    FEWEST,
    Floats,
    bca,
    percentiles,
    resampled_means,
    rows_needed,
    sign_test,
    smallest_visible,
    with_imagined,
)

_Unit = TypeVar("_Unit", bound=Hashable)
SLICE_RESAMPLES = 2_000  # of each slice: enough for 95 % percentiles (Efron & Tibshirani 1993)


class Shared(NamedTuple):
    """Scores (n,) per arm on the rows that all scored arms share, in row_id order, and resampled means (resamples,)."""

    metric: str | None
    rows: list[str]
    scores: dict[str, Floats]
    means: dict[str, Floats]

    def has(self, *arms: str) -> bool:
        """Whether all these arms are scored."""
        return all(arm in self.scores for arm in arms)

    def some(self, places: Sequence[int], seed: int, resamples: int) -> Shared:
        """The same of some of the rows alone, drawn anew."""
        scores = {arm: of[places] for arm, of in self.scores.items()}
        means = resampled_means(np.stack(list(scores.values()), axis=1), seed, resamples)
        rows = [self.rows[place] for place in places]
        return Shared(self.metric, rows, scores, {arm: means[:, i] for i, arm in enumerate(scores)})

    def bca(self, arms: Sequence[str], value: float, of: Callable[..., Any]) -> dict[str, float]:
        """The BCa interval of a function of these arms' means."""
        rows = with_imagined(np.stack([self.scores[arm] for arm in arms], axis=1))
        draws = of(*(self.means[arm] for arm in arms))
        found = bca(value, draws, rows, lambda means: of(*np.moveaxis(means, -1, 0)), len(self.rows))
        return {"low": found.low, "high": found.high}


def student_pairs(
    shared: Shared, others: Sequence[str], slices: Slices, seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    """By name, the student's comparison with each of the other arms that are scored, `slices` among it."""
    others = [other for other in others if shared.has("student", other)]
    pairs = {f"student_vs_{other}": paired(shared, other) for other in others}
    if pairs and shared.rows:
        for name, of in by_slice(slices, lambda rows: slice_pairs(shared, others, rows, seed, resamples)).items():
            pairs[name]["slices"] = of
    return pairs


def paired(shared: Shared, other: str) -> dict[str, Any]:
    """The student less another arm, with a paired bootstrap interval and an exact test.

    The test is McNemar's for right-or-wrong scores and the sign test over rows that differ otherwise. `rows_needed`: how many
    rows like these would mostly show the difference seen, as these do one of `smallest_visible` or more.
    """
    differences = shared.scores["student"] - shared.scores[other]
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    value = float(differences.mean())
    interval = percentiles(value, shared.means["student"] - shared.means[other], len(differences))
    return {
        "metric": shared.metric,
        "test": "exact McNemar" if set(np.unique(np.abs(differences))) <= {0.0, 1.0} else "sign test",
        "n": interval.n,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "bca": shared.bca(("student", other), value, np.subtract),
        "p": sign_test(wins, losses),
        "wins": wins,
        "losses": losses,
        "smallest_visible": smallest_visible(differences),
        "rows_needed": rows_needed(differences),
    }


def slice_pairs(
    shared: Shared, others: Sequence[str], places: Sequence[int], seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    """The student's comparisons on one slice, `n` and `difference` alone where no outcome could be called a difference."""
    keys = ("n", "difference", "low", "high", "p", "wins", "losses")
    if len(places) >= FEWEST:
        some = shared.some(places, seed, min(resamples, SLICE_RESAMPLES))
        full = {other: paired(some, other) for other in others}
        return {f"student_vs_{other}": {key: of[key] for key in keys} for other, of in full.items()}
    means = {arm: float(of[list(places)].mean()) for arm, of in shared.scores.items()}
    return {
        f"student_vs_{other}": dict.fromkeys(keys) | {"n": len(places), "difference": means["student"] - means[other]}
        for other in others
    }


def apart(ours: Mapping[_Unit, bool], theirs: Mapping[_Unit, bool], seed: int, resamples: int) -> dict[str, Any] | None:
    """The share of yes among ours less that among theirs, on the units that both have; None where there are none.

    n, difference with its paired interval, exact McNemar p, and the smallest difference that so many would mostly show.
    """
    units = [unit for unit in ours if unit in theirs]
    if not units:
        return None
    table = np.array([[ours[unit], theirs[unit]] for unit in units], dtype=np.float64)
    means = resampled_means(table, seed, resamples)
    sides = ("student", "other")
    shared = Shared("yes", [], dict(zip(sides, table.T, strict=True)), dict(zip(sides, means.T, strict=True)))
    found = paired(shared, "other")
    return {key: found[key] for key in ("n", "difference", "low", "high", "p", "smallest_visible")}
