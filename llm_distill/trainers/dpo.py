"""Learning on-policy from a teacher who only gives text: the student answers, the teacher's answer is preferred to its own.

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) in rounds, each against the student as it was when it
answered (Xiong et al. 2024, arXiv 2312.11456): ask the student, compare, train. A stopped run goes on where it was: what
was asked is in the ledger, rounds that are over are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill import templates
from llm_distill.errors import Interrupted, UserError
from llm_distill.generators import AtMost
from llm_distill.models import weights
from llm_distill.plugs import Reading, Role
from llm_distill.records import Sampling, content_id
from llm_distill.scorers import SCORERS, Pick, bind_pick
from llm_distill.scorers.ballot import Form
from llm_distill.scorers.judge import Rubric
from llm_distill.scorers.judge import at_most as judge_at_most
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.batch_check import preview
from llm_distill.trainers.checkpoints import fingerprint, last_whole
from llm_distill.trainers.course import GOES_ON, Desk, Lesson, finish, lora_config, stoppable, train
from llm_distill.trainers.curve import Curve, reading_order
from llm_distill.trainers.findings import as_json, refuse
from llm_distill.trainers.hyper import Count, Hyperparameters
from llm_distill.trainers.lint import Shelf, check_rows
from llm_distill.trainers.lint_pairs import lint_pairs, samples_of
from llm_distill.trainers.preferences import REASONS, Comparison, Pair, Round, make_pairs, prefer
from llm_distill.trainers.trackers import tracked

if TYPE_CHECKING:
    from collections.abc import Sequence


def _scorer(value: Any, info: ValidationInfo) -> Any:
    if value is None or isinstance(value, Pick):
        return value
    try:
        return bind_pick(value, "scorer", SCORERS, cast(Reading, info.context))
    except UserError as error:
        raise ValueError(str(error)) from None


Scorer = Annotated[Any, AfterValidator(_scorer)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class _Course:
    """What a run of rounds is made of: `home` holds a folder for the warm-up (0) and for each round, settings name it."""

    job: TrainingJob
    hyper: Hyperparameters
    home: Path
    settings: Mapping[str, Any]
    rounds: list[dict[str, Any]] = field(default_factory=list)  # their stories

    def folder(self, number: int) -> Path:
        return self.home / str(number)

    def over(self, number: int) -> bool:
        """Whether a round is trained: its last file is there."""
        last = "adapter_model.safetensors" if self.hyper.lora_rank else "config.json"
        return (self.folder(number) / last).exists()


def dpo(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    # One takes most of what there is; each further one asks the student again, and the judge.
    rounds: Count = 1,
    # Before the first round the student learns to write the teacher's answers: pairs of a student who cannot do the task
    # yet teach little (GKD, arXiv 2306.13649; Zephyr, arXiv 2310.16944).
    warm_up: bool = True,
    # How far the student may go from what it was: Rafailov et al.'s, and TRL's.
    beta: Positive = 0.1,
    # Of a round; learning_rate is the warm-up's. A tenth of SFT's is usual for LoRA; whole weights want 1e-6.
    round_rate: Positive | None = None,
    # Passes over a round's pairs: more overfit them (Zephyr trained one to three).
    round_epochs: Positive = 1.0,
    # Of cross-entropy with the better answer, without which its likelihood falls too (RPO, arXiv 2404.19733).
    sft_weight: Annotated[float, Field(ge=0)] = 1.0,
    # The student's answers: drawn as it is, several to a row where they are to differ.
    temperature: Positive = 1.0,
    samples: Count = 1,
    # null: as the teacher was asked.
    max_tokens: Count | None = None,
    # Who compares, in place of the rule that the teacher is right: a model, asked in both orders, or a scorer.
    judge: Role | None = None,
    rubric: Rubric = templates.BUILT_IN / "quality.md",
    form: Form = "json",
    scorer: Scorer = None,
) -> None:
    """Train in rounds on pairs of answers, of which the better one is the teacher's, or a judge's or a scorer's choice; write
    the adapter into `job.out`. metrics.jsonl has a column `round`, 0 being the warm-up.
    """
    if judge is not None and scorer is not None:
        raise UserError("train.dpo: both `judge` and `scorer` are given, and one of them decides; remove the other.")
    rate = round_rate or (5e-5 if hyper.lora_rank else 1e-6)
    taught = job.sampling or Sampling()
    sampling = Sampling(temperature, 1.0, max_tokens or taught.max_tokens, taught.stop, job.seed, 0)
    settings = {
        "warm_up": warm_up, "beta": beta, "round_rate": rate, "round_epochs": round_epochs, "sft_weight": sft_weight,
        "temperature": temperature, "samples": samples, "max_tokens": sampling.max_tokens, "judge": judge,
        "scorer": None if scorer is None else [scorer.plug.spec.name, scorer.plug.spec.knobs, scorer.low],
    }  # fmt: skip
    by = Comparison(judge, rubric, form, scorer)
    with stoppable():
        course = _begun(job, hyper, settings, rubric if judge else None)
        student: int | None = 0 if warm_up else None
        if warm_up and not course.over(0):
            job.say("dpo: the student learns the teacher's answers first")
            desk = Desk(_within(job, course.folder(0)), hyper)
            train(desk, Lesson(desk.rows()))
            del desk
        for number in range(1, rounds + 1):
            place = None if student is None else course.folder(student)
            if not course.over(number):
                found = prefer(job, place, sampling, samples, by)
                job.say(f"dpo: round {number}: {_line(found)}")
                if not found.preferences:
                    course.rounds.append({"round": number, **found.story, "trained": False})
                    break
                _train_round(course, number, place, found)
            story = json.loads((course.folder(number) / "training.json").read_text("utf-8"))
            course.rounds.append({"round": number, **story["pairs"], "trained": True})
            student = number
        if student is None:
            raise UserError(
                f"train.dpo: there is no pair to learn from: {course.rounds[0]}. A student who says what its teacher says has "
                "nothing to learn here; answers that are no answer want `warm_up: true`."
            )
        _publish(course, student)


def at_most(rows: int, *, judge: str | None, rubric: Path, rounds: int, samples: int, **_: object) -> AtMost | None:
    """What the judge may be asked, for `check`: every answer of the student, in every round. None where there is no judge."""
    return None if judge is None else judge_at_most(rows * rounds * samples, rubric=rubric, against="reference")


def _begun(job: TrainingJob, hyper: Hyperparameters, settings: Mapping[str, Any], rubric: Path | None) -> _Course:
    """The course of these rows and settings; what is left of another one is removed."""
    where = job.student["model"], job.student.get("sha256"), job.student.get("revision")
    known = {**hyper.deciding, **settings}
    rows = [[s.row_id, s.messages, s.completion] for s in job.samples]
    words = None if rubric is None else rubric.read_text(encoding="utf-8")
    home = job.out / "rounds" / content_id([rows, known, words, weights.identity(*where), job.seed])
    for other in home.parent.glob("*"):
        if other != home:
            shutil.rmtree(other)
    home.mkdir(parents=True, exist_ok=True)
    return _Course(job, hyper, home, settings)


def _within(job: TrainingJob, out: Path, student: dict[str, Any] | None = None) -> TrainingJob:
    return replace(job, out=out, student=student or job.student)


def _line(found: Round) -> str:
    story = found.story
    counts = ", ".join(f"{story[n]:,} {n}" for n in REASONS if story[n])
    return f"{story['pairs']:,} pairs from {story['answers']:,} answers of the student{counts and f' ({counts})'}"


def _train_round(course: _Course, number: int, before: Path | None, found: Round) -> None:
    """Train on a round's preferences, starting from the student in a folder, and write it into the round's own."""
    from llm_distill.models.vocabulary import Vocabulary
    from llm_distill.trainers import dpo_loop, loop

    hyper, job = course.hyper, course.job
    whole = {"model": str(before), "sha256": None, "revision": None} if before and not hyper.lora_rank else {}
    desk = Desk(_within(job, course.folder(number), {**job.student, **whole}), hyper)
    seed, model, lora = job.seed + number, desk.model, lora_config(hyper, desk.model)
    vocabulary = Vocabulary.of(desk.tokenizer)
    pairs, counts = make_pairs(found.preferences, model, desk.tokenizer, vocabulary, hyper.max_length)
    if not pairs:
        raise UserError(
            f"train.dpo: the student's answers are all longer than max_length = {hyper.max_length} tokens with their prompts; "
            "raise it, or lower train.dpo.max_tokens."
        )
    chosen = [pair.chosen for pair in pairs]
    end = chosen[0].input_ids[-1]
    shelf = Shelf(samples_of(pairs, job.samples), desk.tokenizer, end, hyper.max_length, None, job.task)
    findings = lint_pairs(pairs, counts["too_long"], shelf)
    refuse(findings)
    for finding in findings:
        if finding.level == "warning":
            job.say(f"lint: round {number}: {finding.name}: {finding.line}")
    checks = check_rows(chosen, desk.tokenizer, end)
    if before and lora is not None:
        model, lora = weights.with_trainable_adapter(model, str(before)), None
    settings = {**desk.settings, **course.settings, "learning_rate": course.settings["round_rate"]}
    both = [pair.both for pair in pairs]
    epochs = float(course.settings["round_epochs"])
    order = reading_order([len(row.input_ids) for row in both], hyper.batch_size, epochs, seed)
    base = weights.identity(*desk.where, adapter=str(before) if before and hyper.lora_rank else None)
    known = settings | loop.versions() | {"base": base}
    checkpoints = desk.job.out / "checkpoints" / fingerprint(_rows(pairs), known, seed)
    resume = last_whole(checkpoints)
    passes = replace(hyper, epochs=epochs)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    curve = Curve(desk.job, both, order, passes, done, dpo_loop.PARTS)
    stop = loop.Stop()
    args = dpo_loop.arguments(checkpoints, settings, seed, on_cpu=desk.device.type == "cpu")
    trainer = dpo_loop.make_trainer(
        model, desk.tokenizer, pairs, order, args, lora, curve.add, stop, hyper.checkpoint_every_s
    )
    with stop.on_ctrl_c(job.say), tracked(hyper.tracker, curve, desk.job):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.state.global_step < curve.steps:
        step = trainer.state.global_step
        raise Interrupted(f"Training stopped after step {step} of {curve.steps} of round {number}; {GOES_ON}")
    story = {
        "settings": settings,
        "base": base,
        "seed": seed,
        "steps": curve.steps,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "checks": checks,
        "lint": [{**one, "found": f"Round {number}: {one['found']}"} for one in as_json(findings)],
        "example": preview(chosen[order[0]], desk.tokenizer),
        "pairs": found.story | counts,
        "versions": loop.versions(),
    }
    finish(desk, trainer, story, checkpoints.parent)


def _rows(pairs: Sequence[Pair]) -> list[Any]:
    return [row for pair in pairs for row in (pair.chosen, pair.rejected)]


def _publish(course: _Course, last: int) -> None:
    """Move the last round's student into `job.out`, with the curve of all rounds and the story of each."""
    out, chosen = course.job.out, course.folder(last)
    story = json.loads((chosen / "training.json").read_text("utf-8")) | {"rounds": course.rounds}
    curve, story["lint"] = [], []  # of the teacher's answers, where there was a warm-up, then of each round's pairs
    for number in range(last + 1):
        if course.over(number):
            story["lint"] += json.loads((course.folder(number) / "training.json").read_text("utf-8"))["lint"]
        path = course.folder(number) / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        curve += [json.dumps({"round": number, **json.loads(line)}) for line in lines]
    (out / "metrics.jsonl").write_text("".join(line + "\n" for line in curve), encoding="utf-8")
    (out / "training.json").write_text(json.dumps(story, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    names = sorted(p.name for p in chosen.iterdir() if p.is_file() and p.name not in ("metrics.jsonl", "training.json"))
    mark = "adapter_model.safetensors" if course.hyper.lora_rank else "config.json"
    for name in sorted(names, key=lambda name: name == mark):  # copied, so that a kill in between loses nothing
        shutil.copyfile(chosen / name, out / name)
    shutil.rmtree(course.home.parent)
