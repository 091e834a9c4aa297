"""What is known of a teacher's distribution at the trained positions of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
