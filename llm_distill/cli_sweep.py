"""The command line's sweep: tries a recipe's settings and says how to run it with the best."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from llm_distill.cli_runs import AsJson, Overrides, RecipeArg, Workspace


def sweep(
    recipe: RecipeArg, overrides: Overrides = None, workspace: Workspace = Path("data"), as_json: AsJson = False
) -> None:
    """Try the settings under `sweep:`: train with each on the same answers, judge on rows apart from the held-out ones.

    Writes sweep.json and sweep.md into the recipe's run and a section into its report, and prints how to run the recipe with
    the best settings. The same command goes on after a stop, and with more `sweep.trials` after its end.
    """
    from rich.console import Console

    from llm_distill.recipe import load
    from llm_distill.screen import Screen
    from llm_distill.sweep import sweep as trials
    from llm_distill.sweep_table import markdown

    plan, found = load(recipe, overrides or ()), dict[str, Any]()
    try:
        with Screen(Console(stderr=True)) as screen:
            for upto in trials(plan, workspace, screen, ledger_url=os.environ.get("LLM_DISTILL_LEDGER")):
                found = upto
    finally:
        if found and as_json:
            print(json.dumps(found, sort_keys=True))
        elif found:
            print(markdown(found))
            for line in next_step(recipe, overrides or (), found["best"]):
                print(line)


def next_step(recipe: Path, overrides: list[str] | tuple[str, ...], best: dict[str, Any]) -> list[str]:
    """How to run the recipe with the best settings, if they are not its own."""
    if not best["overrides"]:
        return []
    words = [
        "llm-distill",
        "run",
        str(recipe),
        *(part for text in (*overrides, *best["overrides"]) for part in ("-s", text)),
    ]
    return [
        "The recipe with the best settings, on all rows and evaluated on the held-out ones:",
        f"  {shlex.join(words)}",
    ]
