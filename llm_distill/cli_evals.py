"""The command line's verdicts: may a run's student ship, and which of several is better."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from llm_distill.cli_runs import AsJson, RunArg, Workspace, brief, folder_of
from llm_distill.errors import FellShort, UserError


def gate(
    run: RunArg,
    ship: Annotated[
        bool,
        typer.Option("--ship", help="Where it holds, record that this student ships: WORKSPACE/shipped/NAME.json."),
    ] = False,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Say whether a run's student may ship, by the conditions under `ship:` in its recipe. Exit code 0: yes, 1: no.

    Each condition is printed with its number, its bound and whether it holds; one that cannot be judged fails and says why.
    Conditions changed in the recipe count after the next `run`, which trains and asks nothing for them. A student recorded by
    --ship is what `evaluate: {previous: shipped}` compares the next one with.
    """
    from llm_distill import shipped
    from llm_distill.report.build import build
    from llm_distill.report.gate_section import lines

    folder = folder_of(run, workspace)
    if not folder.file("kept.parquet").exists():
        raise UserError(f"{folder.path} has no kept.parquet yet; run the recipe to its end first.")
    report = build(folder)
    found = report.get("gate")
    if found is None:
        raise UserError(
            f"{folder.path}: the recipe has no `ship`, so there is nothing to hold the student to; add for example "
            "`ship: {min_kept_share: 0.95}`, and run it again."
        )
    rows = lines(report)
    record = str(shipped.ship(folder, workspace, report)) if ship and found["ships"] else None
    if as_json:
        print(json.dumps({"run": str(folder.path), **found} | ({"shipped": record} if record else {}), sort_keys=True))
    else:
        for one in rows:
            print(f"{'holds' if one.holds else 'FAILS'}  {one.what}: {brief(one.found)}, asked {brief(one.asked)}")
            print(f"       {brief(one.note, 400)}")
        print(f"Run: {folder.path}")
        if record:
            print(f"Shipped: {record}")
    if not found["ships"]:
        failed = "; ".join(f"{one.what.lower()} {one.found}, {one.asked} asked" for one in rows if not one.holds)
        raise FellShort(f"gate: the student does not ship ({failed}).")


def measure(
    run: RunArg,
    rows: Annotated[int | None, typer.Option(help="Asked one at a time, of each arm.", show_default=False)] = None,
    most_concurrency: Annotated[
        int | None, typer.Option(help="At most so many at a time; 1 measures no throughput beyond.", show_default=False)
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Only this arm; what is known of the others stays. May be repeated.", show_default=False),
    ] = None,
    machine_usd_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine that local models run on.", show_default=False)
    ] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Measure how fast a run's arms answer held-out rows, and what an answer costs. The report is built again with it.

    Time of an answer one at a time, time to first token, throughput at saturation, peak memory, size on disk, tokens, dollars,
    energy; student against teacher with intervals. What is not stated here is as in `evaluate.speed`. Everything is asked anew,
    paid for, and bounded by the recipe's budgets.
    """
    from rich.console import Console

    from llm_distill.measure_run import measure_run
    from llm_distill.report.markdown import table
    from llm_distill.report.speed_section import claim_rows, table_of
    from llm_distill.screen import Screen

    given = {
        "rows": rows,
        "most_concurrency": most_concurrency,
        "arms": arm or None,
        "machine_usd_per_hour": machine_usd_per_hour,
    }
    words = {key: value for key, value in given.items() if value is not None}
    with Screen(Console(stderr=True)) as screen:
        ledger = os.environ.get("LLM_DISTILL_LEDGER")
        found = measure_run(folder_of(run, workspace), workspace, words, screen, ledger)
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    shown = json.loads((Path(found["run"]) / "report" / "report.json").read_text(encoding="utf-8"))
    header, lines = table_of(shown)
    print(table(header, lines))
    print()
    print(table(["Claim", "Claimed", "Measured", "Verdict"], claim_rows(shown)))
    print(f"Report: {Path(found['run']) / 'report' / 'report.html'}")


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Two or more runs: their folders, or recipes' names.", show_default=False)
    ],
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Compare the students of several runs, row by row, on the held-out rows that they share.

    Differences have paired 95 % intervals; p is McNemar's exact test (the sign test where scores are no yes or no), corrected
    for the number of pairs by Holm. Nobody is asked.
    """
    from llm_distill.evals.students import compare_runs, markdown

    found = compare_runs([folder_of(run, workspace) for run in runs])
    print(json.dumps(found, sort_keys=True) if as_json else markdown(found))
