"""The course that every trainer built on TRL's SFTTrainer takes: load, tokenise, check, train, publish.

What is learnt at a position is the trainer's: the text alone (TRL's own loss), or an `Objective`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.records import Sample
from llm_distill.trainers import TrainingJob, mishaps, packing, processes, quantised
from llm_distill.trainers.batch_check import counts, preview, ready
from llm_distill.trainers.checkpoints import fingerprint, publish, resumed, step_of
from llm_distill.trainers.curve import Curve, reading_order
from llm_distill.trainers.findings import Finding, Linted, as_json, refuse
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.lint import Shelf, lint
from llm_distill.trainers.lint_targets import lint_targets
from llm_distill.trainers.rows import Row, Turns, make_rows, stop_ids
from llm_distill.trainers.soft_targets import SoftTargets
from llm_distill.trainers.trackers import tracked
from llm_distill.trainers.validation import set_aside, watch

#: What a message of a training that was stopped ends with.
GOES_ON = "the same command goes on from its last checkpoint."
#: Families whose kernels read the weights of `out_proj` past its module, so that an adapter there is refused by PEFT.
_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


class Objective(Protocol):
    """What is minimised in place of cross-entropy with the text."""

    @property
    def parts(self) -> Sequence[str]:
        """What a loss is made of, beside the loss itself: names of numbers for the curve."""

    @property
    def digest(self) -> str:
        """Of all that it knows of the rows: with other knowledge, training is not gone on with."""

    def tensors(self, places: Sequence[int]) -> dict[str, Any]:
        """What it knows of the rows at some places: tensors whose first dimension is their n trained positions, row after
        row.
        """

    def loss(self, states: Any, head: Any, wanted: Any, more: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """The sum over n positions, and its parts likewise.

        states: (n, width), what predicts each trained token; head: the module that makes (n, vocabulary) logits of them;
        wanted: (n,), the tokens of the text; more: `tensors` of the batch.
        """

    def mass(self, batch: Mapping[str, Any]) -> Any:
        """What the sum over a batch counts for, (): a step's sums are divided by that of all its batches."""


@dataclass(frozen=True)
class Lesson:
    """What a trainer teaches: token rows with what else is known of them.

    settings: its knobs that decide how training goes; story: more keys for training.json; packed: several rows are read as one
    sequence of at most max_length tokens; groups: places of rows that belong into one batch, where not each stands for itself.
    `batch_size` counts sequences, or groups. samples: what the rows were made of, where that is not what the job has.
    """

    rows: Sequence[Row]
    objective: Objective | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    story: Mapping[str, Any] = field(default_factory=dict)
    packed: bool = False
    groups: Sequence[tuple[int, ...]] = ()
    samples: Sequence[Sample] = ()


class Desk:
    """The student's tokenizer and model, loaded where and as the knobs say. `settings` are the knobs, settled."""

    def __init__(self, job: TrainingJob, hyper: Hyperparameters) -> None:
        missing = [name for name in ("torch", "transformers", "datasets", "peft", "trl") if not find_spec(name)]
        if missing:
            raise UserError(f"train: {', '.join(missing)} not installed; `pip install 'llm-distill[train]'`.")
        if processes.first():
            job.out.mkdir(parents=True, exist_ok=True)
            for stale in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
                (job.out / stale).unlink(missing_ok=True)
        self.job, self.hyper = job, hyper
        self.settings = hyper.deciding | {"learning_rate": hyper.rate}
        self.where = job.student["model"], job.student.get("sha256"), job.student.get("revision")
        self.device = _resolve(self.settings, job.student.get("device", "auto"))
        quantised.check(hyper, self.device)
        self.tokenizer = weights.load_tokenizer(*self.where)
        # Only LoRA may stand on bfloat16 weights: a small step on such a weight is rounded away.
        kind = self.settings["dtype"] if hyper.lora_rank else "float32"
        if hyper.load_in:
            self.model = quantised.load(self.where, kind, str(self.device))
        else:
            self.model = weights.load_model(*self.where, dtype=kind, device=str(self.device))
        # A padding token that was added to the tokenizer alone: nobody learns from it, but it is looked up all the same.
        if (self.tokenizer.pad_token_id or 0) >= self.model.get_input_embeddings().weight.shape[0]:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def rows(
        self,
        completions: Mapping[str, Sequence[int]] | None = None,
        samples: Sequence[Sample] | None = None,
        turns: Turns = "last",
    ) -> list[Row]:
        """The job's samples (or these) as token rows, some with completions that are token ids already, by row_id. How long they
        may be is for the linter to say.
        """
        ends, wanted = stop_ids(self.model, self.tokenizer), self.job.samples if samples is None else samples
        return make_rows(wanted, self.tokenizer, ends, None, completions or {}, turns)


@contextmanager
def stoppable() -> Iterator[None]:
    """Training libraries kept quiet; Ctrl-C is an Interrupted that says how to go on, memory or disk that runs out a UserError
    that says what to do.
    """
    from llm_distill.trainers import loop

    try:
        with loop.quiet(), mishaps.explained():
            yield
    except KeyboardInterrupt:
        raise Interrupted(f"Training stopped; {GOES_ON}") from None


def train(desk: Desk, lesson: Lesson) -> None:
    """Train on a lesson and write the adapter (without LoRA: the model), its curve and its story into `job.out`.

    Called again after a kill, it goes on from the last whole checkpoint and ends with the same weights. A job that is only to be
    looked at raises Linted before the first step; an error that the linter finds is a UserError.
    """
    from llm_distill.trainers import loop, sft_loop

    job, hyper, model, rows = desk.job, desk.hyper, desk.model, lesson.rows
    settings = {**desk.settings, **lesson.settings}
    findings = linted(desk, lesson)
    checks = counts(rows, desk.tokenizer, rows[0].input_ids[-1])
    whole = packing.units_of(rows, lesson.groups)
    held = set_aside(job.samples, whole, hyper.validation_share)
    units = [unit for unit in whole if held.isdisjoint(unit.places)]
    # Of like length side by side; a look has no use for what is together.
    aside = [packing.Unit((p,), (rows[p],)) for p in sorted(held, key=lambda p: len(rows[p].input_ids))]
    if lesson.packed:
        units = packing.pack(units, hyper.max_length)
        packing.check_apart(model, units)
        checks["packing"] = packing.filled(units)
    lengths = [sum(u.lengths) if lesson.packed else max(u.lengths) for u in units]
    order = reading_order(lengths, hyper.batch_size, hyper.epochs, job.seed)

    identity = weights.identity(*desk.where)
    known = settings | loop.versions() | {"base": identity}
    if lesson.objective:
        known["objective"] = lesson.objective.digest
    if lesson.packed or lesson.groups or aside:
        known["units"] = [u.places for u in units]
    checkpoints = job.out / "checkpoints" / fingerprint(rows, known, job.seed)
    resume = resumed(checkpoints)
    done = step_of(resume) if resume else 0
    curve = Curve(job, units, order, hyper, done, lesson.objective.parts if lesson.objective else ())
    looks = range(len(units), len(units) + len(aside))
    validation = watch(looks, curve, hyper, checkpoints, done, job.seed)
    units, order = processes.evened(units, order, hyper.batch_size)
    stop, args = loop.Stop(), sft_loop.arguments(checkpoints, settings, job.seed, on_cpu=desk.device.type == "cpu")
    trainer = sft_loop.make_trainer(
        model, desk.tokenizer, rows, order, args, lora_config(hyper, model), curve.add, stop, hyper.checkpoint_every_s,
        lesson.objective, [*units, *aside], packed=lesson.packed, validation=validation,
    )  # fmt: skip
    first = [units[i] for i in processes.own(order, hyper.batch_size)]
    checks["scored"], of_batch = ready(desk, lesson, trainer, first)
    findings += of_batch
    if lesson.packed:
        job.say(packing.told(checks["packing"], curve.steps))
    _told(job, findings)
    example = preview(first[0].rows[0], desk.tokenizer)
    job.say(f"The first row, as it is learnt (between \u27e6 and \u27e7):\n{example}")

    with stop.on_ctrl_c(job.say), tracked(hyper.tracker if processes.first() else None, curve, job):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    ended = trainer.state.global_step
    if ended < curve.steps and not (validation and validation.exhausted):
        raise Interrupted(f"Training stopped after step {ended} of {curve.steps}; {GOES_ON}")

    story = {
        "settings": settings,
        "base": identity,
        "seed": job.seed,
        "steps": curve.steps,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "checks": checks,
        "lint": as_json(findings),
        "example": example,
        "versions": loop.versions(),
        **job.told,
        **lesson.story,
    }
    best = None
    if validation:
        best, story["validation"] = validation.place(validation.best[0]), validation.story()
        job.say(validation.told())
    finish(desk, trainer, story, checkpoints.parent, best)


def _told(job: TrainingJob, findings: Sequence[Finding]) -> None:
    """Say what the linter warns of. A job that is only to be looked at ends here, and so does one with an error."""
    if job.only_lint:
        raise Linted(findings)
    refuse(findings)
    for finding in findings:
        if finding.level == "warning":
            job.say(f"lint: {finding.name}: {finding.line}")


def linted(desk: Desk, lesson: Lesson) -> list[Finding]:
    """What there is to say of the rows themselves; an error is the end, unless all of them are wanted."""
    job, rows, config = desk.job, lesson.rows, desk.model.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None)
    samples, end = lesson.samples or job.samples, rows[0].input_ids[-1]
    shelf = Shelf(samples, desk.tokenizer, end, desk.hyper.max_length, context, job.task)
    findings = lint(rows, shelf)
    if isinstance(lesson.objective, SoftTargets):
        findings += lint_targets(lesson.objective)
    if job.only_lint and any(finding.level == "error" for finding in findings):
        raise Linted(findings)
    refuse(findings)
    return findings


def finish(desk: Desk, trainer: Any, story: Mapping[str, Any], checkpoints: Path, best: Path | None = None) -> None:
    """Publish what was trained, the file whose presence says so last, and drop the checkpoints. `best`: a folder whose weights
    take the place of the model's.
    """
    made = checkpoints / "made"
    if desk.hyper.lora_rank:
        trainer.model.peft_config["default"].base_model_name_or_path = desk.where[0]
    trainer.save_model(str(made), _internal_call=True)  # in all processes, each of which may hold but a part
    if not processes.first():
        return
    for file in best.glob("*.safetensors*") if best else ():
        shutil.copyfile(file, made / file.name)
    desk.tokenizer.save_pretrained(made)
    if desk.hyper.lora_rank:
        weights.sign_adapter(str(made), *desk.where)
    (made / "training.json").write_text(json.dumps(story, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    publish(made, desk.job.out, "adapter_model.safetensors" if desk.hyper.lora_rank else "config.json")
    shutil.rmtree(checkpoints)


def _resolve(settings: dict[str, Any], device: str) -> Any:
    """Settle what depends on the machine, in `settings`; gives the torch.device."""
    import torch

    place = weights.pick_device(device)
    if place.index:
        raise UserError(
            f"train: device is {device}, but training takes the first GPU it sees; "
            f"write `device: cuda` and set CUDA_VISIBLE_DEVICES={place.index}."
        )
    if place.type == "cuda" and processes.count() > 1:
        place = torch.device("cuda", processes.local_rank())
    if settings["dtype"] == "auto":
        fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        settings["dtype"] = "bfloat16" if fast else "float32"
    if settings["activation_checkpointing"] is None:
        settings["activation_checkpointing"] = place.type != "cpu"
    return place


def lora_config(hyper: Hyperparameters, model: Any) -> Any:
    """PEFT's LoraConfig for a model; None where every weight is trained."""
    from peft import LoraConfig

    if hyper.lora_rank is None:
        return None
    return LoraConfig(
        r=hyper.lora_rank,
        lora_alpha=hyper.lora_alpha,
        lora_dropout=hyper.lora_dropout,
        exclude_modules=["out_proj"] if model.config.model_type in _MAMBA else None,
        target_modules="all-linear",  # attention alone learns less, at any rank ("LoRA Without Regret")
        task_type="CAUSAL_LM",
    )
