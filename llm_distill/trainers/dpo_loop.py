"""TRL's DPOTrainer, by the same rules as its SFTTrainer: see `loop`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_distill.trainers import mishaps
from llm_distill.trainers.loop import Stop, alone, common, follow, pad_token, quietly
from llm_distill.trainers.packing import units_of
from llm_distill.trainers.preferences import Pair

#: What the curve shows beside the loss: TRL's names.
PARTS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


def arguments(folder: Path, settings: dict[str, Any], seed: int, *, on_cpu: bool) -> Any:
    """The DPOConfig."""
    from trl import DPOConfig

    weight = settings["sft_weight"]
    return alone(
        DPOConfig(
            **common(folder, settings, seed, on_cpu=on_cpu),
            max_length=None,
            beta=settings["beta"],
            loss_type=["sigmoid", "sft"] if weight else ["sigmoid"],
            loss_weights=[1.0, weight] if weight else None,
            gradient_checkpointing=settings["activation_checkpointing"],
        )
    )


def make_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    order: Sequence[int],
    args: Any,
    lora: Any,
    report: Callable[[int, dict[str, float]], None],
    stop: Stop,
    checkpoint_every_s: float,
) -> Any:
    """A DPOTrainer that reads `pairs` in `order` and calls `report(step, logs)` after each step.

    The reference is the model as it is given: with `lora`, a new adapter, it is the model without one; a model that has an
    adapter is held against a copy of that; whole weights against a copy of themselves.
    """
    from datasets import Dataset
    from peft import PeftModel
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    tell = mishaps.teller(units_of([p.chosen for p in pairs]), order, tokenizer)

    class Preferring(quietly(DPOTrainer, checkpoint_every_s, tell)):  # type: ignore[misc]
        rate = "round_rate"

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # token ids already

    columns = {
        "prompt_ids": [p.chosen.input_ids[: p.chosen.prompt_tokens] for p in pairs],
        "chosen_ids": [p.chosen.input_ids[p.chosen.prompt_tokens :] for p in pairs],
        "rejected_ids": [p.rejected.input_ids[p.rejected.prompt_tokens :] for p in pairs],
    }
    whole = lora is None and not isinstance(model, PeftModel)
    trainer = Preferring(
        model=model,
        ref_model=copy.deepcopy(model) if whole else None,  # TRL would read the base again, if need be from the hub
        args=args,
        train_dataset=Dataset.from_dict(columns).select(order),
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=pad_token(tokenizer)),
        peft_config=lora,
    )
    return follow(trainer, report, stop)
