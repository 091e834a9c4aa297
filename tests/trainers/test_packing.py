"""Packed rows learn what they would alone: loss and gradients are those of the rows, and no row sees another."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoModelForCausalLM

from llm_distill.errors import Interrupted, UserError
from llm_distill.trainers import TrainingJob, loop, packing, sft_loop
from llm_distill.trainers.head import lighten
from llm_distill.trainers.packing import Unit, pack, units_of
from llm_distill.trainers.rows import Row, make_rows
from llm_distill.trainers.soft_targets import SoftTargets
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.trainers.conftest import reviews, sft
from tests.trainers.test_head import FAMILIES, SETTINGS, Gradients, rows, textbook
from tests.trainers.test_sft import curve, learnt
from tests.trainers.test_soft_targets import normal, top

MakeJob = Callable[..., TrainingJob]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=1, max_size=40), st.integers(60, 200))
def test_every_row_is_in_one_sequence_whole(lengths: list[int], longest: int) -> None:
    made = [Row(f"r{i}", [i + 1] * length, 1) for i, length in enumerate(lengths)]
    with loop.quiet():
        packs = pack(units_of(made), longest)
    assert sorted(place for p in packs for place in p.places) == list(range(len(made)))
    assert all(p.rows == tuple(made[place] for place in p.places) for p in packs)
    full = sorted(sum(p.lengths) for p in packs)
    assert full[-1] <= longest
    assert len(full) == 1 or full[0] + full[1] > longest, "two that fit into one would have been packed so"


def test_rows_that_belong_together_stay_so_where_a_sequence_holds_them() -> None:
    made = [Row(f"r{i}", [i + 1] * length, 1) for i, length in enumerate((30, 30, 40, 40, 10))]
    with loop.quiet():
        packs = pack(units_of(made, [(0, 1), (2, 3), (4,)]), 70)
    assert {frozenset(p.places) for p in packs} == {frozenset({0, 1, 4}), frozenset({2}), frozenset({3})} or {
        frozenset(p.places) for p in packs
    } == {frozenset({0, 1}), frozenset({2, 4}), frozenset({3})}


def begin(model: Any) -> None:
    """Known values for LoRA's weights, half of which are zero at first."""
    for name, weights in model.named_parameters():
        if "lora_" in name:
            weights.data = normal(zlib.crc32(name.encode()), *weights.shape) * 0.1


def update(
    folder: Path,
    out: Path,
    rows: Sequence[Row],
    batch: int,
    accumulation: int,
    *,
    lora: bool = False,
    checkpointing: bool = False,
    objective: Any = None,
    fast: bool = True,
    units: Sequence[Unit] = (),
    packed: bool = False,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update over all rows."""
    from peft import LoraConfig

    losses: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(folder)
    sizes = {"batch_size": batch, "gradient_accumulation": accumulation, "activation_checkpointing": checkpointing}
    args = sft_loop.arguments(out, SETTINGS | sizes, 0, on_cpu=True)
    args.max_grad_norm = 0.0
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    with loop.quiet():
        trainer = sft_loop.make_trainer(
            model, byte_level_tokenizer(), rows, range(len(units or rows)), args, adapter,
            lambda _step, logs: losses.append(logs["loss"]), loop.Stop(), 1e9, objective, units,
            packed=packed,
        )  # fmt: skip
        gradients = Gradients()
        trainer.add_callback(gradients)
        begin(trainer.model)
        if fast:
            first = next(iter(trainer.get_train_dataloader()))
            lighten(model, {name: first[name] for name in sft_loop.OF_THE_MODEL if name in first}, share=False)
        trainer.train()
    return losses[0], gradients.taken


def packed(longest: int = 150) -> list[Unit]:
    with loop.quiet():
        packs = pack(units_of(rows()), longest)
    assert 2 <= len(packs) < len(rows())
    assert len({sum(p.lengths) for p in packs}) > 1, "shorter sequences are padded"
    return packs


@pytest.fixture(scope="module", params=[*FAMILIES, "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gemma2: eager attention, logits that are capped behind the head."""
    more = FAMILIES.get(request.param, {"final_logit_softcapping": 2.0, "sliding_window": 12})
    return tiny(request.param, tmp_path_factory.mktemp("m"), byte_level_tokenizer(), **more)


@pytest.mark.parametrize(("batch", "accumulation", "fast"), [(9, 1, True), (1, 9, True), (2, 5, True), (9, 1, False)])
def test_an_update_is_that_of_the_rows_alone(
    folder: Path, tmp_path: Path, batch: int, accumulation: int, fast: bool
) -> None:
    """The textbook's: row by row, all logits, the sum over trained tokens by their number. By our head and by TRL's."""
    loss, gradients = update(folder, tmp_path, rows(), batch, accumulation, fast=fast, units=packed(), packed=True)
    expected_loss, expected = textbook(folder, rows())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("how", [{"lora": True}, {"checkpointing": True}, {"lora": True, "soft": True}])
def test_so_it_is_with_an_adapter_checkpoints_and_an_objective(
    student: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    soft = how.pop("soft", False)
    width = AutoModelForCausalLM.from_pretrained(student).config.vocab_size
    targets = [top(normal(i, row.trained_tokens, width) * 2, 9) for i, row in enumerate(rows())]
    objective = SoftTargets(targets, None, 0.5, temperature=2.0) if soft else None
    alone = update(student, tmp_path / "a", rows(), 2, 4, objective=objective, **how)
    together = update(student, tmp_path / "b", rows(), 2, 4, objective=objective, units=packed(), packed=True, **how)
    assert together[0] == pytest.approx(alone[0], abs=1e-5)
    assert together[1].keys() == alone[1].keys()
    for name, gradient in together[1].items():
        torch.testing.assert_close(gradient, alone[1][name], atol=1e-5, rtol=1e-4, msg=name)


#: What remembers by a state, by a convolution, by distances, and by places in the sequence that nothing can change.
LEAKY: dict[str, dict[str, Any]] = {
    "mamba": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "recurrent_gemma": {},
}


@pytest.mark.parametrize("kind", LEAKY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_family_whose_rows_would_see_each_other_is_refused(
    make_job: MakeJob, tmp_path: Path, kind: str, dtype: str
) -> None:
    model = tiny(kind, tmp_path / "m", byte_level_tokenizer(), **LEAKY[kind])
    with pytest.raises(UserError, match=f"train.packing: rows .* see each other in a {kind} model.*`packing: false`"):
        sft(make_job(20, model=model), packing=True, dtype=dtype, max_length=256)
    assert not list(make_job(20).out.rglob("*.safetensors"))


def test_attention_that_takes_no_heed_of_rows_is_refused(student: Path) -> None:
    def whole(module: Any, query: Any, key: Any, value: Any, _mask: Any, **_: Any) -> Any:
        """Causal over the whole sequence, whatever the mask says."""
        key, value = (part.repeat_interleave(module.num_key_value_groups, 1) for part in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("whole", whole)
    for name, dtype in (("sdpa", torch.float32), ("eager", torch.bfloat16), ("whole", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(student, attn_implementation=name, dtype=dtype)
        if name != "whole":
            packing.check_apart(model, packed())
            continue
        with pytest.raises(UserError, match="see each other in a llama model with whole attention"):
            packing.check_apart(model, packed())


def test_a_packed_run_learns_and_tells(make_job: MakeJob, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    job = make_job(20, say=heard.append)
    sft(job, packing=True, max_length=160, batch_size=2, epochs=8, learning_rate=1e-2)
    assert capfd.readouterr() == ("", "")
    story = json.loads((job.out / "training.json").read_text("utf-8"))
    found = story["checks"]["packing"]
    assert found["rows"] == 20
    said = [line for line in heard if not line.startswith("lint: ")]
    assert said[0].startswith(
        f"train: 20 rows packed into {found['sequences']} sequences ({found['filled']:.0%} full): "
    )
    assert said[1].startswith("The first row"), "of several in its sequence"
    assert said[1].count("assistant") == 1
    lines = curve(job.out)
    assert len(lines) == story["steps"] == 8 * found["sequences"] // 2
    assert lines[-1]["trained_tokens"] == 8 * story["checks"]["trained_tokens"]
    assert lines[-1]["epoch"] == 8
    assert lines[-1]["loss"] < lines[0]["loss"] / 2


def test_a_stopped_run_goes_on_where_it_was(make_job: MakeJob) -> None:
    def press(step: int, _of: int, _numbers: dict[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    knobs: dict[str, Any] = {"packing": True, "max_length": 160, "batch_size": 1, "lora_dropout": 0.1}
    whole = make_job(20, "whole")
    sft(whole, **knobs)
    with pytest.raises(Interrupted):
        sft(make_job(20, on_step=press), **knobs)
    seen: list[int] = []
    job = make_job(20, on_step=lambda step, *_: seen.append(step))
    sft(job, **knobs)
    assert seen[0] == 4
    assert curve(job.out) == curve(whole.out)
    assert learnt(job.out) == learnt(whole.out)
    with pytest.raises(Interrupted):
        sft(make_job(20, "other", on_step=press), **knobs)
    seen.clear()
    sft(make_job(20, "other", on_step=lambda step, *_: seen.append(step)), **knobs | {"packing": False})
    assert seen[0] == 1, "it is another training"


@pytest.mark.parametrize(
    ("key", "where", "value"),
    [
        ("input_ids", (0, 1), 9),
        ("labels", (0, 0), 9),
        ("labels", (1, -1), 9),  # padding that is learnt
        ("position_ids", (0, 70), 70),  # rows that run into one
        ("attention_mask", (), 1),
    ],
)
def test_a_batch_that_is_not_its_sequences_is_a_bug(key: str, where: tuple[int, ...], value: int) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    packs = packed()[-2:]
    collate = DataCollatorForLanguageModeling(pad_token_id=2, return_position_ids=True)
    columns = [{"input_ids": p.input_ids, "labels": p.labels, "seq_lengths": p.lengths} for p in packs]
    batch = collate(columns)
    mask = batch.pop("attention_mask")
    packing.check_packed(batch, packs)
    if where:
        batch[key][where] = torch.tensor(value)
    else:
        batch[key] = mask
    with pytest.raises(RuntimeError, match=key.replace("_", ".")):
        packing.check_packed(batch, packs)
    with pytest.raises(RuntimeError):
        packing.check_packed(collate(columns[:1]), packs)


def test_rows_fill_a_sequence_as_they_fill_a_batch() -> None:
    made = make_rows(reviews(40), byte_level_tokenizer(), {2}, 512)
    with loop.quiet():
        found = packing.filled(pack(units_of(made), 512))
    assert found["filled"] > 0.8
    assert found["rows"] == 40
