"""Any endpoint that speaks the OpenAI chat-completions protocol, over aiohttp with msgspec structs.

The `openai` package is not used on this road: the same 5,000 questions cost it several times the CPU, and a body that
is cut in the middle escapes its retries. Errors are told apart here; `ask` decides what is tried again.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from llm_distill.errors import Rejected, Unavailable, UserError, did_you_mean
from llm_distill.models import wire
from llm_distill.plugs import SecretName
from llm_distill.records import Completion, Request, content_id

if TYPE_CHECKING:
    import aiohttp

#: Worth another try: time-outs, conflicts, rate limits and the server's own troubles (529: overloaded).
_RETRYABLE = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}


class Prices(BaseModel):
    """Dollars per million tokens."""

    model_config = ConfigDict(extra="forbid")
    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


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
            body = msgspec.json.encode(wire.payload(request, self._name, self._max_tokens_field) | self._extra)
            async with self._open().post(url, data=body) as response:
                body = await response.read()
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"connection: {type(error).__name__}") from None
        if response.status != 200:
            await self._refused(response.status, response.headers.get("Retry-After"), body)
        return wire.completion(body, time.perf_counter() - start)

    async def _refused(self, status: int, retry_after: str | None, body: bytes) -> NoReturn:
        detail = wire.detail(body)
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
