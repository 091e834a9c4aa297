"""The student learns the teacher's distribution and not only its words, through the trainer and through the whole road."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.records import Answer, Message, Sample, make_prompt
from llm_distill.tasks import Task
from llm_distill.trainers import loop
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.label_targets import by_labels
from llm_distill.trainers.logit_kd import logit_kd, position_weights
from tests.conftest import ROOT, Desk
from tests.models.conftest import fallback_tokenizer, tiny
from tests.trainers.test_sft import MakeJob, curve, learnt

LABELS = ["good", "bad", "good day"]
PROBS = (0.5, 0.3, 0.1)


def labelled(
    probs: tuple[float, ...] | None, label: str = "good", gold: str | None = None, text: str = "film"
) -> Sample:
    messages = (Message("user", f"the {text}"),)
    prompt = make_prompt(messages, label=gold)
    answer = Answer(prompt, label, "ok", prediction=label, label_probs=probs)
    return Sample(f"r {text}", messages, label, gold, answer)


def task() -> Task:
    return Task(kind="classify", labels=LABELS, parse="exact")


def probabilities(folder: Path, sample: Sample) -> list[float]:
    """Of each label and its end, as a model in a folder gives them."""
    tokenizer = weights.load_tokenizer(str(folder))
    with loop.quiet():
        model = weights.load_model(str(folder), device="cpu")
    turns = [{"role": "user", "content": sample.messages[0].content}]
    begin = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    found = []
    for label in LABELS:
        own = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*begin, *own]])).logits[0, len(begin) - 1 : -1]
        found.append(float(logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).sum().exp()))
    return found


@pytest.mark.parametrize(("divergence", "temperature"), [("forward_kl", 2.0), ("jsd", 1.0), ("sampled", 1.0)])
def test_the_student_comes_to_say_what_the_teacher_does(make_job: MakeJob, divergence: Any, temperature: float) -> None:
    """Three labels, of which one begins another, in a row of each, and a tenth for what is no label."""
    job = make_job([labelled(PROBS, label) for label in LABELS], task=task())
    hyper = Hyperparameters(
        epochs=200, batch_size=3, learning_rate=1e-2, schedule="linear", lora_rank=None, checkpoint_every_s=1e9
    )
    logit_kd(job, hyper=hyper, alpha=1.0, temperature=temperature, divergence=divergence)
    assert probabilities(job.out, job.samples[0]) == pytest.approx(PROBS, abs=0.03)
    first, *_, last = curve(job.out)
    assert {"ce", "kd"} <= set(first)
    assert last["kd"] < 0.05 < first["kd"]
    story = json.loads((job.out / "training.json").read_text("utf-8"))
    assert story["targets"] == {"kind": "labels", "mean_confidence": 0.5}
    assert story["settings"]["temperature"] == temperature


def test_alpha_0_is_plain_fine_tuning(make_job: MakeJob) -> None:
    """On the same rows the curve of the words alone."""
    from tests.trainers.conftest import sft

    samples = [labelled(PROBS, text=f"film {i}") for i in range(6)]
    logit_kd(soft := make_job(samples, "soft", task=task()), hyper=Hyperparameters(), alpha=0.0)
    sft(hard := make_job(samples, "hard", task=task()))
    for one, other in zip(curve(soft.out), curve(hard.out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["ce"] == pytest.approx(one["loss"], abs=1e-5)


def test_gold_is_the_hard_label_where_it_is_known(make_job: MakeJob) -> None:
    for gold, learnt_ in (("bad", "bad"), (None, "good")):
        said: list[str] = []
        job = make_job([labelled(PROBS, gold=gold)], task=task(), say=said.append)
        logit_kd(job, hyper=Hyperparameters(epochs=1), hard_labels="gold")
        assert said[-1].endswith(f"⟦{learnt_}<|im_end|>⟧")
    with pytest.raises(UserError, match=r"the label 'worse', which the task does not have.*Repair the row"):
        logit_kd(make_job([labelled(PROBS, gold="worse")], task=task()), hyper=Hyperparameters(), hard_labels="gold")


def test_a_row_without_a_distribution_is_an_error(make_job: MakeJob) -> None:
    for sample in (labelled(None), msgspec.structs.replace(labelled(PROBS), answer=None)):
        job = make_job([labelled(PROBS, text="day"), sample], task=task())
        with pytest.raises(
            UserError, match=r"1 of 2 rows have no distribution over labels \(first: row r film\).*attach"
        ):
            logit_kd(job, hyper=Hyperparameters())


def test_other_targets_are_another_training(make_job: MakeJob) -> None:
    """What was stored decides the weights, and the same again gives the same."""
    for out, probs in (("a", PROBS), ("b", PROBS), ("c", (0.6, 0.3, 0.1))):
        logit_kd(make_job([labelled(probs)], out, task=task()), hyper=Hyperparameters(epochs=4, batch_size=1))
    a, b, c = (learnt(make_job([labelled(PROBS)], out).out) for out in "abc")
    assert a == b != c


def test_a_stopped_training_goes_on_with_the_same_draws(make_job: MakeJob) -> None:
    """What was drawn of the teacher is drawn again as it would have been; with another teacher, from the first step on."""

    def train(out: str, probs: tuple[float, ...], **more: Any) -> Path:
        job = make_job([labelled(probs, text=f"film {i}") for i in range(6)], out, task=task(), **more)
        logit_kd(job, hyper=Hyperparameters(batch_size=2, lora_dropout=0.1), divergence="sampled", draws=3)
        return job.out

    def press(step: int, _of: int, _numbers: dict[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    seen: list[int] = []
    for out in ("broken", "other"):
        with pytest.raises(Interrupted, match="the same command goes on"):
            train(out, PROBS, on_step=press)
    broken = train("broken", PROBS, on_step=lambda step, *_: seen.append(step))
    whole = train("whole", PROBS)
    assert seen == [4, 5, 6]
    assert curve(broken) == curve(whole)
    assert learnt(broken) == learnt(whole)
    seen.clear()
    train("other", (0.6, 0.3, 0.1), on_step=lambda step, *_: seen.append(step))
    assert seen[0] == 1


def test_the_sure_count_more() -> None:
    sure, unsure = by_labels([[5, 9], [6, 9]], [0.9, 0.1], 0), by_labels([[5, 9], [6, 9]], [0.4, 0.6], 0)
    by_token = position_weights([sure, unsure], None)
    assert by_token[0][0] / by_token[1][0] == pytest.approx(1.5, rel=1e-3)
    assert by_token[0][1] == by_token[1][1], "an end is sure"
    by_row = position_weights([sure, unsure], [0.9, 0.6])
    assert by_row[0].tolist() == pytest.approx([1.2, 1.2])
    assert by_row[1].tolist() == pytest.approx([0.8, 0.8])
    for found in (by_token, by_row, position_weights([sure], [0.0])):
        assert np.concatenate(found).mean() == pytest.approx(1)


#: Text with everything that tokenizers cut differently.
TEXTS = [
    "the film was good",
    " was  bad 2024, Ça va",
    "日本語の文。 😀👩‍👩‍👧",
    "a dull day\n\nvery dull: 201",
    "positive",
    "é ö \t the good",
]


def road(desk: Desk, reader: Path, student: Path, **knobs: Any) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """A run in which a script answers, a model reads the answers, and a student learns: its curve, its story."""
    desk.seeds([{"prompt": f"say {i}"} for i in range(len(TEXTS))])
    recipe = desk.recipe(
        task="generate",
        models={
            "teacher": {"scripted": {"rules": {f"say {i}": text for i, text in enumerate(TEXTS)}, "default": "?"}},
            "reader": {"transformers": {"model": str(reader), "device": "cpu"}},
            "student": {"transformers": {"model": str(student), "device": "cpu"}},
        },
        answers={"max_tokens": 99, "attach": {"model": "reader", "top_logprobs": 1024}},
        filter=["empty"],
        train={"logit_kd": {"epochs": 2, "batch_size": 2, "checkpoint_every_s": 1000} | knobs},
    )
    summary = desk.here(recipe)
    folder = Path(summary["run"])
    lines = [json.loads(line) for line in (folder / "student/alignment.jsonl").read_text("utf-8").splitlines()]
    assert all(line["checksum"] for line in lines)
    assert sum(line["defined"] for line in lines) > 0
    story = json.loads((folder / "student/training.json").read_text("utf-8"))
    assert story["targets"]["defined"] == sum(line["defined"] for line in lines)
    return curve(folder / "student"), story["targets"]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"temperature": 2.0, "weight_by": "token"},
        {"top_k": 5, "weight_by": "row", "gradient_accumulation": 3},
        {"divergence": "jsd", "lora_rank": None},
        {"packing": True, "max_length": 256},
    ],
    ids=str,
)
def test_a_teacher_that_is_the_student_teaches_nothing(desk: Desk, student: Path, knobs: dict[str, Any]) -> None:
    """The whole road by token ids: no loss and no gradient at any position, the end among them."""
    still = {"alpha": 1.0, "learning_rate": 1e-9}  # at more, Adam would walk on noise
    lines, story = road(desk, student, student, **still, **knobs)
    assert story["by_ids"] == story["rows"] == len(TEXTS)
    assert story["share"] == 1.0
    for line in lines:
        assert line["ce"] > 3, "the words themselves are not likely"
        assert line["loss"] == pytest.approx(0, abs=5e-6)  # float16 keeps three digits
        assert line["grad_norm"] < 5e-3


def test_a_teacher_of_another_vocabulary_goes_by_bytes(desk: Desk, student: Path, tmp_path: Path) -> None:
    reader = tiny("llama", tmp_path / "reader", fallback_tokenizer())
    lines, story = road(desk, reader, student, most_undefined=1.0)
    assert story["by_bytes"] == story["rows"] == len(TEXTS)
    assert 0 < story["share"] < 1
    assert story["masked"]["the teacher did not show its end"] == len(TEXTS)
    assert lines[0]["kd"] > 0.1
    assert lines[0]["grad_norm"] > 0.1


def test_labels_that_a_reader_found_likely(desk: Desk, student: Path) -> None:
    """The whole road of a classify task, with a sweep's kind of override, and gold labels for the words."""
    desk.seeds([{"prompt": f"the film was {word}", "label": "negative"} for word in ("good", "bad", "awful", "lovely")])
    recipe = desk.recipe(
        models={
            "teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}},
            "reader": {"transformers": {"model": str(student), "device": "cpu"}},
            "student": {"transformers": {"model": str(student), "device": "cpu"}},
        },
        answers={"max_tokens": 8, "attach": {"model": "reader"}},
        train={"logit_kd": {"epochs": 1}},
    )
    told = {}
    for override in ("train.hard_labels=teacher", "train.hard_labels=gold"):
        summary = desk.here(recipe, override)
        folder = Path(summary["run"])
        told[override] = json.loads((folder / "student/training.json").read_text("utf-8"))
        probs = [row["label_probs"] for row in desk.rows({"run": folder}, "kept")]
        sure = sum(max(p) for p in probs) / 4
        assert told[override]["targets"]["mean_confidence"] == pytest.approx(sure)
        assert len(curve(folder / "student")) == 1
    trained = [story["checks"]["trained_tokens"] for story in told.values()]
    assert trained[0] != trained[1], "positive has other tokens"


CACHE = ROOT / "data" / "quickstart" / "cache"
SMOLLM, GEMMA = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf", CACHE / "gemma-3-270m-q4_k_m.gguf"


@pytest.mark.weights
@pytest.mark.skipif(not SMOLLM.is_file(), reason="needs data/quickstart/prepare.py")
def test_a_real_teacher_that_writes_its_own_text(desk: Desk, tmp_path: Path) -> None:
    """SmolLM2's answers with their twenty logprobs, learnt by token ids, and by bytes by a student with Gemma's tokenizer."""
    desk.seeds(
        [{"prompt": text} for text in ("Name three animals.", "What is 2024 minus 1990?", "Say hello in Japanese.")]
    )
    for file, way, share in ((SMOLLM, "by_ids", 1.0), (GEMMA, "by_bytes", 0.7)):
        own = weights.load_tokenizer(str(file))
        student = tiny("llama", tmp_path / way, own)
        recipe = desk.recipe(
            task="generate",
            models={
                "teacher": {"transformers": {"model": str(SMOLLM), "device": "cpu"}},
                "student": {"transformers": {"model": str(student), "device": "cpu"}},
            },
            answers={"max_tokens": 60, "top_logprobs": 20},
            train={"logit_kd": {"epochs": 1, "batch_size": 4}},
        )
        summary = desk.here(recipe)
        folder = Path(summary["run"])
        story = json.loads((folder / "student/training.json").read_text("utf-8"))["targets"]
        assert story[way] == story["rows"] == summary["stages"]["filter"]["rows_out"] > 0
        assert share <= story["share"] <= 1
        if way == "by_bytes":
            assert summary["asked"] == 0, "one teacher's answers serve every student"


TEACHER = {"scripted": {"default": "positive"}}
STUDENT = {"transformers": {"model": "org/name"}}


@pytest.mark.parametrize(
    ("keys", "repair"),
    [
        ({}, "add `top_logprobs: 20` to answers"),
        (
            {"answers": {"top_logprobs": 20}, "task": "generate", "train": {"logit_kd": {"hard_labels": "gold"}}},
            "remove `hard",
        ),
        ({"answers": {"top_logprobs": 20}, "train": {"logit_kd": {"hard_labels": "gold"}}}, "no row has one"),
        ({"answers": {"top_logprobs": 20}, "train": {"logit_kd": {"alpha": 2}}}, "train.logit_kd.alpha"),
        (
            {"answers": {"top_logprobs": 20}, "train": {"logit_kd": {"beta": 0.5}}},
            "beta: it is a knob of `divergence: jsd`",
        ),
        (
            {"answers": {"top_logprobs": 20}, "train": {"logit_kd": {"draws": 9, "divergence": "jsd"}}},
            "draws: it is a knob of `divergence: sampled`, and divergence is jsd",
        ),
        (
            {"answers": {"top_logprobs": 20}, "train": {"logit_kd": {"most_undefined": 0.2}}},
            "most_undefined: it bounds",
        ),
    ],
)
def test_a_recipe_that_cannot_teach_so_is_refused(desk: Desk, keys: dict[str, Any], repair: str) -> None:
    desk.seeds([{"prompt": "x"}])
    recipe = desk.recipe(**{"models": {"teacher": TEACHER, "student": STUDENT}, "train": "logit_kd"} | keys)
    assert repair in desk.llm_distill("check", recipe, code=2)
