"""Asking when things go wrong in the middle: questions repeated, stops, quotas, late losers, budgets over several sessions."""

from __future__ import annotations

import gc
import signal
import time
from pathlib import Path

import pytest

from llm_distill.ask import ask
from llm_distill.errors import FellShort, UserError
from llm_distill.ledger import Ledger
from llm_distill.limits import Budget, Limits
from llm_distill.models import Model
from llm_distill.records import Completion, Entry, Message, Request, Sampling
from tests.conftest import Desk
from tests.mock_api import MockApi, serving
from tests.test_ask import PROMPTS, ask_mock, requests_for


def test_a_question_asked_twice_far_apart_is_paid_once(ledger_url: Path | str) -> None:
    prompts = ["twin", *PROMPTS[:6], "twin", *PROMPTS[6:12], "twin"]
    with serving(latency_s=0.1) as api:
        tally, entries = ask_mock(api, ledger_url, prompts, concurrency=4)
    assert api.paid["twin"] == 1
    assert all(entries)
    assert tally.asked == 13


@pytest.mark.parametrize("fault", ["429:3600", "hang"])
def test_a_signal_is_heard_when_nothing_moves(desk: Desk, fault: str) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(50)])
    with serving() as api:
        api.faults = {f"row {i}": [fault] * 9 for i in range(50)}
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 4}}
        process = desk.command("run", desk.recipe(models={"teacher": teacher}, answers={"drain_s": 1}))
        while not api.asked:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM if fault == "hang" else signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130, err


def test_what_was_in_flight_when_the_quota_ended_is_kept(ledger_url: Path | str) -> None:
    with serving(latency_s=0.2) as api:
        api.faults["row 0"] = ["quota"]
        with pytest.raises(UserError, match="no credit"):
            ask_mock(api, ledger_url, PROMPTS, concurrency=16)
        paid = sum(api.paid.values())
        assert paid >= 15
        tally, _ = ask_mock(api, ledger_url, PROMPTS, concurrency=16)
        assert tally.reused == paid
        assert set(api.paid.values()) == {1}


def test_who_comes_between_the_look_and_the_claim_has_the_row(
    ledger_url: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Ledger(ledger_url) for _ in range(2))
    requests = {request.key("m"): request for request in requests_for(PROMPTS[:10])}
    keys = list(requests)
    first.claim("run", "m", {key: requests[key] for key in keys[:4]})
    monkeypatch.setattr(second, "_known", lambda _db, _keys: [])  # as if it had looked before
    claims = second.claim("run", "m", requests)
    assert (claims.mine, claims.busy) == (keys[4:], keys[:4])
    first.close()
    second.close()


def test_who_stood_still_asks_nothing_that_another_process_took(ledger_url: Path | str) -> None:
    first, second = (Ledger(ledger_url) for _ in range(2))
    first.lease_s = 0.3
    asked: list[Request] = []

    class Stopped(Model):
        identity, concurrency, terms, prices = "m", 40, None, None

        async def complete(self, request: Request) -> Completion:
            asked.append(request)
            time.sleep(0.5)  # the whole process, as if it were suspended
            assert second.claim("other", "m", requests).mine
            return Completion("late", "stop", 1, 1)

    requests = {request.key("m"): request for request in requests_for(PROMPTS[:10])}
    with pytest.raises(FellShort, match="stood still"):
        ask(list(requests.items()), Stopped(), first, run="test")
    assert len(asked) == 1
    assert first.spent("test").tokens == 2  # what was answered; the rest is given back
    assert second.claim("other", "m", requests).mine == list(requests)[1:]
    first.close()
    second.close()


def test_the_garbage_collector_is_left_as_it_was(api: MockApi, tmp_path: Path) -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    ask_mock(api, tmp_path / "ledger", PROMPTS[:3])
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_late_loser_does_not_overwrite_a_paid_answer(ledger_url: Path | str) -> None:
    first, second = (Ledger(ledger_url) for _ in range(2))
    (request,) = requests_for(["row 0"])
    key = request.key("m")
    first.claim("run", "m", {key: request})
    with first._transaction() as db:
        db.exec_driver_sql("UPDATE requests SET lease_until = 0")
    assert second.claim("run", "m", {key: request}).mine == [key]
    second.settle([Entry(key, "ok", text="paid", cost_usd=1.0)])
    first.settle([Entry(key, "failed", "timeout")])
    (entry,) = second.read([key])
    assert entry
    assert (entry.status, entry.text, entry.cost_usd) == ("ok", "paid", 1.0)
    first.close()
    second.close()


def test_a_few_failures_early_do_not_stop_a_long_job(api: MockApi, ledger_url: Path | str) -> None:
    prompts = [f"long {i}" for i in range(1000)]
    api.faults = {p: ["400"] for p in prompts[:30]}
    tally, _ = ask_mock(api, ledger_url, prompts, Limits(max_failed=0.04))
    assert (tally.failed, tally.answered) == (30, 970)


def test_usage_that_never_came_is_charged_at_its_estimate_for_ever(api: MockApi, ledger_url: Path | str) -> None:
    api.faults = {p: ["no_usage"] for p in PROMPTS}
    for _ in range(3):
        with pytest.raises(FellShort, match="budget of 200 tokens"):
            ask_mock(api, ledger_url, PROMPTS, Limits((Budget(tokens=200),)))
    assert sum(api.paid.values()) == 3  # 45 for the prompt at most and 8 for the answer each: a fourth would not fit


def test_ids_are_for_ever() -> None:
    """What was paid for last year must be found: a change of these is a change of the ledger's format."""
    request = Request(
        (Message("system", "s"), Message("user", "\u00fc")), Sampling(temperature=0.5, max_tokens=7), sample=2
    )
    assert request.key("m") == "5fdf43d0289a5496846cb24e29dee891"
    assert Request((Message("user", "x"),), Sampling()).key("m") == "1cb12f9ad4829b87273bcf252239c321"
