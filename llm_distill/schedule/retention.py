"""Which run folders of a job are removed: those of old ticks, and only what nothing stands on.

The ledger and the data sets are never touched: what was asked and paid stays known, whatever happens to a run's folder. A run
stays that is no tick's, unfinished, exported, whose student shipped or passed its gate or was used by another run, or whose
student is the latest of its recipe, which `model: run:NAME` means.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import suppress
from pathlib import Path

from llm_distill import lineage, shipped, store
from llm_distill.errors import UserError
from llm_distill.pipeline import STAGES
from llm_distill.recipe import Plan
from llm_distill.recipe_schedule import moment

#: What a folder is called while it is removed, so that nobody takes half of it for a run.
_GOING = ".removing-"


def prune(plan: Plan, workspace: Path, now: float) -> list[Path]:
    """Remove the run folders of a job that `keep` no longer asks for; gives those that are gone."""
    home = workspace / "runs" / plan.name
    for left in home.glob(f"{_GOING}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    return [run.path for run in expired(plan, workspace, now) if _remove(run.path)]


def expired(plan: Plan, workspace: Path, now: float) -> list[store.RunFolder]:
    """The runs of a job that are older than what is kept and that nothing stands on, the oldest first."""
    keep = plan.keep
    if keep is None:
        return []
    runs = sorted(_runs(workspace / "runs" / plan.name), key=lambda pair: pair[0])
    old = runs[: -keep.runs] if keep.runs else runs
    if keep.days is not None:
        old = [(due, run) for due, run in old if due < now - keep.days * 86_400]
    if not old:
        return []
    latest = next((run.path for _, run in reversed(runs) if run.stamp("train")), None)
    used, in_use = _used(workspace), shipped.places(workspace)
    return [run for _, run in old if _done(run, plan) and run.path != latest and not _stands_on(run, used, in_use)]


def _runs(home: Path) -> list[tuple[int, store.RunFolder]]:
    """A job's runs of ticks, each with its tick."""
    found = []
    for path in home.glob("*/run.json"):
        with suppress(UserError):  # of another version, which this one leaves alone
            run = store.RunFolder(path.parent)
            if (tick := run.record.get("tick")) and "arm" not in run.record:
                found.append((moment(tick), run))
    return found


def _done(run: store.RunFolder, plan: Plan) -> bool:
    """Whether a run came to its end."""
    wanted = [name for name, stage in STAGES.items() if stage.wanted(plan)]
    return all(run.stamp(name) for name in wanted)


def _stands_on(run: store.RunFolder, used: set[str], in_use: set[Path]) -> bool:
    """Whether somebody has taken something out of a run, or works with what it made."""
    if run.file("exports").exists() or run.path.resolve() in in_use:
        return True
    try:
        report = json.loads(run.file("report/report.json").read_text(encoding="utf-8"))
        if (report.get("gate") or {}).get("ships"):
            return True
    except FileNotFoundError:
        pass
    except ValueError:
        return True  # what cannot be read is not known to be of no use
    if not used or not run.stamp("train"):
        return False
    try:
        graduate = lineage.graduate(run)
    except (UserError, OSError, LookupError):
        return True
    return graduate is None or graduate.identity in used


def _used(workspace: Path) -> set[str]:
    """The students that runs of a workspace were made with, by identity."""
    found = set[str]()
    for path in workspace.glob("runs/*/*/run.json"):
        with suppress(UserError):
            models = store.RunFolder(path.parent).record.get("models", {})
            found |= {words["student"] for words in models.values() if words.get("student")}
    return found


def _remove(folder: Path) -> bool:
    """Take a folder away, unless somebody holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        gone = folder.with_name(f"{_GOING}{folder.name}")
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True
