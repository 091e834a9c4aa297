"""Metrics that a recipe names for texts: `evaluate.metrics: [chrf, {embedding: {model: wordllama}}, numeric]`.

A metric is a scorer averaged: `(answers[, schema], *, knobs)` gives each answer a number in [0, 1], NaN where it cannot be
measured, so that arms can be compared row by row on any of them. `schema` is the recipe's `answers.schema`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from llm_distill.errors import UserError, did_you_mean
from llm_distill.plugs import Plug, Reading, Spec, bind
from llm_distill.records import Answer, Prompt
from llm_distill.scorers import Scored

#: Name in a recipe -> where its function is.
METRICS = {
    "chrf": "llm_distill.evals.texts:chrf",
    "code": "llm_distill.scorers.code:code",
    "embedding": "llm_distill.evals.texts:embedding",
    "instructions": "llm_distill.scorers.instructions:instructions",
    "json_equal": "llm_distill.scorers.verifiers:json_equal",
    "json_fields": "llm_distill.evals.fields:json_fields",
    "math": "llm_distill.scorers.verifiers:math",
    "numeric": "llm_distill.scorers.verifiers:numeric",
    "rouge_l": "llm_distill.evals.texts:rouge_l",
    "schema_valid": "llm_distill.evals.fields:schema_valid",
}
#: What each task kind has without being named.
OWN = {
    "classify": ("accuracy", "agreement_with_teacher"),
    "generate": ("token_f1", "exact_match", "agreement_with_teacher"),
}

_AT_ONCE = 50  # rows that are tried: mostly one of the first will do
#: row_id -> score, and why others have none -> how many.
Measured = tuple[dict[str, float], dict[str, int]]
Measure = Callable[[Sequence[Answer]], Measured]


def bind_metrics(
    named: Sequence[Any], first: str | None, kind: str, schema: str | None, reading: Reading, others: Sequence[str] = ()
) -> list[Plug]:
    """The metrics of a recipe, checked; `first` is its `evaluate.metric`, None for the kind's own; it may be one of `others`."""
    if named and kind == "classify":
        raise UserError(
            "evaluate.metrics: they measure texts, and the task is classify, which has all of its own; remove it."
        )
    plugs = [bind("metric", Spec.read(of, f"evaluate.metrics[{i}]"), METRICS, reading) for i, of in enumerate(named)]
    names = [plug.spec.name for plug in plugs]
    for plug in plugs:
        where, name = plug.spec.where, plug.spec.name
        if names.count(name) > 1 or name in OWN[kind]:
            raise UserError(f"{where}: {name} is there already; a metric is named once.")
        if plug.roles:
            raise UserError(
                f"{where}: {name} asks models.{plug.roles[0]}, which only a filter can; name another metric."
            )
        if name == "schema_valid" and schema is None:
            raise UserError(f"{where}: there is no schema to fit; add `schema:` to answers, or remove {name}.")
    allowed = [*OWN[kind], *names, *others]
    if first is not None and first not in allowed:
        raise UserError(
            f"evaluate.metric: no metric {first!r} here.{did_you_mean(first, allowed)} Others come from evaluate.metrics."
        )
    return plugs


def measures(plugs: Sequence[Plug], schema: str | None) -> Mapping[str, Measure]:
    """Each metric by its name, as `compare` takes them."""
    return {plug.spec.name: partial(measure, plug, schema=schema) for plug in plugs}


def measure(plug: Plug, answers: Sequence[Answer], *, schema: str | None) -> Measured:
    """A metric on an arm's answers; a failed row is measured as an empty one and scores 0, so that no arm gains by failing.

    UserError for numbers outside [0, 1], or another number of them than answers.
    """
    blank = [msgspec.structs.replace(a, text="") if a.status == "failed" else a for a in answers]
    found = plug(blank, schema) if blank else []
    said = found if isinstance(found, Scored) else Scored(found)
    scores = [float(score) for score in said.values]
    if len(scores) != len(answers):
        raise UserError(f"{plug.spec.where}: it gave {len(scores)} scores for {len(answers)} answers; one each is due.")
    if strange := [score for score in scores if not (math.isnan(score) or 0 <= score <= 1)]:
        raise UserError(f"{plug.spec.where}: it gave {strange[0]:g}; a metric gives numbers from 0 to 1.")
    known = {
        a.prompt.row_id: 0.0 if a.status == "failed" else score
        for a, score in zip(answers, scores, strict=True)
        if not math.isnan(score)
    }
    reasons = said.why or [None] * len(scores)
    lost = Counter(why or "not measured" for why, score in zip(reasons, scores, strict=True) if math.isnan(score))
    return known, dict(sorted(lost.items(), key=lambda of: (-of[1], of[0])))


def unmeasured(of: Measure, rows: Sequence[Prompt]) -> str | None:
    """Why a metric can measure no row, where that is so: not even the row's own reference, were it answered."""
    why = None
    for start in range(0, len(rows), _AT_ONCE):
        known, lost = of([Answer(row, row.reference or "", "ok") for row in rows[start : start + _AT_ONCE]])
        if known:
            return None
        why = why or next(iter(lost), None)
    return why
