"""Bodies read in a process of their own: the same answers as at home, whatever becomes of the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import DistillError, Unavailable
from llm_distill.models import wire, wire_process
from llm_distill.models.wire_process import Reading
from llm_distill.records import Completion, Sampling
from tests.conftest import ROOT, runs
from tests.mock_api import MockApi, serving
from tests.models.test_wire_logprobs import ALTERNATIVES, IDS, TOKEN, body, raw_text, spoken
from tests.test_ask import ask_mock

ODD = [
    body([spoken(b"a", -0.1, top_logprobs=[spoken(b"a", -0.1), spoken(b"b", None)])], text="a"),
    body([spoken(b"a", float("nan"))], text="without"),
    body([spoken(b"NaN", -0.25, top_logprobs=[spoken(b"b", float("-inf"))])], text="NaN"),
    body([spoken(b"\xe2\x82", -0.5, top_logprobs=[spoken(b"\xf0\x9f", -1.0)])]),
    body([{"token": "\ufffd", "logprob": -1.0, "bytes": [1, 300]}]),
    body([], text="x"),
    body(IDS),
    raw_text(),
    body([spoken(b"a", -0.1)])[:-20],
    body([spoken(b"a", -0.1)], text=""),
    json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode(),
    b"",
    b"[" * 100_000,
]
USUAL = [body([spoken(f"{i}".encode(), -i / 8)], text=f"{i}") for i in range(20)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process from the first body on."""
    for name in ("FIRST_BYTES", "LEAST_IN_FLIGHT", "LEAST_BYTES"):
        monkeypatch.setattr(wire_process, name, 0)


def outcome(read: Completion | BaseException) -> Any:
    """What can be compared of a completion or an error."""
    if isinstance(read, BaseException):
        return type(read), str(read), vars(read)
    packed = read.packed if read.logprobs is None else read.logprobs.pack()
    return msgspec.structs.replace(read, logprobs=None, packed=packed)


def at_home(whole: bytes, *, token_ids: bool = False) -> Any:
    try:
        return outcome(wire.completion(whole, 1.5, token_ids=token_ids))
    except DistillError as error:
        return outcome(error)


def away(
    bodies: Sequence[bytes],
    meanwhile: Callable[[Reading], None] = lambda _reading: None,
    *,
    token_ids: bool = False,
) -> list[Any]:
    """What a process makes of bodies that are all sent at once; `meanwhile` is done when they are."""

    async def read() -> list[Any]:
        reading, process = Reading(), None
        try:
            await reading.completion(USUAL[0], 0.0, 1, token_ids=False)
            process = reading._process
            assert process
            while not process.has_room:
                await asyncio.sleep(0.01)
            ask_all = [reading.completion(whole, 1.5, 1, token_ids=token_ids) for whole in bodies]
            tasks = [asyncio.create_task(one) for one in ask_all]
            await asyncio.sleep(0)
            meanwhile(reading)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert process._waiting_bytes == 0
            return [outcome(one) for one in found]
        finally:
            reading.close()
            assert process is None or process.popen.returncode is not None

    return asyncio.run(read())


def pid_of(reading: Reading) -> int:
    assert reading._process
    return reading._process.popen.pid


@settings(deadline=None, max_examples=5)
@given(
    st.lists(
        st.lists(st.tuples(TOKEN, st.floats(-9999.0, 0.0, width=32), ALTERNATIVES), min_size=1, max_size=5),
        min_size=10,
        max_size=60,
    )
)
def test_it_reads_what_is_read_at_home(paths: list[list[tuple[bytes, float, list[tuple[bytes, float]]]]]) -> None:
    bodies = [
        body([spoken(t, p, top_logprobs=[spoken(*other) for other in others]) for t, p, others in path])
        for path in paths
    ]
    found = away(bodies)
    assert found == [at_home(whole) for whole in bodies]
    assert all(one.packed for one in found)


@pytest.mark.parametrize("token_ids", [False, True])
def test_errors_come_back_with_all_they_say_and_touch_no_other_row(token_ids: bool) -> None:
    bodies = [one for pair in zip(ODD, USUAL, strict=False) for one in pair]
    found = away(bodies, token_ids=token_ids)
    assert found == [at_home(whole, token_ids=token_ids) for whole in bodies]
    fields = [one[2] for one in found if isinstance(one, tuple) and one[0] is Unavailable]
    assert (3, 4) in [error["usage"] for error in fields]
    assert all(error["billed"] for error in fields)


def test_a_process_that_dies_loses_no_row() -> None:
    def kill(reading: Reading) -> None:
        os.kill(pid_of(reading), signal.SIGSTOP)  # so that it owes them all
        os.kill(pid_of(reading), signal.SIGKILL)

    assert away(USUAL, kill) == [at_home(whole) for whole in USUAL]


def test_a_process_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_process, "PATIENCE_S", 0.3)
    start = time.monotonic()
    stopped = away(USUAL, lambda reading: os.kill(pid_of(reading), signal.SIGSTOP))
    assert stopped == [at_home(whole) for whole in USUAL]
    assert time.monotonic() - start < 10


def test_after_a_death_another_one_is_started_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_process, "FIRST_BYTES", len(USUAL[0]))

    async def pids() -> list[int]:
        reading, seen = Reading(), []
        try:
            for _ in range(20):
                assert (await reading.completion(USUAL[0], 0.0, 1, token_ids=False)).text == "0"
                if pid_of(reading) not in seen:
                    seen.append(pid_of(reading))
                    os.kill(seen[-1], signal.SIGKILL)
                await asyncio.sleep(0.02)
        finally:
            reading.close()
        return seen

    assert len(asyncio.run(pids())) == 2


def test_where_no_process_can_be_started_everything_is_read_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    async def read() -> Completion:
        return await Reading().completion(USUAL[3], 1.5, 1, token_ids=False)

    assert outcome(asyncio.run(read())) == at_home(USUAL[3])


def test_a_bug_is_left_to_be_met_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_body: bytes, **_knobs: Any) -> Completion:
        raise ZeroDivisionError

    monkeypatch.setattr(wire, "completion", bug)
    assert wire_process._packed(USUAL[0], token_ids=False) is None


def test_it_does_not_outlive_its_parent() -> None:
    code = """
import asyncio, time
from llm_distill.models import wire_process
from tests.models.test_wire_process import USUAL
async def read():
    wire_process.FIRST_BYTES = wire_process.LEAST_BYTES = 0
    reading = wire_process.Reading()
    while not (reading._process and reading._process.has_room):
        await reading.completion(USUAL[0], 0.0, 99, token_ids=False)
        await asyncio.sleep(0.01)
    print(reading._process.popen.pid, flush=True)
    time.sleep(60)
asyncio.run(read())
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    until = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_rows_are_asked_once_while_processes_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"row {i}" for i in range(300)]
    sampling = Sampling(max_tokens=8, top_logprobs=2)
    start, killed = wire_process._start, []

    async def start_and_kill() -> wire_process._Process:
        process = await start()
        asyncio.get_running_loop().call_later(0.7, process.popen.kill)
        killed.append(process.popen)
        return process

    with serving(0.1) as api:
        _, usual = ask_mock(api, tmp_path / "usual", prompts, sampling=sampling, concurrency=16)
        monkeypatch.setattr(wire_process, "_start", start_and_kill)
        _, entries = ask_mock(api, tmp_path / "ledger", prompts, sampling=sampling, concurrency=16)
    assert len(killed) > 1
    assert all(popen.returncode is not None for popen in killed)
    assert set(api.asked.values()) == {2}
    assert [e and (e.text, e.logprobs) for e in entries] == [e and (e.text, e.logprobs) for e in usual]


def test_a_small_run_starts_none(api: MockApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_process, "FIRST_BYTES", 1 << 20)

    async def never() -> Any:
        raise AssertionError

    monkeypatch.setattr(wire_process, "_start", never)
    tally, _ = ask_mock(api, tmp_path / "l", ["a", "b"], sampling=Sampling(max_tokens=8, top_logprobs=2))
    assert tally.answered == 2
