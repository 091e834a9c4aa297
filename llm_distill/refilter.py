"""Deciding again which rows of a run are kept, without asking anybody: `llm-distill refilter RUN -s filter.judge.min=3`.

Answers come from the run, what a judge said from the ledger, scores of single rows from the run's tables. The outcome is a
run like any other: the recipe with the same overrides goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_distill import pipeline, store
from llm_distill.errors import UserError
from llm_distill.ledger import Ledger
from llm_distill.lineage import settled
from llm_distill.provenance import describe
from llm_distill.recipe import load
from llm_distill.stages import Run, Watch


def refilter(
    folder: store.RunFolder, workspace: Path, overrides: Sequence[str], watch: Watch, ledger_url: str | None = None
) -> dict[str, Any]:
    """Filter a run's answers by its recipe with overrides: the new run's folder, its funnel beside the old one, and how many
    questions to models nobody has asked yet (rows without their answers count as unmeasured).
    """
    for text in overrides:
        if text.partition("=")[0].split(".")[0] != "filter":
            raise UserError(f"-s {text}: refilter changes filters alone; for all else run the recipe.")
    path = Path(folder.record.get("recipe_file", ""))
    if not folder.file("answers.parquet").exists() or not path.is_file():
        what = f"its recipe {path} is gone" if folder.file("answers.parquet").exists() else "it has no answers yet"
        raise UserError(f"{folder.path}: cannot be filtered again: {what}; run the recipe as far as its filter stage.")
    raw = folder.words
    plan = load(path, overrides, raw=raw)
    # With the account of the run, under which a `fresh` one's verdicts lie.
    plan = replace(settled(plan, workspace), account=folder.record.get("account", plan.account))
    new = store.RunFolder.of(workspace, plan.name, plan.digest)
    new.path.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, new, ledger, watch, may_ask=False)
    try:
        with new.lock():
            describe(job, ())
            for name in ("prompts", "answers") if new.path.resolve() != folder.path.resolve() else ():
                for file in pipeline.STAGES[name].writes:
                    store.copy(folder.file(file), new.file(file))
                new.save(name, folder.stamp(name))
            before = folder.stamp("filter")
            pipeline.do(job, "filter")
    finally:
        ledger.close()
    after = new.stamp("filter")
    return {
        "run": str(new.path),
        "before": {"filters": before.get("filters", []), "kept": before.get("rows_out")},
        "after": {"filters": after["filters"], "kept": after["rows_out"]},
        "owed": after["owed"],
    }


def funnel_lines(found: dict[str, Any]) -> list[str]:
    """The two funnels side by side, to read."""
    earlier = {step["name"]: step for step in found["before"]["filters"]}
    lines = [f"{'filter':<22}{'dropped before':>16}{'now':>10}{'left':>10}"]
    for step in found["after"]["filters"]:
        was = earlier.get(step["name"])
        lines.append(
            f"{step['name']:<22}{'-' if was is None else format(was['dropped'], ','):>16}"
            f"{step['dropped']:>10,}{step['rows_out']:>10,}"
        )
    kept = found["before"]["kept"]
    lines.append(f"kept {found['after']['kept']:,} rows{'' if kept is None else f', {kept:,} before'}")
    if found["owed"]:
        lines.append(
            f"{found['owed']:,} questions of scorers were never asked; `llm-distill run` with the same -s asks them"
        )
    return lines
