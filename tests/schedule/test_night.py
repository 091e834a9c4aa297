"""Ticks from end to end: against an endpoint on loopback that counts what it was asked, through kills, edits and outages."""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_distill import pipeline
from llm_distill.errors import FellShort, UserError
from llm_distill.ledger import Ledger
from llm_distill.ledger_tables import TICKS
from llm_distill.recipe import Plan, load
from llm_distill.recipe_schedule import iso, moment
from llm_distill.schedule import night as night_module
from llm_distill.schedule.book import TickBook
from llm_distill.schedule.night import at, due, next_period, opened, run_due, run_tick
from tests.conftest import Desk, Unwatched
from tests.mock_api import MockApi, label_of, serving

T1, T2, T3 = "2026-11-25T03:00:00Z", "2026-11-26T03:00:00Z", "2026-11-27T03:00:00Z"
SCHEDULE: dict[str, Any] = {"cron": "0 3 * * *", "postpone": {"first": "1h", "times": 3}}


def teacher(api: MockApi, **knobs: Any) -> dict[str, Any]:
    base = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}
    return {"teacher": {"openai_api": base | knobs}}


def job(desk: Desk, api: MockApi, rows: int = 12, **keys: Any) -> Path:
    desk.seeds([{"prompt": f"row {i}"} for i in range(rows)])
    settings: dict[str, Any] = {"models": teacher(api), "schedule": SCHEDULE, "filter": ["empty", "unparsed"]}
    return desk.recipe("nightly", **settings | keys)


def night(desk: Desk, recipe: Path, tick: str = T1, **options: Any) -> dict[str, Any]:
    return run_tick(load(recipe), tick, desk.folder / "data", Unwatched(), **options)


def due_at(desk: Desk, recipe: Path, now: str, **options: Any) -> list[dict[str, Any]]:
    """What a scheduler does that looks at a moment, which need not be now."""
    clock = moment(now)
    return run_due(load(recipe), desk.folder / "data", Unwatched(), clock=lambda: clock, **options)


def ticks(desk: Desk, url: Path | str | None = None) -> dict[str, tuple[str, int]]:
    with closing(Ledger(url or desk.folder / "data" / "ledger.sqlite")) as ledger:
        return {iso(row.due): (row.state, row.attempts) for row in TickBook(ledger).ticks("nightly")}


def test_a_tick_is_a_run_of_its_own_and_is_done_once(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    first, second = night(desk, recipe, T1), night(desk, recipe, T2)
    assert (first["state"], first["rows_kept"], first["asked"]) == ("done", 12, 12)
    assert (second["state"], second["asked"], second["rows_kept"]) == ("done", 0, 12)  # all of it was asked before
    assert first["run"] != second["run"]
    assert night(desk, recipe, T1)["state"] == "settled"
    assert night(desk, recipe, T1, again=True)["state"] == "settled"
    assert set(api.asked.values()) == {1}
    assert json.loads((Path(first["run"]) / "run.json").read_text())["tick"] == T1


def test_the_command_of_a_run_goes_on_with_a_ticks_run(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    first = night(desk, recipe, T1)
    again = desk.here(recipe, f"tick='{T1}'")
    assert again["run"] == first["run"]
    assert not any(stage["ran"] for stage in again["stages"].values())
    assert desk.here(recipe)["run"] != first["run"]


def test_keys_of_the_schedule_change_no_run_and_other_keys_do(desk: Desk, api: MockApi) -> None:
    plan = load(job(desk, api))
    beside = load(job(desk, api, schedule="0 4 * * *", keep={"runs": 3}, notify=[{"command": ["true"]}]))
    assert beside.digest == plan.digest
    assert at(plan, T1).digest != at(plan, T2).digest != plan.digest
    assert at(plan, T1).account != at(plan, T2).account
    assert at(beside, T1).digest == at(plan, T1).digest


def says_prompts(body: dict[str, Any], prompt: str) -> str | None:
    """As a generator: a list of prompts that nobody wrote before."""
    if "ITEMS" not in body["messages"][-1]["content"]:
        return None
    says_prompts.count += 1  # type: ignore[attr-defined]
    n = says_prompts.count  # type: ignore[attr-defined]
    return "\n".join(
        f"{i}. Tell me about the {word} of {n} things" for i, word in enumerate(["red", "big", "sea", "sun"])
    )


def test_generators_draw_anew_each_night_and_the_same_again_in_a_rerun(desk: Desk, api: MockApi) -> None:
    says_prompts.count = 0  # type: ignore[attr-defined]
    api.says = says_prompts
    (desk.folder / "leaf.md").write_text("ITEMS {{ count }} about {{ topic }}")
    tree = {
        "topic_tree": {"topics": ["physics"], "depth": 0, "per_leaf": 4, "leaf_template": "leaf.md", "novelty": None}
    }
    recipe = job(desk, api, prompts=[{"seeds": {"file": "seeds.jsonl"}}, tree], task="generate", filter=["empty"])
    first, second = night(desk, recipe, T1), night(desk, recipe, T2)
    texts = [{row["messages"][-1]["content"] for row in desk.rows(one, "prompts")} for one in (first, second)]
    assert len(texts[0]) == len(texts[1]) == 16
    assert texts[0] & texts[1] == {f"row {i}" for i in range(12)}
    assert (second["asked"], second["reused"]) == (5, 12)  # one question of the generator's and its four rows
    asked = sum(api.asked.values())
    again = desk.here(recipe, f"tick='{T1}'", first="prompts")
    assert again["asked"] == 0
    assert sum(api.asked.values()) == asked


def test_held_out_rows_are_the_same_every_night(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api, rows=60, held_out={"share": 0.3, "near": None})
    held = [{row["row_id"] for row in desk.rows(night(desk, recipe, tick), "held_out")} for tick in (T1, T2)]
    assert held[0] == held[1] != set()


def test_what_is_due_is_done_once_whatever_the_clock_does(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    assert due_at(desk, recipe, "2026-11-25T02:59:00Z") == []
    assert [one["tick"] for one in due_at(desk, recipe, "2026-11-25T03:00:05Z")] == [T1]
    assert due_at(desk, recipe, "2026-11-25T03:00:06Z") == []
    assert due_at(desk, recipe, "2026-11-25T02:00:00Z") == []  # the clock was set back
    assert due_at(desk, recipe, "2026-11-25T03:00:05Z") == []
    found = due_at(desk, recipe, "2026-11-27T12:00:00Z")  # nobody was there for two nights
    assert [(one["tick"], one["state"]) for one in found] == [(T2, "missed"), (T3, "done")]
    assert ticks(desk) == {T1: ("done", 1), T2: ("missed", 0), T3: ("done", 1)}
    assert set(api.asked.values()) == {1}


def test_a_recipe_edited_between_two_ticks_makes_another_run_of_each(desk: Desk, api: MockApi) -> None:
    first = night(desk, job(desk, api), T1)
    second = night(desk, job(desk, api, filter=["empty"]), T2)
    third = night(desk, job(desk, api, filter=["empty"]), T3)
    digests = [
        json.loads((Path(one["run"]) / "recipe.resolved.json").read_text())["filter"] for one in (first, second, third)
    ]
    assert digests == [["empty", "unparsed"], ["empty"], ["empty"]]
    assert len({one["run"] for one in (first, second, third)}) == 3
    assert all(Path(one["run"]).is_dir() for one in (first, second, third))
    assert set(api.asked.values()) == {1}


def test_a_recipe_edited_while_a_tick_is_unfinished_leaves_both_runs(desk: Desk, api: MockApi) -> None:
    api.faults = {f"row {i}": ["503"] * 50 for i in range(12)}
    recipe = job(desk, api, answers={"max_tokens": 8, "retries": 0})
    before = night(desk, recipe, T1)
    assert before["state"] == "postponed"
    api.faults = {}
    after = night(desk, job(desk, api, filter=["empty"]), T1)
    assert (after["state"], after["run"] == before["run"]) == ("done", False)
    assert Path(before["run"]).is_dir()


def test_a_provider_that_is_down_postpones_and_does_not_burn(desk: Desk, api: MockApi) -> None:
    api.faults = {f"row {i}": ["503"] * 1000 for i in range(400)}
    recipe = job(desk, api, rows=400, answers={"max_tokens": 8, "retries": 0, "max_failed": 0.1})
    begun = time.time()
    found = night(desk, recipe, T1)
    assert found["state"] == "postponed"
    assert 3500 < found["not_before"] - begun < 3700
    assert "It goes on at " in found["reason"]
    assert sum(api.asked.values()) < 200
    assert found["cost_usd"] in (None, 0.0)
    api.faults = {}
    later = run_due(load(recipe), desk.folder / "data", Unwatched(), clock=lambda: found["not_before"] + 1)
    ours = [one for one in later if one["tick"] == T1]
    assert [(one["state"], one["run"]) for one in ours] == [("done", found["run"])]
    assert set(api.paid.values()) == {1}
    assert len(api.paid) == 400


def test_nobody_there_postpones_and_gives_up_after_so_many_tries(desk: Desk, api: MockApi) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = job(desk, api, models=teacher(api, base_url=f"http://127.0.0.1:{port}/v1"))
    states = [night(desk, recipe, T1)["state"] for _ in range(4)]
    assert states == ["postponed"] * 3 + ["failed"]
    assert ticks(desk) == {T1: ("failed", 4)}
    assert night(desk, recipe, T1)["state"] == "settled"
    repaired = night(desk, job(desk, api), T1, again=True)  # by hand, it goes on
    assert repaired["state"] == "done"


def test_a_key_that_is_refused_is_no_passing_trouble(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCK_KEY", "sk-wrong")
    with serving(key="sk-right") as api:
        found = night(desk, job(desk, api, models=teacher(api, api_key_env="MOCK_KEY")), T1)
        assert (found["state"], "refuses the key" in found["reason"]) == ("failed", True)
        assert "sk-wrong" not in json.dumps(found)


def test_a_poisoned_row_does_not_stop_the_night(desk: Desk, api: MockApi) -> None:
    api.faults = {"row 3": ["400"] * 10}
    found = night(desk, job(desk, api, rows=40), T1)
    assert (found["state"], found["rows_kept"], found["owed"]) == ("done", 39, 1)


@pytest.mark.parametrize("name", ["MY_API_KEY", "ACME"])
def test_a_key_that_a_server_repeats_is_told_to_nobody(
    desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the variable is called: the recipe says that it holds a key."""
    monkeypatch.setenv(name, key := f"sk-planted-{name}-0123456789")
    heard = desk.folder / "heard"
    notify = [{"command": ["sh", "-c", f"cat > {heard}"], "on": ["fell_short", "postponed", "failed"]}]
    api.faults = {f"row {n}": [f"400:what is {key}?"] * 10 for n in range(12)}
    found = night(desk, job(desk, api, models=teacher(api, api_key_env=name), notify=notify), T1)
    assert "what is ***?" in found["reason"]
    assert "what is ***?" in heard.read_text()
    with closing(Ledger(desk.folder / "data" / "ledger.sqlite")) as ledger:
        said = json.dumps([dict(row.notes) for row in TickBook(ledger).ticks("nightly")])
    assert "what is ***?" in said
    assert key not in json.dumps(found) + heard.read_text() + said


PRICES = {"prompt": 1000, "completion": 1000}


def test_a_period_that_is_spent_postpones_to_the_next_one(desk: Desk, api: MockApi) -> None:
    """Each row costs less than a cent; a day has room for some of them."""
    budget = {"max_tokens": 8, "budget_usd": {"day": 0.3}}
    recipe = job(desk, api, rows=120, models=teacher(api, prices_usd=PRICES, concurrency=1), answers=budget)
    found = night(desk, recipe, T1)
    assert (found["state"], found["not_before"]) == ("postponed", next_period("day", time.time()))
    assert "when the day is over" in found["reason"]
    assert 0 < len(api.paid) < 120
    raised = job(
        desk,
        api,
        rows=120,
        models=teacher(api, prices_usd=PRICES, concurrency=1),
        answers=budget | {"budget_usd": {"day": 9}},
    )
    after = night(desk, raised, T1)
    assert after["state"] == "done"
    assert set(api.paid.values()) == {1}
    own = job(desk, api, rows=250, models=teacher(api, prices_usd=PRICES), answers=budget | {"budget_usd": 0.3})
    assert night(desk, own, T2)["state"] == "fell_short"  # its own bound is the same tomorrow


def test_a_new_period_that_begins_while_the_rest_of_a_run_is_done_is_not_waited_out(
    desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month's last dollar is spent ten minutes before it ends; what can be done without one takes twenty."""
    clock = [moment("2026-12-31T23:50:00Z")]

    def run(plan: Plan, workspace: Path, *_: Any, **__: Any) -> dict[str, Any]:
        clock[0] += 1200
        short = {"status": "fell_short", "reason": "the budget is reached.", "passes": "month"}
        return {"run": str(workspace), "stages": {}, "owed": 1} | short

    recipe = job(desk, api)
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(night_module, "time", SimpleNamespace(time=lambda: float(clock[0])))
    found = night(desk, recipe, "2026-12-31T03:00:00Z")
    assert (found["state"], iso(found["not_before"])) == ("postponed", "2027-01-01T00:00:00Z")
    found = night(desk, recipe, "2026-12-31T03:00:00Z")  # the new month's is spent too
    assert (found["state"], iso(found["not_before"])) == ("postponed", "2027-02-01T00:00:00Z")


def test_ticks_that_were_passed_over_long_ago_are_not_told_again(desk: Desk, api: MockApi) -> None:
    """A job of each minute waits for its budget's next month, and has left out more ticks than are read."""
    plan, first = load(job(desk, api, schedule="* * * * *")), moment(T1)
    with opened(desk.folder / "data", None) as book:
        book.since("nightly", first - 1.0, first)
        assert book.claim("nightly", first, "digest") == "mine"
        assert book.end("nightly", first, "postponed", {}, not_before=first + 10**7)
        with book.ledger._transaction() as db:
            db.execute(TICKS.update().values(started=first))
        skipped = [first + 60 * n for n in range(1, 1201)]
        assert book.pass_over("nightly", skipped, "skipped", "overlap") == skipped
        found = due(plan, book, skipped[-1] + 61)
    assert (found.do, found.skipped, found.missed) == ((), (skipped[-1] + 60,), ())


def test_periods_begin_as_budgets_count_them() -> None:
    now = moment("2026-12-31T23:30:00Z")  # a Thursday
    assert [iso(next_period(per, now)) for per in ("day", "week", "month")] == [
        "2027-01-01T00:00:00Z", "2027-01-04T00:00:00Z", "2027-01-01T00:00:00Z",
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["prompts", "answers", "filter", "evaluate", "report"])
def test_a_kill_in_any_stage_leaves_the_same_run_to_go_on(desk: Desk, stage: str) -> None:
    """SIGKILL while a stage runs: whoever looks next goes on, and pays for nothing twice."""
    with serving() as api:
        desk.seeds([{"prompt": f"row {i}", "label": label_of(f"row {i}")} for i in range(24)])
        keys = {"held_out": {"share": 0.3, "near": None}, "evaluate": {"resamples": 200}}
        recipe = job(desk, api, rows=24, **keys)
        desk.seeds([{"prompt": f"row {i}", "label": label_of(f"row {i}")} for i in range(24)])
        process = multiprocessing.get_context("spawn").Process(target=_until, args=(desk.folder, recipe, stage))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        before = dict(api.paid)
        assert ticks(desk) == {T1: ("running", 1)}
        found = run_due(load(recipe), desk.folder / "data", Unwatched(), clock=lambda: moment(T1) + 60)
        assert [(one["tick"], one["state"]) for one in found] == [(T1, "done")]
        assert ticks(desk) == {T1: ("done", 1)}  # the same try goes on
        assert set(api.paid.values()) == {1}
        assert before.keys() <= api.paid.keys()
        assert len(list((desk.folder / "data" / "runs" / "nightly").iterdir())) == 1


def _until(folder: Path, recipe: Path, stage: str) -> None:
    """Run a tick in a process of its own, and die in the middle of a stage."""
    import os

    from llm_distill import pipeline

    own = pipeline.STAGES[stage].function

    def dying(run: Any) -> Any:
        own(run)  # its files are written, its stamp is not
        os.kill(os.getpid(), signal.SIGKILL)

    object.__setattr__(pipeline.STAGES[stage], "function", dying)
    run_tick(load(recipe), T1, folder / "data", Unwatched())


def _die(desk: Desk, recipe: Path) -> None:
    """Run a tick in a process that is killed while it asks."""
    process = multiprocessing.get_context("fork").Process(target=_until, args=(desk.folder, recipe, "prompts"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_kills_use_up_no_tries_and_a_tick_that_kills_its_machine_ends(desk: Desk, api: MockApi) -> None:
    heard = desk.folder / "heard"
    notify = [{"command": ["sh", "-c", f"cat > {heard}"]}]
    recipe = job(desk, api, schedule=SCHEDULE | {"postpone": {"times": 0}, "kills": 2}, notify=notify)
    for _ in range(2):
        _die(desk, recipe)
    assert ticks(desk) == {T1: ("running", 1)}
    with opened(desk.folder / "data", None) as book:
        (row,) = book.ticks("nightly")
    assert row.kills == 1  # of the last nobody has heard yet
    _die(desk, recipe)
    found = night(desk, recipe, T1)
    assert (found["state"], "was killed 3 times in a row" in found["reason"]) == ("failed", True)
    assert "was killed 3 times" in heard.read_text()
    assert ticks(desk) == {T1: ("failed", 1)}
    assert not api.asked
    assert night(desk, recipe, T1, again=True)["state"] == "done"  # by hand it goes on, and is counted anew


def test_a_tick_that_is_run_by_hand_settles_no_other(desk: Desk, api: MockApi) -> None:
    """Nobody was there from the 22nd to the 26th; the 24th is run by its name, and then the scheduler looks."""
    recipe = job(desk, api)
    assert [one["state"] for one in due_at(desk, recipe, "2026-11-21T03:00:05Z")] == ["done"]
    assert night(desk, recipe, "2026-11-24T03:00:00Z", again=True)["state"] == "done"
    assert len(ticks(desk)) == 2
    found = {one["tick"][8:10]: one["state"] for one in due_at(desk, recipe, "2026-11-26T12:00:00Z")}
    assert found == {"22": "missed", "23": "missed", "25": "missed", "26": "done"}
    assert night(desk, recipe, "2026-11-23T03:00:00Z", again=True)["state"] == "done"
    assert due_at(desk, recipe, "2026-11-26T12:00:00Z") == []


def test_a_tick_by_hand_of_a_new_job_takes_none_that_is_on_time(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api, schedule="* * * * *")
    night(desk, recipe, iso(int(time.time()) // 60 * 60 - 3600), again=True)
    with opened(desk.folder / "data", None) as book:
        assert due(load(recipe), book, time.time(), record=False).do


def test_a_clock_that_is_not_set_yet_defines_nothing(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    with pytest.raises(FellShort, match="the clock stands at 1970-01-01T03:00:05Z, so it is not set yet"):
        due_at(desk, recipe, "1970-01-01T03:00:05Z")
    assert [one["tick"] for one in due_at(desk, recipe, "2026-11-25T03:00:05Z")] == [T1]
    # By an earlier version, such a clock did.
    with opened(desk.folder / "data", None) as book, book.ledger._transaction() as db:
        db.exec_driver_sql("UPDATE jobs SET since = 10800")
        db.exec_driver_sql("DELETE FROM ticks")
    assert [one["tick"] for one in due_at(desk, recipe, "2026-11-26T03:00:05Z")] == [T2]


def test_a_tick_that_two_schedulers_pass_over_is_told_once(
    desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look before either writes down what it found."""
    heard = desk.folder / "heard"
    notify = [{"command": ["sh", "-c", f"cat >> {heard}; echo >> {heard}"], "on": ["missed"]}]
    recipe = job(desk, api, notify=notify, schedule=SCHEDULE | {"catch_up": "none"})
    due_at(desk, recipe, "2026-11-25T03:00:05Z")
    both, true = threading.Barrier(2, timeout=60), TickBook.pass_over

    def at_once(book: TickBook, job: str, dues: Any, state: Any, why: str) -> list[int]:
        if state == "missed" and dues:
            both.wait()
        return true(book, job, dues, state, why)

    monkeypatch.setattr(TickBook, "pass_over", at_once)
    found: list[list[dict[str, Any]]] = []
    schedulers = [
        threading.Thread(target=lambda: found.append(due_at(desk, recipe, "2026-11-26T12:00:00Z"))) for _ in range(2)
    ]
    for one in schedulers:
        one.start()
    for one in schedulers:
        one.join(120)
    assert sorted(map(len, found)) == [0, 1]
    (told,) = heard.read_text().splitlines()
    assert json.loads(told)["tick"] == T2


def test_two_schedulers_do_a_tick_once(desk: Desk, ledger_url: Path | str) -> None:
    """Each in a process of its own, at once, with one ledger: on PostgreSQL as on two machines."""
    with serving(latency_s=0.05) as api:
        recipe = job(desk, api, rows=40)
        (desk.folder / "data").mkdir()
        commands = [
            desk.command("jobs", "run", recipe, "--tick", T1, "--json", LLM_DISTILL_LEDGER=_url(ledger_url))
            for _ in range(3)
        ]
        ends = [(p.communicate(timeout=120)[0], p.returncode) for p in commands]
        states = sorted(json.loads(out)[0]["state"] for out, _ in ends)
        assert states.count("done") == 1
        assert set(states) <= {"done", "elsewhere", "settled"}
        assert {code for _, code in ends} == {0}
        assert set(api.asked.values()) == {1}
        assert ticks(desk, ledger_url) == {T1: ("done", 1)}


def _url(ledger: Path | str) -> str:
    return f"sqlite:///{ledger}" if isinstance(ledger, Path) else ledger


def test_a_tick_of_another_machine_is_left_alone_until_its_lease_ends(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    with closing(Ledger(desk.folder / "data" / "ledger.sqlite")) as ledger:
        book = TickBook(ledger)
        book.keeper = "elsewhere/1:1:abcdef01"
        assert book.claim("nightly", moment(T1), "d") == "mine"
    assert night(desk, recipe, T1)["state"] == "elsewhere"
    assert night(desk, recipe, T2)["state"] == "busy"
    with closing(sqlite3.connect(desk.folder / "data" / "ledger.sqlite")) as db, db:
        db.execute("UPDATE ticks SET lease_until = ?", (time.time() - 1,))
    assert night(desk, recipe, T1)["state"] == "done"
    assert ticks(desk) == {T1: ("done", 1)}


def test_a_process_that_lost_its_tick_stops_and_overwrites_nothing(desk: Desk) -> None:
    with serving(latency_s=0.1) as api:
        recipe = job(desk, api, rows=400, answers={"max_tokens": 8, "drain_s": 0.1}, models=teacher(api, concurrency=2))
        ledger = desk.folder / "data" / "ledger.sqlite"

        def steal() -> None:
            while not api.asked:
                time.sleep(0.01)
            with closing(sqlite3.connect(ledger, timeout=30)) as db, db:
                db.execute("UPDATE ticks SET owner = 'elsewhere/1:1:abcdef01', lease_until = ?", (time.time() + 100,))

        with _leases_of(0.6):
            thread = threading.Thread(target=steal)
            thread.start()
            found = night(desk, recipe, T1)
            thread.join()
        assert found["state"] == "interrupted"
        assert ticks(desk) == {T1: ("running", 1)}


@contextmanager
def _leases_of(seconds: float) -> Iterator[None]:
    before = Ledger.lease_s
    Ledger.lease_s = seconds
    try:
        yield
    finally:
        Ledger.lease_s = before


def test_max_runtime_ends_a_run_as_ctrl_c_does_and_the_next_tick_goes_on_with_it(desk: Desk) -> None:
    with serving(latency_s=0.1) as api:
        knobs = teacher(api, concurrency=1)
        schedule = SCHEDULE | {"max_runtime": 1.5, "overlap": "wait"}
        recipe = job(desk, api, rows=100, models=knobs, schedule=schedule)
        found = night(desk, recipe, T1)
        assert found["state"] == "postponed"
        assert "max_runtime" in found["reason"]
        assert found["not_before"] > time.time()
        paid = len(api.paid)
        assert 0 < paid < 100
        api.latency_s = 0.0
        job(desk, api, rows=100, models=knobs)  # the bound is no part of the run
        after = night(desk, recipe, T1)
        assert (after["state"], after["run"], after["reused"]) == ("done", found["run"], paid)
        assert set(api.paid.values()) == {1}


def test_a_bug_is_written_down_and_raised(desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = job(desk, api)

    def broken(*_house: Any, **_more: Any) -> Any:
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr("llm_distill.pipeline.run", broken)
    with pytest.raises(ZeroDivisionError):
        night(desk, recipe, T1)
    monkeypatch.undo()
    assert ticks(desk) == {T1: ("failed", 1)}
    assert night(desk, recipe, T1, again=True)["state"] == "done"


def test_a_full_disk_postpones(desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    recipe = job(desk, api)

    def full(*_house: Any, **_more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "answers.parquet")

    monkeypatch.setattr("llm_distill.store.write_table", full)
    found = night(desk, recipe, T1)
    assert (found["state"], "the disk is full" in found["reason"]) == ("postponed", True)
    monkeypatch.undo()
    assert night(desk, recipe, T1)["state"] == "done"
    assert set(api.paid.values()) == {1}


def test_a_ledger_that_another_process_locks_is_waited_for(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    night(desk, recipe, T1)
    locked = sqlite3.connect(desk.folder / "data" / "ledger.sqlite", isolation_level=None, check_same_thread=False)
    locked.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(2.0, lambda: locked.execute("ROLLBACK"))
    timer.start()
    start = time.monotonic()
    found = night(desk, recipe, T2)
    timer.join()
    locked.close()
    assert found["state"] == "done"
    assert time.monotonic() - start > 1.5


def test_a_ledger_that_stays_locked_loses_nothing(desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked just after it was opened, and for longer than anybody waits: here 0.2 s instead of a minute."""
    recipe = job(desk, api)
    locked = sqlite3.connect(":memory:")

    def impatient(url: Path) -> Ledger:
        nonlocal locked
        ledger = Ledger(url)
        with ledger._engine.connect() as db:  # the one connection of its pool
            db.exec_driver_sql("PRAGMA busy_timeout=200")
        locked = sqlite3.connect(url, isolation_level=None)
        locked.execute("BEGIN EXCLUSIVE")
        return ledger

    with monkeypatch.context() as patch:
        patch.setattr("llm_distill.schedule.night.Ledger", impatient)
        with pytest.raises(FellShort, match="the ledger did not answer: database is locked"):
            night(desk, recipe, T1)
    locked.close()
    assert night(desk, recipe, T1)["state"] == "done"
    assert set(api.paid.values()) == {1}


def test_a_recipe_without_a_schedule_is_no_job(desk: Desk, api: MockApi) -> None:
    with pytest.raises(UserError, match="has no schedule; add one"):
        night(desk, job(desk, api, schedule=None), T1)


def test_stages_are_handed_out_and_may_be_done_again(desk: Desk, api: MockApi) -> None:
    """As a scheduler's tasks with retries do."""
    api.faults = {f"row {i}": ["503"] for i in range(12)}
    recipe = job(desk, api, answers={"max_tokens": 8, "retries": 0})
    tries: list[str] = []

    def each(name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        from llm_distill.errors import FellShort

        tries.append(name)
        try:
            return do()
        except FellShort:
            tries.append(f"{name} again")
            return do()

    assert night(desk, recipe, T1, each=each)["state"] == "done"
    assert tries == ["prompts", "answers", "answers again", "filter", "report"]
    assert set(api.paid.values()) == {1}


HOLD = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
db.execute("ROLLBACK")
"""


def test_a_ledger_that_is_locked_by_another_process_in_mid_run_is_waited_for(desk: Desk) -> None:
    """While answers come in, which have nowhere to go for two seconds."""
    with serving(latency_s=0.02) as api:
        recipe = job(desk, api, rows=60, models=teacher(api, concurrency=4))
        held: list[float] = []

        def hold() -> None:
            while len(api.paid) < 8:
                time.sleep(0.005)
            command = [sys.executable, "-c", HOLD, str(desk.folder / "data" / "ledger.sqlite"), "2"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout
                assert process.stdout.readline() == "held\n"
                held.append(len(api.paid))

        thread = threading.Thread(target=hold)
        thread.start()
        found = night(desk, recipe, T1)
        thread.join()
        assert (found["state"], found["rows_kept"]) == ("done", 60)
        assert held
        assert held[0] < 60
        assert set(api.paid.values()) == {1}


def test_a_disk_that_fills_in_a_tick_loses_nothing_that_is_on_it(desk: Desk, api: MockApi) -> None:
    """No file may grow over 200 kB, the ledger neither: so it is with a disk that is full."""
    recipe = job(desk, api, rows=150, prompts=[{"seeds": {"file": "long.jsonl"}}], models=teacher(api, concurrency=4))
    desk.seeds([{"prompt": f"row {i} {'word ' * 500}"} for i in range(150)], "long.jsonl")
    llm_distill = f"{sys.executable} -m llm_distill.cli jobs run {recipe} --tick {T1}"
    full = subprocess.run(
        ["bash", "-c", f"ulimit -f 200; exec {llm_distill}"],
        cwd=desk.folder, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert full.returncode in (1, 2), full.stderr
    assert "disk" in full.stderr.splitlines()[-1], full.stderr
    assert "Traceback" not in full.stderr
    assert "Unclosed" not in full.stderr
    assert 0 < len(api.paid) < 150
    found = night(desk, recipe, T1, again=True)
    assert (found["state"], found["rows_kept"]) == ("done", 150)
    assert len(list((desk.folder / "data" / "runs" / "nightly").iterdir())) == 1
    twice = sum(count - 1 for count in api.paid.values())
    assert twice <= 8  # answers that were on their way to a disk that had no room


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (range(28, 31), ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        (range(24, 27), ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
    ],
)
def test_a_nightly_tick_is_run_once_where_clocks_change(
    desk: Desk, api: MockApi, days: range, expected: list[str]
) -> None:
    """Somebody looks every twenty minutes over the nights in which Berlin's clocks go forward, and back."""
    schedule = SCHEDULE | {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    plan = load(job(desk, api, rows=2, schedule=schedule))
    begin = moment(f"{expected[0][:8]}{days[0]}T00:10:00Z")
    found: list[tuple[str, str]] = []
    for look in range(begin, begin + 2 * 86_400 + 3 * 3600, 1200):
        done = run_due(plan, desk.folder / "data", Unwatched(), clock=lambda look=look: look)  # type: ignore[misc]
        found += [(one["tick"], one["state"]) for one in done]
    assert found == [(tick, "done") for tick in expected]
