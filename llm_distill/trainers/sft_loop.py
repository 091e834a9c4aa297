"""TRL's SFTTrainer on rows of ours, in our order: what a batch is, and what is minimised on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill.trainers import mishaps, processes
from llm_distill.trainers.loop import Stop, alone, common, follow, pad_token, quietly
from llm_distill.trainers.packing import Unit, units_of
from llm_distill.trainers.rows import UNTRAINED, Row
from llm_distill.trainers.validation import Validation, look

if TYPE_CHECKING:
    from llm_distill.trainers.course import Objective

#: Of a batch, what the model reads; the rest is the objective's.
OF_THE_MODEL = ("input_ids", "labels", "attention_mask", "position_ids")


def arguments(folder: Path, settings: dict[str, Any], seed: int, *, on_cpu: bool) -> Any:
    """The SFTConfig."""
    from trl import SFTConfig

    return alone(
        SFTConfig(
            **common(folder, settings, seed, on_cpu=on_cpu),
            max_length=None,  # nothing is cut
            dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokenised, masked and checked already
            activation_checkpointing=settings["activation_checkpointing"],
            remove_unused_columns=False,  # `unit` says which rows it is
        )
    )


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    order: Sequence[int],
    args: Any,
    lora: Any,
    report: Callable[[int, dict[str, float]], None],
    stop: Stop,
    checkpoint_every_s: float,
    objective: Objective | None = None,
    units: Sequence[Unit] = (),
    *,
    packed: bool = False,
    validation: Validation | None = None,
) -> Any:
    """An SFTTrainer that reads `rows` (else `units` of them, each `packed` into one sequence) in `order`, minimises `objective`
    (else TRL's own loss) and calls `report(step, logs)` after each step. `validation` looks now and then at units that are not
    in `order`, and may end it.
    """
    import torch
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    together = units or units_of(rows)

    class Collator(DataCollatorForLanguageModeling):  # type: ignore[misc]
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            read = [together[e["unit"]] for e in examples]
            lines = read if packed else [row for u in read for row in u.rows]
            columns = [{"input_ids": line.input_ids, "labels": line.labels} for line in lines]
            if packed:
                columns = [c | {"seq_lengths": u.lengths} for c, u in zip(columns, read, strict=True)]
            batch: dict[str, Any] = super().torch_call(columns)
            if packed:  # it says nothing of where rows begin, and would hide that the positions do
                del batch["attention_mask"]
            if objective is None:
                return batch
            if places := [p for u in read for p in u.places]:
                return batch | objective.tensors(places)
            return batch | {name: t[:0] for name, t in objective.tensors([0]).items()}  # nothing but what fills up

    class Taught(quietly(SFTTrainer, checkpoint_every_s, mishaps.teller(together, order, tokenizer))):  # type: ignore[misc]
        tokens = 0.0  # learnt in the step under way

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if objective is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # Of all micro-batches of a step: their means would weigh a token of a short answer more than one of a long.
            mass = self.mass(inputs) if num_items_in_batch is None else num_items_in_batch
            own = {name: inputs.pop(name) for name in OF_THE_MODEL if name in inputs}
            out = model(**own, objective=objective.loss, more=inputs)
            for name, value in out.parts.items() if model.training else ():
                parts[name] = parts.get(name, 0.0) + value / self.tokens
            # Each process divides by the mass of all, and their gradients are averaged.
            return out.loss / mass * self.accelerator.num_processes

        def mass(self, batch: dict[str, Any]) -> Any:
            return (batch["labels"] != UNTRAINED).sum() if objective is None else objective.mass(batch)

        def _get_num_items_in_batch(self, batches: list[dict[str, Any]], device: Any) -> Any:
            if objective is None or not batches:
                return super()._get_num_items_in_batch(batches, device)
            own = [sum((batch["labels"] != UNTRAINED).sum() for batch in batches), sum(map(self.mass, batches))]
            tokens, mass = torch.stack([torch.as_tensor(one, dtype=torch.float32) for one in own]).to(device)
            self.tokens = float(self.accelerator.gather(tokens).sum())
            return self.accelerator.gather(mass).sum()

    parts: dict[str, float] = {}
    seen: dict[str, float] = {}

    def with_parts(step: int, logs: dict[str, float]) -> None:
        report(step, logs | processes.summed(parts) | seen)
        parts.clear()
        seen.clear()

    def enough(step: int) -> bool:
        if validation is not None and validation.due(step):
            seen["validation_loss"] = look(trainer, validation)
        return validation is not None and validation.exhausted

    data = Dataset.from_dict({"unit": range(len(together))})
    trainer = Taught(
        model=model,
        args=args,
        train_dataset=data.select(order),
        processing_class=tokenizer,
        data_collator=Collator(pad_token_id=pad_token(tokenizer), return_position_ids=packed),
        peft_config=lora,
    )
    return follow(trainer, with_parts, stop, enough)
