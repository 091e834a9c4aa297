"""The quickstart's own student: its rows are well-formed, and a few steps teach it to answer with a label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_distill.models import weights
from llm_distill.models.decoding import Engine, encode
from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.rows import make_rows, stop_ids
from tests.conftest import ROOT
from tests.trainers.conftest import sft

CACHE = ROOT / "data" / "quickstart" / "cache"
STUDENT = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [pytest.mark.weights, pytest.mark.skipif(not STUDENT.is_file(), reason="needs `make setup`'s assets")]


def samples(count: int) -> list[Sample]:
    """Real sentences; the labels alternate, so that only their form can be learnt."""
    lines = (CACHE / "prompts.jsonl").read_text("utf-8").splitlines()[:count]
    ask = "Classify the text. Answer with exactly one of these labels and nothing else: positive, negative.\n\nText: "
    return [
        Sample(f"r{i}", (Message("user", ask + json.loads(line)["prompt"]),), ["positive", "negative"][i % 2])
        for i, line in enumerate(lines)
    ]


def test_rows_are_what_the_student_is_asked_and_end_once() -> None:
    model, tokenizer = weights.load_model(str(STUDENT), device="cpu"), weights.load_tokenizer(str(STUDENT))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    stops = stop_ids(model, tokenizer)
    engine = Engine(model, tokenizer, name="", identity="", batch_size=1)
    assert engine.ends == stops == {2}
    for sample, row in zip(samples(50), made := make_rows(samples(50), tokenizer, stops, 1024), strict=True):
        assert row.input_ids[: row.prompt_tokens] == encode(engine.tokenizer, sample.messages)
        assert tokenizer.decode(row.input_ids[row.prompt_tokens :]) == sample.completion + "<|im_end|>"
    assert {r.trained_tokens for r in made} == {2}, "each label is one token, and then the end"


def test_a_few_steps_teach_the_form(tmp_path: Path) -> None:
    said: list[str] = []
    losses: list[float] = []
    job = TrainingJob(
        samples(24), {"model": str(STUDENT), "device": "cpu"}, tmp_path, 7,
        on_step=lambda _step, _of, numbers: losses.append(numbers["loss"]), say=said.append,
    )  # fmt: skip
    sft(job, epochs=2)
    assert len(losses) == 6
    print(losses)
    assert losses[-1] < 0.6 * losses[0]
    story = json.loads((tmp_path / "training.json").read_text("utf-8"))
    assert story["trained_parameters"] == 4_884_480
    assert story["checks"]["end_token_is_pad"]
    assert said[0].startswith(
        "The first row, as it is learnt (between ⟦ and ⟧):\n<|im_start|>system\nYou are a helpful AI"
    )
