"""Jobs woken by Prefect, its own server and page on loopback; its server killed in mid-run. Needs the extra `schedule`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_distill.errors import FellShort, UserError
from llm_distill.recipe_schedule import Schedule, moment
from llm_distill.schedule.night import opened
from tests.conftest import Desk
from tests.mock_api import serving
from tests.report.chromium import EXECUTABLE, Page, chromium
from tests.schedule.test_jobs import ROWS, folder

HAS_PREFECT = find_spec("prefect") is not None
prefect = [pytest.mark.prefect, pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")]


@pytest.mark.skipif(HAS_PREFECT, reason="Prefect is here")
def test_without_prefect_the_repair_is_named(desk: Desk) -> None:
    desk.seeds(ROWS)
    desk.recipe("nightly", schedule="0 3 * * *")
    assert "pip install 'llm-distill[schedule]'" in desk.llm_distill("jobs", "serve", folder(desk), code=2)
    assert "pip install 'llm-distill[schedule]'" in desk.llm_distill(
        "jobs", "deploy", "--pool", "p", folder(desk), code=2
    )


@contextmanager
def served(desk: Desk) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`jobs serve` in a process of its own; gives its page's address."""
    log = desk.folder / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_distill.cli", "jobs", "serve", "--port", "0", folder(desk)],
            cwd=desk.folder, env=os.environ | {"HOME": str(desk.folder / "home")}, stdout=out, stderr=out, text=True,
        )  # fmt: skip
    try:
        until(lambda: "their page is" in log.read_text(), 240, log)
        found = re.search(r"their page is (http://127\.0\.0\.1:\d+)", log.read_text())
        assert found
        yield found[1], process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()


def until(holds: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.5)


def posted(url: str, body: Any, **default: Any) -> Any:
    """What Prefect's API answers; where it does not, `missing`, if that is given."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except OSError:
        if "missing" in default:
            return default["missing"]
        raise


def states(url: str) -> set[tuple[str, str]]:
    """Jobs, and the states that flow runs of theirs are in."""
    jobs = {one["id"]: one["name"] for one in posted(f"{url}/api/deployments/filter", {}, missing=[])}
    found = set()
    for state in ("COMPLETED", "FAILED", "RUNNING", "SCHEDULED"):  # apart: of many that are to come 200 are told
        found |= {(jobs.get(run["deployment_id"], ""), state) for run in runs(url, state)}
    return found


def runs(url: str, state: str) -> list[dict[str, Any]]:
    """Flow runs in a state of this type; none where the server does not answer."""
    of = {"flow_runs": {"state": {"type": {"any_": [state]}}}}
    found: list[dict[str, Any]] = posted(f"{url}/api/flow_runs/filter", of, missing=[])
    return found


def read_until(page: Page, url: str, *words: str) -> str:
    """What a page of Prefect's says, once it says these words."""
    page.send("Page.navigate", url=url)
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline and not all(word in text for word in words):
        time.sleep(1)
        text = page.evaluate("document.body ? document.body.innerText : ''")
    assert all(word in text for word in words), text
    time.sleep(1)
    return text


@pytest.mark.timeout(900)
class TestServed:
    """One server for several looks, as it takes long to start."""

    pytestmark = prefect

    def test_jobs_are_woken_and_a_server_that_dies_in_mid_run_does_no_harm(self, desk: Desk) -> None:
        with serving(latency_s=0.05) as api:
            desk.seeds([{"prompt": f"row {i}"} for i in range(60)])
            knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 1}
            models = {"teacher": {"openai_api": knobs}}
            desk.recipe("slow", schedule={"cron": "*/15 * * * *", "timezone": "Europe/Berlin"}, models=models)
            desk.recipe("short", schedule="*/15 * * * *", filter=[{"length": {"min": 1000}}])
            with served(desk) as (url, process):
                log = desk.folder / "serve.log"
                until(lambda: sum(api.paid.values()) > 5, 240, log)
                before = _server(process)
                (at_it,) = (run["id"] for run in runs(url, "RUNNING") if run["name"].startswith("slow "))
                before.kill()  # in the middle of the answers
                assert sum(api.paid.values()) < 60
                until(lambda: {("short", "FAILED"), ("slow", "COMPLETED")} <= states(url), 400, log)
                assert _server(process).pid != before.pid
                assert "starting it again" in log.read_text()
                assert ("slow", "SCHEDULED") in states(url)
                (went_on,) = (
                    run for run in runs(url, "COMPLETED") if run["id"] == at_it
                )  # itself, and none that came after
                assert went_on["run_count"] == 1
                assert "done. 60 of 60 answers were kept" in went_on["state"]["message"]
                artifacts = posted(f"{url}/api/artifacts/filter", {})
                assert any("slow" in (one["key"] or "") and one["type"] == "markdown" for one in artifacts)
                of = {"task_runs": {"flow_run_id": {"any_": [at_it]}}}
                tasks = {
                    one["name"].split("-")[0]: one["state_name"] for one in posted(f"{url}/api/task_runs/filter", of)
                }
                assert {"prompts", "answers", "filter", "report"} == {*tasks}
                assert tasks["report"] == "Completed"
                if EXECUTABLE:
                    _look(url, Path(os.environ.get("PREFECT_PICTURES", str(desk.folder))))
            assert set(api.paid.values()) == {1}
            with opened(desk.folder / "data", None) as book:
                assert {row.state for row in book.ticks("slow")} <= {
                    "done",
                    "running",
                    "postponed",
                    "skipped",
                    "missed",
                }
                assert any(row.state == "done" for row in book.ticks("slow"))
            assert not (desk.folder / "home" / ".prefect").exists()


def _server(process: subprocess.Popen[str]) -> psutil.Process:
    """The Prefect server among the processes of `jobs serve`."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "server" in child.cmdline() and "start" in child.cmdline():
            return child
    raise AssertionError("no server")


def _look(url: str, where: Path) -> None:
    """Prefect's page in Chromium, with runs that finished, failed and are to come; nothing else is asked of the network."""
    with chromium() as page:
        page.send("Emulation.setDeviceMetricsOverride", width=1400, height=1000, deviceScaleFactor=1, mobile=False)
        slow = next(one["id"] for one in posted(f"{url}/api/deployments/filter", {}) if one["name"] == "slow")
        ended = "runs?state=Completed&state=Failed&state=FellShort"
        for name, path, words in (
            ("dashboard", "dashboard", ["llm-distill"]),
            ("runs", ended, ["Completed", "FellShort", "slow 20", "short 20"]),
            ("to-come", f"deployments/deployment/{slow}?tab=Upcoming", ["Scheduled for"]),
            ("deployments", "deployments", ["slow", "short"]),
            ("artifacts", "artifacts", ["llm-distill-slow-report", "the report of slow, 20"]),
        ):
            read_until(page, f"{url}/{path}", *words)
            page.picture(where / f"prefect-{name}.png")
        others = [asked for asked in page.requests() if not asked.startswith((url, "data:", "blob:", "about:"))]
        assert not others


@pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")
def test_a_flow_run_stands_for_the_tick_that_it_was_woken_for() -> None:
    from llm_distill.schedule.prefect_flow import woken

    schedule = Schedule(cron="30 2 * * *", timezone="Europe/Berlin")
    assert woken(schedule, moment("2026-11-26T01:30:01Z"), auto=True) == moment("2026-11-26T01:30:00Z")
    assert woken(schedule, moment("2026-11-26T01:40:00Z"), auto=False) == moment("2026-11-26T01:40:00Z")
    # In the night without half past two, Prefect may wake it half an hour after us.
    assert woken(schedule, moment("2026-03-29T01:30:00Z"), auto=True) == moment("2026-03-29T01:00:00Z")


@pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")
def test_a_flow_run_writes_nothing_into_a_folder_that_goes_with_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_distill.schedule.prefect_flow import night

    desk.seeds(ROWS)
    recipe = desk.recipe("nightly", schedule="0 3 * * *")
    monkeypatch.chdir(desk.folder)
    for what, paths in (
        ("workspace: data", (str(recipe), "data")),
        ("recipe: nightly.yaml", ("nightly.yaml", "/data")),
    ):
        state = night.fn("nightly", *paths)
        assert state.name == "Failed"
        assert f"{what} is not a whole path" in state.message
    assert not (desk.folder / "data").exists()


@pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")
def test_prefect_is_told_no_secret_that_a_server_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task raises is kept at Prefect's server, and shown on its page; who runs the tick gets it as it was."""
    from llm_distill.schedule import prefect_flow

    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-planted-0123456789")
    seen: list[Exception] = []

    def as_prefect(**_options: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
        def tasked(stage: Callable[[], None]) -> Callable[[], None]:
            def runs() -> None:
                try:
                    stage()
                except Exception as error:
                    seen.append(error)
                    raise

            return runs

        return tasked

    monkeypatch.setattr(prefect_flow, "task", as_prefect)
    given = (FellShort(f"400: what is {key}?", passes="trouble"), OSError(f"no host {key}"), UserError("no such file"))
    for error in given:

        def do(error: Exception = error) -> dict[str, Any]:
            raise error

        with pytest.raises(type(error)) as raised:
            prefect_flow._as_task("answers", do)
        assert raised.value is error
    assert [str(error) for error in seen] == ["400: what is ***?", "OSError: no host ***", "no such file"]
    assert isinstance(seen[0], FellShort)
    assert seen[0].passes == "trouble"
    assert all(error.__suppress_context__ for error in seen[:2])
    assert seen[2] is given[2]


@pytest.mark.skipif(not HAS_PREFECT, reason="the extra `schedule` is not installed")
def test_an_artifact_holds_no_secret_that_a_report_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_distill.schedule import prefect_flow

    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-planted-0123456789")
    sent: list[str] = []
    monkeypatch.setattr(prefect_flow, "create_markdown_artifact", lambda text, **_: sent.append(text))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text(f"# nightly\n3 rows failed: what is {key}?\n")
    (tmp_path / "report" / "report.json").write_text(json.dumps({"headline": f"3 rows failed: what is {key}?"}))
    prefect_flow._show({"job": "nightly", "tick": "2026-11-27T03:00:00Z", "state": "done", "run": str(tmp_path)})
    assert ["what is ***?" in text for text in sent] == [True, True]
    assert key not in "".join(sent)
