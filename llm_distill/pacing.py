"""How fast one provider is asked: requests and tokens a minute, and how many requests may be in flight.

The window of requests in flight opens fast, and closes only when a large share of a whole window's worth of requests is
turned away: single 429s say nothing about the load, and a rule that halves on each of them ends at a few slots.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping

#: How much of a limit may be used at once: providers enforce a minute's limit in slices of about a second.
BURST_S = 1.0
#: The window doubles this often at the start, until a provider turns requests away.
RAMP_S = 0.05
#: A window of requests of which more than this share was turned away is too large; fewer than the other, it may grow.
CROWDED, QUIET = 0.25, 0.10
#: A stated rest below this share of its limit paces what follows.
LOW = 0.1
#: Longest wait that a header's reset is believed for.
RESET_CAP_S = 120.0

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d*)?|\.\d+)s)?(?:(\d+(?:\.\d*)?|\.\d+)ms)?")


class _Rate:
    """At most `per_minute` units a minute: the generic cell rate algorithm (ITU-T I.371, virtual scheduling)."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_second = per_minute / 60 if per_minute else None
        self._full_at = 0.0  # when the bucket will be full again

    def wait_s(self, units: float, now: float) -> float:
        """Take units; gives the seconds to wait before using them."""
        if not self.per_second:
            return 0.0
        self._full_at = max(self._full_at, now) + units / self.per_second
        return max(0.0, self._full_at - now - max(BURST_S, units / self.per_second))

    def heed(self, limit: float, remaining: float, reset_s: float, now: float) -> None:
        """Take over what the provider says is left, and when all of it will be there again."""
        if limit > remaining and reset_s > 0 and remaining < LOW * limit:
            self.per_second = (limit - remaining) / reset_s
            self._full_at = max(self._full_at, now + BURST_S + (1.0 - remaining) / self.per_second)


class Pace:
    """The pace of one (provider, model), shared by all who ask it in this process."""

    def __init__(
        self,
        in_flight: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        ramp: bool = True,
    ) -> None:
        self.most = in_flight
        self._stated = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._rates = {name: _Rate(limit) for name, limit in self._stated.items()}
        self.window = float(in_flight)
        self.in_flight = 0
        self._opened: float | None = None
        self._ramping = ramp
        self._ended = self._crowded = 0
        self._places: deque[asyncio.Future[None]] = deque()
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._halted = False

    async def enter(self, tokens: int) -> None:
        """Wait for a place and for the rates. `tokens`: what the provider will count, prompt and max_tokens.

        Comes back early after `halt`; whoever enters leaves again.
        """
        self._halted = False
        while self.in_flight >= self._open() and not self._halted:
            await self._wait(self._places, RAMP_S if self._ramping else None)
        self.in_flight += 1
        now = time.monotonic()
        wait_s = max(self._rates["requests"].wait_s(1, now), self._rates["tokens"].wait_s(tokens, now))
        if wait_s > 0 and not self._halted:
            try:
                await self._wait(self._sleepers, wait_s)
            except BaseException:
                self._free()
                raise

    async def _wait(self, among: deque[asyncio.Future[None]], at_most_s: float | None) -> None:
        """Wait to be woken, or for a time."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        among.append(mine)
        timer = None if at_most_s is None else loop.call_later(at_most_s, _wake, mine)
        try:
            await mine
        finally:
            if timer:
                timer.cancel()

    def halt(self) -> None:
        """Let everybody who waits come back now: there will be no more asking."""
        self._halted = True
        for among in (self._places, self._sleepers):
            while among:
                _wake(among.popleft())

    def leave(self, *, crowded: bool) -> None:
        """A request ended; `crowded`: the provider turned it away because of load."""
        self._ended += 1
        self._crowded += crowded
        if self._ended >= max(20.0, self.window):
            share = self._crowded / self._ended
            if share > CROWDED:
                self._ramping = False
                self.window = max(1.0, min(self.window, self.in_flight) * 0.7)
            elif share < QUIET:
                self.window = min(float(self.most), self.window * 1.25 + 1)
            self._ended = self._crowded = 0
        self._free()

    def heed(self, headers: Mapping[str, str]) -> None:
        """Read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; what the recipe states itself comes first."""
        for name, rate in self._rates.items():
            if self._stated[name] is None and f"x-ratelimit-remaining-{name}" in headers:
                values = [headers.get(f"x-ratelimit-{part}-{name}", "") for part in ("limit", "remaining")]
                reset_s = seconds(headers.get(f"x-ratelimit-reset-{name}", ""))
                if reset_s is not None and all(v.isascii() and v.replace(".", "", 1).isdigit() for v in values):
                    rate.heed(float(values[0]), float(values[1]), min(reset_s, RESET_CAP_S), time.monotonic())

    def _open(self) -> float:
        """The window now; at the start it doubles with time while nobody complains."""
        if self._ramping:
            now = time.monotonic()
            self._opened = self._opened or now
            doublings = min((now - self._opened) / RAMP_S, 64.0)  # a model may rest for hours between two questions
            self.window = min(float(self.most), max(4, self.most // 8) * 2.0**doublings)
            self._ramping = self.window < self.most
        return self.window

    def _free(self) -> None:
        self.in_flight -= 1
        room = self.window - self.in_flight
        while self._places and room > 0:
            room -= _wake(self._places.popleft())
        while self._sleepers and self._sleepers[0].done():
            self._sleepers.popleft()


def _wake(waiting: asyncio.Future[None]) -> bool:
    """Whether it still waited."""
    if waiting.done():
        return False
    waiting.set_result(None)
    return True


def seconds(text: str) -> float | None:
    """A duration as providers write it: `1s`, `6m0s`, `120ms`, `1h2m3.5s`, or plain seconds; None when it is none."""
    try:
        return float(text)
    except ValueError:
        found = _DURATION.fullmatch(text.strip())
        if not found or not any(found.groups()):
            return None
        hours, minutes, secs, millis = (float(g or 0) for g in found.groups())
        return hours * 3600 + minutes * 60 + secs + millis / 1000
