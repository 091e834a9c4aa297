"""Endpoints that are not there, refuse us, or say odd things."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_distill.ask import ask
from llm_distill.errors import FellShort, Interrupted, Unavailable, UserError
from llm_distill.ledger import Ledger
from llm_distill.limits import Budget, Limits, backoff_s
from llm_distill.models import Model, openai_api
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.refusals import retry_after_s
from llm_distill.models.wire import completion
from llm_distill.records import Completion, Request, Sampling
from tests.conftest import Desk
from tests.mock_api import MockApi, label_of, serving
from tests.test_ask import PROMPTS, ask_mock, requests_for


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1", "https://127.0.0.1:{tls}/v1"]
)
def test_nobody_there_is_found_before_the_rows_are_queued(desk: Desk, address: str) -> None:
    """Refused, no such host, no TLS: one line, exit code 2, whatever the number of rows."""
    desk.seeds([{"prompt": f"row {i}"} for i in range(3000)])
    with serving() as api:
        url = address.format(port=_closed_port(), tls=api.url.split(":")[2].split("/")[0])
        recipe = desk.recipe(models={"teacher": {"openai_api": {"model": "m", "base_url": url, "api_key_env": None}}})
        start = time.monotonic()
        message = desk.llm_distill("run", recipe, code=2)
        assert f"cannot reach {url}" in message
        assert time.monotonic() - start < 30
        assert not api.asked


@pytest.mark.parametrize("form", ["http://{}", "{}"])
def test_a_proxy_that_refuses_is_found_before_anything_is_charged(
    api: MockApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("https_proxy", form.format(api.url.removeprefix("http://").removesuffix("/v1")))
    with pytest.raises(UserError, match=r"example\.invalid/v1 through the proxy in https_proxy: the proxy says HTTP 4"):
        ask_mock(api, tmp_path / "l", PROMPTS, base_url="https://example.invalid/v1")
    ledger = Ledger(tmp_path / "l")
    assert ledger.spent("test").tokens == 0
    ledger.close()


def test_a_connection_that_a_proxy_refuses_is_not_billed(
    api: MockApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", api.url.removesuffix("/v1"))
    monkeypatch.setattr(OpenAIModel, "probe", Model.probe)  # it refuses later only
    _, entries = ask_mock(api, tmp_path / "l", PROMPTS[:1], Limits(retries=1), base_url="https://example.invalid/v1")
    assert [(e.status, e.charged_tokens) for e in entries if e] == [("failed", 0)]


def test_what_is_answered_needs_nobody_there(desk: Desk) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(5)])
    with serving() as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}
        recipe = desk.recipe(models={"teacher": teacher})
        desk.run(recipe)
    assert desk.run(recipe, "--from", "answers")["reused"] == 5


@pytest.mark.parametrize("fault", ["400:logprobs", "422:logprobs"])
def test_logprobs_that_are_refused_stop_everything(desk: Desk, api: MockApi, fault: str) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(500)])
    api.faults = {f"row {i}": [fault] for i in range(500)}
    teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 4}}
    recipe = desk.recipe(models={"teacher": teacher}, answers={"top_logprobs": 25})
    message = desk.llm_distill("run", recipe, code=2)
    assert "refuses answers.top_logprobs: 25" in message
    assert "at most 20" in message
    assert sum(api.asked.values()) <= 5


def test_logprobs_that_never_come_are_an_error_and_the_answers_stay(api: MockApi, tmp_path: Path) -> None:
    api.faults = {p: ["no_logprobs"] for p in PROMPTS}
    with pytest.raises(UserError, match="without any logprobs"):
        ask_mock(api, tmp_path / "l", PROMPTS, sampling=Sampling(max_tokens=8, top_logprobs=5))
    paid = sum(api.paid.values())
    api.faults = {}
    tally, entries = ask_mock(api, tmp_path / "l", PROMPTS, sampling=Sampling(max_tokens=8, top_logprobs=5))
    assert all(entries)
    assert set(api.paid.values()) == {1}
    assert tally.reused == paid >= 20


def test_a_nan_among_the_logprobs_costs_the_row_its_logprobs_only(api: MockApi, tmp_path: Path) -> None:
    api.faults["row 1"] = ["nan_logprob"]
    _, entries = ask_mock(api, tmp_path / "l", PROMPTS[:3], sampling=Sampling(max_tokens=8, top_logprobs=2))
    assert [e and (e.status, e.text, e.logprobs is None) for e in entries] == [
        ("ok", label_of(f"row {i}"), i == 1) for i in range(3)
    ]


@pytest.mark.parametrize("said", ["text_plain", "text_event-stream", "created"])
def test_a_body_is_read_whatever_it_says_it_is(api: MockApi, tmp_path: Path, said: str) -> None:
    api.faults = {p: [said] for p in PROMPTS[:5]}
    tally, entries = ask_mock(api, tmp_path / "l", PROMPTS[:5])
    assert [e and e.text for e in entries] == [label_of(p) for p in PROMPTS[:5]]
    assert tally.retried == 0


def test_a_provider_that_breaks_down_is_not_asked_for_ever(api: MockApi, tmp_path: Path) -> None:
    prompts = [f"row {i}" for i in range(20_000)]
    api.faults = {p: ["400"] for p in prompts}
    with pytest.raises(FellShort, match=r"requests failed, more than max_failed = 0\.05"):
        ask_mock(api, tmp_path / "l", prompts, concurrency=16)
    assert sum(api.asked.values()) < 400  # a share of 20,000 is a thousand: no need to wait for it


def test_every_row_ends_in_one_status_under_many_faults(api: MockApi, tmp_path: Path) -> None:
    """Nine in a hundred requests go wrong in a way that may pass, some more in ways that do not; all counts add up."""
    rng = random.Random(1)
    prompts = [f"row {i}" for i in range(600)]
    passing = ["429", "429:0", "500", "503", "reset", "reset_after", "cut", "empty", "empty_body", "html"]
    lasting = {"400": "failed", "length": "truncated", "content_filter": "filtered", "refusal": "refused"}
    expected = {}
    for prompt in prompts:
        draw = rng.random()
        expected[prompt] = "ok"
        if draw < 0.3:
            api.faults[prompt] = [rng.choice(passing)]
        elif draw < 0.34:
            fault = rng.choice(list(lasting))
            api.faults[prompt], expected[prompt] = [fault], lasting[fault]
    tally, entries = ask_mock(api, tmp_path / "l", prompts, concurrency=64)
    assert [e and e.status for e in entries] == list(expected.values())
    assert [e and e.text for e in entries if e and e.status == "ok"] == [
        label_of(p) for p, status in expected.items() if status == "ok"
    ]
    counts = Counter(expected.values())
    assert (tally.asked, tally.failed, tally.answered) == (600, counts["failed"], 600 - counts["failed"])
    assert set(api.paid.values()) == {1}


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_at_any_moment_costs_at_most_the_last_moments(desk: Desk, seed: int) -> None:
    """No answer that was delivered more than 200 ms before the kill is asked again."""
    rng = random.Random(seed)
    desk.seeds([{"prompt": f"row {i}"} for i in range(600)])
    with serving(latency_s=0.05) as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 32}}
        recipe = desk.recipe(models={"teacher": teacher})
        process = desk.command("run", recipe, "--until", "answers", "--json")
        moment = rng.randrange(1, 560)
        while len(api.delivered) < moment:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        killed = time.monotonic()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        safe = {prompt for prompt, at in api.delivered.items() if at < killed - 0.2}
        before = Counter(api.asked)
        summary = desk.run(recipe, "--until", "answers")
        again = {prompt for prompt in before if api.asked[prompt] > before[prompt]}
        assert not again & safe
        assert summary["stages"]["answers"]["rows_out"] == 600
        assert [row["text"] for row in desk.rows(summary, "answers")] == [label_of(f"row {i}") for i in range(600)]


def test_one_401_is_enough_whatever_the_number_of_rows(desk: Desk) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(500)])
    with serving(key="sk-right") as api:
        knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": "MOCK_KEY", "concurrency": 64}
        recipe = desk.recipe(models={"teacher": {"openai_api": knobs}})
        message = desk.llm_distill("run", recipe, code=2, MOCK_KEY="sk-wrong")
        assert "refuses the key in MOCK_KEY: HTTP 401" in message
        assert len(api.bodies) == 0  # the list of models is refused before anything is asked


def test_a_run_says_how_long_it_waits_when_stopped(desk: Desk) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(200)])
    with serving(latency_s=0.3) as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 4}}
        process = desk.command("run", desk.recipe(models={"teacher": teacher}, answers={"drain_s": 7}), "--json")
        while not api.asked:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert "waiting up to 7 s" in err
        assert json.loads(out.splitlines()[-1])["status"] == "interrupted"


@pytest.mark.parametrize(
    "said", ["nan", "1e400", "soon", "Wed, 21 Oct 2015 07:28:00 -0000", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"]
)
def test_a_wait_that_is_none_is_not_kept(said: str) -> None:
    wait_s = retry_after_s(said)
    assert backoff_s(1, wait_s) <= 1.0


def test_a_wait_may_be_a_date_and_over() -> None:
    assert backoff_s(1, retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT")) <= 0.1


@pytest.mark.parametrize("status", ["498", "521", "523", "530"])
def test_a_server_that_a_gateway_does_not_reach_is_asked_again(api: MockApi, tmp_path: Path, status: str) -> None:
    api.faults = {p: [status] for p in PROMPTS[:5]}
    tally, entries = ask_mock(api, tmp_path / "l", PROMPTS[:5])
    assert ([e and e.status for e in entries], tally.retried) == (["ok"] * 5, 5)


def test_no_connection_is_used_that_its_server_is_about_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_api, "_IDLE_S", 0.2)
    cut_off = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            since = time.monotonic()
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:  # closed by the other side
                return writer.close()
            length = re.search(rb"Content-Length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            if time.monotonic() - since > 0.3:  # it crosses the end of an idle connection on its way
                cut_off.append(head)
                return writer.close()
            body = _body(_FINE)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async def asked() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        model = OpenAIModel(model="m", base_url=url, api_key_env=None)
        for _ in range(3):
            assert (await model.complete(requests_for(["row"])[0])).text == "fine"
            await asyncio.sleep(0.4)
        await model.close()
        server.close()

    asyncio.run(asked())
    assert not cut_off


def test_limits_are_plain_values() -> None:
    assert Limits() == Limits(budgets=(), retries=6, max_failed=0.05, drain_s=20.0)


def _body(choice: dict[str, Any], **more: Any) -> bytes:
    whole: dict[str, Any] = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    return json.dumps(whole | more).encode()


_FINE: dict[str, Any] = {"message": {"content": "fine"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "body",
    [
        _body({"message": {"content": [{"type": "thinking"}, {"type": "text", "text": "fine"}]}}),
        _body(_FINE, usage={"prompt_tokens": 3.0, "completion_tokens": 1}),
        _body(_FINE, system_fingerprint=5),
        b"\xef\xbb\xbf" + _body(_FINE),
        b"\n \n" * 9 + _body(_FINE) + b"\n",
        _body({"message": {"content": "fine", "refusal": False}, "finish_reason": "stop"}),
        _body(_FINE | {"logprobs": []}),
        _body(_FINE | {"logprobs": {"content": [{"token": 5}]}}),
    ],
)
def test_a_paid_answer_is_kept_whatever_stands_beside_it(body: bytes) -> None:
    answer = completion(body)
    assert (answer.text, answer.status, answer.prompt_tokens, answer.completion_tokens) == ("fine", "ok", 3, 1)


@pytest.mark.parametrize("thinking", ["It says good.", [{"type": "text", "text": "It says "}, {"text": "good."}]])
def test_reasoning_that_comes_as_a_part_is_kept_apart(thinking: Any) -> None:
    """As Mistral's models send it."""
    parts = [
        {"type": "thinking", "thinking": thinking},
        {"type": "text", "text": "po"},
        {"type": "text", "text": "sitive"},
    ]
    answer = completion(_body({"message": {"content": parts}, "finish_reason": "stop"}))
    assert (answer.text, answer.reasoning, answer.status) == ("positive", "It says good.", "ok")


@pytest.mark.parametrize("count", [-1, 1 << 31, 1 << 63, 1e30])
def test_a_count_that_no_request_has_is_unknown_and_reaches_no_account(count: float) -> None:
    answer = completion(_body(_FINE, usage={"prompt_tokens": count, "completion_tokens": 1}))
    assert (answer.text, answer.status, answer.prompt_tokens, answer.completion_tokens) == ("fine", "ok", None, 1)


@pytest.mark.parametrize("choices", [5, "none", {"0": _FINE}, None, [None]])
def test_choices_that_are_no_list_of_them_are_none(choices: Any) -> None:
    with pytest.raises(Unavailable, match=r'no choices: \{"choices"'):
        completion(json.dumps({"choices": choices, "error": None}).encode())


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource", "tool_calls", "stop"])
def test_what_broke_off_or_is_empty_is_no_answer(reason: str) -> None:
    text = "half an ans" if reason in ("error", "abort", "insufficient_system_resource") else None
    with pytest.raises(Unavailable) as met:
        completion(_body({"message": {"content": text}, "finish_reason": reason}))
    assert (met.value.billed, met.value.usage) == (True, (3, 1))


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("max_tokens", "truncated"),
        ("model_length", "truncated"),
        ("content_filter: PROHIBITED_CONTENT", "filtered"),
        ("SAFETY", "filtered"),
        ("refusal", "refused"),
    ],
)
def test_the_words_of_other_servers_for_an_end(reason: str, status: str) -> None:
    for text in ("half", None):
        assert completion(_body({"message": {"content": text}, "finish_reason": reason})).status == status


def test_one_flagged_row_does_not_stop_the_others(api: MockApi, tmp_path: Path) -> None:
    api.faults["row 5"] = ["403"]
    _, entries = ask_mock(api, tmp_path / "l", PROMPTS[:20], concurrency=1)
    assert [e and e.status for e in entries] == ["failed" if i == 5 else "ok" for i in range(20)]


@pytest.mark.parametrize(
    "said",
    [
        "400:content_filter: The response was filtered due to the prompt triggering the content management policy.",
        "400:Content Exists Risk",
        "403:the model requires moderation. Your input was flagged for violence.",
    ],
)
def test_a_prompt_that_a_filter_stops_is_filtered_charged_and_not_asked_again(
    api: MockApi, tmp_path: Path, said: str
) -> None:
    api.faults["row 0"] = [said]
    for _ in range(2):
        _, (stopped, other) = ask_mock(api, tmp_path / "l", PROMPTS[:2], concurrency=1)
        assert stopped
        assert (stopped.status, stopped.reason, stopped.attempts, stopped.cost_usd) == (
            "filtered",
            "content_filter",
            1,
            None,
        )
        assert stopped.charged_tokens > 8  # the most that it may be billed
        assert other
        assert other.status == "ok"
    assert api.asked == {"row 0": 1, "row 1": 1}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("400:API key not valid. Please pass a valid API key.", "refuses a request without a key .* HTTP 400"),
        ("400:Your credit balance is too low to access the API.", "no credit left"),
        ("400:Invalid model: mock-larger", "'mock-large', and turns down .* Invalid model: mock-larger"),
        ("400:mock-large is not a valid model ID", "'mock-large', and turns down .* not a valid model ID"),
        ("404:No endpoints found that support the parameters", "'mock-large', and turns down .* No endpoints found"),
    ],
)
def test_what_stops_every_row_is_told_once_in_the_providers_words(
    api: MockApi, tmp_path: Path, said: str, told: str
) -> None:
    api.faults = {p: [said] for p in PROMPTS}
    with pytest.raises(UserError, match=told):
        ask_mock(api, tmp_path / "l", PROMPTS, concurrency=2)
    assert sum(api.asked.values()) <= 2


def test_a_redirect_is_a_wrong_address(api: MockApi, tmp_path: Path) -> None:
    api.faults = {p: ["301"] for p in PROMPTS}
    with pytest.raises(UserError, match="redirects elsewhere"):
        ask_mock(api, tmp_path / "l", PROMPTS, concurrency=2)


class _Lossy(Model):
    """Its first try is lost and may be billed; its second one never ends."""

    identity, concurrency, terms, prices = "lossy", 1, None, None

    def __init__(self, usage: tuple[int, int] | None = None) -> None:
        self.tries, self.usage = 0, usage

    async def complete(self, request: Request) -> Completion:
        self.tries += 1
        if self.tries == 1 or self.usage:
            raise Unavailable("lost", 0.0, billed=True, usage=self.usage)
        for wait_s in (0.0, 0.3):  # Ctrl-C, and once more
            threading.Timer(wait_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(60)
        raise AssertionError


def test_a_try_that_a_second_ctrl_c_cuts_off_stays_charged(ledger_url: Path | str) -> None:
    ledger, model = Ledger(ledger_url), _Lossy()
    (request,) = requests_for(["row 0"])
    with pytest.raises(Interrupted):
        ask([(request.key("lossy"), request)], model, ledger, run="test")
    assert ledger.spent("test").tokens == 2 * (model.count(request) + request.sampling.max_tokens)
    ledger.close()


def test_a_lost_try_that_cost_nothing_does_not_wait_for_ever(ledger_url: Path | str) -> None:
    ledger, model = Ledger(ledger_url), _Lossy(usage=(0, 0))
    (request,) = requests_for(["row 0"])
    once = model.count(request) + request.sampling.max_tokens
    with pytest.raises(FellShort, match="is reached"):
        ask([(request.key("lossy"), request)], model, ledger, run="test", limits=Limits((Budget(tokens=once),)))
    assert ledger.spent("test").tokens == 0
    ledger.close()
