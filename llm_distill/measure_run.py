"""`llm-distill measure RUN`: how fast a run's arms answer and what that costs, measured now, on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_distill import pipeline, rivals, speed, store
from llm_distill.errors import UserError
from llm_distill.evaluating import arms
from llm_distill.ledger import Ledger
from llm_distill.lineage import settled
from llm_distill.plugs import one_line
from llm_distill.recipe import load
from llm_distill.recipe_checks import check_across
from llm_distill.recipe_evaluation import Speed
from llm_distill.stages import Run, Watch


def measure_run(
    folder: store.RunFolder, workspace: Path, words: Mapping[str, Any], watch: Watch, ledger_url: str | None = None
) -> dict[str, Any]:
    """What was measured, which is also `speed.json` of the run and a part of its report. words: settings of `evaluate.speed` in
    place of the recipe's.
    """
    path = Path(folder.record.get("recipe_file", ""))
    if not path.is_file() or not folder.stamp("evaluate"):
        what = f"its recipe {path} is gone" if folder.stamp("evaluate") else "it has not been evaluated"
        raise UserError(f"{folder.path}: {what}; run the recipe to its end first.")
    raw = json.loads(folder.file("recipe.resolved.json").read_text(encoding="utf-8"))
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
        found = speed.measure(job, prompts, arms(job, prompts), how, None)
        with folder.lock():
            student = store.digest(folder.file("student"))
            store.write_json(folder.file("speed.json"), found | {"student": student})
            pipeline.do(job, "report")
    finally:
        job.make_room()
        ledger.close()
    return {"run": str(folder.path), **found}
