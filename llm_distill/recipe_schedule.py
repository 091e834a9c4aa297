"""The keys of a recipe that make it a job: when it runs by itself, which of its runs are kept, and who hears of them.

None of them changes what a run makes, so none is part of its digest; `tick`, which the scheduler adds, is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llm_distill.plugs import SecretName
from llm_distill.recipe_keys import Strict
from llm_distill.records import Request, content_id

#: How a tick ended: what `notify` may be about.
Ending = Literal["done", "fell_short", "failed", "postponed", "skipped", "missed"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


def _seconds(found: Any) -> Any:
    if isinstance(found, str):
        if not (parts := _DURATION.fullmatch(found.strip())):
            raise ValueError(f"found {found!r}; write a time such as 90s, 30m, 8h or 2d")
        return float(parts[1]) * _UNITS[parts[2]]
    return found


#: Seconds, written as a number of them or as 90s, 30m, 8h, 2d.
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]


def _cron(line: str) -> str:
    if len(line.split()) != 5:
        raise ValueError(
            f"found {line!r}, not a cron line (minute, hour, day, month, weekday); for example '0 3 * * 1'"
        )
    try:
        times = CronSim(line, datetime(2000, 1, 1))
        next(times)
    except CronSimError as error:
        raise ValueError(f"found {line!r}, not a cron line ({error}); for example '0 3 * * 1'") from None
    except StopIteration:
        raise ValueError(f"found {line!r}, a date that never comes; for example '0 3 * * 1'") from None
    return " ".join(line.split())


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"found {name!r}, not a time zone; write one such as Europe/Berlin, or UTC") from None
    return name


class Postpone(Strict):
    """What becomes of a tick that met trouble which may pass (a provider that is down, a full disk): it goes on after
    `first`, then after twice as long each time up to `most`, at most `times` times.
    """

    first: Duration = 600.0
    most: Duration = 21_600.0
    times: int = Field(8, ge=0, le=1000)

    def wait_s(self, attempts: int) -> float:
        """Seconds until the next try, after so many."""
        return float(min(self.most, self.first * 2.0 ** min(max(0, attempts - 1), 60)))


class Schedule(Strict):
    """When a job runs by itself.

    cron: five fields, read in `timezone` as Debian's cron reads them: a time that a change to daylight-saving skips comes
    right after the gap, one in the doubled hour comes once. overlap: what becomes of a tick that comes due while an earlier
    one is unfinished: left out (`skip`), or done after it (`wait`). catch_up: which of the ticks that nobody was there for
    are made up. max_runtime: seconds, after which a run is stopped as by Ctrl-C and goes on at the next tick. kills: how often in
    a row its process may be killed; after one more the tick is given up.
    """

    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    overlap: Literal["skip", "wait"] = "skip"
    catch_up: Literal["none", "latest", "all"] = "latest"
    max_runtime: Duration | None = None
    postpone: Postpone = Postpone()
    kills: int = Field(20, ge=0, le=10_000)

    @model_validator(mode="before")
    @classmethod
    def _a_cron_line(cls, found: Any) -> Any:
        return {"cron": found} if isinstance(found, str) else found


class Keep(Strict):
    """Which run folders of a job are kept: the latest `runs`, and all younger than `days`."""

    runs: int | None = Field(None, ge=1)
    days: float | None = Field(None, gt=0, allow_inf_nan=False)

    def model_post_init(self, _context: Any) -> None:
        """Something is kept by."""
        if self.runs is None and self.days is None:
            raise ValueError("write `runs: 30`, `days: 90`, or both")


class Webhook(Strict):
    """An address that is sent JSON by POST; it holds a secret as a rule, so the environment has it."""

    url_env: SecretName


class Email(Strict):
    """A message through an SMTP server, under TLS: `starttls` on `port`, or from the first byte (`tls`)."""

    smtp: str
    port: int = Field(587, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password_env: SecretName | None = None
    sender: str = Field(alias="from")
    to: list[str] = Field(min_length=1)

    def model_post_init(self, _context: Any) -> None:
        """No password in the clear, and none for nobody."""
        if (self.user is None) != (self.password_env is None):
            raise ValueError("write `user` and `password_env` together, or neither")
        if self.user is not None and self.security == "none" and self.smtp not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("a password is not sent without TLS; write `security: starttls` or `tls`")
        for text in (self.sender, *self.to):
            if not re.fullmatch(r"[^\s@<>,;]+@[^\s@<>,;]+", text):
                raise ValueError(f"found {text!r}, not an address such as ops@example.org")


def _no_address(found: Any) -> Any:
    if isinstance(found, str):  # it may hold a secret, so it is not repeated
        raise ValueError(
            "write `{url_env: NAME}`, and export the address under that name, as it holds a secret as a rule"
        )
    return found


class Notify(Strict):
    """One who hears how a tick ended. `command` is a program with its arguments, which reads JSON; no shell is asked."""

    webhook: Annotated[Webhook | None, BeforeValidator(_no_address)] = None
    email: Email | None = None
    command: list[str] | None = Field(None, min_length=1)
    on: list[Ending] = Field(["failed", "fell_short"], min_length=1)

    def model_post_init(self, _context: Any) -> None:
        """Exactly one way."""
        if sum(way is not None for way in (self.webhook, self.email, self.command)) != 1:
            raise ValueError("write one of `webhook: {url_env: ...}`, `email: {...}` and `command: [...]`")


def utc(found: str) -> str:
    """A moment as `2026-11-27T03:00:00Z`; ValueError for what is none."""
    try:
        moment = datetime.fromisoformat(found)
    except ValueError:
        raise ValueError(f"found {found!r}; write a moment such as 2026-11-27T03:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"found {found!r}, which is of no time zone; write 2026-11-27T03:00:00Z")
    return iso(moment.timestamp())


#: The scheduled time that a run stands for, in UTC.
Tick = Annotated[str, AfterValidator(utc)]
ENDINGS: tuple[str, ...] = get_args(Ending)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(due: float) -> str:
    """Seconds since the epoch as `2026-11-27T03:00:00Z`."""
    return (_EPOCH + timedelta(seconds=int(due))).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(tick: str) -> int:
    """A tick as seconds since the epoch."""
    return int(datetime.fromisoformat(tick).timestamp())


def drawn(seed: int, tick: str | None) -> int:
    """The seed of whatever draws prompts: the recipe's own, or one made of it for each tick."""
    return (
        seed if tick is None else int(content_id(["tick", seed, tick])[:8], 16) >> 1
    )  # of 31 bits, as some servers want


def anew(questions: Iterable[Request], tick: str | None) -> list[Request]:
    """Questions of generators, so that each tick draws other answers. What is not drawn (temperature 0) stays as it was,
    and so does what carries a seed, which is the tick's already.

    A question's sample number is part of its id, and of nothing that is sent where there is no seed: minute by minute,
    ticks have 65,536 of them each.
    """
    if tick is None:
        return list(questions)
    first = moment(tick) // 60 << 16
    return [
        msgspec.structs.replace(q, sample=first + q.sample) if q.sampling.temperature and q.sampling.seed is None else q
        for q in questions
    ]
