"""`llm-distill measure RUN`: how fast a run's arms answer and what that costs, measured now, on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from llm_distill import pipeline, rivals, speed, store
from llm_distill.collect import Panel
from llm_distill.errors import FellShort, Interrupted, Unreachable, UserError
from llm_distill.evals.timing import Measured
from llm_distill.evaluating import arms
from llm_distill.ledger import Ledger
from llm_distill.lineage import settled
from llm_distill.plugs import one_line
from llm_distill.recipe import load
from llm_distill.recipe_checks import check_across
from llm_distill.recipe_evaluation import Speed
from llm_distill.records import Prompt
from llm_distill.stages import Run, Watch


class Clocked(msgspec.Struct, frozen=True):
    """What was read of an arm, and under which conditions. key: see `speed.key_of`. machine: where it ran, if that was here."""

    key: str
    measured: Measured
    rows: int
    most_concurrency: int
    most_seconds: float
    machine: str | None

    def unlike(self, other: Clocked) -> bool:
        """Whether their numbers are not of the same conditions. Where a provider's model runs, nobody knows."""
        ours, theirs = (
            (one.rows, one.most_concurrency, one.machine if self.machine and other.machine else None)
            for one in (self, other)
        )
        return ours != theirs

    def said(self) -> str:
        """The conditions, in words."""
        where = f", on {self.machine}" if self.machine else ""
        return f"{self.rows} rows, at most {self.most_concurrency} at a time{where}"


def measure_run(
    folder: store.RunFolder, workspace: Path, words: Mapping[str, Any], watch: Watch, ledger_url: str | None = None
) -> dict[str, Any]:
    """What was measured, which is also `speed.json` of the run and a part of its report. words: settings of `evaluate.speed` in
    place of the recipe's; where they name `arms`, what is known of the others stays, as long as their models and questions are
    the same. FellShort, Interrupted and Unreachable are raised when what was measured until then is written.
    """
    path = Path(folder.record.get("recipe_file", ""))
    if not path.is_file() or not folder.stamp("evaluate"):
        what = f"its recipe {path} is gone" if folder.stamp("evaluate") else "it has not been evaluated"
        raise UserError(f"{folder.path}: {what}; run the recipe to its end first.")
    raw = folder.words
    plan = rivals.settled(settled(load(path, raw=raw), workspace), workspace)
    plan = replace(plan, account=folder.record.get("account", plan.account))
    assert plan.evaluate is not None
    try:
        how = Speed.model_validate((plan.evaluate.speed or Speed()).model_dump() | dict(words))
    except ValidationError as error:
        raise UserError(one_line(error, "measure", Speed.model_fields)) from None
    check_across(replace(plan, evaluate=plan.evaluate.model_copy(update={"speed": how})))
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, folder, ledger, watch)
    try:
        prompts = store.read_prompts(folder.file("held_out.parquet"))
        panels = arms(job, prompts)
        found, unmeasured, stop = _clocked(job, prompts, panels, how)
        if stop and not found:
            raise stop
        earlier = _known(job, prompts, panels) if stop or "arms" in words else {}
        if how.machine_usd_per_hour is None and earlier:
            how = how.model_copy(update={"machine_usd_per_hour": _earlier(folder).get("machine_usd_per_hour")})
        here = speed.machine()
        now = {
            arm: Clocked(
                speed.key_of(job, panels[arm], prompts, how), of, how.rows, how.most_concurrency, how.most_seconds,
                here if of.here else None,
            )
            for arm, of in found.items()
        }  # fmt: skip
        both = {arm: (earlier | now)[arm] for arm in panels if arm in earlier or arm in now}
        unlike = {
            arm: of.said()
            for arm, of in both.items()
            if arm not in now and (of.machine not in (None, here) or any(of.unlike(one) for one in now.values()))
        }
        if stop:
            unmeasured |= {arm: f"it was stopped: {stop}" for arm in how.arms if arm in panels and arm not in both}
        numbers = {"machine": here, "unmeasured": unmeasured, "elsewhere": unlike} | speed.summary(
            {arm: of.measured for arm, of in both.items()}, how, alike=alike(both)
        )
        with folder.lock():
            known = {"student": store.digest(folder.file("student")), "measured": msgspec.to_builtins(both)}
            store.write_json(folder.file("speed.json"), numbers | known)
            pipeline.do(job, "report")
        if stop:
            raise stop
    finally:
        job.make_room()
        ledger.close()
    return {"run": str(folder.path), **numbers}


def alike(arms: Mapping[str, Clocked]) -> bool:
    """Whether the student's numbers may be held against its teacher's."""
    student, teacher = arms.get("student"), arms.get("teacher")
    return student is None or teacher is None or not student.unlike(teacher)


def _clocked(
    run: Run, prompts: Sequence[Prompt], panels: Mapping[str, Panel], how: Speed
) -> tuple[dict[str, Measured], dict[str, str], FellShort | Interrupted | Unreachable | None]:
    """As `speed.clocked`, all anew; and what ended it, if anything did, which takes nothing from the arms before."""
    found: dict[str, Measured] = {}
    unmeasured: dict[str, str] = {}
    for arm in how.arms:
        try:
            one, why = speed.clocked(run, prompts, panels, how.model_copy(update={"arms": [arm]}), None)
        except (FellShort, Interrupted, Unreachable) as stop:
            return found, unmeasured, stop
        found |= one
        unmeasured |= why
    return found, unmeasured, None


def _earlier(folder: store.RunFolder) -> dict[str, Any]:
    """What `measure` left, if it has; else what the evaluation measured."""
    kept = folder.file("speed.json")
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    return dict(json.loads(folder.file("eval/comparison.json").read_text(encoding="utf-8")).get("speed") or {})


def _known(run: Run, prompts: Sequence[Prompt], panels: Mapping[str, Panel]) -> dict[str, Clocked]:
    """The arms that were measured before, as long as these would be the same models and the same questions."""
    earlier, asked = _earlier(run.folder), run.plan.evaluate and run.plan.evaluate.speed
    if "measured" in earlier:
        found = msgspec.convert(earlier["measured"], dict[str, Clocked])
    else:
        where = earlier.get("machine")
        found = {
            arm: Clocked(key, of, how.rows, how.most_concurrency, how.most_seconds, where if of.here else None)
            for how in ([asked] if asked else [])
            for arm, (key, of) in speed.read(run.folder.file("eval/speed.json")).items()
        }
    same = Speed()
    return {
        arm: of
        for arm, of in found.items()
        if arm in panels
        and of.key
        == speed.key_of(
            run, panels[arm], prompts,
            same.model_copy(update={name: getattr(of, name) for name in ("rows", "most_concurrency", "most_seconds")}),
        )
    }  # fmt: skip
