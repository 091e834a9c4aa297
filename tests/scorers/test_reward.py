"""A reward model: a tiny classifier with one output."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.scorers.reward import reward
from tests.models.conftest import TEMPLATE, _one_thread, byte_level_tokenizer
from tests.scorers.rows import answer

__all__ = ["_one_thread"]


def made(folder: Path, *, labels: int = 1, template: str | None = TEMPLATE, pad: int | None = 2) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = byte_level_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, num_labels=labels, pad_token_id=pad, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def expected(folder: str, prompt: str, text: str) -> float:
    import torch

    network, tokenizer = weights.load_classifier(folder, device="cpu"), weights.load_tokenizer(folder)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return float(network(input_ids=ids).logits[0, 0])


@pytest.mark.parametrize("pad", [2, None])
def test_a_reward_is_the_models_own_whatever_shares_its_batch(pad: int | None, tmp_path: Path) -> None:
    folder = made(tmp_path, pad=pad)
    texts = ["the film was good", "bad", "a dull day, " * 6, "😀", ""]
    rows = [answer(text, prompt="And?") for text in texts]
    found = reward(rows, model=folder, device="cpu", batch_size=3)
    assert list(found.values) == pytest.approx([expected(folder, "And?", text) for text in texts], rel=1e-4, abs=1e-5)
    assert len(set(found.values)) == 5
    assert list(found.why) == [None] * 5


def test_what_cannot_be_read_whole_is_not_measured(tmp_path: Path) -> None:
    folder = made(tmp_path)
    found = reward([answer("good " * 400), answer("good")], model=folder, device="cpu")
    assert math.isnan(found.values[0])
    assert "256 are read" in (found.why[0] or "")
    assert not math.isnan(found.values[1])
    assert list(reward([], model="nobody/loads-this").values) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [({"labels": 3}, "gives 3 numbers and a reward is one"), ({"template": None}, "has no chat template")],
)
def test_what_is_no_reward_model(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        reward([answer("good")], model=made(tmp_path, **how), device="cpu")


def test_a_model_without_a_trained_head(tmp_path: Path) -> None:
    from tests.models.conftest import tiny

    folder = str(tiny("llama", tmp_path, byte_level_tokenizer()))
    with pytest.raises(UserError):
        reward([answer("good")], model=folder, device="cpu")
