"""Students of other runs as arms of an evaluation: which weights are meant, what they learnt from, how they are asked.

    evaluate: {students: [tone-small, data/runs/tone/2026-11-01-0a1b2c3d4e, exports/gguf-q4_k_m], previous: shipped}

Each is asked the same held-out rows as it was taught to read them (its own recipe's template), with this recipe's sampling,
and served by what this recipe's `models.student` names: two students differ in nothing but what they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_distill import shipped, store
from llm_distill.errors import UserError, did_you_mean
from llm_distill.lineage import graduate, latest
from llm_distill.models import weights
from llm_distill.recipe import Plan, load
from llm_distill.recipe_keys import checked_name
from llm_distill.records import Message, Prompt, content_id
from llm_distill.tasks import View

#: The arm of the student that this one would follow, and the word for the one that shipped last.
PREVIOUS, SHIPPED = "previous", "shipped"
_ALONE: Mapping[str, str | None] = {"sha256": None, "revision": None, "adapter": None}


class Taught(View):
    """What a student was asked when it learnt: its own recipe's template, with the labels in that recipe's order."""

    labels: list[str]

    def questions(self, prompt: Prompt, labels: Sequence[str], order: int | None = None) -> list[tuple[Message, ...]]:
        """As of any view, whatever order the recipe that asks has the same labels in."""
        assert set(labels) == set(self.labels)
        return super().questions(prompt, self.labels, order)


@dataclass(frozen=True)
class Rival:
    """A student of another run. named: as in the recipe; run: its run, where it is known; knobs: what loads it; view: how it is
    asked; kept: the table of the rows it learnt from, None where nobody knows; loss: the curve of its training, likewise.
    """

    arm: str
    named: str
    run: str | None
    knobs: Mapping[str, str | None]
    view: View
    kept: Path | None
    loss: Sequence[Mapping[str, float]] = ()

    @property
    def identity(self) -> str:
        """What it is, by content and not by place."""
        loaded = (self.knobs[name] or None for name in ("model", "sha256", "revision", "adapter"))
        return weights.identity(*loaded)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rivals:
    """All of an evaluation. previous: how the recipe names the student before; of one that is `shipped` there may be none yet."""

    all: Sequence[Rival]
    previous: str | None

    @property
    def identity(self) -> str:
        """What an evaluation depends on."""
        asked = [
            (store.digest(view.template) if view.template else None, view.labels if isinstance(view, Taught) else None)
            for view in (one.view for one in self.all)
        ]
        return content_id([(one.arm, one.identity, how) for one, how in zip(self.all, asked, strict=True)])

    @property
    def described(self) -> dict[str, Any]:
        """For report.json: each arm's place, and of the student before also whether there is one."""
        found: dict[str, Any] = {
            "students": {
                one.arm: {"named": one.named, "run": one.run, "identity": one.identity, "loss": list(one.loss)}
                for one in self.all
            }
        }
        if self.previous:
            found["previous"] = {"named": self.previous, "found": any(one.arm == PREVIOUS for one in self.all)}
        return found


def settled(plan: Plan, workspace: Path) -> Plan:
    """The plan with the students that its evaluation names. UserError where one is not there, or does another task."""
    how = plan.evaluate
    if how is None or not (how.students or how.previous):
        return plan
    own = store.RunFolder.of(workspace, plan.name, plan.digest).path
    found = [_found(plan, workspace, words, "evaluate.students", own) for words in how.students]
    found = [replace(one, arm=name) for one, name in zip(found, _arms(found), strict=True)]
    if how.previous == SHIPPED:
        run = shipped.last(workspace, plan.name, own)
        found += [] if run is None else [_of_run(plan, run, SHIPPED, "evaluate.previous")]
    elif how.previous:
        found.append(_found(plan, workspace, how.previous, "evaluate.previous", own))
    if how.previous and found[len(how.students) :]:
        found[-1] = replace(found[-1], arm=PREVIOUS)
    return replace(plan, rivals=Rivals(found, how.previous))


def missing(plan: Plan, workspace: Path) -> list[str]:
    """What has to be done before the evaluation can be: for `check`, which a recipe may pass before its rivals are trained."""
    try:
        settled(plan, workspace)
    except UserError as error:
        return [str(error)]
    return []


def _found(plan: Plan, workspace: Path, words: str, key: str, own: Path) -> Rival:
    if (place := _place(plan, workspace, words)) is None:
        return _by_name(plan, workspace, words, key)
    if (place / "run.json").is_file():
        if place.resolve() == own.resolve():
            raise UserError(f"{key}: {words} is this recipe's own run, whose student is compared anyway; remove it.")
        return _of_run(plan, store.RunFolder(place), words, key)
    return _of_weights(plan, workspace, place, words, key)


def _place(plan: Plan, workspace: Path, words: str) -> Path | None:
    """The folder or file that is named, seen from the recipe, from here, or among the runs; None for a recipe's name."""
    given = Path(words).expanduser()
    if "/" not in words and given.suffix != ".gguf":
        return None
    places = [plan.path.resolve().parent / given, given, workspace / "runs" / given]
    return next((place for place in places if place.exists()), places[0])


def _by_name(plan: Plan, workspace: Path, words: str, key: str) -> Rival:
    try:
        checked_name(words)
    except ValueError as error:
        raise UserError(f"{key}: {error}; a run's folder is written with its path.") from None
    if words == plan.name:
        raise UserError(
            f"{key}: {words!r} is this recipe, whose student is compared anyway; name another run of it by its folder, or "
            "write `previous: shipped`."
        )
    found = latest(workspace, words)
    if found is None:
        known = sorted({path.parent.parent.name for path in workspace.glob("runs/*/*/run.json")} - {plan.name})
        why = "has no run that trained a student" if words in known else f"has no run.{did_you_mean(words, known)}"
        raise UserError(
            f"{key}: in {workspace / 'runs'} the recipe {words!r} {why.rstrip('.')}. Run it first, in the same workspace."
        )
    return _of_run(plan, found.run, words, key)


def _of_run(plan: Plan, run: store.RunFolder, words: str, key: str) -> Rival:
    found = graduate(run)
    if found is None:
        raise UserError(f"{key}: {run.path} has no student that is whole; run its recipe as far as its train stage.")
    curve = store.loss_curve(run.file("student"))
    return Rival(run.record["recipe"], words, _told_run(run), found.knobs, _asked(plan, run, key), run.lessons, curve)


def _told_run(run: store.RunFolder) -> str:
    """A run's folder as others may read it."""
    return "/".join(run.path.resolve().parts[-2:])


def _asked(plan: Plan, run: store.RunFolder, key: str) -> View:
    """How a run's student is asked; UserError where that is not known any more, or for another task."""
    path = Path(run.record.get("recipe_file", ""))
    if not path.is_file():
        raise UserError(
            f"{key}: {run.path}: its recipe {path} is gone, which says how its student is asked; put it back."
        )
    task = load(path, raw=run.words).task
    ours, theirs = ((of.kind, sorted(of.labels)) for of in (plan.task, task))
    if ours != theirs:
        raise UserError(
            f"{key}: the student of {run.path} does another task ({_told(*theirs)}) than this one ({_told(*ours)}), so nothing "
            "can be compared; remove it."
        )
    learnt = run.stamp("train").get("template")
    if task.template and learnt and store.digest(task.template) != learnt:
        raise UserError(
            f"{key}: {task.template} is not what it was when the student of {run.path} learnt to read it, so nobody can ask it "
            "in its own words; put that back, and write other words to another file."
        )
    return Taught.model_construct(template=task.template, examples=[], labels=task.labels)


def _told(kind: str, labels: Sequence[str]) -> str:
    return f"{kind}: {', '.join(labels)}" if labels else kind


def _of_weights(plan: Plan, workspace: Path, place: Path, words: str, key: str) -> Rival:
    """An export, or other whole weights; the run of an export is looked for in the workspace by what export.json says."""
    folder = place if place.is_dir() else place.parent
    files = [place] if place.is_file() else sorted(folder.glob("*.gguf"))
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{key}: {words} is an adapter without its base; name the run that it was exported from.")
    if not files and not (folder / "config.json").is_file():
        raise UserError(
            f"{key}: {place} is no run, no export and no weights; write a recipe's name, a run's folder, an export's, or a .gguf."
        )
    if len(files) > 1:
        raise UserError(f"{key}: {place} has {len(files)} .gguf files; name one of them.")
    knobs = {**_ALONE, "model": str((files[0] if files else folder).resolve())}
    run = _exported_from(workspace, folder)
    view = plan.task.student_view if run is None else _asked(plan, run, key)
    name = place.stem if place.is_file() else place.resolve().name
    if run is not None and not name.startswith(run.record["recipe"]):
        name = f"{run.record['recipe']}-{name}"
    known = None if run is None else _told_run(run)
    curve = [] if run is None else store.loss_curve(run.file("student"))
    return Rival(name, words, known, knobs, view, None if run is None else run.lessons, curve)


def _exported_from(workspace: Path, folder: Path) -> store.RunFolder | None:
    try:
        said = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        name, digest = checked_name(said["name"]), str(said["recipe_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    here = [parent for parent in folder.resolve().parents if (parent / "run.json").is_file()]
    for path in [*here, *sorted(workspace.glob(f"runs/{name}/*"))]:
        if (path / "run.json").is_file() and (run := store.RunFolder(path)).record.get("digest") == digest:
            return run
    return None


def _arms(found: Sequence[Rival]) -> list[str]:
    """A name for each arm, fit for a file: the recipe's, with the run's where that does not tell them apart."""
    names = [one.arm for one in found]
    longer = [
        f"{one.arm}-{one.run.rpartition('/')[2]}" if names.count(one.arm) > 1 and one.run else one.arm for one in found
    ]
    fit = [f"student_of_{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}" for name in longer]
    if twice := next((i for i, name in enumerate(fit) if name in fit[:i]), None):
        raise UserError(
            f"evaluate.students: {found[twice].named} and another one there would have the same name, {fit[twice]}; rename its "
            "folder or file."
        )
    return fit
