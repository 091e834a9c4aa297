"""The command line's commands on runs: which there are, what is in them, what people and filters made of them."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_distill.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from llm_distill.store import RunFolder

RecipeArg = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("-s", "--set", help="Override one value: key.key=value. May be repeated.")
]
Workspace = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder for runs and the ledger.", envvar="LLM_DISTILL_WORKSPACE")
]
RunArg = Annotated[
    str, typer.Argument(help="A run folder, or a recipe's name or file for its latest run.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def runs(workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """List the runs of a workspace, the latest last."""
    from llm_distill.pipeline import STAGES

    found = []
    for record in _records(workspace):
        try:
            of = folder_of(str(record.parent), workspace).record
        except UserError as error:
            found.append({"run": str(record.parent), "stages": [], "headline": str(error)})
            continue
        done = [name for name in STAGES if of["stages"].get(name)]
        said = f"an arm of its ablation: {of['arm']}" if "arm" in of else headline(record.parent)
        found.append({"run": str(record.parent), "stages": done, "headline": said})
    if as_json:
        print(json.dumps(found))
    for entry in [] if as_json else found:
        print(f"{entry['run']}  {' '.join(entry['stages'])}\n    {entry['headline']}")
    if not found and not as_json:
        print(f"No runs in {workspace / 'runs'}.")


def show(
    run: RunArg,
    table: Annotated[
        str,
        typer.Argument(help="prompts, held_out, answers, kept, dropped, eval/<arm>; logprobs, eval/<arm>/logprobs."),
    ],
    where: Annotated[
        str | None, typer.Option(help="A pandas query, e.g. \"status == 'ok' and `score.confidence` < 0.7\".")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Look at rows: what was asked and answered, kept or dropped, and why. Tags are columns `tags.<name>`.

    `logprobs` shows answers token by token; its --where is one of answers.
    """
    from llm_distill.tables import look, look_logprobs, token_lines

    if table.split("/")[-1] == "logprobs":
        for row in look_logprobs(folder_of(run, workspace), table, where, limit):
            print(json.dumps(row) if as_json else "\n".join(token_lines(row)))
        return
    rows = look(folder_of(run, workspace), table, where)
    if as_json:
        for row in rows[:limit]:
            print(json.dumps(row, default=str))
        return
    for row in rows[:limit]:
        print(f"{row['row_id'][:10]}  " + "  ".join(f"{brief(k)}={brief(v)}" for k, v in row.items() if _worth(k, v)))
        print(f"    asked     {brief(row['messages'][-1]['content'], 300)}")
        if row.get("text") is not None:
            print(f"    answered  {brief(row['text'], 300)}")
    print(f"{min(limit, len(rows)):,} of {len(rows):,} rows{' that fit --where' if where else ''}")


def _worth(column: str, value: Any) -> bool:
    named = column in ("status", "reason", "prediction", "agreement", "label", "dropped_by") or column.startswith(
        ("score.", "tags.")
    )
    return named and value is not None


#: Whether stderr is for a machine.
LOG = {"json": False}


def brief(value: Any, most: int = 60) -> str:
    """One line of printable characters: what a model wrote must not steer the terminal."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def report(run: RunArg, workspace: Workspace = Path("data")) -> None:
    """Build a run's report again from its folder, and print where it is."""
    from llm_distill.report.build import write

    folder = folder_of(run, workspace)
    if not folder.file("kept.parquet").exists():
        raise UserError(f"{folder.path} has no kept.parquet yet; run the recipe as far as its filter stage first.")
    print(write(folder))


def refilter(
    run: RunArg, overrides: Overrides = None, workspace: Workspace = Path("data"), as_json: AsJson = False
) -> None:
    """Decide again which rows of a run are kept, under other bounds: -s filter.confidence.min=0.8. Asks nobody.

    Scores and judgements that were paid for are used again. What is decided is a run of its own; `run` with the same
    overrides goes on from it.
    """
    from rich.console import Console

    from llm_distill.refilter import funnel_lines
    from llm_distill.refilter import refilter as decide
    from llm_distill.screen import Screen

    with Screen(Console(stderr=True)) as screen:
        ledger_url = os.environ.get("LLM_DISTILL_LEDGER")
        found = decide(folder_of(run, workspace), workspace, overrides or (), screen, ledger_url)
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    more = " ".join(f"-s {shlex.quote(text)}" for text in overrides or ())
    print(
        "\n".join([*funnel_lines(found), f"Go on with: llm-distill run RECIPE {more}".rstrip(), f"Run: {found['run']}"])
    )


def review(
    run: RunArg,
    out: Annotated[
        Path | None, typer.Option(help="Write rows to judge into this sheet, a .csv or .jsonl file.")
    ] = None,
    read: Annotated[Path | None, typer.Option(help="Read the decisions of a sheet that came back.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the sheet.")] = 100,
    by: Annotated[Literal["kept", "dropped", "both"], typer.Option(help="Which rows to judge.")] = "both",
    where: Annotated[
        str | None, typer.Option(help="A pandas query, as of `show`. Rows so chosen stand for no others.")
    ] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Have people judge rows: --out writes a sheet of kept and dropped ones, --read takes its decisions back.

    Write keep or drop in the column `decision`. Every later run of the recipe honours them: drop takes a row out, keep takes
    it past all filters. They are about a prompt with its answer, and lie in <workspace>/reviews.
    """
    from llm_distill import review as kept_decisions
    from llm_distill import review_sheet

    if (out is None) == (read is None):
        raise UserError("review: write --out SHEET to get rows to judge, or --read SHEET to hand decisions in.")
    folder = folder_of(run, workspace)
    if out is not None:
        chosen = review_sheet.draw(folder, rows, by, where)
        review_sheet.write(chosen, out)
        kept = sum(not row["dropped_by"] for row in chosen)
        found: dict[str, Any] = {"sheet": str(out), "rows": len(chosen), "kept": kept, "dropped": len(chosen) - kept}
        print(
            json.dumps(found)
            if as_json
            else f"wrote {out}: {len(chosen)} rows, {kept} kept and {len(chosen) - kept} dropped"
        )
        return
    assert read is not None
    new = review_sheet.read(read, folder)
    counts = kept_decisions.remember(folder, new)
    said = kept_decisions.said_of(folder)
    order = [step["name"] for step in folder.stamp("filter").get("filters", [])]
    agreement = kept_decisions.agreement(kept_decisions.own_verdicts(folder), said, order)
    if as_json:
        print(json.dumps({**counts, "agreement": agreement}))
        return
    print(f"{counts['new']} new decisions, {counts['changed']} changed, {counts['unchanged']} as they were")
    for line in kept_decisions.agreement_lines(agreement):
        print(line)
    print("Run the recipe again: its filter stage honours them, and what follows is done where rows have changed.")


def ablate(
    recipe: RecipeArg,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option(help="Leave this filter alone out. May be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Trainings of each student; scores are averaged.")] = 1,
    equal_rows: Annotated[bool, typer.Option("--equal-rows", help="Train every student on equally many rows.")] = False,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Find out what each filter is worth: run the recipe without it, train, evaluate, compare on the same held-out rows.

    Answers are shared; arms that keep the same rows share a student. Writes ablation.json and ablation.md into the recipe's
    run and a section into its report. The same command goes on after a stop.
    """
    from rich.console import Console

    from llm_distill.ablate import ablate as arms
    from llm_distill.ablate_table import markdown
    from llm_distill.recipe import load
    from llm_distill.screen import Screen

    plan, found = load(recipe, overrides or ()), dict[str, Any]()
    ledger_url = os.environ.get("LLM_DISTILL_LEDGER")
    try:
        with Screen(Console(stderr=True)) as screen:
            for upto in arms(
                plan, workspace, screen, only=only or (), seeds=seeds, equal_rows=equal_rows, ledger_url=ledger_url
            ):
                found = upto
    finally:
        if found:
            print(json.dumps(found, sort_keys=True) if as_json else markdown(found), end="\n" if as_json else "")


def headline(folder: Path) -> str:
    """What a run found out, in a sentence."""
    try:
        return str(json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError):
        return "no report yet"


def recipe_name(name: str) -> str:
    """What a recipe is named, by its name or its file."""
    from llm_distill.recipe_file import read_recipe

    path = Path(name)
    return str(read_recipe(path).get("name")) if path.suffix in (".yaml", ".yml") and path.is_file() else name


def _records(workspace: Path) -> list[Path]:
    """run.json of every run, the latest last."""
    return sorted(workspace.glob("runs/*/*/run.json"), key=lambda path: path.stat().st_mtime)


def folder_of(run: str, workspace: Path) -> RunFolder:
    """A run by its folder, or the latest run of a recipe by its name or file, arms of its ablation aside."""
    from llm_distill.store import RunFolder

    if (Path(run) / "run.json").exists():
        return RunFolder(Path(run))
    found, run = _records(workspace), recipe_name(run)
    named = [p for p in found if run in (p.parent.parent.name, p.parent.name)]
    if not named:
        raise UserError(
            f"no run {run!r} in {workspace / 'runs'}.{did_you_mean(run, {p.parent.parent.name for p in found})}"
        )
    own = [p for p in named if not _of_an_arm(p)]
    return RunFolder((own or named)[-1].parent)


def _of_an_arm(record: Path) -> bool:
    with suppress(OSError):  # that it cannot be read is said where it is
        return b'"arm": "' in record.read_bytes()
    return False
