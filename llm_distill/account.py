"""What one request costs while it is asked, and when asking has to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from llm_distill.errors import DistillError, FellShort, Unavailable, UserError
from llm_distill.limits import Budget, Charge, Charged, Limits, Tally, accounts, noted
from llm_distill.models import Model
from llm_distill.records import Completion, Entry, Request

#: A failure rate says nothing before this many rows have ended, and then it is that of the last so many.
GATE_ROWS, GATE_WINDOW = 100, 200
#: So many answers without logprobs, from the first on, and the endpoint has none.
BARE_ROWS = 20
#: Bytes a token, about, for what a provider will count; reservations use an upper bound instead.
BYTES_PER_TOKEN = 4


class Peer(Protocol):
    """Who asks on the same budgets in this process: what it holds may be given back."""

    tally: Tally

    @property
    def wanting(self) -> Collection[Any]:
        """What it holds and cannot give back, for it waits for more."""
        ...

    @property
    def held(self) -> Collection[Any]:
        """What it has claimed and not yet settled."""
        ...

    @property
    def claiming(self) -> bool:
        """Whether it is about to hold more."""
        ...


def still(peers: Sequence[Peer]) -> int | None:
    """How many requests have ended, when nobody holds anything or is about to; None while somebody does.

    A budget's refusal is final when this stands before it and has not changed after it: nothing will be given back.
    """
    if any(peer.held or peer.claiming for peer in peers):
        return None
    return sum(peer.tally.answered + peer.tally.failed for peer in peers)


@dataclass
class Item:
    """A claimed request.

    prompt_bound: the most tokens its prompt can have, `more` of them for a chat template that turned out longer than
    thought; usual_tokens: what a provider will count. reserve: the most that one try costs; reserved: what is reserved
    for it so far; lost: what earlier tries may have been billed although nothing came of them; billed_usd: the part of
    that which is known.
    """

    key: str
    request: Request
    accounts: Charged
    prompt_bound: int
    usual_tokens: int
    more: int
    reserve: Charge
    reserved: Charge
    lost: Charge = field(default_factory=Charge)
    billed_usd: float | None = None
    attempts: int = 0
    flying: bool = False  # sent, and nothing came back yet
    last_error: str = ""

    def failed(self, reason: str) -> Entry:
        """Its entry when it ends without an answer."""
        charged = {"cost_usd": self.billed_usd, "charged_usd": self.lost.usd, "charged_tokens": self.lost.tokens}
        return Entry(self.key, "failed", reason, attempts=self.attempts, **charged)  # type: ignore[arg-type]


@dataclass
class Account:
    """Reserves and charges the requests of one model in one run."""

    model: Model
    run: str
    stage: str = ""
    bare: int = 0  # answers without the logprobs that were asked for
    has_logprobs: bool = False
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=GATE_WINDOW))  # which of the last ended failed
    _more: int = 0  # by how much a prompt was longer than its bound: a chat template that nobody told us of
    _day: str = ""
    _names: Charged = field(default_factory=dict)

    def names(self) -> Charged:
        """The ledger accounts to charge now; the same object for the whole of a day."""
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        if day != self._day:
            self._day, self._names = day, accounts(self.run, note=noted(self.stage, self.model.identity))
        return self._names

    def item(self, key: str, request: Request, names: Charged | None = None) -> Item:
        """A request with the most that it may cost; charged to `names`, or to the accounts of now."""
        size = sum(len(m.content.encode()) for m in request.messages)
        bound, most = self.model.count(request) + self._more, request.sampling.max_tokens
        prices, batch = self.model.prices, self.model.batches
        reserve = Charge(prices.at_most_usd(bound, most, batch=batch) if prices else 0.0, bound + most)
        usual = size // BYTES_PER_TOKEN + request.sampling.max_tokens
        return Item(key, request, names or self.names(), bound, usual, self._more, reserve, reserve)

    def _charge(
        self, prompt_tokens: int, completion_tokens: int, cached: int | None = 0, new: int | None = 0
    ) -> Charge:
        """What a try cost; `cached` and `new` are the prompt's tokens that came from or went into a cache."""
        tokens, prices, batch = prompt_tokens + completion_tokens, self.model.prices, self.model.batches
        if prices is None:
            return Charge(0.0, tokens)
        usd = prices.cost_usd(prompt_tokens, completion_tokens, cached or 0, cache_write_tokens=new or 0, batch=batch)
        return Charge(usd, tokens)

    def lose(self, item: Item, error: Unavailable) -> None:
        """Charge a try of which nothing is left: what its usage says, else the most it can have been."""
        item.lost += item.reserve if error.usage is None else self._charge(*error.usage)
        if error.usage is not None and self.model.prices is not None:
            item.billed_usd = (item.billed_usd or 0.0) + self._charge(*error.usage).usd

    def entry(self, item: Item, completion: Completion) -> Entry:
        """The entry of a request that was answered."""
        given, made = completion.prompt_tokens, completion.completion_tokens
        known = given is not None and made is not None
        cached, new = completion.cached_tokens, completion.cache_write_tokens
        charge = self._charge(given, made, cached, new) if known else item.reserve  # type: ignore[arg-type]
        if given is not None:
            self._more = max(self._more, item.more + given - item.prompt_bound)
        charged = charge + item.lost
        return Entry(
            key=item.key,
            status=completion.status,
            reason=completion.refusal or (None if completion.status == "ok" else completion.finish_reason),
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=given,
            completion_tokens=made,
            cached_tokens=cached,
            cache_write_tokens=new,
            cost_usd=charge.usd + (item.billed_usd or 0.0) if known and self.model.prices is not None else None,
            attempts=item.attempts,
            served_model=completion.model,
            fingerprint=completion.fingerprint,
            terms=self.model.terms,
            seconds=completion.seconds,
            charged_usd=charged.usd,
            charged_tokens=charged.tokens,
            logprobs=completion.packed if completion.logprobs is None else completion.logprobs.pack(),
            reasoning=completion.reasoning,
        )


def unfit(
    account: Account, entry: Entry, item: Item, tally: Tally, limits: Limits, total: int | None
) -> DistillError | None:
    """Why asking must stop after this entry, if it must."""
    failed = entry.status == "failed"
    account.recent.append(failed)
    if failed:
        ended = tally.answered + tally.failed
        spent = ended >= GATE_ROWS and tally.failed > limits.max_failed * (total or ended)
        broken = len(account.recent) == GATE_WINDOW and sum(account.recent) > max(0.5, limits.max_failed) * GATE_WINDOW
        if spent or broken:
            return FellShort(
                f"{tally.failed} of {ended} requests failed, more than max_failed = {limits.max_failed:g} allows; "
                f"the last one: {entry.reason}. What was answered is kept.",
                passes="trouble",
            )
    elif item.request.sampling.top_logprobs is not None and not account.has_logprobs:
        account.has_logprobs = entry.logprobs is not None
        account.bare += not account.has_logprobs
        if account.bare == BARE_ROWS:
            return UserError(
                f"answers.top_logprobs is {item.request.sampling.top_logprobs}, and the first {BARE_ROWS} answers came "
                "without any logprobs: this endpoint has none to give. Remove it, or ask an endpoint that has. The "
                "answers are kept in the ledger."
            )
    return None


def left_in_batches(rows: int) -> DistillError:
    """Why asking one by one stops where rows are in batches that nobody waits for."""
    return FellShort(
        f"{rows:,} rows are in batches at the provider, paid for there and waited for by no process; run a recipe that asks "
        "this model through openai_batch to collect them.",
        passes="trouble",
    )


def stood_still() -> DistillError:
    """Why a process stops that others took for dead: it was suspended, or its machine slept."""
    return FellShort(
        "this process stood still so long that another one took over its rows; run again.", passes="trouble"
    )


def no_budget(budget: Budget, held: Charge, least: Charge, tally: Tally, total: int | None) -> DistillError:
    """Why a budget stops the asking: an error of the user's when it never had room for a single request."""
    usd = budget.usd is not None and (held + least).nano_usd > Charge(budget.usd).nano_usd
    unit, bound = ("dollars", budget.usd) if usd else ("tokens", budget.tokens)
    spent, next_ = (round(held.usd, 6), round(least.usd, 6)) if usd else (held.tokens, least.tokens)
    words = f"the budget of {bound:,} {unit} a {budget.per}"
    if not (held.usd if usd else held.tokens):
        return UserError(
            f"{words} is below what the first request may take, {next_:,} {unit} (its prompt and max_tokens); raise "
            "the budget or lower answers.max_tokens."
        )
    owed = None if total is None else total - tally.reused - tally.answered
    more = "" if owed is None else f" {owed:,} rows are owed"
    used = tally.cost_usd if usd else tally.prompt_tokens + tally.completion_tokens
    if owed and tally.answered and used is not None:
        more += f", about {round(used / tally.answered * owed, 4 if usd else None):,} {unit} more"
    return FellShort(
        f"{words} is reached: {spent:,} spent or reserved, and the next request may take {next_:,}.{more}"
        f"{'.' if more else ''} Everything answered is kept; raise the budget and run again to go on. (What a crash cut off "
        "stays reserved, for it may be billed.)",
        passes=None if budget.per == "run" else budget.per,
    )
