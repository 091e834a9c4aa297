"""Who answers. Teacher, judge, base student and distilled student are all one type, so nothing can favour either."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from llm_distill.counting import BY_BYTES, TokenCounter
from llm_distill.pacing import Pace
from llm_distill.prices import Prices
from llm_distill.records import Completion, Request


class Model:
    """Anything that can complete a request: the base of all of them, with what most share.

    `identity` names everything an answer depends on besides the request (endpoint or weights, never a secret): it is
    part of the ledger's key. `concurrency` is how many requests may be in flight. `terms` names the terms of use
    recorded with each row. `prices` are None when unknown. `count` gives the tokens of a request's prompt, never too few.
    `holds_weights` says that it runs on this machine, where two may not fit side by side; `batches` that it is asked by the
    file and answers within a day (OpenAIBatchModel). One whose logprobs come as ids without bytes may have a `vocabulary`
    besides, which spells them.
    """

    holds_weights = False
    batches = False

    identity: str
    concurrency: int
    terms: str | None
    prices: Prices | None
    count: TokenCounter = BY_BYTES

    def preflight(self) -> None:
        """Check what can be checked without asking or loading: keys, files, hashes. UserError when something is off."""

    async def probe(self) -> None:
        """Find out, before many rows are queued, whether anybody is there. UserError when nobody is."""

    async def complete(self, request: Request) -> Completion:
        """Answer one request. Raises Unavailable (try again), Rejected (this row never), UserError (stop the run)."""
        raise NotImplementedError

    async def streamed(self, request: Request) -> Completion:
        """As `complete`, in a way that shows when the first token comes, where there is one."""
        return await self.complete(request)

    def disk_bytes(self) -> int | None:
        """Bytes of the files that it is served from; None where they are not on this machine."""
        return None

    async def close(self) -> None:
        """Release what belongs to the running event loop; the model may be asked again in another one."""

    def tokenizer(self) -> Any:
        """What text is to it, with its chat template; None where that is not at hand. Loads no weights."""
        return None

    def unload(self) -> None:
        """Give back the memory of weights, if there are any; the next request loads them again."""

    @cached_property
    def pace(self) -> Pace:
        """How fast it may be asked; one that runs in this process takes whatever it has places for."""
        return Pace(self.concurrency, ramp=False)


#: Name in a recipe -> where its class is.
MODELS = {
    "openai_api": "llm_distill.models.openai_api:OpenAIModel",
    "openai_batch": "llm_distill.models.openai_batch:OpenAIBatchModel",
    "scripted": "llm_distill.models.scripted:ScriptedModel",
    "transformers": "llm_distill.models.transformers_local:TransformersModel",
    "vllm": "llm_distill.models.vllm_server:VllmModel",
    "vllm_offline": "llm_distill.models.vllm_offline:VllmOfflineModel",
}
