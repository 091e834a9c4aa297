"""`train: auto`: which rung is taken, that the reason is told, and that no rung is taken that the signal does not bear."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from llm_distill.plugs import Plug, Spec
from llm_distill.records import Sampling
from llm_distill.tasks import Task, View
from llm_distill.trainers import TRAINERS, TrainingJob, rungs
from llm_distill.trainers.calibrate import calibrated
from llm_distill.trainers.calibration_evidence import Calibrating
from llm_distill.trainers.findings import Linted
from llm_distill.trainers.gkd import gkd
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy
from llm_distill.trainers.rungs import auto, supported
from tests.conftest import Desk
from tests.evals.test_calibration import drawn
from tests.mock_api import MockApi
from tests.models.conftest import lora
from tests.trainers.test_calibrate import LABELS, answer, samples, teaching, underconfident
from tests.trainers.test_calibrate import job as calibrating_job
from tests.trainers.test_logit_kd import task
from tests.trainers.test_sft import MakeJob

QUICK = Hyperparameters(epochs=0.1)


SEEN: list[TrainingJob] = []


def seen(job: TrainingJob, *, hyper: Hyperparameters, teacher: str = "") -> None:
    """A trainer that only looks at its job."""
    SEEN.append(replace(job, told={**job.told, "teacher": teacher}))


def climbed(job: TrainingJob, **knobs: Any) -> dict[str, Any]:
    """Train, and give the story: its rungs in order."""
    auto(job, hyper=QUICK, calibrating=Calibrating(**knobs))
    story: dict[str, Any] = json.loads((job.out / "training.json").read_text("utf-8"))
    names = [rung["name"] for rung in story["rungs"]]
    assert names == ["gkd", "logit_kd", "sft"][: len(names)]
    assert [rung["taken"] for rung in story["rungs"]] == [False] * (len(names) - 1) + [True]
    return story


def classify(make_job: MakeJob, rows: list[Any], **more: Any) -> TrainingJob:
    kind = task().model_copy(update={"labels": LABELS})
    return replace(make_job(rows, **more), task=kind, teachers=("teacher",), models={"teacher": scripted()})


def scripted() -> Plug:
    return Plug(Spec("scripted"), lambda: None, {})


def test_soft_labels_that_are_as_right_as_sure_are_learnt(make_job: MakeJob) -> None:
    said: list[str] = []
    story = climbed(classify(make_job, underconfident(120), say=said.append))
    assert story["rungs"][-1]["name"] == "logit_kd"
    assert "Brier" in story["rungs"][-1]["why"]
    assert story["targets"]["kind"] == "labels"
    assert story["targets"]["mean_confidence"] == pytest.approx(story["calibration"]["confidence"]["after"])
    assert any(line.startswith("train: auto takes logit_kd: calibrated (temperature)") for line in said)
    assert any(line.startswith("  not gkd: ") for line in said)


def test_the_same_uncalibrated_are_not(make_job: MakeJob) -> None:
    """What the teacher gave at temperature 3 is far from how right it is: its labels are learnt, and it is said why."""
    said: list[str] = []
    story = climbed(classify(make_job, underconfident(80), say=said.append), calibration="none")
    assert "targets" not in story
    assert "more than 5% apart" in story["rungs"][1]["why"]
    assert story["calibration"]["before"]["ece"] > 0.1, "which the report shows all the same"
    assert any(line.startswith("train: auto takes sft: ") for line in said)


def test_without_anything_that_vouches_labels_are_learnt_as_they_are(make_job: MakeJob) -> None:
    rows = underconfident(30, gold=False, bias=3.0)
    story = climbed(classify(make_job, rows))
    assert "nothing tells how right it is" in story["rungs"][1]["why"]
    assert "calibrate_on" in story["rungs"][1]["why"]


def test_labels_that_a_calibration_moved_are_not_learnt_by_sft(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rungs, "supported", lambda _found: (False, "no"))
    monkeypatch.setitem(TRAINERS, "sft", f"{__name__}:seen")
    rows = underconfident(120, bias=3.0)
    auto(classify(make_job, rows), hyper=QUICK)
    assert SEEN[-1].told["calibration"]["relabelled"] > 0
    assert SEEN[-1].samples == rows


def test_without_logprobs_words_are_learnt(make_job: MakeJob) -> None:
    bare = [msgspec.structs.replace(s, answer=None) if i else s for i, s in enumerate(underconfident(8))]
    story = climbed(classify(make_job, bare))
    assert "7 of 8 rows have no distribution over labels; to have them, add `top_logprobs" in story["rungs"][1]["why"]
    story = climbed(make_job(6))  # texts, of no task
    assert "came without logprobs" in story["rungs"][1]["why"]


def found(by: str | None = "gold", sure: float = 0.88, **worth: Any) -> dict[str, Any]:
    """The story of a calibration that supports soft labels, but for what is given."""
    good = {
        "rows": 300, "effective": 250.0, "covered": 1.0, "confidence": 0.90, "right": 0.91, "hard_right": 0.91,
        "gain": 0.02, "low": 0.01, "high": 0.03,
    }  # fmt: skip
    return {
        "by": by,
        "method": "temperature",
        "confidence": {"before": 0.7, "after": sure},
        "worth": good | worth if by == "gold" else None,
    }


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (found(confidence=0.85), "more than 5% apart"),
        (found(confidence=0.97), "more than 5% apart"),
        (found(low=0.0), "no gain is shown"),
        (found(gain=-0.01, low=-0.02, high=-0.005), "better than theirs by -0.0100 (-0.0200 to -0.0050): no gain"),
        (found(right=0.90), "no gain is shown"),
        (found(sure=0.955), "4.5% of the mass is off the likeliest label"),
        (found(gain=None, low=None, high=None, rows=40, effective=31.2), "too few of the labelled rows are as sure"),
        (found("agreement"), "its repetitions tell how steady it is, not how right; name a file with 50 or more"),
        (found(None), "nothing tells how right it is"),
    ],
)
def test_soft_labels_are_learnt_on_evidence_alone(story: dict[str, Any], why: str) -> None:
    assert supported(found())[0]
    taken, said = supported(story)
    assert not taken
    assert why in said


def test_labelled_rows_that_are_unlike_the_taught_prove_nothing(tmp_path: Path) -> None:
    """Of all rows a teacher's distributions are better than its labels; of those that it is sure of, which a filter kept, its
    labels are as good, and they are what is learnt.
    """
    labelled = {s.messages[0].content: s for s in underconfident(600)}
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "label": s.gold}) for text, s in labelled.items()), "utf-8")
    teach = teaching(lambda p: s.answer.label_probs if (s := labelled.get(p.text)) and s.answer else None)

    def tried(least: float) -> dict[str, Any]:
        rows = [s for s in underconfident(600, gold=False) if s.answer and max(s.answer.label_probs or ()) > least]
        done = calibrated(calibrating_job(rows, teach=teach), Calibrating("temperature", calibrate_on=file))
        return done.told["calibration"]  # type: ignore[no-any-return]

    assert supported(tried(0.0))[0]
    story = tried(0.8)
    assert story["after"]["brier"] < story["hard"]["brier"] - 0.01, "on all labelled rows, which is what misleads"
    assert story["worth"]["rows"] < 0.5 * story["after"]["rows"]
    assert story["worth"]["right"] > story["after"]["right"] + 0.05
    assert not supported(story)[0]


def test_calibrated_distributions_meet_it() -> None:
    """Of a teacher whose distributions are right, soft labels have the better Brier score: that is what they are for."""
    probs, gold = drawn(400, 2, 21)
    rows = samples([answer(p, LABELS[g], f"row {i}") for i, (p, g) in enumerate(zip(probs, gold, strict=True))])
    assert supported(calibrated(calibrating_job(rows), Calibrating()).told["calibration"])[0]
    assert np.mean([max(p) for p in probs]) < 0.95


@pytest.fixture(scope="session")
def tuned(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Plug:
    """A teacher of the student's vocabulary, and of other weights."""
    adapter = lora(student, tmp_path_factory.mktemp("tuned"))
    return Plug(Spec("transformers"), lambda: None, {"model": str(student), "adapter": str(adapter)})


def test_a_gpu_and_a_teacher_of_the_same_vocabulary_go_on_policy(
    make_job: MakeJob, student: Path, tuned: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAINERS, "gkd", f"{__name__}:seen")
    sampling = Sampling(max_tokens=64)
    job = replace(make_job(4), teachers=("teacher",), models={"teacher": tuned}, sampling=sampling)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    auto(job, hyper=QUICK)
    assert [rung["name"] for rung in SEEN[-1].told["rungs"]] == ["gkd"]
    assert SEEN[-1].told["teacher"] == "teacher"

    def closed(**more: Any) -> str:
        return climbed(replace(job, **more))["rungs"][0]["why"]  # type: ignore[no-any-return]

    own = Plug(Spec("transformers"), lambda: None, {"model": str(student)})
    assert "teacher has the student's own weights" in closed(models={"teacher": own}), "which gkd refuses"
    shown = Task(kind="generate", teacher=View(raw=True))
    assert "a view of its own (`task.teacher`)" in closed(task=shown)
    long = closed(sampling=Sampling(max_tokens=1000))
    assert "answers.max_tokens = 1000 an answer may end beyond train.auto.max_length = 1024" in long
    assert "2 answer here" in closed(teachers=("a", "b"))
    assert "models.teacher is scripted" in closed(models={"teacher": scripted()})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is none; `train: gkd` would do it on the CPU" in closed()


def test_why_it_goes_on_policy_is_kept(make_job: MakeJob, tuned: Plug) -> None:
    job = replace(make_job(4), models={"teacher": tuned}, told={"rungs": [{"name": "gkd"}]})
    gkd(job, hyper=QUICK, own=OnPolicy(max_new_tokens=4, warm_up_epochs=0))
    assert json.loads((job.out / "training.json").read_text("utf-8"))["rungs"] == [{"name": "gkd"}]


def test_labels_that_are_only_looked_at_are_not_calibrated(make_job: MakeJob) -> None:
    with pytest.raises(Linted) as linted:
        auto(classify(make_job, underconfident(20), only_lint=True), hyper=QUICK)
    assert {"alignment", "temperature", "scale"} <= {finding.name for finding in linted.value.findings}


def test_what_is_missing_is_said_whoever_chose_the_method(make_job: MakeJob) -> None:
    story = climbed(classify(make_job, underconfident(10, gold=False)), calibration="batch")
    assert "nothing tells how right it is; name a file with 50 or more labelled rows" in story["rungs"][1]["why"]


def test_through_the_whole_road_with_texts(desk: Desk, api: MockApi, student: Path) -> None:
    """A teacher of free text, whose tokens are told as text: they are aligned by bytes, and learnt where most can be."""
    desk.seeds([{"prompt": f"text {i}"} for i in range(6)])
    teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}
    recipe = desk.recipe(
        task="generate",
        models={"teacher": teacher, "student": {"transformers": {"model": str(student), "device": "cpu"}}},
        answers={"max_tokens": 8, "top_logprobs": 5},
        train="auto",
    )
    summary = desk.here(recipe, "train.auto.epochs=0.2")
    found = json.loads((desk.folder / summary["run"] / "student" / "training.json").read_text("utf-8"))
    why = found["rungs"][1]["why"]
    assert "trained tokens have a target from the teacher's logprobs" in why
    assert found["rungs"][1]["taken"] == ("fewer than" not in why) == ("targets" in found)
    assert "training   auto" in desk.llm_distill("check", recipe)
