"""The teacher's calibration before training: how it is chosen and told, and that the student is taught by it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from llm_distill.errors import UserError
from llm_distill.evals.calibration import tempered
from llm_distill.recipe import load
from llm_distill.records import Answer, Message, Prompt, Sample, make_prompt
from llm_distill.sweep_rows import given
from llm_distill.tasks import Task
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.calibrate import calibrated
from llm_distill.trainers.calibration_evidence import CONTENT_FREE, Calibrating
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.logit_kd import logit_kd
from tests.conftest import Desk
from tests.evals.test_calibration import drawn
from tests.mock_api import MockApi, label_of
from tests.trainers.test_sft import MakeJob

LABELS = ["good", "bad"]


def answer(probs: Sequence[float], gold: str | None = None, text: str = "x", **more: Any) -> Answer:
    prompt = make_prompt((Message("user", text),), label=gold)
    said = LABELS[int(np.argmax(probs))]
    return Answer(prompt, said, "ok", prediction=said, label_probs=tuple(map(float, probs)), role="teacher", **more)


def samples(answers: Sequence[Answer]) -> list[Sample]:
    return [Sample(a.prompt.row_id, a.prompt.messages, a.prediction or "", a.prompt.label, a) for a in answers]


def underconfident(n: int = 300, *, gold: bool = True, bias: float = 1.0, **more: Any) -> list[Sample]:
    """Of a teacher who knows more than it says: true distributions at temperature 3, the first label favoured by a factor."""
    probs, labels = drawn(n, 2, 11, spread=3)
    shown = tempered(probs, 3.0) * [bias, 1]
    shown = 0.95 * shown / shown.sum(-1, keepdims=True)
    rows = enumerate(zip(shown, labels, strict=True))
    return samples([answer(p, LABELS[g] if gold else None, f"row {i}", **more) for i, (p, g) in rows])


def job(rows: list[Sample], **more: Any) -> TrainingJob:
    task = Task(kind="classify", labels=LABELS)
    return TrainingJob(rows, {"model": "m"}, Path("out"), seed=7, task=task, **more)


def story(done: TrainingJob) -> dict[str, Any]:
    found = done.told["calibration"]
    assert json.loads(json.dumps(found)) == found, "it goes into training.json"
    return found  # type: ignore[no-any-return]


def taught(done: TrainingJob) -> np.ndarray:
    return np.array([s.answer.label_probs for s in done.samples if s.answer])


def test_with_gold_the_best_method_is_taken_and_told() -> None:
    said: list[str] = []
    done = calibrated(job(underconfident(), say=said.append), Calibrating())
    found = story(done)
    assert (found["method"], found["by"]) == ("temperature", "gold")
    assert found["temperature"] == pytest.approx(1 / 3, rel=0.25)
    assert found["before"]["ece"] > 0.15 > 3 * found["after"]["ece"]
    assert found["after"]["brier"] < min(found["before"]["brier"], found["hard"]["brier"])
    assert [one["method"] for one in found["candidates"]] == ["none", "temperature", "batch", "batch+temperature"]
    assert sum(rows for rows, _, _ in found["after"]["bins"]) == 300 == found["before"]["rows"]
    assert taught(done).sum(-1) == pytest.approx(1)
    assert found["relabelled"] == 0
    assert [s.completion for s in done.samples] == [s.completion for s in underconfident()]
    assert f"temperature, T = {found['temperature']:.2f}: the simplest" in said[0]
    assert "ECE 0.0" in said[2]
    assert calibrated(done, Calibrating("batch")) is done, "once"
    looked_at = job(underconfident(), only_lint=True)
    assert calibrated(looked_at, Calibrating("contextual")) is looked_at, "nobody is asked"


def test_a_biased_teacher_has_its_prior_taken_out() -> None:
    done = calibrated(job(underconfident(bias=3.0)), Calibrating())
    found = story(done)
    assert found["method"] == "batch+temperature"
    assert found["priors"]["teacher"]["good"] > 0.65
    assert found["after"]["right"] > found["before"]["right"] + 0.05
    assert (
        0
        < found["relabelled"]
        == sum(a.completion != b.completion for a, b in zip(done.samples, underconfident(bias=3.0), strict=True))
    )
    assert [s.completion for s in done.samples] == [LABELS[i] for i in taught(done).argmax(-1)]


def test_what_is_right_already_is_left_as_it_is() -> None:
    probs, gold = drawn(300, 2, 12)
    rows = samples([answer(p, LABELS[g], f"row {i}") for i, (p, g) in enumerate(zip(probs, gold, strict=True))])
    done = calibrated(job(rows), Calibrating())
    assert story(done)["method"] == "none"
    assert [s.answer for s in done.samples] == [s.answer for s in rows]


def test_without_gold_a_temperature_is_fitted_to_its_own_repetitions() -> None:
    rows = []
    for i, (sure, share) in enumerate([(0.6, 1.0), (0.7, 1.0), (0.6, 2 / 3), (0.65, 1.0)] * 30):
        rows.append(answer([sure, 1 - sure], None, f"row {i}", agreement=share, requests=("a", "b", "c")))
    done = calibrated(job(samples(rows)), Calibrating())
    found = story(done)
    assert (found["method"], found["by"], found["hard"]) == ("temperature", "agreement", None)
    assert found["before"]["right"] == pytest.approx(0.875), "2 of 3 is 1 of 2 others"
    assert found["after"]["confidence"] == pytest.approx(0.875, abs=0.03)
    assert found["after"]["brier"] is None


def test_where_nothing_vouches_nothing_is_changed_unless_it_is_asked_for() -> None:
    said: list[str] = []
    rows = underconfident(gold=False, bias=3.0)
    done = calibrated(job(rows, say=said.append), Calibrating())
    assert (story(done)["method"], story(done)["by"]) == ("none", None)
    assert "nobody knows" in said[1]
    assert "calibrate_on" in said[0]
    assert [s.answer for s in done.samples] == [s.answer for s in rows]
    batch = calibrated(job(rows), Calibrating("batch"))
    assert taught(batch).mean(0) == pytest.approx([0.5, 0.5], abs=0.07)
    assert taught(job(rows)).mean(0)[0] > 0.65
    with pytest.raises(UserError, match="nothing to fit a temperature to; name a file"):
        calibrated(job(rows), Calibrating("temperature"))


def teaching(by_text: Callable[[Prompt], Sequence[float] | None]) -> Any:
    asked: list[tuple[Prompt, int]] = []

    def teach(prompts: Sequence[Prompt], orders: int) -> list[Answer]:
        asked.extend((p, orders) for p in prompts)
        found = [(p, by_text(p)) for p in prompts]
        return [
            Answer(p, "", "failed") if probs is None else msgspec.structs.replace(answer(probs), prompt=p)
            for p, probs in found
        ]

    teach.asked = asked  # type: ignore[attr-defined]
    return teach


def test_contextual_asks_about_nothing_in_the_same_view() -> None:
    teach = teaching(lambda p: None if p.text == "" else [0.6, 0.2])
    tagged = [
        msgspec.structs.replace(a, prompt=msgspec.structs.replace(a.prompt, tags={"lang": "de"}), role=role)
        for a, role in [(answer([0.6, 0.2], "bad", "a"), "big"), (answer([0.3, 0.7], None, "b"), "small")]
    ]
    done = calibrated(job(samples(tagged), teach=teach), Calibrating("contextual"))
    assert [p.text for p, _ in teach.asked] == [*CONTENT_FREE, *CONTENT_FREE], "for every teacher, in place of its rows"
    assert {(p.tags["lang"], p.label) for p, _ in teach.asked} == {("de", None)}
    assert {p.prompt_id for p, _ in teach.asked} == {a.prompt.prompt_id for a in tagged}, (
        "so that the same teacher has it"
    )
    assert story(done)["priors"] == {
        role: {"good": pytest.approx(0.75), "bad": pytest.approx(0.25)} for role in ("big", "small")
    }
    assert taught(done)[0] == pytest.approx([0.5, 0.5])
    assert taught(done)[1] == pytest.approx([0.125, 0.875])
    for nobody in (None, teaching(lambda _: None), teaching(lambda _: [0.0, 0.0])):
        with pytest.raises(UserError, match="contextual needs teachers who can be asked"):
            calibrated(job(samples(tagged), teach=nobody), Calibrating("contextual"))


def test_labelled_rows_of_a_file_decide(tmp_path: Path) -> None:
    known = {s.messages[0].content: s for s in underconfident(120)}
    lines = [json.dumps({"prompt": text, "label": s.gold}) for text, s in known.items()]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    teach = teaching(lambda p: known[p.text].answer.label_probs if p.text in known else [0.5, 0.5])  # type: ignore[union-attr]
    rows = underconfident(40, gold=False)
    found = story(calibrated(job(rows, teach=teach), Calibrating(calibrate_on=file)))
    assert (found["by"], found["before"]["rows"], found["rows"]) == ("gold", 120, 40)
    assert found["method"] == "temperature"
    assert "contextual" in [one["method"] for one in found["candidates"]]

    def refused(text: str, match: str, **more: Any) -> None:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=match):
            calibrated(job(rows, teach=teach, **more), Calibrating(calibrate_on=file))

    refused("\n".join(lines[:20]), "20 rows of .*; fewer than 50")
    refused('{"prompt": "x"}', "1 rows of .* have no `label`")
    refused('{"prompt": "x", "label": "god"}', "Did you mean 'good'")
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="they cannot be asked"):
        calibrated(job(rows), Calibrating(calibrate_on=file))


def test_orders_are_averaged_before_anything_else() -> None:
    rows = samples([answer([0.9, 0.1], None, "a"), answer([0.2, 0.7], None, "b")])
    teach = teaching(lambda p: [0.4, 0.6] if p.text == "a" else None)
    done = calibrated(job(rows, teach=teach), Calibrating("none", orders=3))
    assert [orders for _, orders in teach.asked] == [3, 3]
    assert taught(done) == pytest.approx(np.array([[0.4, 0.6], [0.2, 0.7]])), (
        "what did not come is asked for again later"
    )
    assert [s.completion for s in done.samples] == ["bad", "bad"]
    assert story(done)["relabelled"] == 1


def test_the_student_is_taught_what_is_calibrated(make_job: MakeJob) -> None:
    rows = underconfident(60)
    done = replace(make_job(rows), task=Task(kind="classify", labels=LABELS))
    logit_kd(done, hyper=Hyperparameters(epochs=0.2), calibrating=Calibrating("temperature"))
    found = json.loads((done.out / "training.json").read_text("utf-8"))
    assert found["calibration"]["method"] == "temperature"
    assert found["targets"]["mean_confidence"] == pytest.approx(found["calibration"]["confidence"]["after"])
    assert found["targets"]["mean_confidence"] > found["calibration"]["confidence"]["before"] + 0.1


def test_through_the_whole_road(desk: Desk, api: MockApi, student: Path) -> None:
    """The teacher is asked about the labelled rows and about nothing, in the recipe's own view and once; it is told."""
    desk.seeds([{"prompt": f"text {i}"} for i in range(12)])
    desk.seeds(
        [{"prompt": f"dev {i}", "label": label_of(f"dev {i}") if i % 5 else "negative"} for i in range(60)], "dev.jsonl"
    )
    examples = [{"prompt": f"shown {i}", "label": "positive"} for i in range(4)]
    desk.seeds(examples, "examples.jsonl")
    teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}
    recipe = desk.recipe(
        task={"classify": {"labels": ["positive", "negative"], "teacher": {"examples": ["examples.jsonl"]}}},
        models={"teacher": teacher, "student": {"transformers": {"model": str(student), "device": "cpu"}}},
        answers={"max_tokens": 8, "top_logprobs": 5, "budget_usd": None},
        train={"logit_kd": {"calibrate_on": "dev.jsonl", "orders": 1, "epochs": 0.1, "max_length": 256}},
    )
    summary = desk.here(recipe)
    assert summary["status"] == "done"
    # Each labelled row as it is and in another order; the rows themselves in another order; N/A and [MASK], and nothing.
    assert Counter(api.asked.values()) == {2: 72, 1: 3}, api.asked
    assert {"N/A", "[MASK]"} <= set(api.asked)
    orders = {json.dumps([m["content"] for m in b["messages"][:-1]]) for b in api.bodies}
    assert len(orders) == 2, "the worked examples in two orders"
    found = json.loads((desk.folder / summary["run"] / "student" / "training.json").read_text("utf-8"))["calibration"]
    assert (found["by"], found["before"]["rows"]) == ("gold", 60)
    assert found["before"]["confidence"] == pytest.approx(np.exp(-0.1), abs=0.01)
    asked = api.asked.total()
    again = desk.here(recipe, first="train")
    assert again["stages"]["train"]["ran"]
    assert api.asked.total() == asked, "all of it is in the ledger"


def test_rows_that_are_held_out_calibrate_nothing_unless_it_is_allowed_by_name(desk: Desk, student: Path) -> None:
    """Named after the answers are there, exact or nearly: refused before training, and used where it is allowed by name."""
    words = "the hotel by the lake was far too loud for the five of"
    desk.seeds([{"prompt": f"text {i}"} for i in range(10)])
    desk.seeds([{"prompt": f"{words} us", "label": "positive"}, {"prompt": "fine", "label": "negative"}], "held.jsonl")
    dev = [{"prompt": f"dev {i} {chr(97 + i % 26) * 9}", "label": "positive"} for i in range(60)]
    desk.seeds([*dev, {"prompt": f"{words} them", "label": "positive"}], "dev.jsonl")
    recipe = desk.recipe(
        models={"teacher": {"scripted": {"default": "positive"}}, "student": {"transformers": {"model": str(student)}}},
        held_out={"file": "held.jsonl"},
        answers={"top_logprobs": 5},
        train={"logit_kd": {"epochs": 1}},
        evaluate={},
    )
    desk.here(recipe, last="filter")
    calibrated_on = "train.logit_kd.calibrate_on=dev.jsonl"
    said = r"1 of 61 rows of .*dev.jsonl are held out or nearly equal held-out rows, the first: .*allow_overlap: \[calibration\]"
    with pytest.raises(UserError, match=said):
        desk.here(recipe, calibrated_on)
    summary = desk.here(recipe, calibrated_on, "evaluate.allow_overlap=[calibration]", last="train")
    assert summary["status"] == "done", summary
    assert summary["stages"]["train"]["ran"]


def test_rows_that_a_sweep_is_decided_on_calibrate_nothing(desk: Desk) -> None:
    rows = [{"prompt": f"dev {i} {chr(97 + i % 26) * 9}", "label": "positive"} for i in range(60)]
    desk.seeds([{"prompt": "x"}])
    desk.seeds(rows, "calibrate.jsonl")
    desk.seeds([*rows[:2], *({"prompt": f"apart {i}", "label": "positive"} for i in range(8))], "dev.jsonl")
    student = {"transformers": {"model": "org/name"}}
    plan = load(
        desk.recipe(
            models={"teacher": {"scripted": {"default": "positive"}}, "student": student},
            answers={"top_logprobs": 5},
            train={"logit_kd": {"calibrate_on": "calibrate.jsonl"}},
            sweep={"over": {"train.logit_kd.alpha": [0.1, 0.5]}, "dev": {"file": "dev.jsonl"}},
        )
    )
    with pytest.raises(UserError, match=r"sweep.dev: 2 of 10 rows of .*dev.jsonl equal or nearly equal rows of train"):
        given(plan, [])


def test_teachers_are_there_for_training_only_where_they_are_needed(desk: Desk) -> None:
    def needed(task: Any, train: Any, **teacher: Any) -> tuple[str, ...]:
        models = {"teacher": teacher or {"scripted": {"default": "positive"}}, "student": local}
        return load(desk.recipe(task=task, models=models, answers={"top_logprobs": 5}, train=train)).pupils

    desk.seeds([{"prompt": "x"}])
    local = {"transformers": {"model": "org/name"}}
    labels = {"classify": {"labels": ["positive", "negative"]}}
    assert needed(labels, "logit_kd") == ("student", "teacher"), "who may be asked about nothing"
    assert needed(labels, {"logit_kd": {"calibration": "none"}}) == ("student",)
    assert needed("generate", "logit_kd") == needed("generate", "auto") == ("student",)
    assert needed("generate", "auto", transformers={"model": "org/other"}) == ("student", "teacher"), "its weights"


def test_check_counts_what_calibration_asks(desk: Desk) -> None:
    desk.seeds([{"prompt": f"text {i}"} for i in range(10)])
    desk.seeds([{"prompt": f"dev {i}", "label": "positive"} for i in range(60)], "dev.jsonl")
    student = {"transformers": {"model": "org/name"}}
    teacher = {"scripted": {"default": "positive"}}
    keys: dict[str, Any] = {"models": {"teacher": teacher, "student": student}, "answers": {"top_logprobs": 5}}

    desk.seeds([{"prompt": "shown", "label": "positive"}, {"prompt": "too", "label": "negative"}], "examples.jsonl")
    task = {"classify": {"labels": ["positive", "negative"], "teacher": {"examples": ["examples.jsonl"]}}}

    def counted(**knobs: Any) -> int:
        recipe = desk.recipe(task=task, train={"logit_kd": knobs}, **keys)
        others = json.loads(desk.llm_distill("check", recipe, "--json"))["others"]
        return sum(other["requests"] for other in others)

    assert counted(calibration="none") == 0
    assert counted() == 3, "about nothing"
    assert counted(calibrate_on="dev.jsonl", orders=1) == 3 + 60 * 2 + 10
    texts = desk.recipe(task="generate", train={"logit_kd": {"orders": 1}}, **keys)
    assert "train.logit_kd.orders: probabilities of labels" in desk.llm_distill("check", texts, code=2)
    gone = desk.recipe(train={"auto": {"calibrate_on": "no.jsonl"}}, **keys)
    assert "train.auto.calibrate_on: no such file" in desk.llm_distill("check", gone, code=2)


@pytest.mark.parametrize(
    ("keys", "knobs", "message"),
    [
        (
            {"answers": {"attach": {"model": "reader"}}},
            {"calibrate_on": "dev.jsonl"},
            "calibrate_on: it asks the teachers",
        ),
        (
            {"answers": {"attach": {"model": "reader"}}},
            {"calibration": "contextual"},
            "calibration: it asks the teachers",
        ),
        ({}, {"orders": 2}, "orders: these are orders of worked examples, and the teacher is shown none"),
        ({}, {"calibrate_on": "few.jsonl"}, "few.jsonl has 49 rows; fewer than 50"),
        ({}, {"calibrate_on": "bare.jsonl"}, "1 rows of"),
        ({"held_out": {"file": "dev.jsonl"}}, {"calibrate_on": "dev.jsonl"}, "60 of 60 rows of"),
        ({"teachers": {"route": {"tag": "of", "to": {"a": "teacher"}}}}, {"calibrate_on": "dev.jsonl"}, "no such tag"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_asked(
    desk: Desk, keys: dict[str, Any], knobs: dict[str, Any], message: str
) -> None:
    rows = [{"prompt": f"dev {i}", "label": "positive"} for i in range(60)]
    desk.seeds([{"prompt": f"text {i}", "tags": {"of": "a"}} for i in range(10)])
    desk.seeds(rows, "dev.jsonl")
    desk.seeds(rows[:49], "few.jsonl")
    desk.seeds([{"prompt": "no label"}], "bare.jsonl")
    local = {"transformers": {"model": "org/name"}}
    models = {"teacher": {"scripted": {"default": "positive"}}, "student": local, "reader": local}
    task = {"classify": {"labels": ["positive", "negative"]}}
    whole: dict[str, Any] = {
        "task": task,
        "models": models,
        "answers": {"top_logprobs": 5},
        "train": {"logit_kd": knobs},
    } | keys
    said = " ".join(desk.llm_distill("check", desk.recipe(**whole), code=2).split())
    assert message in said


def test_a_question_asked_twice_is_no_repetition() -> None:
    rows = [answer([0.6, 0.4], None, f"row {i}", agreement=1.0, requests=("a", "a", "a")) for i in range(60)]
    assert story(calibrated(job(samples(rows)), Calibrating()))["by"] is None
