"""What an arm's label probabilities are worth: how right, how calibrated, how well they rank, how near to its teacher's.

A distribution is (L + 1,): the labels in the task's order, and last what went to answers that are no label. Rows without
one (no logprobs were asked for, or the row failed) are left out, as `n` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from llm_distill.evals.calibration import FLOOR, brier, equal_mass
from llm_distill.evals.statistics import (
    CELLS,
    EFFORT,
    UNDEFINED,
    Floats,
    Interval,
    Ints,
    mean,
    percentiles,
    proportion,
    resampled_counts,
    unbounded,
    wilson,
)
from llm_distill.records import Answer


def distribution(answer: Answer) -> Floats | None:
    """The label probabilities of an answer, (L + 1,), sum 1."""
    if answer.label_probs is None or answer.status == "failed":
        return None
    known = np.array(answer.label_probs, dtype=np.float64)
    found: Floats = np.append(known, max(0.0, 1.0 - known.sum()))
    return np.asarray(found / found.sum())


def probability_numbers(
    answers: Sequence[Answer], teacher: Sequence[Answer], labels: Sequence[str], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Of one arm: `brier`, `ece`, `auroc` on rows with a true label, `calibration` (the curve behind `ece`); against its
    teacher's, where both have them, `top1_agreement` and `kl_from_teacher` in nats.
    """
    known = [(a, p) for a in answers if (p := distribution(a)) is not None]
    place = {label: i for i, label in enumerate(labels)}
    gold = np.array([place[a.prompt.label] for a, _ in known if a.prompt.label is not None], dtype=np.int64)
    probs = np.array([p[:-1] for a, p in known if a.prompt.label is not None]).reshape(len(gold), len(labels))
    theirs = {a.prompt.row_id: p for a in teacher if (p := distribution(a)) is not None}
    both = [(theirs[a.prompt.row_id], p) for a, p in known if a.prompt.row_id in theirs]
    same = sum(int(t.argmax() == s.argmax()) for t, s in both)
    apart = np.array([[kl(t, s)] for t, s in both])
    error, curve = calibration(probs.max(1), probs.argmax(1) == gold, seed, resamples)
    return {
        "brier": mean(brier(probs, gold), seed, resamples)._asdict(),
        "ece": error,
        "auroc": auroc(probs, gold)._asdict(),
        "top1_agreement": proportion(same, len(both))._asdict(),
        "kl_from_teacher": unbounded(apart, lambda means: means[..., 0], seed, resamples)._asdict(),
        "calibration": curve,
    }


def calibration(
    sure: Floats, right: npt.NDArray[np.bool_], seed: int, resamples: int
) -> tuple[dict[str, Any], list[dict[str, float | int | None]]]:
    """The expected calibration error, and the curve: per bin of about equally many rows how sure and how often right.

    Sure is the likeliest label's probability, and the bins are those of `reliability`, so that both mean the same by it. The
    error is never below 0, so even a calibrated arm has some: up to `by_chance` in 95 of 100 draws of answers as right as they
    are sure (Broecker & Smith 2007), and up to there the interval begins at 0. Else it is the basic bootstrap's, for resampled
    errors are too large by about as much as the error itself is.
    """
    n = len(sure)
    if n == 0:
        return UNDEFINED._asdict() | {"by_chance": float("nan")}, []
    bin_of = equal_mass(sure)
    rows, counts = np.unique(np.stack([bin_of, sure, right], axis=1), axis=0, return_counts=True)
    gaps = np.zeros((len(rows), int(bin_of.max()) + 1))
    gaps[np.arange(len(rows)), rows[:, 0].astype(int)] = rows[:, 2] - rows[:, 1]
    value = float(np.abs(counts @ gaps).sum() / n)
    draws = [np.abs(drawn @ gaps).sum(1) / n for drawn in resampled_counts(counts, n, seed, resamples)]
    by_chance = _by_chance(sure, bin_of, seed, resamples)
    found = percentiles(value, np.clip(2 * value - np.concatenate(draws), 0, 1), n)._asdict() | {"by_chance": by_chance}
    found["low"] = 0.0 if value <= by_chance else found["low"]
    curve: list[dict[str, float | int | None]] = []
    for place in np.unique(bin_of):
        here = bin_of == place
        share = proportion(int(right[here].sum()), int(here.sum()))
        curve.append(
            {
                "n": share.n,
                "from": float(sure[here].min()),
                "to": float(sure[here].max()),
                "confidence": float(sure[here].mean()),
                "accuracy": share.value,
                "low": share.low,
                "high": share.high,
            }
        )
    return found, curve


def _by_chance(sure: Floats, bin_of: Ints, seed: int, resamples: int) -> float:
    """The 95th percentile of the error of answers that are right exactly as often as they are sure to be."""
    n, rng = len(sure), np.random.default_rng(seed)
    resamples, chunk = min(resamples, max(1_000, EFFORT // n)), max(1, CELLS // n)
    places = np.eye(int(bin_of.max()) + 1)[bin_of]
    draws = [
        np.abs(((rng.random((min(chunk, resamples - start), n)) < sure) - sure) @ places).sum(1) / n
        for start in range(0, resamples, chunk)
    ]
    return float(np.quantile(np.concatenate(draws), 0.95))


def auroc(scores: Floats, gold: Ints) -> Interval:
    """The area under the ROC curve of each label (n, L) against all others, averaged over the labels that occur; equal scores
    count half. It is the chance that a row of the label is given more of it than one of another.

    The variance is DeLong's (1988) of the average; the interval Wilson's, with the trials that have this variance: no more
    than there are rows, and no fewer than in the worst case (Birnbaum & Klose 1957) rows of the rarer side are worth.
    """
    n, areas, worst = len(gold), [], 0.0
    influence = np.zeros(n)
    for label in np.unique(gold):
        own = gold == label
        positive, negative = int(own.sum()), int((~own).sum())
        if not negative:
            return UNDEFINED
        ranks = rankdata(scores[:, label])
        above = np.empty(n)  # a row of the label: the share of others below it; another: of the label's rows above it
        above[own] = (ranks[own] - rankdata(scores[own, label])) / negative
        above[~own] = 1 - (ranks[~own] - rankdata(scores[~own, label])) / positive
        area = above[own].mean()
        areas.append(area)
        influence += (above - area) / np.where(own, positive, negative)
        worst += min(positive, negative) / 2
    if not areas:
        return UNDEFINED
    value, variance = float(np.mean(areas)), float(((influence / len(areas)) ** 2).sum())
    trials = value * (1 - value) / variance if variance > 0 else 0.0
    low, high = wilson(value, min(max(trials, worst), n))
    return Interval(value, low, high, n)


def kl(teacher: Floats, student: Floats) -> float:
    """KL(teacher || student) in nats: what is lost by taking the student's distribution for the teacher's, 0 to 13.8."""
    at_least = np.maximum(student, FLOOR)
    here = teacher > 0
    found = float((teacher[here] * np.log(teacher[here] / at_least[here])).sum())
    return max(0.0, found)
