"""The student of a run, as an export needs it: its plan, its weights by reference, and what it was asked in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.lineage import settled
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.recipe import Plan, load
from llm_distill.records import Prompt, Request
from llm_distill.stages import trained


@dataclass(frozen=True)
class Student:
    """A trained student in its run's folder.

    knobs: those of the recipe's `transformers` entry, of its base; base: how that is called, without a path of this machine;
    is_adapter: whether an adapter was trained, or the whole model.
    """

    run: store.RunFolder
    plan: Plan
    folder: Path
    knobs: dict[str, Any]
    base: str
    is_adapter: bool

    @property
    def where(self) -> tuple[str, str | None, str | None]:
        """The base's reference, its sha256 and its revision."""
        return self.knobs["model"], self.knobs.get("sha256"), self.knobs.get("revision")

    @property
    def terms(self) -> str | None:
        """The terms that the recipe names for the base."""
        return self.knobs.get("terms")

    def model(self, **knobs: Any) -> TransformersModel:
        """The student as it stands in its run; other knobs name other weights in its place."""
        return TransformersModel(**{**self.knobs, **trained(self.folder), **knobs})

    def request(self, prompt: Prompt) -> Request:
        """What the evaluation asks a student about a row."""
        view = self.plan.task.student_view
        (messages,) = view.questions(prompt, self.plan.task.labels)
        return Request(messages, self.plan.drawn, 0, view.raw)


def find(run: store.RunFolder) -> Student:
    """The student of a run; a UserError where there is none, or not the one that training wrote."""
    folder, stamp = run.file("student"), run.stamp("train")
    if not stamp:
        raise UserError(f"{run.path}: it has no trained student; run its recipe with a `train` stage to its end first.")
    if store.digest(folder) != stamp["outputs"]["student"]:
        raise UserError(
            f"{folder}: its files are not those that training wrote; run the recipe again with --from train."
        )
    path, workspace = Path(run.record.get("recipe_file", "")), run.path.resolve().parents[2]
    if not path.is_file():
        raise UserError(f"{run.path}: its recipe {path} is gone, whose folder holds its files; put it back.")
    written = load(path, raw=run.words)
    plan = settled(written, workspace)
    plug = plan.models["student"]
    if plug.spec.name != "transformers":
        raise UserError(f"models.student: found {plug.spec.name}; a student of this version is a `transformers` model.")
    said = written.models["student"].knobs["model"]
    return Student(run, plan, folder, dict(plug.knobs), shown(said), "adapter" in trained(folder))


def shown(reference: str) -> str:
    """A reference as others may read it: a hub id as it is, of a path on this machine the last part alone."""
    path = Path(reference).expanduser()
    local = path.exists() or path.is_absolute() or reference.startswith((".", "~")) or "\\" in reference
    return reference.replace("\\", "/").rstrip("/").rpartition("/")[2] if local else reference
