"""The win rate at equal length: what a judge would say if both answers were as long as each other.

After Dubois et al. 2024 (arXiv 2404.04475, AlpacaEval 2): the preference of each row is regressed, logistically, on a term of
the model and on tanh of the length difference over its standard deviation; the win rate is then read off where that
difference is zero. Three things are otherwise here. The term of the instruction's difficulty is left out: it is estimated over
many models there, and one comparison has none to tell it by. The penalty is a fixed one in place of a cross-validated one: a
normal prior of standard deviation 10 on the model's term, which is next to none, and 5 on the length's, without which a judge
that only counts characters has no estimate (with it, its win rate is within two points of one half on 300 rows). And there is
an interval, by resampling rows. Lengths are in characters, the difference rounded to a hundredth after tanh.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from llm_distill.evals.statistics import FEWEST, Floats, percentiles, resampled_counts

#: Standard deviations of the priors: of the model's term and of the length's.
PRIOR = (10.0, 5.0)
_STEPS = 60
_FARTHEST = 2.0  # that a step may go, so that none overshoots
_CLOSE = 1e-9


def length_controlled(
    preferences: Floats, lengths: Floats, others: Floats, seed: int, resamples: int
) -> dict[str, Any]:
    """The win rate at equal length, and how much length decides.

    preferences (n,): what each row says of the model's answer, 1 won, 0 lost, 0.5 tied. lengths, others (n,): characters of
    its answer and of the other's. Gives value, low, high and n of the win rate; `effect`, the log odds that one unit of tanh
    length adds, with its interval; rows on which the answer is `longer` and `shorter`; a `reason` where nothing can be said.
    """
    apart = lengths - others
    longer, shorter, n = int((apart > 0).sum()), int((apart < 0).sum()), len(apart)
    counts: dict[str, Any] = {"n": n, "longer": longer, "shorter": shorter}
    nothing = {"value": None, "low": None, "high": None, "effect": None, **counts}
    if n < FEWEST:
        return nothing | {"reason": f"{n} rows are too few"}
    if min(n - longer, n - shorter) < FEWEST:
        side, rest = ("longer", n - longer) if longer > shorter else ("shorter", n - shorter)
        where = "all rows" if not rest else f"all rows but {rest}"
        return nothing | {"reason": f"the answer is {side} on {where}, so nothing shows what happens at equal length"}
    spread = float(apart.std(ddof=1))
    x = np.round(np.tanh(apart / spread), 2) if spread else np.zeros(n)
    patterns, weights = np.unique(np.stack([x, preferences], axis=1), axis=0, return_counts=True)
    fitted = fit(patterns, weights[None, :].astype(np.float64))[0]
    # As elsewhere two rows are imagined beyond those seen: one won and one lost, at equal length.
    rows = np.concatenate([patterns, [[0.0, 1.0], [0.0, 0.0]]])
    drawn = resampled_counts(np.append(weights, [1, 1]), n, seed, resamples)
    draws = np.concatenate([fit(rows, of, fitted) for of in drawn])
    rate = percentiles(float(expit(fitted[0])), expit(draws[:, 0]), n)
    effect = percentiles(float(fitted[1]), draws[:, 1], n)
    return {
        **rate._asdict(),
        **counts,
        "effect": {"value": effect.value, "low": effect.low, "high": effect.high},
    }


def fit(rows: Floats, counts: Floats, start: Floats | None = None) -> Floats:
    """The most likely terms (k, 2), of the model and of length, for k data sets at once, by Newton's method.

    rows (p, 2): length difference and preference in [0, 1]. counts (k, p): how many of each row a data set has.
    """
    x, y = rows[:, 0], rows[:, 1]
    terms = np.tile(np.zeros(2) if start is None else start, (len(counts), 1))
    penalty = 1 / np.square(PRIOR)
    for _ in range(_STEPS):
        p = expit(terms[:, :1] + terms[:, 1:] * x)
        left, bent = counts * (y - p), counts * p * (1 - p)
        slope = np.stack([left.sum(1), left @ x], axis=1) - terms * penalty
        a, b, c = bent.sum(1) + penalty[0], bent @ x, bent @ (x * x) + penalty[1]
        size = a * c - b * b  # positive, as the penalty is
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], axis=1) / size[:, None]
        far = np.linalg.norm(step, axis=1, keepdims=True)
        terms = terms + step * np.minimum(1.0, _FARTHEST / np.maximum(far, _CLOSE))
        if far.max() < _CLOSE:
            break
    return terms
