"""The wire format of OpenAI-compatible completions: requests out, completions in, as msgspec structs."""

from __future__ import annotations

import codecs
import json
import re
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from llm_distill.errors import Unavailable
from llm_distill.models import wire_logprobs
from llm_distill.records import Completion, Request, as_text
from llm_distill.scrub import scrubbed

_DETAIL = 300  # characters of a server's message that a reason keeps
#: How servers say that they broke off: OpenRouter, vLLM and SGLang, DeepSeek.
_BROKEN_OFF = ("error", "abort", "insufficient_system_resource")
#: Why an answer may be empty and still be one.
_EMPTY_FOR_A_REASON = ("length", "max_tokens", "model_length", "content_filter", "refusal", "safety", "SAFETY")


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None  # text, or something else that must not cost us the answer
    reasoning: Any = None  # as newer servers name it


_Given = TypeVar("_Given", bound=wire_logprobs.Given)


class _Choice(msgspec.Struct, Generic[_Given]):
    message: _Message = msgspec.field(default_factory=_Message)
    text: str | None = None  # of a completion of raw text, in place of a message
    finish_reason: str | None = None
    logprobs: _Given | None = None
    token_ids: Any = None  # vLLM: the sampled ids


#: Tokens of one request: what is below nothing, or no table can hold, is no count, and must not reach an account.
_MOST = 1 << 31
_Count = Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def generated(self) -> int | None:
        """Tokens paid for as completion. Some servers leave the hidden reasoning out of it and only in the total."""
        if self.completion_tokens is None or self.prompt_tokens is None or self.total_tokens is None:
            return self.completion_tokens
        return max(self.completion_tokens, self.total_tokens - self.prompt_tokens)


class Body(msgspec.Struct, Generic[_Given]):
    choices: list[_Choice[_Given]] = []
    usage: _Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    error: Any = None


_decode_plain = msgspec.json.Decoder(Body[wire_logprobs.Given]).decode
_decode_spelt = msgspec.json.Decoder(Body[wire_logprobs.SpeltGiven]).decode


def payload(request: Request, model: str, max_tokens_field: str, *, token_ids: bool = False) -> dict[str, Any]:
    """The body of a request, without an endpoint's extras. `token_ids` asks vLLM for logprobs by vocabulary id.

    It is a conversation for /chat/completions, or raw text for /completions.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        **({"prompt": as_text(request.messages)} if request.raw else {"messages": request.messages}),
        "temperature": sampling.temperature,
        max_tokens_field: sampling.max_tokens,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.seed is not None:
        body["seed"] = sampling.seed + request.sample
    if sampling.top_logprobs is not None:
        top = sampling.top_logprobs
        body |= {"logprobs": top} if request.raw else {"logprobs": True, "top_logprobs": top}
        if token_ids:
            body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    if sampling.schema is not None:
        body["response_format"] = _response_format(sampling.schema)
    return body


@lru_cache(maxsize=8)
def _response_format(schema: str) -> dict[str, Any]:
    """What holds an answer to a schema; its name is the schema's title where that can be one."""
    read = json.loads(schema)
    title = str(read.get("title", ""))
    name = title if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", title) else "answer"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": read, "strict": True}}


def _whole(body: bytes, *, spelt: bool) -> Body[Any]:
    """A body as structs; `spelt`: with the bytes of its tokens."""
    try:
        return _decode_spelt(body) if spelt else _decode_plain(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        body = wire_logprobs.as_json(body.removeprefix(codecs.BOM_UTF8))
    try:
        return _decode_spelt(body)
    except msgspec.ValidationError:
        return _mended(msgspec.json.decode(body))


def _mended(value: Any) -> Body[Any]:
    """An answer whose side fields have types of their own: what was paid for is not thrown away for those."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    given, used = value.get("choices"), value.get("usage")
    choices = [_mended_choice(c) for c in given if isinstance(c, dict)] if isinstance(given, list) else []
    usage = used if isinstance(used, dict) else {}
    numbers = {k: n for k, n in usage.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    counts = {k: int(n) for k, n in numbers.items() if 0 <= n < _MOST}
    texts = {k: str(value[k]) for k in ("model", "system_fingerprint") if value.get(k) is not None}
    whole = {"choices": choices, "usage": counts, "error": value.get("error"), **texts}
    try:
        return _decode_spelt(msgspec.json.encode(whole))
    except msgspec.ValidationError:  # its logprobs are none
        return _decode_spelt(msgspec.json.encode(whole | {"choices": [{**c, "logprobs": None} for c in choices]}))


def _mended_choice(choice: dict[str, Any]) -> dict[str, Any]:
    given = choice.get("message")
    message = given if isinstance(given, dict) else {}
    content, thought = message.get("content"), None
    if isinstance(
        content, list
    ):  # in parts: those of type `text` are the answer, Mistral's `thinking` has parts of its own
        thought = "".join(_text(p.get("thinking")) for p in content if isinstance(p, dict)) or None
        content = _text(content)
    texts = {"content": content, "refusal": message.get("refusal")}
    plain = {k: v for k, v in texts.items() if isinstance(v, str)}
    apart = {k: message.get(k) for k in ("reasoning_content", "reasoning")}
    apart["reasoning"] = apart["reasoning"] or thought
    own = {k: choice[k] for k in ("text", "finish_reason") if isinstance(choice.get(k), str)}
    logprobs = choice.get("logprobs") if isinstance(choice.get("logprobs"), dict) else None
    return {"message": plain | apart, "logprobs": logprobs, "token_ids": choice.get("token_ids"), **own}


def _text(given: Any) -> str:
    """A text, or that of the parts of type `text`."""
    if isinstance(given, list):
        parts = (p.get("text") for p in given if isinstance(p, dict) and p.get("type", "text") == "text")
        return "".join(p for p in parts if isinstance(p, str))
    return given if isinstance(given, str) else ""


def completion(body: bytes, seconds: float = 0.0, *, token_ids: bool = False) -> Completion:
    """A whole chat completion. Unavailable when it is cut, empty or none at all, which happens under load.

    UserError when `token_ids` were asked for and its logprobs have none, or the other way round.
    """
    try:
        return _completion(body, seconds, token_ids=token_ids, spelt=token_ids)
    except wire_logprobs.Unspelt:
        return _completion(body, seconds, token_ids=token_ids, spelt=True)


def _completion(body: bytes, seconds: float, *, token_ids: bool, spelt: bool) -> Completion:
    try:
        answer = _whole(body, spelt=spelt)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        why = "the body is not a whole chat completion" if body else "empty body"
        raise Unavailable(why, billed=True) from None
    usage = answer.usage or _Usage()
    given, made, cache = usage.prompt_tokens, usage.generated, usage.prompt_tokens_details or _PromptDetails()
    used = None if given is None or made is None else (given, made)
    if not answer.choices:
        raise Unavailable(f"no choices: {detail(body)}", billed=True, usage=used)
    choice = answer.choices[0]
    message = choice.message
    text = message.content or choice.text or ""
    apart = (message.reasoning_content, message.reasoning)
    reasoning = next((said for said in apart if isinstance(said, str) and said.strip()), None)
    ended = token_ids and made  # vLLM: the model did end at once
    if choice.finish_reason in _BROKEN_OFF:
        raise Unavailable(f"broken off: finish_reason {choice.finish_reason}", billed=True, usage=used)
    said_why = (choice.finish_reason or "stop").startswith(_EMPTY_FOR_A_REASON)
    if not (text or reasoning or message.refusal or ended or said_why):
        raise Unavailable("empty answer", billed=True, usage=used)
    return Completion(
        text=text,
        finish_reason=choice.finish_reason or "stop",
        prompt_tokens=given,
        completion_tokens=made,
        cached_tokens=cache.cached_tokens,
        cache_write_tokens=cache.cache_write_tokens,
        model=answer.model or "",
        fingerprint=answer.system_fingerprint,
        refusal=message.refusal,
        logprobs=wire_logprobs.columns(choice.logprobs, choice.token_ids, token_ids=token_ids),
        seconds=seconds,
        reasoning=reasoning,
    )


def detail(body: bytes) -> str:
    """A server's own words about an error, cut short. A gateway may repeat the key that it was sent."""
    try:
        if (error := msgspec.json.decode(body)["error"]) is None:
            raise LookupError
        text = (
            f"{error.get('code') or error.get('type') or ''} {error['message']}"
            if isinstance(error, dict)
            else str(error)
        )
    except (msgspec.MsgspecError, LookupError, TypeError, UnicodeDecodeError):
        text = body[: 8 * _DETAIL].decode("utf-8", "replace")  # enough that no secret is cut where the words end
    return told(text)


def told(text: str) -> str:
    """A server's words as a reason keeps them: without secrets, on one line, cut short."""
    return " ".join(scrubbed(text).split())[:_DETAIL]
