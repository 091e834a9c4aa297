"""Whether a model answers frozen rows as it did before: the same questions, asked at two times, compared row by row.

A hosted model may word a greedy answer a little differently each time, so a test must not take mere restlessness for a move: what
is tested is whether changes lean one way. Nothing here knows when or by whom the rows were asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from llm_distill.evals.metrics import Kind, gold_scores, prediction
from llm_distill.evals.statistics import (
    Floats,
    Interval,
    holm,
    mean,
    percentiles,
    proportion,
    resampled_means,
    sign_test,
)
from llm_distill.evals.tokens import length, token_f1
from llm_distill.records import Answer

DRAWS = 10_000  # of sign flips, where there are too many to try each
NO_LABEL = "no label"


def drift(before: Sequence[Answer], after: Sequence[Answer], kind: Kind, seed: int) -> dict[str, Any]:
    """What has changed between answers to the same questions, in the same order, each list n long; failed ones left out.

    Keys: `rows`; `agreement` (value, low, high): the share of equal labels, or mean token F1 of the texts; `labels`: of each
    label its rows before and after; `tests`: what may have moved, each with `before`, `after`, `difference`, `low`, `high`
    where it is a share, `p`, and `p_holm` for being several.
    """
    answered = [(a, b) for a, b in zip(before, after, strict=True) if "failed" not in (a.status, b.status)]
    old, new = [a for a, _ in answered], [b for _, b in answered]
    tests: list[dict[str, Any]] = []
    if kind == "classify":
        said = [(prediction(a) or NO_LABEL, prediction(b) or NO_LABEL) for a, b in answered]
        agreement = proportion(sum(a == b for a, b in said), len(said))
        names = sorted({name for pair in said for name in pair})
        labels = {name: [sum(a == name for a, _ in said), sum(b == name for _, b in said)] for name in names}
        if said:
            turned = [[float(b == name) - float(a == name) for name in names] for a, b in said]
            tests.append({"name": "labels", "p": swap_test(np.array(turned), seed)})
        metric = "accuracy"
    else:
        agreement = mean(np.array([token_f1(b.text, a.text) for a, b in answered]), seed, DRAWS)
        labels, metric = {}, "token_f1"
        if answered:
            words = np.array([[length(a.text), length(b.text)] for a, b in answered], np.float64)
            longer = np.log1p(words[:, 1]) - np.log1p(words[:, 0])  # of lengths factors count
            about = {"before": float(words[:, 0].mean()), "after": float(words[:, 1].mean())}
            tests.append({"name": "words", **about, "p": swap_test(longer[:, None], seed)})
    scores = [gold_scores(answers, kind)[metric] for answers in (old, new)]
    if shared := [row for row in scores[0] if row in scores[1]]:
        tests.append(_scored(metric, np.array([[of[row] for of in scores] for row in shared]), seed))
    adjusted = holm([test["p"] for test in tests])
    return {
        "rows": len(answered),
        "agreement": _interval(agreement),
        "labels": labels,
        "tests": [{**test, "p_holm": p} for test, p in zip(tests, adjusted, strict=True)],
    }


def swap_test(differences: Floats, seed: int) -> float:
    """Two-sided p that the differences (n, k), after less before, lean no way: each row's two times may as well be swapped
    (Fisher's randomisation test of pairs, 1935). With k > 1 columns their sums are taken together, each by its own spread.
    Exact for few rows that differ, else from seeded draws. For two labels it is McNemar's exact test.
    """
    moved = differences[np.any(differences != 0, axis=1)]
    n = len(moved)
    if n == 0:
        return 1.0
    spread = np.sqrt((moved**2).sum(axis=0))
    moved = moved[:, spread > 0] / spread[spread > 0]
    if n <= 13:  # 8,192 ways
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        ways, extra = len(signs), 0
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (DRAWS, n))
        ways, extra = DRAWS, 1  # what was seen is one of the ways (Phipson and Smyth 2010)
    seen = float((moved.sum(axis=0) ** 2).sum())
    drawn = ((signs @ moved) ** 2).sum(axis=1)
    return (int((drawn >= seen - 1e-9).sum()) + extra) / (ways + extra)


def _scored(metric: str, scores: Floats, seed: int) -> dict[str, Any]:
    """Scores (n, 2) against gold: both means, their difference with its interval, and the exact test of wins and losses."""
    drawn = resampled_means(scores, seed, DRAWS)
    values = scores.mean(axis=0)
    between = percentiles(float(values[1] - values[0]), drawn[:, 1] - drawn[:, 0], len(scores))
    p = sign_test(int((scores[:, 1] > scores[:, 0]).sum()), int((scores[:, 1] < scores[:, 0]).sum()))
    of = {"before": float(values[0]), "after": float(values[1]), "n": len(scores)}
    return {"name": metric, **of, "difference": between.value, "low": between.low, "high": between.high, "p": p}


def _interval(of: Interval) -> dict[str, float | None]:
    ends = {"value": of.value, "low": of.low, "high": of.high}
    return {name: None if np.isnan(end) else float(end) for name, end in ends.items()}


def served(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> list[str]:
    """The roles for which other models answered than before, by the names that their servers gave."""
    return sorted(role for role in before.keys() & after.keys() if set(before[role]) != set(after[role]))
