"""The six stages. Each takes a Run, reads files of its folder, writes files to it, and says how many rows went through.

A stage never edits what another wrote. Rows that are still owed make its Outcome incomplete: it earns no stamp, and the
next run asks for them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from llm_distill import growing, probe, review, store
from llm_distill.attach import attach
from llm_distill.collect import collect, teachers
from llm_distill.coverage import embedding
from llm_distill.errand import Errand
from llm_distill.errors import FellShort
from llm_distill.fairness import fairness, unfair
from llm_distill.limits import Tally
from llm_distill.models import Model
from llm_distill.recipe import Plan
from llm_distill.recipe_schedule import anew
from llm_distill.records import Answer, Entry, Request, Sample
from llm_distill.scorers import Context
from llm_distill.sets.shelf import forgotten
from llm_distill.sieve import earlier_scores, scorer_identity, sieve
from llm_distill.splits import check_rows, gather
from llm_distill.taught import taught
from llm_distill.terms import gate
from llm_distill.trainers import TrainingJob, calibration_evidence, processes

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger


class Watch(Protocol):
    """Who looks on: the command line's progress bar, or nobody."""

    def begin(self, run: str) -> None:
        """A run, in this folder, is what follows speaks of."""

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
    may_ask: bool = True  # otherwise its stages' own questions are answered from the ledger alone
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
    ask = Errand(run, "prompts")
    earlier = growing.seen(run)
    rows = gather(
        run.plan,
        lambda role, q: ask(role, anew(q, run.plan.tick)),
        run.watch.say,
        embedding(),
        run.model,
        earlier,
        forgotten(growing.workspace_of(run.folder)),
    )
    if ask.owed and not rows.asked:
        why = f"prompts: no row was made; {ask.owed:,} questions got no answer. Run again to ask for them."
        raise FellShort(why, passes="trouble")
    nothing_new = bool(earlier and earlier.aside) and not rows.asked
    check_rows(run.plan, rows.asked, rows.held_out, more=nothing_new)
    store.write_table(run.folder.file("prompts.parquet"), map(store.prompt_row, rows.asked), "prompts")
    store.write_table(run.folder.file("held_out.parquet"), map(store.prompt_row, rows.held_out), "prompts")
    notes = {
        "made": rows.made,
        "set_aside": rows.aside,
        "forgotten": rows.forgotten,
        **ask.spent,
        **growing.not_new(earlier, run.watch.say),
    }
    return Outcome(len(rows.asked) + len(rows.held_out), len(rows.asked), ask.owed, notes)


def probe_teacher(run: Run) -> Outcome:
    """probe/: what the teachers say now about rows that every run asks anew."""
    found = probe.take(run)
    return Outcome(found["rows"], found["rows"] - found["owed"], found["owed"], {"spent": found["spent"]})


def ask_teacher(run: Run) -> Outcome:
    """answers.parquet: the teachers' answer to every prompt."""
    plan, prompts = run.plan, store.read_prompts(run.folder.file("prompts.parquet"))
    counts = collect(run, prompts, teachers(run, prompts, plan.answers.sampling), "answers.parquet")
    notes: dict[str, Any] = {}
    if plan.answers.attach:
        run.make_room()
        (role,) = plan.readers
        notes["attach"] = attach(run.folder, plan, run.model(role), run.watch.rows, run.watch.say)
    return Outcome(len(prompts), counts.rows - counts.failed.total(), counts.owed, notes)


def filter_answers(run: Run) -> Outcome:
    """kept.parquet and dropped.parquet: which answers are worth learning from, and why the others are not."""
    plan, folder, ask = run.plan, run.folder, Errand(run, "filter")
    answers = store.read_answers(folder.file("answers.parquet"))
    context = Context(
        plan.task,
        store.read_prompts(folder.file("held_out.parquet")),
        answers,
        ask,
        run.model,
        run.watch.say,
        plan.seed,
    )
    dropped = {a.prompt.row_id: why for a in answers if (why := _nothing_to_learn(a, plan))}
    identities = {f.name: scorer_identity(f, plan) for f in plan.filters}
    known = earlier_scores(folder, identities)
    sifted = sieve(answers, plan.filters, dropped, context, known)
    own, said = sifted, review.said(answers, folder)
    if said:  # once more, with what reviewers decided; what the filters do by themselves is held against it
        keep = {row_id for row_id, decision in said.items() if decision.decision == "keep"}
        out = dict.fromkeys(said.keys() - keep, review.REVIEW)
        known = review.scores_of(answers, own)
        sifted = sieve(answers, plan.filters, out | dropped, context, known, keep)
        sifted.prompts = own.prompts | sifted.prompts  # what was measured before is not measured again
    names = [name for name in identities if name in sifted.scores]

    def row_of(answer: Answer) -> dict[str, Any]:
        row_id = answer.prompt.row_id
        prompt = sifted.prompts.get(row_id)
        row = store.answer_row(answer if prompt is None else msgspec.structs.replace(answer, prompt=prompt))
        row |= {f"score.{name}": sifted.scores[name].get(row_id) for name in names}
        row |= {f"why.{name}": sifted.why[name].get(row_id) for name in sifted.why}
        if row_id in said and row_id not in dropped:
            row |= {"review": said[row_id].decision, "filtered_by": own.dropped.get(row_id)}
        return row | {"dropped_by": sifted.dropped.get(row_id)}

    for table, drops in (("kept", False), ("dropped", True)):
        rows = (row_of(a) for a in answers if (a.prompt.row_id in sifted.dropped) == drops)
        store.write_table(folder.file(f"{table}.parquet"), rows, table, identities, list(sifted.why))
    kept = len(answers) - len(sifted.dropped)
    if answers and not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in Counter(sifted.dropped.values()).most_common())
        what = "loosen a filter, or look with `llm-distill show`"
        if ask.owed:
            what = f"{ask.owed:,} questions of scorers got no answer, so run again to ask for them"
        passes = "trouble" if ask.owed else None
        raise FellShort(f"filter: every row was dropped ({reasons}); {what}.", passes=passes)
    notes: dict[str, Any] = {"filters": sifted.funnel, "fairness": fairness(answers, sifted), **ask.spent}
    if said:
        verdicts = {
            a.prompt.row_id: own.dropped.get(a.prompt.row_id) for a in answers if a.prompt.row_id not in dropped
        }
        notes["review"] = review.agreement(verdicts, said, [filter_.name for filter_ in plan.filters])
        notes["review"]["dropped"] = sum(by == review.REVIEW for by in sifted.dropped.values())
    for line in unfair(notes["fairness"]):
        run.watch.say(f"filter: {line}")
    return Outcome(len(answers), kept, ask.owed, notes)


def _nothing_to_learn(answer: Answer, plan: Plan) -> str | None:
    """Why a row is out before any filter looks at it: no whole answer, or no label where one is to be learnt."""
    labelled = plan.task.kind == "classify" and answer.prediction is not None
    if answer.status != "ok" and not (answer.status == "truncated" and labelled):
        return answer.status
    return "unparsed" if plan.trainer and plan.task.kind == "classify" and not labelled else None


def gate_training(run: Run) -> None:
    """UserError when the terms of a row that would be trained on forbid it, or when what mends the teacher's probabilities is
    held out. Asked on every run, trained or not.
    """
    lessons = run.folder.lessons
    if lessons.exists():
        gate(run.plan, store.read_table(lessons, ["model", "terms"]))
        if run.plan.calibrating:  # read only where something is fitted to labelled rows
            calibration_evidence.check_taught(run.plan, store.read_prompts(run.folder.file("held_out.parquet")))


def add_to_set(run: Run) -> Outcome:
    """set.json and set.parquet: the recipe's data set with what this run kept, and what a student is to learn."""
    found = growing.grow(run)
    run.watch.say(growing.said(found))
    return Outcome(run.folder.stamp("filter")["rows_out"], found["added"]["taught"], notes={"set": found})


def train_student(run: Run, look: Path | None = None) -> Outcome:
    """student/: the student, trained on what was kept. look: an empty folder; nothing is trained, and `findings.Linted` says
    what would have been learnt.
    """
    plan, ask = run.plan, Errand(run, "train", logprobs=True)
    run.make_room()
    samples = []
    for answer in store.read_answers(run.folder.lessons):
        (messages,) = plan.task.student_view.questions(answer.prompt, plan.task.labels)
        target = answer.prediction if plan.task.kind == "classify" else answer.text
        gold = answer.prompt.label if plan.task.kind == "classify" else answer.prompt.reference
        assert target is not None, answer.prompt.row_id  # the filter stage has taken out what has no label
        samples.append(Sample(answer.prompt.row_id, messages, target, gold, answer))
    assert plan.trainer is not None
    growing.check_lessons(plan, len(samples))

    def student_answers(folder: Path | None, questions: Sequence[Request]) -> list[Entry]:
        student = run.model("student", **(trained(folder) if folder else {}))
        try:
            return ask.of(student, "student", questions)
        finally:
            run.make_room()  # what follows is training

    job = TrainingJob(
        samples,
        plan.models["student"].knobs,
        look or run.folder.file("student"),
        plan.train_seed,
        run.watch.rows,
        run.watch.say,
        plan.task,
        run.folder.path,
        plan.teachers.roles,
        plan.answers.sampling,
        plan.models,
        ask,
        student_answers,
        look is not None,
        plan.drawn.max_tokens if plan.evaluate else None,
        None if plan.answers.attach else processes.in_turn(partial(taught, run, ask)),
    )
    plan.trainer(job)
    notes = {"template": store.digest(plan.task.template)} if plan.task.template else {}  # the words that it learnt in
    return Outcome(len(samples), len(samples), ask.owed, notes | ask.spent)


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
