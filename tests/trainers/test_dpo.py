"""Preference training in rounds: which pairs are made, that they are learnt, and that a stopped run goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Answer, Entry, Message, Request, Sample, Sampling, make_prompt
from llm_distill.tasks import Task
from llm_distill.trainers import TRAINERS, TrainingJob, dpo_loop
from llm_distill.trainers import dpo as dpo_module
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.preferences import REASONS
from llm_distill.trainers.rows import make_rows, stop_ids
from tests.conftest import ROOT, Desk
from tests.models.conftest import byte_level_tokenizer, tiny

MakeJob = Callable[..., TrainingJob]
Says = Callable[[Path | None, Sequence[Request]], list[Entry]]


def generate() -> Task:
    return Task(kind="generate")


def texts(count: int) -> list[Sample]:
    """Rows with their answers, as the train stage hands them over."""
    made = []
    for i in range(count):
        prompt = make_prompt((Message("user", f"say {'good' if i % 2 else 'bad'} day {i}"),))
        answer = f"the {'good' if i % 2 else 'bad'} day"
        made.append(Sample(prompt.row_id, prompt.messages, answer, None, Answer(prompt, answer, "ok")))
    return made


def saying(of: Callable[[str, int], str], status: str = "ok") -> Says:
    """A student that says what a function makes of the question and of the number of times it was asked."""
    times: list[Path | None] = []

    def answers(folder: Path | None, questions: Sequence[Request]) -> list[Entry]:
        times.append(folder)
        return [
            Entry(f"{len(times)}.{i}", status, text=of(q.messages[-1].content, len(times)))  # type: ignore[arg-type]
            for i, q in enumerate(questions)
        ]

    answers.times = times  # type: ignore[attr-defined]
    return answers


def dull(_text: str, _time: int) -> str:
    return "a dull day"


def dpo(job: TrainingJob, hyper: dict[str, Any] | None = None, **knobs: Any) -> dict[str, Any]:
    """Train, and give the story that was written."""
    dpo_module.dpo(job, hyper=Hyperparameters(**{"epochs": 1, **(hyper or {})}), **knobs)
    story: dict[str, Any] = json.loads((job.out / "training.json").read_text("utf-8"))
    return story


def curve(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def learnt(out: Path) -> bytes:
    return (out / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def job(make_job: MakeJob) -> TrainingJob:
    return make_job(texts(16), task=generate(), student_answers=saying(dull))


def log_likelihood(folder: Path, base: Path, sample: Sample, text: str) -> float:
    tokenizer = weights.load_tokenizer(str(base))
    model = weights.load_model(str(base), adapter=str(folder), device="cpu")
    (row,) = make_rows([replace_text(sample, text)], tokenizer, stop_ids(model, tokenizer), 1024)
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return float(logprobs.gather(-1, ids[0, 1:, None])[row.prompt_tokens - 1 :].sum())


def replace_text(sample: Sample, text: str) -> Sample:
    return Sample(sample.row_id, sample.messages, text)


def test_the_teachers_answer_becomes_likelier_than_the_students(job: TrainingJob, student: Path) -> None:
    story = dpo(job, round_rate=5e-3, round_epochs=3)
    (first,) = story["rounds"]
    assert "end_token" in {finding["name"] for finding in story["lint"]}, "of the teacher's answers"
    assert (first["pairs"], first["answers"], first["equal"], first["student_preferred"]) == (16, 16, 0, 0)
    lines = curve(job.out)
    assert [line["round"] for line in lines] == [0] * 2 + [1] * 6
    own = [line for line in lines if line["round"] == 1]
    # Before its first step the student is its own reference.
    assert own[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert own[-1]["rewards/margins"] > 0.5
    assert own[-1]["rewards/accuracies"] == 1
    assert not (job.out / "rounds").exists()
    sample = job.samples[1]
    better, worse = (log_likelihood(job.out, student, sample, text) for text in (sample.completion, "a dull day"))
    assert better > worse


def test_a_round_that_blows_up_names_its_own_rate(job: TrainingJob) -> None:
    with pytest.raises(UserError, match="Lower round_rate"):
        dpo(job, {"batch_size": 2}, warm_up=False, round_rate=1e30, round_epochs=2)


def test_a_rounds_first_loss_is_log_two_without_the_sft_term(make_job: MakeJob) -> None:
    """Against a copy of itself every margin is 0: also in the second round, and for whole weights."""
    for rank in (4, None):
        job = make_job(texts(8), f"rank{rank}", task=generate(), student_answers=saying(dull))
        dpo(job, {"lora_rank": rank, "learning_rate": 1e-3}, rounds=2, sft_weight=0.0, round_rate=1e-3)
        firsts = {line["round"]: line for line in reversed(curve(job.out))}
        for number in (1, 2):
            assert firsts[number]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert (job.out / ("adapter_model.safetensors" if rank else "model.safetensors")).exists()


def test_accumulated_steps_are_those_of_the_large_batch(make_job: MakeJob) -> None:
    runs = []
    for batch, times in ((8, 1), (2, 4)):
        job = make_job(texts(16), f"b{batch}", task=generate(), student_answers=saying(dull))
        dpo(job, {"batch_size": batch, "gradient_accumulation": times}, warm_up=False, sft_weight=0.0, round_rate=1e-3)
        runs.append([line["rewards/margins"] for line in curve(job.out)])
        runs[-1] = runs[-1][:1]
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_each_round_asks_the_student_that_the_one_before_made(job: TrainingJob) -> None:
    story = dpo(job, rounds=3)
    asked = job.student_answers.times  # type: ignore[union-attr]
    assert [folder.name for folder in asked] == ["0", "1", "2"]
    assert [found["round"] for found in story["rounds"]] == [1, 2, 3]
    assert {line["round"] for line in curve(job.out)} == {0, 1, 2, 3}


def test_without_a_warm_up_the_untrained_student_is_asked(job: TrainingJob) -> None:
    dpo(job, warm_up=False)
    assert job.student_answers.times == [None]  # type: ignore[union-attr]
    assert {line["round"] for line in curve(job.out)} == {1}


def test_rows_where_both_say_the_same_are_no_pairs(job: TrainingJob) -> None:
    def says(text: str, _time: int) -> str:
        return " the good day\n" if "good" in text else "a dull day"

    story = dpo(replace(job, student_answers=saying(says)))
    (first,) = story["rounds"]
    assert (first["pairs"], first["equal"], first["equal_share"]) == (8, 8, 0.5)


def test_rounds_end_when_there_is_nothing_left_to_learn(job: TrainingJob) -> None:
    def says(text: str, time: int) -> str:
        return "a dull day" if time == 1 else f"the {'good' if 'good' in text else 'bad'} day"

    story = dpo(replace(job, student_answers=saying(says)), rounds=5)
    assert [(found["trained"], found["equal_share"]) for found in story["rounds"]] == [(True, 0.0), (False, 1.0)]


def test_a_student_like_its_teacher_has_nothing_to_learn(job: TrainingJob) -> None:
    def says(text: str, _time: int) -> str:
        return f"the {'good' if 'good' in text else 'bad'} day"

    with pytest.raises(UserError, match="no pair to learn from"):
        dpo(replace(job, student_answers=saying(says)), warm_up=False)
    story = dpo(replace(job, student_answers=saying(says)))  # then what the warm-up made stays
    assert story["rounds"][0]["equal"] == 16
    assert learnt(job.out)


def test_labels_are_compared_as_labels(make_job: MakeJob) -> None:
    task = Task(kind="classify", labels=["positive", "negative"])
    samples = [Sample(f"r{i}", (Message("user", f"day {i}"),), ["positive", "negative"][i % 2]) for i in range(12)]
    answers = saying(lambda _text, _time: "Positive, I would say")
    story = dpo(make_job(samples, task=task, student_answers=answers))
    (first,) = story["rounds"]
    assert (first["pairs"], first["equal"]) == (6, 6)
    assert "⟦negative<|im_end|>⟧" in story["example"]


def judged(job: TrainingJob, verdict: Callable[[str, str], str]) -> TrainingJob:
    """With a judge who reads both answers and says `first`, `second` or `tie`."""

    def ask(role: str, questions: Sequence[Request]) -> list[Entry]:
        assert role == "judge"
        found = []
        for question in questions:
            shown = question.messages[0].content.split("===")
            first, second = (
                shown[shown_at + 1].strip()
                for shown_at, part in enumerate(shown)
                if "answer" in part and "begins" in part
            )
            text = json.dumps({"reason": "so it is", "better": verdict(first, second)})
            found.append(Entry(question.key("judge"), "ok", text=text))
        return found

    return replace(job, ask=ask)


def test_a_judge_may_prefer_the_student(job: TrainingJob) -> None:
    def likes_dull(first: str, second: str) -> str:
        return "first" if "dull" in first else "second"

    story = dpo(judged(job, likes_dull), judge="judge")
    (first,) = story["rounds"]
    assert (first["pairs"], first["student_preferred"]) == (16, 16)
    assert "a dull day" in story["example"]


def test_a_judge_who_goes_by_the_order_has_said_nothing(job: TrainingJob) -> None:
    story = dpo(judged(job, lambda _first, _second: "first"), judge="judge")
    assert (story["rounds"][0]["pairs"], story["rounds"][0]["tie"]) == (0, 16)


def test_a_scorer_decides(job: TrainingJob) -> None:
    scorer = bound(scorer={"length": {"unit": "characters", "prefer": "high"}})["scorer"]
    story = dpo(replace(job, student_answers=saying(lambda text, _time: text * 2)), scorer=scorer)
    assert story["rounds"][0]["student_preferred"] == 16
    same = dpo(replace(job, student_answers=saying(lambda _text, _time: "the sad day")), scorer=scorer)
    counts = same["rounds"][0]
    assert (counts["pairs"], counts["tie"]) == (8, 8)  # as long as `the bad day`, shorter than `the good day`


def test_a_cut_answer_is_rejected_without_an_end_and_never_chosen(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    make = dpo_loop.make_trainer

    def spy(model: Any, tokenizer: Any, pairs: Any, *more: Any) -> Any:
        seen.extend(pairs)
        return make(model, tokenizer, pairs, *more)

    monkeypatch.setattr(dpo_loop, "make_trainer", spy)
    cut = replace(job, student_answers=saying(dull, "truncated"))
    dpo(cut)
    end = seen[0].chosen.input_ids[-1]
    assert all(pair.chosen.input_ids[-1] == end and end not in pair.rejected.input_ids[-1:] for pair in seen)
    story = dpo(judged(cut, lambda first, _second: "first" if "dull" in first else "second"), judge="judge")
    assert (story["rounds"][0]["pairs"], story["rounds"][0]["cut"]) == (0, 16)


def bound(**knobs: Any) -> dict[str, Any]:
    reading = Reading(folder=Path(), files=set(), roles=["judge"])
    return bind("trainer", Spec("dpo", knobs, "train.dpo"), TRAINERS, reading).knobs


def test_knobs_are_checked_before_anybody_is_asked(job: TrainingJob) -> None:
    assert bound(judge="judge", rounds=2, lora_rank=8)["hyper"].lora_rank == 8
    with pytest.raises(UserError, match="no model 'jugde'"):
        bound(judge="jugde")
    with pytest.raises(UserError, match="no scorer 'lenght'"):
        bound(scorer="lenght")
    with pytest.raises(UserError, match="looks at more than one answer"):
        bound(scorer="near_duplicate")
    with pytest.raises(UserError, match="remove the other"):
        dpo(job, judge="judge", scorer=bound(scorer="length")["scorer"])


KILLED = """
import os, signal, sys
from pathlib import Path
from llm_distill.trainers import TrainingJob
from tests.trainers import test_dpo as t
import torch
torch.set_num_threads(1)
steps = []
def on_step(step, _of, _numbers):
    steps.append(step)
    if len(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
job = TrainingJob(t.texts(16), {"model": sys.argv[1], "device": "cpu"}, Path(sys.argv[2]), seed=7, on_step=on_step,
    task=t.generate(), student_answers=t.saying(t.dull))
t.dpo(job, {"checkpoint_every_s": 0, "batch_size": 4}, rounds=2, round_epochs=2)
"""


def test_a_killed_run_ends_with_the_same_student(make_job: MakeJob, student: Path) -> None:
    whole, broken = (make_job(texts(16), n, task=generate(), student_answers=saying(dull)) for n in ("whole", "broken"))
    knobs: dict[str, Any] = {"rounds": 2, "round_epochs": 2}
    dpo(whole, {"checkpoint_every_s": 0, "batch_size": 4}, **knobs)
    for kill_at in (2, 7):  # in the warm-up, then in a round
        process = subprocess.run(
            [sys.executable, "-c", KILLED, str(student), str(broken.out), str(kill_at)],
            cwd=ROOT, capture_output=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        assert not (broken.out / "adapter_model.safetensors").exists()
    again = saying(dull)
    dpo(replace(broken, student_answers=again), {"checkpoint_every_s": 0, "batch_size": 4}, **knobs)
    assert curve(broken.out) == curve(whole.out)
    assert learnt(broken.out) == learnt(whole.out)


def test_ctrl_c_stops_with_a_checkpoint(job: TrainingJob) -> None:
    steps: list[int] = []

    def interrupt(step: int, _of: int, _numbers: dict[str, float]) -> None:
        steps.append(step)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="step 3 of 4 of round 1"):
        dpo(replace(job, on_step=interrupt), round_epochs=2)
    assert list((job.out / "rounds").glob("*/1/checkpoints/*/checkpoint-3/complete.json"))


def test_a_recipe_from_end_to_end(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A real tiny student answers for itself; run again, nobody is asked anything."""
    weights_ = tiny("llama", tmp_path_factory.mktemp("student"), byte_level_tokenizer())
    desk.seeds([{"prompt": f"item {i} is {'good' if i % 2 else 'bad'}"} for i in range(12)])
    recipe = desk.recipe(
        task="generate",
        models={
            "teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}},
            "student": {"transformers": {"model": str(weights_), "device": "cpu"}},
        },
        train={"dpo": {"rounds": 2, "epochs": 1, "max_tokens": 4, "batch_size": 4, "samples": 2}},
    )
    summary = desk.here(recipe)
    out = desk.folder / "data" / Path(summary["run"]).relative_to(desk.folder / "data") / "student"
    story = json.loads((out / "training.json").read_text("utf-8"))
    for found in story["rounds"]:
        assert found["answers"] == 24
        assert found["pairs"] + sum(found[reason] for reason in REASONS) == 24, "each is accounted for"
        assert found["as_sampled"] > 0
    before = learnt(out)
    again = desk.here(recipe, first="train")
    assert again["asked"] == 0
    assert learnt(out) == before


def test_sampled_ids_are_learnt_as_they_were_sampled(student: Path) -> None:
    """`da` + `y` sampled apart stay apart, though the text would be one token."""
    from llm_distill.logprobs import Logprobs
    from llm_distill.models.vocabulary import Vocabulary
    from llm_distill.trainers.preferences import Comparison, make_pairs, prefer

    tokenizer = weights.load_tokenizer(str(student))
    model = weights.load_model(str(student), device="cpu")
    vocabulary = Vocabulary.of(tokenizer)
    apart = [tokenizer(letter)["input_ids"][0] for letter in "day"]
    assert len(tokenizer("day")["input_ids"]) < 3
    ids = [*apart, tokenizer.eos_token_id]
    logprobs = Logprobs.of_ids(ids, [0.0] * 4, [[]] * 4, [[]] * 4, vocabulary.token)
    sample = Sample("r", (Message("user", "x"),), "the day")
    entry = Entry("k", "ok", text="day", logprobs=logprobs.pack())
    job = TrainingJob([sample], {}, Path(), 0, student_answers=lambda _folder, _questions: [entry])
    found = prefer(job, None, Sampling(), 1, Comparison(None, Path(), "json", None))
    (pair,), counts = make_pairs(found.preferences, model, tokenizer, vocabulary, 1024)
    assert pair.rejected.input_ids[pair.rejected.prompt_tokens :] == ids
    assert counts == {"too_long": 0, "as_sampled": 1}


def test_check_says_what_the_judge_may_cost(desk: Desk) -> None:
    """Every answer of the student, in both orders, each asked twice where the verdict is none; unknown prices are an error."""
    from llm_distill.estimate import estimate
    from llm_distill.recipe import load

    desk.seeds([{"prompt": f"item {i}"} for i in range(10)])
    api: dict[str, Any] = {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}
    priced = {"openai_api": api | {"prices_usd": {"prompt": 1, "completion": 1}}}
    keys: dict[str, Any] = {
        "task": "generate",
        "models": {"teacher": {"scripted": {}}, "judge": priced, "student": {"transformers": {"model": "org/name"}}},
        "answers": {"budget_usd": 1},
        "train": {"dpo": {"judge": "judge", "rounds": 2, "samples": 3}},
    }
    (asked,) = estimate(load(desk.recipe(**keys)))["others"]
    assert (asked["plug"], asked["roles"], asked["requests"]) == ("dpo", ["judge"], 10 * 2 * 3 * 2 * 2)
    keys["models"]["judge"] = {"openai_api": api}
    with pytest.raises(UserError, match=r"the price of models\.judge"):
        load(desk.recipe(**keys))
    keys["train"] = {"dpo": {}}
    assert estimate(load(desk.recipe(**keys)))["others"] == []
