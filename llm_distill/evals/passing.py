"""pass@k: how often at least one of k answers to a row is right, estimated from n answers to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from llm_distill.evals.pairs import Shared, student_pairs
from llm_distill.evals.statistics import holm, mean, resampled_means

#: By arm and row_id, whether each of a row's answers is right.
Passed = Mapping[str, Mapping[str, Sequence[bool]]]


def estimated(answers: int, right: int, k: int) -> float:
    """The chance that k of a row's answers hold a right one: 1 - C(n - c, k) / C(n, k), which is unbiased, as 1 - (1 - c/n)^k is
    not (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    return 1 - comb(answers - right, k) / comb(answers, k)


def held_against(
    passed: Mapping[str, Passed], ks: Sequence[int], others: Sequence[str], seed: int, resamples: int
) -> list[dict[str, Any]]:
    """report.json's `pass_at.found`: for each metric and k, every arm's value, and the student less each of the others, on the
    rows that all arms have. Intervals are over rows; `p_holm` allows for all comparisons here.
    """
    found: list[dict[str, Any]] = []
    for metric, arms in passed.items():
        rows = sorted(set.intersection(*(set(of) for of in arms.values()))) if arms else []
        for k in sorted(ks) if rows else ():
            scores = {arm: np.array([estimated(len(of[r]), sum(of[r]), k) for r in rows]) for arm, of in arms.items()}
            means = resampled_means(np.stack(list(scores.values()), axis=1), seed, resamples)
            shared = Shared(f"pass@{k}", rows, scores, {arm: means[:, i] for i, arm in enumerate(scores)})
            values = {arm: mean(of, seed, resamples)._asdict() for arm, of in scores.items()}
            pairs = student_pairs(shared, others, {}, seed, resamples)
            found.append({"metric": metric, "k": k, "n": len(rows), "arms": values, "paired": pairs})
    tested = [pair for one in found for pair in one["paired"].values()]
    for pair, p in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = p
    return found
