"""`jobs deploy`: a Prefect server on PostgreSQL, a work pool of processes with a real worker, and what pools of containers are
sent. Needs the extra `schedule`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.schedule.night import opened
from tests.conftest import Desk
from tests.postgres import running
from tests.schedule.test_jobs import ROWS, folder
from tests.schedule.test_prefect import HAS_PREFECT, posted, runs, states, until

pytestmark = [pytest.mark.prefect, pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")]
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@contextmanager
def _process(log: Path, *arguments: str, **env: str) -> Iterator[None]:
    """A command of Prefect's while the block runs."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments], cwd=log.parent, env=os.environ | QUIET | env, stdout=out, stderr=out
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server on PostgreSQL."""
    import asyncpg  # type: ignore[import-not-found,unused-ignore]

    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running() as database:
        host = database.partition("host=")[2]

        async def create() -> None:
            connection = await asyncpg.connect(user="me", database="postgres", host=host)
            await connection.execute("CREATE DATABASE prefect")
            await connection.close()

        asyncio.run(create())
        on = {"PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://me@/prefect?host={host}"}
        url, log = f"http://127.0.0.1:{port}", home / "server.log"
        start = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
        with _process(log, *start, PREFECT_HOME=str(home), PREFECT_UI_URL=url, PREFECT_API_URL=f"{url}/api", **on):
            until(lambda: posted(f"{url}/api/work_pools/filter", {}, missing=None) is not None, 180, log)
            yield url


def _pool(url: str, name: str, kind: str) -> dict[str, Any]:
    """A work pool with the template that Prefect has for its type."""
    found = find_spec("prefect")
    assert found
    assert found.origin
    views = Path(found.origin).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    kinds = {name: one for of in json.loads(views.read_text()).values() for name, one in of.items()}
    template = kinds[kind]["default_base_job_configuration"]
    made: dict[str, Any] = posted(f"{url}/api/work_pools/", {"name": name, "type": kind, "base_job_template": template})
    return made


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_a_worker_of_a_process_pool_does_a_tick(desk: Desk, server: str) -> None:
    """The workspace, `data` by default, is the one from here: a worker's own folder is a temporary one."""
    desk.seeds(ROWS)
    desk.recipe("minutely", schedule="* * * * *")
    desk.recipe("short", schedule="*/10 * * * *", filter=[{"length": {"min": 1000}}])
    _pool(server, "nights", "process")
    env: dict[str, Any] = {"PREFECT_API_URL": f"{server}/api", "PREFECT_HOME": str(desk.folder / "home")}
    said = desk.llm_distill("jobs", "deploy", "--pool", "nights", folder(desk), **env)
    assert said.split("\n")[:2] == ["deployed llm-distill/minutely", "deployed llm-distill/short"]
    ids = {one["name"]: one["id"] for one in posted(f"{server}/api/deployments/filter", {})}
    posted(f"{server}/api/deployments/{ids['short']}/create_flow_run", {"name": "by hand"})
    log = desk.folder / "worker.log"
    with _process(log, "worker", "start", "--pool", "nights", **env):
        until(lambda: {("minutely", "COMPLETED"), ("short", "FAILED")} <= states(server), 240, log)
    assert {("minutely", "SCHEDULED"), ("short", "SCHEDULED")} <= states(server)
    with opened(desk.folder / "data", None) as book:
        (done,) = [row for row in book.ticks("minutely") if row.state == "done"][:1]
        (fell,) = [row for row in book.ticks("short") if row.state == "fell_short"][:1]
    assert Path(done.run or "").is_relative_to(desk.folder / "data" / "runs" / "minutely")
    assert Path(fell.run or "").is_dir()
    ended = {run["name"]: run["state"] for state in ("COMPLETED", "FAILED") for run in runs(server, state)}
    (first, *_), (failed, *_) = (sorted(n for n in ended if n.startswith(job)) for job in ("minutely 2", "short 2"))
    assert "done. 8 of 8 answers were kept" in ended[first]["message"]
    assert ended[failed]["name"] == "FellShort"
    assert "every row was dropped" in ended[failed]["message"]
    tasks = {(one["name"].split("-")[0], one["state_name"]) for one in posted(f"{server}/api/task_runs/filter", {})}
    assert {(stage, "Completed") for stage in ("prompts", "answers", "filter", "report")} <= tasks
    assert ("filter", "Failed") in tasks
    artifacts = {one["key"]: one for one in posted(f"{server}/api/artifacts/filter", {})}
    assert "8 of 8 answers were kept" in artifacts["llm-distill-minutely-report"]["data"]
    assert (Path(done.run or "") / "report/report.html").as_uri().rpartition("-")[0] in artifacts[
        "llm-distill-minutely-report"
    ]["data"]
    assert "| state | fell_short |" in artifacts["llm-distill-short-tick"]["data"]


def _deployed(url: str, pool: dict[str, Any]) -> dict[str, Any]:
    """The job that a worker of a pool would start for the deployment `nightly`: the pool's template, filled in."""
    from prefect.workers.base import BaseJobConfiguration

    template = pool["base_job_template"]
    (one,) = (d for d in posted(f"{url}/api/deployments/filter", {}) if d["name"] == "nightly")
    assert one["work_pool_name"] == pool["name"]

    class Whole(BaseJobConfiguration):  # type: ignore[misc]
        model_config = {"extra": "allow"}  # noqa: RUF012  pydantic's

    filled = asyncio.run(Whole.from_template_and_values(template, one["job_variables"], client=object()))
    return {**filled.model_dump(), "parameters": one["parameters"], "entrypoint": one["entrypoint"]}


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_what_pools_of_containers_are_sent_fits_their_templates(desk: Desk, server: str) -> None:
    desk.seeds(ROWS)
    desk.recipe("nightly", schedule={"cron": "0 3 * * *", "timezone": "Europe/Berlin"})
    boxes, cluster = _pool(server, "boxes", "docker"), _pool(server, "cluster", "kubernetes")
    env: dict[str, Any] = {"PREFECT_API_URL": f"{server}/api", "PREFECT_HOME": str(desk.folder / "home")}
    there = ["--at", "/distil/jobs", "--workspace", "/distil/data", "--image", "registry.example/distil"]
    desk.llm_distill(
        "jobs",
        "deploy",
        "--pool",
        "boxes",
        folder(desk),
        *there,
        *_variables('volumes=["/srv/distil:/distil"]', "mem_limit=4g"),
        **env,
    )
    job = _deployed(server, boxes)
    assert (job["image"], job["volumes"], job["mem_limit"]) == (
        "registry.example/distil",
        ["/srv/distil:/distil"],
        "4g",
    )
    assert job["parameters"] == {"job": "nightly", "recipe": "/distil/jobs/nightly.yaml", "workspace": "/distil/data"}
    assert job["entrypoint"] == "llm_distill.schedule.prefect_flow.night"
    process = desk.command(
        "jobs", "deploy", "--pool", "cluster", folder(desk), *there, *_variables("namespace=nights"), **env
    )
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "nothing is mounted into the containers of 'cluster'" in err
    filled = _deployed(server, cluster)
    assert filled["namespace"] == "nights"
    (container,) = filled["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/distil"

    key = "env={OPENAI_API_KEY: sk-planted}"
    block = "env={OPENAI_API_KEY: '{{ prefect.blocks.secret.openai }}'}"
    _pool(server, "plain", "process")
    cases: list[tuple[str, list[str], str]] = [
        ("boxes", there[:4], "name their image with --image"),
        ("boxes", there[2:], "--at: not given; work pool 'boxes' (docker) runs jobs in a container"),
        ("boxes", ["--at", "jobs", *there[2:]], "--at: found 'jobs'"),
        ("boxes", [*there[:2], *there[4:]], "--workspace: found 'data'"),
        ("boxes", [*there, *_variables("volumes=/srv:/distil")], "the server does not take 'nightly'"),
        ("boxes", [*there, *_variables("mem_limits=4g")], "none named 'mem_limits'. Did you mean 'mem_limit'?"),
        ("boxes", [*there, *_variables("volumes")], "write NAME=VALUE"),
        ("boxes", [*there, *_variables(key)], "OPENAI_API_KEY would be stored on Prefect's server"),
        ("boxes", [*there, *_variables(block)], ""),
        ("nowhere", there, "there is no work pool 'nowhere'"),
        ("plain", there, "takes no image"),
        ("plain", there[:2], "runs jobs in a temporary folder"),
    ]  # fmt: skip
    calls = [["jobs", "deploy", "--pool", pool, folder(desk), *more] for pool, more, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", _CALLS, json.dumps(calls)], check=True, capture_output=True, text=True, timeout=250,
        env=os.environ | env, cwd=desk.folder,
    )  # fmt: skip
    for (_, _, words), said in zip(cases, map(json.loads, done.stdout.splitlines()), strict=True):
        assert (words or "None") in said
        assert "planted" not in said


def _variables(*each: str) -> list[str]:
    return [word for one in each for word in ("--job-variable", one)]


#: Commands in one process, as each would take its seconds to start.
_CALLS = """
import json, sys
from contextlib import redirect_stdout
from llm_distill.cli import app
from llm_distill.errors import UserError
for words in json.loads(sys.argv[1]):
    said = None
    try:
        with redirect_stdout(sys.stderr):
            app(words, standalone_mode=False)
    except UserError as error:
        said = error
    print(json.dumps(str(said)), flush=True)
"""


def test_deploy_needs_a_server(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_distill.schedule.prefect_deploy import deploy

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UserError, match="PREFECT_API_URL is not set"):
        deploy([], "pool", "data", None, None, (), print)
    job = desk.recipe("nightly", schedule="0 3 * * *")
    desk.seeds(ROWS)
    message = desk.llm_distill("jobs", "deploy", job, "--pool", "p", code=2, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "the server does not answer" in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("env={OPENAI_API_KEY: sk-other}", "env: OPENAI_API_KEY would be stored on Prefect's server"),
        ("env=[{name: OPENAI_API_KEY, value: sk-other}]", "env: OPENAI_API_KEY would be stored"),
        ("env=['OPENAI_API_KEY=sk-other']", "env: OPENAI_API_KEY would be stored"),
        ("env={URL: 'https://me:sk-planted-0123456789@host'}", "env: a secret of this environment would be stored"),
        ("command=serve --key sk-planted-0123456789", "command: a secret of this environment would be stored"),
        ("env=[{name: OPENAI_API_KEY, valueFrom: {secretKeyRef: {name: keys, key: k}}}]", ""),
        ("env={OPENAI_API_KEY: '{{ prefect.blocks.secret.openai }}'}", ""),
        ("env={LOG_LEVEL: debug}", ""),
        (f"volumes=['{Path(__file__).parent}:/keys']", ""),  # as a variable says where keys lie
    ],
)
def test_no_key_is_written_into_a_deployment(monkeypatch: pytest.MonkeyPatch, given: str, words: str) -> None:
    """Whatever form a pool's type has for its environment, and wherever the key stands. Before the server is asked."""
    from llm_distill.schedule.prefect_deploy import deploy

    def asked(name: str) -> None:
        raise UserError(f"the server is asked for {name}")

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MY_API_KEY", "sk-planted-0123456789")
    monkeypatch.setenv("KEYS_FOLDER", str(Path(__file__).parent))
    monkeypatch.setattr("llm_distill.schedule.prefect_deploy.quiet", lambda: None)
    monkeypatch.setattr("llm_distill.schedule.prefect_deploy._pool", asked)
    with pytest.raises(UserError, match=words or "the server is asked for boxes") as refused:
        deploy([], "boxes", "/distil/data", "/distil/jobs", "image", [given], print)
    assert "sk-" not in str(refused.value)
