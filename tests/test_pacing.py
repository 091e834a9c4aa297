"""How fast a provider is asked: stated rates, rates it states itself, and load that it turns away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llm_distill.ask import ask_all
from llm_distill.ledger import Ledger
from llm_distill.pacing import Pace, seconds
from tests.mock_api import MockApi, serving
from tests.test_ask import ask_mock, model_of, requests_for


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("7.66s", 7.66), ("0.5", 0.5), ("soon", None),
     ("", None), ("1.2.3s", None), (".s", None)],
)  # fmt: skip
def test_durations_as_providers_write_them(text: str, expected: float | None) -> None:
    assert seconds(text) == (None if expected is None else pytest.approx(expected))


def _timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def test_requests_per_minute_are_kept(api: MockApi, tmp_path: Path) -> None:
    took = _timed(lambda: ask_mock(api, tmp_path / "l", [f"r {i}" for i in range(40)], requests_per_minute=600))
    assert took >= 2.8  # ten a second, the first second's worth at once
    times = sorted(api.times)
    for i, start in enumerate(times):  # no second and a half holds more than the burst and its own share
        assert sum(t < start + 1.5 for t in times[i:]) <= 27


def test_tokens_per_minute_count_max_tokens(api: MockApi, tmp_path: Path) -> None:
    # Eight tokens of answer and one or two of prompt each, 600 a minute: about one request a second.
    took = _timed(lambda: ask_mock(api, tmp_path / "l", ["a", "b", "c", "d"], tokens_per_minute=600))
    assert 1.5 <= took <= 30


def test_single_429s_say_nothing_about_the_load(tmp_path: Path) -> None:
    """At 5 % random 429s at least half of the clean throughput is left."""
    prompts = [f"row {i}" for i in range(1500)]
    with serving(latency_s=0.1) as clean:
        quiet = _timed(lambda: ask_mock(clean, tmp_path / "a", prompts, concurrency=64))
    noisy = []
    for attempt in range(3):  # the better of them: whatever else the machine does is not the pacing's
        rng = random.Random(attempt)
        with serving(latency_s=0.1) as api:
            api.faults = {p: ["429"] for p in prompts if rng.random() < 0.05}
            noisy.append(_timed(partial(ask_mock, api, tmp_path / f"b{attempt}", prompts, concurrency=64)))
            assert set(api.paid.values()) == {1}
            assert len(api.paid) == 1500
        if noisy[-1] < 2 * quiet:
            return
    raise AssertionError(f"{quiet:.1f} s without, {noisy} s with 429s")


def test_a_crowded_provider_is_asked_less(tmp_path: Path) -> None:
    """It serves ten at a time and turns the others away: everything is answered, and few tries are wasted."""
    prompts = [f"row {i}" for i in range(400)]
    with serving(latency_s=0.05) as api:
        api.places = 10
        tally, entries = ask_mock(api, tmp_path / "l", prompts, concurrency=100)
        assert all(e and e.status == "ok" for e in entries)
        assert tally.retried < 400


def test_what_a_provider_says_is_left_is_kept(tmp_path: Path) -> None:
    """Twenty a second by its headers, a 429 for whatever is more."""
    prompts = [f"row {i}" for i in range(120)]
    with serving(latency_s=0.02) as api:
        api.per_second = 20
        tally, entries = ask_mock(api, tmp_path / "l", prompts, concurrency=4)
        assert all(e and e.status == "ok" for e in entries)
        assert tally.retried <= 12


@pytest.mark.parametrize("rest_s", [0.0, 0.2, 60.0, 30 * 86_400.0])
def test_a_model_may_rest_before_its_window_is_open(monkeypatch: pytest.MonkeyPatch, rest_s: float) -> None:
    clock = [1.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(64)

    async def two_questions() -> None:
        await pace.enter(1)
        pace.leave(crowded=False)
        clock[0] += rest_s
        await pace.enter(1)

    asyncio.run(asyncio.wait_for(two_questions(), 5))
    assert pace.window == (8 if rest_s == 0 else 64)


def test_one_slow_provider_does_not_hold_up_another(tmp_path: Path) -> None:
    """The slow one answers nothing before the other has answered all: held up by it, the other never would."""
    with serving() as slow, serving() as fast:
        slow.may_answer = lambda: sum(fast.paid.values()) == 200
        ledger = Ledger(tmp_path / "ledger.sqlite")
        groups = []
        for api, n in ((slow, 16), (fast, 200)):
            model = model_of(api, concurrency=4)
            requests = requests_for([f"{n} {i}" for i in range(n)])
            groups.append((model, [(r.key(model.identity), r) for r in requests], n))
        tally = ask_all(groups, ledger, run="test")
        ledger.close()
        assert tally.answered == 216
        assert tally.retried == 0


def test_a_pace_is_shared_by_all_who_ask_the_same_model(api: MockApi) -> None:
    one, two, other = (model_of(api, model=name) for name in ("mock-large", "mock-large", "mock-small"))
    assert one.pace is two.pace
    assert one.pace is not other.pace
