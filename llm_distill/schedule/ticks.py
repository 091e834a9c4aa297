"""When a job is due, and what is done about ticks that were missed or came while another was unfinished. No clock, no disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim

from llm_distill.errors import UserError
from llm_distill.recipe_schedule import Schedule, iso, moment, utc

#: A tick that begins later than this, or after the next has come, was missed: a machine takes its minutes to start.
ON_TIME_S = 900
#: Of ticks that nobody was there for, how many are looked at; a job each minute comes to so many in a week.
_MOST = 10_000
#: Of those, how many `catch_up: all` makes up, the latest: a year of nights.
_MADE_UP = 366
#: Around a change of the clocks, cron lines are read from a while before.
_BEFORE = timedelta(days=2)

#: `running` and `postponed` ticks are unfinished; all others are settled, a `missed` one until it comes on time after all.
State = Literal["running", "postponed", "done", "fell_short", "failed", "skipped", "missed"]
UNFINISHED = ("running", "postponed")


@dataclass(frozen=True)
class Known:
    """What the ledger says of a tick. Times are seconds since the epoch. alive: somebody is at it. ended: where nobody is, and
    it is unfinished, when it was last heard of. by_hand: it was begun out of its turn, by its name.
    """

    due: int
    state: State
    alive: bool = False
    started: float | None = None
    ended: float | None = None
    not_before: float | None = None
    by_hand: bool = False

    def covers(self, due: int) -> bool:
        """Whether it was unfinished when another came due."""
        if self.started is None or not self.started <= due or self.due >= due:
            return False
        return self.alive or self.state == "postponed" or (self.ended is not None and due < self.ended)


@dataclass(frozen=True)
class Due:
    """What is to be done now, in this order, and what is not to be done at all.

    busy: a tick that somebody is at. later: when a postponed one may go on, where the others wait for it.
    """

    do: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()
    busy: int | None = None
    later: float | None = None


def times(schedule: Schedule, after: float) -> Iterator[int]:
    """The scheduled times after a moment, in order, without end: seconds since the epoch."""
    zone = ZoneInfo(schedule.timezone)
    begin = datetime.fromtimestamp(int(after // 1), UTC) - _BEFORE
    last = after
    # Without a zone for UTC: cronsim moves whole days at once where no clock changes.
    for local in CronSim(
        schedule.cron, begin.replace(tzinfo=None) if schedule.timezone == "UTC" else begin.astimezone(zone)
    ):
        due = int((local if local.tzinfo else local.replace(tzinfo=UTC)).timestamp())
        if due > last:
            last = due
            yield due


def following(schedule: Schedule, after: float) -> int:
    """The next scheduled time."""
    return next(times(schedule, after))


def latest(schedule: Schedule, now: float) -> int | None:
    """The last scheduled time that is not in the future, within what one looks back; None if there was none."""
    for days in (1, 8, 32, 367, 366 * 8 + 1):  # the 29th of February may be eight years off
        if found := between(schedule, now - days * 86_400, now):
            return found[-1]
    return None


def scheduled_time(schedule: Schedule, text: str) -> str:
    """A tick by its scheduled time; UserError for a moment that is none."""
    try:
        tick = utc(text)
    except ValueError as error:
        raise UserError(f"--tick: {error}.") from None
    due = moment(tick)
    before, after = latest(schedule, due), following(schedule, due)
    if before != due:
        near = [iso(one) for one in (before, after) if one is not None]
        raise UserError(
            f"--tick: {tick} is no time of {schedule.cron!r} in {schedule.timezone}; near it are {' and '.join(near)}."
        )
    return tick


def between(schedule: Schedule, after: float, upto: float) -> list[int]:
    """The last of the scheduled times in (after, upto], in order."""
    found: deque[int] = deque(maxlen=_MOST)
    for due in times(schedule, after):
        if due > upto:
            break
        found.append(due)
    return list(found)


def first_look(schedule: Schedule, now: float) -> float:
    """Since when a job counts that is heard of now for the first time: what has just come due is on time."""
    due = latest(schedule, now)
    return now if due is None or now - due > ON_TIME_S else due - 1.0


def decide(schedule: Schedule, now: float, since: float, known: Sequence[Known]) -> Due:
    """What a scheduler that looks at `now` does. since: when the job was first heard of; known: its ticks so far.

    Whatever was begun is finished first, the oldest first. Then come ticks that are on time, and those that waited for an
    earlier one under `overlap: wait`; of the others, as many as `catch_up` says. A clock that was set back finds what was
    done before it as done, and whatever comes on time is done, whatever a clock that ran ahead had taken for missed.
    """
    settled = {tick.due for tick in known if tick.state != "missed" or tick.due <= now - ON_TIME_S}
    looked = sorted((tick.due, tick.state) for tick in known if tick.due <= now - ON_TIME_S and not tick.by_hand)
    # All before the first, or before one that was begun in its turn, is settled; one is passed over while earlier ones wait.
    whole = [due for n, (due, state) in enumerate(looked) if n == 0 or state not in ("skipped", "missed")]
    fresh = [due for due in between(schedule, max([since, *whole]), now) if due not in settled]
    late, skipped, missed, queue = list[int](), list[int](), list[int](), list[int]()
    for due in fresh:
        if any(tick.covers(due) for tick in known):
            (skipped if schedule.overlap == "skip" else queue).append(due)
        else:
            (queue if due == fresh[-1] and now - due <= ON_TIME_S else late).append(due)
    if schedule.catch_up == "all":
        missed, queue = late[:-_MADE_UP], sorted([*queue, *late[-_MADE_UP:]])
    elif schedule.catch_up == "latest" and late and not queue:
        missed, queue = late[:-1], [late[-1]]
    else:
        missed = late
    ended = [tick for tick in known if tick.state in UNFINISHED]
    begun = sorted((tick for tick in ended if not tick.alive), key=lambda tick: tick.due)
    waiting = [tick.not_before for tick in begun if tick.not_before is not None and tick.not_before > now]
    ready = [tick.due for tick in begun if tick.not_before is None or tick.not_before <= now]
    busy = next((tick.due for tick in ended if tick.alive), None)
    do = [] if busy is not None else [*ready, *([] if waiting else queue)]
    return Due(tuple(do), tuple(skipped), tuple(missed), busy, min(waiting, default=None))
