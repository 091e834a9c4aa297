"""The one door to every model: who is owed an answer, how many questions are in flight, what is tried again.

`ask` settles every request it can in the ledger and returns counts; callers read the answers from the ledger. What is
settled there already is never asked again, whichever run or process paid for it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from llm_distill.errors import FellShort, Interrupted, Rejected, Unavailable, UserError
from llm_distill.limits import Limits, Tally, backoff_s, cost_usd
from llm_distill.models import Model
from llm_distill.records import Completion, Entry, Request

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: An answer is on disk at most this long after it arrived; a commit this often costs nothing measurable.
COMMIT_S = 0.1
#: A failure rate says nothing before this many rows have ended.
GATE_ROWS = 100


OnTally = Callable[[Tally], None]


def ask(
    requests: Iterable[tuple[str, Request]],
    model: Model,
    ledger: Ledger,
    *,
    run: str,
    limits: Limits = Limits(),
    total: int | None = None,
    on_tally: OnTally = lambda _tally: None,
) -> Tally:
    """Settle every request (key, request) in the ledger; `total` of them, if that is known.

    Raises FellShort when a budget or `max_failed` stopped it, Interrupted on Ctrl-C, UserError when the endpoint
    refuses us altogether. Whatever ended before that is durable.
    """
    try:
        return asyncio.run(_Asking(model, ledger, run, limits, total, on_tally).settle_all(iter(requests)))
    except BaseExceptionGroup as group:  # what a worker met: one is enough to know why
        raise group.exceptions[0] from None


@dataclass
class _Item:
    key: str
    request: Request
    reserved_usd: float
    reserved_tokens: int
    attempts: int = 0


class _Asking:
    def __init__(
        self, model: Model, ledger: Ledger, run: str, limits: Limits, total: int | None, on_tally: OnTally
    ) -> None:
        self.model, self.ledger, self.run, self.limits, self.on_tally = model, ledger, run, limits, on_tally
        self.total = total
        self.tally = Tally()
        self.done: list[Entry] = []  # ended, not yet on disk
        self.open: set[str] = set()  # claimed by us, not yet ended
        self.held: set[str] = set()  # claimed by us, not yet on disk
        self.last_failure = ""
        self.usd, self.tokens = ledger.spent(run)  # paid and reserved
        self.ready: asyncio.Queue[_Item | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(2 * model.concurrency)  # claimed rows waiting or in flight
        self.flying = 0  # offered to the workers, not yet ended
        self.stopping: Exception | None = None
        self.quiet = asyncio.Event()  # nothing is open any more, or we are told to stop
        self.quiet.set()

    async def settle_all(self, requests: Iterator[tuple[str, Request]]) -> Tally:
        async with asyncio.TaskGroup() as group, _on_interrupt(self._interrupt):
            keeper = group.create_task(self._keep())
            workers = [group.create_task(self._work()) for _ in range(self.model.concurrency)]
            try:
                await self._feed(requests)
                await self.quiet.wait()
                await self._drain(workers)
            finally:
                for worker in workers:
                    worker.cancel()
                keeper.cancel()
                await asyncio.to_thread(self._commit)
                await asyncio.to_thread(self.ledger.release, sorted(self.open))
                await self.model.close()
        self.on_tally(self.tally)
        if self.stopping:
            raise self.stopping
        return self.tally

    async def _feed(self, requests: Iterator[tuple[str, Request]]) -> None:
        """Claim in chunks as room appears; wait for what another process is asking."""
        busy: dict[str, Request] = {}
        chunk_rows = max(1, min(256, self.model.concurrency))
        while self.stopping is None:
            try:
                taken = list(islice(requests, chunk_rows))
            except UserError as error:  # a row that its template cannot show
                return self._stop(error)
            chunk = dict(taken)
            self.tally.reused += len(taken) - len(chunk)
            if not chunk:
                if not busy:
                    return None
                await asyncio.sleep(0.2)
                chunk, busy = busy, {}
            again = {key: request for key, request in chunk.items() if key in self.held}  # the same question twice
            busy |= again
            chunk = {key: request for key, request in chunk.items() if key not in again}
            claims = await asyncio.to_thread(self.ledger.claim, self.run, self.model.identity, chunk)
            self.tally.reused += len(claims.settled)
            busy |= {key: chunk[key] for key in claims.busy}
            self.open.update(claims.mine)
            self.held.update(claims.mine)
            if self.open and self.stopping is None:
                self.quiet.clear()
            for key in claims.mine:
                if self.stopping is None:
                    await self._offer(key, chunk[key])
            self.on_tally(self.tally)
        return None

    async def _offer(self, key: str, request: Request) -> None:
        await self.room.acquire()
        prices = self.model.prices_usd
        prompt_tokens = sum(len(m.content.encode()) + 8 for m in request.messages)
        item = _Item(
            key,
            request,
            reserved_usd=0.0 if prices is None else cost_usd(prices, prompt_tokens, request.sampling.max_tokens),
            reserved_tokens=prompt_tokens + request.sampling.max_tokens,
        )
        limits = self.limits
        while self.stopping is None:
            over_usd = limits.budget_usd is not None and self.usd + item.reserved_usd > limits.budget_usd
            over_tokens = limits.budget_tokens is not None and self.tokens + item.reserved_tokens > limits.budget_tokens
            if not over_usd and not over_tokens:
                self._reserve(item, +1)
                self.tally.asked += 1
                self.ready.put_nowait(item)
                return
            if not self.flying:  # nothing left that could give back a part of its reserve
                usd = (limits.budget_usd, self.usd, item.reserved_usd, "dollars")
                tokens = (limits.budget_tokens, self.tokens, item.reserved_tokens, "tokens")
                budget, spent, least, unit = usd if over_usd else tokens
                self._stop(
                    FellShort(
                        f"the budget of {budget:,} {unit} is reached: {round(spent, 6):,} spent, and the next request may "
                        f"take {round(least, 6):,}; raise it and run again to go on."
                    )
                )
                return
            await asyncio.sleep(0.01)

    def _reserve(self, item: _Item, sign: int) -> None:
        self.flying += sign
        self.usd += sign * item.reserved_usd
        self.tokens += sign * item.reserved_tokens

    async def _work(self) -> None:
        while (item := await self.ready.get()) is not None:
            if self.stopping:
                continue
            item.attempts += 1
            try:
                completion = await self.model.complete(item.request)
            except Unavailable as error:
                if item.attempts <= self.limits.retries and self.stopping is None:
                    self.tally.retried += 1
                    delay = backoff_s(item.attempts, error.retry_after_s)
                    asyncio.get_running_loop().call_later(delay, self.ready.put_nowait, item)
                    continue
                self._end(item, Entry(item.key, "failed", str(error), attempts=item.attempts))
            except Rejected as error:
                self._end(item, Entry(item.key, "failed", str(error), attempts=item.attempts))
            except UserError as error:  # no request will do better; what is in flight is paid for and still welcome
                self._stop(error)
            else:
                self._end(item, self._entry(item, completion))

    def _entry(self, item: _Item, completion: Completion) -> Entry:
        prices, given, made = self.model.prices_usd, completion.prompt_tokens, completion.completion_tokens
        known = prices is not None and given is not None and made is not None
        charged = cost_usd(prices, given, made) if known else item.reserved_usd  # type: ignore[arg-type]
        return Entry(
            key=item.key,
            status=completion.status,
            reason=completion.refusal or (None if completion.status == "ok" else completion.finish_reason),
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=given,
            completion_tokens=made,
            cost_usd=charged if known else None,
            attempts=item.attempts,
            served_model=completion.model,
            fingerprint=completion.fingerprint,
            terms=self.model.terms,
            seconds=completion.seconds,
            charged_usd=charged,
            charged_tokens=item.reserved_tokens if given is None or made is None else given + made,
            logprobs=None if completion.logprobs is None else completion.logprobs.pack(),
        )

    def _end(self, item: _Item, entry: Entry) -> None:
        self._reserve(item, -1)
        self.usd += entry.charged_usd
        self.tokens += entry.charged_tokens
        self.done.append(entry)
        self.open.discard(item.key)
        if not self.open:
            self.quiet.set()
        self.room.release()
        self.tally.add(entry)
        self._gate(entry)

    def _gate(self, entry: Entry) -> None:
        """Stop when more rows failed than all of them may."""
        if entry.status == "failed":
            self.last_failure = entry.reason or ""
        failed, ended = self.tally.failed, self.tally.answered + self.tally.failed
        if ended >= GATE_ROWS and failed > self.limits.max_failed * (self.total or ended):
            self._stop(
                FellShort(
                    f"{failed} of {ended} requests failed, more than max_failed = {self.limits.max_failed:g} allows; "
                    f"the last one: {self.last_failure}. What was answered is kept."
                )
            )

    def _commit(self) -> None:
        batch = list(self.done)
        self.ledger.settle(batch)
        del self.done[: len(batch)]
        self.held.difference_update(entry.key for entry in batch)

    async def _keep(self) -> None:
        """Commit what ended, show the counts, keep our claims alive."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(COMMIT_S)
            await asyncio.to_thread(self._commit)
            self.on_tally(self.tally)
            if time.monotonic() - renewed > self.ledger.lease_s / 3:
                renewed = time.monotonic()
                await asyncio.to_thread(self.ledger.renew)

    def _stop(self, why: Exception) -> None:
        self.stopping = self.stopping or why
        self.quiet.set()
        self.room.release()  # the feed may be waiting for it

    def _interrupt(self) -> None:
        if self.stopping is None:
            self._stop(Interrupted("stopped; everything answered is kept, the same command goes on from here."))
        else:
            self.limits = Limits(drain_s=0.0)  # a second Ctrl-C waits for nothing

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        """After a stop: let what is in flight arrive, start nothing new."""
        while not self.ready.empty():
            self.ready.get_nowait()
        for _ in workers:
            self.ready.put_nowait(None)
        until = time.monotonic() + self.limits.drain_s
        while (  # noqa: ASYNC110  a second Ctrl-C shortens the wait
            not all(w.done() for w in workers) and time.monotonic() < until and self.limits.drain_s
        ):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _on_interrupt(handler: Callable[[], None]) -> AsyncIterator[None]:
    """Route SIGINT and SIGTERM to a handler while the loop runs; elsewhere than the main thread signals are not ours to take."""
    loop = asyncio.get_running_loop()
    with suppress(ValueError, RuntimeError, NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        with suppress(ValueError, RuntimeError, NotImplementedError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
