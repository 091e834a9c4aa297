"""The table of contents: six stages (more where a probe or a data set is asked for), in order, each reading what those before
left on disk.

    prompts (-> probe) -> answers -> filter (-> data_set) -> train -> evaluate -> report

A finished stage leaves a stamp: a digest of the recipe's words it depends on, of the files it read, and of the files it
wrote. While all three still hold there is nothing to do, so running a recipe again costs nothing, and whatever was
changed, torn or left unfinished is done again from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_distill import __version__, growing, lineage, probe_rows, review, rivals, store
from llm_distill.errors import NO_ROOM, FellShort, Interrupted, UserError
from llm_distill.evaluating import evaluate
from llm_distill.ledger import Ledger
from llm_distill.provenance import describe
from llm_distill.recipe import Plan
from llm_distill.records import content_id
from llm_distill.stages import (
    Outcome,
    Run,
    Watch,
    add_to_set,
    ask_teacher,
    filter_answers,
    gate_training,
    make_prompts,
    probe_teacher,
    train_student,
    write_report,
)
from llm_distill.trainers import processes


@dataclass(frozen=True)
class Stage:
    """A function, the recipe keys it heeds, and the files it reads and writes (folders stand for what is in them)."""

    function: Callable[[Run], Outcome]
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    wanted: Callable[[Plan], bool] = lambda _plan: True
    asks: Callable[[Plan], tuple[str, ...]] = lambda _plan: ()  # the roles whose models it needs
    gate: Callable[[Run], None] = lambda _run: None  # refuses what the recipe's policy forbids, done before or not
    along: tuple[str, ...] = ()  # files that were made of what it writes, and are taken over with it
    own: bool = False  # it speaks of its own run, and is never taken over from another


STAGES = {
    # Rows are checked against `task`, `teachers` and `evaluate` before anybody is asked for them.
    "prompts": Stage(
        make_prompts, ("seed", "prompts", "mix", "held_out", "task", "teachers", "evaluate"),
        (), ("prompts.parquet", "held_out.parquet"),
        asks=lambda plan: plan.writers,
    ),
    "probe": Stage(
        probe_teacher, ("seed", "task", "teachers", "answers", "probe"), ("held_out.parquet",), ("probe",),
        lambda plan: plan.probe is not None, lambda plan: plan.teachers.roles, own=True,
    ),
    "answers": Stage(
        ask_teacher, ("task", "teachers", "answers"),
        ("prompts.parquet",), ("answers.parquet", "logprobs.parquet", "logprob_tokens.parquet"),
        asks=lambda plan: (*plan.teachers.roles, *plan.readers),
    ),
    "filter": Stage(
        filter_answers, ("seed", "task", "filter"),
        ("answers.parquet", "held_out.parquet"), ("kept.parquet", "dropped.parquet"),
        asks=lambda plan: plan.judges,
    ),
    "data_set": Stage(
        add_to_set, ("data_set", "held_out"),
        ("kept.parquet", "dropped.parquet", "held_out.parquet"), ("set.json", "set.parquet"),
        lambda plan: plan.data_set is not None,
    ),
    "train": Stage(
        train_student, ("seed", "task", "train"),
        ("kept.parquet", "logprobs.parquet", "logprob_tokens.parquet"), ("student",),
        lambda plan: plan.trainer is not None, lambda plan: plan.pupils, gate_training,
    ),
    "evaluate": Stage(
        evaluate, ("seed", "task", "teachers", "answers", "held_out", "evaluate"),  # held_out: what counts as near
        ("held_out.parquet", "kept.parquet", "student"), ("eval",),
        lambda plan: plan.evaluate is not None,
        lambda plan: (*plan.teachers.roles, "student", *(plan.evaluate.roles if plan.evaluate else ())),
        along=("speed.json",),
    ),
    "report": Stage(
        write_report, ("name", "report", "policy", "models", "prompts", "filter", "train", "ship"),
        ("prompts.parquet", "answers.parquet", "kept.parquet", "dropped.parquet", "student", "eval", "probe", "speed.json"),
        ("report",),
        own=True,
    ),
}  # fmt: skip


def run(
    plan: Plan,
    workspace: Path,
    watch: Watch,
    *,
    ledger_url: str | None = None,
    first: str | None = None,
    last: str | None = None,
    each: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda _name, do: do(),
) -> dict[str, Any]:
    """Do what is left of a recipe; gives the summary that `--json` prints.

    `last` is the last stage to run; `first` is done again even if it is stamped, and what follows from it.
    `each` is handed every stage by its name, to be done by calling it, again after it failed if need be. `status` is `done`,
    `fell_short` or `interrupted`, the latter two with a `reason`; a mistake of the user's is raised.
    """
    if processes.count() > 1:
        raise UserError(
            f"{processes.count()} processes were launched, and a recipe runs in one; launch `llm-distill train RUN`."
        )
    names = [name for name, stage in STAGES.items() if stage.wanted(plan)]
    if last is not None:
        names = [name for name in names if list(STAGES).index(name) <= list(STAGES).index(last)]
    if first is not None and first not in names:
        raise UserError(f"--from {first}: this run has no such stage; it has {', '.join(names)}.")
    plan = lineage.settled(plan, workspace)
    if "evaluate" in names:
        plan = rivals.settled(plan, workspace)
    try:
        folder = store.RunFolder.of(workspace, plan.name, plan.digest)
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:  # the command line knows what to say of it
            raise
        raise UserError(f"--workspace {workspace}: cannot hold runs: {error.strerror}: {error.filename}.") from None
    growing.begin(plan, folder)
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, folder, ledger, watch)
    summary: dict[str, Any] = {"run": str(folder.path), "status": "done", "stages": {}}
    watch.begin(summary["run"])
    try:
        if first or not all(holds(job, name) for name in names):
            describe(job, sorted({role for name in names for role in STAGES[name].asks(plan)}))
        for name in names:
            summary["stages"][name] = each(name, partial(_step, job, name, forced=name == first))
        if short := next((why for name in names if (why := folder.stamp(name).get("short"))), None):
            raise FellShort(short["why"], passes=short["passes"])  # what could be done without it is done
    except (FellShort, Interrupted) as stop:
        summary |= {"status": "fell_short" if isinstance(stop, FellShort) else "interrupted", "reason": str(stop)}
        summary |= {"passes": stop.passes} if isinstance(stop, FellShort) and stop.passes else {}
    finally:
        job.make_room()  # no server outlives its run
        ledger.close()
    summary["owed"] = sum(folder.stamp(name).get("owed", 0) for name in names)
    tally = job.tally
    return summary | {
        "asked": tally.asked, "answered": tally.answered, "reused": tally.reused, "cost_usd": tally.cost_usd
    }  # fmt: skip


def _step(job: Run, name: str, *, forced: bool) -> dict[str, Any]:
    """Bring one stage up to date. Only asking is shared between processes: the ledger deals the rows out. What `attach` adds to
    answers would be lost to whoever reads them while another process writes them anew.
    """
    shared = name == "answers" and job.plan.answers.attach is None
    with nullcontext() if shared else job.folder.lock():
        STAGES[name].gate(job)
        due = forced or not holds(job, name)
        job.watch.stage(name, "running" if due else "kept")
        if due and (forced or STAGES[name].own or not _adopt(job, name)):
            do(job, name)
        stamp = job.folder.stamp(name)
        if due:
            job.watch.stage(name, "owed" if stamp["owed"] else "done")
    return {key: stamp[key] for key in ("rows_in", "rows_out", "seconds")} | {"ran": due}


def do(job: Run, name: str, by: Callable[[Run], Outcome] | None = None) -> None:
    """Do one stage, whatever was done of it before, and stamp it; or have another function make what it would make."""
    stage, folder = STAGES[name], job.folder
    job.ledger.stage = name
    folder.save(name)  # whatever is there now is no longer vouched for
    start = time.perf_counter()
    outcome = (by or stage.function)(job)
    stamp = {
        "inputs": _inputs(job, name),
        "outputs": {file: store.digest(folder.file(file)) for file in stage.writes},
        "rows_in": outcome.rows_in,
        "rows_out": outcome.rows_out,
        "owed": outcome.owed,
        "seconds": round(time.perf_counter() - start, 3),
        **outcome.notes,
    }
    folder.save(name, stamp)


def _adopt(job: Run, name: str) -> bool:
    """Take over what another run of this recipe made of equal inputs: a new title does not train a student again."""
    inputs = _inputs(job, name)
    for other in job.folder.siblings():
        stamp = other.stamp(name)
        if not stamp or stamp["owed"] or stamp["inputs"] != inputs:
            continue
        if all(store.digest(other.file(file)) == made for file, made in stamp["outputs"].items()):
            along = [file for file in STAGES[name].along if other.file(file).exists()]
            for file in (*STAGES[name].writes, *along):
                store.copy(other.file(file), job.folder.file(file))
            job.folder.save(name, stamp)
            return True
    return False


def holds(job: Run, name: str) -> bool:
    """Whether a stage's stamp still vouches for its files. Rows still owed have not earned one."""
    stamp = job.folder.stamp(name)
    return (
        bool(stamp)
        and not stamp["owed"]
        and stamp["inputs"] == _inputs(job, name)
        and all(store.digest(job.folder.file(file)) == made for file, made in stamp["outputs"].items())
    )


def _inputs(job: Run, name: str) -> str:
    stage = STAGES[name]
    files = [store.digest(job.folder.file(file)) for file in stage.reads]
    plan, template = job.plan, job.plan.task.template
    more: list[Any] = [*plan.sources, plan.answers.reasoning]  # how all that models say is read
    if name == "prompts" and plan.tick is not None:
        more.append(plan.tick)
    elif name == "train":
        more = [*([store.digest(template)] if template else []), *plan.trainer_files]
    elif name == "filter":
        more += [plan.trainer is not None, review.digest(job.folder)]  # which decide what there is to learn
    elif name == "evaluate" and plan.rivals:
        more.append(plan.rivals.identity)
    elif name == "report":
        more.append(plan.digest)
    elif name == "probe":
        more += probe_rows.inputs(plan)
    more += growing.inputs(job.folder, plan, name)
    words = plan.slice(stage.keys, stage.asks(plan))
    return content_id([__version__, store.FORMAT, words, files, more])
