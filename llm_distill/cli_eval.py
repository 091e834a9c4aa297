"""The command line's evaluation of models that no recipe made: `llm-distill eval`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from llm_distill.cli_runs import AsJson, Workspace
from llm_distill.errors import FellShort, UserError


def eval_models(
    data: Annotated[
        Path, typer.Option(help="Rows with prompt or messages, and label or reference: JSON Lines or a table.")
    ],
    model: Annotated[
        list[str],
        typer.Option(help="[NAME=]PLUG:MODEL, run:RECIPE, or a YAML file of models by name. May be repeated."),
    ],
    labels: Annotated[str | None, typer.Option(help="Of a classification, with commas between.")] = None,
    task: Annotated[
        Path | None, typer.Option(help="A YAML file with `task:` as a recipe writes it, or a recipe.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is about; by default the task's own.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The model that all others are held against; else all pairs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, .md, .json and the answers.")] = Path("eval"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    budget_usd: Annotated[float | None, typer.Option(min=0.0, help="What all answers may cost.")] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Ask models of your own the rows of a file, and hold them against each other, row by row.

    Differences have paired 95 % intervals and exact tests, corrected for the number of pairs by Holm. The same command goes on
    where it stopped and pays for nothing twice.
    """
    from rich.console import Console

    from llm_distill.errors import did_you_mean
    from llm_distill.recipe_file import read_mapping
    from llm_distill.screen import Screen
    from llm_distill.standalone import Question, ask, planned, read_models

    if labels is not None and task is not None:
        raise UserError("eval: --labels says what --task says too; give one of them.")
    if not data.is_file():
        raise UserError(f"--data {data}: no such file.")
    described: object = "generate"
    if task is not None:
        described = read_mapping(task, "a task").get("task")
        if described is None:
            raise UserError(f"--task {task}: it has no `task`; write it as in a recipe, or leave --task out for texts.")
    elif labels is not None:
        described = {"classify": {"labels": [label.strip() for label in labels.split(",")]}}
    models = read_models(model)
    if base is not None and base not in models:
        raise UserError(f"--base {base}: no such model.{did_you_mean(base, models)}")
    question = Question(
        data, described, metric, max_tokens, temperature, budget_usd, base=base, folder=(task or data).parent
    )
    plan, rows = planned(models, question, workspace)
    with Screen(Console(stderr=True)) as screen:
        found = ask(plan, rows, question, out, workspace, screen, os.environ.get("LLM_DISTILL_LEDGER"))
    print(json.dumps(found, sort_keys=True) if as_json else f"{found['headline']}\nReport: {out / 'report.html'}")
    if failed := {name: count for name, count in found["failed"].items() if count}:
        listed = ", ".join(f"{name} {count:,}" for name, count in failed.items())
        raise FellShort(f"eval: rows without an answer: {listed}; the same command asks for them again.")
