"""Supervised fine-tuning: the student learns to write the teacher's answers, token by token (TRL's SFTTrainer)."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.batch_check import check_batch, check_rows, preview
from llm_distill.trainers.checkpoints import fingerprint, last_whole, publish
from llm_distill.trainers.rows import Row, make_rows, stop_ids

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

#: Rows are sorted by length within a pool of this many batches, as wide a choice as keeps batches well mixed.
_POOL_BATCHES = 16

_GOES_ON = "the same command goes on from its last checkpoint."


def sft(
    job: TrainingJob,
    *,
    # 16 on all linear layers holds far more than a task's labels or tone; null trains every weight instead.
    lora_rank: Count | None = 16,
    # Fixed, not tied to the rank: then the best learning rate hardly moves with it ("LoRA Without Regret", 2025).
    lora_alpha: Count = 32,
    # Two passes over thousands of answers leave little to overfit; dropout costs time and blurs the loss.
    lora_dropout: Share = 0.0,
    # null: 5e-4 with LoRA, which likes ten times what full training does; else 2e-5. On the quickstart (120 teacher
    # labels, 240 rows to judge by) 2e-4, 5e-4 and 1e-3 give 88.3, 88.8 and 89.6 %: within noise of one another.
    learning_rate: Annotated[float, Field(gt=0)] | None = None,
    # On the quickstart 1, 2 and 3 passes give 88.8 % each; the second is for tasks that are harder than two labels.
    epochs: Annotated[float, Field(gt=0)] = 2.0,
    # Few rows should still be many steps (16 did as well on the quickstart); a GPU with 10,000 rows wants more.
    batch_size: Count = 8,
    # For a GPU too small for the batch: 4 with batch_size 2 takes the same steps as 1 with 8.
    gradient_accumulation: Count = 1,
    # TRL's own; longer rows are an error here, never cut.
    max_length: Count = 1024,
    # Adam's second moments are guesses in the first steps.
    warmup_ratio: Share = 0.05,
    # Linear to zero leaves no noise of the last batches in the weights (arXiv 2502.15938).
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear",
    # LoRA's rank already limits it, and decay would pull towards the base model, not towards simplicity.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0,
    # auto: bfloat16 on a GPU that has it; float32 on a CPU, where few have fast bfloat16 and results should be exact.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    # null: on a GPU, where memory runs out first (20 % slower); off on a CPU, where time does.
    activation_checkpointing: bool | None = None,
    # A kill costs at most a minute of work; saving never takes more than a twentieth of the time.
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0,
) -> None:
    """Train on the samples' completions and write the adapter (without LoRA: the model) into `job.out`.

    Called again after a kill, it goes on from the last whole checkpoint and ends with the same weights.
    """
    settings = {name: value for name, value in locals().items() if name != "job"}
    settings["learning_rate"] = learning_rate or (5e-4 if lora_rank else 2e-5)
    missing = [name for name in ("torch", "transformers", "datasets", "peft", "trl") if not find_spec(name)]
    if missing:
        raise UserError(f"train: {', '.join(missing)} not installed; `pip install 'llm-distill[train]'`.")
    from llm_distill.trainers import loop

    try:
        with loop.quiet():
            _train(job, settings)
    except KeyboardInterrupt:
        raise Interrupted(f"Training stopped; {_GOES_ON}") from None


def _train(job: TrainingJob, settings: dict[str, Any]) -> None:
    from llm_distill.trainers import loop
    from llm_distill.trainers.head import lighten

    job.out.mkdir(parents=True, exist_ok=True)
    final = "adapter_model.safetensors" if settings["lora_rank"] else "config.json"
    for stale in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        (job.out / stale).unlink(missing_ok=True)
    every_s = settings.pop("checkpoint_every_s")
    where = job.student["model"], job.student.get("sha256"), job.student.get("revision")
    device = _resolve(settings, job.student.get("device", "auto"))
    tokenizer = weights.load_tokenizer(*where)
    # Only LoRA may stand on bfloat16 weights: a small step on such a weight is rounded away.
    kind = settings["dtype"] if settings["lora_rank"] else "float32"
    model = weights.load_model(*where, dtype=kind, device=str(device))
    rows = make_rows(job.samples, tokenizer, stop_ids(model, tokenizer), settings["max_length"])
    findings = check_rows(rows, tokenizer, rows[0].input_ids[-1])
    order = reading_order([len(r.input_ids) for r in rows], settings["batch_size"], settings["epochs"], job.seed)

    identity = weights.identity(*where)
    checkpoints = job.out / "checkpoints" / fingerprint(rows, settings | loop.versions() | {"base": identity}, job.seed)
    resume = last_whole(checkpoints)
    curve = _Curve(job, rows, order, settings, int(resume.name.rpartition("-")[2]) if resume else 0)
    stop = loop.Stop()
    args = loop.arguments(checkpoints, settings, job.seed, on_cpu=device.type == "cpu")
    trainer = loop.make_trainer(model, tokenizer, rows, order, args, _lora(settings), curve.add, stop, every_s)
    batch = next(iter(trainer.get_train_dataloader()))
    check_batch(batch, [rows[i] for i in order[: settings["batch_size"]]])
    # On CUDA, TRL's kernels score trained positions only; a mixture of experts has a second loss, over all of them.
    ours = device.type == "cpu" and not trainer.aux_loss_enabled
    findings["scored"] = lighten(model, batch, share=not settings["activation_checkpointing"]) if ours else "TRL's head"
    example = preview(rows[order[0]], tokenizer)
    job.say(f"The first row, as it is learnt (between \u27e6 and \u27e7):\n{example}")

    with stop.on_ctrl_c(job.say):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.state.global_step < curve.steps:
        raise Interrupted(f"Training stopped after step {trainer.state.global_step} of {curve.steps}; {_GOES_ON}")

    made = checkpoints.parent / "made"
    if settings["lora_rank"]:
        trainer.model.peft_config["default"].base_model_name_or_path = where[0]
    loop.write_weights(trainer.model, made)
    tokenizer.save_pretrained(made)
    if settings["lora_rank"]:
        weights.sign_adapter(str(made), *where)
    story = {
        "settings": settings,
        "base": identity,
        "seed": job.seed,
        "steps": curve.steps,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "checks": findings,
        "example": example,
        "versions": loop.versions(),
    }
    (made / "training.json").write_text(json.dumps(story, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    publish(made, job.out, final)
    shutil.rmtree(checkpoints.parent)


def _resolve(settings: dict[str, Any], device: str) -> Any:
    """Settle what depends on the machine, in `settings`; gives the torch.device."""
    import torch

    place = weights.pick_device(device)
    if place.index:
        raise UserError(
            f"train: device is {device}, but training takes the first GPU it sees; "
            f"write `device: cuda` and set CUDA_VISIBLE_DEVICES={place.index}."
        )
    if settings["dtype"] == "auto":
        fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        settings["dtype"] = "bfloat16" if fast else "float32"
    if settings["activation_checkpointing"] is None:
        settings["activation_checkpointing"] = place.type != "cpu"
    return place


def _lora(settings: dict[str, Any]) -> Any:
    from peft import LoraConfig

    if settings["lora_rank"] is None:
        return None
    return LoraConfig(
        r=settings["lora_rank"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules="all-linear",  # attention alone learns less, at any rank ("LoRA Without Regret")
        task_type="CAUSAL_LM",
    )


class _Curve:
    """The training curve: a line of metrics.jsonl a step, of which only `seconds` is a clock's."""

    def __init__(
        self, job: TrainingJob, rows: Sequence[Row], order: Sequence[int], settings: dict[str, Any], done: int
    ) -> None:
        per_step = settings["batch_size"] * settings["gradient_accumulation"]
        self.steps = math.ceil(len(order) / per_step)
        trained = list(accumulate(rows[i].trained_tokens for i in order))
        self._trained = [trained[min(step * per_step, len(order)) - 1] for step in range(1, self.steps + 1)]
        self._epochs_a_step, self._epochs = per_step / len(rows), len(order) / len(rows)
        self._job, self._path = job, job.out / "metrics.jsonl"
        kept = self._path.read_text("utf-8").splitlines()[:done] if done and self._path.exists() else []
        self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._begun = time.monotonic() - (json.loads(kept[-1])["seconds"] if kept else 0.0)

    def add(self, step: int, logs: dict[str, float]) -> None:
        line = {
            "step": step,
            "epoch": round(min(step * self._epochs_a_step, self._epochs), 4),
            **{name: logs[name] for name in ("loss", "learning_rate", "grad_norm")},
            "trained_tokens": self._trained[step - 1],
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._job.on_step(step, self.steps, line)


def reading_order(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[int]:
    """Row numbers in the order in which they are learnt: `epochs` shuffled passes, rows of like length side by side.

    A batch is padded to its longest row, so mixed lengths cost time. Batches stay in random order: sorting a whole pass
    would teach the short rows at one learning rate and the long ones at another.
    """
    draw = random.Random(seed)
    order: list[int] = []
    reads = max(1, round(len(lengths) * epochs))
    while len(order) < reads:
        order += draw.sample(range(len(lengths)), len(lengths))
    del order[reads:]
    mixed: list[int] = []
    pool = batch_size * min(_POOL_BATCHES, max(1, len(lengths) // batch_size))
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        short = [batches.pop()] if len(batches[-1]) < batch_size else []  # only the very last batch may be short
        draw.shuffle(batches)
        mixed += [i for batch in batches + short for i in batch]
    return mixed
