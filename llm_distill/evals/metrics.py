"""What one arm's answers are worth: a score per row, then the arm's numbers.

The rules, the same for every arm:
- A failed row is unparsed and scores 0. An unparsed answer is a wrong answer. Nothing else follows from a status.
- Rows without gold (`label` for classify, `reference` for generate) are scored on agreement with the teacher only.
- Agreement is counted on rows that the teacher answered; it is undefined for the teacher itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from llm_distill.evals.statistics import (
    UNDEFINED,
    Floats,
    Interval,
    Ints,
    mean,
    percentiles,
    proportion,
    ratio,
    resampled_counts,
    unbounded,
)
from llm_distill.evals.tokens import length, normalised, token_f1
from llm_distill.records import Answer, Status

Kind = Literal["classify", "generate"]
Scores = dict[str, float]  # row_id -> score in [0, 1]

PRIMARY: dict[Kind, str] = {"classify": "accuracy", "generate": "token_f1"}
GOLD: dict[Kind, str] = {"classify": "label", "generate": "reference"}  # of a prompt: what an answer is held against
RIGHT_OR_WRONG = {
    "accuracy",
    "exact_match",
    "code",
    "instructions",
    "json_equal",
    "math",
    "numeric",
    "schema_valid",
}  # scores of 0 and 1
AGREEMENT = "agreement_with_teacher"
WIDEST = 100  # labels of a confusion matrix that is written out whole; of more, its cells with rows in them
NO_TAG = "(none)"  # the slice of the rows that lack the tag


def prediction(answer: Answer) -> str | None:
    """The label answered, None where there is none."""
    return None if answer.status == "failed" else answer.prediction


def unanswered(answer: Answer, kind: Kind) -> bool:
    """Whether there is nothing to score: no label (classify), no text (generate)."""
    return prediction(answer) is None if kind == "classify" else answer.status == "failed" or not answer.text.strip()


def check_predictions(answers: Sequence[Answer], labels: Sequence[str]) -> None:
    """ValueError, for it is ours, for a prediction that is no label."""
    for answer in answers:
        if answer.prediction is not None and answer.prediction not in labels:
            raise ValueError(f"row {answer.prompt.row_id}: prediction {answer.prediction!r} is no label of the task")


def gold_scores(answers: Sequence[Answer], kind: Kind) -> dict[str, Scores]:
    """Per metric, the score of every row that has gold."""
    if kind == "classify":
        gold = [a for a in answers if a.prompt.label is not None]
        return {"accuracy": {a.prompt.row_id: float(prediction(a) == a.prompt.label) for a in gold}}
    exact: Scores = {}
    overlap: Scores = {}
    for a in answers:
        if a.prompt.reference is not None:
            answered = a.status != "failed"
            exact[a.prompt.row_id] = float(answered and normalised(a.text) == normalised(a.prompt.reference))
            overlap[a.prompt.row_id] = token_f1(a.text, a.prompt.reference) if answered else 0.0
    return {"exact_match": exact, "token_f1": overlap}


def agreement_scores(answers: Sequence[Answer], teacher: Sequence[Answer], kind: Kind) -> Scores:
    """Per row that the teacher answered: same label (classify), or token F1 against the teacher's text (generate)."""
    if kind == "classify":
        said = {a.prompt.row_id: label for a in teacher if (label := prediction(a)) is not None}
        both = [(a.prompt.row_id, prediction(a)) for a in answers if a.prompt.row_id in said]
        return {row: float(label == said[row]) for row, label in both}
    wrote = {a.prompt.row_id: a.text for a in teacher if not unanswered(a, kind)}
    return {
        a.prompt.row_id: token_f1(a.text, wrote[a.prompt.row_id]) if a.status != "failed" else 0.0
        for a in answers
        if a.prompt.row_id in wrote
    }


def confusion(answers: Sequence[Answer], labels: Sequence[str]) -> Ints:
    """Counts (L, L + 1): gold by predicted, the last column unparsed; rows with gold only."""
    column: dict[str | None, int] = {label: i for i, label in enumerate(labels)} | {None: len(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for answer in answers:
        if answer.prompt.label is not None:
            counts[column[answer.prompt.label], column[prediction(answer)]] += 1
    return counts


def mean_f1(right: Floats, gold: Floats, predicted: Floats) -> Floats:
    """Macro-F1 (...,) from per-label counts (..., L): the mean over the labels that occur in gold or in predictions.

    That is scikit-learn's `f1_score(average="macro")` with its default `labels` and zero_division=0, where unparsed is
    not averaged as if it were a label. A label that never occurs says nothing; a 0 for it would punish small sets.
    """
    size = gold + predicted
    each = np.nan_to_num(ratio(2 * right, size))
    occurring = (size > 0).sum(-1)
    return ratio(each.sum(-1), occurring)


def mean_recall(right: Floats, gold: Floats, _predicted: Floats) -> Floats:
    """Balanced accuracy (...,) from per-label counts (..., L): the mean recall of the labels that occur in gold."""
    return ratio(np.nan_to_num(ratio(right, gold)).sum(-1), (gold > 0).sum(-1))


def macro_f1(counts: Ints, seed: int, resamples: int) -> Interval:
    """Macro-F1 of a confusion matrix (L, L + 1) with its bootstrap interval."""
    return _of_counts(mean_f1, counts, seed, resamples)


def balanced_accuracy(counts: Ints, seed: int, resamples: int) -> Interval:
    """Balanced accuracy of a confusion matrix (L, L + 1) with its bootstrap interval; an unparsed answer is a wrong one."""
    return _of_counts(mean_recall, counts, seed, resamples)


def _of_counts(of: Callable[[Floats, Floats, Floats], Floats], counts: Ints, seed: int, resamples: int) -> Interval:
    """A function of per-label counts (right, gold, predicted), with its interval.

    The imagined rows, as everywhere: one answered right and one unparsed, spread over the gold labels that occur.
    """
    n, size = int(counts.sum()), len(counts)
    if n == 0:
        return UNDEFINED
    value = of(counts.diagonal().astype(float), counts.sum(1).astype(float), counts[:, :size].sum(0).astype(float))
    occurring = np.flatnonzero(counts.sum(1))
    weights = counts * len(occurring)
    weights[occurring, occurring] += 1
    weights[occurring, size] += 1
    gold, predicted = np.nonzero(weights)
    diagonal = np.flatnonzero(gold == predicted)
    draws = [
        of(
            _sums(drawn[:, diagonal], gold[diagonal], size),
            _sums(drawn, gold, size),
            _sums(drawn, predicted, size + 1)[:, :size],
        )
        for drawn in resampled_counts(weights[gold, predicted], n, seed, resamples)
    ]
    return percentiles(float(value), np.concatenate(draws), n)


def _sums(drawn: Floats, groups: Ints, size: int) -> Floats:
    """Columns (chunk, cells) summed by group into (chunk, size)."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    out = np.zeros((len(drawn), size))
    out[:, present] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return out


def _written(counts: Ints) -> dict[str, list[list[int]]]:
    """A confusion matrix as report.json has it: `counts`, or `cells` (row, column, n), of which there are no more than rows."""
    if len(counts) <= WIDEST:
        return {"counts": counts.tolist()}
    gold, predicted = np.nonzero(counts)
    return {"cells": np.column_stack([gold, predicted, counts[gold, predicted]]).tolist()}


def per_class(counts: Ints, labels: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Precision, recall, F1 and support of each label; None where a share has nothing to be a share of."""

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    found: dict[str, dict[str, float | int | None]] = {}
    for i, label in enumerate(labels):
        right, gold, predicted = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
        found[label] = {
            "precision": share(right, predicted),
            "recall": share(right, gold),
            "f1": share(2 * right, gold + predicted),
            "support": gold,
        }
    return found


def arm_numbers(
    answers: Sequence[Answer],
    scores: Mapping[str, Scores],
    kind: Kind,
    labels: Sequence[str],
    *,
    seed: int,
    slices: Sequence[str],
    resamples: int,
) -> dict[str, Any]:
    """Everything that can be said of one arm alone; `scores` per metric, agreement among them.

    Each metric is {value, low, high, n}. classify: accuracy, macro_f1, balanced_accuracy, per_class, confusion. generate:
    exact_match, token_f1, length_ratio (words of the answers by those of their references), and what the recipe names. Both:
    agreement_with_teacher, unparsed_rate, time, tokens, `status` (rows) and `slices`.
    """

    def measured(metric: str, scores: Scores) -> dict[str, Any]:
        values = np.array(list(scores.values()))
        if metric in RIGHT_OR_WRONG or (metric == AGREEMENT and kind == "classify"):
            return proportion(int(values.sum()), len(values))._asdict()
        return mean(values, seed, resamples)._asdict()

    unparsed = [unanswered(a, kind) for a in answers]
    numbers: dict[str, Any] = {"n": len(answers)}
    numbers |= {metric: measured(metric, rows) for metric, rows in scores.items()}
    numbers["unparsed_rate"] = proportion(sum(unparsed), len(unparsed))._asdict()
    if kind == "classify":
        counts = confusion(answers, labels)
        numbers["macro_f1"] = macro_f1(counts, seed, resamples)._asdict()
        numbers["balanced_accuracy"] = balanced_accuracy(counts, seed, resamples)._asdict()
        numbers["per_class"] = per_class(counts, labels)
        numbers["confusion"] = {"rows": list(labels), "columns": [*labels, "unparsed"], **_written(counts)}
    else:
        words = [
            [length(a.text), length(a.prompt.reference)]
            for a in answers
            if a.prompt.reference is not None and a.status != "failed"
        ]
        lengths = np.array(words, dtype=np.float64).reshape(len(words), 2)
        of_words = unbounded(lengths, lambda means: ratio(means[..., 0], means[..., 1]), seed, resamples)
        numbers["length_ratio"] = of_words._asdict()
    seconds = np.sort([a.seconds for a in answers if a.status != "failed"])
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) if len(seconds) else (None, None)
    numbers["seconds_per_answer"] = {"value": _mean(seconds.tolist()), "p50": p50, "p95": p95}
    numbers["prompt_tokens_per_answer"] = {"value": _mean([a.prompt_tokens for a in answers])}
    numbers["completion_tokens_per_answer"] = {"value": _mean([a.completion_tokens for a in answers])}
    statuses = Counter(a.status for a in answers)
    numbers["status"] = {status: statuses[status] for status in get_args(Status) if statuses[status]}
    sliced = {m: of for m, of in scores.items() if of and m != AGREEMENT} or {AGREEMENT: scores[AGREEMENT]}
    numbers["slices"] = {
        tag: {
            value: {"n": len(rows)}
            | {m: measured(m, {row: of[row] for row in rows if row in of}) for m, of in sliced.items()}
            for value, rows in _by_tag(answers, tag).items()
        }
        for tag in slices
    }
    return numbers


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known, None where nothing is."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _by_tag(answers: Sequence[Answer], tag: str) -> Mapping[str, list[str]]:
    """Row ids by the value of one tag, values sorted."""
    found: dict[str, list[str]] = {}
    for answer in answers:
        found.setdefault(answer.prompt.tags.get(tag, NO_TAG), []).append(answer.prompt.row_id)
    return dict(sorted(found.items()))
