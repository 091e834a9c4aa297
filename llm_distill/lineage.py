"""Students as models of other recipes: `model: run:NAME` is what the recipe NAME trained last.

A teacher teaches an assistant, the assistant a smaller student (Mirzadeh et al. 2020, arXiv 1902.03393), or a student its
own next generation (Furlanello et al. 2018, arXiv 1805.04770): each step is a recipe, and the next one names it. What a
student was taught stands under its teachers' terms, and so does what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_distill import store
from llm_distill.errors import UserError, did_you_mean
from llm_distill.models import weights
from llm_distill.plugs import RUN, Plug, is_run
from llm_distill.recipe import Plan
from llm_distill.recipe_checks import open_terms
from llm_distill.recipe_keys import checked_name
from llm_distill.terms import UNKNOWN, Record


@dataclass(frozen=True)
class Graduate:
    """The student of a finished run. knobs: what loads it (`model`, `sha256`, `revision`, `adapter`); terms: the names of
    all records that the rows it learnt from stand under, `unknown` among them where one states none.
    """

    run: store.RunFolder
    knobs: Mapping[str, str | None]
    terms: tuple[str, ...]
    records: Mapping[str, Record]

    @property
    def identity(self) -> str:
        """What it is, by content: trained again on other rows it is another teacher, found elsewhere it is the same."""
        return weights.identity(*(self.knobs[name] or None for name in ("model", "sha256", "revision", "adapter")))  # type: ignore[arg-type]


def references(plan: Plan) -> dict[str, str]:
    """By role, the recipe whose student it is. UserError for one that cannot be meant."""
    found = {}
    for role, plug in plan.models.items():
        model = plug.knobs.get("model")
        if "adapter" not in plug.knobs or not is_run(model):
            continue
        where, name = f"{plug.spec.where}.model", str(model).removeprefix(RUN)
        try:
            checked_name(name)
        except ValueError as error:
            raise UserError(f"{where}: {error}.") from None
        if name == plan.name:
            raise UserError(
                f"{where}: a recipe cannot learn from its own student, which it would change; give the next generation a "
                f"recipe with a name of its own, and {model!r} as its teacher."
            )
        if pinned := [knob for knob in ("sha256", "revision", "adapter") if plug.knobs.get(knob)]:
            raise UserError(f"{plug.spec.where}.{pinned[0]}: {model} brings its own; remove it.")
        found[role] = name
    return found


def missing(plan: Plan, workspace: Path) -> dict[str, str]:
    """By role, what has to be done before the recipe can run: students that nobody has trained yet in a workspace."""
    found = {}
    for role, name in references(plan).items():
        if latest(workspace, name) is None:
            found[role] = _untrained(workspace, name, plan.models[role])
    return found


def settled(plan: Plan, workspace: Path) -> Plan:
    """The plan with every `run:NAME` in the place of what it stands for, which from then on is part of what stages depend on.

    UserError where nobody has trained it, where the terms of what it learnt from forbid what `policy` states, and where a
    student would be trained that is an adapter already.
    """
    models, records = dict(plan.models), dict[str, Record]()
    for role, name in references(plan).items():
        plug, found = plan.models[role], latest(workspace, name)
        if found is None:
            raise UserError(_untrained(workspace, name, plug))
        if role == "student" and plan.trainer and found.knobs["adapter"]:
            raise UserError(
                f"{plug.spec.where}.model: {plug.knobs['model']} is an adapter, and training starts from whole weights; name "
                "its base here, or train it with `lora_rank: null`."
            )
        models[role] = _bound(plug, found)
        records = {**found.records, **records}
    if models == plan.models:
        return plan
    plan = replace(plan, models=models, terms={**records, **plan.terms})
    open_terms(plan)
    return plan


def latest(workspace: Path, name: str) -> Graduate | None:
    """The student of the latest run of a recipe that has trained one, arms of its ablation and trials of its sweep aside."""
    for path in sorted(workspace.glob(f"runs/{name}/*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        run = store.RunFolder(path.parent)
        if "arm" not in run.record and (found := graduate(run)) is not None:
            return found
    return None


def graduate(run: store.RunFolder) -> Graduate | None:
    """The student of a run, as training wrote it; None where there is none that is whole."""
    stamp, student = run.stamp("train"), run.file("student")
    if not stamp or stamp["owed"] or store.digest(student) != stamp["outputs"]["student"]:
        return None
    records = {name: Record.model_validate(words) for name, words in run.record.get("terms", {}).items()}
    rows = store.read_table(run.lessons, ["terms"])
    terms = sorted({name for row in rows for name in (row["terms"] or UNKNOWN).split("+")})
    knobs: dict[str, str | None] = {"model": str(student.resolve()), "sha256": None, "revision": None, "adapter": None}
    if (student / "adapter_config.json").exists():
        base = json.loads((student / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        words = run.record["models"]["student"]
        pins = {pin: words.get(pin) for pin in ("sha256", "revision")}
        knobs = {"model": base, **pins, "adapter": str(student.resolve())}
        if Path(base).is_absolute() and not Path(base).exists():
            raise UserError(f"{student}: its base {base} is gone; put it back, or run {run.record['recipe']!r} again.")
        weights.check_adapter(str(student), weights.fingerprint(base, pins["sha256"], pins["revision"]))
    return Graduate(run, knobs, tuple(terms), records)


def _bound(plug: Plug, found: Graduate) -> Plug:
    """The plug with what loads the student. Its words stay those of the recipe, and say which student it was."""
    own = [plug.knobs["terms"]] if plug.knobs.get("terms") else []
    inherited = found.terms if set(found.terms) != {UNKNOWN} or own else ()
    terms = "+".join(sorted({*own, *inherited})) or None
    words = replace(plug.spec, knobs=plug.spec.knobs | {"student": found.identity})
    return replace(plug, spec=words, knobs={**plug.knobs, **found.knobs, "terms": terms})


def _untrained(workspace: Path, name: str, plug: Plug) -> str:
    runs = _names(workspace)
    has = "no run of it has trained a student" if name in runs else "there is no run of it"
    if runs and name not in runs:
        has = f"{has}.{did_you_mean(name, runs)}"
    return (
        f"{plug.spec.where}.model: {plug.knobs['model']} is the student of the recipe {name!r}, and in "
        f"{workspace / 'runs'} {has.rstrip('.')}. Run that recipe first, as far as its train stage, in the same workspace."
    )


def _names(workspace: Path) -> Sequence[str]:
    return sorted({path.parent.parent.name for path in workspace.glob("runs/*/*/run.json")})
