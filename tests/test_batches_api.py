"""Provider batches: what goes into a file, what comes back from one, and who pays for what when anything breaks."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill import batch_course
from llm_distill.ask import Group, ask, ask_all
from llm_distill.errors import DistillError, FellShort, Interrupted, Rejected, Unavailable, UserError
from llm_distill.ledger import Ledger
from llm_distill.ledger_batches import BatchBook
from llm_distill.ledger_spending import names
from llm_distill.limits import Budget, Limits, Tally
from llm_distill.models import Model
from llm_distill.models.batch_lines import full_files, outcomes
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.openai_batch import OpenAIBatchModel
from llm_distill.prices import Prices
from llm_distill.records import Completion, Entry, Sampling
from tests.conftest import Desk
from tests.mock_batches import MockBatches, serving_batches
from tests.test_ask import requests_for

PROMPTS = [f"row {i}" for i in range(30)]
RUN = "nightly/1"


@pytest.fixture
def provider() -> Iterator[MockBatches]:
    with serving_batches() as running:
        yield running


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_course, "backoff_s", lambda _attempt, _wait: 0.01)


def batch_model(provider: MockBatches, **knobs: Any) -> OpenAIBatchModel:
    settings: dict[str, Any] = {"model": "mock-large", "base_url": provider.url, "api_key_env": None, "poll_s": 0.01}
    return OpenAIBatchModel(**settings | knobs)


def ask_batches(
    provider: MockBatches, ledger_url: Path | str, prompts: list[str], limits: Limits = Limits(), **knobs: Any
) -> tuple[Tally, list[Entry | None]]:
    """Ask through batches; every row of what was asked must be accounted for."""
    model = batch_model(provider, **knobs)
    ledger = Ledger(ledger_url)
    keyed = [(r.key(model.identity), r) for r in requests_for(prompts)]
    try:
        tally = ask(keyed, model, ledger, run=RUN, limits=limits, total=len(keyed))
        assert tally.answered + tally.failed + tally.reused == len(prompts)
        return tally, list(ledger.read([key for key, _ in keyed]))
    finally:
        ledger.close()


def settled(entries: list[Entry | None]) -> list[Entry]:
    assert all(entries)
    return [entry for entry in entries if entry]


def answered_once(provider: MockBatches, prompts: list[str]) -> None:
    """The proof, by the provider's own books: each prompt was worked on once, and never held by two batches at a time."""
    assert provider.paid == Counter(prompts)
    assert provider.overlaps == 0


# --- lines and files ---


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 20), st.integers(50, 200))
def test_a_file_is_full_at_whichever_limit_comes_first(sizes: list[int], max_requests: int, max_bytes: int) -> None:
    counts = full_files(sizes, max_requests, max_bytes)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    files = [sizes[start:end] for start, end in zip([0, *ends], [*ends, len(sizes)], strict=True)]
    assert all(len(file) <= max_requests and sum(file) <= max_bytes for file in files)
    for file, following in itertools.pairwise(files):  # not one row more would have gone in
        assert len(file) == max_requests or sum(file) + following[0] > max_bytes


def _said(key: str, text: str = "yes", status: int = 200) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    body = {"choices": [choice]} if status < 300 else {"error": {"message": "no", "code": "why"}}
    response = {"status_code": status, "body": body}
    return json.dumps({"id": "x", "custom_id": key, "response": response, "error": None}).encode() + b"\n"


@given(
    st.lists(st.sampled_from(["answer", "201", "429", "400", "expired", "missing"]), min_size=1, max_size=30),
    st.lists(st.sampled_from([b"\n", b"\xff\xfe\n", b"[]\n", b'{"custom_id": 1}\n', b'{"custom_id":"k0","resp'])),
    st.booleans(),
    st.randoms(),
)
def test_each_line_speaks_of_its_own_row(
    fates: list[str], junk: list[bytes], twice: bool, chance: random.Random
) -> None:
    keys = [f"k{i}" for i in range(len(fates))]
    lines = list(junk)
    for key, fate in zip(keys, fates, strict=True):
        if fate == "expired":
            lines.append(json.dumps({"custom_id": key, "response": None, "error": {"code": "batch_expired"}}).encode())
        elif fate != "missing":
            lines += [_said(key, f"to {key}", 200 if fate == "answer" else int(fate))] * (2 if twice else 1)
    lines.append(_said("a stranger"))
    chance.shuffle(lines)
    stray: Counter[str] = Counter()
    found = dict(outcomes(lines, keys, stray))
    kinds = {"answer": Completion, "201": Completion, "429": Unavailable, "400": Rejected, "expired": Unavailable}
    assert {k: type(o) for k, o in found.items()} == {
        k: kinds[f] for k, f in zip(keys, fates, strict=True) if f != "missing"
    }
    assert all(o.text == f"to {k}" for k, o in found.items() if isinstance(o, Completion))
    final = sum(fate in ("answer", "201", "400") for fate in fates)
    assert stray["unknown"] == 1
    assert stray["repeated"] == (final if twice else 0)
    assert stray["unreadable"] == sum(bool(j.strip()) for j in junk)


def test_the_first_answer_stands_and_an_error_gives_way_to_it() -> None:
    lines = [_said("a", status=429), _said("a", "first"), _said("a", "second"), _said("a", status=400)]
    stray: Counter[str] = Counter()
    found = list(outcomes(lines, ["a"], stray))
    assert [getattr(o, "text", "error") for _, o in found] == ["error", "first"]
    assert stray == {"repeated": 2}


@pytest.mark.parametrize("error", ["", "none", {}, {"code": 0, "message": ""}, []])
def test_an_answer_is_one_whatever_its_line_calls_an_error(error: Any) -> None:
    line = json.loads(_said("k")) | {"error": error}
    ((_, outcome),) = outcomes([json.dumps(line).encode()], ["k"], Counter())
    assert isinstance(outcome, Completion)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 500, "message": "overloaded"}, "500: overloaded"),
        ("overloaded", "no response: overloaded"),
        ({"code": "batch_expired"}, "batch_expired"),
        (None, "no response"),
    ],
)
def test_an_error_tells_its_reason_however_it_is_written(error: Any, reason: str) -> None:
    line = {"custom_id": "k", "response": None, "error": error}
    ((_, outcome),) = outcomes([json.dumps(line).encode()], ["k"], Counter())
    assert (type(outcome), str(outcome)) == (Unavailable, reason)


def test_a_prompt_that_a_filter_stops_is_filtered() -> None:
    line = json.dumps(
        {
            "custom_id": "k",
            "response": {"status_code": 400, "body": {"error": {"code": "content_filter", "message": ""}}},
        }
    )
    ((_, outcome),) = outcomes([line.encode()], ["k"], Counter())
    assert isinstance(outcome, Completion)
    assert outcome.status == "filtered"


def test_a_line_with_nan_for_a_logprob_still_has_its_answer() -> None:
    text = _said("a").replace(
        b'"finish_reason"', b'"logprobs": {"content": [{"token": "y", "logprob": NaN}]}, "finish_reason"'
    )
    ((_, found),) = outcomes([text], ["a"], Counter())
    assert isinstance(found, Completion)
    assert (found.text, found.logprobs) == ("yes", None)


def test_both_roads_send_the_same_body_and_share_their_answers(provider: MockBatches, ledger_url: Path | str) -> None:
    knobs: dict[str, Any] = {"model": "mock-large", "base_url": provider.url + "/", "api_key_env": None}
    knobs |= {"max_tokens_field": "max_completion_tokens", "extra_body": {"service": "x"}}
    direct, batched = OpenAIModel(**knobs), OpenAIBatchModel(**knobs, poll_s=0.01)
    assert direct.identity == batched.identity
    sampling = Sampling(0.5, 0.9, 8, ("\n",), 3, 2)
    keyed = [(r.key(direct.identity), r) for r in requests_for(PROMPTS[:4], sampling)]
    ledger = Ledger(ledger_url)
    assert ask(keyed[:2], direct, ledger, run=RUN).answered == 2
    assert ask(keyed[:3], batched, ledger, run=RUN).reused == 2
    assert ask(keyed[:4], direct, ledger, run=RUN).reused == 3
    sent = [json.loads(text) for content in provider.contents.values() for text in content.splitlines()]
    asked = [row for row in sent if "method" in row]
    assert [row["custom_id"] for row in asked] == [keyed[2][0]]
    assert asked[0]["body"] == provider.api.bodies[0] | {"messages": asked[0]["body"]["messages"]}
    assert [e and e.logprobs is not None for e in ledger.read([k for k, _ in keyed])] == [True] * 4
    ledger.close()


# --- the whole way ---


def test_every_row_gets_its_own_answer_whatever_the_order(provider: MockBatches, ledger_url: Path | str) -> None:
    tally, entries = ask_batches(provider, ledger_url, PROMPTS, max_requests=12)
    assert [e.text for e in settled(entries)] == [f"the answer to {p}" for p in PROMPTS]
    assert {e.served_model for e in settled(entries)} == {"mock-large-2026-01-01"}
    assert (tally.asked, tally.answered, tally.reused) == (30, 30, 0)
    assert [len(b["_rows"]) for b in provider.batches.values()] == [12, 12, 6]
    answered_once(provider, PROMPTS)
    tally, _ = ask_batches(provider, ledger_url, [*PROMPTS, "one more"])
    assert (tally.asked, tally.reused) == (1, 30)


def test_files_are_split_by_bytes_and_a_row_above_the_limit_fails(
    provider: MockBatches, ledger_url: Path | str
) -> None:
    provider.max_bytes = 1000
    prompts = [*PROMPTS, "x" * 2000]
    tally, entries = ask_batches(provider, ledger_url, prompts, max_bytes=1000)
    assert (tally.answered, tally.failed) == (30, 1)
    assert "bytes, and a batch 1,000 at most" in (settled(entries)[-1].reason or "")
    assert len(provider.batches) > 3
    answered_once(provider, PROMPTS)


def test_the_same_question_twice_is_asked_once(provider: MockBatches, ledger_url: Path | str) -> None:
    tally, _ = ask_batches(provider, ledger_url, ["twin", *PROMPTS[:5], "twin"], max_requests=3)
    assert tally.asked == 6
    answered_once(provider, ["twin", *PROMPTS[:5]])


@pytest.mark.parametrize(
    ("fate", "status", "attempts", "paid"),
    [
        ("429", "ok", 2, 1),
        ("500", "ok", 2, 1),
        ("missing", "ok", 2, 1),
        ("400", "failed", 1, 0),
        ("twice", "ok", 1, 1),
        ("stranger", "ok", 1, 1),
        ("junk", "ok", 1, 1),
        ("cut_line", "ok", 2, 2),
        ("empty", "ok", 2, 2),
        ("length", "truncated", 1, 1),
        ("content_filter", "filtered", 1, 1),
        ("refusal", "refused", 1, 1),
        ("no_usage", "ok", 1, 1),
    ],
)
def test_each_row_ends_in_one_status(
    provider: MockBatches, tmp_path: Path, fate: str, status: str, attempts: int, paid: int
) -> None:
    provider.fates["row 3"] = [fate]
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:6])
    found = settled(entries)
    assert [(e.status, e.attempts) for e in found] == [(status, attempts) if i == 3 else ("ok", 1) for i in range(6)]
    assert [e.text for i, e in enumerate(found) if i != 3] == [f"the answer to row {i}" for i in range(6) if i != 3]
    assert tally.failed == (status == "failed")
    assert provider.paid["row 3"] == paid
    assert all(provider.paid[p] == 1 for p in PROMPTS[:6] if p != "row 3")
    assert provider.overlaps == 0


def test_stray_lines_are_counted(provider: MockBatches, tmp_path: Path) -> None:
    provider.fates = {"row 0": ["stranger"], "row 1": ["twice"], "row 2": ["junk"], "row 3": ["cut_line"]}
    ask_batches(provider, tmp_path / "ledger", PROMPTS[:6])
    ledger = Ledger(tmp_path / "ledger")
    first, second = BatchBook(ledger).history()
    ledger.close()
    assert first["stray"] == {"unknown": 1, "repeated": 1, "unreadable": 3}
    assert (second["size"], second["attempt"], second["stray"]) == (1, 2, {})


def test_a_row_that_never_succeeds_fails_and_is_owed_again(provider: MockBatches, tmp_path: Path) -> None:
    provider.fates["row 0"] = ["500"] * 3
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:3], Limits(retries=2))
    failed = settled(entries)[0]
    assert (failed.status, failed.attempts, failed.reason) == ("failed", 3, "HTTP 500: server_error try again")
    assert (tally.failed, tally.retried) == (1, 2)
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:3])
    assert (tally.asked, tally.reused, settled(entries)[0].status) == (1, 2, "ok")
    answered_once(provider, PROMPTS[:3])


@pytest.mark.parametrize("end", ["expired", "cancelled", "no_output", "bare"])
def test_what_a_batch_leaves_undone_is_asked_again(provider: MockBatches, ledger_url: Path | str, end: str) -> None:
    provider.ends = [end]
    tally, entries = ask_batches(provider, ledger_url, PROMPTS)
    assert [e.text for e in settled(entries)] == [f"the answer to {p}" for p in PROMPTS]
    assert (tally.answered, tally.failed) == (30, 0)
    if end in ("expired", "cancelled"):
        assert tally.retried == 15
    if end != "no_output":  # an output that is missing was paid for
        answered_once(provider, PROMPTS)


def test_a_batch_with_nothing_but_errors_has_no_output(provider: MockBatches, tmp_path: Path) -> None:
    provider.fates = {p: ["400"] for p in PROMPTS[:4]}
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:4])
    assert {e.reason for e in settled(entries)} == {"HTTP 400: server_error try again"}
    assert tally.failed == 4
    assert provider.batches["batch_0"]["output_file_id"] is None


def test_a_batch_cancelled_from_outside_gives_what_it_has(provider: MockBatches, tmp_path: Path) -> None:
    provider.ends = ["cancelled"]
    provider.trouble["retrieve"] = ["", "pause"]
    _, entries = _with_a_hand_in(provider, tmp_path, lambda: provider.batches["batch_0"].update(status="cancelling"))
    assert all(e.status == "ok" for e in settled(entries))
    answered_once(provider, PROMPTS)


def _with_a_hand_in(provider: MockBatches, tmp_path: Path, change: Any) -> tuple[Tally, list[Entry | None]]:
    import threading

    def meddle() -> None:
        assert provider.paused.wait(10)
        change()
        provider.resumed.set()

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        return ask_batches(provider, tmp_path / "ledger", PROMPTS)
    finally:
        thread.join()


def test_validation_fails_the_rows_it_names_and_no_others(provider: MockBatches, tmp_path: Path) -> None:
    provider.fates = {"row 2": ["invalid"], "row 7": ["invalid"]}
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    failed = [e for e in settled(entries) if e.status == "failed"]
    assert {e.reason for e in failed} == {"the batch was refused: invalid_request this line is not right"}
    assert (tally.answered, tally.failed) == (28, 2)
    answered_once(provider, [p for p in PROMPTS if p not in ("row 2", "row 7")])


def test_validation_of_the_whole_file_fails_all_of_it(provider: MockBatches, tmp_path: Path) -> None:
    provider.max_requests = 10
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert {e.reason for e in settled(entries)} == {"the batch was refused: too_many_tasks 30 requests, 10 allowed"}
    assert tally.failed == 30
    assert not provider.paid


def test_too_many_failures_stop_the_asking(provider: MockBatches, tmp_path: Path) -> None:
    prompts = [f"many {i}" for i in range(150)]
    provider.fates = {p: ["400"] for p in prompts[:20]}
    with pytest.raises(FellShort, match=r"max_failed = 0\.05"):
        ask_batches(provider, tmp_path / "ledger", prompts)
    ledger, model = Ledger(tmp_path / "ledger"), batch_model(provider)
    kept = list(ledger.read([r.key(model.identity) for r in requests_for(prompts)]))
    ledger.close()
    assert Counter(e.status for e in settled(kept)) == {"ok": 130, "failed": 20}  # the batch was settled whole


# --- the provider's queue ---


def test_a_full_queue_is_waited_for(provider: MockBatches, tmp_path: Path) -> None:
    provider.enqueued_tokens = 25  # ten rows have twenty
    tally, _ = ask_batches(provider, tmp_path / "ledger", PROMPTS, max_requests=10)
    assert (tally.answered, tally.failed, tally.retried) == (30, 0, 0)
    assert "failed" in provider.states()
    answered_once(provider, PROMPTS)


def test_a_batch_too_large_for_the_queue_is_halved(
    provider: MockBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_course, "SMALL", 2)
    provider.enqueued_tokens = 20
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert tally.answered == 30
    assert {e.attempts for e in settled(entries)} == {1}
    answered_once(provider, PROMPTS)


# --- trouble on the line ---


@pytest.mark.parametrize(
    ("call", "faults"),
    [
        ("upload", "500 429:0 reset lost html"),
        ("create", "500 429:0 503 reset lost html"),
        ("retrieve", "500 429:0 reset lost html cut"),
        ("file", "500 reset 404 html"),
        ("content", "500 429:0 reset cut short short"),
        ("delete", "500 reset 404"),
    ],
)
def test_trouble_on_the_line_costs_no_row_and_no_money(
    provider: MockBatches, tmp_path: Path, call: str, faults: str
) -> None:
    provider.trouble[call] = ["", *faults.split()]
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:20], max_requests=5)
    assert {e.status for e in settled(entries)} == {"ok"}
    assert (tally.answered, tally.retried) == (20, 0)
    assert not provider.trouble[call]
    answered_once(provider, PROMPTS[:20])
    assert len(provider.batches) == 4


@pytest.mark.parametrize("names", [True, False], ids=["by its name", "by its file"])
def test_a_start_whose_answer_was_lost_is_found_again(
    provider: MockBatches, ledger_url: Path | str, names: bool
) -> None:
    provider.keeps_metadata = names
    provider.page = 1  # many pages to look through
    provider.trouble = {"create": ["", "lost", "lost", "", "lost"], "listing": ["500", "reset"]}
    tally, _ = ask_batches(provider, ledger_url, PROMPTS, max_requests=6)
    assert tally.answered == 30
    assert len(provider.batches) == 5
    answered_once(provider, PROMPTS)


def test_a_double_is_cancelled(provider: MockBatches, tmp_path: Path) -> None:
    provider.trouble["create"] = ["lost"]
    provider.trouble["listing"] = ["pause"]

    def copy() -> None:
        first = provider.batches["batch_0"]
        provider.batches["batch_1"] = first | {"id": "batch_1", "_rows": []}

    _, entries = _with_a_hand_in(provider, tmp_path, copy)
    assert len(settled(entries)) == 30
    assert provider.batches["batch_1"]["status"] == "cancelling"
    answered_once(provider, PROMPTS)


def test_a_batch_costs_what_its_discount_leaves(provider: MockBatches, tmp_path: Path) -> None:
    prices = Prices(prompt=10.0, completion=100.0, batch_discount=0.5)
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:5], prices_usd=prices)
    whole = sum(10.0 * (e.prompt_tokens or 0) + 100.0 * (e.completion_tokens or 0) for e in settled(entries)) / 1e6
    assert tally.cost_usd == pytest.approx(whole / 2)
    assert whole > 0


def test_an_output_that_is_gone_is_a_failure_that_was_paid_for(provider: MockBatches, tmp_path: Path) -> None:
    provider.trouble = {"content": ["404"], "file": ["404"]}
    prices = Prices(prompt=1.0, completion=1.0)
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS[:3], prices_usd=prices)
    assert tally.failed == 3
    for entry in settled(entries):
        assert "does not have the batch's output" in (entry.reason or "")
        assert entry.charged_tokens > 8
        assert entry.charged_usd > 0


def test_a_provider_that_stays_silent_ends_the_call_and_not_the_batch(
    provider: MockBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_course.Course._patiently, "__kwdefaults__", {"tries": 3, "certain": False})
    provider.trouble["retrieve"] = ["500"] * 3
    with pytest.raises(FellShort, match=r"after 3 tries: .*HTTP 500.* 1 batch goes on at the provider"):
        ask_batches(provider, tmp_path / "ledger", PROMPTS)
    tally, _ = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert (tally.asked, tally.answered) == (0, 30)  # asked before
    answered_once(provider, PROMPTS)


# --- the user's mistakes ---


def test_a_refused_key_stops_at_once_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    with serving_batches(key="sk-other") as provider:
        with pytest.raises(UserError, match=r"refuses the key in SOME_KEY: HTTP 401") as caught:
            ask_batches(provider, tmp_path / "ledger", PROMPTS, api_key_env="SOME_KEY")
        assert "secret" not in str(caught.value)
        assert provider.calls["upload"] == 0
        monkeypatch.setenv("SOME_KEY", "sk-other")
        ask_batches(provider, tmp_path / "ledger", PROMPTS, api_key_env="SOME_KEY")


@pytest.mark.parametrize(
    ("call", "fault", "words"),
    [
        ("upload", "403", "refuses requests without a key .* HTTP 403 at POST /files"),
        ("create", "403", "HTTP 403 at POST /batches"),
        ("create", "400", "refuses POST /batches: HTTP 400: server_error try again"),
        ("upload", "404", "has no Batch API .*Is base_url right"),
    ],
)
def test_a_refusal_leaves_the_rows_to_whoever_asks_next(
    provider: MockBatches, ledger_url: Path | str, call: str, fault: str, words: str
) -> None:
    provider.trouble[call] = [fault]
    with pytest.raises(UserError, match=words) as caught:
        ask_batches(provider, ledger_url, PROMPTS, Limits((Budget(tokens=10**6),)))
    assert "goes on" not in str(caught.value)
    direct, ledger = OpenAIModel(model="mock-large", base_url=provider.url, api_key_env=None), Ledger(ledger_url)
    assert ledger.spent(RUN).tokens == 0
    keyed = [(r.key(direct.identity), r) for r in requests_for(PROMPTS)]
    assert ask(keyed, direct, ledger, run=RUN).answered == 30
    ledger.close()


def test_a_batch_that_the_key_does_not_see_is_not_paid_for_again(provider: MockBatches, tmp_path: Path) -> None:
    provider.trouble["retrieve"] = ["", "404"]
    with pytest.raises(UserError, match=r"does not know the batch batch_0\. Was it made with the key of another"):
        ask_batches(provider, tmp_path / "ledger", PROMPTS)
    tally, _ = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert tally.answered == 30
    answered_once(provider, PROMPTS)


def test_a_missing_package_is_named(provider: MockBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.models.openai_batch.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-distill\[batch\]'"):
        batch_model(provider).preflight()


def test_an_endpoint_without_batches_is_named(provider: MockBatches, tmp_path: Path) -> None:
    provider.serves_batches = False
    with pytest.raises(UserError, match=r"has no Batch API \(HTTP 404 at POST /files\).*openai_api"):
        ask_batches(provider, tmp_path / "ledger", PROMPTS)


# --- money ---


def test_usage_is_charged_and_reservations_are_given_back(provider: MockBatches, ledger_url: Path | str) -> None:
    prices = Prices(prompt=10.0, completion=100.0)
    provider.fates = {"row 1": ["500"], "row 2": ["400"], "row 3": ["no_usage"]}
    provider.ends = ["expired"]
    tally, entries = ask_batches(provider, ledger_url, PROMPTS, max_requests=10, prices_usd=prices)
    ledger = Ledger(ledger_url)
    spent = ledger.spent(RUN)
    ledger.close()
    assert tally.cost_usd is None  # one row came without its usage
    assert spent.tokens == sum(e.charged_tokens for e in settled(entries))
    assert spent.usd == pytest.approx(sum(e.charged_usd for e in settled(entries)), abs=1e-7)
    plain = settled(entries)[0]
    assert plain.prompt_tokens == 2
    assert plain.completion_tokens == 5
    assert plain.charged_tokens == 7


def test_a_budget_is_used_up_and_never_exceeded(provider: MockBatches, ledger_url: Path | str) -> None:
    limits = Limits((Budget(tokens=700),))
    with pytest.raises(FellShort, match="the budget of 700 tokens a run is reached") as caught:
        ask_batches(provider, ledger_url, [f"long {i}" for i in range(200)], limits)
    assert "goes on" not in str(caught.value)
    paid = sum(provider.paid.values())
    ledger = Ledger(ledger_url)
    assert ledger.spent(RUN).tokens == 7 * paid
    ledger.close()
    assert 640 < 7 * paid <= 700  # what was reserved and not needed was used for others
    assert provider.overlaps == 0


# --- kills, stops, other processes, other roads ---

#: Children are forked from a process that has everything imported, so that a kill costs a test no second of starting up.
_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload(["tests.test_batches_api", "openai", "uvloop", "sqlalchemy.dialects.sqlite"])


def _child(task: Any, url: str, ledger_url: Path | str, prompts: list[str], knobs: dict[str, Any]) -> None:
    vars(batch_course)["backoff_s"] = lambda _attempt, _wait: 0.01
    provider = MockBatches(None)
    provider.url = url
    try:
        task(provider, ledger_url, prompts, **knobs)
    except DistillError as error:
        print(error, file=sys.stderr)
        os._exit(130 if isinstance(error, Interrupted) else 1)


def in_a_child(
    provider: MockBatches, ledger_url: Path | str, prompts: list[str], task: Any = ask_batches, **knobs: Any
) -> Process:
    child = _CHILDREN.Process(target=_child, args=(task, provider.url, ledger_url, prompts, knobs))
    child.start()
    return child


def killed(child: Process) -> None:
    assert child.is_alive()
    child.kill()
    child.join()


@pytest.mark.parametrize(
    "where",
    ["upload pause", "upload late", "create pause", "create late", "retrieve late", "content late", "delete late"],
)
def test_a_kill_at_any_point_pays_for_nothing_twice(provider: MockBatches, ledger_url: Path | str, where: str) -> None:
    call, when = where.split()
    provider.trouble[call] = ["", when]
    child = in_a_child(provider, ledger_url, PROMPTS, max_requests=10)
    assert provider.paused.wait(30)
    killed(child)
    if where != "create pause":  # there the start arrives only after the next process has given it up
        provider.resumed.set()
    _a_month_less_a_day_later(ledger_url)
    tally, entries = ask_batches(provider, ledger_url, PROMPTS, max_requests=10)
    assert [e.text for e in settled(entries)] == [f"the answer to {p}" for p in PROMPTS]
    assert tally.answered + tally.reused == 30
    provider.resumed.set()
    time.sleep(0.02)
    assert len(provider.batches) == 3
    answered_once(provider, PROMPTS)
    assert ask_batches(provider, ledger_url, PROMPTS)[0].reused == 30


def _a_month_less_a_day_later(ledger_url: Path | str) -> None:
    """Move every time in the ledger into the past."""
    ledger, seconds = Ledger(ledger_url), 29 * 86_400
    with ledger._transaction() as db:
        for table, columns in (("requests", ("lease_until", "asked_at")), ("batches", ("lease_until", "created"))):
            for column in columns:
                db.exec_driver_sql(f"UPDATE {table} SET {column} = {column} - {seconds}")
    ledger.close()


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_pay_for_nothing_twice(provider: MockBatches, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    prompts = [f"row {i}" for i in range(600)]
    for _ in range(5):
        child = in_a_child(provider, tmp_path / "ledger", prompts, max_requests=100)
        child.join(chance.random() * 0.6)
        if child.is_alive():
            killed(child)
    tally, entries = ask_batches(provider, tmp_path / "ledger", prompts, max_requests=100)
    assert {e.status for e in settled(entries)} == {"ok"}
    assert (tally.answered + tally.reused, tally.failed, tally.retried) == (600, 0, 0)
    answered_once(provider, prompts)
    ledger = Ledger(tmp_path / "ledger")
    assert {batch["state"] for batch in BatchBook(ledger).history()} == {"ended"}
    ledger.close()


def test_a_kill_keeps_the_books_of_every_account(provider: MockBatches, ledger_url: Path | str) -> None:
    provider.trouble["retrieve"] = ["late"]
    prices: dict[str, Any] = {"prices_usd": Prices(prompt=10.0, completion=100.0)}
    child = in_a_child(provider, ledger_url, PROMPTS, **prices)
    assert provider.paused.wait(30)
    killed(child)
    provider.resumed.set()
    _, entries = ask_batches(provider, ledger_url, PROMPTS, **prices)
    ledger = Ledger(ledger_url)
    charged = sum(e.charged_tokens for e in settled(entries))
    names = [RUN, *_accounts(ledger)]
    assert {ledger.spent(name).tokens for name in names} == {charged}  # the run's, the day's, the week's, the month's
    ledger.close()


def _accounts(ledger: Ledger) -> list[str]:
    with ledger._transaction(reading=True) as db:
        return names(json.loads(db.exec_driver_sql("SELECT accounts FROM batches").scalar_one()))


def test_two_processes_at_once_share_the_rows(provider: MockBatches, ledger_url: Path | str) -> None:
    children = [in_a_child(provider, ledger_url, PROMPTS * 20, max_requests=7) for _ in range(2)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    answered_once(provider, PROMPTS)


def test_rows_of_a_live_batch_are_waited_for_and_not_asked(provider: MockBatches, tmp_path: Path) -> None:
    provider.hold = True
    child = in_a_child(provider, tmp_path / "ledger", PROMPTS)
    while not provider.calls["retrieve"]:
        time.sleep(0.01)
    other = in_a_child(provider, tmp_path / "ledger", [*PROMPTS, "one more"])
    while len(provider.batches) < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    provider.hold = False
    for process in (child, other):
        process.join(60)
        assert process.exitcode == 0
    assert [len(b["_rows"]) for b in provider.batches.values()] == [30, 1]
    answered_once(provider, [*PROMPTS, "one more"])


def test_whoever_needs_a_row_takes_over_the_batch_of_a_dead_process(provider: MockBatches, tmp_path: Path) -> None:
    provider.hold = True
    child = in_a_child(provider, tmp_path / "ledger", PROMPTS)
    while not provider.calls["retrieve"]:
        time.sleep(0.01)
    other = in_a_child(provider, tmp_path / "ledger", ["row 3", "row 99"])
    while len(provider.batches) < 2:
        time.sleep(0.01)
    killed(child)
    provider.hold = False
    other.join(60)
    assert other.exitcode == 0
    tally, entries = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert (tally.reused, {e.status for e in settled(entries)}) == (30, {"ok"})
    answered_once(provider, [*PROMPTS, "row 99"])


def _two_models(provider: MockBatches, ledger_url: Path | str, prompts: list[str]) -> None:
    ledger = Ledger(ledger_url)
    models = [batch_model(provider, model=name) for name in ("mock-large", "mock-small")]
    ask_all([(m, [(r.key(m.identity), r) for r in requests_for(prompts)], None) for m in models], ledger, run=RUN)
    ledger.close()


def test_of_two_models_the_first_that_is_done_leaves_the_other_its_batches(
    provider: MockBatches, tmp_path: Path
) -> None:
    provider.held_models = {"mock-small"}
    child = in_a_child(provider, tmp_path / "ledger", PROMPTS, task=_two_models)
    while provider.calls["delete"] < 1:
        time.sleep(0.01)
    time.sleep(0.1)
    ledger = Ledger(tmp_path / "ledger")
    book = BatchBook(ledger)
    (other,) = [batch for batch in book.history() if batch["state"] != "ended"]
    assert other["model"].endswith("mock-small")
    assert book.take(other["id"]) is None
    provider.held_models.clear()
    child.join(60)
    assert child.exitcode == 0
    assert {batch["state"] for batch in book.history()} == {"ended"}
    ledger.close()
    answered_once(provider, PROMPTS * 2)


@pytest.mark.parametrize("tokens", [900, 100_000])
def test_both_roads_side_by_side_share_a_budget(provider: MockBatches, tmp_path: Path, tokens: int) -> None:
    ledger = Ledger(tmp_path / "ledger")
    direct = OpenAIModel(model="mock-small", base_url=provider.url, api_key_env=None, concurrency=4)
    models: list[Model] = [direct, batch_model(provider)]
    prompts = [f"row {i}" for i in range(100)]
    groups: list[Group] = [(m, [(r.key(m.identity), r) for r in requests_for(prompts)], len(prompts)) for m in models]
    limits = Limits((Budget(tokens=tokens),))
    if tokens == 900:
        with pytest.raises(FellShort, match="the budget of 900 tokens a run is reached"):
            ask_all(groups, ledger, run=RUN, limits=limits)
    else:
        assert ask_all(groups, ledger, run=RUN, limits=limits).answered == 200
    paid = sum(provider.paid.values()) + sum(provider.api.paid.values())
    assert ledger.spent(RUN).tokens == 7 * paid
    assert 7 * paid <= tokens
    if tokens == 900:
        assert 7 * paid > 900 - 7 - 54  # no room was left for one more
    ledger.close()


def test_rows_in_batches_are_not_asked_through_the_other_road(provider: MockBatches, ledger_url: Path | str) -> None:
    provider.hold = True
    child = in_a_child(provider, ledger_url, PROMPTS)
    while not provider.calls["retrieve"]:
        time.sleep(0.01)
    killed(child)
    direct, ledger = OpenAIModel(model="mock-large", base_url=provider.url, api_key_env=None), Ledger(ledger_url)
    keyed = [(r.key(direct.identity), r) for r in requests_for([*PROMPTS, "row 99"])]
    with pytest.raises(FellShort, match=r"30 rows are in batches at the provider, .* openai_batch"):
        ask(keyed, direct, ledger, run=RUN)
    assert list(provider.api.asked) == ["row 99"]
    provider.hold = False
    ask_batches(provider, ledger_url, PROMPTS)
    assert ask(keyed, direct, ledger, run=RUN).reused == 31
    ledger.close()
    answered_once(provider, PROMPTS)


def test_claims_that_were_lost_meanwhile_are_in_no_batch(
    provider: MockBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, put = batch_model(provider), BatchBook.put
    lost = {r.key(model.identity): r for r in requests_for(PROMPTS[:10])}
    thief = Ledger(tmp_path / "ledger")

    def stolen(book: BatchBook, *arguments: Any) -> Any:
        """As after a long sleep: the leases ran out, and somebody else has taken some of the rows."""
        with thief._transaction() as db:
            db.exec_driver_sql("UPDATE requests SET lease_until = 0")
        assert len(thief.claim(RUN, model.identity, lost).mine) == 10
        return put(book, *arguments)

    monkeypatch.setattr(BatchBook, "put", stolen)
    with pytest.raises(FellShort, match="another one took over its rows"):
        ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert all(not set(provider.prompts(batch)) & set(PROMPTS[:10]) for batch in provider.batches.values())
    monkeypatch.undo()
    thief.release(list(lost))
    thief.close()
    tally, _ = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert tally.answered == 30
    answered_once(provider, PROMPTS)


def test_a_batch_that_waited_too_long_is_asked_anew(provider: MockBatches, tmp_path: Path) -> None:
    provider.hold = True
    child = in_a_child(provider, tmp_path / "ledger", PROMPTS)
    while not provider.calls["retrieve"]:
        time.sleep(0.01)
    killed(child)
    _a_month_less_a_day_later(tmp_path / "ledger")
    _a_month_less_a_day_later(tmp_path / "ledger")
    provider.hold = False
    tally, _ = ask_batches(provider, tmp_path / "ledger", PROMPTS)
    assert (tally.asked, len(provider.batches)) == (30, 2)


# --- the command line ---


def _nightly(desk: Desk, provider: MockBatches, rows: int = 40, **knobs: Any) -> Path:
    desk.seeds([{"prompt": f"row {i}"} for i in range(rows)])
    settings = {
        "model": "mock-large",
        "base_url": provider.url,
        "api_key_env": None,
        "poll_s": 0.02,
        "max_requests": 15,
    }
    return desk.recipe("nightly", task="generate", models={"teacher": {"openai_batch": settings | knobs}})


def test_a_run_that_was_stopped_comes_back_for_its_batches(desk: Desk, provider: MockBatches) -> None:
    provider.hold = True
    recipe = _nightly(desk, provider)
    for number in (signal.SIGKILL, signal.SIGINT):
        looks = provider.calls["retrieve"]
        process = desk.command("run", recipe, "--until", "answers")
        while provider.calls["retrieve"] < looks + 3 or provider.calls["create"] < 3:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        if number != signal.SIGKILL:
            assert process.returncode == 130, err
            assert "3 batches go on at the provider; the same command collects" in " ".join(err.split())
    provider.hold = False
    summary = desk.run(recipe, "--until", "answers")
    assert (summary["asked"], summary["answered"], summary["owed"]) == (0, 40, 0)
    assert {row["text"] for row in desk.rows(summary, "answers")} == {f"the answer to row {i}" for i in range(40)}
    assert len(provider.batches) == 3
    answered_once(provider, [f"row {i}" for i in range(40)])


def test_check_says_what_a_batch_recipe_would_cost(desk: Desk, provider: MockBatches) -> None:
    recipe = _nightly(desk, provider, prices_usd={"prompt": 1.0, "completion": 1000.0, "batch_discount": 0.5})
    found = json.loads(desk.llm_distill("check", recipe, "--json"))
    assert found["teacher_requests"] == 40
    assert found["cost_usd_at_most"] == pytest.approx(0.16, abs=0.01)
    assert not provider.calls
