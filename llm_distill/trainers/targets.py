"""What is known of a teacher's distribution at the trained positions of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Targets:
    """The teacher's distribution at the n trained positions of one row, over the student's tokens.

    ids: (n, k) int32, padded with -1; logprobs: (n, k) natural logs, -inf where padded, in the floats they were stored as;
    defined: (n,) bool, False where nothing is known. What is missing to 1 at a defined position went to tokens
    that are not listed.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    defined: np.ndarray

    def top(self, k: int) -> Targets:
        """The k likeliest tokens of each position; what the others had is in the tail."""
        order = np.argsort(-self.logprobs, axis=1, kind="stable")[:, :k]
        ids, logprobs = (np.take_along_axis(array, order, 1) for array in (self.ids, self.logprobs))
        return Targets(ids, logprobs, self.defined)

    @property
    def confidence(self) -> np.ndarray:
        """(n,) float32: the largest probability at each position, NaN where nothing is known."""
        largest = np.exp(self.logprobs.max(axis=1, initial=-np.inf).astype(np.float32))
        return np.where(self.defined, largest, np.float32(np.nan))


def table(position: np.ndarray, ids: np.ndarray, mass: np.ndarray, defined: np.ndarray, kind: Any) -> Targets:
    """Targets of masses at positions, those of one id summed, the largest first; logprobs in floats of some kind."""
    n = len(defined)
    keys, inverse = np.unique(position.astype(np.int64) << 32 | ids, return_inverse=True)
    summed = np.bincount(inverse, mass, len(keys))
    rows, ids = keys >> 32, (keys & 0xFFFFFFFF).astype(np.int32)
    order = np.lexsort((-summed, rows))
    rows, ids, summed = rows[order], ids[order], summed[order]
    counts = np.bincount(rows, minlength=n)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (n, max(1, int(counts.max(initial=1))))
    made = Targets(np.full(shape, -1, np.int32), np.full(shape, -np.inf, kind), defined)
    made.ids[rows, columns], made.logprobs[rows, columns] = ids, np.log(summed)
    return made
