"""The command line's look at a recipe's runs over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_distill.cli_runs import AsJson, Workspace, brief, recipe_name


def trend(
    name: Annotated[str, typer.Argument(help="The recipe's name or file.", show_default=False)],
    html: Annotated[Path | None, typer.Option(help="Write a page with charts to this file.")] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Show a recipe's runs over time: score, rows kept, drop rates, cost, and whether its teacher has moved. Asks nobody.

    Drift of the teacher is known where the recipe has a `probe`: frozen rows that every run asks anew.
    """
    from llm_distill import store
    from llm_distill.trend import changes, history, table

    found = history(workspace, recipe_name(name))
    rows = table(found)
    if html is not None:
        from llm_distill.report.trend_page import render

        with store.replacing(html) as temporary:
            temporary.write_text(render(found, rows, changes(found["runs"])), encoding="utf-8")
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print(
            "  ".join(
                [*(brief(cell, 60).ljust(width) for cell, width in zip(row, widths, strict=False)), brief(row[-1], 400)]
            )
        )
    for line in [*changes(found["runs"]), *(f"Note: {note}." for note in found["notes"])]:
        print(brief(line, 400))
    if html is not None:
        print(f"wrote {html}")
