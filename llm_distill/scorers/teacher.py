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
