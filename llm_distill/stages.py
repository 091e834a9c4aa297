"""The six stages. Each takes a Run, reads files of its folder, writes files to it, and says how many rows went through.

A stage never edits what another wrote. Rows that are still owed make its Outcome incomplete: it earns no stamp, and the
next run asks for them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from llm_distill import store
from llm_distill.collect import Panel, alone, collect, teachers
from llm_distill.errors import FellShort, UserError
from llm_distill.limits import Tally
from llm_distill.models import Model
from llm_distill.recipe import Plan
from llm_distill.records import Answer, Sample, Sampling
from llm_distill.scorers import Context
from llm_distill.splits import check_rows, split_held_out
from llm_distill.terms import gate
from llm_distill.trainers import TrainingJob

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger


class Watch(Protocol):
    """Who looks on: the command line's progress bar, or nobody."""

    def stage(self, name: str, state: str) -> None:
        """A stage is `running`, `done`, `kept` (nothing to do) or `owed`."""

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """How far the running stage is."""

    def say(self, line: str) -> None:
        """One line worth reading."""


@dataclass
class Run:
    """What a stage works with. Models are made once and shared, so that weights are loaded once."""

    plan: Plan
    folder: store.RunFolder
    ledger: Ledger
    watch: Watch
    models: dict[str, Model] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @property
    def id(self) -> str:
        """The run's name in the ledger; a raised budget goes on under the same one."""
        return f"{self.plan.name}/{self.plan.account}"

    def model(self, role: str, **knobs: Any) -> Model:
        """The model of a role, with some knobs of its own (a student's adapter)."""
        plug = self.plan.models[role]
        settings = plug.knobs | knobs
        name = f"{plug.spec.name}{sorted(settings.items())}"  # roles with equal settings share one
        if name not in self.models:
            self.models[name] = plug.function(**settings)
        return self.models[name]

    def make_room(self, model: Model | None = None) -> None:
        """Unload every model but one: a machine that holds each of them may not hold two."""
        for other in self.models.values():
            if other is not model:
                other.unload()


@dataclass(frozen=True)
class Outcome:
    """What a stage did. `owed` counts rows that a later run should ask for again; `notes` go into its stamp."""

    rows_in: int
    rows_out: int
    owed: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


def make_prompts(run: Run) -> Outcome:
    """prompts.parquet and held_out.parquet: what will be asked, and what only evaluation will see."""
    prompts, held_out = split_held_out(run.plan)
    check_rows(run.plan, prompts, held_out)
    store.write_table(run.folder.file("prompts.parquet"), map(store.prompt_row, prompts), "prompts")
    store.write_table(run.folder.file("held_out.parquet"), map(store.prompt_row, held_out), "prompts")
    return Outcome(len(prompts) + len(held_out), len(prompts))


def ask_teacher(run: Run) -> Outcome:
    """answers.parquet: the teachers' answer to every prompt."""
    prompts = store.read_prompts(run.folder.file("prompts.parquet"))
    counts = collect(run, prompts, teachers(run, prompts, run.plan.answers.sampling), "answers.parquet")
    return Outcome(len(prompts), counts.rows - counts.failed.total(), counts.owed)


def filter_answers(run: Run) -> Outcome:
    """kept.parquet and dropped.parquet: which answers are worth learning from, and why the others are not."""
    answers = store.read_answers(run.folder.file("answers.parquet"))
    context = Context(run.plan.task, store.read_prompts(run.folder.file("held_out.parquet")))
    scores: dict[str, dict[str, float]] = {a.prompt.row_id: {} for a in answers}
    dropped = {a.prompt.row_id: why for a in answers if (why := _nothing_to_learn(a, run.plan))}
    funnel = []
    for filter_ in run.plan.filters:
        survivors = [a for a in answers if a.prompt.row_id not in dropped]
        measured = filter_.scores(survivors, context)
        for answer, score, stays in zip(survivors, measured.tolist(), filter_.keeps(measured).tolist(), strict=True):
            scores[answer.prompt.row_id][f"score.{filter_.name}"] = score
            if not stays:
                dropped[answer.prompt.row_id] = filter_.name
        left = len(answers) - len(dropped)
        bounds = {"min": filter_.min, "max": filter_.max}
        funnel.append(
            {
                "name": filter_.name,
                "bounds": bounds,
                "rows_in": len(survivors),
                "dropped": len(survivors) - left,
                "rows_out": left,
            }
        )
    names = [filter_.name for filter_ in run.plan.filters]
    rows = [store.answer_row(a) | scores[a.prompt.row_id] for a in answers]
    kept = [row for row in rows if row["row_id"] not in dropped]
    gone = [row | {"dropped_by": dropped[row["row_id"]]} for row in rows if row["row_id"] in dropped]
    store.write_table(run.folder.file("kept.parquet"), kept, "kept", names)
    store.write_table(run.folder.file("dropped.parquet"), gone, "dropped", names)
    if answers and not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in Counter(dropped.values()).most_common())
        raise FellShort(f"filter: every row was dropped ({reasons}); loosen a filter, or look with `llm-distill show`.")
    return Outcome(len(answers), len(kept), notes={"filters": funnel})


def _nothing_to_learn(answer: Answer, plan: Plan) -> str | None:
    """Why a row is out before any filter looks at it: no whole answer, or no label where one is to be learnt."""
    labelled = plan.task.kind == "classify" and answer.prediction is not None
    if answer.status != "ok" and not (answer.status == "truncated" and labelled):
        return answer.status
    return "unparsed" if plan.trainer and plan.task.kind == "classify" and not labelled else None


def gate_training(run: Run) -> None:
    """UserError when the terms of a row that would be trained on forbid it. Asked on every run, trained or not."""
    kept = run.folder.file("kept.parquet")
    if kept.exists():
        gate(run.plan, store.read_table(kept, ["model", "terms"]))


def train_student(run: Run) -> Outcome:
    """student/: the student, trained on what was kept."""
    plan = run.plan
    run.make_room()
    samples = []
    for answer in store.read_answers(run.folder.file("kept.parquet")):
        (messages,) = plan.task.student_view.questions(answer.prompt, plan.task.labels)
        target = answer.prediction if plan.task.kind == "classify" else answer.text
        assert target is not None, answer.prompt.row_id  # the filter stage has taken out what has no label
        samples.append(Sample(answer.prompt.row_id, messages, target))
    assert plan.trainer is not None
    job = TrainingJob(
        samples, plan.models["student"].knobs, run.folder.file("student"), plan.seed, run.watch.rows, run.watch.say
    )
    plan.trainer(job)
    return Outcome(len(samples), len(samples))


def evaluate(run: Run) -> Outcome:
    """eval/<arm>.parquet and eval/comparison.json: base, few-shot base, student and teacher on the same held-out rows."""
    from llm_distill.evals.compare import compare

    plan = run.plan
    assert plan.evaluate is not None
    prompts = store.read_prompts(run.folder.file("held_out.parquet"))
    if not prompts:
        raise UserError("evaluate: the held-out set is empty; raise held_out.share or name a file.")
    task, taught = plan.task, plan.answers.sampling
    drawn = Sampling(
        plan.evaluate.temperature, 1.0, plan.evaluate.max_tokens or taught.max_tokens, taught.stop,
        plan.seed if plan.evaluate.temperature else taught.seed, taught.top_logprobs,
    )  # fmt: skip
    arms: dict[str, Panel] = {}
    if "student" in plan.models:
        arms["base_zero_shot"] = alone("student", run.model("student"), task.student_view, drawn)
        if task.few_shot:
            arms["base_few_shot"] = alone("student", run.model("student"), task.few_shot, drawn)
    if plan.trainer:
        student = run.model("student", **trained(run.folder.file("student")))
        arms["student"] = alone("student", student, task.student_view, drawn)
    if plan.answers.samples > 1:  # without chance they would all be the same
        chance = plan.evaluate.temperature or taught.temperature
        drawn = msgspec.structs.replace(drawn, temperature=chance, top_p=taught.top_p)
    arms["teacher"] = teachers(run, prompts, msgspec.structs.replace(drawn, schema=taught.schema))
    answers: dict[str, list[Answer]] = {}
    for arm, panel in arms.items():
        run.watch.say(f"evaluate: {arm.replace('_', ' ')}")
        collect(run, prompts, panel, f"eval/{arm}.parquet")
        answers[arm] = store.read_answers(run.folder.file(f"eval/{arm}.parquet"))
    numbers = compare(
        answers, task.kind, task.labels, seed=plan.seed, slices=plan.evaluate.slices,
        resamples=plan.evaluate.resamples, teachers=len(plan.teachers.roles),
    )  # fmt: skip
    store.write_json(run.folder.file("eval/comparison.json"), numbers)
    return Outcome(len(prompts), len(prompts), sum(a.owed for rows in answers.values() for a in rows))


def trained(student: Path) -> dict[str, Any]:
    """The knobs that load what training wrote: an adapter for its base, or a whole model."""
    if (student / "adapter_config.json").exists():
        return {"adapter": str(student)}
    return {"model": str(student), "sha256": None, "revision": None}


def write_report(run: Run) -> Outcome:
    """report/report.json and report/report.html."""
    from llm_distill.report.build import write

    write(run.folder)
    return Outcome(run.folder.stamp("prompts")["rows_out"], run.folder.stamp("filter")["rows_out"])
