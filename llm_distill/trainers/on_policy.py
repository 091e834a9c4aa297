"""The course that learning from one's own answers takes: warm up on the teacher's, then answer and be told, token by token.

On-policy distillation (GKD, Agarwal et al. 2023, arXiv 2306.13649): in a share of the steps the student answers, and at
each token of its own answer the teacher's distribution is the target. What the teacher is differs: `gkd`, `gold`, `server`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.plugs import Group
from llm_distill.records import content_id
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.batch_check import counts
from llm_distill.trainers.checkpoints import fingerprint, last_whole
from llm_distill.trainers.course import GOES_ON, Desk, Lesson, finish, linted, lora_config, stoppable, train
from llm_distill.trainers.curve import reading_order
from llm_distill.trainers.findings import Linted, as_json
from llm_distill.trainers.hyper import Count, Hyperparameters
from llm_distill.trainers.on_policy_checks import base, tokenizer
from llm_distill.trainers.rows import render, stop_ids
from llm_distill.trainers.trackers import tracked

if TYPE_CHECKING:
    from llm_distill.plugs import Plug
    from llm_distill.trainers.on_policy_loop import Dense, Scorer

Positive = Annotated[float, Field(gt=0)]
#: More answers than this cut at max_new_tokens are worth a word.
_CLIPPED = 0.1


@dataclass(frozen=True)
class OnPolicy(Group):
    """How the student's own answers come about; `epochs` and `learning_rate` hold for them and for the warm-up alike."""

    # The share of steps in which the student answers; in the others it reads the teacher's answers. From 0.25 on GKD beats
    # what never leaves the teacher's answers (arXiv 2306.13649).
    lam: Annotated[float, Field(gt=0, le=1)] = 0.5
    # Passes of plain SFT on the teacher's answers first: a student who babbles is told about babble.
    warm_up_epochs: Annotated[float, Field(ge=0)] = 1.0
    # null: as many as the teacher was allowed. A cut answer teaches no ending.
    max_new_tokens: Count | None = None
    # Of the student's sampling alone; 1 is the student as it is.
    sampling_temperature: Positive = 1.0
    # Answers by vLLM beside the trainer, on CUDA: many times faster where they are long.
    use_vllm: bool = False


@dataclass(frozen=True)
class Teaching:
    """A teacher: who it is (`identity`), and what it is for a student that is loaded (`begin`)."""

    identity: str
    begin: Callable[[Desk], Dense | Scorer]


def learn(
    job: TrainingJob, hyper: Hyperparameters, own: OnPolicy, teaching: Teaching, settings: Mapping[str, Any]
) -> None:
    """Warm up, train on-policy, and write the adapter into `job.out`. metrics.jsonl has a column `round`, 0 being the warm-up.

    Called again after a kill it goes on from the last whole checkpoint and ends with the same weights.
    """
    settings = {**settings, "lam": own.lam, "warm_up_epochs": own.warm_up_epochs, "use_vllm": own.use_vllm,
                "sampling_temperature": own.sampling_temperature}  # fmt: skip
    settings["max_new_tokens"] = own.max_new_tokens or answer_tokens(job)
    if own.use_vllm:
        _check_vllm(job.student.get("device", "auto"))
    with stoppable():
        _check_room(job, hyper.max_length, settings["max_new_tokens"])
        warm = _warmed_up(job, hyper, own) if own.warm_up_epochs else None
        _answer(job, hyper, own, teaching, settings, warm)


def answer_tokens(job: TrainingJob) -> int:
    """How long the student's answers may be where no knob says it: as long as the teacher's."""
    return job.sampling.max_tokens if job.sampling else 512


def longest_prompt(job: TrainingJob) -> int:
    """How many tokens the longest prompt has, as the student reads it; 0 without any."""
    if not job.samples:
        return 0
    student = tokenizer(job.student)
    prompts = [render(student, sample.messages) for sample in job.samples]
    return max(map(len, student(prompts, add_special_tokens=not student.chat_template)["input_ids"]))


def _check_room(job: TrainingJob, max_length: int, most: int) -> None:
    """UserError where the student's answers may not fit behind their prompts: before the warm-up, which may take hours."""
    longest = longest_prompt(job)
    if longest + most > max_length:
        raise UserError(
            f"train: the longest prompt has {longest} tokens, and with max_new_tokens = {most} an answer may end beyond "
            f"max_length = {max_length}. Raise max_length (memory grows with it), or set max_new_tokens."
        )


def _warmed_up(job: TrainingJob, hyper: Hyperparameters, own: OnPolicy) -> Path:
    """The folder of a student that has learnt the teacher's answers, from an earlier call or from this one."""
    passes = replace(hyper, epochs=own.warm_up_epochs)
    rows = [[s.row_id, s.messages, s.completion] for s in job.samples]
    home = job.out / "warm_up" / content_id([rows, passes.deciding, base(job.student), job.seed])
    if not (home / _mark(hyper)).exists():
        for other in home.parent.glob("*"):
            if other != home:
                shutil.rmtree(other)
        job.say("The student learns the teacher's answers first.")
        desk = Desk(replace(job, out=home), passes)
        train(desk, Lesson(desk.rows()))
        del desk
        weights.free()  # what follows loads the student again, and its teacher
    return home


def _answer(
    job: TrainingJob, hyper: Hyperparameters, own: OnPolicy, teaching: Teaching, settings: dict[str, Any],
    warm: Path | None,
) -> None:  # fmt: skip
    from llm_distill.trainers import loop, on_policy_loop

    whole = {"model": str(warm), "sha256": None, "revision": None} if warm and not hyper.lora_rank else {}
    desk = Desk(replace(job, student={**job.student, **whole}), hyper)
    rows, model, lora = desk.rows(), desk.model, lora_config(hyper, desk.model)
    if warm and lora is not None:
        model, lora = weights.with_trainable_adapter(model, str(warm)), None
    settings = desk.settings | settings
    findings = linted(desk, Lesson(rows))
    if job.only_lint:
        raise Linted(findings)
    per_step = hyper.batch_size * hyper.gradient_accumulation
    order = reading_order([len(row.input_ids) for row in rows], hyper.batch_size, hyper.epochs, job.seed)
    order = on_policy_loop.whole_batches(order, per_step)
    begun = weights.identity(*desk.where, adapter=str(warm) if warm and hyper.lora_rank else None)
    known = settings | loop.versions() | {"base": begun, "teacher": teaching.identity}
    checkpoints = job.out / "checkpoints" / fingerprint(rows, known, job.seed)
    resume = last_whole(checkpoints)
    teacher = teaching.begin(desk)
    ends = sorted(stop_ids(desk.model, desk.tokenizer))
    plan = on_policy_loop.Rollouts(
        own.lam, own.sampling_temperature, settings["max_new_tokens"], ends, job.seed, own.use_vllm
    )
    curve = _Curve(job, warm, len(order) // per_step, len(order) / len(rows), teacher.parts)
    curve.begin(int(resume.name.rpartition("-")[2]) if resume else 0)

    def show(place: int, ids: Sequence[int]) -> None:
        said = desk.tokenizer.decode(ids, skip_special_tokens=False)
        asked = desk.tokenizer.decode(rows[place].input_ids[: rows[place].prompt_tokens], skip_special_tokens=False)
        job.say(
            f"The student's first answer, which its teacher reads (between \u27e6 and \u27e7):\n{asked}\u27e6{said}\u27e7"
        )

    stop = loop.Stop()
    args = on_policy_loop.arguments(checkpoints, settings, plan, on_cpu=desk.device.type == "cpu")
    trainer = on_policy_loop.make_trainer(
        model, desk.tokenizer, rows, order, args, lora, teacher, plan, curve.add, show, stop, hyper.checkpoint_every_s
    )
    with stop.on_ctrl_c(job.say), tracked(hyper.tracker, curve, job):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.state.global_step < curve.steps:
        raise Interrupted(f"Training stopped after step {trainer.state.global_step} of {curve.steps}; {GOES_ON}")
    answered = curve.answered()
    if answered["clipped"] > _CLIPPED:
        job.say(
            f"{answered['clipped']:.0%} of the student's answers were cut at max_new_tokens = {settings['max_new_tokens']}; "
            "raise it, or warm up longer."
        )
    story = {
        "settings": settings,
        "base": base(job.student),
        "teacher": teaching.identity,
        "seed": job.seed,
        "steps": curve.steps,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "checks": counts(rows, desk.tokenizer, rows[0].input_ids[-1]),
        "lint": as_json(findings),
        "answers": answered,
        "versions": loop.versions(),
        **job.told,
    }
    finish(desk, trainer, story, checkpoints.parent)
    shutil.rmtree(job.out / "warm_up", ignore_errors=True)


class _Curve:
    """metrics.jsonl: the warm-up's lines as round 0, then a line a step."""

    def __init__(self, job: TrainingJob, warm: Path | None, steps: int, epochs: float, parts: Sequence[str]) -> None:
        self.steps, self._epochs, self._parts = steps, epochs, parts
        self._job, self._path = job, job.out / "metrics.jsonl"
        lines = (warm / "metrics.jsonl").read_text("utf-8").splitlines() if warm else []
        self._before = [json.dumps({"round": 0, **json.loads(line)}) for line in lines]
        self.lines: list[dict[str, Any]] = []
        self.after: Callable[[], None] = lambda: None

    def begin(self, done: int) -> None:
        """Keep the lines of steps that a checkpoint holds."""
        lines = self._path.read_text("utf-8").splitlines()[len(self._before) :] if done and self._path.exists() else []
        self.lines = [json.loads(line) for line in lines[:done]]
        kept = [*self._before, *map(json.dumps, self.lines)]
        self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._begun = time.monotonic() - (self.lines[-1]["seconds"] if self.lines else 0.0)

    def add(self, step: int, logs: Mapping[str, float]) -> None:
        line = {
            "round": 1,
            "step": step,
            "epoch": round(step / self.steps * self._epochs, 4),
            **{name: logs[name] for name in ("loss", "on_policy", *self._parts)},
            "answer_tokens": logs["completions/mean_length"],
            "clipped": logs["completions/clipped_ratio"],
            **{name: logs[name] for name in ("learning_rate", "grad_norm")},
            "trained_tokens": int(logs["trained_tokens"] + (self.lines[-1]["trained_tokens"] if self.lines else 0)),
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._job.on_step(step, self.steps, line)
        self.after()

    def answered(self) -> dict[str, float]:
        """Of the steps in which the student answered: their share, tokens an answer, the share of answers cut."""
        own = [line for line in self.lines if line["on_policy"]]
        means = {name: sum(line[name] for line in own) / max(1, len(own)) for name in ("answer_tokens", "clipped")}
        return {"share": len(own) / self.steps, **means}


def teacher_model(plug: Plug, desk: Desk) -> Any:
    """The teacher beside the student, its adapter merged into it; nothing of it is trained."""
    knobs = plug.knobs
    model = weights.load_model(
        knobs["model"], knobs.get("sha256"), knobs.get("revision"), adapter=knobs.get("adapter"),
        dtype=knobs.get("dtype", "auto"), device=str(desk.device),
    )  # fmt: skip
    if knobs.get("adapter"):
        model = model.merge_and_unload()
    return model.requires_grad_(False)


def _check_vllm(device: str) -> None:
    if weights.pick_device(device).type != "cuda":
        raise UserError("train.use_vllm: there is no CUDA device for vLLM beside the trainer; remove it.")
    if not find_spec("vllm"):
        raise UserError("train.use_vllm: vLLM is not installed here; `pip install vllm`, or remove it.")


def _mark(hyper: Hyperparameters) -> str:
    return "adapter_model.safetensors" if hyper.lora_rank else "config.json"
