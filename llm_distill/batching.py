"""Asking through provider batches: rows are gathered into files, sent, waited for, and settled by what comes back.

Every step is in the ledger before the next begins. Whoever comes after a crash, a day later or in another process, goes on
from there, and a batch that may have been started is looked for at its provider before another one is made of its rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from llm_distill.account import Account, Item, Peer, no_budget, still, stood_still, unfit
from llm_distill.batch_course import CHUNK, Course, row_of
from llm_distill.errors import DistillError, UserError
from llm_distill.ledger_batches import Batch, Row
from llm_distill.limits import Charged, Limits, Tally
from llm_distill.models import Model
from llm_distill.models.batch_lines import full_files
from llm_distill.models.openai_batch import OpenAIBatchModel
from llm_distill.records import Entry, Request

if TYPE_CHECKING:
    from llm_distill.ledger import Claims, Ledger


class BatchAsking:
    """One model being asked through batches."""

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        run: str,
        limits: Limits,
        total: int | None,
        on_tally: Callable[[Tally], None],
        on_stop: Callable[[Exception], None],
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        assert isinstance(model, OpenAIBatchModel)
        self.model, self.ledger, self.limits, self.total = model, ledger, limits, total
        self.on_tally, self.on_stop = on_tally, on_stop
        self.account = Account(model, run, ledger.stage)
        self.course = Course(model, ledger, self.account, limits, say)
        self.book = self.course.book
        self.tally = Tally()
        self.drain_s, self.open = 0.0, ()  # nothing is in flight between us and the provider for long
        self.claimed: list[tuple[Row, int]] = []  # ours, in no batch yet: with the bytes of their lines
        self.names: Charged = {}  # the accounts that these are charged to
        self.live: set[asyncio.Task[None]] = set()  # one for each batch
        self.peers: Sequence[Peer] = [self]  # all that share our budgets, in this process
        self.claiming = False
        self.wanting: Sequence[Any] = ()
        self.unfit: Exception | None = None
        self.stopping: Exception | None = None
        self.halted = asyncio.Event()

    @property
    def held(self) -> Collection[Any]:
        """What is not settled yet."""
        return self.live or self.claimed

    def stop(self, why: Exception) -> None:
        """Start nothing new and wait for nothing; the first reason counts."""
        self.stopping = self.stopping or why
        self.halted.set()

    async def settle_all(self, requests: Iterator[tuple[str, Request]]) -> None:
        """Settle every request, or leave everything in such order that the next call goes on from it."""
        jobs = (self._see_all_through(requests), self._keep(), self._halt())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            while self.course.steps:
                await asyncio.wait(self.course.steps)
            away = await asyncio.to_thread(self._leave)
            await self.model.close()
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        if self.stopping and away:
            go_on = "1 batch goes" if away == 1 else f"{away} batches go"
            words = f"{self.stopping} {go_on} on at the provider; the same command collects what comes of it."
            self.stopping = type(self.stopping)(words)

    async def _halt(self) -> None:
        await self.halted.wait()

    def _leave(self) -> int:
        rows = [row for row, _ in self.claimed]
        self.ledger.release([row.key for row in rows], [row.reserved for row in rows], self.names)
        return self.book.leave()

    async def _keep(self) -> None:
        """Say that we are alive, and show the counts."""
        while True:
            self.on_tally(self.tally)
            await asyncio.sleep(self.ledger.lease_s / 3)
            await asyncio.to_thread(self.ledger.renew)
            await asyncio.to_thread(self.book.renew)

    # From requests to batches

    async def _see_all_through(self, requests: Iterator[tuple[str, Request]]) -> None:
        await self.course.step(self.book.tidy)
        async with asyncio.TaskGroup() as self.tasks:
            busy = await self._gather(requests)
            while busy and self.stopping is None:
                busy = await self._join(busy)
                if busy:
                    await asyncio.sleep(self.model.poll_s)
                held = await asyncio.to_thread(self.book.holders, list(busy))
                free = [(key, request) for key, request in busy.items() if key not in held]
                busy = {key: busy[key] for key in held} | await self._gather(iter(free))

    async def _gather(self, requests: Iterator[tuple[str, Request]]) -> dict[str, Request]:
        """Claim what is owed and put it into batches; gives what somebody else is asking."""
        busy: dict[str, Request] = {}
        over: dict[str, Request] = {}
        while self.stopping is None:
            try:
                taken = [] if over else list(islice(requests, CHUNK))
            except UserError as error:  # a row that its template cannot show
                self.on_stop(error)
                break
            chunk = over or dict(taken)
            if not chunk:
                break
            if self.names != self.account.names():  # another day
                await self._pack(whole=True)
            twice = busy.keys() | {row.key for row, _ in self.claimed}
            chunk = {key: request for key, request in chunk.items() if key not in twice}
            self.tally.reused += 0 if over else len(taken) - len(chunk)  # the same question again
            ended, self.claiming = still(self.peers), True
            claims = await self.course.step(self._claim, chunk)
            self.tally.reused += len(claims.settled)
            self.on_tally(self.tally)
            busy |= {key: chunk[key] for key in claims.busy}
            over = {key: chunk[key] for key in claims.over}
            await self._pack(whole=bool(over))
            if over and not self.live:
                busy = await self._join(busy)
            if over:
                await self._wait_for_budget(claims, self.account.item(*next(iter(over.items()))), ended)
        await self._pack(whole=True)
        return busy

    async def _wait_for_budget(self, claims: Claims, item: Item, ended: int | None) -> None:
        """A batch was reserved at its worst and gives back a part when it is settled; so may who else asks in this process."""
        if self.live:
            await asyncio.wait(self.live, return_when=asyncio.FIRST_COMPLETED)
        elif ended is None or still(self.peers) != ended:
            await asyncio.sleep(min(self.model.poll_s, 1.0))
        else:
            assert claims.refused
            self.on_stop(no_budget(claims.refused, claims.held, item.reserve, self.tally, self.total))

    def _claim(self, chunk: Mapping[str, Request]) -> Claims:
        self.names = self.account.names()
        items = {key: self.account.item(key, request) for key, request in chunk.items()}
        reserve = {key: item.reserve for key, item in items.items()}
        claims = self.ledger.claim(
            self.account.run, self.model.identity, chunk, reserve, self.names, self.limits.budgets
        )
        for key in claims.mine:
            items[key].accounts = self.names
            size = len(self.model.line(key, chunk[key]))
            if size <= self.model.max_bytes:
                self.claimed.append((row_of(items[key]), size))
                continue
            entry = items[key].failed(f"its request takes {size:,} bytes, and a batch {self.model.max_bytes:,} at most")
            self.ledger.settle([entry], [reserve[key]], self.names)
            self._count([(items[key], entry)])
        return claims

    async def _pack(self, *, whole: bool) -> None:
        """Make batches of what is claimed: of what fills one, or of all."""
        self.claiming = True  # until what is claimed is in a live batch
        sizes = [size for _, size in self.claimed]
        counts = full_files(sizes, self.model.max_requests, self.model.max_bytes)
        for count in [*counts, len(sizes) - sum(counts)] if whole and sizes else counts:
            rows = [row for row, _ in self.claimed[:count]]
            del self.claimed[:count]
            identity, run = self.model.identity, self.account.run
            made = await self.course.step(self.book.put, identity, run, self.names, rows)
            for batch in made:
                self._see(batch, None)
            if sum(batch.size for batch in made) < count:
                self.on_stop(stood_still())
        self.claiming = False

    async def _join(self, busy: dict[str, Request]) -> dict[str, Request]:
        """Look after batches that nobody alive looks after and that hold rows of ours; gives the other rows."""
        held = await asyncio.to_thread(self.book.holders, list(busy))
        for name in dict.fromkeys(held.values()):
            if batch := await self.course.step(self.book.take, name):
                ours = await asyncio.to_thread(self.book.holders, [k for k, b in held.items() if b == name])
                busy = {key: request for key, request in busy.items() if key not in ours}
                self._see(batch, ours.keys())
        return busy

    def _see(self, batch: Batch, ours: Collection[str] | None, wait_s: float = 0.0) -> None:
        """See a batch through on the side. `ours`: those of its rows that we were asked for; None: all."""
        task = self.tasks.create_task(self._see_through(batch, ours, wait_s))
        self.live.add(task)
        task.add_done_callback(self.live.discard)

    async def _see_through(self, batch: Batch, ours: Collection[str] | None, wait_s: float) -> None:
        def count(ended: list[tuple[Item, Entry]]) -> None:
            self._count([(item, entry) for item, entry in ended if ours is None or item.key in ours])

        try:
            await asyncio.sleep(wait_s)
            new = (batch.size if ours is None else len(ours)) * (batch.state != "running" and batch.attempt == 1)
            batch = await self.course.begin(batch)
            self.tally.asked += new
            followers, wait_s = await self.course.finish(batch, count)
            self.tally.asked -= new if wait_s else 0
        except DistillError as why:
            return self.on_stop(why)
        self.tally.retried = self.course.retried
        for follower in followers:
            self._see(follower, ours, wait_s)
        return self.on_stop(self.unfit) if self.unfit else None

    def _count(self, ended: list[tuple[Item, Entry]]) -> None:
        for item, entry in ended:
            self.tally.add(entry)
            why = unfit(self.account, entry, item, self.tally, self.limits, self.total)
            self.unfit = self.unfit or why  # heeded when the batch is settled whole: it is paid for
        self.on_tally(self.tally)
