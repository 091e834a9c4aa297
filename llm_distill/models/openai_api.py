"""Any endpoint that speaks the OpenAI chat-completions protocol, over aiohttp with msgspec structs.

The `openai` package is not used on this road: the same 5,000 questions cost it several times the CPU, and a body that
is cut in the middle escapes its retries. Errors are told apart here; `ask` decides what is tried again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
from pydantic import Field

from llm_distill.counting import counter
from llm_distill.errors import Rejected, Unavailable, Unreachable, UserError, did_you_mean
from llm_distill.models import Model, refusals, streaming, wire
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from llm_distill.models.wire_process import Reading
from llm_distill.pacing import Pace
from llm_distill.plugs import SecretName, Weights
from llm_distill.prices import Prices, listed
from llm_distill.records import Completion, Request, content_id

if TYPE_CHECKING:
    import aiohttp

#: The paces of providers' models, shared by all who ask them.
_PACES: dict[Any, Pace] = {}
#: An answer with logprobs is read in one go: a socket that is paused in the middle of it is asked for twice.
_READ_BYTES = 1 << 20
#: A connection is not used again after this time: uvicorn (vLLM, LiteLLM) and Node close one that has been idle for 5 s, and
#: who asks just then is cut off and pays for it.
_IDLE_S = 4.0
#: What no proxy can reach.
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class OpenAIModel(Model):
    """A hosted model (or a local server) behind `POST {base_url}/chat/completions`.

    `token_ids` asks vLLM for logprobs by vocabulary id. `tokenizer` is the model's own: its vocabulary spells these ids,
    and its tokenizer.json, where it is a folder, counts prompts for budgets. Without `prices_usd` the price table's hold.
    """

    def __init__(
        self,
        *,
        model: Annotated[str, Field(min_length=1)],
        base_url: str = "https://api.openai.com/v1",
        api_key_env: SecretName | None = "OPENAI_API_KEY",
        concurrency: Annotated[int, Field(ge=1)] = 64,
        requests_per_minute: Annotated[float, Field(gt=0)] | None = None,
        tokens_per_minute: Annotated[float, Field(gt=0)] | None = None,
        timeout_s: Annotated[float, Field(gt=0)] = 120.0,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
        prices_usd: Prices | None = None,
        terms: str | None = None,
        token_ids: bool = False,
        tokenizer: Weights | None = None,
    ) -> None:
        try:
            parts = urlsplit(base_url)
            _ = parts.port
        except ValueError as error:
            raise UserError(f"base_url: found {base_url!r}: {error}; write http(s)://host[:port]/v1.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url: found {base_url!r}; write http(s)://host[:port]/v1.")
        if parts.username or parts.password:
            raise UserError("base_url: it holds a user or password; put the key into an environment variable instead.")
        self.concurrency, self.terms = concurrency, terms
        self.prices = prices_usd or listed(base_url, model)
        self.count = counter(model, tokenizer)
        self._base_url, self._name, self._key_env = base_url.rstrip("/"), model, api_key_env
        self.identity = f"openai_api:{self._base_url}:{model}"
        if extra_body:
            self.identity += f":{content_id(extra_body)}"
        if token_ids:
            # Answers without ids are other answers. The tokenizer is no part of them: it is read afterwards, and one that
            # is named later or corrected asks nothing again.
            self.identity += ":token_ids"
        self._token_ids, self._tokenizer = token_ids, tokenizer
        self._extra, self._max_tokens_field, self._timeout_s = extra_body or {}, max_tokens_field, timeout_s
        self._rates = requests_per_minute, tokens_per_minute
        self._url = f"{self._base_url}/chat/completions"
        self._session: aiohttp.ClientSession | None = None
        self._reading, self._stream = Reading(), streaming.ASKED
        self._proxy: str | None = None
        self._reached = self._answered = False

    @cached_property
    def pace(self) -> Pace:
        """One for all who ask this model of this provider in this process."""
        whose = self._base_url, self._name, self.concurrency, self._rates
        return _PACES.setdefault(whose, Pace(self.concurrency, *self._rates))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What spells the ids in this model's logprobs, where they come without bytes."""
        return read_vocabulary(self._tokenizer) if self._tokenizer and self._token_ids else None

    @property
    def tokenizer_named(self) -> str | None:
        """Where the model's own tokenizer is, if that is known."""
        return self._tokenizer

    def preflight(self) -> None:
        """UserError when the key's environment variable is not set, or the tokenizer not there; before anything is asked."""
        _ = self.vocabulary
        if self._key_env and not self.key():
            raise UserError(
                f"the environment variable {self._key_env} is not set; export the key of {self._base_url}, "
                "or write `api_key_env: null` for an endpoint that needs none."
            )

    @property
    def name(self) -> str:
        """What the endpoint calls the model."""
        return self._name

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return self._base_url

    def key(self) -> str:
        """The key, from its environment variable."""
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
                headers["Authorization"] = f"Bearer {self.key()}"
            parts = urlsplit(self._base_url)
            # Once for all: aiohttp's own `trust_env` reads the netrc file in a thread for every single request.
            own = parts.hostname in _THIS_MACHINE or proxy_bypass(parts.netloc)
            proxy = None if own else getproxies().get(parts.scheme)
            self._proxy = proxy if not proxy or "://" in proxy else f"http://{proxy}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),  # `ask` counts what is in flight
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(self._timeout_s, 30.0)),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                read_bufsize=_READ_BYTES,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._reading.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def probe(self) -> None:
        """Ask for the list of models, which costs nothing: UserError when nobody answers or the key is refused."""
        import aiohttp

        for wait_s in (0.5, 1.5, None) if not self._reached else ():
            try:
                async with self._open().get(f"{self._base_url}/models", proxy=self._proxy) as response:
                    words = await response.read()
                    if refusals.bad_key(response.status, wire.detail(words)):
                        await self._refused(response.status, None, words)
                break
            except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
                if wait_s is None:  # refused, no such host, no trust in its certificate
                    refused = isinstance(error, aiohttp.ClientHttpProxyError)
                    why = f"the proxy says HTTP {error.status}" if refused else error.os_error or error
                    by = f" through the proxy in {urlsplit(self._base_url).scheme}_proxy" if self._proxy else ""
                    raise Unreachable(
                        f"cannot reach {self._base_url}{by}: {why}; is base_url right, and does the server run?"
                    ) from None
                await asyncio.sleep(wait_s)
            except (aiohttp.ClientError, OSError, TimeoutError):
                break  # somebody is there; what it says to a real question will tell
        self._reached = True

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent for a request."""
        return wire.payload(request, self._name, self._max_tokens_field, token_ids=self._token_ids) | self._extra

    async def complete(self, request: Request) -> Completion:
        """One chat completion. See Model.complete for the errors."""
        return await self._completed(request, self.body(request))

    async def streamed(self, request: Request) -> Completion:
        """The same as server-sent events, where the endpoint sends them."""
        asked = self._stream
        try:
            return await self._completed(request, self.body(request) | asked)
        except Rejected as error:
            if "stream_options" not in asked or "stream_options" not in str(error):
                raise
        self._stream = streaming.PLAIN
        return await self.streamed(request)

    async def _completed(self, request: Request, body: dict[str, Any]) -> Completion:
        import aiohttp

        start, first = time.perf_counter(), None
        data = msgspec.json.encode(body)
        try:
            url = f"{self._base_url}/completions" if request.raw else self._url
            async with self._open().post(url, data=data, proxy=self._proxy, allow_redirects=False) as response:
                if response.content_type == "text/event-stream":
                    answer, first = await streaming.gathered(response.content.iter_any())
                else:
                    answer = await response.read()
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            raise Unavailable(f"connection: {type(error).__name__}", crowded=True) from None
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s:g} s", crowded=True, billed=True) from None
        except (aiohttp.ClientError, OSError) as error:  # cut after it was sent
            raise Unavailable(f"connection: {type(error).__name__}", billed=True) from None
        if "x-ratelimit-remaining-requests" in response.headers or "x-ratelimit-remaining-tokens" in response.headers:
            self.pace.heed(response.headers)
        if not 200 <= response.status < 300:  # some gateways call what they made 201, or 203 what they changed
            if refusals.filtered(response.status, wire.detail(answer)):
                return Completion("", "content_filter", seconds=time.perf_counter() - start)
            await self._refused(response.status, response.headers.get("Retry-After"), answer, request)
        self._answered = True
        seconds = time.perf_counter() - start
        if first is not None:
            return msgspec.structs.replace(wire.completion(answer, seconds), first_token_s=first - start)
        if request.sampling.top_logprobs is None:
            return wire.completion(answer, seconds, token_ids=self._token_ids)
        return await self._reading.completion(answer, seconds, self.pace.in_flight, token_ids=self._token_ids)

    async def post(self, path: str, data: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of another of its endpoints."""
        url = f"{self._base_url}/{path}"
        async with self._open().post(url, data=data, proxy=self._proxy, allow_redirects=False) as response:
            return response.status, response.headers, await response.read()

    async def _refused(
        self, status: int, retry_after: str | None, body: bytes, request: Request | None = None
    ) -> NoReturn:
        detail = wire.detail(body)
        if 300 <= status < 400:
            raise UserError(f"{self._base_url} redirects elsewhere (HTTP {status}); write that address as base_url.")
        if status == 403 and self._answered:  # of this row alone: moderation, a firewall
            raise Rejected(f"HTTP 403: {detail}")
        if status == 403 or refusals.bad_key(status, detail):
            key = f"the key in {self._key_env}" if self._key_env else "a request without a key (api_key_env is null)"
            raise UserError(f"{self._base_url} refuses {key}: HTTP {status}.")  # its own words may repeat the key
        if refusals.no_model(status, detail):
            raise UserError(f"{self._base_url} {await self._not_there(status, detail)}")
        if refusals.no_credit(status, detail):
            raise UserError(f"{self._base_url}: the account has no credit left (HTTP {status}).")
        top = request.sampling.top_logprobs if request else None
        if status in (400, 422) and top is not None and "logprob" in detail.casefold():
            raise UserError(
                f"{self._base_url} refuses answers.top_logprobs: {top} (HTTP {status}): {detail} Lower it to what the "
                "endpoint allows, or remove it."
            )
        if status in refusals.RETRYABLE:
            crowded, billed = status in refusals.CROWDED, status in refusals.PERHAPS_BILLED
            wait_s = refusals.retry_after_s(retry_after)
            raise Unavailable(f"HTTP {status}: {detail}", wait_s, crowded=crowded, billed=billed)
        raise Rejected(f"HTTP {status}: {detail}")

    async def _not_there(self, status: int, words: str) -> str:
        """What is wrong with the model, by what the endpoint says it has; the tail of a message."""
        import aiohttp

        unknown = f"does not know model {self._name!r} (HTTP {status})."
        try:
            async with self._open().get(f"{self._base_url}/models", proxy=self._proxy) as response:
                names = [entry["id"] for entry in msgspec.json.decode(await response.read())["data"]]
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError, LookupError, TypeError):
            return f"{unknown} Is base_url right? It usually ends in /v1."
        if self._name in names:
            return f"lists model {self._name!r}, and turns down what it is asked (HTTP {status}): {words}"
        return unknown + did_you_mean(self._name, names)
