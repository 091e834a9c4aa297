"""`train: auto`: the highest rung of the ladder, from text to logits, that the run's signal allows and its calibration supports.

    gkd        the student's own answers against a local teacher of its vocabulary: needs its weights, a GPU to answer on, and
               a teacher that is asked in the student's words
    logit_kd   the teacher's stored distributions: over labels where labelled rows show them to be better targets than its
               labels, over tokens where they can be placed among the student's
    sft        the teacher's words

Why a rung was taken or passed over is printed, and kept in training.json. A rung that a recipe names is taken, or is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.trainers import TRAINERS, WITHOUT_LOGPROBS, TrainingJob
from llm_distill.trainers.calibrate import calibrated
from llm_distill.trainers.calibration_evidence import LABELLED, Calibrating
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import answer_tokens, longest_prompt
from llm_distill.trainers.on_policy_checks import suited

#: Soft labels are learnt where confidence and what is right are no further apart, and where they differ from hard ones by more.
GAP = 0.05
#: Tokens of a teacher with another vocabulary are learnt where so much of what is trained has a target: digits that split in
#: other places cost more than distributions bring (arXiv 2605.21699).
ALIGNED = 0.9


@dataclass(frozen=True)
class Rung:
    """A trainer, whether it was taken, and why; `job` is what it is to learn."""

    name: str
    taken: bool
    why: str
    job: TrainingJob


def auto(job: TrainingJob, *, hyper: Hyperparameters, calibrating: Calibrating = Calibrating()) -> None:
    """Train on the highest rung that is open, and write the adapter into `job.out`."""
    rungs = []
    for rung in _ladder(job, hyper, calibrating):
        rungs.append(rung)
        if rung.taken:
            break
    *passed, chosen = rungs
    job.say(f"train: auto takes {chosen.name}: {chosen.why}.")
    for rung in passed:
        job.say(f"  not {rung.name}: {rung.why}.")
    told = {**chosen.job.told, "rungs": [{"name": r.name, "taken": r.taken, "why": r.why} for r in rungs]}
    reading = Reading(folder=Path(), files=set(), roles=sorted(job.models))
    knobs = asdict(hyper) | ({"teacher": job.teachers[0]} if chosen.name == "gkd" else {})
    trainer = bind("trainer", Spec(chosen.name, knobs, f"train.{chosen.name}"), TRAINERS, reading)
    trainer(replace(chosen.job, told=told))


def _ladder(job: TrainingJob, hyper: Hyperparameters, calibrating: Calibrating) -> Iterator[Rung]:
    """From the highest on; what is below one that is taken is not looked at."""
    aside = "it sets no rows aside, as `validation_share` asks for" if hyper.validation_share else None
    closed = aside or _closed_on_policy(job, hyper)
    yield Rung(
        "gkd", closed is None, closed or "the teacher's weights are here, with the student's vocabulary and a GPU", job
    )
    learnt = job
    if job.task is not None and job.task.kind == "classify":
        bare = sum(s.answer is None or s.answer.label_probs is None for s in job.samples)
        if bare:
            rows = f"{bare:,} of {len(job.samples):,} rows have no distribution over labels"
            yield Rung("logit_kd", False, f"{rows}; to have them, {WITHOUT_LOGPROBS}", job)
        else:
            learnt = calibrated(job, calibrating)
            good, why = True, "calibration may ask, and rows that are only looked at are looked at as they are"
            if not job.only_lint:
                good, why = supported(learnt.told["calibration"])
            yield Rung("logit_kd", good, why, learnt)
    else:
        good, why = _tokens(job, hyper)
        yield Rung("logit_kd", good, why, job)
    # The labels are the teacher's own: what a calibration would have made of them was not good enough.
    yield Rung("sft", True, "the teacher's words can always be learnt", replace(job, told=learnt.told))


def supported(found: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether calibrated soft labels are shown to teach better than hard ones, from the story of a calibration.

    Hard labels are what is learnt unless there is evidence against them, for soft ones cost a student dearly where they are
    wrong. Both of these must hold, on labelled rows that are as sure as those that are taught, each calibrated by what the others
    say:
    1. The distributions are better targets: their Brier score is better than that of the teacher's labels, by a paired
       interval of 95 % without 0; no fewer labels are right; and confidence is within GAP of how often they are.
    2. They differ from labels by more than they may be wrong: off the likeliest label lies more than GAP of the mass of the
       rows that are taught. With less, what is learnt there is within what calibration leaves open.
    How often a teacher repeats itself tells nothing of whether it is right, so without labelled rows there is no evidence.
    """
    by, worth = found["by"], found["worth"]
    if by != "gold":
        told = "its repetitions tell how steady it is, not how right" if by else "nothing tells how right it is"
        return False, f"soft labels are taken on evidence that they are better, and {told}; {LABELLED}"
    if worth["gain"] is None:
        return False, (
            f"too few of the labelled rows are as sure as those that are taught ({worth['rows']:,}, of which count "
            f"{worth['effective']:.0f}, for {worth['covered']:.0%} of the taught); {LABELLED}"
        )
    shown = (
        f"calibrated ({found['method']}), it is {worth['confidence']:.1%} sure and right on {worth['right']:.1%} of "
        f"{worth['rows']:,} labelled rows as sure as those that are taught"
    )
    if abs(worth["confidence"] - worth["right"]) > GAP:
        return False, f"{shown}, more than {GAP:.0%} apart: set `calibration: auto`, or give it more labelled rows"
    gain = f"{worth['gain']:+.4f} ({worth['low']:+.4f} to {worth['high']:+.4f})"
    if worth["low"] <= 0 or worth["right"] < worth["hard_right"]:
        return False, (
            f"{shown}, as its labels alone are on {worth['hard_right']:.1%}; the Brier score is better than theirs by {gain}: no "
            "gain is shown"
        )
    off = 1 - found["confidence"]["after"]
    if off <= GAP:
        return False, (
            f"of the rows that are taught {off:.1%} of the mass is off the likeliest label, no more than the {GAP:.0%} that "
            f"confidence may be wrong by: soft labels would teach next to what hard ones do (Brier better by {gain})"
        )
    return (
        True,
        f"{shown}; Brier better than that of its labels by {gain}; {off:.1%} of the mass is off the likeliest label",
    )


def _closed_on_policy(job: TrainingJob, hyper: Hyperparameters) -> str | None:
    """Why a teacher's weights cannot be learnt from; None where they can, which is where gkd, left alone, begins."""
    if len(job.teachers) != 1:
        return f"it learns from one teacher, and {len(job.teachers)} answer here"
    (role,) = job.teachers
    if job.models[role].spec.name != "transformers":
        return f"it needs the teacher's weights in this process, and models.{role} is {job.models[role].spec.name}"
    if job.task is not None and job.task.teacher is not None:
        return (
            "the teacher has a view of its own (`task.teacher`), and on-policy it would read the student's prompts instead; "
            "`train: gkd` would have it do so"
        )
    import torch

    if not torch.cuda.is_available():
        return "the student's own answers take a GPU, and there is none; `train: gkd` would do it on the CPU"
    try:
        suited(job.models, job.student, role, "gkd")
    except UserError as error:
        return str(error).removeprefix("train.gkd: ").removesuffix(".")
    return _without_room(job, hyper.max_length)


def _without_room(job: TrainingJob, max_length: int) -> str | None:
    """Why the student's answers may not fit behind their prompts; None where they do."""
    longest, most = longest_prompt(job), answer_tokens(job)
    if longest + most > max_length:
        return (
            f"the longest prompt has {longest} tokens, and with answers.max_tokens = {most} an answer may end beyond "
            f"train.auto.max_length = {max_length}; raise that, or set `max_new_tokens` with `train: gkd`"
        )
    return None


def _tokens(job: TrainingJob, hyper: Hyperparameters) -> tuple[bool, str]:
    """Whether the logprobs of the teacher's tokens are learnt, and why."""
    from llm_distill.logprob_table import LOGPROBS, vocabularies
    from llm_distill.trainers.course import Desk, stoppable
    from llm_distill.trainers.logit_kd import aligned

    path = job.answers / LOGPROBS if job.answers else None
    if path is None or not path.exists() or not vocabularies(path):
        return False, f"the teacher's answers came without logprobs; to have them, {WITHOUT_LOGPROBS}"
    with stoppable():
        _, _, alignment = aligned(Desk(job, hyper))
    shown = f"{alignment.share:.1%} of {alignment.positions:,} trained tokens have a target from the teacher's logprobs"
    if alignment.share < ALIGNED:
        return False, f"{shown}, fewer than {ALIGNED:.0%}; `train: logit_kd` would learn them all the same"
    return True, shown
