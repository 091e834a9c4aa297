"""When jobs are due: cron lines in time zones, changes of the clocks, and what becomes of ticks that were missed or overlap."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.recipe_schedule import Postpone, Schedule, anew, drawn, iso, moment
from llm_distill.records import Message, Request, Sampling
from llm_distill.schedule.ticks import (
    Due,
    Known,
    State,
    between,
    decide,
    first_look,
    following,
    latest,
    scheduled_time,
    times,
)

DAY = 86_400


def at(text: str) -> int:
    return moment(f"{text}:00Z")


def nightly(**knobs: Any) -> Schedule:
    return Schedule(cron="0 3 * * *", **knobs)


def told(schedule: Schedule, after: str, upto: str) -> list[str]:
    zone = ZoneInfo(schedule.timezone)
    return [f"{datetime.fromtimestamp(t, zone):%m-%d %H:%M%z}" for t in between(schedule, at(after), at(upto))]


def test_a_time_that_daylight_saving_skips_comes_right_after_the_gap() -> None:
    schedule = Schedule(cron="30 2 * * *", timezone="Europe/Berlin")
    found = told(schedule, "2026-03-27T12:00", "2026-03-30T12:00")
    assert found == ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"]


def test_the_doubled_hour_happens_once() -> None:
    schedule = Schedule(cron="30 2 * * *", timezone="Europe/Berlin")
    whole = told(schedule, "2026-10-23T12:00", "2026-10-26T12:00")
    assert whole == ["10-24 02:30+0200", "10-25 02:30+0200", "10-26 02:30+0100"]
    # Wherever one begins to look, within either of the two hours too.
    for minute in range(0, 180, 7):
        start = at("2026-10-25T00:00") + 60 * minute
        expected = [t for t in between(schedule, at("2026-10-23T12:00"), at("2026-10-26T12:00")) if t > start]
        assert between(schedule, start, at("2026-10-26T12:00")) == expected


def test_what_runs_each_hour_runs_each_hour_of_a_long_day() -> None:
    schedule = Schedule(cron="30 * * * *", timezone="America/New_York")
    found = between(schedule, at("2026-10-31T00:00"), at("2026-11-02T00:00"))
    assert {b - a for a, b in pairwise(found)} == {3600}


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
LINES = st.sampled_from(["0 3 * * *", "30 2 * * *", "*/20 * * * *", "15 1,2,3 * * 0", "0 */6 * * *", "59 23 31 * *"])
MOMENTS = st.integers(at("2026-01-01T00:00"), at("2027-12-31T00:00"))


@given(LINES, ZONES, MOMENTS, st.integers(0, 3 * DAY), st.integers(0, 3 * DAY))
@settings(max_examples=120, deadline=None)
def test_times_are_the_same_wherever_one_begins(line: str, zone: str, start: int, first: int, second: int) -> None:
    schedule = Schedule(cron=line, timezone=zone)
    middle, end = start + first, start + first + second
    whole = between(schedule, start, end)
    assert whole == sorted(set(whole))
    assert whole == between(schedule, start, middle) + between(schedule, middle, end)
    assert all(start < t <= end for t in whole)
    assert following(schedule, start) == next(times(schedule, start))
    if whole:
        assert latest(schedule, end) == whole[-1]
        assert scheduled_time(schedule, iso(whole[-1])) == iso(whole[-1])


@given(ZONES, MOMENTS)
@settings(max_examples=60, deadline=None)
def test_a_nightly_job_runs_once_on_each_local_day(zone: str, start: int) -> None:
    schedule = Schedule(cron="30 2 * * *", timezone=zone)
    days = [
        datetime.fromtimestamp(t, ZoneInfo(zone)).date().toordinal() for t in between(schedule, start, start + 40 * DAY)
    ]
    assert days == list(range(days[0], days[0] + len(days)))


def test_a_moment_that_is_no_scheduled_time_is_refused_with_those_near_it() -> None:
    with pytest.raises(UserError, match="near it are 2026-11-26T03:00:00Z and 2026-11-27T03:00:00Z"):
        scheduled_time(nightly(), "2026-11-26T04:00Z")
    with pytest.raises(UserError, match="of no time zone"):
        scheduled_time(nightly(), "2026-11-26T03:00")
    assert scheduled_time(nightly(timezone="Europe/Berlin"), "2026-11-26T03:00+01:00") == "2026-11-26T02:00:00Z"


NIGHTS = [at(f"2026-11-{day:02}T03:00") for day in range(1, 30)]
SINCE = at("2026-11-01T00:00")


def done(*dues: int, took: int = 600) -> list[Known]:
    return [Known(due, "done", started=due, ended=due + took) for due in dues]


def test_a_job_that_is_new_has_missed_nothing() -> None:
    now = NIGHTS[3] + 5
    for schedule, do in ((nightly(catch_up="all"), (NIGHTS[3],)), (Schedule(cron="*/2 * * * *"), (NIGHTS[3],))):
        assert decide(schedule, now, first_look(schedule, now), []) == Due(do=do)
    noon = now + DAY // 2
    assert decide(nightly(), noon, first_look(nightly(), noon), []) == Due()


def test_a_tick_is_late_once_the_next_has_come() -> None:
    often, now = Schedule(cron="*/5 * * * *", catch_up="none"), NIGHTS[0] + 630
    found = decide(often, now, NIGHTS[0] - 1, [])
    assert (found.do, found.missed) == ((NIGHTS[0] + 600,), (NIGHTS[0], NIGHTS[0] + 300))


@pytest.mark.parametrize(
    ("policy", "do", "missed"),
    [
        ("none", (), tuple(NIGHTS[1:6])),
        ("latest", (NIGHTS[5],), tuple(NIGHTS[1:5])),
        ("all", tuple(NIGHTS[1:6]), ()),
    ],
)
def test_missed_ticks_follow_the_policy(policy: str, do: tuple[int, ...], missed: tuple[int, ...]) -> None:
    """The machine was off for five nights, and comes back at noon."""
    now = NIGHTS[5] + 9 * 3600
    found = decide(nightly(catch_up=policy), now, SINCE, done(NIGHTS[0]))
    assert (found.do, found.missed, found.skipped) == (do, missed, ())
    # What was written down then is not looked at again.
    known = [*done(NIGHTS[0]), *(Known(due, "missed") for due in missed), *done(*do)]
    assert decide(nightly(catch_up=policy), now + 60, SINCE, known) == Due()


def test_a_tick_on_time_is_done_whatever_the_policy_says_of_missed_ones() -> None:
    now = NIGHTS[5] + 60
    assert decide(nightly(catch_up="none"), now, SINCE, done(NIGHTS[0])).do == (NIGHTS[5],)
    assert decide(nightly(catch_up="latest"), now, SINCE, done(NIGHTS[0])).do == (NIGHTS[5],)


def test_ticks_that_overlap_are_skipped_or_wait() -> None:
    """The run of the first night takes until the third morning."""
    running = Known(NIGHTS[0], "running", alive=True, started=NIGHTS[0])
    now = NIGHTS[2] + 3600
    skip = decide(nightly(), now, SINCE, [running])
    assert (skip.do, skip.skipped, skip.busy) == ((), (NIGHTS[1], NIGHTS[2]), NIGHTS[0])
    wait = decide(nightly(overlap="wait", catch_up="none"), now, SINCE, [running])
    assert (wait.do, wait.skipped, wait.missed, wait.busy) == ((), (), (), NIGHTS[0])
    over = done(NIGHTS[0], took=2 * DAY + 7200)
    after = decide(nightly(overlap="wait", catch_up="none"), NIGHTS[2] + 7300, SINCE, over)
    assert after.do == (NIGHTS[1], NIGHTS[2])
    assert decide(nightly(), NIGHTS[2] + 7300, SINCE, over).skipped == (NIGHTS[1], NIGHTS[2])


def test_a_tick_that_is_skipped_costs_none_that_is_made_up_before_it() -> None:
    """Each run takes a day and a half: while the first missed night is made up, the next night comes due, and is left out."""
    known, now, runs = done(NIGHTS[0]), NIGHTS[4] + 3600, list[int]()
    for _ in range(8):
        found = decide(nightly(catch_up="all"), now, SINCE, known)
        assert found.missed == ()
        known += [Known(due, "skipped") for due in found.skipped]
        if not found.do:
            break
        runs.append(found.do[0])
        known += [Known(found.do[0], "done", started=now, ended=now + 3 * DAY // 2)]
        now += 3 * DAY // 2
    assert runs[:4] == NIGHTS[1:5]


def test_a_tick_that_waits_is_done_whatever_was_missed_after_it() -> None:
    """The first night's run died after the second night had come due; the machine was off for three more."""
    dead = Known(NIGHTS[0], "running", alive=False, started=NIGHTS[0], ended=NIGHTS[1] + 60)
    schedule, now = nightly(overlap="wait", catch_up="none"), NIGHTS[4] + 3600
    found = decide(schedule, now, SINCE, [dead])
    assert (found.do, found.missed) == ((NIGHTS[0], NIGHTS[1]), tuple(NIGHTS[2:5]))
    known = [
        Known(NIGHTS[0], "done", started=NIGHTS[0], ended=now + 600),
        *(Known(due, "missed") for due in found.missed),
    ]
    assert decide(schedule, now + 700, SINCE, known) == Due(do=(NIGHTS[1],))


def test_a_long_absence_is_not_made_up_by_thousands_of_runs() -> None:
    hourly = Schedule(cron="0 * * * *", catch_up="all")
    found = decide(hourly, SINCE + 200 * DAY + 1800, SINCE, [])
    assert (len(found.do), len(found.missed)) == (366, 200 * 24 - 366)
    assert found.do[-1] == SINCE + 200 * DAY
    assert found.missed[-1] < found.do[0]


def test_what_was_begun_goes_on_first_and_a_postponed_tick_at_its_time() -> None:
    dead = Known(NIGHTS[0], "running", alive=False, started=NIGHTS[0], ended=NIGHTS[0] + 60)
    assert decide(nightly(), NIGHTS[1] + 5, SINCE, [dead]).do == (NIGHTS[0], NIGHTS[1])
    now = NIGHTS[0] + 1000
    later = Known(NIGHTS[0], "postponed", started=NIGHTS[0], ended=now - 5, not_before=now + 600)
    assert decide(nightly(), now, SINCE, [later]) == Due(later=now + 600)
    assert decide(nightly(), now + 600, SINCE, [later]).do == (NIGHTS[0],)
    # Postponed over the next night, it is still the unfinished one.
    assert decide(nightly(), NIGHTS[1] + 5, SINCE, [replace(later, not_before=NIGHTS[1] + 60)]).skipped == (NIGHTS[1],)
    waits = decide(nightly(overlap="wait"), NIGHTS[1] + 5, SINCE, [replace(later, not_before=NIGHTS[1] + 60)])
    assert (waits.do, waits.later) == ((), NIGHTS[1] + 60)


def test_a_clock_that_goes_back_does_no_tick_again() -> None:
    known = done(*NIGHTS[:5])
    for back in (60, 3600, DAY, 3 * DAY):
        assert decide(nightly(catch_up="all"), NIGHTS[4] + 700 - back, SINCE, known).do == ()
    assert decide(nightly(), NIGHTS[4] + 5, SINCE, known).do == ()
    assert decide(nightly(), NIGHTS[5] + 5, SINCE, known).do == (NIGHTS[5],)


def test_a_clock_that_ran_ahead_stops_no_job() -> None:
    """It was a month ahead: a tick was done there, and all before were written down as missed."""
    known = [*done(*NIGHTS[:2]), *(Known(due, "missed") for due in NIGHTS[2:20]), *done(NIGHTS[20])]
    assert decide(nightly(), NIGHTS[2] + 5, SINCE, known).do == (NIGHTS[2],)
    assert decide(nightly(), NIGHTS[20] + 5, SINCE, known).do == ()


@st.composite
def _lives(draw: st.DrawFn) -> tuple[Schedule, list[tuple[int, State]]]:
    schedule = nightly(
        overlap=draw(st.sampled_from(["skip", "wait"])),
        catch_up=draw(st.sampled_from(["none", "latest", "all"])),
        timezone=draw(ZONES),
    )
    ends: list[State] = ["done", "failed", "postponed", "running"]
    steps = st.tuples(st.integers(-DAY, 3 * DAY), st.sampled_from(ends))
    return schedule, draw(st.lists(steps, min_size=1, max_size=30))


@given(_lives())
@settings(max_examples=150, deadline=None)
def test_whatever_the_clock_does_each_tick_is_settled_once(life: tuple[Schedule, list[tuple[int, State]]]) -> None:
    """A scheduler that wakes at any time, with a clock that is set back at times, and whose runs end in any way."""
    schedule, steps = life
    now, known, ended = SINCE, dict[int, Known](), list[int]()
    for step, ending in steps:
        now += step
        found = decide(schedule, now, SINCE, list(known.values()))
        assert not {*found.do, *found.skipped} & set(ended)
        assert len({*found.do, *found.skipped, *found.missed}) == sum(map(len, (found.do, found.skipped, found.missed)))
        assert all(SINCE < due <= max(now, *known, SINCE) for due in found.do)
        for due in found.skipped:
            known[due] = Known(due, "skipped")
            ended.append(due)
        for due in found.missed:
            known.setdefault(due, Known(due, "missed"))
        for due in found.do:
            before = known.get(due)
            started = now if before is None or before.started is None else before.started
            known[due] = Known(due, ending, False, started, now + 60, now + 600 if ending == "postponed" else None)
            if ending in ("done", "failed"):
                ended.append(due)
    assert len(ended) == len(set(ended))


def test_seeds_of_ticks_differ_and_are_the_same_again() -> None:
    ticks = [iso(night) for night in NIGHTS]
    seeds = {drawn(7, tick) for tick in ticks}
    assert len(seeds) == len(ticks)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert drawn(7, ticks[0]) == drawn(7, ticks[0]) != drawn(8, ticks[0])
    assert drawn(7, None) == 7


def test_only_questions_that_are_drawn_are_asked_anew() -> None:
    def asked(**sampling: Any) -> Request:
        return Request((Message("user", "more"),), Sampling(**sampling), sample=3)

    questions = [asked(temperature=1.0), asked(temperature=0.0), asked(temperature=1.0, seed=5)]
    keys = {tick: [q.key("m") for q in anew(questions, tick)] for tick in (None, iso(NIGHTS[0]), iso(NIGHTS[1]))}
    first, second = keys[iso(NIGHTS[0])], keys[iso(NIGHTS[1])]
    assert first[0] != second[0] != keys[None][0]
    assert first[1:] == second[1:] == keys[None][1:]
    # Samples of one tick are none of another's.
    near = [asked(temperature=1.0), replace_sample(asked(temperature=1.0), 60_000)]
    samples = [q.sample for tick in (NIGHTS[0], NIGHTS[0] + 60) for q in anew(near, iso(tick))]
    assert len(set(samples)) == 4
    assert max(samples) < 2**53


def replace_sample(request: Request, sample: int) -> Request:
    return Request(request.messages, request.sampling, sample)


def test_waits_double_up_to_a_bound() -> None:
    wait = Postpone(first=60, most=600)
    assert [wait.wait_s(n) for n in (1, 2, 3, 4, 5, 6, 10_000)] == [60, 120, 240, 480, 600, 600, 600]


def test_utc_is_utc() -> None:
    assert iso(moment("2026-11-27T03:00:00+00:00")) == "2026-11-27T03:00:00Z"
    assert datetime.fromtimestamp(NIGHTS[0], UTC).hour == 3
