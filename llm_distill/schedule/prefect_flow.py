"""Jobs as Prefect's flows: when to wake is Prefect's, what is due and who does it stays with the ledger.

A flow run does the tick that it was scheduled for, and whatever of the job was left unfinished. The stages are its tasks, with
their states, lines and tries; the report is an artifact. Nothing of a run depends on Prefect: where its server is away the
stages go on without it, and a flow run that died is finished by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, Scheduled, State, StateType

from llm_distill.errors import DistillError, FellShort, Unreachable
from llm_distill.recipe import load
from llm_distill.recipe_schedule import Schedule, iso
from llm_distill.schedule.entries import label
from llm_distill.schedule.night import run_due, schedule_of
from llm_distill.schedule.notify import headline, sentence
from llm_distill.schedule.ticks import latest
from llm_distill.scrub import scrubbed

#: Where trouble may pass quickly, a stage is tried again after so many seconds, before its tick is postponed.
RETRY_S = (30, 120)
#: Prefect's own reading of cron lines differs from ours by at most so much, where clocks change.
_SHIFT_S = 3600


def named() -> str:
    """A flow run's name, which its page lists runs by: the job, and the time that it was set to."""
    when = flow_run.get_scheduled_start_time().astimezone(UTC)
    return f"{flow_run.get_parameters()['job']} {when:%Y-%m-%d %H:%M} UTC"


@flow(name="llm-distill", flow_run_name=named, log_prints=False)  # type: ignore[untyped-decorator]
def night(job: str, recipe: str, workspace: str) -> Any:
    """Do what is due of a job; gives the flow run's last state."""
    for what, path in (("recipe", recipe), ("workspace", workspace)):
        if not Path(path).is_absolute():  # a worker's own folder is gone when the flow run ends
            return Failed(
                message=f"{what}: {path} is not a whole path; deploy the job again, or write one into its parameters."
            )
    log = _Log()
    plan = load(Path(recipe))
    now = woken(schedule_of(plan), flow_run.get_scheduled_start_time().timestamp(), auto=_scheduled_by_prefect())
    with _without_secrets():
        found = run_due(plan, Path(workspace), log, _ledger(), clock=lambda: now, each=_as_task)
    for one in found:
        with suppress(Exception):  # a server that is away has no artifacts, and the run is none the worse for it
            _show(one)
    later = [one for one in found if one["state"] == "postponed"]
    for one in later:
        with suppress(Exception):
            _wake(job, one)
    return _state(found)


def woken(schedule: Schedule, scheduled: float, *, auto: bool) -> float:
    """The moment that a flow run stands for: its tick, where Prefect's clock woke it for one; else what it was set to."""
    tick = latest(schedule, scheduled)
    return float(tick) if auto and tick is not None and scheduled - tick <= _SHIFT_S else scheduled


def _scheduled_by_prefect() -> bool:
    try:
        with get_client(sync_client=True) as client:
            return bool(client.read_flow_run(flow_run.get_id()).auto_scheduled)
    except Exception:  # noqa: BLE001  the server is away: the scheduled time itself is good enough
        return False


def _ledger() -> str | None:
    import os

    return os.environ.get("LLM_DISTILL_LEDGER")


def _as_task(name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A stage as a task. What the stage itself gave or raised counts, whatever becomes of Prefect around it."""
    box: dict[str, Any] = {}

    def stage() -> None:
        box.clear()
        with _without_secrets():
            try:
                box["given"] = do()
            except BaseException as error:
                box["raised"] = error
                raise
        _Log().say(f"{name}: {box['given']['rows_in']:,} rows in, {box['given']['rows_out']:,} out")

    runs = task(
        name=name, retries=len(RETRY_S), retry_delay_seconds=list(RETRY_S), retry_condition_fn=_may_pass,
        cache_policy=NO_CACHE, persist_result=False,
    )(stage)  # fmt: skip
    try:
        runs()
    except Exception:  # noqa: BLE001  the stage's own, or the trouble of a server that is away
        if not box:
            _Log().say(f"{name}: goes on without Prefect, whose server does not answer")
            return do()
        if "raised" in box:
            raise box["raised"] from None
    given: dict[str, Any] = box["given"]
    return given


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Raise an error whose words hold a secret without it: Prefect keeps what it is raised, and its page shows it."""
    try:
        yield
    except Exception as error:
        if (words := scrubbed(str(error))) == str(error):
            raise
        if not isinstance(error, DistillError):
            raise RuntimeError(f"{type(error).__name__}: {words}") from None
        bare = copy(error)
        bare.args = (words,)
        raise bare from None


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a stage's failure is such that it is tried again at once."""
    try:
        state.result()
    except FellShort as error:
        return error.passes == "trouble"
    except Unreachable:
        return True
    except Exception:  # noqa: BLE001  a bug, or the user's mistake
        return False
    return False


class _Log:
    """A Watch that writes into the logs of whichever flow run or task it is in."""

    def begin(self, run: str) -> None:
        self.say(run)

    def stage(self, name: str, state: str) -> None:
        self.say(f"{name}: {state}")

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """Too often to be logged."""

    def say(self, line: str) -> None:
        with suppress(MissingContextError):
            get_run_logger().info("%s", scrubbed(line))


def _show(one: Mapping[str, Any]) -> None:
    """The report of a tick, and what came of it, as artifacts."""
    run = one.get("run")
    if run is None:
        return
    facts = {name: one[name] for name in ("state", "rows_kept", "asked", "reused", "cost_usd", "owed") if name in one}
    lines = [f"## {one['job']}, {one['tick']}", "", headline(run) or "", "", one.get("reason", ""), ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), "", f"`{run}`"]
    said = f"{one['job']}, {one['tick']}: {str(one['state']).replace('_', ' ')}"
    create_markdown_artifact(scrubbed("\n".join(map(_plain, lines))), key=f"{label(one['job'])}-tick", description=said)
    report = Path(run).resolve() / "report"
    if (report / "report.md").exists():  # its text: a browser follows no link from a page to a file
        text = f"{(report / 'report.md').read_text(encoding='utf-8')}\n`{(report / 'report.html').as_uri()}`\n"
        create_markdown_artifact(scrubbed(text), key=f"{label(one['job'])}-report", description=f"the report of {said}")


def _plain(line: str) -> str:
    """Without markup: reasons quote servers."""
    return line.replace("<", "&lt;").replace("[", "\\[").replace("!", "\\!")


def _wake(job: str, one: Mapping[str, Any]) -> None:
    """Have Prefect wake the job when a postponed tick may go on."""
    deployment = flow_run.deployment_id
    if deployment is None:
        return
    when = datetime.fromisoformat(iso(one["not_before"] + 1))
    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(
            deployment, state=Scheduled(scheduled_time=when), name=f"{job} (postponed {one['tick']})", tags=["postponed"],
            idempotency_key=f"{job}/{one['tick']}/{one['not_before']:.0f}",
        )  # fmt: skip


def _state(found: list[dict[str, Any]]) -> Any:
    """The last state of a flow run: that of the tick which ended worst."""
    order = ("failed", "fell_short", "postponed", "interrupted")
    by = {state: one for one in reversed(found) for state in order if one["state"] == state}
    for state in order:
        if one := by.get(state):
            message = _said(one)
            if state in ("postponed", "interrupted"):
                return State(type=StateType.CANCELLED, name=state.capitalize(), message=message)
            return Failed(name="Failed" if state == "failed" else "FellShort", message=message)
    done = [one for one in found if one["state"] == "done"]
    return Completed(message=_said(done[-1]) if done else f"nothing was due at {iso(time.time())}")


def _said(one: Mapping[str, Any]) -> str:
    """How a tick ended, in a sentence or three."""
    return sentence({**one, "headline": headline(one.get("run"))})[:4000]
