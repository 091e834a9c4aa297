"""Distillation on what was stored of the teacher's distributions.

A classify row teaches the teacher's distribution over the labels (Hinton et al.'s soft targets). Any other row teaches that over
the tokens of its text: by token id where teacher and student share a vocabulary, else by bytes (see `placing`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels
from llm_distill.logprob_table import LOGPROBS, token_bytes
from llm_distill.records import Sample
from llm_distill.trainers import WITHOUT_LOGPROBS, TrainingJob, processes
from llm_distill.trainers.calibrate import calibrated
from llm_distill.trainers.calibration_evidence import Calibrating
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.hyper import Count, Hyperparameters
from llm_distill.trainers.rows import Row, lead, render
from llm_distill.trainers.soft_targets import SoftTargets
from llm_distill.trainers.sparse_kd import Divergence

if TYPE_CHECKING:
    import numpy as np

    from llm_distill.trainers.alignment import Alignment
    from llm_distill.trainers.targets import Targets


@dataclass(frozen=True)
class _Taught:
    """Rows with what the teacher showed of them. sure: (rows,), how sure it was of each; story: for training.json; samples: what
    the rows were made of.
    """

    rows: Sequence[Row]
    targets: Sequence[Targets]
    sure: Sequence[float]
    story: dict[str, Any]
    samples: Sequence[Sample]


def logit_kd(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    calibrating: Calibrating = Calibrating(),
    # The part of the loss that is the distance to the teacher's distribution; the rest is cross-entropy with its text.
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    # Of the loss alone, not of sampling. Above 1 it stresses what is unlikely, of which k logprobs show little.
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    # Top-k reverse KL collapses (verl PR 5041), so it is not on offer; jsd has as much of it as is safe.
    divergence: Divergence = "forward_kl",
    # Of jsd: the weight of KL(teacher || mixture).
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    # Of sampled: draws from the teacher at a position.
    draws: Count = 50,
    # null: all that was stored.
    top_k: Count | None = None,
    # What the teacher was sure of counts more: each position by its largest probability, or a row by its likeliest label.
    weight_by: Literal["none", "token", "row"] = "none",
    # The label that cross-entropy is taken with: of gold where a row has one.
    hard_labels: Literal["teacher", "gold"] = "teacher",
    # Of tokens: a position of which more of the teacher's mass than this has no place among the student's tokens has no target.
    most_undefined: Annotated[float, Field(ge=0, le=1)] = 0.1,
    # As with sft.
    packing: bool = False,
) -> None:
    """Train on the samples' completions and on the teacher's stored distributions; write the adapter into `job.out`."""
    labelled = job.task is not None and job.task.kind == "classify"
    if labelled:
        check_label_probs(job.samples)
        job = calibrated(job, calibrating)  # it may ask the teachers, so before the student is loaded
    with stoppable():
        desk = Desk(job, hyper)
        if labelled:
            taught = _labels(desk, [label_probs(sample) for sample in job.samples], hard_labels)
        else:
            taught = _tokens(desk, most_undefined)
        targets = taught.targets if top_k is None else [target.top(top_k) for target in taught.targets]
        settings = {
            "alpha": alpha, "temperature": temperature, "divergence": divergence, "beta": beta, "draws": draws,
            "top_k": top_k, "weight_by": weight_by, "hard_labels": hard_labels,
            "most_undefined": most_undefined, "packing": packing,
        }  # fmt: skip
        weights = (
            None if weight_by == "none" else position_weights(targets, taught.sure if weight_by == "row" else None)
        )
        objective = SoftTargets(targets, weights, alpha, temperature, divergence, beta, draws)
        story = {"targets": taught.story}
        train(desk, Lesson(taught.rows, objective, settings, story, packing, samples=taught.samples))


def label_probs(sample: Sample) -> tuple[float, ...]:
    """The distribution over the task's labels that a sample teaches, what is missing to 1 being answers that are no label."""
    assert sample.answer is not None
    assert sample.answer.label_probs is not None
    return sample.answer.label_probs


def check_label_probs(samples: Sequence[Sample]) -> None:
    """UserError where a row has no distribution over labels."""
    without = [s.row_id for s in samples if s.answer is None or s.answer.label_probs is None]
    if without:
        raise UserError(
            f"train.logit_kd: {len(without)} of {len(samples)} rows have no distribution over labels (first: row "
            f"{without[0]}), for the teacher gave no logprobs; {WITHOUT_LOGPROBS}"
        )


def _labels(desk: Desk, taught: Sequence[Sequence[float]], hard_labels: str) -> _Taught:
    """`taught`: (rows, labels), the distribution over labels that each row teaches."""
    from llm_distill.trainers.label_targets import by_labels

    job = desk.job
    assert job.task is not None
    labels = job.task.labels
    said = [desk.rows(samples=[msgspec.structs.replace(s, completion=label) for s in job.samples]) for label in labels]
    gold = hard_labels == "gold"
    if gold:
        check_labels([s.answer.prompt for s in job.samples if s.answer], labels)
    learnt = [labels.index(s.gold if gold and s.gold is not None else s.completion) for s in job.samples]
    targets = [
        by_labels([rows[i].input_ids[rows[i].prompt_tokens :] for rows in said], probabilities, place)
        for i, (probabilities, place) in enumerate(zip(taught, learnt, strict=True))
    ]
    sure = [max(probabilities) for probabilities in taught]
    mean = math.fsum(sure) / len(sure)
    job.say(f"Soft labels of {len(sure):,} rows, which give the likeliest label {mean:.1%} on average.")
    rows = [said[place][i] for i, place in enumerate(learnt)]
    samples = [
        msgspec.structs.replace(s, completion=labels[place]) for s, place in zip(job.samples, learnt, strict=True)
    ]
    return _Taught(rows, targets, sure, {"kind": "labels", "mean_confidence": mean}, samples)


def _tokens(desk: Desk, most_undefined: float) -> _Taught:
    from llm_distill.trainers.alignment import RECORD

    job = desk.job
    rows, targets, alignment = aligned(desk, most_undefined)
    job.say(str(alignment))
    if not alignment.defined:
        raise UserError(f"train.logit_kd: none of the teacher's logprobs could be used (see above); {WITHOUT_LOGPROBS}")
    if processes.first():
        alignment.write(job.out / RECORD)
    sure = [float(target.confidence[target.defined].mean()) if target.defined.any() else math.nan for target in targets]
    return _Taught(rows, targets, sure, {"kind": "tokens", **alignment.story()}, job.samples)


def aligned(desk: Desk, most_undefined: float = 0.1) -> tuple[list[Row], list[Targets], Alignment]:
    """The samples as token rows, what the teacher's logprobs say of each, and how much that is; UserError without any."""
    from llm_distill.trainers.alignment import teach, vocabularies_of
    from llm_distill.trainers.heard import hear
    from llm_distill.trainers.student_tokens import StudentTokens, same_vocabulary

    job = desk.job
    path = job.answers / LOGPROBS if job.answers else None
    if path is None or not path.exists():
        raise UserError(f"train.logit_kd: the teacher's answers came without logprobs; {WITHOUT_LOGPROBS}")
    stop = job.sampling.stop if job.sampling else ()
    known, ahead = vocabularies_of(job.models, token_bytes(path)), b""
    if job.samples:
        ahead = lead(desk.tokenizer, render(desk.tokenizer, job.samples[0].messages)).encode()
    student = StudentTokens(desk.tokenizer, ahead)
    shared = [name for name, vocabulary in known.items() if same_vocabulary(vocabulary, student.vocabulary).same]
    heard = hear(path, job.samples, stop, known)
    rows = desk.rows(heard.sampled(student, shared))
    return rows, *teach(rows, heard, student, stop, shared, most_undefined=most_undefined)


def position_weights(targets: Sequence[Targets], sure: Sequence[float] | None) -> list[np.ndarray]:
    """(n,) weights of each row's positions, one on average over all: how sure the teacher was of the row, or (None) of each
    position. What nothing is known of counts as one.
    """
    import numpy as np

    if sure is None:
        found = [target.confidence for target in targets]
    else:
        found = [np.full(len(target.ids), own, np.float32) for target, own in zip(targets, sure, strict=True)]
    whole = np.concatenate(found)
    mean = np.nanmean(whole) if not np.isnan(whole).all() else 0.0
    return [np.nan_to_num(own / mean, nan=1.0) if mean > 0 else np.ones_like(own) for own in found]
