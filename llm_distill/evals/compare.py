"""The arms side by side on the same held-out rows: the numbers of report.json.

Every paired number speaks about the rows that all scored arms share (`paired_rows`) and is read from one joint
bootstrap over those rows. It is about one metric, `metric`: accuracy (classify) or token F1 (generate) unless another is
named; where no row has gold, agreement with the teacher, which leaves out the teacher's own arm. `low` and `high` are
percentiles, `bca` the bias-corrected and accelerated interval from the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from llm_distill.evals.examples import examples
from llm_distill.evals.gold import check_labels, check_slices
from llm_distill.evals.headline import headline
from llm_distill.evals.measures import Measure
from llm_distill.evals.metrics import (
    AGREEMENT,
    GOLD,
    PRIMARY,
    Kind,
    Scores,
    agreement_scores,
    arm_numbers,
    check_predictions,
    gold_scores,
)
from llm_distill.evals.pairs import Shared, student_pairs
from llm_distill.evals.probabilities import probability_numbers
from llm_distill.evals.reasons import undefined
from llm_distill.evals.slice_tests import places
from llm_distill.evals.statistics import (
    percentiles,
    ratio,
    resampled_means,
)
from llm_distill.records import Answer

ARMS = ("base_zero_shot", "base_few_shot", "student", "teacher")
PAIRS = ("base_few_shot", "base_zero_shot", "teacher")  # what the student is compared with
SHORT = {"base_few_shot": "few-shot", "base_zero_shot": "zero-shot"}


def compare(
    arms: Mapping[str, Sequence[Answer]],
    kind: Kind,
    labels: Sequence[str],
    *,
    seed: int,
    slices: Sequence[str] = (),
    resamples: int = 10_000,
    teachers: int = 1,
    metric: str | None = None,
    measures: Mapping[str, Measure] = MappingProxyType({}),
    rivals: Sequence[str] = (),
) -> dict[str, Any]:
    """All numbers of the comparison, ready for JSON; equal answers in any order give equal bytes.

    `teachers`: how many models the teacher's arm stands for. `metric`: the one that paired numbers are about, by default the
    task kind's own. `measures`: metrics by name beyond those, a score for each row that they can measure. `rivals`: arms that
    are students of other runs; each is compared with the student by itself, so that no number depends on how many there are.

    Keys: `headline`; `metric`, `teachers`, `paired_rows`, `without_gold` (rows); `arms` (see `arm_numbers` and
    `probability_numbers`; `undefined` says why a metric has no value); `paired` (see `paired`; `slices` with `p_holm`);
    `gap_closed` and `kept_share` (value, low, high, n, bca, or a `reason`); `examples_versus` and `examples`.

    UserError for a gold label the task does not have and for a slice that no row has. Undefined numbers are None.
    """
    order = (*ARMS[:-1], *rivals, ARMS[-1])
    present = {arm: sorted(arms[arm], key=lambda a: a.prompt.row_id) for arm in order if arm in arms}
    if strange := set(arms) - set(present):
        raise ValueError(f"unknown arms {sorted(strange)}; known: {order}")
    for arm, answers in present.items():
        if len({a.prompt.row_id for a in answers}) < len(answers):
            raise ValueError(f"{arm} has more than one answer for a row")
        check_slices([a.prompt for a in answers], slices)
        if kind == "classify":
            check_labels([a.prompt for a in answers], labels)
            check_predictions(answers, labels)
    scores: dict[str, dict[str, Scores]] = {}
    unmeasured: dict[str, dict[str, dict[str, int]]] = {}  # arm -> metric -> why -> rows
    for arm, answers in present.items():
        judge = present.get("teacher", ()) if arm != "teacher" else ()
        more = {name: of(answers) for name, of in measures.items()}
        unmeasured[arm] = {name: lost for name, (_, lost) in more.items() if lost}
        scores[arm] = gold_scores(answers, kind) | {name: of for name, (of, _) in more.items()}
        scores[arm][AGREEMENT] = agreement_scores(answers, judge, kind)
    _none_gains(scores, present, measures, {"student", *rivals})
    shared = share({arm: of for arm, of in scores.items() if arm in ARMS}, kind, seed, resamples, metric)
    base = stronger_base(shared)
    prompts = {a.prompt.row_id: a.prompt for a in present.get("student", ())}
    pairs = student_pairs(shared, PAIRS, places(shared.rows, prompts, slices) if prompts else {}, seed, resamples)
    for rival in rivals if prompts else ():
        two = share({arm: scores[arm] for arm in ("student", rival)}, kind, seed, resamples, shared.metric)
        pairs |= student_pairs(two, [rival], places(two.rows, prompts, slices), seed, resamples)
    measured: dict[str, dict[str, Any]] = {}
    teacher = present.get("teacher", [])
    for arm, answers in present.items():
        of = arm_numbers(answers, scores[arm], kind, labels, seed=seed, slices=slices, resamples=resamples)
        if kind == "classify":
            held_against = [] if arm == "teacher" else teacher
            of |= probability_numbers(answers, held_against, labels, seed=seed, resamples=resamples)
        for name, lost in unmeasured[arm].items():
            of[name]["unmeasured"] = lost
        why = undefined(of, is_teacher=arm == "teacher", taught=bool(teacher), gold=GOLD[kind])
        measured[arm] = of | {"undefined": why}
    versus = "teacher" if shared.has("teacher") else base
    numbers: dict[str, Any] = rounded(
        {
            "metric": shared.metric,
            "teachers": teachers,
            "paired_rows": len(shared.rows),
            "without_gold": without_gold(present, kind),
            "arms": measured,
            "paired": pairs,
            "gap_closed": gap_closed(shared, base),
            "kept_share": kept_share(shared),
        }
    )
    rows = {"examples_versus": versus, "examples": examples(present, shared, versus)}
    return {"headline": headline(numbers)} | numbers | rows


def _none_gains(
    scores: Mapping[str, dict[str, Scores]],
    arms: Mapping[str, Sequence[Answer]],
    metrics: Iterable[str],
    students: Container[str],
) -> None:
    """A row that a metric can measure of others is wrong where an arm failed on it, or it cannot be measured of a student."""
    for metric in metrics:
        anywhere = set().union(*(of[metric] for of in scores.values()))
        for arm, answers in arms.items():
            own = scores[arm][metric]
            missing = (a for a in answers if a.prompt.row_id in anywhere and a.prompt.row_id not in own)
            own |= {a.prompt.row_id: 0.0 for a in missing if arm in students or a.status == "failed"}


def without_gold(arms: Mapping[str, Sequence[Answer]], kind: Kind) -> int:
    """How many rows have no gold: nothing that needs it counts them."""
    rows = {a.prompt.row_id: getattr(a.prompt, GOLD[kind]) for answers in arms.values() for a in answers}
    return sum(gold is None for gold in rows.values())


def share(
    scores: Mapping[str, Mapping[str, Scores]], kind: Kind, seed: int, resamples: int, wanted: str | None = None
) -> Shared:
    """The shared rows, on the metric wanted (the kind's own) where any arm has it, else on agreement."""
    for metric in (wanted or PRIMARY[kind], AGREEMENT):
        scored = {arm: of[metric] for arm, of in scores.items() if of[metric]}
        rows = sorted(set.intersection(*(set(of) for of in scored.values()))) if scored else []
        if rows:
            table = np.array([[of[row] for of in scored.values()] for row in rows])
            means = resampled_means(table, seed, resamples)
            return Shared(
                metric,
                rows,
                {arm: table[:, i] for i, arm in enumerate(scored)},
                {arm: means[:, i] for i, arm in enumerate(scored)},
            )
        if scored:
            return Shared(metric, [], {}, {})
    return Shared(None, [], {}, {})


def stronger_base(shared: Shared) -> str | None:
    """The base arm that is harder to beat on the shared rows: few-shot, unless zero-shot scores higher."""
    bases = [arm for arm in ("base_few_shot", "base_zero_shot") if shared.has(arm)]
    return max(bases, key=lambda arm: float(shared.scores[arm].mean())) if bases else None


def gap_closed(shared: Shared, base: str | None) -> dict[str, Any]:
    """(student - base) / (teacher - base), only where the teacher's lead over that base is clearly positive."""
    nothing = {"value": None, "low": None, "high": None, "from": base, "n": len(shared.rows)}
    if base is None or not shared.has("student", "teacher"):
        return nothing | {"reason": "needs a student, a teacher and a base arm that share rows with gold"}
    value, draws = shared.scores, shared.means
    lead = float((value["teacher"] - value[base]).mean())
    leads = draws["teacher"] - draws[base]
    between = percentiles(lead, leads, len(shared.rows))
    if between.low <= 0:
        seen = f"{100 * lead:.1f} points, {100 * between.low:.1f} to {100 * between.high:.1f}"
        name = SHORT[base]
        below = f"the teacher itself is below that {name} base"
        found = below if between.high < 0 else f"no gap between the {name} base and the teacher can be seen"
        return nothing | {"reason": f"{found} ({seen})"}
    closed = float((value["student"] - value[base]).mean()) / lead
    interval = percentiles(closed, ratio(draws["student"] - draws[base], leads), len(shared.rows))
    accelerated = shared.bca(("student", base, "teacher"), closed, lambda s, b, t: ratio(s - b, t - b))
    return interval._asdict() | {"bca": accelerated, "from": base}


def kept_share(shared: Shared) -> dict[str, Any]:
    """The student's score as a share of its teacher's."""
    nothing = {"value": None, "low": None, "high": None, "n": len(shared.rows)}
    if not shared.has("student", "teacher"):
        return nothing | {"reason": "needs a student and a teacher that share rows with gold"}
    student, teacher = (float(shared.scores[arm].mean()) for arm in ("student", "teacher"))
    if teacher <= 0:
        return nothing | {"reason": "the teacher scores 0"}
    draws = ratio(shared.means["student"], shared.means["teacher"])
    kept = percentiles(student / teacher, draws, len(shared.rows))
    accelerated = shared.bca(("student", "teacher"), kept.value, ratio)
    return kept._asdict() | {"bca": accelerated, "student": student, "teacher": teacher}


def rounded(value: Any) -> Any:
    """The same structure with floats at six significant digits, and None for what is undefined or unbounded."""
    if isinstance(value, float):
        return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else None  # + 0.0: no negative zero
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value
