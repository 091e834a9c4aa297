"""TRL's DistillationTrainer, by the same rules as its SFTTrainer: see `loop`.

Left to itself it lets the student's own generation_config decide part of its rollouts, samples with dropout, divides by one
temperature for the loss and for sampling without the loss's square, numbers left-padded rows from their padding, and
knows no answers but the student's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from llm_distill.trainers import mishaps
from llm_distill.trainers.loop import Stop, alone, common, follow, pad_token, quietly
from llm_distill.trainers.packing import units_of
from llm_distill.trainers.rows import Row


@dataclass(frozen=True)
class Dense:
    """A teacher of the student's vocabulary, of whom every logit is known: the loss is TRL's generalised JSD, times
    temperature squared.
    """

    model: Any
    beta: float
    temperature: float
    parts: Sequence[str] = ("entropy",)


class Scorer(Protocol):
    """A teacher whose distributions come some other way."""

    #: Names of numbers for the curve.
    parts: Sequence[str]

    def loss(
        self, logits: Any, places: Sequence[int], completions: Sequence[Sequence[int]]
    ) -> tuple[Any, Mapping[str, float]]:
        """The sum over all tokens of a batch, and its parts likewise.

        logits: (batch, k, vocabulary), the student's for each token of the completions, which are padded on the right;
        places: which rows were answered.
        """


@dataclass(frozen=True)
class Rollouts:
    """How the student answers: in which share of the steps, how warm, how long, where it stops, and by what."""

    share: float
    temperature: float
    max_new_tokens: int
    ends: Sequence[int]
    seed: int
    vllm: bool = False

    def due(self, step: int) -> bool:
        """Whether the student answers in a step, counted from 0: evenly spread, so that the share is exact."""
        return math.floor((step + 1) * self.share + 1e-9) > math.floor(step * self.share + 1e-9)


def arguments(folder: Path, settings: dict[str, Any], plan: Rollouts, *, on_cpu: bool) -> Any:
    """The DistillationConfig."""
    from trl import DistillationConfig

    return alone(
        DistillationConfig(
            **common(folder, settings, plan.seed, on_cpu=on_cpu),
            shuffle_dataset=False,
            beta=settings["beta"],
            temperature=plan.temperature,
            max_completion_length=plan.max_new_tokens,
            use_vllm=plan.vllm,
            vllm_max_model_length=settings["max_length"] if plan.vllm else None,
            gradient_checkpointing=settings["activation_checkpointing"],
        )
    )


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    order: Sequence[int],
    args: Any,
    lora: Any,
    teacher: Dense | Scorer,
    plan: Rollouts,
    report: Callable[[int, dict[str, float]], None],
    show: Callable[[int, Sequence[int]], None],
    stop: Stop,
    checkpoint_every_s: float,
) -> Any:
    """A DistillationTrainer that has the prompts of `rows` answered in `order`, whole batches of them: by the student where
    that is due, else by what the rows hold. It calls `report(step, logs)` after each step, and `show(row, ids)` with the
    student's first answer.
    """
    import torch
    from datasets import Dataset
    from trl import DistillationTrainer

    dense = teacher if isinstance(teacher, Dense) else None
    sums: dict[str, float] = {}

    tell = mishaps.teller(units_of(rows), order, tokenizer)

    class Answering(quietly(DistillationTrainer, checkpoint_every_s, tell)):  # type: ignore[misc]
        places: Sequence[int] = ()
        batches: Sequence[Mapping[str, Any]] = ()  # of the step under way, those that are read

        def shown(self, _step: int, micro: int, count: int) -> str:
            # TRL shuffles a step's answers over its batches, and whose answers they are changes from step to step.
            read = [row for batch in self.batches[micro : micro + count] for row in _read(batch, rows)]
            return mishaps.listed(read, tokenizer)

        def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
            self.places = prompts
            return [rows[place].input_ids[: rows[place].prompt_tokens] for place in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: list[list[int]], *more: Any, **kwargs: Any) -> list[list[int]]:
            step = self.state.global_step
            sums["on_policy"] = float(plan.due(step))
            if not plan.due(step):
                return [rows[place].input_ids[rows[place].prompt_tokens :] for place in self.places]
            with _as_it_is(self.model, plan.ends, pad_token(tokenizer)):
                answers: list[list[int]] = super()._generate_single_turn(prompt_ids, *more, **kwargs)
            if not any(plan.due(earlier) for earlier in range(step)):
                show(self.places[0], answers[0])
            return answers

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            self.batches = ()
            sums["trained_tokens"] = float(batch["num_items_in_batch"])
            return batch | {"places": torch.tensor(list(self.places), device=batch["prompt_ids"].device)}

        def _get_last_hidden_state(self, model: Any, ids: Any, mask: Any, keep: int, **_: Any) -> Any:
            states = _plain(model).base_model(input_ids=ids, use_cache=False, **_places(model, mask)).last_hidden_state
            return states[:, :-1][:, -keep:]

        def _compute_loss(self, student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
            self.batches = [*self.batches, inputs]
            if dense is not None:
                loss, entropy, count = super()._compute_loss(student, inputs, num_items_in_batch)
                return loss * dense.temperature**2, entropy, count
            ids, answers = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1), inputs["completion_mask"]
            mask, keep = torch.cat([inputs["prompt_mask"], answers], 1), answers.shape[1]
            logits = student(input_ids=ids, use_cache=False, **_places(student, mask)).logits[:, -keep - 1 : -1]
            completions = [c[m.bool()].tolist() for c, m in zip(inputs["completion_ids"], answers, strict=True)]
            total, parts = teacher.loss(logits, inputs["places"].tolist(), completions)  # type: ignore[union-attr]
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value / sums["trained_tokens"]
            return total / num_items_in_batch, total.detach() * 0, answers.sum()

    def with_sums(step: int, logs: dict[str, float]) -> None:
        report(step, logs | sums)
        sums.clear()

    trainer = Answering(
        model=model,
        teacher_model=dense.model if dense else None,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": list(order)}),
        processing_class=tokenizer,
        peft_config=lora,
    )
    if dense:
        trainer.temperature = dense.temperature  # the loss's; sampling has its own already
    trainer.eos_token_ids = trainer.generation_config.eos_token_id = list(plan.ends)
    return follow(trainer, with_sums, stop)


def _read(batch: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    """What a batch holds: each prompt with the answer that was read behind it, whoever gave it."""
    read = []
    answers = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    for place, (ids, mask) in zip(batch["places"].tolist(), answers, strict=True):
        row = rows[place]
        read.append(
            Row(row.row_id, [*row.input_ids[: row.prompt_tokens], *ids[mask.bool()].tolist()], row.prompt_tokens)
        )
    return read


def whole_batches(order: Sequence[int], size: int) -> list[int]:
    """The order, begun again until its last step is as large as the others, which TRL would leave out."""
    return [order[i % len(order)] for i in range(math.ceil(len(order) / size) * size)]


@contextmanager
def _as_it_is(model: Any, ends: Sequence[int], pad: int) -> Iterator[None]:
    """Within the block the model samples from its distribution, whatever its makers' generation_config says, and without
    dropout.
    """
    from transformers import GenerationConfig

    base = _plain(model)
    theirs, training = base.generation_config, model.training
    ours = GenerationConfig(eos_token_id=list(ends), pad_token_id=pad)
    model.eval()
    base.generation_config = model.generation_config = ours  # PEFT hands on the one that it holds
    try:
        yield
    finally:
        base.generation_config = model.generation_config = theirs
        model.train(training)


def _plain(model: Any) -> Any:
    """The causal LM itself, behind an adapter or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _places(model: Any, mask: Any) -> dict[str, Any]:
    """An attention mask (batch, seq), and positions that count from each row's first token, where a model takes them."""
    if "position_ids" not in signature(_plain(model).forward).parameters:
        return {"attention_mask": mask}
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
