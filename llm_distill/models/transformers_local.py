"""A model in this process, through transformers: teacher, judge or student from a folder, a .gguf or the hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.models import Model, weights
from llm_distill.models.decoding import Batch, Engine, Row
from llm_distill.models.footprint import disk_bytes
from llm_distill.models.rounds import Rounds, Waiting, in_thread
from llm_distill.plugs import Weights
from llm_distill.prices import FREE
from llm_distill.records import Completion, Request

#: Batches' worth of requests in flight, so that there is something to sort by length and beginning.
_AHEAD = 16


class TransformersModel(Model):
    """Answers requests in batches: sorted by length, their common beginning (few-shot examples) run only once.

    `model`: folder, .gguf file or hub id; `sha256` pins a .gguf and `revision` a hub id. `adapter`: a folder written
    by PEFT for that model, merged into it. `batch_size`: prompts a forward pass; 16 saturates two CPU cores, a large
    GPU takes more. Nothing is loaded before the first request, and every answer is resolved as soon as its batch is
    done. Sampling depends on the request alone, never on the batch. There is no price: running it costs no API money.
    """

    prices = FREE
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
        self._rounds = Rounds(self._round)

    async def complete(self, request: Request) -> Completion:
        """Answer one request, together with whatever else is asked meanwhile."""
        return await self._rounds.ask(request)

    def preflight(self) -> None:
        """Find the weights, check a .gguf's hash, and convert it if that was never done here."""
        weights.prepare(self._model, self._pins["sha256"], self._pins["revision"])

    def disk_bytes(self) -> int:
        """Of its weights, tokenizer and adapter."""
        return disk_bytes(self._model, **self._pins, adapter=self._adapter)

    def tokenizer(self) -> Any:
        """What text is to it, with its chat template."""
        return weights.load_tokenizer(self._model, **self._pins)

    async def close(self) -> None:
        """Stop answering; the weights stay for the next time."""
        await self._rounds.close()

    def unload(self) -> None:
        """Give the memory back; the next request loads the weights again."""
        if self._engine is not None:
            self._engine = None
            weights.free()

    def engine(self) -> Engine:
        """The loaded weights with their tokenizer, for who reads texts with them; not while requests are answered."""
        return self._ready()

    async def _round(self, waiting: list[Waiting]) -> None:
        by_row = {Row(one.request, cancelled=one.future.done): one for one in waiting}
        plan = await in_thread(lambda: self._ready().plan(list(by_row)))
        if isinstance(plan, BaseException):
            for one in waiting:
                one.resolve(plan)
            return
        for row, one in by_row.items():
            one.resolve(row.outcome)  # those that cannot be answered
        for batch in plan:
            if rows := [row for row in batch.rows if not row.cancelled()]:
                failed = await in_thread(partial(self._ready().answer, Batch(rows, batch.beginning)))
                for row in rows:
                    by_row[row].resolve(failed or row.outcome)

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
