"""TRL's DPOTrainer made quiet, private, stoppable and exact on resume, as `loop` does it for its SFTTrainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_distill.trainers.checkpoints import seal
from llm_distill.trainers.loop import Stop, _must_be_finite, pad_token, write_weights
from llm_distill.trainers.preferences import Pair

#: What the curve shows beside the loss: TRL's names.
PARTS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


def arguments(folder: Path, settings: dict[str, Any], seed: int, *, on_cpu: bool) -> Any:
    """The DPOConfig. Its one "epoch" is all our passes: the pairs come in an order of ours."""
    from trl import DPOConfig

    weight = settings["sft_weight"]
    args = DPOConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=settings["warmup_ratio"],
        weight_decay=settings["weight_decay"],
        beta=settings["beta"],
        loss_type=["sigmoid", "sft"] if weight else ["sigmoid"],
        loss_weights=[1.0, weight] if weight else None,
        seed=seed,
        max_length=None,  # nothing is cut
        bf16=settings["dtype"] == "bfloat16",
        gradient_checkpointing=settings["activation_checkpointing"],
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    args._n_gpu = min(args.n_gpu, 1)
    return args


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
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Quiet(DPOTrainer):  # type: ignore[misc]
        next_save = time.monotonic() + checkpoint_every_s

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
            return

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # token ids already

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            _must_be_finite("loss", float(loss), self.state.global_step + 1)
            return loss

        def _save(self, output_dir: str | None = None, **_: Any) -> None:
            write_weights(self.model, Path(output_dir or self.args.output_dir))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            begun = time.monotonic()
            super()._save_checkpoint(model, trial)
            seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
            ended = time.monotonic()
            self.next_save = ended + max(checkpoint_every_s, 20 * (ended - begun) if checkpoint_every_s else 0)

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= stop.asked
            control.should_save = state.global_step < state.max_steps and (
                stop.asked or time.monotonic() >= trainer.next_save
            )

        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                _must_be_finite("gradient norm", logs["grad_norm"], state.global_step)
                if state.global_step == 1 and logs["grad_norm"] == 0:
                    raise RuntimeError("The first step's gradients are all zero: the loss does not reach the weights.")
                report(state.global_step, logs)

    columns = {
        "prompt_ids": [p.chosen.input_ids[: p.chosen.prompt_tokens] for p in pairs],
        "chosen_ids": [p.chosen.input_ids[p.chosen.prompt_tokens :] for p in pairs],
        "rejected_ids": [p.rejected.input_ids[p.rejected.prompt_tokens :] for p in pairs],
    }
    whole = lora is None and not isinstance(model, PeftModel)
    trainer = Quiet(
        model=model,
        ref_model=copy.deepcopy(model) if whole else None,  # TRL would read the base again, if need be from the hub
        args=args,
        train_dataset=Dataset.from_dict(columns).select(order),
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=pad_token(tokenizer)),
        peft_config=lora,
        callbacks=[Follow()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
