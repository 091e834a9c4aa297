"""The command line's commands for those who have to answer for a row or a dollar: why, forget, costs."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_distill.cli_runs import AsJson, Workspace, brief
from llm_distill.errors import Interrupted, UserError

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger


def why(
    row: Annotated[str, typer.Argument(help="A row_id, or how it begins.", show_default=False)],
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Tell one row's whole story: its origin, who answered under which terms and for how much, scores, decisions, who learnt it.

    Looks through all runs and data sets of the workspace.
    """
    from llm_distill.story import lines, story

    with closing(_ledger(workspace)) as ledger:
        found = story(workspace, row, ledger)
    print(json.dumps(found, sort_keys=True) if as_json else "\n".join(brief(line, 400) for line in lines(found)))


def forget(
    where: Annotated[
        str | None,
        typer.Option(help="A pandas query over the rows of data sets, as of `show`; `question` is a row's own text."),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="A row_id, or how it begins. May be repeated.")] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Also out of runs' tables, reports and the ledger's texts.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Take rows out of all versions of all data sets, for ever, and name every student that was trained on them.

    A hash of each stays, so that no later run adds it again. Runs keep their tables unless told --everywhere.
    """
    from llm_distill import forget as forgetting

    forgetting.check_choice(row or (), where)
    chosen = forgetting.choose(workspace, row or (), where)
    if dry_run or not chosen.rows:
        print(_said(chosen.found, everywhere, as_json))
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("forget: nobody is there to be asked; look with --dry-run, then say --yes.")
        print(_said(chosen.found, everywhere, as_json=False), file=sys.stderr)
        if not typer.confirm("Forget them? This cannot be undone.", err=True):
            raise Interrupted("nothing was changed.")
    if everywhere:
        with closing(_ledger(workspace)) as ledger:
            done = forgetting.forget(workspace, chosen, ledger)
    else:
        done = forgetting.forget(workspace, chosen, None)
    print(_said(done, everywhere, as_json))


def _said(found: dict[str, object], everywhere: bool, as_json: bool) -> str:
    from llm_distill.forget import lines

    return (
        json.dumps(found, sort_keys=True)
        if as_json
        else "\n".join(brief(x, 400) for x in lines(found, everywhere=everywhere))
    )


def costs(
    by: Annotated[Literal["day", "teacher", "recipe", "stage"], typer.Option(help="What to add up by.")] = "day",
    since: Annotated[str | None, typer.Option(help="The first day that counts, as 2026-01-31 (UTC).")] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Say what was spent, to the nano-dollar, from the ledger's own accounts. `teacher` is whoever answered, judges included.

    Reserved is what is in flight, or was when its process died: the provider may have billed it, and budgets count it.
    """
    from llm_distill.ledger_spending import costs as spent
    from llm_distill.ledger_spending import total, unpriced, usd

    with closing(_ledger(workspace)) as ledger:
        rows, unknown = spent(ledger, by, since), unpriced(ledger, since)
    if as_json:
        print(json.dumps({"by": by, "since": since, "rows": rows, "total": total(rows), "unpriced": unknown}))
        return
    lines = [(brief(row[by] or "not noted", 200), row) for row in [*rows, {by: "all", **total(rows)}]]
    wide = max(22, *(len(name) for name, _ in lines)) + 2  # nobody is cut: two models may differ in their last letters
    print(f"{by:<{wide}}{'spent':>20}{'reserved':>20}{'requests':>12}{'tokens':>16}")
    for name, row in lines:
        print(
            f"{name:<{wide}}{usd(row['nano_usd']):>20}{usd(row['reserved_nano_usd']):>20}{row['requests']:>12,}{row['tokens']:>16,}"
        )
    if unknown:
        print(
            f"Not in it: {unknown:,} answers of models whose prices are unknown; `prices_usd` in the recipe names them."
        )


def _ledger(workspace: Path) -> Ledger:
    """The ledger of a workspace; UserError where there is none."""
    from llm_distill.ledger import Ledger

    url = os.environ.get("LLM_DISTILL_LEDGER")
    if url is None and not (workspace / "ledger.sqlite").exists():
        raise UserError(f"{workspace} has no ledger yet; run a recipe first, or name another with --workspace.")
    return Ledger(url or workspace / "ledger.sqlite")
