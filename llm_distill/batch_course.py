"""The course of one batch: its file is sent, it is started, waited for, fetched, and settled row by row.

A start whose answer was lost is the dangerous place: the batch is looked for at its provider, by its name and by its file,
and only when it is not there, and its file is gone so that it cannot come to be, is another one made.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from llm_distill.account import Account, Item
from llm_distill.errors import DistillError, FellShort, Rejected, Unavailable, UserError
from llm_distill.ledger_batches import Batch, BatchBook, Row, State
from llm_distill.limits import Charge, Limits, backoff_s
from llm_distill.models.batch_lines import Outcome, outcomes
from llm_distill.models.wire import told
from llm_distill.records import Completion, Entry, Request

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger
    from llm_distill.models.openai_batch import Job, OpenAIBatchModel

_T = TypeVar("_T")
Count = Callable[[list[tuple[Item, Entry]]], None]
#: How often a provider is asked that does not answer: for an hour, about.
TRIES = 240
#: Rows in one transaction.
CHUNK = 500
#: How often a start that nobody confirmed is looked for before it counts as never made, and how far apart.
LOOKS, LOOK_S = 4, 5.0
#: How often a file is fetched that comes shorter than its provider says, before it is taken as it is.
FETCHES = 4
#: A batch that finds its provider's queue full is halved, down to this, and waits this long at most.
SMALL, QUEUE_CAP_S = 100, 900.0


class Course:
    """What the batches of one model have in common."""

    def __init__(
        self, model: OpenAIBatchModel, ledger: Ledger, account: Account, limits: Limits, say: Callable[[str], None]
    ) -> None:
        self.model, self.ledger, self.account, self.limits, self.say = model, ledger, account, limits, say
        self.book = BatchBook(ledger)
        self.steps: set[asyncio.Future[Any]] = set()  # under way in the ledger
        self.sending = asyncio.Lock()  # a file at a time, for they are large
        self.probed = False
        self.refused = 0  # how often in a row the provider's queue was full
        self.retried = 0  # rows that went into another batch

    async def step(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Something in the ledger that comes to its end even when we are told to stop meanwhile."""
        step = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        self.steps.add(step)
        step.add_done_callback(self.steps.discard)
        return await asyncio.shield(step)

    async def begin(self, batch: Batch) -> Batch:
        """The batch when its provider has it, from wherever it is."""
        while batch.state != "running":
            batch = await self._start(batch)
        self.say(f"{batch.batch_id}: {batch.size:,} rows are with the provider")
        return batch

    async def finish(self, batch: Batch, count: Count) -> tuple[list[Batch], float]:
        """Wait for a batch and settle its rows; gives the batches of what is still owed, and the seconds they should wait.

        They wait, and their rows have not been asked, where the provider's queue was full.
        """
        assert batch.batch_id
        assert batch.file_id
        job = await self._wait(batch.batch_id)
        if any(fault.code == "token_limit_exceeded" for fault in job.faults):
            followers, wait_s = await self._queue_again(batch)
        else:
            followers, wait_s, self.refused = await self._settle(batch, job, count), 0.0, 0
        again = sum(follower.size for follower in followers)
        self.say(f"{batch.batch_id}: {job.status}" + (f"; {again:,} rows go into another batch" if again else ""))
        with suppress(DistillError):
            await self.model.delete(batch.file_id)
        return followers, wait_s

    async def _patiently(
        self, call: Callable[..., Awaitable[_T]], *arguments: Any, tries: int = TRIES, certain: bool = False
    ) -> _T:
        """What a call gives once it gives something; `certain`: not again when it may have done its work."""
        for attempt in range(1, tries + 1):
            try:
                return await call(*arguments)
            except Unavailable as error:
                if certain and error.billed:
                    raise
                if attempt == tries:
                    raise FellShort(f"the provider does not answer, after {tries} tries: {error}.") from None
                await asyncio.sleep(backoff_s(attempt, error.retry_after_s))
        raise AssertionError(tries)

    async def _wait(self, batch_id: str) -> Job:
        """A batch when it is over and its files are there, if there will be any."""
        empty = 0
        while True:
            job = await self._patiently(self.model.retrieve, batch_id)
            if job.over:
                empty += job.status == "completed" and not (job.output_file_id or job.error_file_id)
                if empty in (0, FETCHES):
                    return job
            await asyncio.sleep(self.model.poll_s)

    # Until it runs

    async def _start(self, batch: Batch) -> Batch:
        """The batch one state further, or one back where its start came to nothing."""
        if batch.state == "creating":
            job = await self._search(batch)
            return await (self._note(batch, "running", batch_id=job.id) if job else self._note(batch, "uploading"))
        async with self.sending:
            if not self.probed:
                await self.model.probe()
                self.probed = True
            with tempfile.TemporaryFile() as file:
                await asyncio.to_thread(self._write, batch, file)
                name = f"llm-distill-{batch.id}"
                file_id = await self._patiently(self.model.upload, name, file, tries=self.limits.retries + 1)
            batch = await self._note(batch, "creating", file_id=file_id)
            try:
                job = await self._patiently(self.model.create, file_id, batch.id, certain=True)
            except Unavailable:  # and nobody knows whether it was made
                return batch
            except UserError:
                await self._note(batch, "uploading")
                raise
        return await self._note(batch, "running", batch_id=job.id)

    async def _note(self, batch: Batch, state: State, **ids: str) -> Batch:
        return await self.step(self.book.note, msgspec.structs.replace(batch, state=state, **ids))

    def _write(self, batch: Batch, file: IO[bytes]) -> None:
        for part in _parts([row.key for row in self.book.rows(batch.id)]):
            asked = self.book.held(batch, part)
            file.writelines(self.model.line(key, asked[key]) for key in part if key in asked)

    async def _search(self, batch: Batch) -> Job | None:
        """The batch that an unconfirmed start did make, if it made one."""
        assert batch.file_id
        for look in range(1, LOOKS + 1):
            if look == LOOKS:  # a start that is still on its way finds no file any more
                with suppress(Rejected, UserError):
                    await self._patiently(self.model.delete, batch.file_id)
            if found := await self._patiently(self.model.find, batch.id, batch.file_id):
                for double in found[1:]:
                    with suppress(DistillError):
                        await self._patiently(self.model.cancel, double.id, tries=3)
                return found[0]
            await asyncio.sleep(min(self.model.poll_s, LOOK_S))
        return None

    # When it is over

    async def _queue_again(self, batch: Batch) -> tuple[list[Batch], float]:
        """The provider has no room for these rows now; alone they may be too many for it ever."""
        rows = await asyncio.to_thread(self.book.rows, batch.id)
        alone = await asyncio.to_thread(self.book.running, batch.model) <= 1
        half = (len(rows) + 1) // 2 if alone and len(rows) >= 2 * SMALL else len(rows)
        parts = [part for part in (rows[:half], rows[half:]) if part]
        followers = await self.step(self.book.follow, batch, parts, batch.attempt, {})
        self.refused += 1
        return followers, min(self.model.poll_s * 2.0 ** min(self.refused - 1, 64), QUEUE_CAP_S)

    async def _settle(self, batch: Batch, job: Job, count: Count) -> list[Batch]:
        """Settle what a batch that is over says of its rows, and make a new one of the rest."""
        rows = {row.key: row for row in await asyncio.to_thread(self.book.rows, batch.id)}
        stray: Counter[str] = Counter()
        why: dict[str, Unavailable] = {}
        again = batch.attempt <= self.limits.retries
        untold = Unavailable("the batch's output does not tell of it", billed=job.status == "completed")
        with tempfile.TemporaryFile() as file:
            told: Iterator[tuple[str, Outcome]]
            if job.status == "failed":
                untold, told = Unavailable("the batch was refused because of other rows"), _refusals(job, list(rows))
            else:
                try:
                    await self._fetch(job, file)
                except Rejected as gone:  # and with it what was paid for
                    untold, again = Unavailable(str(gone), billed=True), False
                file.seek(0)
                told = outcomes(file, rows.keys(), stray, job.seconds / len(rows))
            while part := await asyncio.to_thread(lambda: list(islice(told, CHUNK))):
                count(await self.step(self._settle_part, batch, rows, part, why))
        rest: list[Row] | None = [] if again else None
        for keys in _parts(list(rows)):
            count(await self.step(self._sort_rest, batch, rows, keys, why, untold, rest))
        self.retried += len(rest or ())
        return await self.step(self.book.follow, batch, [rest] if rest else [], batch.attempt + 1, stray)

    async def _fetch(self, job: Job, file: IO[bytes]) -> None:
        """Put the lines of both of a batch's files into one."""
        for file_id in filter(None, (job.output_file_id, job.error_file_id)):
            start = file.tell()
            for _ in range(FETCHES):
                file.seek(start)
                file.truncate()
                if await self._patiently(self.model.download, file_id, file):
                    break
                await asyncio.sleep(min(self.model.poll_s, LOOK_S))
            file.write(b"\n")

    def _settle_part(
        self, batch: Batch, rows: Mapping[str, Row], part: Sequence[tuple[str, Outcome]], why: dict[str, Unavailable]
    ) -> list[tuple[Item, Entry]]:
        waiting = self.book.held(batch, [key for key, _ in part])  # not those settled before a crash
        ended = []
        for key, outcome in part:
            if key in waiting and isinstance(outcome, Unavailable):
                why[key] = outcome
            elif key in waiting:
                item = self._item(batch, rows[key], waiting[key])
                if isinstance(outcome, Completion):
                    ended.append((item, self.account.entry(item, outcome)))
                else:
                    ended.append((item, item.failed(str(outcome))))
        self._end(batch, ended)
        return ended

    def _sort_rest(
        self, batch: Batch, rows: Mapping[str, Row], keys: Sequence[str], why: Mapping[str, Unavailable],
        untold: Unavailable, rest: list[Row] | None,
    ) -> list[tuple[Item, Entry]]:  # fmt: skip
        """Rows without an answer: they go to the `rest`, for another batch; where there is none they have failed."""
        ended = []
        for key, request in self.book.held(batch, keys).items():
            item, error = self._item(batch, rows[key], request), why.get(key, untold)
            if error.billed:
                self.account.lose(item, error)
            room = True
            if rest is not None and error.billed:  # the next try may be billed as well
                room = bool(self.ledger.reserve(item.accounts, [item.reserve], self.limits.budgets)[0])
                item.reserved += item.reserve if room else Charge()
            if rest is not None and room:
                rest.append(row_of(item))
            else:
                ended.append((item, item.failed(str(error))))
        self._end(batch, ended)
        return ended

    def _item(self, batch: Batch, row: Row, request: Request) -> Item:
        item = self.account.item(row.key, request)
        item.accounts, item.attempts = batch.accounts, batch.attempt
        item.reserved, item.lost, item.billed_usd = row.reserved, row.lost, row.billed_usd
        return item

    def _end(self, batch: Batch, ended: Sequence[tuple[Item, Entry]]) -> None:
        reserved = [item.reserved for item, _ in ended]
        self.ledger.settle([entry for _, entry in ended], reserved, batch.accounts)


def row_of(item: Item) -> Row:
    """What a batch keeps of an item."""
    return Row(item.key, item.reserved, item.lost, item.billed_usd)


def _refusals(job: Job, sent: Sequence[str]) -> Iterator[tuple[str, Rejected]]:
    """Why a batch was refused, of the lines that it was refused for, or of all where nobody says which."""
    lines = {fault.line: fault for fault in job.faults if fault.line and fault.line <= len(sent)}
    first = job.faults[0] if job.faults else None
    for number, key in enumerate(sent, 1):
        fault = lines.get(number) if lines else first
        if fault or not lines:
            words = told(f"{fault.code or ''} {fault.message or ''}") if fault else "no reason given"
            yield key, Rejected(f"the batch was refused: {words}")


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]
