"""A model that follows a script: offline, deterministic, for examples, tests and trying a recipe out."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Annotated

from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.logprobs import Logprobs
from llm_distill.models import Model
from llm_distill.prices import FREE
from llm_distill.records import Completion, Request, content_id


class ScriptedModel(Model):
    """Answers by the first rule (a regular expression, searched in the last turn) that matches.

    With logprobs asked for, each reply is one token that has probability `confidence`; the other replies share the rest.
    """

    prices = FREE

    def __init__(
        self,
        *,
        rules: dict[str, str] | None = None,
        default: str = "",
        confidence: float = 0.9,
        latency_s: float = 0.0,
        concurrency: Annotated[int, Field(ge=1)] = 64,
        terms: str | None = "own",
    ) -> None:
        try:
            self._rules = [(re.compile(pattern), reply) for pattern, reply in (rules or {}).items()]
        except re.error as error:
            raise UserError(f"rules: {error.pattern!r} is not a regular expression: {error}.") from None
        if not 0.0 < confidence <= 1.0:
            raise UserError(f"confidence: found {confidence}; it is a probability above 0.")
        self._default, self._confidence, self._latency_s = default, confidence, latency_s
        self.concurrency, self.terms = concurrency, terms
        self.identity = "scripted:" + content_id([rules, default, confidence])

    def preflight(self) -> None:
        """A script is always ready."""

    async def complete(self, request: Request) -> Completion:
        """The scripted reply."""
        await asyncio.sleep(self._latency_s)
        asked = request.messages[-1].content
        reply = next((reply for pattern, reply in self._rules if pattern.search(asked)), self._default)
        return Completion(
            text=reply,
            finish_reason="stop",
            prompt_tokens=sum(len(m.content.split()) for m in request.messages),
            completion_tokens=len(reply.split()),
            model="scripted",
            logprobs=None
            if request.sampling.top_logprobs is None
            else self._logprobs(reply, request.sampling.top_logprobs),
            seconds=self._latency_s,
        )

    async def close(self) -> None:
        """Nothing to release."""

    def unload(self) -> None:
        """No weights."""

    def _logprobs(self, reply: str, k: int) -> Logprobs:
        others = sorted({other for _, other in self._rules} | {self._default} - {reply})
        others = [other for other in others if other != reply][: max(0, k - 1)]
        rest = (1.0 - self._confidence) / max(1, len(others))
        top = [math.log(self._confidence)] + [math.log(rest) if rest else -math.inf for _ in others]
        return Logprobs.of_tokens([reply.encode()], top[:1], [[text.encode() for text in (reply, *others)]], [top])
