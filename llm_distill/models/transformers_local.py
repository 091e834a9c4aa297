"""A model in this process, through transformers: teacher, judge or student from a folder, a .gguf or the hub."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from llm_distill.models import Model, weights
from llm_distill.models.decoding import Batch, Engine, Row
from llm_distill.plugs import Weights
from llm_distill.records import Completion, Request

#: How long the first request waits for others to share its batch: a thousandth of what a batch takes on a CPU.
_GATHER_S = 0.005
#: Batches' worth of requests in flight, so that there is something to sort by length and beginning.
_AHEAD = 16
T = TypeVar("T")


@dataclass(eq=False)
class _Waiting:
    row: Row
    future: asyncio.Future[Completion]


class TransformersModel(Model):
    """Answers requests in batches: sorted by length, their common beginning (few-shot examples) run only once.

    `model`: folder, .gguf file or hub id; `sha256` pins a .gguf and `revision` a hub id. `adapter`: a folder written
    by PEFT for that model, merged into it. `batch_size`: prompts a forward pass; 16 saturates two CPU cores, a large
    GPU takes more. Nothing is loaded before the first request, and every answer is resolved as soon as its batch is
    done. Sampling depends on the request alone, never on the batch. There is no price: running it costs no API money.
    """

    prices_usd: tuple[float, float] | None = (0.0, 0.0)
    holds_weights = True

    def __init__(
        self,
        *,
        model: Weights,
        sha256: str | None = None,
        revision: str | None = None,
        adapter: Weights | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
        batch_size: Annotated[int, Field(ge=1)] = 16,
        terms: str | None = None,
    ) -> None:
        self._model, self._pins, self._adapter = model, {"sha256": sha256, "revision": revision}, adapter
        self._dtype, self._device, self._batch_size = dtype, device, batch_size
        self.identity = f"{weights.identity(model, sha256, revision, adapter)}:{dtype}"
        self.concurrency = _AHEAD * batch_size
        self.terms = terms
        self._engine: Engine | None = None
        self._pending: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Completion:
        """Answer one request, together with whatever else is asked meanwhile."""
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(Row(request, cancelled=future.done), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    def preflight(self) -> None:
        """Find the weights, check a .gguf's hash, and convert it if that was never done here."""
        weights.prepare(self._model, **self._pins)

    async def close(self) -> None:
        """Stop answering; the weights stay for the next time."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])
        _let_go(self._pending)  # a worker that was stopped before its first step could not do it

    def unload(self) -> None:
        """Give the memory back; the next request loads the weights again."""
        if self._engine is not None:
            self._engine = None
            gc.collect()
            sys.modules["torch"].cuda.empty_cache()

    async def _work(self) -> None:
        """Take what is pending, answer it batch by batch, and again until nothing is pending."""
        waiting: list[_Waiting] = []
        try:
            await asyncio.sleep(_GATHER_S)
            while self._pending:
                waiting, self._pending = self._pending, []
                await self._round(waiting)
        finally:  # only a cancellation leaves somebody waiting
            _let_go(waiting + self._pending)

    async def _round(self, waiting: list[_Waiting]) -> None:
        by_row = {one.row: one for one in waiting if not one.future.done()}
        plan = await _in_thread(lambda: self._ready().plan(list(by_row)))
        if isinstance(plan, BaseException):
            return _resolve(by_row.values(), plan)
        _resolve(by_row.values())  # those that cannot be answered
        for batch in plan:
            if rows := [row for row in batch.rows if not row.cancelled()]:
                failed = await _in_thread(partial(self._ready().answer, Batch(rows, batch.beginning)))
                _resolve([by_row[row] for row in rows], failed)
        return None

    def _ready(self) -> Engine:
        if self._engine is None:
            model = weights.load_model(
                self._model, **self._pins, adapter=self._adapter, dtype=self._dtype, device=self._device
            )
            if self._adapter is not None:
                model = model.merge_and_unload()
            names = [Path(part).name if Path(part).exists() else part for part in (self._model, self._adapter) if part]
            self._engine = Engine(
                model,
                weights.load_tokenizer(self._model, **self._pins),
                name="+".join(names),
                identity=self.identity,
                batch_size=self._batch_size,
            )
        return self._engine


async def _in_thread(work: Callable[[], T]) -> T | BaseException:
    """What the work gives or raises; the loop stays free for those whose answers are there already."""
    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.wait([task])
    return task.exception() or task.result()


def _let_go(waiting: list[_Waiting]) -> None:
    for one in waiting:
        one.future.cancel()


def _resolve(waiting: Iterable[_Waiting], error: BaseException | None = None) -> None:
    """Hand outcomes, or the error of a batch, to those who wait for them."""
    for one in waiting:
        outcome = error or one.row.outcome
        if outcome is None or one.future.done():
            continue
        if isinstance(outcome, Completion):
            one.future.set_result(outcome)
        else:
            one.future.set_exception(outcome)
