"""`llm-distill jobs`: which there are, what is wrong with them, what is due; and how their keys are read."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.recipe import load
from llm_distill.recipe_schedule import Notify, moment
from llm_distill.schedule.jobs import standing
from llm_distill.schedule.night import opened, run_tick
from llm_distill.schedule.notify import tell
from llm_distill.schedule.retention import expired, prune
from tests.conftest import Desk, Unwatched

T1, T2, T3, T4 = (f"2026-11-{day}T03:00:00Z" for day in (24, 25, 26, 27))
ROWS = [{"prompt": f"row {i} is {'good' if i % 2 else 'bad'}"} for i in range(8)]


def job(desk: Desk, name: str = "nightly", **keys: Any) -> Path:
    desk.seeds(ROWS)
    return desk.recipe(name, **{"schedule": "0 3 * * *"} | keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"schedule": "every day"}, "not a cron line"),
        ({"schedule": "0 0 3 * * *"}, "not a cron line"),
        ({"schedule": "0 3 31 2 *"}, "not a cron line"),
        (
            {"schedule": {"cron": "0 3 * * *", "timezone": "Berlin"}},
            "schedule.timezone: found 'Berlin', not a time zone",
        ),
        ({"schedule": {"cron": "0 3 * * *", "overlap": "both"}}, "schedule.overlap"),
        ({"schedule": {"cron": "0 3 * * *", "max_runtime": "soon"}}, "write a time such as 90s, 30m, 8h or 2d"),
        ({"schedule": {"cron": "0 3 * * *", "max_runtime": 0}}, "schedule.max_runtime"),
        ({"keep": {}}, "write `runs: 30`, `days: 90`, or both"),
        ({"notify": [{"on": ["failed"]}]}, "write one of `webhook"),
        (
            {"notify": [{"webhook": {"url_env": "https://hooks.example/secret"}}]},
            "not the name of an environment variable",
        ),
        ({"notify": [{"webhook": "https://hooks.example/secret"}]}, "notify.0.webhook: write `{url_env: NAME}`"),
        ({"notify": [{"command": ["true"], "on": ["started"]}]}, "notify.0.on.0"),
        ({"notify": [{"email": {"smtp": "mail", "from": "a", "to": ["b@c"]}}]}, "not an address"),
        (
            {"notify": [{"email": {"smtp": "mail", "from": "a@b", "to": ["b@c"], "user": "me"}}]},
            "`user` and `password_env` together",
        ),
        ({"tick": "2026-11-27"}, "of no time zone"),
    ],
)
def test_what_is_wrong_is_found_when_the_recipe_is_read(desk: Desk, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        load(job(desk, **keys))
    assert words in str(error.value)
    assert "hooks.example" not in str(error.value)


def test_a_schedule_is_a_line_or_a_block(desk: Desk) -> None:
    line = load(job(desk)).schedule
    assert line is not None
    assert (line.cron, line.timezone, line.overlap, line.catch_up) == ("0 3 * * *", "UTC", "skip", "latest")
    block = load(
        job(
            desk,
            schedule={
                "cron": "0  3 * * 1",
                "timezone": "Europe/Berlin",
                "max_runtime": "8h",
                "postpone": {"first": "30m"},
            },
        )
    ).schedule
    assert block is not None
    assert (block.cron, block.max_runtime, block.postpone.first) == ("0 3 * * 1", 8 * 3600, 1800)


def folder(desk: Desk) -> str:
    return f"--jobs={desk.folder}"


def test_jobs_are_listed_with_their_last_and_next_run(desk: Desk) -> None:
    recipe = job(desk, schedule={"cron": "0 3 * * *", "timezone": "Europe/Berlin"})
    job(desk, "once", schedule=None)
    run_tick(load(recipe), "2026-11-24T02:00:00Z", desk.folder / "data", Unwatched())
    listed = json.loads(desk.llm_distill("jobs", folder(desk), "--json"))
    (row,) = listed["jobs"]
    assert (row["job"], row["timezone"]) == ("nightly", "Europe/Berlin")
    assert (row["last"]["tick"], row["last"]["state"], row["last"]["rows_kept"]) == ("2026-11-24T02:00:00Z", "done", 8)
    assert moment(row["next"]) > time.time()
    assert row["spent_usd"] == {"day": 0.0, "week": 0.0, "month": 0.0}
    text = desk.llm_distill("jobs", folder(desk))
    assert "nightly  0 3 * * * Europe/Berlin  next " in text
    assert "last   2026-11-24T02:00:00Z  done, 8 rows kept" in text
    assert "once" not in text


def test_check_reads_every_recipe_and_names_what_is_wrong(desk: Desk) -> None:
    job(desk, notify=[{"webhook": {"url_env": "NO_SUCH_HOOK"}}])
    job(desk, "once", schedule=None)
    out = desk.llm_distill("jobs", "check", folder(desk))
    assert "nightly.yaml: next " in out
    assert "once.yaml: sound; it has no schedule" in out
    assert "export NO_SUCH_HOOK" in out
    job(desk, "broken", schedule="0 25 * * *")
    (desk.folder / "twin.yaml").write_text((desk.folder / "nightly.yaml").read_text())
    assert (
        desk.llm_distill("jobs", "check", folder(desk), code=2) == "llm-distill: jobs check: 2 of 4 recipes are wrong."
    )
    rows = {Path(row["file"]).name: row["error"] for row in _checked(desk)}
    assert "not a cron line" in rows["broken.yaml"]
    assert "is named 'nightly' too" in rows["twin.yaml"]
    assert rows["nightly.yaml"] is None


def _checked(desk: Desk) -> list[dict[str, Any]]:
    process = desk.command("jobs", "check", folder(desk), "--json")
    rows: list[dict[str, Any]] = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 2
    return rows


def test_run_does_what_is_due_and_its_exit_codes_are_honest(desk: Desk) -> None:
    recipe = job(desk, schedule="* * * * *")
    found = json.loads(desk.llm_distill("jobs", "run", recipe, "--json"))
    assert len(found) >= 1
    assert found[0]["state"] == "done"
    assert {one["state"] for one in found} <= {"done", "skipped"}  # a minute may pass while it runs
    out = desk.llm_distill("jobs", "run", "nightly", folder(desk), "--tick", "2026-11-24T03:00Z")
    assert out.startswith(f"nightly  {T1}  done, 8 rows kept")
    assert "is no time of" in desk.llm_distill("jobs", "run", job(desk), "--tick", "2026-11-24T03:01Z", code=2)
    assert "no job 'nightli'" in desk.llm_distill("jobs", "run", "nightli", folder(desk), code=2)
    dropped = job(desk, "dropped", filter=[{"length": {"min": 1000}}])
    message = desk.llm_distill("jobs", "run", dropped, "--tick", T1, code=1)
    assert f"dropped, {T1}: fell short: filter: every row was dropped" in message
    assert "has no schedule" in desk.llm_distill("jobs", "run", job(desk, "once", schedule=None), code=2)


def test_a_job_that_waits_to_go_on_keeps_no_other_waiting(desk: Desk) -> None:
    nobody = {"openai_api": {"model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}}
    just_now = time.strftime("%M %H * * *", time.gmtime(time.time() - 60))
    schedule = {"cron": just_now, "postpone": {"first": "2s", "times": 1}}
    job(desk, "away", models={"teacher": nobody}, schedule=schedule)
    job(desk, "here", schedule=just_now)
    said = desk.typed("jobs", "run", "--wait", folder(desk), "--json", code=2)
    ends = [(one["job"], one["state"]) for one in json.loads(said.splitlines()[0])]
    assert ends == [("away", "postponed"), ("here", "done"), ("away", "failed")]


def test_a_recipe_that_is_wrong_stops_no_other_job_and_is_not_passed_over_in_silence(desk: Desk) -> None:
    job(desk, "night", schedule="* * * * *")
    job(desk, "broken", schedule={"cron": "* * * * *", "overlap": "both"})
    job(desk, "short", schedule="* * * * *", filter=[{"length": {"min": 1000}}])
    assert "schedule.overlap" in desk.llm_distill("jobs", "run", folder(desk), code=2)
    with opened(desk.folder / "data", None) as book:
        assert "done" in {row.state for row in book.ticks("night")} <= {"done", "skipped"}
    out, err = desk.command("jobs", "crontab", folder(desk)).communicate(timeout=60)
    assert "night.yaml" in out
    assert "broken" not in out
    assert "left out, for it is wrong: " in err
    assert "schedule.overlap" in err


def test_jobs_tell_machines_what_they_did(desk: Desk) -> None:
    pytest.importorskip("prometheus_client")
    job(desk, "good")
    job(desk, "dropped", filter=[{"length": {"min": 1000}}])
    for name, code, state in (("good", 0, "done"), ("dropped", 1, "fell_short")):
        arguments = (name, folder(desk), "--tick", T1, "--log", "json", "--metrics", str(desk.folder))
        process = desk.command("jobs", "run", *arguments)
        said = [json.loads(line) for line in process.communicate(timeout=120)[1].splitlines()]
        assert process.returncode == code
        (end,) = [line for line in said if line["event"] == "end"]
        assert (end["recipe"], end["tick"], end["status"]) == (name, T1, state)
        assert code == 0 or (said[-1]["event"], said[-1]["code"]) == ("exit", 1)
        written = (desk.folder / f"{name}.prom").read_text()
        assert f'llm_distill_run_status{{recipe="{name}",status="{state}"}} 1.0' in written


def test_nothing_is_due_twice(desk: Desk) -> None:
    job(desk, schedule={"cron": "* * * * *", "catch_up": "none"})
    desk.llm_distill("jobs", "run", folder(desk))
    with opened(desk.folder / "data", None) as book:
        before = {row.due: row.state for row in book.ticks("nightly")}
        plan = load(desk.folder / "nightly.yaml")
        assert standing(plan, book, max(before) + 30)["due"] == []
    assert "done" in before.values()
    assert set(before.values()) <= {"done", "skipped"}


def hear(desk: Desk, **keys: Any) -> list[dict[str, Any]]:
    """What a command is told of a tick, on its standard input."""
    script = desk.folder / "hear.sh"
    script.write_text(f"#!/bin/sh\ncat >> {desk.folder}/heard\necho >> {desk.folder}/heard\n")
    script.chmod(0o755)
    recipe = job(desk, notify=[{"command": [str(script)], **keys}])
    run_tick(load(recipe), T1, desk.folder / "data", Unwatched())
    recipe = job(desk, notify=[{"command": [str(script)], **keys}], filter=[{"length": {"min": 1000}}])
    run_tick(load(recipe), T2, desk.folder / "data", Unwatched())
    heard = desk.folder / "heard"
    return [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else []


def test_a_command_hears_json_of_what_it_asked_for(desk: Desk) -> None:
    (short,) = hear(desk)
    assert (short["job"], short["tick"], short["state"]) == ("nightly", T2, "fell_short")
    assert "every row was dropped" in short["text"]


def test_it_may_ask_for_every_end(desk: Desk) -> None:
    told = hear(desk, on=["done", "fell_short"])
    assert [(one["state"], one.get("rows_kept")) for one in told] == [("done", 8), ("fell_short", None)]
    assert told[0]["text"].startswith(f"nightly, {T1}: done.")


class Hearing(Unwatched):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_whoever_cannot_be_told_harms_no_run_and_no_secret_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/very-secret")
    monkeypatch.setenv("MAIL_PASSWORD", "hunter2-secret")
    mail = {
        "smtp": "127.0.0.1",
        "port": 9,
        "from": "a@b.c",
        "to": ["d@e.f"],
        "user": "me",
        "password_env": "MAIL_PASSWORD",
    }
    whom: list[dict[str, Any]] = [
        {"webhook": {"url_env": "HOOK"}},
        {"webhook": {"url_env": "NO_SUCH_HOOK"}},
        {"email": mail},
        {"command": ["/no/such/program"]},
        {"command": ["sh", "-c", "exit 3"]},
    ]
    recipe = job(desk, notify=[{**one, "on": ["done"]} for one in whom])
    watch = Hearing()
    found = run_tick(load(recipe), T1, desk.folder / "data", watch)
    assert found["state"] == "done"
    said = [line for line in watch.lines if line.startswith("notify: ")]
    assert [line.split(": ")[1] for line in said] == [
        "the webhook in HOOK",
        "the webhook in NO_SUCH_HOOK",
        "e-mail through 127.0.0.1:9",
        "the command /no/such/program",
        "the command sh",
    ]
    everything = "\n".join([*watch.lines, json.dumps(found)])
    assert "secret" not in everything
    with opened(desk.folder / "data", None) as book:
        row = book.tick("nightly", moment(T1))
    assert row is not None
    assert len(row.notes["untold"]) == 5
    assert "secret" not in json.dumps(dict(row.notes))


@pytest.fixture
def babbling() -> Iterator[str]:
    """The address of a server that does not speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            with suppress(OSError):
                while True:
                    there, _ = server.accept()
                    with there:
                        there.recv(65_536)
                        there.sendall(b"what?\r\n\r\n")

        threading.Thread(target=babble, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/secret"


def test_nobody_who_answers_nonsense_harms_a_run(babbling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", babbling)
    monkeypatch.setenv("SPACED", "http://127.0.0.1:9/a secret")
    whom = [
        Notify.model_validate({"webhook": {"url_env": "HOOK"}, "on": ["done"]}),
        Notify.model_validate({"webhook": {"url_env": "SPACED"}, "on": ["done"]}),
        Notify.model_validate({"command": ["echo", "a\0b"], "on": ["done"]}),
    ]
    said = tell(whom, {"job": "nightly", "tick": T1, "state": "done"})
    assert said == [
        "the webhook in HOOK: BadStatusLine",
        "the webhook in SPACED: InvalidURL",
        "the command echo: ValueError",
    ]


def test_old_runs_are_removed_and_answers_stay(desk: Desk) -> None:
    recipe = job(desk, keep={"runs": 2})
    plan, data = load(recipe), desk.folder / "data"
    runs = [Path(run_tick(plan, tick, data, Unwatched())["run"]) for tick in (T1, T2, T3, T4)]
    assert [run.exists() for run in runs] == [False, False, True, True]
    own = desk.here(recipe)  # a run that is no tick's is not its scheduler's to remove
    assert prune(plan, data, time.time()) == ([], {})
    assert Path(own["run"]).exists()
    again = desk.here(recipe, f"tick='{T1}'")
    assert again["asked"] == 0


def test_an_old_tick_that_is_done_last_is_there_to_be_looked_at(desk: Desk) -> None:
    """By hand, days later; and its student is the one that `run:nightly` means until another is trained."""
    recipe, data, watch = job(desk, keep={"runs": 1}), desk.folder / "data", Hearing()
    later, old = (Path(run_tick(load(recipe), tick, data, watch, again=True)["run"]) for tick in (T3, T1))
    assert later.exists()
    assert old.exists()
    assert watch.lines[-1] == f"keep: {old.name} stays: it has just been done"
    for run in (later, old):
        record = json.loads((run / "run.json").read_text())
        record["stages"]["train"] = {"owed": 0, "inputs": "", "outputs": {"student": ""}}
        (run / "run.json").write_text(json.dumps(record))
    os.utime(later / "run.json", (1, 1))
    assert expired(load(recipe), data, time.time()) == {old: "its student is the latest of its recipe"}


def test_a_run_stays_that_something_stands_on(desk: Desk) -> None:
    recipe = job(desk)
    plan, data = load(recipe), desk.folder / "data"
    runs = [Path(run_tick(plan, tick, data, Unwatched())["run"]) for tick in (T1, T2, T3, T4)]
    keeping = load(job(desk, keep={"runs": 1}))
    assert expired(keeping, data, time.time()) == dict.fromkeys(runs[:3])
    (runs[0] / "exports" / "gguf").mkdir(parents=True)
    report = runs[1] / "report" / "report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"gate": {"ships": True, "conditions": []}}))
    record = json.loads((runs[2] / "run.json").read_text())
    record["stages"]["filter"] = {}  # unfinished
    (runs[2] / "run.json").write_text(json.dumps(record))
    whys = ["exported", "its student passed the gate", "unfinished"]
    assert expired(keeping, data, time.time()) == dict(zip(runs[:3], whys, strict=True))


def test_a_run_stays_that_another_recipe_names_by_its_path_and_it_is_said(desk: Desk) -> None:
    """In a recipe beside the job's, which nobody has run yet; in that of another run, seen from its own folder."""
    recipe, data = job(desk), desk.folder / "data"
    runs = [Path(run_tick(load(recipe), tick, data, Unwatched())["run"]) for tick in (T1, T2, T3, T4)]
    (desk.folder / "later.yml").write_text(f"evaluate: {{students: [nightly/{runs[0].name}]}}")
    (desk.folder / "elsewhere").mkdir()
    desk.here(desk.recipe("other"))
    (other,) = (data / "runs" / "other").iterdir()
    record = json.loads((other / "run.json").read_text())
    record["recipe_file"] = str(desk.folder / "elsewhere" / "other.yaml")
    (other / "run.json").write_text(json.dumps(record))
    resolved = json.loads((other / "recipe.resolved.json").read_text())
    weights = f"../data/runs/nightly/{runs[1].name}/report"
    resolved["models"]["student"] = {"transformers": {"model": weights}}
    (other / "recipe.resolved.json").write_text(json.dumps(resolved))
    watch = Hearing()
    run_tick(load(job(desk, keep={"runs": 1})), "2026-11-28T03:00:00Z", data, watch)
    assert [run.exists() for run in runs] == [True, True, False, False]
    said = [line for line in watch.lines if line.startswith("keep: ")]
    assert said[2:] == [
        f"keep: {runs[0].name} stays: named by later.yml",
        f"keep: {runs[1].name} stays: named by {other.name}",
    ]


def test_runs_are_kept_by_their_age(desk: Desk) -> None:
    plan, data = load(job(desk, keep={"days": 2})), desk.folder / "data"
    for tick in (T1, T2, T3):
        run_tick(load(job(desk)), tick, data, Unwatched())
    now = moment(T4)
    old = [json.loads((path / "run.json").read_text())["tick"] for path in expired(plan, data, now)]
    assert old == [T1]  # T2 is two days old, and no more


def test_a_headline_that_quotes_a_secret_is_told_without_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-planted-0123456789")
    (desk.folder / "run" / "report").mkdir(parents=True)
    (desk.folder / "run" / "report" / "report.json").write_text(json.dumps({"headline": f"all failed: what is {key}?"}))
    heard = desk.folder / "heard"
    whom = [Notify.model_validate({"command": ["sh", "-c", f"cat > {heard}"], "on": ["done"]})]
    assert tell(whom, {"job": "n", "tick": T1, "state": "done", "run": str(desk.folder / "run")}) == []
    assert json.loads(heard.read_text())["headline"] == "all failed: what is ***?"
    assert key not in heard.read_text()
