"""What asking may cost, and what it did cost."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from llm_distill.records import Entry

#: The longest wait before a retry that the server did not ask for.
BACKOFF_CAP_S = 30.0
#: A server may ask for a longer wait; nobody watching would understand it.
RETRY_AFTER_CAP_S = 600.0

#: The ledger's unit of money.
NANO = 1e9

Per = Literal["run", "day", "week", "month"]
#: What a request is charged to: the account of each period, and a note of what for (`noted`).
Charged = Mapping[Literal["run", "day", "week", "month", "note"], str]
#: How a period is named in the ledger, in UTC: the calendar day, the ISO week, the calendar month.
_PERIODS: Mapping[Per, str] = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}


@dataclass(frozen=True)
class Budget:
    """A bound on dollars and tokens: of one run, or of all runs of a recipe in a period (UTC)."""

    per: Per = "run"
    usd: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Charge:
    """Dollars and tokens. Dollars are kept as whole nano-dollars, rounded up."""

    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: Charge) -> Charge:
        """Both together, to the nano-dollar, as accounts add them."""
        return Charge((self.nano_usd + other.nano_usd) / NANO, self.tokens + other.tokens)

    @property
    def nano_usd(self) -> int:
        """Never below the dollars it stands for, rounding of their sums aside."""
        return math.ceil(round(self.usd * NANO, 3))


@dataclass(frozen=True)
class Limits:
    """What asking may do.

    budgets: reserved before each request from an upper estimate, in the ledger, so that several processes together
    never exceed them. retries: tries after the first. max_failed: the share of rows that may fail before asking stops.
    drain_s: how long Ctrl-C waits for answers in flight.
    """

    budgets: tuple[Budget, ...] = ()
    retries: int = 6
    max_failed: float = 0.05
    drain_s: float = 20.0


def noted(stage: str, model: str) -> str:
    """What a request is asked for, beside the accounts that it is charged to: the stage, and who answers."""
    return f"{stage}\t{model}"


def accounts(run: str, now: datetime | None = None, note: str | None = None) -> Charged:
    """The ledger accounts that a request of `run` (recipe/account) is charged to now, and what for."""
    recipe, now = run.split("/", maxsplit=1)[0], now or datetime.now(UTC)
    periods: Charged = {per: f"{recipe}@{now.strftime(form)}" for per, form in _PERIODS.items()}
    return {"run": run, **periods, **({} if note is None else {"note": note})}


@dataclass
class Tally:
    """Counts of one call, and of what it found settled."""

    asked: int = 0
    answered: int = 0
    reused: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0

    def __add__(self, other: Tally) -> Tally:
        """Counts of two calls together; an unknown cost stays unknown."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "cost_usd"}
        unknown = self.cost_usd is None or other.cost_usd is None
        return Tally(**sums, cost_usd=None if unknown else self.cost_usd + other.cost_usd)  # type: ignore[operator]

    def add(self, entry: Entry) -> None:
        """Count one request that ended."""
        self.failed += entry.status == "failed"
        self.answered += entry.status != "failed"
        self.prompt_tokens += entry.prompt_tokens or 0
        self.completion_tokens += entry.completion_tokens or 0
        if entry.status != "failed" or entry.cost_usd:
            self.cost_usd = None if self.cost_usd is None or entry.cost_usd is None else self.cost_usd + entry.cost_usd


def backoff_s(attempts: int, retry_after_s: float | None) -> float:
    """Seconds to wait: what the server asked for, else full jitter over a doubling cap (AWS, 2015)."""
    if retry_after_s is not None and math.isfinite(retry_after_s):
        return min(max(0.0, retry_after_s), RETRY_AFTER_CAP_S) + random.random() * 0.1
    return random.random() * min(BACKOFF_CAP_S, 0.5 * float(2**attempts))
