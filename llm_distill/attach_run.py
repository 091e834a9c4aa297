"""Logprobs for a run that has its answers: `llm-distill attach RUN --model ROLE_OR_PATH`.

The outcome is a run like any other, that of the recipe with `answers.attach`: with the same overrides, or these words in
the recipe, `run` goes on from it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_distill import pipeline, store
from llm_distill.attach import attach
from llm_distill.errors import UserError
from llm_distill.ledger import Ledger
from llm_distill.lineage import settled
from llm_distill.provenance import describe
from llm_distill.recipe import load
from llm_distill.stages import Outcome, Run, Watch

#: The role of a model that no recipe names.
READER = "reader"


def attach_run(
    folder: store.RunFolder,
    workspace: Path,
    model: str,
    top_logprobs: int,
    watch: Watch,
    ledger_url: str | None = None,
) -> dict[str, Any]:
    """Have a model read a run's answers: a role of its recipe, or weights by folder, .gguf, hub id or `run:NAME`."""
    path = Path(folder.record.get("recipe_file", ""))
    if not folder.stamp("answers") or not path.is_file():
        what = f"its recipe {path} is gone" if folder.stamp("answers") else "its answers are not whole yet"
        raise UserError(f"{folder.path}: cannot be read: {what}; run the recipe as far as its answers stage.")
    raw = folder.words
    overrides = _words(raw, model, top_logprobs)
    plan = settled(load(path, raw=raw), workspace)
    plan = replace(plan, account=folder.record.get("account", plan.account))
    new = store.RunFolder.of(workspace, plan.name, plan.digest)
    new.path.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    job = Run(plan, new, ledger, watch, may_ask=False)
    (role,) = plan.readers
    before = folder.stamp("answers")

    def read(run: Run) -> Outcome:
        store.copy(folder.file("answers.parquet"), run.folder.file("answers.parquet"))
        found = attach(run.folder, plan, run.model(role), watch.rows, watch.say)
        return Outcome(before["rows_in"], before["rows_out"], before["owed"], {"attach": found})

    try:
        with new.lock():
            describe(job, (role,))
            if new.path.resolve() != folder.path.resolve():
                for file in pipeline.STAGES["prompts"].writes:
                    store.copy(folder.file(file), new.file(file))
                new.save("prompts", folder.stamp("prompts"))
            pipeline.do(job, "answers", read)
    finally:
        job.make_room()
        ledger.close()
    return {"run": str(new.path), "overrides": overrides, **new.stamp("answers")["attach"]}


def _words(raw: dict[str, Any], model: str, top_logprobs: int) -> list[str]:
    """Put into the recipe's words who reads; gives the overrides that say the same."""
    overrides = []
    if model not in raw["models"]:
        place = Path(model).expanduser()
        if not place.exists() and "/" not in model and not model.startswith("run:"):
            raise UserError(
                f"--model: found {model!r}, which is neither a role of the recipe ({', '.join(raw['models'])}) nor a folder or "
                ".gguf file; allowed are also a hub id (OWNER/NAME) and run:NAME."
            )
        reference = str(place.resolve()) if place.exists() else model
        raw["models"][READER] = {"transformers": {"model": reference}}
        overrides.append(f"models.{READER}={json.dumps(raw['models'][READER])}")
        model = READER
    answers = raw["answers"] = dict(raw.get("answers") or {})
    if answers.pop("top_logprobs", None) is not None:
        overrides.append("answers.top_logprobs=null")
        answers["top_logprobs"] = None
    answers["attach"] = {"model": model, "top_logprobs": top_logprobs}
    return [*overrides, f"answers.attach={json.dumps(answers['attach'])}"]
