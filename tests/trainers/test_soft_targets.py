"""The sparse loss is the dense one where nothing is left out, and never more than it is where something is."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm_distill.trainers import loop, sft_loop, sparse_kd
from llm_distill.trainers.head import lighten
from llm_distill.trainers.rows import Row
from llm_distill.trainers.soft_targets import SoftTargets
from llm_distill.trainers.sparse_kd import buckets, divergence, with_tail
from llm_distill.trainers.targets import Targets
from tests.models.conftest import byte_level_tokenizer
from tests.trainers.test_head import SETTINGS, Gradients, rows

KINDS = ("forward_kl", "jsd", "sampled")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(teacher: torch.Tensor, student: torch.Tensor, kind: str, temperature: float, beta: float) -> torch.Tensor:
    """(n,): the textbook's divergence of whole vocabularies of logits."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    if kind == "forward_kl":
        return temperature**2 * (p * (p / q).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1))


def whole(logits: torch.Tensor) -> Targets:
    """Everything a teacher has to say at each position."""
    n, width = logits.shape
    ids = np.tile(np.arange(width, dtype=np.int32), (n, 1))
    return Targets(ids, logits.log_softmax(-1).numpy(), np.ones(n, bool))


def top(logits: torch.Tensor, k: int) -> Targets:
    found = logits.double().log_softmax(-1).topk(k)
    return Targets(found.indices.numpy().astype(np.int32), found.values.numpy(), np.ones(len(logits), bool))


def scored(objective: SoftTargets, logits: torch.Tensor, wanted: torch.Tensor | None = None) -> tuple[Any, Any]:
    """The objective's loss on logits, and its gradient."""
    leaf = logits.clone().requires_grad_()
    wanted = torch.zeros(len(logits), dtype=torch.long) if wanted is None else wanted
    places = range(len(objective.targets))
    loss, _ = objective.loss(leaf, torch.nn.Identity(), wanted, objective.tensors(list(places)))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 9),
    width=st.integers(2, 300),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    kind=st.sampled_from(["forward_kl", "jsd"]),
    beta=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_of_the_whole_vocabulary_it_is_the_dense_divergence(
    seed: int, n: int, width: int, temperature: float, kind: Any, beta: float
) -> None:
    teacher, student = normal(seed, n, width) * 2, normal(seed + 1000, n, width) * 2
    leaf = student.clone().requires_grad_()
    expected = dense(teacher, leaf, kind, temperature, beta).sum()
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss, found = scored(SoftTargets([whole(teacher)], None, 1.0, temperature, kind, beta), student)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6 * temperature**2)
    assert torch.allclose(found, gradient.float(), rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    k=st.integers(1, 30),
    temperature=st.sampled_from([1.0, 2.0, 4.0]),
    kind=st.sampled_from(["forward_kl", "jsd"]),
)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(seed: int, k: int, temperature: float, kind: Any) -> None:
    logits = normal(seed, 5, 40) * 3
    loss, gradient = scored(SoftTargets([top(logits, k)], None, 1.0, temperature, kind), logits)
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert float(gradient.abs().max()) < 1e-4


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 40))
def test_fewer_buckets_never_see_more(seed: int, k: int) -> None:
    """The data processing inequality: merging outcomes brings two distributions closer. And they are never below zero."""
    teacher, student = normal(seed, 4, 40) * 2, normal(seed + 1, 4, 40) * 2
    found = [float(scored(SoftTargets([top(teacher, size)], None, 1.0), student)[0]) for size in (k, 40)]
    assert -1e-6 < found[0] <= found[1] + 1e-5


def test_a_rest_that_rounding_could_have_made_is_none() -> None:
    """Of the whole vocabulary nothing is left, however it was stored; what is left of a part is not thrown away."""
    logprobs = (normal(3, 200, 50) * 3).double().log_softmax(-1)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.isneginf(with_tail(logprobs.to(dtype))[:, -1]).all(), dtype
    kept = logprobs.sort(descending=True).values[:, :5]
    missing = 1 - kept.exp().sum(-1)
    assert torch.allclose(with_tail(kept.float())[:, -1].exp().double(), missing, rtol=1e-3, atol=1e-6)


def test_the_rest_of_the_mass_is_learnt_too() -> None:
    """Scaled to 1, a top-1 target would pull its token to certainty; with the tail it stops where the teacher is."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    leaf = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    objective = SoftTargets([top(teacher, 1)], None, 1.0)
    more = objective.tensors([0])
    for _ in range(300):
        optimizer.zero_grad()
        loss, _ = objective.loss(leaf, torch.nn.Identity(), torch.zeros(1, dtype=torch.long), more)
        loss.backward()
        optimizer.step()
    assert float(leaf.detach().softmax(-1)[0, 0]) == pytest.approx(float(teacher.softmax(-1)[0, 0]), abs=1e-4)


def test_random_sampling_has_the_forward_gradient_in_expectation() -> None:
    teacher, student = normal(1, 6, 30), normal(2, 6, 30)
    _, expected = scored(SoftTargets([top(teacher, 8)], None, 1.0), student)
    torch.manual_seed(0)
    many = SoftTargets([top(teacher, 8)], None, 1.0, kind="sampled", draws=10)
    found = torch.stack([scored(many, student)[1] for _ in range(3000)])
    error = found.std(0) / math.sqrt(3000)
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-6).all()
    assert float(found[0].sub(expected).abs().max()) > 1e-3, "it does sample"


def test_where_the_teacher_is_unknown_its_text_counts_whole() -> None:
    teacher, student = normal(1, 4, 20), normal(2, 4, 20)
    wanted = torch.tensor([3, 1, 4, 1])
    target = top(teacher, 5)
    target.defined[:] = [True, False, True, False]
    loss, _ = scored(SoftTargets([target], None, 0.25, temperature=2.0), student, wanted)
    ce = torch.nn.functional.cross_entropy(student, wanted, reduction="none")
    kd = divergence(
        with_tail(torch.from_numpy(target.logprobs)),
        buckets(student, torch.from_numpy(target.ids).long())[0],
        temperature=2.0,
    )
    expected = (0.25 * kd + 0.75 * ce)[[0, 2]].sum() + ce[[1, 3]].sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_rows_of_unlike_width_share_a_batch() -> None:
    teacher, student = normal(1, 5, 20), normal(2, 5, 20)
    parts = [top(teacher[:2], 3), top(teacher[2:], 9)]
    together, _ = scored(SoftTargets(parts, None, 1.0), student)
    apart = [scored(SoftTargets([p], None, 1.0), s)[0] for p, s in zip(parts, (student[:2], student[2:]), strict=True)]
    assert float(together) == pytest.approx(float(sum(apart)), rel=1e-5)


def test_no_more_than_a_chunk_is_ever_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Head(torch.nn.Linear):  # type: ignore[misc]
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            seen.append(len(states))
            return super().forward(states)

    teacher, states = normal(1, 50, 64), normal(2, 50, 8).requires_grad_()
    head = Head(8, 64)
    wanted = torch.arange(50)
    objective = SoftTargets([top(teacher, 5)], None, 0.5)
    once, _ = objective.loss(states, head, wanted, objective.tensors([0]))
    whole_gradients = torch.autograd.grad(once, [states, head.weight, head.bias])
    monkeypatch.setattr(sparse_kd, "_CHUNK_LOGITS", 64 * 7)
    seen.clear()
    loss, parts = objective.loss(states, head, wanted, objective.tensors([0]))
    assert max(seen) == 7
    assert sum(seen) == 50, "and nothing is projected twice"
    assert float(loss.detach()) == pytest.approx(float(once.detach()), rel=1e-5)
    for one, other in zip(torch.autograd.grad(loss, [states, head.weight, head.bias]), whole_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        silent, again = objective.loss(states, head, wanted, objective.tensors([0]))
    assert float(silent) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert again == pytest.approx(parts, rel=1e-5)


def test_the_scale_of_each_part_is_known_beforehand() -> None:
    teacher, states = normal(1, 6, 30) * 4, normal(2, 6, 8)
    head, wanted = torch.nn.Linear(8, 30), torch.arange(6)
    objective = SoftTargets([top(teacher, 5)], None, 0.3)
    _, norms = objective.scales(states, head, wanted, objective.tensors([0]))
    leaf = states.clone().requires_grad_()
    (by_hand,) = torch.autograd.grad(torch.nn.functional.cross_entropy(head(leaf), wanted, reduction="sum"), leaf)
    assert norms["ce"] == pytest.approx(float(by_hand.norm()), rel=1e-4)
    assert norms["kd"] > 0


def teachers(of: Sequence[Row], width: int) -> list[torch.Tensor]:
    return [normal(7 + i, row.trained_tokens, width) * 2 for i, row in enumerate(of)]


def begin(model: Any) -> None:
    """Give LoRA's weights known values: half of them start at zero, so that half of the gradients would be zero."""
    for name, weights in model.named_parameters():
        if "lora_" in name:
            weights.data = normal(zlib.crc32(name.encode()), *weights.shape) * 0.1


def update(
    folder: Path, out: Path, batch: int, accumulation: int, objective: SoftTargets | None, *, lora: bool, share: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update over all eight rows."""
    from peft import LoraConfig

    losses: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(folder)
    args = sft_loop.arguments(
        out, SETTINGS | {"batch_size": batch, "gradient_accumulation": accumulation}, 0, on_cpu=True
    )
    args.max_grad_norm = 0.0
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    with loop.quiet():
        trainer = sft_loop.make_trainer(
            model, byte_level_tokenizer(), rows(), range(8), args, adapter,
            lambda _step, logs: losses.append(logs["loss"]), loop.Stop(), 1e9, objective,
        )  # fmt: skip
        gradients = Gradients()
        trainer.add_callback(gradients)
        begin(trainer.model)
        first = next(iter(trainer.get_train_dataloader()))
        lighten(model, {name: first[name] for name in ("input_ids", "labels", "attention_mask")}, share=share)
        trainer.train()
    return losses[0], gradients.taken


def by_hand(folder: Path, alpha: float, temperature: float, *, lora: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The same from the textbook: each row alone, its logits whole, no chunk, no cache, no padding."""
    from peft import LoraConfig, get_peft_model

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        with loop.quiet():
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        begin(model)
    tokens, total = sum(row.trained_tokens for row in rows()), torch.zeros(())
    for row, teacher in zip(rows(), teachers(rows(), model.config.vocab_size), strict=True):
        ids = torch.tensor([row.input_ids])
        student = model(input_ids=ids).logits[0, row.prompt_tokens - 1 : -1]
        ce = torch.nn.functional.cross_entropy(student, ids[0, row.prompt_tokens :], reduction="sum")
        kd = dense(teacher, student, "forward_kl", temperature, 0.5).sum()
        total = total + (alpha * kd + (1 - alpha) * ce) / tokens
    total.backward()
    return float(total.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("lora", [False, True])
def test_an_update_is_the_textbooks(student: Path, tmp_path: Path, batch: int, accumulation: int, lora: bool) -> None:
    """With padding, with accumulation, with and without LoRA: the loss's shift, its mask and its denominator."""
    width = AutoModelForCausalLM.from_pretrained(student).config.vocab_size
    objective = SoftTargets([whole(t) for t in teachers(rows(), width)], None, 0.7, temperature=2.0)
    expected, gradients = by_hand(student, 0.7, 2.0, lora=lora)
    loss, found = update(student, tmp_path, batch, accumulation, objective, lora=lora, share=True)
    assert loss == pytest.approx(expected, rel=1e-5)
    named = {name.replace("base_model.model.", ""): g for name, g in gradients.items()}
    assert {name.replace("base_model.model.", "") for name in found} == set(named)
    for name, gradient in found.items():
        other = named[name.replace("base_model.model.", "")]
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-5 * float(other.abs().max())), name


def test_without_the_teachers_part_it_is_fine_tuning(student: Path, tmp_path: Path) -> None:
    width = AutoModelForCausalLM.from_pretrained(student).config.vocab_size
    objective = SoftTargets([top(t, 20) for t in teachers(rows(), width)], None, 0.0)
    plain, gradients = update(student, tmp_path / "a", 4, 2, None, lora=False, share=False)
    loss, found = update(student, tmp_path / "b", 4, 2, objective, lora=False, share=False)
    assert loss == pytest.approx(plain, rel=1e-5)
    for name, gradient in found.items():
        assert torch.allclose(gradient, gradients[name], rtol=1e-3, atol=1e-6), name
