"""QLoRA: where it is refused, and what of it can be had without CUDA."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.trainers import TrainingJob, quantised
from llm_distill.trainers.hyper import Hyperparameters
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.trainers.conftest import sft
from tests.trainers.test_trackers import recipe

MakeJob = Callable[..., TrainingJob]


def test_weights_of_4_bits_need_cuda(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "load_tokenizer", lambda *_: pytest.fail("loaded"))
    with pytest.raises(
        UserError, match=r"load_in: weights of 4 bits need CUDA, and training is on cpu here; remove it"
    ):
        sft(make_job(20), load_in="4bit")


def test_they_need_lora_and_the_recipe_says_so(tmp_path: Path) -> None:
    from llm_distill.recipe import load

    with pytest.raises(UserError, match=r"load_in: weights of 4 bits cannot be trained.*lora_rank is null; set it, or"):
        load(recipe(tmp_path, {"sft": {"load_in": "4bit", "lora_rank": None}}))
    with pytest.raises(UserError, match=r"train.sft.load_in: .*'4bit'; found '8bit'"):
        load(recipe(tmp_path, {"sft": {"load_in": "8bit"}}))
    assert load(recipe(tmp_path, {"sft": {"load_in": "4bit"}})).trainer


def test_they_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"bitsandbytes is not installed; `pip install 'llm-distill\[qlora\]'`, or remove"
    ):
        quantised.check(Hyperparameters(load_in="4bit"), SimpleNamespace(type="cuda"))
    quantised.check(Hyperparameters(), SimpleNamespace(type="cpu"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_only_the_adapter_learns_and_it_is_exact(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes computes on a CPU as well, in the order of CUDA where it is kept from packing weights anew."""
    from bitsandbytes.nn import modules

    from llm_distill.trainers import loop, sft_loop

    monkeypatch.setattr(quantised, "check", lambda *_: None)
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    kept: dict[str, Any] = {}
    follow = loop.follow

    def followed(trainer: Any, *more: Any) -> Any:
        kept["before"] = {name: p.clone() for name, p in trainer.model.named_parameters()}
        kept["trainer"] = follow(trainer, *more)
        return kept["trainer"]

    monkeypatch.setattr(sft_loop, "follow", followed)
    # Scales are quantised in blocks of 64 numbers, and rows begin a block.
    student = tiny("llama", tmp_path / "student", byte_level_tokenizer(), hidden_size=64, head_dim=16)
    job = make_job(20, model=student)
    sft(job, load_in="4bit", lora_rank=4)
    model = kept["trainer"].model
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learnt
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in learnt.items())
    for name, p in model.named_parameters():
        assert torch.equal(p, kept["before"][name].to(p.dtype)) != (name in learnt), name
    linear = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert linear.weight.quant_type == "nf4"
    assert linear.weight.quant_state.nested, "scales are quantised as well"
    published = weights.load_model(str(student), adapter=str(job.out), device="cpu")
    for name, p in published.named_parameters():
        assert name not in learnt or torch.equal(p, learnt[name])
