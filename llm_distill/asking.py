"""Asking one model: workers on one side, a feed that claims rows for them on the other, a keeper that commits what ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from llm_distill.account import Account, Item, Peer, left_in_batches, no_budget, still, stood_still, unfit
from llm_distill.errors import Rejected, Unavailable, UserError
from llm_distill.ledger_batches import BatchBook
from llm_distill.limits import Limits, Tally, backoff_s
from llm_distill.models import Model
from llm_distill.records import Entry, Request

if TYPE_CHECKING:
    from llm_distill.ledger import Claims, Ledger

#: An answer is on disk within twice this time after it arrived; a commit this often costs nothing measurable.
COMMIT_S = 0.08
#: Rows that another process asks are looked at so many at a time.
_BUSY_ROWS = 256


class Asking:
    """One model being asked."""

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        run: str,
        limits: Limits,
        total: int | None,
        on_tally: Callable[[Tally], None],
        on_stop: Callable[[Exception], None],
    ) -> None:
        self.model, self.ledger, self.limits, self.total = model, ledger, limits, total
        self.on_tally, self.on_stop = on_tally, on_stop
        self.account = Account(model, run, ledger.stage)
        self.pace = model.pace
        self.drain_s = limits.drain_s
        self.probed = False
        self.tally = Tally()
        self.committing = threading.Lock()
        self.leased_until = time.time() + ledger.lease_s  # on the clock that goes on while a machine sleeps
        self.renewing = asyncio.Lock()
        self.done: list[tuple[Item, Entry]] = []  # ended, not yet on disk
        self.open: dict[str, Item] = {}  # claimed by us, not yet ended
        self.held: set[str] = set()  # claimed by us, not yet on disk
        self.wanting: list[Item] = []  # to be tried again, once there is a reservation for it
        self.items: dict[str, Item] = {}  # of the claim under way
        self.claim: asyncio.Task[Claims] | None = None
        self.probe: asyncio.Task[None] | None = None
        self.ready: asyncio.Queue[Item | None] = asyncio.Queue()
        # Claimed a little ahead, so that no place is idle; not more, for a crash leaves their reservations behind.
        self.chunk_rows = max(1, min(256, model.concurrency // 4))
        self.room: asyncio.Future[None] | None = None
        self.peers: Sequence[Peer] = [self]  # all that share our budgets, in this process
        self.claiming = False
        self.stopping: Exception | None = None
        self.quiet = asyncio.Event()  # nothing is open any more, or we are told to stop
        self.quiet.set()

    async def settle_all(self, requests: Iterator[tuple[str, Request]]) -> None:
        async with asyncio.TaskGroup() as self.tasks:
            keeper = self.tasks.create_task(self._keep())
            workers = [self.tasks.create_task(self._work()) for _ in range(self.model.concurrency)]
            try:
                await self._feed(requests)
                await self.quiet.wait()
                await self._drain(workers)
            finally:
                try:
                    await self._wind_up(workers, keeper)
                finally:  # also where the disk is full
                    await self.model.close()

    async def _wind_up(self, workers: Sequence[asyncio.Task[None]], keeper: asyncio.Task[None]) -> None:
        for task in (*workers, keeper):
            task.cancel()
        if self.claim is not None:  # cut off: what it claims is nobody's but ours
            claims = await self.claim
            self.open.update((key, self.items[key]) for key in claims.mine)
        for item in [item for item in self.open.values() if item.lost.tokens]:
            if item.flying:  # this try may be billed like those before it
                item.lost += item.reserve
            self._end(item, item.failed(item.last_error))
        await asyncio.to_thread(self._commit)
        await asyncio.to_thread(self._release)

    async def _feed(self, requests: Iterator[tuple[str, Request]]) -> None:
        """Claim in chunks as room appears; wait for what another process is asking, or for room in a budget."""
        busy: dict[str, Request] = {}
        over: dict[str, Request] = {}
        moved = False  # whether the last look at busy rows found one that was busy no more
        while self.stopping is None:
            await self._has_room()
            try:
                taken = [] if over else list(islice(requests, self.chunk_rows))
            except UserError as error:  # a row that its template cannot show
                return self.on_stop(error)
            chunk = over or dict(taken)
            self.tally.reused += 0 if over else len(taken) - len(chunk)
            if not chunk:
                if not busy:
                    return None
                if not self.open and (rows := await asyncio.to_thread(BatchBook(self.ledger).forsaken, [*busy])):
                    return self.on_stop(left_in_batches(rows))
                await asyncio.sleep(0.0 if moved else 0.2)
                chunk = dict(islice(busy.items(), max(self.chunk_rows, _BUSY_ROWS)))
                busy = {key: request for key, request in busy.items() if key not in chunk}
            again = {key: request for key, request in chunk.items() if key in self.held}  # the same question twice
            busy |= again
            chunk = {key: request for key, request in chunk.items() if key not in again}
            names = self.account.names()
            items = self.items = {key: self.account.item(key, request, names) for key, request in chunk.items()}
            reserve = {key: item.reserve for key, item in items.items()}
            ended, self.claiming = still(self.peers), True
            run, identity, budgets = self.account.run, self.model.identity, self.limits.budgets
            job = asyncio.to_thread(self.ledger.claim, run, identity, chunk, reserve, names, budgets)
            self.claim = asyncio.create_task(job)
            claims = await asyncio.shield(self.claim)
            self.claim, self.claiming = None, False
            moved = bool(claims.settled or claims.mine)
            self.tally.reused += len(claims.settled)
            busy |= {key: chunk[key] for key in claims.busy}
            over = {key: chunk[key] for key in claims.over}
            await self._offer([items[key] for key in claims.mine])
            if over and self.stopping is None:
                await self._wait_for_budget(claims, items[claims.over[0]], ended)
            self.on_tally(self.tally)
        return None

    async def _has_room(self) -> None:
        while len(self.open) > self.model.concurrency and self.stopping is None:
            self.room = asyncio.get_running_loop().create_future()
            await self.room
            self.room = None

    async def _offer(self, items: list[Item]) -> None:
        if not items:
            return
        self.open.update((item.key, item) for item in items)
        self.held.update(item.key for item in items)
        if self.stopping is None and not self.probed:
            self.probed = True
            self.probe = asyncio.create_task(self.model.probe())
            try:
                await self.probe
            except UserError as error:
                self.on_stop(error)
            except asyncio.CancelledError:
                if self.stopping is None:
                    raise
        if self.stopping is None:
            self.quiet.clear()
            for item in items:
                self.ready.put_nowait(item)

    async def _wait_for_budget(self, claims: Claims, item: Item, ended: int | None) -> None:
        """What is in flight was reserved at its worst and gives back a part when it settles."""
        if ended is None or still(self.peers) != ended:
            return await asyncio.sleep(COMMIT_S)
        assert claims.refused
        return self.on_stop(no_budget(claims.refused, claims.held, item.reserve, self.tally, self.total))

    async def _work(self) -> None:
        while (item := await self.ready.get()) is not None:
            if self.stopping:
                continue
            crowded = False
            await self.pace.enter(item.usual_tokens)
            try:
                if time.time() > self.leased_until:
                    await self._renew()
                if self.stopping:
                    continue
                item.attempts += 1
                self.tally.asked += item.attempts == 1
                item.flying = True
                completion = await self.model.complete(item.request)
                item.flying = False
                self._end(item, self.account.entry(item, completion))
            except Unavailable as error:
                item.flying, crowded = False, error.crowded
                self._again(item, error)
            except Rejected as error:
                self._end(item, item.failed(str(error)))
            except UserError as error:  # no request will do better; what is in flight is paid for and still welcome
                item.flying = False
                self.on_stop(error)
            finally:
                self.pace.leave(crowded=crowded)

    def _again(self, item: Item, error: Unavailable) -> None:
        item.last_error = str(error)
        if error.billed:
            self.account.lose(item, error)
        if item.attempts > self.limits.retries or self.stopping:
            return self._end(item, item.failed(item.last_error))
        self.tally.retried += 1
        delay_s = backoff_s(item.attempts, error.retry_after_s)
        # The try before this one may be billed, so this one needs a reservation of its own.
        then = self.wanting.append if error.billed else self.ready.put_nowait
        asyncio.get_running_loop().call_later(delay_s, then, item)
        return None

    async def _reserve_again(self) -> None:
        """Reserve for tries that follow one which may be billed, as far as the budgets have room."""
        accounts = self.wanting[0].accounts
        items = [item for item in self.wanting if item.accounts is accounts]
        ended = self._idle()
        charges, budgets = [item.reserve for item in items], self.limits.budgets
        granted, refused, held = await asyncio.to_thread(self.ledger.reserve, accounts, charges, budgets)
        for item in items[:granted]:
            self.wanting.remove(item)
            item.reserved += item.reserve
            self.ready.put_nowait(item)
        if refused and not granted and ended is not None and self._idle() == ended:
            self.on_stop(no_budget(refused, held, charges[0], self.tally, self.total))

    def _idle(self) -> int | None:
        """As `still`, for those who wait to reserve once more: what they hold themselves is not given back."""
        waiting = all(not p.claiming and len(p.held) <= len(p.wanting) for p in self.peers)
        return sum(p.tally.answered + p.tally.failed for p in self.peers) if waiting else None

    def _end(self, item: Item, entry: Entry) -> None:
        self.done.append((item, entry))
        del self.open[item.key]
        if not self.open:
            self.quiet.set()
        if self.room and not self.room.done() and len(self.open) <= self.model.concurrency:
            self.room.set_result(None)
        self.tally.add(entry)
        if why := unfit(self.account, entry, item, self.tally, self.limits, self.total):
            self.on_stop(why)

    def _commit(self) -> None:
        with self.committing:  # the last commit may meet the keeper's, whose thread a cancel does not stop
            batch = list(self.done)
            for accounts in {id(item.accounts): item.accounts for item, _ in batch}.values():
                ours = [(item, entry) for item, entry in batch if item.accounts is accounts]
                self.ledger.settle([entry for _, entry in ours], [item.reserved for item, _ in ours], accounts)
                settled = {item.key for item, _ in ours}  # at once: nothing may be settled twice
                self.done[: len(batch)] = [pair for pair in self.done[: len(batch)] if pair[0].key not in settled]
                batch = [pair for pair in batch if pair[0].key not in settled]
                self.held.difference_update(settled)

    def _release(self) -> None:
        for accounts in {id(item.accounts): item.accounts for item in self.open.values()}.values():
            ours = [item for item in self.open.values() if item.accounts is accounts]
            unbilled = [item.reserved for item in ours if not item.flying]  # what is cut off in flight may be billed
            self.ledger.release([item.key for item in ours], unbilled, accounts)

    async def _keep(self) -> None:
        """Commit what ended, show the counts, keep our claims alive."""
        while True:
            await asyncio.sleep(COMMIT_S)
            await asyncio.to_thread(self._commit)
            if self.wanting and self.stopping is None:
                await self._reserve_again()
            self.on_tally(self.tally)
            await self._renew()

    async def _renew(self) -> None:
        """Keep our claims alive, where it is time; stop where another process took some of them, for it asks them now."""
        async with self.renewing:
            now, lease_s, before = time.time(), self.ledger.lease_s, list(self.open)
            if not 2 / 3 * lease_s < self.leased_until - now <= lease_s:  # also after a clock was set back
                ours = await asyncio.to_thread(self.ledger.renew)
                self.leased_until = now + lease_s
                if any(key in self.open and key not in ours for key in before):
                    self.on_stop(stood_still())

    def stop(self, why: Exception) -> None:
        """Ask nothing new; the first reason counts."""
        self.stopping = self.stopping or why
        self.quiet.set()
        self.pace.halt()
        if self.probe:
            self.probe.cancel()
        if self.room and not self.room.done():
            self.room.set_result(None)

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        """After a stop: let what is in flight arrive, start nothing new."""
        while not self.ready.empty():
            self.ready.get_nowait()
        for _ in workers:
            self.ready.put_nowait(None)
        until = asyncio.get_running_loop().time() + self.drain_s
        while not all(w.done() for w in workers):
            if not self.drain_s or asyncio.get_running_loop().time() > until:  # a second Ctrl-C sets drain_s to 0
                return
            await asyncio.sleep(0.02)
