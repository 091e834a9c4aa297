"""TRL's trainers made quiet, private, stoppable and exact on resume. Nothing here decides what is learnt.

Left to itself it sends telemetry, asks the hub for the base model's config at each save, prints a line per log, hides
NaN losses behind their running mean and writes a model card into every checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_distill.trainers import mishaps, processes, quantised
from llm_distill.trainers.checkpoints import seal


class Stop:
    """Whether the user has asked to stop. The first Ctrl-C asks; a second is a KeyboardInterrupt as usual."""

    asked = False

    @contextmanager
    def on_ctrl_c(self, say: Callable[[str], None]) -> Iterator[None]:
        """Listen for SIGINT within the block (in the main thread only, which is where Python delivers signals)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def ask(_signal: int, _frame: object) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, previous)
            say("Stopping after this step, with a checkpoint; Ctrl-C again stops at once.")

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what the training libraries warn each other about (names that another will drop), and their bars."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    for noisy in ("trl", "peft", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def versions() -> dict[str, str]:
    """The packages that decide the numbers."""
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}


def common(folder: Path, settings: dict[str, Any], seed: int, *, on_cpu: bool) -> dict[str, Any]:
    """What the configs of all trainers hold. The one "epoch" is all our passes: the rows come in an order of ours, see
    `curve.reading_order`.
    """
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": processes.share(settings["batch_size"]),
        "gradient_accumulation_steps": settings["gradient_accumulation"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["schedule"],
        "warmup_steps": settings["warmup_ratio"],  # below 1 it is a share of the steps
        "weight_decay": settings["weight_decay"],
        "seed": seed,
        "bf16": settings["dtype"] == "bfloat16",  # multiplies in bfloat16; what is trained stays float32
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,  # a coarser curve would not be the same after a resume
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `follow` says when
        "save_total_limit": 2,  # the last whole one, and the one being written
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def alone(args: Any) -> Any:
    """The config for one GPU: seeing several, the Trainer would want DataParallel, which TRL refuses."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def quietly(kind: Any, checkpoint_every_s: float, tell: Callable[[int, int], str]) -> Any:
    """A class of TRL's trainers that tells nobody, stops where its loss is no number, and seals its checkpoints.

    tell(start, stop): what it reads between two places of its reading order, for the message of such a stop.
    """

    class Quiet(kind):  # type: ignore[misc]
        next_save = time.monotonic() + checkpoint_every_s
        micro = 0  # batches of the step under way that are read
        rate = "learning_rate"  # the knob that says how fast it learns

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
            return

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            of_all = processes.summed({"loss": float(loss)})["loss"]
            self.must_be_finite("loss", of_all, self.state.global_step + 1, self.micro, 1)
            self.micro += 1
            return loss

        def must_be_finite(self, what: str, value: float, step: int, micro: int, count: int) -> None:
            """UserError for a number that is none; `count` batches of the step, from `micro` on, made it."""
            if not math.isfinite(value):
                kept = mishaps.kept(Path(self.args.output_dir))
                raise mishaps.not_finite(what, value, step, self.shown(step, micro, count), kept, self.rate)

        def shown(self, step: int, micro: int, count: int) -> str:
            """What these batches of a step hold, where they are read in the reading order."""
            size = self.args.per_device_train_batch_size * processes.count()
            start = ((step - 1) * self.args.gradient_accumulation_steps + micro) * size
            return tell(start, start + count * size)

        def _save(self, output_dir: str | None = None, state_dict: Any = None, **_: Any) -> None:
            if self.args.should_save:
                write_weights(self.model, Path(output_dir or self.args.output_dir), state_dict)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            begun = time.monotonic()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
            ended = time.monotonic()
            self.next_save = ended + max(checkpoint_every_s, 20 * (ended - begun) if checkpoint_every_s else 0)

    return Quiet


def follow(
    trainer: Any,
    report: Callable[[int, dict[str, float]], None],
    stop: Stop,
    enough: Callable[[int], bool] = lambda _step: False,
) -> Any:
    """Have a quiet trainer call `report(step, logs)` after each step, save when it is time, and stop when asked to, or after a
    step of which `enough` says that no more are needed.
    """
    from transformers import PrinterCallback, TrainerCallback

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.micro = 0
            ends = enough(state.global_step)
            stopping, due = processes.agreed(stop.asked, time.monotonic() >= trainer.next_save)
            control.should_training_stop |= stopping or ends
            control.should_save = (
                (stopping or due) and not ends and state.global_step < state.max_steps
            )  # the end needs none

        def on_log(self, args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                batches = args.gradient_accumulation_steps
                trainer.must_be_finite("gradient norm", logs["grad_norm"], state.global_step, 0, batches)
                if state.global_step == 1 and logs["grad_norm"] == 0:
                    raise RuntimeError("The first step's gradients are all zero: the loss does not reach the weights.")
                report(state.global_step, logs)

    quantised.keep_exact(trainer.model)
    trainer.add_callback(Follow())
    trainer.remove_callback(PrinterCallback)
    return trainer


def pad_token(tokenizer: Any) -> int:
    """The id that fills short rows: read by nobody, so any will do."""
    return int(next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None))


def write_weights(model: Any, folder: Path, state_dict: Any = None) -> None:
    """Write what was trained: the adapter with its config, or the whole model where there is no adapter. state_dict: the
    weights, where the model of a process holds but a part of each.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    # PeftModel.save_pretrained would ask the hub about the base model, and list the target modules in any order.
    state = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
