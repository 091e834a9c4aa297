"""Which run folders of a job are removed: those of old ticks, and only what nothing stands on.

The ledger and the data sets are never touched: what was asked and paid stays known, whatever happens to a run's folder. A run
stays that is no tick's, unfinished, exported, whose student shipped or passed its gate or was used by another run, that a recipe
of another run or beside the job's names by its path (`evaluate: {students, previous}`, a model's weights), or whose student is
the latest of its recipe, which `model: run:NAME` means.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_distill import lineage, shipped, store
from llm_distill.errors import UserError
from llm_distill.pipeline import STAGES
from llm_distill.recipe import Plan
from llm_distill.recipe_file import read_recipe
from llm_distill.recipe_schedule import moment

#: What a folder is called while it is removed, so that nobody takes half of it for a run.
_GOING = ".removing-"
_JUST_DONE = "it has just been done"


def prune(plan: Plan, workspace: Path, now: float, own: str | None = None) -> tuple[list[Path], dict[Path, str]]:
    """Remove the run folders of a job that `keep` no longer asks for; gives those that are gone, and of the others that are as
    old why they stay. own: the run that has just been done, which whoever asked for an old tick has yet to look at.
    """
    home = workspace / "runs" / plan.name
    for left in home.glob(f"{_GOING}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    old = expired(plan, workspace, now)
    old |= {path: _JUST_DONE for path in old if own is not None and path.resolve() == Path(own).resolve()}
    gone = [path for path, why in old.items() if why is None and _remove(path)]
    return gone, {path: why or "somebody works in it" for path, why in old.items() if path not in gone}


def expired(plan: Plan, workspace: Path, now: float) -> dict[Path, str | None]:
    """The runs of a job that are older than what is kept, the oldest first, each with why it stays; None where nothing
    stands on it.
    """
    keep = plan.keep
    if keep is None:
        return {}
    runs = sorted(_runs(workspace / "runs" / plan.name), key=lambda pair: pair[0])
    old = runs[: -keep.runs] if keep.runs else runs
    if keep.days is not None:
        old = [(due, run) for due, run in old if due < now - keep.days * 86_400]
    if not old:
        return {}
    trained = [
        run for _, run in runs if run.stamp("train")
    ]  # an old tick may have been done last: see `lineage.latest`
    latest = max(trained, key=lambda run: run.file("run.json").stat().st_mtime).path if trained else None
    used, in_use, named = _used(workspace), shipped.places(workspace), _named(plan, workspace)

    def why(run: store.RunFolder) -> str | None:
        if not _done(run, plan):
            return "unfinished"
        if run.path == latest:
            return "its student is the latest of its recipe"
        who = named.get(run.path.resolve(), set()) - {run.path.name}
        return f"named by {', '.join(sorted(who))}" if who else _stands_on(run, used, in_use)

    return {run.path: why(run) for _, run in old}


def kept_lines(stays: Mapping[Path, str]) -> list[str]:
    """Why old runs stay, to read: a line for each reason."""
    by = dict[str, list[str]]()
    for path, why in stays.items():
        by.setdefault(why, []).append(path.name)
    return [f"keep: {', '.join(names)} stay{'s' * (len(names) == 1)}: {why}" for why, names in by.items()]


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


def _stands_on(run: store.RunFolder, used: set[str], in_use: set[Path]) -> str | None:
    """Who has taken something out of a run, or works with what it made; None where nobody has."""
    if run.file("exports").exists():
        return "exported"
    if run.path.resolve() in in_use:
        return "its student shipped"
    return _passed(run) or _taught_others(run, used)


def _passed(run: store.RunFolder) -> str | None:
    try:
        report = json.loads(run.file("report/report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return "its report cannot be read"  # and so is not known to be of no use
    return "its student passed the gate" if (report.get("gate") or {}).get("ships") else None


def _taught_others(run: store.RunFolder, used: set[str]) -> str | None:
    if not used or not run.stamp("train"):
        return None
    try:
        graduate = lineage.graduate(run)
    except (UserError, OSError, LookupError):
        return "its student cannot be read"
    return "its student was used by another run" if graduate is None or graduate.identity in used else None


def _named(plan: Plan, workspace: Path) -> dict[Path, set[str]]:
    """The runs of a workspace that a recipe names by a path, of any run or in a file beside the job's; by run, who does."""
    found = dict[Path, set[str]]()
    home = (workspace / "runs").resolve()
    for who, folder, words in _recipes(plan, workspace):
        for text in _texts(words):
            given = Path(text).expanduser()
            for place in (folder / given, given, workspace / "runs" / given):
                with suppress(OSError, ValueError):
                    inside = place.resolve().relative_to(home).parts
                    if len(inside) >= 2 and place.exists():
                        found.setdefault(home / inside[0] / inside[1], set()).add(who)
    return found


def _recipes(plan: Plan, workspace: Path) -> Iterator[tuple[str, Path, Any]]:
    """Whose recipe it is, the folder that its paths are seen from, and its words."""
    for path in workspace.glob("runs/*/*/recipe.resolved.json"):
        with suppress(UserError, OSError, ValueError):
            run = store.RunFolder(path.parent)
            yield path.parent.name, Path(run.record.get("recipe_file") or path).parent, run.words
    for path in sorted(plan.path.parent.glob("*.y*ml")):
        with suppress(UserError, OSError):
            yield path.name, path.parent, read_recipe(path)


def _texts(words: Any) -> Iterator[str]:
    """All that may be a path in a recipe's words."""
    if isinstance(words, dict):
        words = list(words.values())
    if isinstance(words, list):
        for one in words:
            yield from _texts(one)
    elif isinstance(words, str) and "/" in words and "\n" not in words:
        yield words


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
