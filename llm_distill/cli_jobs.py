"""The command line's commands on jobs: recipes with a schedule, which run by themselves."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_distill.cli_help import Command, Group
from llm_distill.cli_runs import LOG, AsJson, Workspace, brief
from llm_distill.errors import FellShort, UserError

if TYPE_CHECKING:
    from llm_distill.recipe import Plan
    from llm_distill.schedule.jobs import Found

jobs = typer.Typer(cls=Group, invoke_without_command=True)
Folder = Annotated[Path, typer.Option("--jobs", help="The folder of recipes.", envvar="LLM_DISTILL_JOBS")]
Names = Annotated[
    list[str] | None, typer.Argument(help="Jobs, by file or name; all of the folder by default.", show_default=False)
]
JOBS = Path("jobs")
#: Ends that are as they should be; the others make the exit code 1, 2 where it is the user's to repair.
_FINE = ("done", "settled", "elsewhere", "busy", "skipped", "missed")


@jobs.callback()
def overview(
    context: typer.Context, folder: Folder = JOBS, workspace: Workspace = Path("data"), as_json: AsJson = False
) -> None:
    """List the jobs: recipes with a schedule, their last and next run, what they have spent.

    A recipe runs by itself once something calls `jobs run`: cron, systemd, Kubernetes (`jobs crontab`, ...) or Prefect.
    """
    if context.invoked_subcommand:
        for name, option in (("folder", "--jobs"), ("workspace", "--workspace"), ("as_json", "--json")):
            if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE":
                raise UserError(
                    f"jobs: {option} goes behind {context.invoked_subcommand}, which would not see it here."
                )
        return
    from llm_distill.schedule.jobs import recipes, standing
    from llm_distill.schedule.night import opened

    found = recipes(folder)
    with opened(workspace, _ledger()) as book:
        rows = [standing(one.plan, book, time.time()) for one in found if one.plan and one.plan.schedule]
    wrong = [_wrong(one) for one in found if one.error]
    if as_json:
        print(json.dumps({"jobs": rows, "wrong": wrong}, sort_keys=True))
        return
    for row in rows:
        print("\n".join(_lines(row)))
    if not rows:
        print(f"No recipe in {folder} has a schedule.")
    for error in wrong:
        print(f"wrong: {brief(error, 1000)}")


def _wrong(one: Found) -> str:
    """What is wrong with which recipe."""
    said = str(one.error)
    return said if said.startswith(str(one.path)) else f"{one.path}: {said}"


def _lines(row: dict[str, Any]) -> list[str]:
    spent = ", ".join(
        f"${usd:,.4f}" + (f" of ${row['budget_usd'][per]:,.2f}" if per in row["budget_usd"] else "") + f" this {per}"
        for per, usd in row["spent_usd"].items()
    )
    lines = [f"{row['job']}  {row['cron']} {row['timezone']}  next {row['next']}"]
    if last := row["last"]:
        lines.append(f"    last   {_tick(last)}")
    lines += [f"    open   {_tick(tick)}" for tick in row["unfinished"] if tick != row["last"]]
    if row["due"]:
        lines.append(f"    due    {', '.join(row['due'])}")
    return [*lines, f"    spent  {spent}"]


def _tick(tick: dict[str, Any]) -> str:
    rows = "" if tick.get("rows_kept") is None else f", {tick['rows_kept']:,} rows kept"
    why = f": {brief(tick['reason'], 300)}" if tick.get("reason") else ""
    return f"{tick['tick']}  {tick['state'].replace('_', ' ')}{rows}{why}"


@jobs.command(cls=Command)
def check(folder: Folder = JOBS, as_json: AsJson = False) -> None:
    """Read every recipe of the folder and say what is wrong with it. Spends nothing."""
    from llm_distill.recipe_schedule import iso
    from llm_distill.schedule.jobs import recipes
    from llm_distill.schedule.ticks import following

    found = recipes(folder)
    rows: list[dict[str, Any]] = []
    for one in found:
        schedule = one.plan.schedule if one.plan else None
        upcoming = iso(following(schedule, time.time())) if schedule else None
        unset = [name for name in _variables(one.plan) if not os.environ.get(name)] if one.plan else []
        rows.append({"file": str(one.path), "error": one.error, "next": upcoming, "unset": unset})
    if as_json:
        print(json.dumps(rows, sort_keys=True))
    for row in [] if as_json else rows:
        said = row["error"] or (f"next {row['next']}" if row["next"] else "sound; it has no schedule")
        print(f"{row['file']}: {brief(said, 1000)}")
        for name in row["unset"]:
            print(f"    note   export {name}, which its messages will need")
    if wrong := sum(one.error is not None for one in found):
        raise UserError(f"jobs check: {wrong} of {len(found)} recipes are wrong.")


def _variables(plan: Plan) -> list[str]:
    """What the messages of a job need of the environment."""
    hooks = [one.webhook.url_env for one in plan.notify if one.webhook]
    return [*hooks, *(one.email.password_env for one in plan.notify if one.email and one.email.password_env)]


@jobs.command(cls=Command)
def run(
    names: Names = None,
    tick: Annotated[
        str | None,
        typer.Option(help="This scheduled time alone, due or not, such as 2026-11-27T03:00Z; also one that failed."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until no tick is unfinished, postponed ones included.")
    ] = False,
    log: Annotated[Literal["text", "json"], typer.Option(help="What stderr gets: text, or JSON lines.")] = "text",
    metrics: Annotated[
        Path | None, typer.Option(help="A folder for Prometheus' textfile collector; each job writes NAME.prom there.")
    ] = None,
    folder: Folder = JOBS,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Do what is due now, and nothing twice, whoever calls it and however often.

    A recipe of the folder that is wrong stops no other job. A tick that was interrupted goes on with the next call.
    """
    from llm_distill.metrics import STATES
    from llm_distill.schedule.jobs import named, recipes
    from llm_distill.schedule.night import awaited, run_due, run_tick, stopped
    from llm_distill.schedule.ticks import scheduled_time
    from llm_distill.watching import watching

    LOG["json"] = log == "json"
    there = [] if names else recipes(folder)
    plans = [named(name, folder) for name in names or ()] + [r.plan for r in there if r.plan and r.plan.schedule]
    wrong = [_wrong(one) for one in there if one.error]
    if tick is not None and len(plans) != 1:
        raise UserError("--tick: name one job, whose tick it is.")
    found: list[dict[str, Any]] = []

    def done(plan: Plan) -> bool:
        """Do what is due of a job; False where somebody stopped it."""
        assert plan.schedule is not None
        with watching(plan.name, log, metrics and metrics / f"{plan.name}.prom", workspace, _ledger()) as watched:
            if tick is not None:
                at = scheduled_time(plan.schedule, tick)
                some = [run_tick(plan, at, workspace, watched.watch, _ledger(), again=True)]
            else:
                some = run_due(plan, workspace, watched.watch, _ledger())
            for one in some:
                if one["state"] in STATES:
                    watched.end({**one, "status": one["state"]})
        found.extend(some)
        return not some or some[-1]["state"] != "interrupted"

    while all(map(done, plans)) and wait and tick is None and plans:
        plans = awaited(plans, workspace, _ledger())
    if as_json:
        print(json.dumps(found, sort_keys=True))
    else:
        print("\n".join(f"{one['job']}  {_tick(one)}" for one in found) or "Nothing is due.")
    stopped(found)
    for error in [] if as_json else wrong:
        print(f"wrong: {brief(error, 1000)}")
    _exit(found, wrong)


def _exit(found: list[dict[str, Any]], wrong: list[str]) -> None:
    """Raise what the worst of the ends is: a tick that failed, a recipe that is wrong, a tick that fell short."""
    last = {(one["job"], one["tick"]): one for one in found}.values()  # a postponed tick may have been done after all
    bad = [one for one in last if one["state"] not in _FINE]
    first = next((one for one in bad if one["state"] == "failed"), None)
    if first is None and wrong:
        more = f" ({len(wrong) - 1} more are wrong.)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")
    if not bad:
        return
    first = first or bad[0]
    more = f" ({len(bad) - 1} more did not end well.)" if len(bad) > 1 else ""
    raise (UserError if first["state"] == "failed" else FellShort)(
        f"{first['job']}, {first['tick']}: {first['state'].replace('_', ' ')}: {first.get('reason', '')}{more}"
    )


def _ledger() -> str | None:
    return os.environ.get("LLM_DISTILL_LEDGER")


def _plans(names: list[str] | None, folder: Path) -> list[Plan]:
    from llm_distill.schedule.jobs import named, recipes

    there = [] if names else recipes(folder)
    for one in there:
        if one.error:
            typer.echo(f"left out, for it is wrong: {brief(_wrong(one), 1000)}", err=True)
    if plans := [named(name, folder) for name in names or ()] + [r.plan for r in there if r.plan and r.plan.schedule]:
        return plans
    raise UserError(f"no recipe in {folder} has a schedule.")


def _program() -> str:
    """Our command, as another process would call it."""
    return shutil.which("llm-distill") or str(Path(sys.executable).with_name("llm-distill"))


@jobs.command(cls=Command)
def crontab(names: Names = None, folder: Folder = JOBS, workspace: Workspace = Path("data")) -> None:
    """Print lines for `crontab -e`."""
    from llm_distill.schedule.entries import crontab as lines

    print(lines(_plans(names, folder), workspace, _program()), end="")


@jobs.command(cls=Command)
def systemd(
    names: Names = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the units into this folder, such as ~/.config/systemd/user.")
    ] = None,
    folder: Folder = JOBS,
    workspace: Workspace = Path("data"),
) -> None:
    """Print a service and a timer for each job, or write them."""
    from llm_distill.schedule.entries import systemd as units

    for plan in _plans(names, folder):
        for name, text in units(plan, workspace, _program()).items():
            if out is None:
                print(f"# {name}\n{text}")
                continue
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf-8")
            print(f"wrote {out / name}")


@jobs.command(cls=Command)
def kubernetes(
    names: Names = None,
    image: Annotated[str, typer.Option(help="The image that has llm-distill in it.")] = "llm-distill:latest",
    claim: Annotated[str, typer.Option(help="The claim of jobs/ and data/, mounted at /distil.")] = "llm-distill",
    secret: Annotated[str | None, typer.Option(help="The secret whose keys are the environment.")] = None,
    folder: Folder = JOBS,
) -> None:
    """Print a CronJob for each job, for `kubectl apply -f -`."""
    from llm_distill.schedule.entries import as_yaml
    from llm_distill.schedule.entries import kubernetes as cron_job

    print("---\n".join(as_yaml(cron_job(plan, image, claim, secret)) for plan in _plans(names, folder)), end="")


@jobs.command(cls=Command)
def serve(
    names: Names = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page, on 127.0.0.1; 0 takes a free one.")] = 4200,
    limit: Annotated[int, typer.Option(min=1, help="Jobs at a time.")] = 1,
    folder: Folder = JOBS,
    workspace: Workspace = Path("data"),
) -> None:
    """Run the jobs with Prefect: its server and page on this machine, woken at their times. Needs llm-distill[schedule]."""
    from llm_distill.schedule.prefect_serve import serve as wake

    wake(_plans(names, folder), workspace, port, limit, lambda line: print(line, flush=True))


@jobs.command(cls=Command)
def deploy(
    names: Names = None,
    pool: Annotated[str, typer.Option(help="The work pool of your Prefect server (PREFECT_API_URL).")] = ...,  # type: ignore[assignment]
    at: Annotated[
        str | None, typer.Option(help="The recipes' folder for the pool's workers; by default as here.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The image of a pool that runs containers.")] = None,
    job_variable: Annotated[list[str] | None, typer.Option(help="A job variable, NAME=VALUE (YAML).")] = None,
    folder: Folder = JOBS,
    workspace: Annotated[str, typer.Option("--workspace", "-w", help="As the pool's workers see it.")] = "data",
) -> None:
    """Deploy the jobs to a Prefect server and work pool of your own: process, docker or kubernetes."""
    from llm_distill.schedule.prefect_deploy import deploy as send

    plans, said = _plans(names, folder), lambda line: typer.echo(line, err=True)
    for name in send(plans, pool, workspace, at, image, job_variable or (), said):
        print(f"deployed {name}")
