"""The OpenAI Batch API: the same questions as through `openai_api`, sent as files, answered within a day, at a discount.

Here are the calls, through the `openai` package and without its own retries: a second POST might pay twice, so `batching`
decides what is tried again. Bodies are those of `openai_api`, and so is the identity: each road finds in the ledger what
the other paid for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import Field

from llm_distill.errors import DistillError, Rejected, Unavailable, UserError
from llm_distill.models import Model, batch_lines, wire
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.refusals import RETRYABLE, retry_after_s
from llm_distill.plugs import SecretName, Weights
from llm_distill.prices import Prices
from llm_distill.records import Completion, Request

if TYPE_CHECKING:
    import openai
    from openai._legacy_response import LegacyAPIResponse

_T = TypeVar("_T")
#: Batches on one page of a listing: the most that is allowed.
_PAGE = 100
#: The key of our name in a batch's metadata.
_NAME = "llm_distill"


class Fault(msgspec.Struct):
    """Why a batch was refused; `line` counts from 1 in its input file."""

    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Faults(msgspec.Struct):
    data: list[Fault] | None = None


class Job(msgspec.Struct):
    """A batch as its provider shows it. Times are seconds since the epoch."""

    id: str
    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Faults | None = None
    metadata: dict[str, Any] | None = None
    created_at: Any = None  # a number with OpenAI
    completed_at: Any = None

    @property
    def over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def faults(self) -> list[Fault]:
        """Why it was refused, if it was."""
        return (self.errors.data if self.errors else None) or []

    @property
    def seconds(self) -> float:
        """What it took from beginning to end, where the provider says so in numbers."""
        began, ended = self.created_at, self.completed_at
        return max(0.0, ended - began) if isinstance(began, int | float) and isinstance(ended, int | float) else 0.0


class _Jobs(msgspec.Struct):
    data: list[Job]
    has_more: bool = False


class _File(msgspec.Struct):
    id: str
    bytes: int | None = None


class OpenAIBatchModel(Model):
    """A hosted model behind `POST {base_url}/files` and `/batches`.

    poll_s: how often a batch is looked at. max_requests, max_bytes: how much goes into one, by the provider's limits; a file
    ends at whichever is reached first.
    """

    batches = True
    pace_knobs = ("poll_s", "completion_window", "max_requests", "max_bytes")

    def __init__(
        self,
        *,
        model: Annotated[str, Field(min_length=1)],
        base_url: str = "https://api.openai.com/v1",
        api_key_env: SecretName | None = "OPENAI_API_KEY",
        poll_s: Annotated[float, Field(gt=0)] = 60.0,
        completion_window: str = "24h",
        max_requests: Annotated[int, Field(ge=1)] = 50_000,
        max_bytes: Annotated[int, Field(ge=1)] = 200_000_000,
        timeout_s: Annotated[float, Field(gt=0)] = 600.0,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
        prices_usd: Prices | None = None,
        terms: str | None = None,
        tokenizer: Weights | None = None,
    ) -> None:
        self._direct = OpenAIModel(
            model=model,
            base_url=base_url,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            max_tokens_field=max_tokens_field,
            extra_body=extra_body,
            prices_usd=prices_usd,
            terms=terms,
            tokenizer=tokenizer,
        )
        self.identity, self.terms, self.prices = self._direct.identity, terms, self._direct.prices
        self.count = self._direct.count
        self.concurrency = self._direct.concurrency
        self.poll_s, self.max_requests, self.max_bytes = poll_s, max_requests, max_bytes
        self._base_url, self._key_env, self._timeout_s = base_url.rstrip("/"), api_key_env, timeout_s
        self._window = completion_window
        self._client: openai.AsyncOpenAI | None = None

    def preflight(self) -> None:
        """UserError when the `openai` package is missing or the key's variable is not set."""
        if find_spec("openai") is None:
            raise UserError(
                "openai_batch needs the `openai` package; install it with `pip install 'llm-distill[batch]'`."
            )
        self._direct.preflight()

    async def probe(self) -> None:
        """As openai_api: UserError when nobody answers or the key is refused."""
        await self._direct.probe()

    async def complete(self, request: Request) -> Completion:
        """One answer at once, at the full price; `ask` sends batches instead."""
        return await self._direct.complete(request)

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        await self._direct.close()
        if self._client is not None:
            await self._client.close()
            self._client = None

    def line(self, key: str, request: Request) -> bytes:
        """A request as a line of the input file."""
        return batch_lines.line(key, self._direct.body(request))

    async def upload(self, name: str, content: IO[bytes]) -> str:
        """Send an input file; gives its id."""
        content.seek(0)
        call = self._api().files.with_raw_response.create(file=(f"{name}.jsonl", content), purpose="batch")
        return (await self._call("POST /files", call, _File)).id

    async def create(self, file_id: str, name: str) -> Job:
        """Start a batch under a name of ours. Unavailable(billed=True): it may have started all the same."""
        call = self._api().batches.with_raw_response.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window=self._window,  # type: ignore[arg-type]  # OpenAI has one window, others have more
            metadata={_NAME: name},
        )
        return await self._call("POST /batches", call, Job)

    async def find(self, name: str, file_id: str) -> list[Job]:
        """The batches made under a name, or of a file where names are not kept; the oldest first."""
        found: list[Job] = []
        after: dict[str, Any] = {}
        while True:
            call = self._api().batches.with_raw_response.list(limit=_PAGE, **after)
            page = await self._call("GET /batches", call, _Jobs)
            found += [j for j in page.data if (j.metadata or {}).get(_NAME) == name or j.input_file_id == file_id]
            if not page.has_more or not page.data:
                return found[::-1]  # a listing begins with the newest
            after = {"after": page.data[-1].id}

    async def retrieve(self, batch_id: str) -> Job:
        """How a batch is doing."""
        gone = UserError(
            f"{self._base_url} does not know the batch {batch_id}. Was it made with the key of another project? Its rows wait "
            "for it, so that they are not paid for twice; `answers.fresh: true` asks, and pays, for all of them again."
        )
        call = self._api().batches.with_raw_response.retrieve(batch_id)
        return await self._call(f"GET /batches/{batch_id}", call, Job, gone)

    async def cancel(self, batch_id: str) -> None:
        """Stop a batch."""
        call = self._api().batches.with_raw_response.cancel(batch_id)
        await self._call(f"POST /batches/{batch_id}/cancel", call, Job)

    async def delete(self, file_id: str) -> None:
        """Remove a file. Rejected when there is none."""
        call = self._api().files.with_raw_response.delete(file_id)
        await self._call(f"DELETE /files/{file_id}", call, _File, Rejected("no such file"))

    async def download(self, file_id: str, into: IO[bytes]) -> bool:
        """Append a file's content; gives whether it is as long as its provider says. Rejected when it is gone."""
        gone = Rejected(f"the provider does not have the batch's output {file_id} any more")
        stated, start = None, into.tell()
        with suppress(Rejected, UserError):  # its size is worth having, and not every provider tells it
            call = self._api().files.with_raw_response.retrieve(file_id)
            stated = (await self._call(f"GET /files/{file_id}", call, _File, gone)).bytes
        try:
            with self._in_our_words(f"GET /files/{file_id}/content", gone):
                async with self._api().files.with_streaming_response.content(file_id) as answer:
                    async for part in answer.iter_bytes():
                        into.write(part)
        except DistillError:
            into.seek(start)
            into.truncate()
            raise
        return stated in (None, into.tell() - start)

    def _api(self) -> openai.AsyncOpenAI:
        import openai

        if self._client is None:
            self._client = openai.AsyncOpenAI(
                api_key=self._direct.key() if self._key_env else "none",
                base_url=self._base_url,
                timeout=self._timeout_s,
                max_retries=0,
            )
        return self._client

    async def _call(
        self, what: str, call: Awaitable[LegacyAPIResponse[Any]], kind: type[_T], gone: DistillError | None = None
    ) -> _T:
        with self._in_our_words(what, gone):
            answer = await call
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unavailable(f"{what}: the answer is none", billed=True) from None

    @contextmanager
    def _in_our_words(self, what: str, gone: DistillError | None = None) -> Iterator[None]:
        """The package's errors as ours; `gone` stands for a 404."""
        import httpx2
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            status, body = error.status_code, error.response.content
            if status in RETRYABLE and "insufficient_quota" not in wire.detail(body):
                wait_s = retry_after_s(error.response.headers.get("Retry-After"))
                raise Unavailable(f"{what}: HTTP {status}: {wire.detail(body)}", wait_s, billed=status != 429) from None
            if status == 404:
                raise gone or UserError(
                    f"{self._base_url} has no Batch API (HTTP 404 at {what}). Is base_url right? It usually ends in /v1. "
                    "Any endpoint can be asked through openai_api."
                ) from None
            if status in (401, 403):
                key = f"the key in {self._key_env}" if self._key_env else "requests without a key (api_key_env is null)"
                raise UserError(f"{self._base_url} refuses {key}: HTTP {status} at {what}.") from None
            raise UserError(f"{self._base_url} refuses {what}: HTTP {status}: {wire.detail(body)}") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise Unavailable(f"{what}: {type(cause).__name__}", billed=True) from None
