"""What may be spent and what was: budgets over processes, crashes and periods; tries that are billed and give nothing."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import FellShort, UserError
from llm_distill.ledger import Ledger
from llm_distill.ledger_spending import costs
from llm_distill.limits import Budget, Charge, Limits, Per, accounts, noted
from llm_distill.prices import Prices
from llm_distill.records import Message, Request, Sampling
from tests.conftest import Desk
from tests.mock_api import MockApi, serving
from tests.test_ask import PROMPTS, ask_mock, requests_for

#: Of the mock's answers: two or three words asked, one answered, at these prices.
PRICES = {"prompt": 10.0, "completion": 1000.0}


def _billed(api: MockApi) -> float:
    """What the endpoint would write on its bill."""
    given = sum(len(p.split()) * n for p, n in api.billed.items())
    return (given * PRICES["prompt"] + sum(api.billed.values()) * PRICES["completion"]) / 1e6


def _job(desk: Desk, api: MockApi, rows: int, name: str = "job", concurrency: int = 256, **answers: Any) -> Path:
    desk.seeds([{"prompt": f"row {i}"} for i in range(rows)])
    knobs = {
        "model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": concurrency,
        "prices_usd": PRICES,
    }  # fmt: skip
    return desk.recipe(name, models={"teacher": {"openai_api": knobs}}, answers={"max_tokens": 4, **answers})


def test_a_dollar_holds_with_256_in_flight(desk: Desk, ledger_url: Path | str) -> None:
    with serving(latency_s=0.05) as api:
        recipe = _job(desk, api, 3000, budget_usd=1)
        process = desk.command("run", recipe, "--until", "answers", "--json")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "the budget of 1.0 dollars a run is reached" in err
        assert "rows are owed, about" in err
        summary = json.loads(out.splitlines()[-1])
        assert 0.95 <= _billed(api) <= 1.0
        assert summary["cost_usd"] == pytest.approx(_billed(api))
        assert summary["answered"] == len(api.paid)


def test_a_budget_holds_over_processes_and_crashes(desk: Desk, ledger_url: Path | str) -> None:
    """Three sessions of two processes on one run; in the first two, both are killed with requests in flight."""
    with serving(latency_s=0.1) as api:
        recipe = _job(desk, api, 2000, concurrency=8, budget_usd=1)
        for session in range(3):
            running = [desk.command("run", recipe, "--until", "answers", "--json") for _ in range(2)]
            enough = len(api.paid) + 60
            while session < 2 and len(api.paid) < enough and any(p.poll() is None for p in running):
                time.sleep(0.01)
            for process in running:
                if session < 2:
                    process.send_signal(signal.SIGKILL)
                _, err = process.communicate(timeout=120)
                assert session < 2 or (process.returncode == 1 and "is reached" in err), err
        assert 0.5 <= _billed(api) <= 1.0  # the rest may have been billed for what the killed ones had in flight


def test_a_day_has_its_own_budget_for_all_runs_of_a_recipe(desk: Desk, api: MockApi) -> None:
    recipe = _job(desk, api, 400, budget_usd=0.1, per="day")
    assert "dollars a day is reached" in desk.llm_distill("run", recipe, "--until", "answers", code=1)
    day = _billed(api)
    other_run: list[str | Path] = [recipe, "--until", "answers", "-s", "answers.max_tokens=5"]
    assert "a day" in desk.llm_distill("run", *other_run, code=1)
    assert _billed(api) < day + 0.01
    assert 0.08 <= _billed(api) <= 0.1
    both = ["-s", "answers.per=run", "-s", "answers.budget_usd={run: 0.04, day: 0.5}", "-s", "answers.max_tokens=6"]
    assert "dollars a run is reached" in desk.llm_distill("run", recipe, "--until", "answers", *both, code=1)


def test_periods_are_utc_days_weeks_and_months() -> None:
    named = accounts("tone/abc", datetime(2026, 12, 31, 23, 30, tzinfo=UTC))
    assert named == {"run": "tone/abc", "day": "tone@2026-12-31", "week": "tone@2026-W53", "month": "tone@2026-12"}


@pytest.mark.parametrize("fault", ["cut", "reset_after", "empty_used"])
def test_a_try_that_may_be_billed_is_charged(ledger_url: Path | str, fault: str) -> None:
    """The prompt costs 2 tokens and its answer 1: known for an answer that came empty, reserved at most for one that did not."""
    with serving() as api:
        api.faults = {p: [fault] for p in PROMPTS[:10]}
        _, entries = ask_mock(api, ledger_url, PROMPTS[:10], prices_usd=Prices(**PRICES), concurrency=2)
        ledger = Ledger(ledger_url)
        spent = ledger.spent("test")
        ledger.close()
        assert all(e and e.status == "ok" and e.attempts == 2 for e in entries)
        if fault == "empty_used":
            assert spent.usd == pytest.approx(_billed(api))
            assert spent.tokens == 10 * (3 + 3)
            assert sum(e.cost_usd or 0 for e in entries if e) == pytest.approx(_billed(api))
        else:
            assert spent.usd >= _billed(api)
            assert spent.tokens == sum(e.charged_tokens for e in entries if e)


def test_billed_tries_do_not_break_a_budget(ledger_url: Path | str) -> None:
    with serving() as api:
        api.faults = {p: ["cut"] * 3 for p in PROMPTS}
        with pytest.raises(FellShort, match="budget"):
            ask_mock(api, ledger_url, PROMPTS, Limits((Budget(usd=0.2),)), prices_usd=Prices(**PRICES))
        assert 0 < _billed(api) <= 0.2


def test_what_a_period_has_spent_counts_once_it_is_bounded(ledger_url: Path | str, api: MockApi) -> None:
    ask_mock(api, ledger_url, PROMPTS[:20], prices_usd=Prices(**PRICES))
    with pytest.raises(FellShort, match="dollars a month is reached"):
        ask_mock(
            api, ledger_url, PROMPTS, Limits((Budget("month", usd=_billed(api) + 0.02),)), prices_usd=Prices(**PRICES)
        )


def test_a_ledger_of_the_first_format_keeps_what_it_paid_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    (request,) = requests_for(["row 0"], Sampling(max_tokens=8))
    key = request.key("m")
    old = sqlite3.connect(path)
    old.executescript(
        """CREATE TABLE format (version INTEGER PRIMARY KEY); INSERT INTO format VALUES (1);
        CREATE TABLE requests (key VARCHAR(32) PRIMARY KEY, model TEXT NOT NULL, request BLOB NOT NULL, run TEXT NOT NULL,
            owner TEXT, lease_until FLOAT, status TEXT, reason TEXT, text TEXT, finish_reason TEXT, prompt_tokens INTEGER,
            completion_tokens INTEGER, cost_usd FLOAT, attempts INTEGER, served_model TEXT, fingerprint TEXT, terms TEXT,
            seconds FLOAT, charged_usd FLOAT, charged_tokens INTEGER, logprobs BLOB);"""
    )
    row = (
        key,
        "m",
        b"{}",
        "tone/a",
        None,
        None,
        "ok",
        None,
        "positive",
        "stop",
        3,
        1,
        0.5,
        1,
        "m-1",
        None,
        "mit",
        0.2,
        0.5,
        4,
    )
    old.execute(f"INSERT INTO requests VALUES ({','.join('?' * 21)})", (*row, b"packed"))
    old.execute("INSERT INTO requests (key, model, request, run, owner) VALUES ('k2', 'm', x'7b7d', 'tone/a', 'h:1:x')")
    old.commit()
    old.close()
    ledger = Ledger(path)
    (entry,) = ledger.read([key])
    assert entry
    assert (entry.text, entry.cost_usd, entry.terms, entry.logprobs) == ("positive", 0.5, "mit", b"packed")
    assert ledger.spent("tone/a") == Charge(0.5, 4)
    assert ledger.claim("tone/a", "m", {key: request}).settled == [key]
    ledger.close()
    Ledger(path).close()


@pytest.mark.parametrize("budget", ["-1", ".nan", "{year: 3}", "{day: -2}"])
def test_a_budget_that_is_none_is_found_at_once(desk: Desk, api: MockApi, budget: str) -> None:
    message = desk.llm_distill("check", _job(desk, api, 3), "-s", f"answers.budget_usd={budget}", code=2)
    assert "answers.budget_usd" in message


def test_a_first_request_too_dear_spends_nothing(desk: Desk, api: MockApi) -> None:
    message = desk.llm_distill("run", _job(desk, api, 3, budget_usd=0.0001), code=2)
    assert "below what the first request may take" in message
    assert not api.asked


def test_below_the_first_request_is_said_of_a_bare_ledger(api: MockApi, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens a week is below"):
        ask_mock(api, tmp_path / "l", PROMPTS, Limits((Budget("week", tokens=5),)))


def test_what_a_kill_left_reserved_counts_in_its_own_periods_and_run_alone(ledger_url: Path | str) -> None:
    """Of a process that died as November ended: in no budget of a later day or month, nor of another tick's run."""
    monday, tuesday = datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, 0, 1, tzinfo=UTC)
    question, most = Request((Message("user", "hello"),), Sampling()), Charge(0.5, 100)

    def room(ledger: Ledger, run: str, now: datetime, *budgets: Budget) -> bool:
        claims = ledger.claim(run, "m", {run: question}, {run: most}, accounts(run, now), budgets)
        ledger.release(claims.mine, [most] * len(claims.mine), accounts(run, now))
        return bool(claims.mine)

    with closing(Ledger(ledger_url)) as dead:
        lost = dead.claim(
            "job/1", "m", {"lost": question}, {"lost": most}, accounts("job/1", monday, note=noted("answers", "m"))
        )
        assert lost.mine == ["lost"]
    with closing(Ledger(ledger_url)) as ledger:
        periods: dict[Per, bool] = {"run": False, "day": False, "week": True, "month": False}
        for per, same in periods.items():
            assert room(ledger, "job/2", tuesday, Budget(per, usd=0.6)) is not same, per
        assert not room(ledger, "job/1", tuesday, Budget("run", usd=0.6))  # the tick itself goes on with what is left
        assert not room(ledger, "job/2", monday, Budget("day", usd=0.6))
        told = {row["day"]: row["reserved_nano_usd"] for row in costs(ledger, "day")}
    assert told == {"2026-11-30": 500_000_000}
