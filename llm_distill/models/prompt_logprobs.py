"""How likely a vLLM server finds a text that it did not write: `prompt_logprobs` of `POST {base_url}/completions`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import msgspec

from llm_distill.errors import Rejected, Unavailable, UserError
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.refusals import RETRYABLE, retry_after_s
from llm_distill.models.wire import detail

#: A server keeps (tokens, vocabulary) in float32 for each, outside of what its memory profile knows (vllm issue 5907).
AT_ONCE = 4
_TRIES = 6


class _One(msgspec.Struct):
    logprob: float | None = None


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _One | None] | None] | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]


#: At each place the likeliest tokens by id, and the one that stands there.
Places = list[Mapping[int, float]]


async def prompt_logprobs(api: OpenAIModel, ids: Sequence[int], first: int, k: int) -> Places:
    """The distribution at each place of `ids` from `first` on. Rejected where the server has no number for a token there."""
    body = {"model": api.name, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
    for number in range(1, _TRIES + 1):
        try:
            reply = await _asked(api, body)
            break
        except Unavailable as error:
            if number == _TRIES:
                raise Rejected(f"{error}, {_TRIES} times") from None
            await asyncio.sleep(error.retry_after_s or min(30.0, 0.5 * 2**number))
    if not reply.choices or (places := reply.choices[0].prompt_logprobs) is None:
        raise UserError(f"{api.url}: it gives no prompt_logprobs; texts are scored by a vLLM server.")
    if len(places) != len(ids):
        raise Rejected(f"{len(places)} places came back for {len(ids)} tokens")
    found: Places = []
    for place in range(first, len(ids)):
        # Close to certainty a logprob may be NaN, which JSON has as null (trl PR 6166).
        listed = (places[place] or {}).items()
        known = {token: one.logprob for token, one in listed if one is not None and one.logprob is not None}
        if not math.isfinite(known.get(ids[place], math.nan)):
            raise Rejected(f"no logprob of the token at place {place}")
        found.append(known)
    return found


async def _asked(api: OpenAIModel, body: Mapping[str, object]) -> _Reply:
    import aiohttp

    try:
        status, headers, data = await api.post("completions", msgspec.json.encode(body))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unavailable(f"connection: {type(error).__name__}") from None
    if status in RETRYABLE:
        raise Unavailable(f"HTTP {status}: {detail(data)}", retry_after_s(headers.get("Retry-After")))
    if status in (401, 403, 404):
        raise UserError(f"{api.url}/completions: HTTP {status}; scoring texts needs a vLLM server, and its key.")
    if status != 200:
        raise Rejected(f"HTTP {status}: {detail(data)}")
    try:
        return msgspec.json.decode(data, type=_Reply)
    except msgspec.MsgspecError as error:
        raise Rejected(f"not what a vLLM server says: {error}") from None
