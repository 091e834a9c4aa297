"""The command line. It and its commands on runs (`cli_*`) are the only modules that print; this one alone exits.

Exit codes: 0 done, 1 finished but something fell short, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from llm_distill import (
    __version__,
    cli_attach,
    cli_audit,
    cli_data,
    cli_eval,
    cli_evals,
    cli_help,
    cli_jobs,
    cli_runs,
    cli_students,
    cli_sweep,
    cli_training,
    cli_trend,
)
from llm_distill.cli_runs import LOG, AsJson, Overrides, RecipeArg, Workspace, brief, headline
from llm_distill.errors import NO_ROOM, DistillError, FellShort, Interrupted, UserError

app = typer.Typer(
    cls=cli_help.Group,
    help="Distil a large teacher LLM into a small specialised model.",
    epilog=cli_help.epilog(""),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Strict = Annotated[bool, typer.Option("--strict", help="Refuse a judge of the family of a model that it judges.")]


@app.command(cls=cli_help.Command)
def run(
    recipe: RecipeArg,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="The last stage to run.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="Do this stage again; later ones follow if it comes out different.")
    ] = None,
    strict: Strict = False,
    workspace: Workspace = Path("data"),
    log: Annotated[Literal["text", "json"], typer.Option(help="What stderr gets: text, or JSON lines.")] = "text",
    metrics: Annotated[
        Path | None,
        typer.Option(
            help="A file of metrics for Prometheus' textfile collector.",
            envvar="LLM_DISTILL_METRICS",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: whatever of it is not done yet.

    Stages: prompts, answers, filter, train, evaluate, report. Ctrl-C stops and keeps everything; the same command goes on.
    LLM_DISTILL_LEDGER names another ledger than <workspace>/ledger.sqlite, as a SQLAlchemy URL.
    """
    from llm_distill import pipeline
    from llm_distill.errors import did_you_mean
    from llm_distill.kinship import refuse_kin
    from llm_distill.recipe import load
    from llm_distill.watching import watching

    LOG["json"] = log == "json"
    plan = load(recipe, overrides or ())
    if strict:
        refuse_kin(plan, "--strict")
    for option, stage in (("--until", until), ("--from", first)):
        if stage is not None and stage not in pipeline.STAGES:
            raise UserError(f"{option}: no stage {stage!r}.{did_you_mean(stage, pipeline.STAGES)}")
    ledger_url = os.environ.get("LLM_DISTILL_LEDGER")
    with watching(plan.name, log, metrics, workspace, ledger_url) as watched:
        summary = pipeline.run(plan, workspace, watched.watch, ledger_url=ledger_url, first=first, last=until)
        watched.end(summary)
    if as_json:
        print(json.dumps(summary, sort_keys=True))
    else:
        _tell(summary, workspace)
    if summary["status"] != "done":
        raise (Interrupted if summary["status"] == "interrupted" else FellShort)(summary["reason"])


def _tell(summary: dict[str, Any], workspace: Path) -> None:
    folder = Path(summary["run"])
    if summary["status"] == "done" and not any(stage["ran"] for stage in summary["stages"].values()):
        print(f"Nothing to do: {', '.join(summary['stages'])} are done.")
    if summary["status"] == "done" and "report" in summary["stages"]:
        print(headline(folder))
        print(f"Report: {folder / 'report' / 'report.html'}")
    print(f"Run: {folder}")
    name = folder.parent.name
    if (latest := cli_runs.folder_of(name, workspace).path) != folder:
        print(f"`{name}` as a run's name means a later one, {latest}; name this one by its folder.")


@app.command(cls=cli_help.Command)
def check(
    recipe: RecipeArg,
    overrides: Overrides = None,
    strict: Strict = False,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Read a recipe, find its mistakes, estimate what it would ask and cost. Spends nothing."""
    from llm_distill import growing, lineage, rivals
    from llm_distill.estimate import estimate, missing_keys
    from llm_distill.kinship import refuse_kin
    from llm_distill.recipe import load
    from llm_distill.sets.shelf import forgotten
    from llm_distill.sweep_space import space, trials

    plan = load(recipe, overrides or ())
    if strict:
        refuse_kin(plan, "--strict")
    untrained = lineage.missing(plan, workspace)  # another recipe's students, which may come later
    plan = plan if untrained else lineage.settled(plan, workspace)
    # Making a model loads nothing, and refuses what no type can: an address, a pattern.
    models = {role: model() for role, model in plan.models.items() if role not in untrained}
    plan.teachers.check_models({role: models[role].identity if role in models else role for role in plan.models})
    found = {
        "recipe": plan.name,
        "digest": plan.digest,
        **estimate(plan, growing.earlier(plan, workspace), forgotten(workspace)),
        "missing_keys": missing_keys(plan),
    }
    for role, asked in found["teachers"].items():
        asked["counting"] = models[role].count.how if role in models else "not trained yet"
    tried = space(plan) if plan.sweep else None  # which binds every value that would be tried
    found["sweep"] = {"knobs": tried.paths, "trials": trials(plan, tried)} if tried else None
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    print(f"{plan.name}: the recipe is sound.")
    made, aside = found["prompts_to_write_at_most"], found["set_aside"]
    more = f", up to {made:,} to be written" if made else ""
    print(f"  prompts    {found['prompts']:,} to ask{more}, {found['held_out']:,} held out")
    if aside:
        print(f"             {aside:,} nearly equal held-out rows and are set aside")
    if len(found["teachers"]) > 1:
        print(f"  teachers   {plan.teachers.described}")
    for role, asked in found["teachers"].items():
        more = f"; prices: {asked['prices']}" if asked["prices"] else ""
        print(f"  {role:<10} {asked['model']}, {asked['requests']:,} requests; {asked['counting']}{more}")
    for asked in found["others"]:
        times = (
            "requests, nobody can say how many,"
            if asked["requests"] is None
            else f"up to {asked['requests']:,} requests"
        )
        print(f"  {asked['plug']:<10} {times} to {', '.join(asked['roles'])}")
    print(
        f"  tokens     about {found['teacher_prompt_tokens']:,} of prompt, "
        f"at most {found['teacher_completion_tokens_at_most']:,} of completion"
    )
    usd = found["cost_usd_at_most"]
    why = (
        "a plug does not say what it asks"
        if None in {a["requests"] for a in found["others"]}
        else "a model has no prices_usd"
    )
    print(f"  cost       {f'unknown: {why}' if usd is None else f'at most about ${usd:,.4f}' if usd else 'nothing'}")
    print(f"  filters    {', '.join(f.name for f in plan.filters) or 'none'}")
    print(f"  training   {plan.trainer.spec.name if plan.trainer else 'none: this recipe makes data'}")
    print(f"  evaluation {'yes' if plan.evaluate else 'none'}")
    if tried:
        print(f"  sweep      {found['sweep']['trials']:,} trials over {', '.join(tried.paths)}")
    for note in (
        *found["open_terms"],
        *found["notes"],
        *(f"export {name}, which `run` will need" for name in found["missing_keys"]),
        *untrained.values(),
        *rivals.missing(plan, workspace),
    ):
        print(f"  note       {note}")


@app.command(cls=cli_help.Command)
def fetch(recipe: RecipeArg, overrides: Overrides = None, workspace: Workspace = Path("data")) -> None:
    """Make a recipe's models ready: find or download weights, check hashes, convert .gguf files. Asks nobody."""
    from llm_distill.lineage import settled
    from llm_distill.recipe import load

    for role, plug in settled(load(recipe, overrides or ()), workspace).models.items():
        model = plug()
        model.preflight()
        model.count.fetch()
        print(f"{role}: ready; {model.count.how}")


for command in (
    cli_runs.runs, cli_runs.show, cli_runs.report, cli_runs.refilter, cli_runs.review, cli_runs.ablate,
    cli_attach.attach, cli_sweep.sweep, cli_evals.gate, cli_evals.compare, cli_evals.measure, cli_students.export,
    cli_students.serve, cli_training.lint, cli_training.train, cli_trend.trend, cli_audit.why,
    cli_audit.forget, cli_audit.costs,
):  # fmt: skip
    app.command(cls=cli_help.Command)(command)
app.command("eval", cls=cli_help.Command)(cli_eval.eval_models)
app.add_typer(cli_jobs.jobs, name="jobs")
app.add_typer(cli_data.app, name="data")


@app.command(cls=cli_help.Command)
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name, and its file's.")],
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path("jobs"),
) -> None:
    """Write a commented recipe and a few seed rows to start from. They run as they are, with a scripted teacher."""
    from llm_distill.starter import write_starter

    for path in write_starter(name, folder):
        print(f"wrote {path}")
    print(f"next: llm-distill check {folder / name}.yaml")


@app.command(cls=cli_help.Command)
def doctor() -> None:
    """Say what is installed, which devices there are and which keys are set (names only)."""
    from llm_distill.doctor import findings

    for subject, finding in findings():
        print(f"{subject:<14} {finding}")


def _quit(message: str, code: int, **more: str) -> NoReturn:
    if LOG["json"]:
        from llm_distill.watching import json_line

        print(json_line("exit", "error", code=code, message=brief(message, 4000), **more), file=sys.stderr)
        raise SystemExit(code)
    print(f"llm-distill: {brief(message, 4000)}", file=sys.stderr)  # it may quote a server
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
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in NO_ROOM:
            if LOG["json"]:
                _quit(f"a bug: {error!r}", 1, traceback=traceback.format_exc())
            raise
        _quit(
            f"the disk is full ({error.filename or 'no file named'}); what was written before is whole. Make room.", 2
        )


if __name__ == "__main__":
    main()
