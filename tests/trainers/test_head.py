"""The faster head learns the same: PITFALLS 2, 3 and 4. Loss and gradients against TRL's own and against the textbook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from llm_distill.trainers import loop
from llm_distill.trainers.head import score_trained_positions
from llm_distill.trainers.rows import Row, make_rows
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.trainers.conftest import reviews

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "schedule": "constant_with_warmup",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "dtype": "float32",
    "activation_checkpointing": False,
}


def rows() -> list[Row]:
    """Eight rows of 1 to 6 trained words, all of different length, so that every mean over rows or batches is wrong."""
    made = make_rows(reviews(8), byte_level_tokenizer(), {2}, 512)
    assert len({r.trained_tokens for r in made}) > 2
    assert len({len(r.input_ids) for r in made}) > 4
    return made


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Takes the gradients just before the first step."""

    def __init__(self) -> None:
        self.taken: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, _args: Any, _state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        control.should_training_stop = True


def first_update(
    folder: Path, out: Path, batch: int, accumulation: int, *, fast: bool, checkpointing: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update over all eight rows, every weight trained."""
    losses: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(folder)
    knobs = SETTINGS | {
        "batch_size": batch,
        "gradient_accumulation": accumulation,
        "activation_checkpointing": checkpointing,
    }
    args = loop.arguments(out, knobs, 0, on_cpu=True)
    args.max_grad_norm = 0.0
    with loop.quiet():
        trainer = loop.make_trainer(
            model, byte_level_tokenizer(), rows(), range(8), args, None,
            lambda _step, logs: losses.append(logs["loss"]), loop.Stop(), 1e9,
        )  # fmt: skip
        gradients = Gradients()
        trainer.add_callback(gradients)
        if fast:
            assert score_trained_positions(model, torch.tensor([rows()[0].input_ids]))
        trainer.train()
    return losses[0], gradients.taken


def textbook(folder: Path, of: Sequence[Row]) -> tuple[float, dict[str, torch.Tensor]]:
    """Row by row, no padding, all logits: the sum over trained tokens divided by their number."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    count = sum(r.trained_tokens for r in of)
    total = 0.0
    for row in of:
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def untied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families; one with the embedding as its head, one without."""
    tied = request.param == "llama"
    return tiny(request.param, tmp_path_factory.mktemp("m"), byte_level_tokenizer(), tie_word_embeddings=tied)


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("fast", [True, False])
def test_loss_and_gradients_are_the_textbooks(
    untied: Path, tmp_path: Path, batch: int, accumulation: int, fast: bool
) -> None:
    loss, gradients = first_update(untied, tmp_path, batch, accumulation, fast=fast)
    expected_loss, expected = textbook(untied, rows())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_checkpointed_activations_change_nothing(student: Path, tmp_path: Path) -> None:
    plain = first_update(student, tmp_path / "a", 4, 2, fast=True)
    saved = first_update(student, tmp_path / "b", 4, 2, fast=True, checkpointing=True)
    assert plain[0] == pytest.approx(saved[0], abs=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradient, saved[1][name], atol=1e-6, rtol=1e-5)


def test_a_family_that_caps_its_logits_keeps_the_general_head(tmp_path: Path) -> None:
    folder = tiny("gemma2", tmp_path / "m", byte_level_tokenizer(), final_logit_softcapping=2.0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not score_trained_positions(model, torch.tensor([[5, 6, 7]]))
    loss, gradients = first_update(folder, tmp_path / "out", 4, 2, fast=False)
    expected_loss, expected = textbook(folder, rows())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_generation_still_uses_the_models_own_forward(student: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    ids = torch.tensor([[1, 50, 60]])
    before = model(ids, labels=ids)
    with loop.quiet():
        args = loop.arguments(tmp_path, SETTINGS | {"batch_size": 8, "gradient_accumulation": 1}, 0, on_cpu=True)
        loop.make_trainer(
            model, byte_level_tokenizer(), rows(), range(8), args, None, lambda *_: None, loop.Stop(), 1e9
        )
    assert score_trained_positions(model, ids)
    after = model(ids, labels=ids)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
