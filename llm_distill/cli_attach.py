"""The command that adds logprobs to answers which came without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from llm_distill.cli_runs import AsJson, RunArg, Workspace, folder_of


def attach(
    run: RunArg,
    model: Annotated[
        str, typer.Option("--model", help="Who reads: a role of the run's recipe, or a folder, .gguf file or hub id.")
    ],
    top_logprobs: Annotated[int, typer.Option(min=1, max=1024, help="Alternatives a token.")] = 20,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Add logprobs to a run's answers: an open model reads them, for filters by confidence. Asks no teacher again.

    What is read is a run of its own; `run` with the overrides that are printed goes on from it.
    """
    from rich.console import Console

    from llm_distill.attach_run import attach_run
    from llm_distill.screen import Screen

    with Screen(Console(stderr=True)) as screen:
        ledger_url = os.environ.get("LLM_DISTILL_LEDGER")
        found = attach_run(folder_of(run, workspace), workspace, model, top_logprobs, screen, ledger_url)
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    print(f"{found['rows']:,} answers have logprobs now.")
    for reason, count in found["without"].items():
        print(f"{count:,} have none: {reason}")
    print(
        f"Go on with: llm-distill run RECIPE {' '.join(f'-s {chr(39)}{text}{chr(39)}' for text in found['overrides'])}"
    )
    print(f"Run: {found['run']}")
