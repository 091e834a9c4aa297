"""`jobs serve`: Prefect's server on SQLite, its page on loopback, and the jobs of a folder as deployments that it wakes.

All that Prefect keeps lies in `<workspace>/prefect`, not in the user's home, and nothing leaves the machine: its analytics and
promotional content are switched off before any of it is imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.recipe import Plan
from llm_distill.schedule.night import due, opened, schedule_of

#: A server may take its time to make its tables on a slow disk.
START_S = 180.0
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_CLI_PROMPT": "false",
}


def check_installed() -> None:
    """UserError where Prefect is not, or not with what it needs."""
    if find_spec("prefect") is None:
        raise UserError(
            "Prefect is not installed; pip install 'llm-distill[schedule]', best into an environment of its own."
        )
    if (found := version("sqlalchemy")).split(".")[:2] != ["2", "0"]:
        raise UserError(
            f"Prefect plans no runs with SQLAlchemy {found}, and says nothing of it; pip install 'llm-distill[schedule]', which "
            "brings 2.0."
        )


def quiet(**more: str) -> None:
    """Set what Prefect reads of the environment, here and in every process that is started. Before it is imported."""
    wanted = _QUIET | more
    assert "prefect" not in sys.modules or wanted.items() <= os.environ.items(), "Prefect has read its settings already"
    os.environ.update(wanted)


@contextmanager
def server(home: Path, port: int, say: Callable[[str], None]) -> Iterator[str]:
    """Prefect's server on loopback while the block runs, started again where it ends by itself; gives its address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; name another one.") from None
        port = int(probe.getsockname()[1])
    home.mkdir(parents=True, exist_ok=True)
    url, over = f"http://127.0.0.1:{port}", threading.Event()
    quiet(PREFECT_HOME=str(home.resolve()), PREFECT_API_URL=f"{url}/api", PREFECT_UI_URL=url)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "server.log").open("ab")

    def start() -> subprocess.Popen[bytes]:
        # A group of its own: Ctrl-C is for us first, so that what runs can be written down at the server.
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603

    running = [start()]

    def tend() -> None:
        while not over.wait(1.0):
            if running[0].poll() is not None and not over.is_set():
                say(f"Prefect's server ended with code {running[0].returncode}; starting it again")
                running[0] = start()

    try:
        _await(f"{url}/api/health", running, home / "server.log")
        threading.Thread(target=tend, daemon=True).start()
        yield url
    finally:
        over.set()
        running[0].terminate()
        try:
            running[0].wait(20)
        except subprocess.TimeoutExpired:
            running[0].kill()
            running[0].wait()
        log.close()


def _await(url: str, running: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if running[0].poll() is not None:
            raise UserError(f"Prefect's server ended while it started; see {log}.")
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  our own, on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"Prefect's server did not answer within {START_S:g} s of its start; see {log}.")


def deployment(plan: Plan, recipe: str, workspace: str, **more: Any) -> Any:
    """A job as a deployment: its cron line and zone. recipe, workspace: as whoever runs it sees them."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from llm_distill.schedule.prefect_flow import night

    schedule = schedule_of(plan)
    return RunnerDeployment.from_flow(
        night,
        name=plan.name,
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"job": plan.name, "recipe": recipe, "workspace": workspace},
        description=f"{plan.name}: {schedule.cron} {schedule.timezone}. {recipe}",
        tags=["llm-distill"],
        entrypoint_type=EntrypointType.MODULE_PATH,
        **more,
    )


def serve(plans: Sequence[Plan], workspace: Path, port: int, limit: int, say: Callable[[str], None]) -> None:
    """Serve the jobs until Ctrl-C. What was missed or left unfinished is looked after at once."""
    check_installed()
    with server(workspace / "prefect", port, say) as url:
        import prefect

        made = [deployment(plan, str(plan.path.resolve()), str(workspace.resolve())) for plan in plans]
        for plan, one in zip(plans, made, strict=True):
            found = one.apply()
            with opened(workspace, os.environ.get("LLM_DISTILL_LEDGER")) as book:
                owed = due(plan, book, time.time(), record=False).do
            if owed:
                _run_now(found, plan, len(owed))
        say(
            f"{len(plans)} jobs; their page is {url}. Ctrl-C stops serving, and what runs goes on when it is served again."
        )
        prefect.serve(*made, pause_on_shutdown=False, limit=limit, print_starting_message=False)


def _run_now(deployment_id: Any, plan: Plan, count: int) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(deployment_id, name=f"{plan.name} ({count} due at the start)")
