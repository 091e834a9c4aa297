"""Concurrent calls of `complete`, gathered for a model that answers many requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from llm_distill.records import Completion, Request

#: How long the first request waits for others to share its round: a thousandth of what a batch takes on a CPU.
_GATHER_S = 0.005
T = TypeVar("T")


@dataclass(eq=False)
class Waiting:
    """A request, and the future that somebody waits on; it is done as soon as nobody waits any more."""

    request: Request
    future: asyncio.Future[Completion]

    def resolve(self, outcome: Completion | BaseException | None) -> None:
        """Hand over a completion or an error, where there is one and somebody still waits."""
        if outcome is None or self.future.done():
            return
        if isinstance(outcome, Completion):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)


class Rounds:
    """One worker takes what is pending, has it answered, and again, until nothing is pending.

    `answer` resolves all it is given, in any order, and may `take` more on its way. Works in one event loop after the
    other, with `close` between them.
    """

    def __init__(self, answer: Callable[[list[Waiting]], Awaitable[None]]) -> None:
        self._answer = answer
        self._pending: list[Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> Completion:
        """The answer, when some round has brought it."""
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._pending.append(Waiting(request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    def take(self) -> list[Waiting]:
        """What came in since the last time."""
        taken, self._pending = self._pending, []
        return [one for one in taken if not one.future.done()]

    async def _work(self) -> None:
        taken: list[Waiting] = []
        try:
            await asyncio.sleep(_GATHER_S)
            while self._pending:
                taken = self.take()
                await self._answer(taken)
        finally:  # only a cancellation leaves somebody waiting
            let_go(taken + self.take())

    async def close(self) -> None:
        """Stop answering and let go of everybody who waits."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])
        let_go(self.take())  # a worker that was stopped before its first step could not do it


def let_go(waiting: Iterable[Waiting]) -> None:
    """Tell those who still wait that nothing will come."""
    for one in waiting:
        one.future.cancel()


async def in_thread(work: Callable[[], T]) -> T | BaseException:
    """What the work gives or raises; the loop stays free for those whose answers are there already."""
    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.wait([task])
    return task.exception() or task.result()
