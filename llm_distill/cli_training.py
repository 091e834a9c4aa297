"""The command line's commands on a run's training."""

from __future__ import annotations

import json
import os
from pathlib import Path

from llm_distill.cli_runs import AsJson, RunArg, Workspace, brief, folder_of
from llm_distill.errors import FellShort


def lint(run: RunArg, workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """Look at the rows that a run would train on, as its trainer does before the first step. Trains and asks nothing.

    Exit code 1 where an error is found, which would stop the training.
    """
    from rich.console import Console

    from llm_distill.lint_run import lint_run
    from llm_distill.screen import Screen
    from llm_distill.trainers.findings import as_json as listed

    with Screen(Console(stderr=True)) as screen:
        findings = lint_run(folder_of(run, workspace), workspace, screen, os.environ.get("LLM_DISTILL_LEDGER"))
    if as_json:
        print(json.dumps(listed(findings)))
    for finding in () if as_json else findings:
        print(f"{finding.level:<8} {finding.name:<15} {brief(finding.line, 2000)}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise FellShort(f"lint: {errors} error{'s' if errors > 1 else ''}, which training would stop at.")
