"""The one door to every model: who is owed an answer, how many questions are in flight, what is tried again.

`ask` settles every request it can in the ledger and returns counts; callers read the answers from the ledger. What is
settled there already is never asked again, whichever run or process paid for it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_distill.asking import Asking
from llm_distill.batching import BatchAsking
from llm_distill.errors import Interrupted
from llm_distill.interrupts import on_interrupt
from llm_distill.limits import Limits, Tally
from llm_distill.models import Model
from llm_distill.records import Request

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

OnTally = Callable[[Tally], None]
#: A model, the (key, request) pairs that it is asked, and how many they are, where that is known.
Group = tuple[Model, Iterable[tuple[str, Request]], int | None]
#: Objects made and not yet gone before the garbage collector looks; a thousand requests in flight are some tens of thousands.
_GARBAGE_OBJECTS = 100_000


def ask(
    requests: Iterable[tuple[str, Request]],
    model: Model,
    ledger: Ledger,
    *,
    run: str,
    limits: Limits = Limits(),
    total: int | None = None,
    on_tally: OnTally = lambda _tally: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Tally:
    """Settle every request (key, request) in the ledger; `total` of them, if that is known.

    Raises FellShort when a budget or `max_failed` stopped it, Interrupted on Ctrl-C, UserError when the endpoint
    refuses us altogether. Whatever ended before that is durable.
    """
    return ask_all([(model, requests, total)], ledger, run=run, limits=limits, on_tally=on_tally, say=say)


def ask_all(
    groups: Sequence[Group],
    ledger: Ledger,
    *,
    run: str,
    limits: Limits = Limits(),
    on_tally: OnTally = lambda _tally: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Tally:
    """As `ask`, for several models side by side: each at its own pace, all on the same budgets; one stop stops all."""
    import uvloop

    async def settle() -> Tally:
        askings: list[Asking | BatchAsking] = []

        def show(_tally: Tally) -> None:
            on_tally(sum((a.tally for a in askings), Tally()))

        def stop(why: Exception) -> None:
            for asking in askings:
                asking.stop(why)

        def interrupt() -> None:
            if any(a.stopping for a in askings):
                for asking in askings:
                    asking.drain_s = 0.0  # a second Ctrl-C waits for nothing
                return
            flying = sum(len(a.open) for a in askings)
            if flying:
                say(f"stopping: waiting up to {limits.drain_s:g} s for {flying} requests; Ctrl-C again to leave them")
            stop(Interrupted("stopped; everything answered is kept, the same command goes on from here."))

        for model, _, total in groups:
            common = model, ledger, run, limits, total, show, stop
            askings.append(BatchAsking(*common, say) if model.batches else Asking(*common))
        for asking in askings:
            asking.peers = askings
        async with on_interrupt(interrupt), asyncio.TaskGroup() as tasks:
            for asking, (_, requests, _) in zip(askings, groups, strict=True):
                tasks.create_task(asking.settle_all(iter(requests)))
        show(Tally())
        if why := next((a.stopping for a in askings if a.stopping), None):
            raise why
        return sum((a.tally for a in askings), Tally())

    try:
        with _seldom_collected():
            tally: Tally = uvloop.run(settle())
        return tally
    except BaseExceptionGroup as group:  # what a task met: one is enough to know why
        raise _first(group) from None


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let the garbage collector look seldom, and not at what was there before.

    What is in flight lives for as long as a model takes to answer, so looking after each 700 new objects finds nothing, over
    and over, for a fifth of all time at a thousand requests in flight. What a row leaves behind goes by itself: there are
    no circles in it.
    """
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    if not 0 < usual[0] < _GARBAGE_OBJECTS or frozen:  # somebody else has seen to it
        yield
        return
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
