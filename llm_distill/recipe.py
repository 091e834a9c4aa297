"""The recipe: what to distil, read once, checked whole before anything is spent.

`load` gives a Plan: the recipe's values with every plug bound and every file found. Whatever is wrong is a UserError
that names the key, what was found, what is allowed and the repair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from llm_distill import store, templates
from llm_distill.errors import UserError
from llm_distill.evals.measures import bind_metrics
from llm_distill.generators import GENERATORS
from llm_distill.mixing import Mix
from llm_distill.models import MODELS
from llm_distill.plugs import Plug, Reading, Spec, bind, one_line
from llm_distill.recipe_checks import check_across
from llm_distill.recipe_data_set import DataSet, NamedSet
from llm_distill.recipe_evaluation import Evaluate, Ship
from llm_distill.recipe_file import override, read_recipe
from llm_distill.recipe_keys import Answers, HeldOut, Probe, Report, Strict, Sweep, checked_name
from llm_distill.recipe_schedule import Keep, Notify, Schedule, Tick
from llm_distill.records import Sampling, content_id
from llm_distill.scorers import SCORERS, Filter, Pick, bind_filters, bind_pick
from llm_distill.tasks import Task
from llm_distill.teachers import Teachers
from llm_distill.terms import Policy, Record, shipped, with_name
from llm_distill.trainers import TRAINERS
from llm_distill.trainers.calibration_evidence import Calibrating

if TYPE_CHECKING:
    from llm_distill.rivals import Rivals

_T = TypeVar("_T", bound=BaseModel)
#: Keys that bound what asking may cost: raising one goes on with the same account.
_BOUNDS = ("budget_usd", "budget_tokens", "per", "retries", "max_failed", "drain_s")
#: Keys that change nothing of what a run makes.
_BESIDE = ("sweep", "ship", "probe", "schedule", "keep", "notify")


class _Recipe(Strict, BaseModel):
    name: str
    seed: int = 0
    schedule: Schedule | None = None
    keep: Keep | None = None
    notify: list[Notify] = []
    tick: Tick | None = None
    policy: Policy | None = None
    task: str | dict[str, Any] = "generate"
    models: dict[str, str | dict[str, Any]]
    teachers: Teachers | None = None
    prompts: list[str | dict[str, Any]] = Field(min_length=1)
    mix: Mix = Mix()
    held_out: HeldOut | None = None
    answers: Answers = Answers()
    filter: list[str | dict[str, Any]] = []
    data_set: NamedSet | None = None
    train: str | dict[str, Any] | None = None
    evaluate: Evaluate | None = None
    ship: Ship | None = None
    report: Report = Report()
    sweep: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str) -> str:
        return checked_name(name)


@dataclass(frozen=True)
class Plan:
    """A recipe, bound: everything the stages need and nothing left to look up."""

    path: Path
    raw: dict[str, Any]
    name: str
    seed: int
    schedule: Schedule | None
    keep: Keep | None
    notify: tuple[Notify, ...]
    tick: str | None  # the scheduled time that the run stands for
    policy: Policy | None
    task: Task
    models: dict[str, Plug]
    teachers: Teachers
    generators: list[Plug]
    prompt_terms: tuple[str | None, ...]  # of each generator
    mix: Mix
    fill: Plug | None  # the generator of mix.balance
    terms: Mapping[str, Record]
    held_out: HeldOut | None
    answers: Answers
    pick: Pick | None
    filters: list[Filter]
    data_set: DataSet | None
    trainer: Plug | None
    trainer_files: tuple[str, ...]  # digests of what its knobs name, and of its code where it is one's own
    train_seed: int  # `seed` among the trainer's knobs; the recipe's unless given
    evaluate: Evaluate | None
    metrics: list[Plug]
    ship: Ship | None
    report: Report
    sweep: Sweep | None
    probe: Probe | None
    digest: str
    account: str
    sources: tuple[str, ...]
    rivals: Rivals | None = None  # the students of other runs in `evaluate`, once they are found

    @property
    def writers(self) -> tuple[str, ...]:
        """The roles whose models write prompts."""
        return tuple(sorted({role for plug in (*self.generators, self.fill) if plug for role in plug.roles}))

    @property
    def judges(self) -> tuple[str, ...]:
        """The roles whose models the filters ask or look into."""
        return tuple(sorted({role for filter_ in self.filters for role in filter_.plug.roles}))

    @property
    def readers(self) -> tuple[str, ...]:
        """The roles whose models read what the teachers answered."""
        return (self.answers.attach.model,) if self.answers.attach else ()

    @property
    def calibrating(self) -> Calibrating | None:
        """How the teachers' probabilities of labels are calibrated, where the trainer has such knobs."""
        knobs = self.trainer.knobs.values() if self.trainer else ()
        return next((group for group in knobs if isinstance(group, Calibrating)), None)

    @property
    def pupils(self) -> tuple[str, ...]:
        """The roles whose models training loads or asks."""
        labels = self.task.kind == "classify" and self.calibrating is not None and self.calibrating.asks
        local = self.trained_by("auto") is not None  # which may learn from the teacher's weights, where they are here
        asked = [r for r in self.teachers.roles if labels or (local and self.models[r].spec.name == "transformers")]
        return ("student", *(self.trainer.roles if self.trainer else ()), *asked)

    def trained_by(self, name: str) -> dict[str, Any] | None:
        """The trainer's knobs, where it is the one of this name."""
        return self.trainer.knobs if self.trainer and self.trainer.spec.name == name else None

    @property
    def drawn(self) -> Sampling:
        """How evaluation draws a student's answer, wherever one is held against another: by default greedily."""
        how, taught = self.evaluate or Evaluate(), self.answers.sampling
        seed = self.seed if how.temperature else taught.seed
        return Sampling(
            how.temperature, 1.0, how.max_tokens or taught.max_tokens, taught.stop, seed, taught.top_logprobs
        )

    @property
    def questions_a_row(self) -> int:
        """How many answers of its teachers each row is merged from."""
        return self.teachers.a_row * self.answers.samples * max(1, len(self.task.teacher_view.examples))

    def slice(self, keys: Sequence[str], roles: Sequence[str]) -> Any:
        """The recipe's own words under some keys, and of some models, for a stage's stamp."""
        words = _deciding(self.raw, self.trainer)
        models = [(role, plug.spec.name, plug.lasting) for role, plug in self.models.items() if role in roles]
        return [[words.get(key) for key in keys], models]


def load(path: Path, overrides: Sequence[str] = (), raw: Mapping[str, Any] | None = None) -> Plan:
    """Read, override (`key.key=value`), check and bind a recipe; or other words in its place, with its folder's files."""
    raw = read_recipe(path) if raw is None else deepcopy(dict(raw))
    for text in overrides:
        override(raw, text)
    reading = Reading(folder=path.resolve().parent, files=set(), roles=[])
    recipe = _checked(_Recipe, raw, "", reading)
    if recipe.tick is not None:
        raw["tick"] = recipe.tick  # however it was written
    own: dict[str, Record] = {}  # the recipe's own records of terms
    specs = {role: with_name(Spec.read(value, f"models.{role}"), own, reading) for role, value in recipe.models.items()}
    prompts = [with_name(Spec.read(v, f"prompts[{i}]"), own, reading) for i, v in enumerate(recipe.prompts)]
    if recipe.teachers is None and "teacher" not in specs:
        raise UserError(
            "models.teacher: required and missing; name who answers, e.g. `teacher: {openai_api: {model: ...}}`, or "
            "say which of these models do: `teachers: [role, ...]`."
        )
    teachers = recipe.teachers or Teachers.model_validate(["teacher"])
    teachers.check_roles(specs)
    reading["roles"] = sorted(specs)
    best_by, fill = recipe.answers.best_by, recipe.mix.balance.fill if recipe.mix.balance else None
    kind = Spec.read(recipe.task, "task")
    if "kind" in kind.knobs:
        raise UserError(f"{kind.where}.kind: {kind.name} is the task's kind; remove it.")
    (train, train_seed), trained_by = _training(recipe), set[Path]()
    plan = Plan(
        path=path,
        raw=raw,
        name=recipe.name,
        seed=recipe.seed,
        schedule=recipe.schedule,
        keep=recipe.keep,
        notify=tuple(recipe.notify),
        tick=recipe.tick,
        policy=recipe.policy,
        task=_checked(Task, {"kind": kind.name, **kind.knobs}, kind.where, reading),
        models={role: bind("model", spec, MODELS, reading) for role, spec in specs.items()},
        teachers=teachers,
        generators=[
            bind("generator", replace(spec, knobs=_without(spec.knobs, ["terms"])), GENERATORS, reading)
            for spec in prompts
        ],
        prompt_terms=tuple(spec.knobs.get("terms") for spec in prompts),
        mix=recipe.mix,
        fill=None if fill is None else bind("generator", Spec.read(fill, "mix.balance.fill"), GENERATORS, reading),
        terms=shipped() | own,
        held_out=recipe.held_out,
        answers=recipe.answers,
        pick=None if best_by is None else bind_pick(best_by, "answers.best_by", SCORERS, reading),
        filters=bind_filters([Spec.read(v, f"filter[{i}]") for i, v in enumerate(recipe.filter)], SCORERS, reading),
        data_set=recipe.data_set,
        trainer=None if train is None else bind("trainer", train, TRAINERS, {**reading, "files": trained_by}),
        trainer_files=tuple(sorted(map(_file_digest, trained_by))),
        train_seed=train_seed,
        evaluate=recipe.evaluate,
        metrics=_metrics(recipe, kind.name, reading),
        ship=recipe.ship,
        report=recipe.report,
        # What a sweep or a probe reads decides nothing that a run makes: its files are noted elsewhere.
        sweep=None if recipe.sweep is None else _checked(Sweep, recipe.sweep, "sweep", {**reading, "files": set()}),
        probe=None if recipe.probe is None else _checked(Probe, recipe.probe, "probe", {**reading, "files": set()}),
        digest="",
        account="",
        sources=(),
    )
    check_across(plan)
    files = sorted(_file_digest(f) for f in reading["files"] | trained_by)
    if plan.answers.json_schema:  # it may come from code
        files.append(content_id(plan.answers.json_schema))
    # With other trials, at other times, judged by another gate or drawn by another tracker, it is the same run.
    run = _without(_deciding(raw, plan.trainer), _BESIDE)
    words = run | {"answers": _without(raw.get("answers") or {}, _BOUNDS)}
    sources = (*files, store.digest(templates.BUILT_IN))  # an edited text of ours is no other recipe
    return replace(plan, digest=content_id([run, files]), account=content_id([words, files]), sources=sources)


def _metrics(recipe: _Recipe, kind: str, reading: Reading) -> list[Plug]:
    how = recipe.evaluate or Evaluate()
    return bind_metrics(how.metrics, how.metric, kind, recipe.answers.json_schema, reading, how.opinions)


def _training(recipe: _Recipe) -> tuple[Spec | None, int]:
    if recipe.train is None:
        return None, recipe.seed
    spec = Spec.read(recipe.train, "train")
    seed = spec.knobs.get("seed", recipe.seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{spec.where}.seed: found {seed!r}; write a whole number.")
    return replace(spec, knobs=_without(spec.knobs, ["seed"])), seed


def seeded(plan: Plan, train: Any, seed: int) -> Any:
    """The words under `train` with another seed, where it is not the plan's own."""
    if seed == plan.train_seed:
        return train
    trainer = Spec.read(train, "train")
    return {trainer.name: trainer.knobs | {"seed": seed}}


def _deciding(raw: Mapping[str, Any], trainer: Plug | None) -> dict[str, Any]:
    """A recipe's words without those of training that change nothing of the student."""
    if trainer is None or not (passing := trainer.passing & trainer.spec.knobs.keys()):
        return dict(raw)
    knobs = _without(raw["train"][trainer.spec.name], passing)
    return {**raw, "train": {trainer.spec.name: knobs} if knobs else trainer.spec.name}


def _without(mapping: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _checked(kind: type[_T], value: Any, where: str, reading: Reading) -> _T:
    try:
        return kind.model_validate(value, context=reading)
    except ValidationError as error:
        raise UserError(one_line(error, where, kind.model_fields)) from None


def _file_digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
