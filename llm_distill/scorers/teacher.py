"""Scorers that read how sure the teacher was, how far several answers agree, and whether an answer is one of the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_distill.records import Answer
from llm_distill.scorers import Context


def confidence(answers: Sequence[Answer], context: Context) -> list[float]:
    """classify: the probability the teacher gave to the label it chose; generate: the mean token probability.

    NaN where the model gave no logprobs for the row.
    """
    scores = []
    for a in answers:
        if context.task.kind == "classify":
            known = a.label_probs is not None and a.prediction is not None
            scores.append(a.label_probs[context.task.labels.index(a.prediction)] if known else math.nan)  # type: ignore[index,arg-type]
        else:
            scores.append(math.nan if a.mean_logprob is None else math.exp(a.mean_logprob))
    return scores


def agreement(answers: Sequence[Answer]) -> list[float]:
    """How far a row's several answers agree: the share that states the row's label (classify), or the mean token F1 of
    the chosen answer with the others (generate). Over samples this is self-consistency (Wang et al. 2022).

    NaN where the row was asked once.
    """
    return [math.nan if a.agreement is None else a.agreement for a in answers]


def unparsed(answers: Sequence[Answer]) -> list[float]:
    """1 where the answer states none of the task's labels."""
    return [float(a.prediction is None) for a in answers]


def mean_logprob(answers: Sequence[Answer]) -> list[float]:
    """The mean log-probability of the answer's tokens, in nats; NaN where the model gave no logprobs for the row."""
    return [math.nan if a.mean_logprob is None else a.mean_logprob for a in answers]


def label_margin(answers: Sequence[Answer]) -> list[float]:
    """How far the likeliest label is ahead of the second, as a difference of probabilities: 0 is undecided.

    NaN where the model gave no logprobs for the row. Over several answers it is that of their mean distribution.
    """
    margins = []
    for a in answers:
        first, second = sorted(a.label_probs, reverse=True)[:2] if a.label_probs is not None else (math.nan, 0.0)
        margins.append(first - second)
    return margins


def label_entropy(answers: Sequence[Answer]) -> list[float]:
    """How undecided the teacher was among the labels and "anything else", in nats: 0 is certain, log(labels + 1) the most.

    What the labels' probabilities leave to 1 went to answers that are no label, and is one more outcome; the probabilities
    are those read off the alternatives, so mass beyond them counts there too. NaN without logprobs.
    """
    return [math.nan if a.label_probs is None else _entropy(a.label_probs) for a in answers]


def _entropy(probs: Sequence[float]) -> float:
    total = math.fsum(probs)
    scale = max(1.0, total)  # rounding may take a sum of probabilities past 1
    outcomes = [*(p / scale for p in probs), max(0.0, 1.0 - total)]
    return max(0.0, -math.fsum(p * math.log(p) for p in outcomes if p > 0))
