"""vLLM in this process, for bulk: no server, no HTTP, and token ids as the engine has them."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.errors import Rejected, UserError
from llm_distill.logprobs import Logprobs
from llm_distill.models import Model
from llm_distill.models.decoding import encode
from llm_distill.models.rounds import Rounds, Waiting, in_thread, let_go
from llm_distill.models.servers import fault
from llm_distill.models.vllm_setup import Setup
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.plugs import InputFile, Weights
from llm_distill.prices import FREE
from llm_distill.records import Completion, Request

#: What is said by a knob, or must not be said: nobody's code but vLLM's runs here.
_OURS = {
    "model", "tokenizer", "dtype", "max_model_len", "max_logprobs", "logprobs_mode", "gpu_memory_utilization",
    "generation_config", "enable_lora", "max_lora_rank", "trust_remote_code",
}  # fmt: skip
#: Set before vLLM is imported: an engine that cannot outlive this process, whose words are no part of our output.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


class VllmOfflineModel(Model):
    """vLLM's engine in this process, whose interpreter must have vLLM. Answers as `vllm` does, under the same identity.

    Knobs are those of `vllm`; `engine_args` are fields of vLLM's EngineArgs. Requests join the running batch as they
    come and are answered as they end. Nothing is loaded before the first one.
    """

    prices = FREE
    holds_weights = True
    #: Knobs that no answer depends on.
    pace_knobs = ("gpu_memory_utilization", "max_logprobs")

    def __init__(
        self,
        *,
        model: Weights,
        sha256: str | None = None,
        revision: str | None = None,
        adapter: Weights | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        max_model_len: Annotated[int | None, Field(ge=1)] = None,
        max_logprobs: Annotated[int, Field(ge=0)] = 20,
        chat_template: InputFile | None = None,
        raw_only: bool = False,
        gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1)] = None,
        engine_args: dict[str, Any] | None = None,
        concurrency: Annotated[int, Field(ge=1)] = 1024,
        terms: str | None = None,
    ) -> None:
        if taken := _OURS & set(engine_args or {}):
            raise UserError(
                f"engine_args: {min(taken)} is not yours to give; there is a knob for it, or it is set for safety."
            )
        self._setup = Setup(
            model, sha256, revision, adapter, dtype, max_model_len, chat_template, raw_only, engine_args or {}
        )
        self.identity = self._setup.identity
        self.concurrency, self.terms = concurrency, terms
        self._max_logprobs = max_logprobs
        self._settings: dict[str, Any] = {"max_logprobs": max_logprobs} | (engine_args or {})
        if gpu_memory_utilization is not None:
            self._settings["gpu_memory_utilization"] = gpu_memory_utilization
        self._engine: _Engine | None = None
        self._rounds = Rounds(self._round)
        self._numbers = count()

    @property
    def vocabulary(self) -> Vocabulary:
        """What spells the ids in its logprobs, of which some may come from a server of the same weights."""
        return self._setup.vocabulary

    def preflight(self) -> None:
        """Check the weights and that vLLM is there. Loads nothing."""
        self._setup.folder()
        _ = self.vocabulary
        if find_spec("vllm") is None:
            raise UserError(
                "vllm_offline: vllm is not installed where llm-distill runs; `pip install vllm` there, or use "
                "`vllm: {python: ...}`, which runs it from an environment of its own."
            )

    def tokenizer(self) -> Any:
        """What text is to it, with its chat template."""
        return self._setup.tokenizer()

    async def complete(self, request: Request) -> Completion:
        """Answer one request, together with whatever else is asked meanwhile."""
        self._setup.check(request, self._max_logprobs)
        return await self._rounds.ask(request)

    def disk_bytes(self) -> int:
        """Of its weights, tokenizer and adapter."""
        return self._setup.disk_bytes()

    async def close(self) -> None:
        """Stop answering; the engine stays for the next time."""
        await self._rounds.close()

    def unload(self) -> None:
        """Give the memory back; the next request loads the weights again."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    async def _round(self, waiting: list[Waiting]) -> None:
        engine = await in_thread(self._ready)
        if isinstance(engine, BaseException):
            for one in waiting:
                one.resolve(engine)
            return
        flying: dict[str, Waiting] = {}
        try:
            while waiting or flying:
                gone = [number for number, one in flying.items() if one.future.done()]
                new = {str(next(self._numbers)): one for one in waiting}
                flying |= new
                asked = {number: one.request for number, one in new.items()}
                outcomes = await in_thread(partial(engine.advance, asked, gone))
                if isinstance(outcomes, BaseException):
                    for one in flying.values():
                        one.resolve(outcomes)
                    return
                for number in gone:  # let go of by now
                    del flying[number]
                for number, outcome in outcomes.items():
                    if number in flying:  # and not one of a round that was stopped
                        flying.pop(number).resolve(outcome)
                waiting = self._rounds.take()
        finally:
            engine.stale += flying
            let_go(flying.values())

    def _ready(self) -> _Engine:
        if self._engine is None:
            self._engine = _Engine(self._setup, self._settings)
        return self._engine


class _Engine:
    """A loaded engine, moved on step by step. `stale` are requests that nobody waits for since a round was stopped."""

    def __init__(self, setup: Setup, settings: Mapping[str, Any]) -> None:
        folder = setup.folder()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        lora = {"enable_lora": True, "max_lora_rank": setup.rank()} if setup.adapter else {}
        alone = (
            {} if any(name.endswith("parallel_size") for name in settings) else {"distributed_executor_backend": "uni"}
        )
        more = {"max_model_len": setup.max_model_len} if setup.max_model_len else {}
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.lora.request import LoRARequest

            args = EngineArgs(
                model=folder, dtype=setup.dtype, generation_config="vllm", logprobs_mode="raw_logprobs",
                disable_log_stats=True, use_tqdm_on_load=False, **lora, **alone, **more, **settings,
            )  # fmt: skip
            self._engine = LLMEngine.from_engine_args(args)
        except (ImportError, ValueError, TypeError, RuntimeError, OSError) as error:
            why = fault(f"{type(error).__name__}: {error}")
            raise UserError(f"vllm_offline: the engine does not start: {why}") from error
        self._lora = LoRARequest(setup.name, 1, setup.adapter) if setup.adapter else None
        self._tokenizer = setup.tokenizer()
        self._vocabulary = setup.vocabulary
        self._special = {self._vocabulary.token(number).decode(): number for number in self._vocabulary.special}
        self._context: int = self._engine.model_config.max_model_len
        self._name, self._identity = setup.name, setup.identity
        self._asked: dict[str, tuple[int | None, float]] = {}  # how many alternatives, and since when
        self._lock = threading.Lock()  # a round that was stopped may still be in a step
        self.stale: list[str] = []

    def advance(self, new: Mapping[str, Request], gone: Sequence[str]) -> dict[str, Completion | Rejected]:
        """Take requests on board, drop others, move all on by a token or more; gives those that ended."""
        with self._lock:
            dropped, self.stale = [*gone, *self.stale], []
            self._engine.abort_request(dropped)
            for number in dropped:
                self._asked.pop(number, None)
            outcomes: dict[str, Completion | Rejected] = {}
            for number, request in new.items():
                try:
                    self._add(number, request)
                except (Rejected, ValueError) as error:
                    outcomes[number] = Rejected(str(error))
            if self._engine.has_unfinished_requests():
                done = [one for one in self._engine.step() if one.finished and one.request_id in self._asked]
                outcomes |= {output.request_id: self._completion(output) for output in done}
            return outcomes

    def shutdown(self) -> None:
        """Let go of the weights."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()

    def _add(self, number: str, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = request.sampling
        ids = encode(self._tokenizer, request.messages, raw=request.raw)
        room = self._context - len(ids)
        if not ids or room < 1:
            raise Rejected(f"{len(ids)} prompt tokens; the context holds {self._context} with the answer")
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),  # as the server does
            stop=list(sampling.stop),
            stop_token_ids=[self._special[stop] for stop in sampling.stop if stop in self._special],  # not in its text
            seed=None if sampling.seed is None else sampling.seed + request.sample,
            logprobs=sampling.top_logprobs,
            structured_outputs=StructuredOutputsParams(json=sampling.schema) if sampling.schema else None,
        )
        self._engine.add_request(number, {"prompt_token_ids": ids}, params, lora_request=self._lora)
        self._asked[number] = sampling.top_logprobs, time.perf_counter()

    def _completion(self, output: Any) -> Completion:
        made, (wanted, began) = output.outputs[0], self._asked.pop(output.request_id)
        return Completion(
            text=made.text,
            finish_reason=made.finish_reason or "stop",
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(made.token_ids),
            model=self._name,
            fingerprint=self._identity,
            logprobs=None if wanted is None else self._logprobs(list(made.token_ids), made.logprobs, wanted),
            seconds=time.perf_counter() - began,
        )

    def _logprobs(self, ids: list[int], steps: Sequence[Mapping[int, Any]], k: int) -> Logprobs | None:
        """A step holds the k likeliest tokens and the chosen one. None when a chosen token has no number."""
        import numpy as np

        chosen = [steps[place][token].logprob for place, token in enumerate(ids)]
        if not ids or any(math.isnan(logprob) for logprob in chosen):
            return None
        tops = [sorted(step.items(), key=lambda item: -item[1].logprob)[:k] for step in steps]
        table = np.full((len(ids), k), -np.inf, dtype=np.float32)
        top_ids = np.full((len(ids), k), -1, dtype=np.int32)
        for place, top in enumerate(tops):
            table[place, : len(top)] = [entry.logprob for _, entry in top]
            top_ids[place, : len(top)] = [token for token, _ in top]
        return Logprobs.of_ids(ids, chosen, top_ids, table, self._vocabulary.token)
