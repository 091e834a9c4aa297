"""Any endpoint that speaks the OpenAI chat-completions protocol, over aiohttp with msgspec structs.

The `openai` package is not used on this road: the same 5,000 questions cost it several times the CPU, and a body that
is cut in the middle escapes its retries. Errors are told apart here; `ask` decides what is tried again.
"""

from __future__ import annotations

import math
import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from llm_distill.errors import Rejected, Unavailable, UserError, did_you_mean
from llm_distill.plugs import SecretName
from llm_distill.records import Completion, Logprobs, Request, content_id

if TYPE_CHECKING:
    import aiohttp

#: Worth another try: time-outs, conflicts, rate limits and the server's own troubles (529: overloaded).
_RETRYABLE = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_DETAIL = 300  # characters of a server's message that a reason keeps


class Prices(BaseModel):
    """Dollars per million tokens."""

    model_config = ConfigDict(extra="forbid")
    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class _Alternative(msgspec.Struct, gc=False):  # top-20 of 80 tokens are 1,680 of these an answer
    token: str
    logprob: float | None
    bytes: msgspec.Raw = msgspec.Raw(b"null")  # parsed only where the text cannot say it


class _Token(_Alternative, gc=False):
    top_logprobs: list[_Alternative] = []


class _TokenLogprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _TokenLogprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    error: Any = None


class OpenAIModel:
    """A hosted model (or a local server) behind `POST {base_url}/chat/completions`."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: SecretName | None = "OPENAI_API_KEY",
        concurrency: Annotated[int, Field(ge=1)] = 64,
        timeout_s: Annotated[float, Field(gt=0)] = 120.0,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
        prices_usd: Prices | None = None,
        terms: str | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url: found {base_url!r}; write http(s)://host[:port]/v1.")
        if parts.username or parts.password:
            raise UserError("base_url: it holds a user or password; put the key into an environment variable instead.")
        self.concurrency, self.terms = concurrency, terms
        self.prices_usd = (prices_usd.prompt, prices_usd.completion) if prices_usd else None
        self.identity = f"openai_api:{base_url.rstrip('/')}:{model}"
        if extra_body:
            self.identity += f":{content_id(extra_body)}"
        self._base_url, self._name, self._key_env, self._extra = (
            base_url.rstrip("/"),
            model,
            api_key_env,
            extra_body or {},
        )
        self._timeout_s, self._max_tokens_field = timeout_s, max_tokens_field
        self._session: aiohttp.ClientSession | None = None
        self._decode = msgspec.json.Decoder(_Body).decode

    def preflight(self) -> None:
        """UserError when the key's environment variable is not set; called before anything is asked."""
        if self._key_env and not self._key():
            raise UserError(
                f"the environment variable {self._key_env} is not set; export the key of {self._base_url}, "
                "or write `api_key_env: null` for an endpoint that needs none."
            )

    def _key(self) -> str:
        key = os.environ.get(self._key_env or "", "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(
                f"the environment variable {self._key_env} holds characters that no key has; export it again."
            )
        return key

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._key_env:
                headers["Authorization"] = f"Bearer {self._key()}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # `ask` counts what is in flight
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers=headers,
                trust_env=True,  # proxies
            )
        return self._session

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def unload(self) -> None:
        """No weights here."""

    async def complete(self, request: Request) -> Completion:
        """One chat completion. See Model.complete for the errors."""
        import aiohttp

        start = time.perf_counter()
        try:
            url = f"{self._base_url}/chat/completions"
            async with self._open().post(url, data=msgspec.json.encode(self._payload(request))) as response:
                body = await response.read()
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"connection: {type(error).__name__}") from None
        if response.status != 200:
            await self._refused(response.status, response.headers.get("Retry-After"), body)
        return self._completion(body, time.perf_counter() - start)

    def _payload(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        payload: dict[str, Any] = {
            "model": self._name,
            "messages": request.messages,
            "temperature": sampling.temperature,
            self._max_tokens_field: sampling.max_tokens,
        }
        if sampling.top_p != 1.0:
            payload["top_p"] = sampling.top_p
        if sampling.stop:
            payload["stop"] = sampling.stop
        if sampling.seed is not None:
            payload["seed"] = sampling.seed + request.sample
        if sampling.top_logprobs is not None:
            payload |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        return payload | self._extra

    async def _refused(self, status: int, retry_after: str | None, body: bytes) -> NoReturn:
        detail = _detail(body)
        if status in (401, 403):
            key = f"the key in {self._key_env}" if self._key_env else "a request without a key (api_key_env is null)"
            raise UserError(f"{self._base_url} refuses {key}: HTTP {status}.")
        if status == 404:
            offered = await self._offered()
            raise UserError(f"{self._base_url} does not know model {self._name!r} (HTTP 404).{offered}")
        if status == 402 or (status == 429 and "insufficient_quota" in detail):
            raise UserError(f"{self._base_url}: the account has no credit left (HTTP {status}).")
        if status in _RETRYABLE:
            raise Unavailable(f"HTTP {status}: {detail}", _seconds(retry_after))
        raise Rejected(f"HTTP {status}: {detail}")

    async def _offered(self) -> str:
        """What the endpoint says it has, as the tail of a message."""
        import aiohttp

        try:
            async with self._open().get(f"{self._base_url}/models") as response:
                names = [entry["id"] for entry in msgspec.json.decode(await response.read())["data"]]
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError, LookupError, TypeError):
            return " Is base_url right? It usually ends in /v1."
        return did_you_mean(self._name, names)

    def _completion(self, body: bytes, seconds: float) -> Completion:
        try:
            answer = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unavailable("the body is not a whole chat completion" if body else "empty body") from None
        if not answer.choices:
            raise Unavailable(f"no choices: {_detail(body)}")
        choice, usage = answer.choices[0], answer.usage or _Usage()
        text = choice.message.content or ""
        if not text and not choice.message.refusal and choice.finish_reason in (None, "stop"):
            raise Unavailable("empty answer")  # happens under load, also with HTTP 200
        return Completion(
            text=text,
            finish_reason=choice.finish_reason or "stop",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            model=answer.model or self._name,
            fingerprint=answer.system_fingerprint,
            refusal=choice.message.refusal,
            logprobs=_logprobs(choice.logprobs),
            seconds=seconds,
        )


def _logprobs(given: _TokenLogprobs | None) -> Logprobs | None:
    """By column; None as soon as one chosen token has no finite logprob, for a partly known row would mislead."""
    if given is None or not given.content:
        return None
    import numpy as np

    chosen = [t.logprob for t in given.content]
    if any(p is None or math.isnan(p) for p in chosen):
        return None
    tops = [[a for a in t.top_logprobs if a.logprob is not None] for t in given.content]
    table = np.full((len(tops), max(map(len, tops))), -np.inf, dtype=np.float32)
    for row, top in zip(table, tops, strict=True):
        row[: len(top)] = [a.logprob for a in top]
    return Logprobs(
        tokens=[_bytes(t) for t in given.content],
        logprobs=np.array(chosen, dtype=np.float32),
        top_tokens=[[_bytes(a) for a in top] for top in tops],
        top_logprobs=table,
    )


def _bytes(token: _Alternative) -> bytes:
    r"""A token's bytes. Only a piece of a character differs from its text, shown as U+FFFD or `bytes:\xe2`."""
    text = token.token
    if "\ufffd" in text or text.startswith("bytes:"):
        given = msgspec.json.decode(token.bytes, type=list[int] | None)
        if given is not None:
            return bytes(given)
    return text.encode()


def _detail(body: bytes) -> str:
    """A server's own words about an error, cut short."""
    try:
        error = msgspec.json.decode(body)["error"]
        text = (
            f"{error.get('code') or error.get('type') or ''} {error['message']}"
            if isinstance(error, dict)
            else str(error)
        )
    except (msgspec.MsgspecError, LookupError, TypeError, UnicodeDecodeError):
        text = body[:_DETAIL].decode("utf-8", "replace")
    return " ".join(text.split())[:_DETAIL]


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date."""
    if not retry_after:
        return None
    try:
        return float(retry_after)
    except ValueError:
        try:
            return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
