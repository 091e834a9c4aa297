"""`llm-distill lint RUN`: what a run's trainer would look at before its first step, by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.ledger import Ledger
from llm_distill.lineage import settled
from llm_distill.plugs import Plug
from llm_distill.recipe import Plan, load
from llm_distill.stages import Run, Watch, train_student
from llm_distill.trainers import TRAINERS
from llm_distill.trainers.findings import Finding, Linted
from llm_distill.trainers.hyper import Hyperparameters

#: Of our own trainers those that learn answers which are there before they begin.
_READERS = ("auto", "logit_kd", "sft")


def lint_run(folder: store.RunFolder, workspace: Path, watch: Watch, ledger_url: str | None = None) -> list[Finding]:
    """What the linter finds in what a run would train on. Nothing is trained, asked, or written into the run."""
    plan, trainer = bound(folder, workspace)
    ours = trainer.spec.name in TRAINERS or any(isinstance(knob, Hyperparameters) for knob in trainer.knobs.values())
    if not ours:  # nor built on ours: it knows of no `only_lint`, and would train
        raise UserError(f"{folder.path}: its trainer, {trainer.spec.name}, is one that lints nothing.")
    if trainer.spec.name in TRAINERS and trainer.spec.name not in _READERS:
        plan = replace(plan, trainer=_teachers_rows(trainer))
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, folder, ledger, watch, may_ask=False)
    try:
        with TemporaryDirectory() as empty:
            train_student(job, Path(empty))
    except Linted as linted:
        return linted.findings
    finally:
        job.make_room()
        ledger.close()
    raise UserError(f"{folder.path}: its trainer, {trainer.spec.name}, is one that lints nothing.")


def bound(folder: store.RunFolder, workspace: Path) -> tuple[Plan, Plug]:
    """The recipe of a run that has rows to train on, bound again as it was, and its trainer."""
    path = Path(folder.record.get("recipe_file", ""))
    if not folder.stamp("filter") or not path.is_file():
        what = f"its recipe {path} is gone" if folder.stamp("filter") else "its filter stage is not done"
        raise UserError(f"{folder.path}: {what}; run the recipe with `--until filter` first.")
    plan = settled(load(path, raw=folder.words), workspace)
    if plan.trainer is None:
        raise UserError(f"{folder.path}: its recipe has no `train`; it makes data.")
    return replace(plan, account=folder.record.get("account", plan.account)), plan.trainer


def _teachers_rows(trainer: Plug) -> Plug:
    """What a trainer begins with that learns from answers made on the way: the teacher's, as plain rows."""
    from llm_distill.trainers.sft import sft

    return Plug(trainer.spec, sft, {"hyper": trainer.knobs["hyper"]})
