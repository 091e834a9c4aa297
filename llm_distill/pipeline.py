"""The table of contents: six stages, in order, each reading what the one before left on disk.

    prompts -> answers -> filter -> train -> evaluate -> report

A finished stage leaves a stamp: a digest of the recipe's words it depends on, of the files it read, and of the files it
wrote. While all three still hold there is nothing to do, so running a recipe again costs nothing, and whatever was
changed, torn or left unfinished is done again from there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from llm_distill import __version__, store
from llm_distill.errors import FellShort, Interrupted
from llm_distill.ledger import Ledger
from llm_distill.recipe import Plan
from llm_distill.records import content_id
from llm_distill.stages import (
    Outcome,
    Run,
    Watch,
    ask_teacher,
    evaluate,
    filter_answers,
    make_prompts,
    train_student,
    write_report,
)


@dataclass(frozen=True)
class Stage:
    """A function, the recipe keys it heeds, and the files it reads and writes (folders stand for what is in them)."""

    function: Callable[[Run], Outcome]
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    wanted: Callable[[Plan], bool] = lambda _plan: True
    asks: tuple[str, ...] = ()  # the roles whose models it needs


STAGES = {
    "prompts": Stage(make_prompts, ("seed", "prompts", "held_out"), (), ("prompts.parquet", "held_out.parquet")),
    "answers": Stage(
        ask_teacher, ("task", "models", "answers"), ("prompts.parquet",), ("answers.parquet",), asks=("teacher",)
    ),
    "filter": Stage(
        filter_answers,
        ("task", "filter"),
        ("answers.parquet", "held_out.parquet"),
        ("kept.parquet", "dropped.parquet"),
    ),
    "train": Stage(
        train_student,
        ("seed", "task", "models", "train"),
        ("kept.parquet",),
        ("student",),
        lambda plan: plan.trainer is not None,
        ("student",),
    ),
    "evaluate": Stage(
        evaluate,
        ("seed", "task", "models", "answers", "evaluate"),
        ("held_out.parquet", "student"),
        ("eval",),
        lambda plan: plan.evaluate is not None,
        ("teacher", "student"),
    ),
    "report": Stage(
        write_report,
        ("name", "report", "policy", "filter", "train"),
        ("prompts.parquet", "answers.parquet", "kept.parquet", "dropped.parquet", "student", "eval"),
        ("report",),
    ),
}

#: What provenance names, where it is installed.
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "aiohttp", "numpy", "pyarrow")


def run(
    plan: Plan,
    workspace: Path,
    watch: Watch,
    *,
    ledger_url: str | None = None,
    first: str | None = None,
    last: str | None = None,
) -> dict[str, Any]:
    """Do what is left of a recipe; gives the summary that `--json` prints.

    `last` is the last stage to run; `first` is done again even if it is stamped, and what follows from it.
    `status` is `done`, `fell_short` or `interrupted`, the latter two with a `reason`; a mistake of the user's is raised.
    """
    folder = store.RunFolder.of(workspace, plan.name, plan.digest)
    _open(folder, plan)
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, folder, ledger, watch)
    summary: dict[str, Any] = {"run": str(folder.path), "status": "done", "stages": {}}
    names = [name for name, stage in STAGES.items() if stage.wanted(plan)]
    if last is not None:
        names = [name for name in names if list(STAGES).index(name) <= list(STAGES).index(last)]
    try:
        if first or not all(_holds(job, name) for name in names):
            _preflight(job, names)
        for name in names:
            again = name == first or not _holds(job, name)
            watch.stage(name, "running" if again else "kept")
            stamp = _do(job, name) if again else folder.stamp(name)
            summary["stages"][name] = {key: stamp[key] for key in ("rows_in", "rows_out", "seconds")} | {"ran": again}
            if again:
                watch.stage(name, "owed" if stamp["owed"] else "done")
    except (FellShort, Interrupted) as stop:
        summary |= {"status": "fell_short" if isinstance(stop, FellShort) else "interrupted", "reason": str(stop)}
    finally:
        ledger.close()
    summary["owed"] = sum(folder.stamp(name).get("owed", 0) for name in names)
    tally = job.tally
    return summary | {
        "asked": tally.asked, "answered": tally.answered, "reused": tally.reused, "cost_usd": tally.cost_usd
    }  # fmt: skip


def _do(job: Run, name: str) -> dict[str, Any]:
    stage, folder = STAGES[name], job.folder
    folder.save(name)  # whatever is there now is no longer vouched for
    start = time.perf_counter()
    outcome = stage.function(job)
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
    return stamp


def _holds(job: Run, name: str) -> bool:
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
    return content_id([__version__, store.FORMAT, job.plan.slice(*stage.keys), files])


def _preflight(job: Run, names: Sequence[str]) -> None:
    """Make every model that will be asked, which loads nothing, so that a missing key stops us before the first cent."""
    roles = {role for name in names for role in STAGES[name].asks if role in job.plan.models}
    for role in sorted(roles):
        model = job.model(role)
        model.preflight()
        job.folder.record["models"][role]["identity"] = model.identity
    job.folder.save()


def _open(folder: store.RunFolder, plan: Plan) -> None:
    """Write what the run was asked to be, and with what it is done."""
    folder.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(plan.path, folder.file("recipe.yaml"))
    store.write_json(folder.file("recipe.resolved.json"), json.loads(json.dumps(plan.raw, default=str)))
    folder.record |= {
        "recipe": plan.name,
        "digest": plan.digest,
        "seed": plan.seed,
        "versions": {"llm_distill": __version__, "python": python_version()} | _versions(),
        "models": {role: {"plug": plug.spec.name, **plug.spec.knobs} for role, plug in plan.models.items()},
        "git": _git(plan.path.resolve().parent),
    }
    folder.save()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> str | None:
    """The commit that the recipe stands in, if it stands in one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return None
    return done.stdout.strip() or None
