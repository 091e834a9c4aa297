"""Training end to end on a tiny student: what it writes, that it repeats, stops, goes on and refuses."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoTokenizer

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.plugs import Spec, bind
from llm_distill.records import Message, Sample
from llm_distill.trainers import TRAINERS, TrainingJob, course, sft_loop
from llm_distill.trainers import loop as training_loop
from llm_distill.trainers.curve import reading_order
from tests.conftest import ROOT
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer, tiny
from tests.trainers.conftest import sft

MakeJob = Callable[..., TrainingJob]


def curve(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without its clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def learnt(out: Path) -> bytes:
    return (out / "adapter_model.safetensors").read_bytes()


def test_it_learns_and_tells(make_job: MakeJob, student: Path) -> None:
    steps: list[tuple[int, int, float]] = []
    said: list[str] = []
    job = make_job(20, on_step=lambda step, of, n: steps.append((step, of, n["loss"])), say=said.append)
    sft(job, epochs=8, learning_rate=1e-2)
    assert [s[:2] for s in steps] == [(i, 20) for i in range(1, 21)]
    assert steps[-1][2] < steps[0][2] / 2
    assert len(said) == 2
    assert said[0].startswith("lint: duplicates: 6 of 20 rows")
    assert "<|im_start|>assistant\n⟦" in said[1]
    assert said[1].endswith("<|im_end|>⟧")
    lines = curve(job.out)
    assert [line["loss"] for line in lines] == [s[2] for s in steps]
    assert set(lines[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "trained_tokens"}
    story = json.loads((job.out / "training.json").read_text("utf-8"))
    assert lines[-1]["trained_tokens"] == 8 * story["checks"]["trained_tokens"]
    assert lines[-1]["epoch"] == 8
    assert story["checks"]["end_token"] == "<|im_end|>"
    assert story["checks"]["end_token_is_pad"]
    assert story["trained_parameters"] == sum(t.numel() for t in safetensors.torch.load(learnt(job.out)).values())
    assert not (job.out / "checkpoints").exists()
    with training_loop.quiet():
        model = weights.load_model(str(student), adapter=str(job.out), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(job.out)  # it travels with the adapter
    sample = job.samples[1]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample.messages[0].content}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    said_back = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(said_back[0, ids.shape[1] :]) == sample.completion + "<|im_end|>"


def test_equal_runs_are_equal_bytes(make_job: MakeJob) -> None:
    for out in ("a", "b"):
        sft(make_job(20, out), lora_dropout=0.1)
    a, b = make_job(20, "a").out, make_job(20, "b").out
    assert curve(a) == curve(b)
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    for name in names:
        assert name == "metrics.jsonl" or (a / name).read_bytes() == (b / name).read_bytes(), name


KILLED = """
import os, signal, sys
from pathlib import Path
from llm_distill.trainers import TrainingJob
from tests.trainers.conftest import reviews, sft
import torch
torch.set_num_threads(1)
def on_step(step, _of, _numbers):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
job = TrainingJob(reviews(20), {"model": sys.argv[1], "device": "cpu"}, Path(sys.argv[2]), seed=7, on_step=on_step)
sft(job, lora_dropout=0.1, gradient_accumulation=1, checkpoint_every_s=0)
"""


def test_a_killed_run_goes_on_where_it_was(make_job: MakeJob, student: Path) -> None:
    whole, broken = make_job(20, "whole"), make_job(20, "broken")
    sft(whole, lora_dropout=0.1)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(student), str(broken.out)], cwd=ROOT, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (broken.out / "adapter_model.safetensors").exists()
    assert len(curve(broken.out)) == 4, "step 4 was logged, and no checkpoint of it written"
    (folder,) = (broken.out / "checkpoints").iterdir()
    torn = folder / "checkpoint-4"  # killed while it was being written: it looks whole to the Trainer
    shutil.copytree(folder / "checkpoint-3", torn)
    with (torn / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    seen: list[int] = []
    sft(make_job(20, "broken", on_step=lambda step, *_: seen.append(step)), lora_dropout=0.1)
    assert seen == [4, 5]
    assert curve(broken.out) == curve(whole.out)
    assert learnt(broken.out) == learnt(whole.out)


def test_ctrl_c_saves_and_the_next_call_goes_on(make_job: MakeJob) -> None:
    said: list[str] = []

    def press(step: int, _of: int, _numbers: dict[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step 3 of 5; the same command goes on"):
        sft(make_job(20, on_step=press, say=said.append))
    assert "Ctrl-C again stops at once" in said[-1]
    assert signal.getsignal(signal.SIGINT) is before
    seen: list[int] = []
    sft(make_job(20, on_step=lambda step, *_: seen.append(step)))
    assert seen == [4, 5]
    sft(make_job(20, "whole"))
    assert learnt(make_job(20).out) == learnt(make_job(20, "whole").out)


def test_a_second_ctrl_c_stops_at_once(make_job: MakeJob) -> None:
    def press(_step: int, _of: int, _numbers: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="Training stopped; the same command goes on"):
        sft(make_job(20, on_step=press))


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"batch_size": 4}, {"max_length": 99}])
def test_other_settings_start_afresh(make_job: MakeJob, change: dict[str, Any]) -> None:
    def press(_step: int, _of: int, _numbers: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        sft(make_job(20, on_step=press))
    seen: list[int] = []
    sft(make_job(20, on_step=lambda step, *_: seen.append(step)), **change)
    assert seen[0] == 1


def test_nothing_reaches_out_or_prints(
    make_job: MakeJob, reached: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    sft(make_job(20), checkpoint_every_s=0)
    assert reached == []
    assert capfd.readouterr() == ("", "")


def test_a_loss_that_is_no_number_stops_the_run(make_job: MakeJob) -> None:
    job = make_job(20)
    with pytest.raises(UserError, match=r"train: the (loss|gradient norm) became (nan|inf) at step [2-5]. Lower learn"):
        sft(job, learning_rate=1e30, warmup_ratio=0)
    assert not (job.out / "adapter_model.safetensors").exists()


def test_gradients_of_zero_stop_the_run(make_job: MakeJob, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "dead", byte_level_tokenizer())
    file = folder / "model.safetensors"
    dead = {name: torch.zeros_like(t) for name, t in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(dead, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="gradients are all zero"):
        sft(make_job(20, model=folder))


def test_a_base_model_learns_from_plain_text(make_job: MakeJob, tmp_path: Path) -> None:
    folder = tiny("gemma3_text", tmp_path / "base", fallback_tokenizer(), sliding_window=12)
    said: list[str] = []
    job = make_job(20, model=folder, say=said.append)
    sft(job, epochs=8, learning_rate=1e-2)
    assert said[-1].splitlines()[1].startswith("<bos>Positive or negative")
    assert said[-1].count("<bos>") == 1
    assert said[-1].endswith("<eos>⟧")
    losses = [line["loss"] for line in curve(job.out)]
    assert losses[-1] < losses[0] / 2


def talks(count: int) -> list[Sample]:
    """Conversations of one or two answers."""
    made = []
    for i in range(count):
        before = (Message("user", "the phone?"), Message("assistant", "a dull day" if i % 2 else "good"))
        made.append(
            Sample(f"r{i}", (*before * (i % 3 > 0), Message("user", "the film?")), "bad" if i % 2 else "lovely")
        )
    return made


def test_a_family_with_a_recurrent_state_is_adapted_where_it_can_be(make_job: MakeJob, tmp_path: Path) -> None:
    base = tiny("falcon_h1", tmp_path / "base", byte_level_tokenizer())
    job = make_job(8, model=base)
    sft(job, epochs=1)
    adapted = {name.split(".")[-3] for name in safetensors.torch.load(learnt(job.out))}
    assert adapted >= {"q_proj", "down_proj", "in_proj"}
    assert "out_proj" not in adapted


def test_padding_that_the_model_has_no_row_for(make_job: MakeJob, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    base = tiny("llama", tmp_path / "base", tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    job = make_job(8, model=base)
    sft(job, epochs=1, batch_size=4)
    assert curve(job.out)


def test_all_turns_of_a_conversation_are_learnt(make_job: MakeJob) -> None:
    stories = {}
    for turns in ("last", "all"):
        job = make_job(talks(12), turns)
        sft(job, turns=turns, epochs=20, learning_rate=1e-2)
        stories[turns] = json.loads((job.out / "training.json").read_text("utf-8"))
        assert curve(job.out)[-1]["trained_tokens"] == 20 * stories[turns]["checks"]["trained_tokens"]
    assert stories["all"]["turns"] == {"rows": 12, "earlier": 8}
    assert stories["all"]["checks"]["trained_tokens"] > stories["last"]["checks"]["trained_tokens"]
    with training_loop.quiet():
        model = weights.load_model(str(job.student["model"]), adapter=str(job.out), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(job.out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the phone?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(said[0, ids.shape[1] :]) in ("a dull day<|im_end|>", "good<|im_end|>"), "never a last turn"


def test_bfloat16_keeps_the_adapter_exact(make_job: MakeJob) -> None:
    job = make_job(20)
    sft(job, epochs=4, learning_rate=1e-2, dtype="bfloat16", activation_checkpointing=True)
    tensors = safetensors.torch.load(learnt(job.out))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    losses = [line["loss"] for line in curve(job.out)]
    assert losses[-1] < losses[0] / 2
    sft(make_job(20, "after"), epochs=1)  # float32 again in the same process


def test_without_lora_the_whole_model_is_written(make_job: MakeJob) -> None:
    def press(step: int, _of: int, _numbers: dict[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        sft(make_job(20, on_step=press), lora_rank=None, learning_rate=1e-3)
    sft(make_job(20), lora_rank=None, learning_rate=1e-3)
    sft(make_job(20, "whole"), lora_rank=None, learning_rate=1e-3)
    out = make_job(20).out
    story = json.loads((out / "training.json").read_text("utf-8"))
    assert story["trained_parameters"] == story["parameters"]
    assert not (out / "adapter_config.json").exists()
    assert (out / "model.safetensors").read_bytes() == (make_job(20, "whole").out / "model.safetensors").read_bytes()
    weights.load_model(str(out), device="cpu")


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [5 + (i * 37) % 200 for i in range(1000)]
    order = reading_order(lengths, 8, 2.5, seed=3)
    assert order == reading_order(lengths, 8, 2.5, seed=3)
    assert order != reading_order(lengths, 8, 2.5, seed=4)
    assert sorted(order[:1000]) != list(range(1000)), "pools run on from one pass into the next"
    counts = [order.count(i) for i in range(1000)]
    assert (min(counts), max(counts), len(order)) == (2, 3, 2500)
    batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, len(order), 8)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded / sum(lengths[i] for i in order) < 1.15, "mixed at random it is 1.7"
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)


@pytest.mark.parametrize(("rows", "epochs", "expected"), [(1, 0.1, 1), (3, 2, 6), (9, 0.5, 4), (8, 1, 8), (17, 1, 17)])
def test_few_rows_are_read_as_often_as_asked(rows: int, epochs: float, expected: int) -> None:
    order = reading_order([10] * rows, 8, epochs, seed=0)
    assert len(order) == expected
    assert {order.count(i) for i in range(rows)} <= {math.floor(epochs), math.ceil(epochs)}


def test_what_this_machine_lacks_is_said(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "pick_device", torch.device)
    job = make_job(20)
    job.student["device"] = "cuda:1"
    with pytest.raises(UserError, match=r"device is cuda:1.*set CUDA_VISIBLE_DEVICES=1"):
        sft(job)
    monkeypatch.setattr(course, "find_spec", lambda name: None if name == "trl" else name)
    with pytest.raises(UserError, match=r"train: trl not installed; `pip install 'llm-distill\[train\]'`"):
        sft(job)


def test_its_knobs_are_checked_with_the_recipe(tmp_path: Path) -> None:
    def read(**knobs: Any) -> Any:
        return bind(
            "trainer", Spec("sft", knobs, "train.sft"), TRAINERS, {"folder": tmp_path, "files": set(), "roles": []}
        )

    assert read(epochs=1).knobs["hyper"].lora_rank == 16
    for wrong in ({"epoch": 1}, {"lora_rank": 0}, {"schedule": "triangle"}, {"learning_rate": -1}, {"dtype": "fp8"}):
        with pytest.raises(UserError, match=f"train.sft.*{next(iter(wrong))}"):
            read(**wrong)


def test_settings_do_what_they_say(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    arguments = sft_loop.arguments

    def keep(*args: Any, **kwargs: Any) -> Any:
        made.append(arguments(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(sft_loop, "arguments", keep)
    job = make_job(20)
    knobs: dict[str, Any] = {"schedule": "cosine", "warmup_ratio": 0.4, "weight_decay": 0.1}
    sft(job, epochs=4, lora_rank=4, lora_alpha=8, gradient_accumulation=2, **knobs)
    assert made[0].weight_decay == 0.1
    rates = [line["learning_rate"] for line in curve(job.out)]
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, *(2.5e-4 * (1 + math.cos(math.pi * part / 3)) for part in (1, 2))])
    config = json.loads((job.out / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
