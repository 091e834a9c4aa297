"""Two arms on yes-or-no questions about the same units, such as whether a row or a group flips."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from llm_distill.evals.compare import Shared, paired
from llm_distill.evals.statistics import resampled_means

_Unit = TypeVar("_Unit", bound=Hashable)


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
