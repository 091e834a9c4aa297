"""The one door: what comes back, what is tried again, what is never asked twice, what it may cost."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from llm_distill.ask import ask
from llm_distill.errors import FellShort, Unavailable, UserError
from llm_distill.ledger import Ledger
from llm_distill.limits import Budget, Limits, Tally
from llm_distill.models import Model
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.prices import Prices
from llm_distill.records import Completion, Entry, Message, Request, Sampling
from tests.conftest import Desk
from tests.mock_api import MockApi, label_of, serving

PROMPTS = [f"row {i}" for i in range(60)]


def model_of(api: MockApi, **knobs: object) -> OpenAIModel:
    settings = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8} | knobs
    return OpenAIModel(**settings)  # type: ignore[arg-type]


def requests_for(prompts: list[str], sampling: Sampling = Sampling(max_tokens=8)) -> list[Request]:
    return [Request((Message("user", prompt),), sampling) for prompt in prompts]


def ask_mock(
    api: MockApi,
    ledger_url: Path | str,
    prompts: list[str],
    limits: Limits = Limits(),
    sampling: Sampling | None = None,
    **knobs: object,
) -> tuple[Tally, list[Entry | None]]:
    ledger, model = Ledger(ledger_url), model_of(api, **knobs)
    keyed = [(r.key(model.identity), r) for r in requests_for(prompts, sampling or Sampling(max_tokens=8))]
    try:
        tally = ask(keyed, model, ledger, run="test", limits=limits, total=len(keyed))
        return tally, list(ledger.read([key for key, _ in keyed]))
    finally:
        ledger.close()


def test_every_row_gets_its_own_answer(api: MockApi, ledger_url: Path | str) -> None:
    tally, entries = ask_mock(api, ledger_url, PROMPTS)
    assert [e and e.text for e in entries] == [label_of(p) for p in PROMPTS]
    assert (tally.asked, tally.answered, tally.reused, tally.failed) == (60, 60, 0, 0)
    assert {e.served_model for e in entries if e} == {"mock-large-2026-01-01"}
    assert {e.fingerprint for e in entries if e} == {"fp_1"}
    assert tally.cost_usd is None  # no price is known, and unknown is not 0
    assert api.most_in_flight <= 8


def test_what_is_settled_is_not_asked_again(api: MockApi, ledger_url: Path | str) -> None:
    ask_mock(api, ledger_url, PROMPTS)
    tally, entries = ask_mock(api, ledger_url, [*PROMPTS, "one more"])
    assert (tally.asked, tally.reused) == (1, 60)
    assert all(entries)
    assert set(api.asked.values()) == {1}


def test_another_sampling_or_model_is_another_question(api: MockApi, ledger_url: Path | str) -> None:
    ask_mock(api, ledger_url, ["a"])
    ask_mock(api, ledger_url, ["a"], sampling=Sampling(max_tokens=8, temperature=0.5))
    ask_mock(api, ledger_url, ["a"], model="mock-small")
    assert api.paid["a"] == 3


@pytest.mark.parametrize(
    "fault", ["429", "429:0", "500", "502", "503", "504", "529", "reset", "cut", "empty", "empty_body", "html"]
)
def test_what_may_pass_is_tried_again(api: MockApi, ledger_url: Path | str, fault: str) -> None:
    api.faults["row 3"] = [fault]
    tally, entries = ask_mock(api, ledger_url, PROMPTS[:5])
    assert [e and (e.status, e.attempts) for e in entries] == [("ok", 2 if i == 3 else 1) for i in range(5)]
    assert (tally.answered, tally.retried, api.asked["row 3"]) == (5, 1, 2)


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("400", "failed", "HTTP 400: server_error try again"),
        ("length", "truncated", "length"),
        ("content_filter", "filtered", "content_filter"),
        ("refusal", "refused", "I can't help with that."),
        ("no_usage", "ok", None),
    ],
)
def test_each_row_ends_in_one_status(
    api: MockApi, ledger_url: Path | str, fault: str, status: str, reason: str | None
) -> None:
    api.faults["row 1"] = [fault]
    tally, entries = ask_mock(api, ledger_url, PROMPTS[:4])
    assert [e and e.status for e in entries] == ["ok", status, "ok", "ok"]
    assert entries[1]
    assert entries[1].reason == reason
    assert tally.answered + tally.failed == tally.asked == 4


def test_a_hung_connection_is_abandoned(api: MockApi, ledger_url: Path | str) -> None:
    api.faults["row 0"] = ["hang"]
    start = time.monotonic()
    _, entries = ask_mock(api, ledger_url, PROMPTS[:3], timeout_s=0.5)
    assert time.monotonic() - start < 10
    assert [e and e.status for e in entries] == ["ok"] * 3


def test_a_row_that_never_succeeds_fails_with_its_reason_and_is_owed_again(
    api: MockApi, ledger_url: Path | str
) -> None:
    api.faults["row 0"] = ["500:0"] * 3
    tally, entries = ask_mock(api, ledger_url, PROMPTS[:2], Limits(retries=2))
    assert entries[0] == Entry(entries[0].key, "failed", "HTTP 500: server_error try again", attempts=3)  # type: ignore[union-attr]
    assert tally.failed == 1
    tally, entries = ask_mock(api, ledger_url, PROMPTS[:2])
    assert (tally.asked, tally.reused) == (1, 1)
    assert [e and e.status for e in entries] == ["ok", "ok"]


def test_the_wait_that_the_server_asks_for_is_kept(api: MockApi, ledger_url: Path | str) -> None:
    api.faults["row 0"] = ["429:1"]
    start = time.monotonic()
    ask_mock(api, ledger_url, PROMPTS[:1])
    assert time.monotonic() - start >= 1.0


def test_too_many_failures_stop_the_asking(api: MockApi, ledger_url: Path | str) -> None:
    prompts = [f"bad {i}" for i in range(2000)]
    api.faults = {p: ["400"] for p in prompts}
    with pytest.raises(FellShort, match="more than max_failed"):
        ask_mock(api, ledger_url, prompts)
    assert sum(api.asked.values()) < 200


def test_logprobs_come_back_with_bytes(api: MockApi, ledger_url: Path | str) -> None:
    from llm_distill.logprobs import Logprobs

    api.faults["row 1"] = ["null_logprob"]
    _, entries = ask_mock(api, ledger_url, PROMPTS[:2], sampling=Sampling(max_tokens=8, top_logprobs=2))
    first, second = entries
    assert first is not None
    assert second is not None
    assert first.logprobs is not None
    assert second.logprobs is None  # a logprob that is not a number is no measurement; the text stays
    logprobs = Logprobs.unpack(first.logprobs)
    assert logprobs.tokens == [label_of("row 0").encode()]
    assert logprobs.top_logprobs.shape == (1, 2)
    assert logprobs.logprobs[0] == pytest.approx(-0.1)


def test_a_wrong_key_stops_at_once_and_is_never_shown(desk: Desk) -> None:
    desk.seeds([{"prompt": p} for p in PROMPTS])
    with serving(key="sk-right") as api:
        teacher = {
            "openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": "MOCK_KEY", "concurrency": 4}
        }
        recipe = desk.recipe(models={"teacher": teacher})
        message = desk.llm_distill("run", recipe, code=2, MOCK_KEY="sk-wrong-secret")
        assert "MOCK_KEY" in message
        assert "sk-wro" not in message
        assert len(api.bodies) <= 4
        message = desk.llm_distill("run", recipe, code=2)
        assert "MOCK_KEY is not set" in message
        desk.run(recipe, MOCK_KEY="sk-right")
    for file in desk.folder.rglob("*"):
        if file.is_file():
            assert b"sk-right" not in file.read_bytes(), file


def test_an_unknown_model_names_what_the_endpoint_has(api: MockApi, ledger_url: Path | str) -> None:
    with pytest.raises(UserError, match=r"mock-larg.*Did you mean 'mock-large'"):
        ask_mock(api, ledger_url, PROMPTS, model="mock-larg")


def test_an_exhausted_quota_is_not_retried(api: MockApi, ledger_url: Path | str) -> None:
    api.faults = {p: ["quota"] * 9 for p in PROMPTS}
    with pytest.raises(UserError, match="no credit left"):
        ask_mock(api, ledger_url, PROMPTS)
    assert sum(api.asked.values()) <= 8


@pytest.mark.parametrize("budget_usd", [0.0006, 0.0011, 0.0016])
def test_a_dollar_budget_is_never_exceeded_and_goes_on_later(
    api: MockApi, ledger_url: Path | str, budget_usd: float
) -> None:
    prices = Prices(prompt=10.0, completion=10.0)
    with pytest.raises(FellShort, match="budget"):
        ask_mock(api, ledger_url, PROMPTS, Limits((Budget(usd=budget_usd),)), prices_usd=prices)
    ledger = Ledger(ledger_url)
    spent = ledger.spent("test").usd
    ledger.close()
    assert spent <= budget_usd
    assert spent == pytest.approx(sum(api.paid.values()) * 3 * 10 / 1e6)  # two words asked, one answered
    tally, entries = ask_mock(api, ledger_url, PROMPTS, prices_usd=prices)
    assert all(entries)
    assert tally.reused + tally.asked == 60
    assert set(api.paid.values()) == {1}


def test_a_budget_below_the_first_request_is_a_mistake(api: MockApi, ledger_url: Path | str) -> None:
    for budget in (Budget(usd=0.0), Budget(usd=0.0004), Budget(tokens=40)):
        with pytest.raises(UserError, match="below what the first request may take"):
            ask_mock(api, ledger_url, PROMPTS, Limits((budget,)), prices_usd=Prices(prompt=10.0, completion=10.0))
    assert not api.asked


def test_a_token_budget_is_never_exceeded(api: MockApi, ledger_url: Path | str) -> None:
    with pytest.raises(FellShort, match=r"100 tokens a run is reached.* 4\d rows are owed, about 1\d\d tokens more"):
        ask_mock(api, ledger_url, PROMPTS, Limits((Budget(tokens=100),)))
    assert 0 < sum(api.paid.values()) * 3 <= 100


def test_a_bug_in_a_model_is_a_traceback_and_keeps_what_was_answered(ledger_url: Path | str) -> None:
    class Broken(Model):
        identity, concurrency = "broken", 1
        terms: str | None = None
        prices: Prices | None = None

        def preflight(self) -> None: ...

        async def complete(self, request: Request) -> Completion:
            if request.messages[0].content == "row 2":
                raise ZeroDivisionError("a bug")
            return Completion("fine", "stop")

        async def close(self) -> None: ...

        def unload(self) -> None: ...

    ledger = Ledger(ledger_url)
    keyed = [(r.key("broken"), r) for r in requests_for(PROMPTS)]
    with pytest.raises(ZeroDivisionError):
        ask(keyed, Broken(), ledger, run="test")
    entries = list(ledger.read([key for key, _ in keyed]))
    assert [e and e.status for e in entries[:4]] == ["ok", "ok", None, None]
    ledger.close()


def test_two_processes_never_ask_the_same_row(desk: Desk, ledger_url: Path | str) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(300)])
    with serving(latency_s=0.05) as api:
        knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}
        recipes = [desk.recipe(name, models={"teacher": {"openai_api": knobs}}) for name in ("one", "two")]
        running = [desk.command("run", recipe, "--until", "answers", "--json") for recipe in recipes]
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, out + err
        assert set(api.asked.values()) == {1}
        assert len(api.asked) == 300


@pytest.mark.parametrize("killed_after", [20, 150])
def test_a_kill_loses_only_what_was_in_flight(desk: Desk, ledger_url: Path | str, killed_after: int) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(300)])
    with serving(latency_s=0.05) as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}}
        recipe = desk.recipe(models={"teacher": teacher})
        process = desk.command("run", recipe, "--json")
        while sum(api.paid.values()) < killed_after:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = sum(api.paid.values())
        time.sleep(0.2)
        summary = desk.run(recipe)
        again = sum(count > 1 for count in api.asked.values())
        # 8 in flight, and what arrived within the 0.2 s before the kill: at most 4 rounds of 8.
        assert again <= 40
        assert summary["reused"] >= before - 40
        assert summary["stages"]["answers"]["rows_out"] == 300
        assert [row["text"] for row in desk.rows(summary, "answers")] == [label_of(f"row {i}") for i in range(300)]


def test_ctrl_c_drains_and_keeps_everything(desk: Desk, ledger_url: Path | str) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(400)])
    with serving(latency_s=0.1) as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}}
        recipe = desk.recipe(models={"teacher": teacher})
        process = desk.command("run", recipe, "--json")
        while sum(api.paid.values()) < 40:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert '"status": "interrupted"' in out
        assert "Traceback" not in err
        assert sum(api.paid.values()) < 400
        desk.run(recipe)
        assert set(api.asked.values()) == {1}  # what was in flight was waited for, nothing was asked twice


def test_a_failed_ledger_address_is_one_line_without_the_password(desk: Desk) -> None:
    desk.seeds([{"prompt": "good"}])
    url = "postgresql+nosuchdriver://me:hunter2@localhost/x"
    message = desk.llm_distill("run", desk.recipe(), code=2, LLM_DISTILL_LEDGER=url)
    assert "ledger" in message
    assert "hunter2" not in message


def test_unavailable_is_asked_again_without_blocking_others(ledger_url: Path | str) -> None:
    order: list[str] = []

    class Slow(Model):
        identity, concurrency = "slow", 1
        terms: str | None = None
        prices: Prices | None = None

        def preflight(self) -> None: ...

        async def complete(self, request: Request) -> Completion:
            prompt = request.messages[0].content
            order.append(prompt)
            await asyncio.sleep(0)
            if order.count("row 0") == 1 and prompt == "row 0":
                raise Unavailable("busy", retry_after_s=0.3)
            return Completion("fine", "stop")

        async def close(self) -> None: ...

        def unload(self) -> None: ...

    ledger = Ledger(ledger_url)
    ask([(r.key("slow"), r) for r in requests_for(PROMPTS[:5])], Slow(), ledger, run="test")
    ledger.close()
    assert order == ["row 0", "row 1", "row 2", "row 3", "row 4", "row 0"]
