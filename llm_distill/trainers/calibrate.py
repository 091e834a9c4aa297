"""The teacher's calibration comes before a student learns how sure it is: measured, printed, mended, and told in training.json.

`auto` decides by what there is. Labelled rows (those of `calibrate_on`, else the training rows that have gold): the method with
the least cross-validated negative log-likelihood, or a simpler one within one standard error of it. Too few of them, and several
answers a row: a temperature fitted to how often the teacher repeats itself, which leaves its labels alone. Neither: nothing can
vouch for any, so none is used. Batch calibration takes labels to be about equally frequent, so it is never chosen unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.calibration_evidence import (
    LABEL_MORE,
    Calibrating,
    Evidence,
    Priors,
    evidence,
    label_probs,
    reordered,
)

if TYPE_CHECKING:
    from llm_distill.evals.calibration import Method, Reliability
    from llm_distill.evals.statistics import Floats


def calibrated(job: TrainingJob, how: Calibrating) -> TrainingJob:
    """The job with calibrated distributions in its samples, and what was found in `told`; the same where that was done, and
    where rows are only looked at, for which nobody is asked.

    Where taking a prior out, or averaging over orders, makes another label the likeliest, that label is learnt.
    """
    if job.only_lint or "calibration" in job.told:
        return job
    import numpy as np

    from llm_distill.evals import calibration as c

    assert job.task is not None
    labels = job.task.labels
    before = np.array([label_probs(s.answer) for s in job.samples])
    rows = [s.answer for s in job.samples if s.answer]
    if how.orders:
        rows = reordered(job, rows, how.orders)
    known_by, seed = evidence(job, rows, how), job.seed
    raw, known = np.array([label_probs(a) for a in rows]), np.array([label_probs(a) for a in known_by.answers])
    priors = Priors(job, rows, known_by.answers)
    method, why, tried = _choose(how, known_by, known, priors, seed)
    base = method.base(raw, priors.of(rows, method.prior))
    shown = method.base(known, priors.of(known_by.answers, method.prior)) if len(known) else known
    temperature = None
    if method.heated and known_by.gold is not None:
        temperature = c.fit_to_gold(shown, known_by.gold)
        shown = c.out_of_fold(shown, known_by.gold, heated=True, seed=seed)
    elif method.heated:
        assert known_by.right is not None
        temperature = c.fit_to_agreement(shown, known_by.right)
        shown = c.tempered(shown, temperature)
    final = base if temperature is None else c.tempered(base, temperature)
    moved = final.argmax(-1) != before.argmax(-1)
    samples = [
        msgspec.structs.replace(
            s,
            answer=msgspec.structs.replace(answer, label_probs=tuple(p.tolist())),
            completion=labels[int(p.argmax())] if other else s.completion,
        )
        for s, answer, p, other in zip(job.samples, rows, final, moved, strict=True)
    ]
    story = {
        "asked": how.calibration, "method": method.name, "why": why, "temperature": temperature,
        "priors": priors.told(method.prior, labels), "orders": how.orders, "rows": len(rows), "relabelled": int(moved.sum()),
        "confidence": {"before": float(before.max(-1).mean()), "after": float(final.max(-1).mean())},
        "by": known_by.by, "before": _measured(known, known_by), "after": _measured(shown, known_by),
        "hard": _hard(known_by, labels), "candidates": tried, "worth": _worth(shown, known, raw, known_by, labels, seed),
    }  # fmt: skip
    for line in said(story):
        job.say(line)
    return replace(job, samples=samples, told={**job.told, "calibration": story})


def _choose(
    how: Calibrating, known_by: Evidence, known: Floats, priors: Priors, seed: int
) -> tuple[Method, str, list[dict[str, Any]]]:
    """The method, why it was taken, and what others came to."""
    from llm_distill.evals import calibration as c

    by_name = {method.name: method for method in c.METHODS}
    if how.calibration != "auto":
        method = by_name[how.calibration]
        if method.heated and known_by.by is None:
            raise UserError(f"train.calibration: there is nothing to fit a temperature to; {LABEL_MORE}.")
        return method, "the recipe says so", []
    if known_by.by is None:
        return by_name["none"], f"nothing tells how right the teacher is: {LABEL_MORE}", []
    if known_by.gold is None:
        why = "too few rows have a label, so it is fitted to how often the teacher repeats its own"
        return by_name["temperature"], why, []
    losses, tried = {}, []
    for method in c.METHODS:
        if method.prior == "contextual" and not priors.contextual:
            continue
        base = method.base(known, priors.of(known_by.answers, method.prior))
        made = c.out_of_fold(base, known_by.gold, heated=method.heated, seed=seed)
        losses[method.name] = c.nll(made, known_by.gold)
        found = c.reliability(made, (made.argmax(-1) == known_by.gold).astype(float), known_by.gold)
        tried.append({"method": method.name, **_numbers(found)})
    best = c.simplest_good(losses)
    on = f"{c.FOLDS}-fold cross-validated on {len(known):,} labelled rows"
    why = f"the simplest within one standard error of the least loss, {on}"
    return by_name[best], why, tried


def _measured(probs: Floats, known_by: Evidence) -> dict[str, Any] | None:
    from llm_distill.evals import calibration as c

    if known_by.by is None:
        return None
    right = known_by.right
    if known_by.gold is not None:
        right = (probs.argmax(-1) == known_by.gold).astype(float)
    assert right is not None
    found = c.reliability(probs, right, known_by.gold)
    return {**_numbers(found), "bins": [list(one) for one in found.bins]}


def _numbers(found: Reliability) -> dict[str, Any]:
    return {name: number for name, number in asdict(found).items() if name != "bins"}


def _hard(known_by: Evidence, labels: Sequence[str]) -> dict[str, Any] | None:
    """What the teacher's labels alone, taken for certain, come to on the labelled rows."""
    from llm_distill.evals import calibration as c

    if known_by.gold is None:
        return None
    said_ = _certain(known_by, labels)
    return {
        "right": float((said_.argmax(-1) == known_by.gold).mean()),
        "brier": float(c.brier(said_, known_by.gold).mean()),
    }


def _certain(known_by: Evidence, labels: Sequence[str]) -> Floats:
    """(n, L): the label that the teacher said, with probability 1."""
    import numpy as np

    return np.array([[float(a.prediction == label) for label in labels] for a in known_by.answers])


def _worth(
    probs: Floats, known: Floats, raw: Floats, known_by: Evidence, labels: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """What calibrated distributions are worth beside labels, where gold tells, on rows as sure as those that are taught."""
    from llm_distill.evals.worth import worth

    if known_by.gold is None:
        return None
    hard = _certain(known_by, labels)
    return worth(probs, hard, known_by.gold, known.max(-1), raw.max(-1), seed).story()


def said(story: Mapping[str, Any]) -> list[str]:
    """What is printed of a calibration before training."""
    before, after, method = story["before"], story["after"], story["method"]
    heat = "" if story["temperature"] is None else f", T = {story['temperature']:.2f}"
    lines = [f"Calibration: {method}{heat}: {story['why']}."]
    if before is None:
        sure = story["confidence"]["before"]
        return [*lines, f"  The teacher is {sure:.1%} sure of {story['rows']:,} rows; how right it is, nobody knows."]
    of = "labelled rows it is right on" if story["by"] == "gold" else "rows another of its answers repeats"
    for name, one in (("as it is", before), ("calibrated", after)):
        brier = "" if one["brier"] is None else f", Brier {one['brier']:.3f}"
        lines.append(
            f"  The teacher {name}: {one['confidence']:.1%} sure; of {one['rows']:,} {of} {one['right']:.1%}; ECE "
            f"{one['ece']:.3f}{brier}."
        )
    if story["hard"]:
        lines.append(f"  Its labels alone: {story['hard']['right']:.1%} right, Brier {story['hard']['brier']:.3f}.")
    if (found := story["worth"]) and found["gain"] is not None:
        lines.append(
            f"  On labelled rows as sure as those that are taught, Brier is better than that of labels alone by "
            f"{found['gain']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})."
        )
    if story["relabelled"]:
        lines.append(f"  {story['relabelled']:,} of {story['rows']:,} rows have another label so.")
    return lines
