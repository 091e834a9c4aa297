"""The command line: the only module that prints or exits.

Exit codes: 0 done, 1 finished but something fell short, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llm_distill import __version__
from llm_distill.errors import DistillError, FellShort, Interrupted, UserError

if TYPE_CHECKING:
    from llm_distill.store import RunFolder

app = typer.Typer(
    help="Distil a large teacher LLM into a small specialised model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArg = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("-s", "--set", help="Override one value: key.key=value. May be repeated.")
]
Workspace = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder for runs and the ledger.", envvar="LLM_DISTILL_WORKSPACE")
]
RunArg = Annotated[str, typer.Argument(help="A run folder, or a recipe's name for its latest run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeArg,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="The last stage to run.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="Do this stage again; later ones follow if it comes out different.")
    ] = None,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Run a recipe: whatever of it is not done yet.

    Stages: prompts, answers, filter, train, evaluate, report. Ctrl-C stops and keeps everything; the same command goes on.
    LLM_DISTILL_LEDGER names another ledger than <workspace>/ledger.sqlite, as a SQLAlchemy URL.
    """
    from rich.console import Console

    from llm_distill import pipeline
    from llm_distill.errors import did_you_mean
    from llm_distill.recipe import load
    from llm_distill.screen import Screen

    plan = load(recipe, overrides or ())
    for option, stage in (("--until", until), ("--from", first)):
        if stage is not None and stage not in pipeline.STAGES:
            raise UserError(f"{option}: no stage {stage!r}.{did_you_mean(stage, pipeline.STAGES)}")
    with Screen(Console(stderr=True)) as screen:
        summary = pipeline.run(
            plan, workspace, screen, ledger_url=os.environ.get("LLM_DISTILL_LEDGER"), first=first, last=until
        )
    if as_json:
        print(json.dumps(summary, sort_keys=True))
    else:
        _tell(summary)
    if summary["status"] != "done":
        raise (Interrupted if summary["status"] == "interrupted" else FellShort)(summary["reason"])


def _tell(summary: dict[str, Any]) -> None:
    folder = Path(summary["run"])
    if summary["status"] == "done" and not any(stage["ran"] for stage in summary["stages"].values()):
        print(f"Nothing to do: {', '.join(summary['stages'])} are done.")
    if summary["status"] == "done" and "report" in summary["stages"]:
        print(_headline(folder))
        print(f"Report: {folder / 'report' / 'report.html'}")
    print(f"Run: {folder}")


def _headline(folder: Path) -> str:
    try:
        return str(json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError):
        return "no report yet"


@app.command()
def check(recipe: RecipeArg, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read a recipe, find its mistakes, estimate what it would ask and cost. Spends nothing."""
    from llm_distill.estimate import estimate, missing_keys
    from llm_distill.recipe import load

    plan = load(recipe, overrides or ())
    # Making a model loads nothing, and refuses what no type can: an address, a pattern.
    models = {role: model() for role, model in plan.models.items()}
    plan.teachers.check_models({role: model.identity for role, model in models.items()})
    found = {"recipe": plan.name, "digest": plan.digest, **estimate(plan), "missing_keys": missing_keys(plan)}
    for role, asked in found["teachers"].items():
        asked["counting"] = models[role].count.how
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    print(f"{plan.name}: the recipe is sound.")
    print(f"  prompts    {found['prompts']:,} to ask, {found['held_out']:,} held out")
    if len(found["teachers"]) > 1:
        print(f"  teachers   {plan.teachers.described}")
    for role, asked in found["teachers"].items():
        more = f"; prices: {asked['prices']}" if asked["prices"] else ""
        print(f"  {role:<10} {asked['model']}, {asked['requests']:,} requests; {asked['counting']}{more}")
    print(
        f"  tokens     about {found['teacher_prompt_tokens']:,} of prompt, "
        f"at most {found['teacher_completion_tokens_at_most']:,} of completion"
    )
    usd = found["cost_usd_at_most"]
    print(f"  cost       {'unknown: a model has no prices_usd' if usd is None else f'at most about ${usd:,.4f}'}")
    print(f"  filters    {', '.join(f.name for f in plan.filters) or 'none'}")
    print(f"  training   {plan.trainer.spec.name if plan.trainer else 'none: this recipe makes data'}")
    print(f"  evaluation {'yes' if plan.evaluate else 'none'}")
    for note in (*found["open_terms"], *(f"export {name}, which `run` will need" for name in found["missing_keys"])):
        print(f"  note       {note}")


@app.command()
def fetch(recipe: RecipeArg, overrides: Overrides = None) -> None:
    """Make a recipe's models ready: find or download weights, check hashes, convert .gguf files. Asks nobody."""
    from llm_distill.recipe import load

    for role, plug in load(recipe, overrides or ()).models.items():
        model = plug()
        model.preflight()
        model.count.fetch()
        print(f"{role}: ready; {model.count.how}")


@app.command()
def runs(workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """List the runs of a workspace."""
    found = []
    for record in sorted(workspace.glob("runs/*/*/run.json")):
        try:
            stages = _folder(str(record.parent), workspace).record["stages"]
        except UserError as error:
            found.append({"run": str(record.parent), "stages": [], "headline": str(error)})
            continue
        done = [name for name, stamp in stages.items() if stamp]
        found.append({"run": str(record.parent), "stages": done, "headline": _headline(record.parent)})
    if as_json:
        print(json.dumps(found))
    for entry in [] if as_json else found:
        print(f"{entry['run']}  {' '.join(entry['stages'])}\n    {entry['headline']}")
    if not found and not as_json:
        print(f"No runs in {workspace / 'runs'}.")


@app.command()
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
        for row in look_logprobs(_folder(run, workspace), table, where, limit):
            print(json.dumps(row) if as_json else "\n".join(token_lines(row)))
        return
    rows = look(_folder(run, workspace), table, where)
    if as_json:
        for row in rows[:limit]:
            print(json.dumps(row, default=str))
        return
    for row in rows[:limit]:
        print(f"{row['row_id'][:10]}  " + "  ".join(f"{_brief(k)}={_brief(v)}" for k, v in row.items() if _worth(k, v)))
        print(f"    asked     {_brief(row['messages'][-1]['content'], 300)}")
        if row.get("text") is not None:
            print(f"    answered  {_brief(row['text'], 300)}")
    print(f"{min(limit, len(rows))} of {len(rows):,} rows")


def _worth(column: str, value: Any) -> bool:
    named = column in ("status", "reason", "prediction", "agreement", "label", "dropped_by") or column.startswith(
        ("score.", "tags.")
    )
    return named and value is not None


def _brief(value: Any, most: int = 60) -> str:
    """One line of printable characters: what a model wrote must not steer the terminal."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


@app.command()
def report(run: RunArg, workspace: Workspace = Path("data")) -> None:
    """Build a run's report again from its folder, and print where it is."""
    from llm_distill.report.build import write

    folder = _folder(run, workspace)
    if not folder.file("kept.parquet").exists():
        raise UserError(f"{folder.path} has no kept.parquet yet; run the recipe as far as its filter stage first.")
    print(write(folder))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name, and its file's.")],
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path("jobs"),
) -> None:
    """Write a commented recipe and a few seed rows to start from. They run as they are, with a scripted teacher."""
    from llm_distill.starter import write_starter

    for path in write_starter(name, folder):
        print(f"wrote {path}")
    print(f"next: llm-distill check {folder / name}.yaml")


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are and which keys are set (names only)."""
    from llm_distill.doctor import findings

    for subject, finding in findings():
        print(f"{subject:<14} {finding}")


def _folder(run: str, workspace: Path) -> RunFolder:
    """A run by its folder, or the latest run of a recipe by its name."""
    from llm_distill.store import RunFolder

    if (Path(run) / "run.json").exists():
        return RunFolder(Path(run))
    found = sorted(workspace.glob("runs/*/*/run.json"), key=lambda p: p.stat().st_mtime)
    named = [p for p in found if run in (p.parent.parent.name, p.parent.name)]
    if not named:
        names = sorted({p.parent.parent.name for p in found})
        raise UserError(f"no run {run!r} in {workspace / 'runs'}. There is: {', '.join(names) or 'none'}.")
    return RunFolder(named[-1].parent)


def _quit(message: str, code: int) -> NoReturn:
    print(f"llm-distill: {_brief(message, 4000)}", file=sys.stderr)  # it may quote a server
    raise SystemExit(code)


def main() -> None:
    """The entry point: errors made on purpose print one line, bugs keep their traceback."""
    try:
        app()
    except (Interrupted, KeyboardInterrupt) as stop:
        _quit(str(stop) or "stopped; the same command goes on from here.", 130)
    except FellShort as short:
        _quit(str(short), 1)
    except DistillError as mistake:
        _quit(str(mistake), 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _quit(
            f"the disk is full ({error.filename or 'no file named'}); what was written before is whole. Make room.", 2
        )


if __name__ == "__main__":
    main()
