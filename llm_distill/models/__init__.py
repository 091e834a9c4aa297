"""Who answers. Teacher, judge, base student and distilled student are all one type, so nothing can favour either."""

from __future__ import annotations

from typing import Protocol

from llm_distill.records import Completion, Request


class Model(Protocol):
    """Anything that can complete a request.

    `identity` names everything an answer depends on besides the request (endpoint or weights, never a secret): it is
    part of the ledger's key. `concurrency` is how many requests may be in flight. `terms` names the terms of use
    recorded with each row. `prices_usd` is (prompt, completion) per million tokens, None when unknown.
    """

    identity: str
    concurrency: int
    terms: str | None
    prices_usd: tuple[float, float] | None

    def preflight(self) -> None:
        """Check what can be checked without asking or loading: keys, files, hashes. UserError when something is off."""

    async def complete(self, request: Request) -> Completion:
        """Answer one request. Raises Unavailable (try again), Rejected (this row never), UserError (stop the run)."""
        ...

    async def close(self) -> None:
        """Release what belongs to the running event loop; the model may be asked again in another one."""
        ...

    def unload(self) -> None:
        """Give back the memory of weights, if there are any; the next request loads them again."""


#: Name in a recipe -> where its class is.
MODELS = {
    "openai_api": "llm_distill.models.openai_api:OpenAIModel",
    "scripted": "llm_distill.models.scripted:ScriptedModel",
    "transformers": "llm_distill.models.transformers_local:TransformersModel",
}
