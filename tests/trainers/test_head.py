"""The faster head learns the same: PITFALLS 2, 3 and 4. Loss and gradients against TRL's own and against the textbook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from llm_distill.trainers import head, loop, sft_loop
from llm_distill.trainers.head import lighten, shared_tokens
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
    folder: Path,
    out: Path,
    batch: int,
    accumulation: int,
    *,
    fast: bool,
    share: bool = True,
    checkpointing: bool = False,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update over all eight rows, every weight trained."""
    losses: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(folder)
    knobs = SETTINGS | {
        "batch_size": batch,
        "gradient_accumulation": accumulation,
        "activation_checkpointing": checkpointing,
    }
    args = sft_loop.arguments(out, knobs, 0, on_cpu=True)
    args.max_grad_norm = 0.0
    with loop.quiet():
        trainer = sft_loop.make_trainer(
            model, byte_level_tokenizer(), rows(), range(8), args, None,
            lambda _step, logs: losses.append(logs["loss"]), loop.Stop(), 1e9,
        )  # fmt: skip
        gradients = Gradients()
        trainer.add_callback(gradients)
        if fast:
            scored = lighten(model, next(iter(trainer.get_train_dataloader())), share=share)
            assert scored == "trained positions" + ", shared beginnings" * share
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


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": False},
    # Sees 12 tokens back in its first layer: fewer than the rows share.
    "gemma3_text": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(request.param, tmp_path_factory.mktemp("m"), byte_level_tokenizer(), **FAMILIES[request.param])


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize(("fast", "share"), [(True, True), (True, False), (False, False)])
def test_loss_and_gradients_are_the_textbooks(
    model_folder: Path, tmp_path: Path, batch: int, accumulation: int, fast: bool, share: bool
) -> None:
    loss, gradients = first_update(model_folder, tmp_path, batch, accumulation, fast=fast, share=share)
    expected_loss, expected = textbook(model_folder, rows())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_checkpointed_activations_change_nothing(student: Path, tmp_path: Path) -> None:
    plain = first_update(student, tmp_path / "a", 4, 2, fast=True)
    saved = first_update(student, tmp_path / "b", 4, 2, fast=True, share=False, checkpointing=True)
    assert plain[0] == pytest.approx(saved[0], abs=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradient, saved[1][name], atol=1e-5, rtol=1e-4)


def first_batch() -> dict[str, torch.Tensor]:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    data = [{"input_ids": r.input_ids, "labels": r.labels} for r in rows()[:4]]
    return DataCollatorForLanguageModeling(pad_token_id=2)(data)  # type: ignore[no-any-return]


def test_a_family_that_caps_its_logits_keeps_trls_head(tmp_path: Path) -> None:
    folder = tiny("gemma2", tmp_path / "m", byte_level_tokenizer(), final_logit_softcapping=2.0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert lighten(model, first_batch()) == "every position"
    loss, gradients = first_update(folder, tmp_path / "out", 4, 2, fast=False)
    expected_loss, expected = textbook(folder, rows())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_cap_shows_through_what_bfloat16_rounds(tmp_path: Path) -> None:
    """Gemma 2's: of logits around 9 it takes a thirtieth, which is eight times as much as rounding does."""
    for kind, cap in (("gemma2", 30.0), ("gemma2", None), ("llama", None), ("qwen3", None)):
        settings = {"final_logit_softcapping": cap} if kind == "gemma2" else {}
        folder = tiny(kind, tmp_path / f"{kind}{cap}", byte_level_tokenizer(), **settings)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert lighten(model, first_batch(), share=False) == ("every position" if cap else "trained positions")


def with_trls_head(model: Any, out: Path) -> Any:
    """The model as SFTTrainer leaves it."""
    args = sft_loop.arguments(out, SETTINGS | {"batch_size": 4, "gradient_accumulation": 1}, 0, on_cpu=True)
    with loop.quiet():
        sft_loop.make_trainer(model, byte_level_tokenizer(), rows(), range(8), args, None, print, loop.Stop(), 1e9)
    return model


def test_dropout_is_drawn_by_every_row_for_itself(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "m", byte_level_tokenizer(), attention_dropout=0.1)
    model = with_trls_head(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "out")
    assert lighten(model, first_batch()) == "trained positions"


def test_many_logits_are_left_to_trls_tiles(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_trls_head(AutoModelForCausalLM.from_pretrained(student), tmp_path)
    lighten(model, first_batch())
    ours = model(**first_batch(), fused_lm_head=True)
    monkeypatch.setattr(head, "_MANY_LOGITS", 10)
    trls = model(**first_batch(), fused_lm_head=True)
    assert (ours.loss is None, trls.loss is None) == (True, False), "only TRL's fills in `loss`"
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(ours, name), getattr(trls, name), atol=1e-5, rtol=1e-5)


def test_the_token_that_predicts_the_first_trained_one_is_never_shared() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 2], [1, 5, 6, 7, 8, 3, 2]])
    labels = torch.full_like(ids, -100)
    labels[0, 4:] = ids[0, 4:]
    labels[1, 5:] = ids[1, 5:]
    assert shared_tokens(ids, labels) == 3, "position 3 predicts position 4, the first that is trained"
    assert shared_tokens(ids[:1], labels[:1]) == 0, "one row shares with nobody"


def test_generation_still_uses_the_models_own_forward(student: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    ids = torch.tensor([[1, 50, 60]])
    before = model(ids, labels=ids)
    lighten(with_trls_head(model, tmp_path), first_batch())
    after = model(ids, labels=ids)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
