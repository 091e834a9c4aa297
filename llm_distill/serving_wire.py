"""OpenAI's completions from the other side: bodies in, checked; answers out, whole or in pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from llm_distill.errors import did_you_mean
from llm_distill.logprobs import Logprobs
from llm_distill.records import Completion, Message, Sampling

#: What servers of this protocol write in place of minus infinity, which JSON does not have.
_NEVER = -9999.0
#: Parameters that decide nothing about the answer.
_INDIFFERENT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
#: Parameters that would change the answer, with the one value (besides null) at which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "presence_penalty": (0,), "frequency_penalty": (0,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"), "modalities": (["text"],),
}  # fmt: skip
_BOTH = {"model", "temperature", "top_p", "stop", "seed", "max_tokens", "logprobs", "stream", "stream_options"}
_CHAT = _BOTH | {"messages", "max_completion_tokens", "top_logprobs"}
_TEXT = _BOTH | {"prompt"}
_TOP = 20


class Refused(Exception):
    """A request that is not answered: HTTP status, OpenAI's code, and the parameter at fault."""

    def __init__(self, message: str, status: int, code: str, param: str | None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Asked:
    """A request, read. `raw`: text to go on with; seeded: its chance is fixed; usage: a stream ends with its usage."""

    messages: tuple[Message, ...]
    sampling: Sampling
    raw: bool
    seeded: bool
    stream: bool
    usage: bool


def read(body: Mapping[str, Any], name: str, defaults: Sampling, *, chat: bool) -> Asked:
    """A body as what is asked of the model; Refused for what is wrong in it, or not done here."""
    given = {key: value for key, value in body.items() if value is not None}
    _check_names(given, _CHAT if chat else _TEXT)
    if (model := _of(given, "model", str, name)) != name:
        raise Refused(f"no model {model!r}; this endpoint serves {name!r}", 404, "model_not_found", "model")
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise _wrong("max_tokens", "max_completion_tokens is there too; send one of them")
    field = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    heat = _number(given, "temperature", 0.0, 2.0, defaults.temperature)
    top_p = _number(given, "top_p", 0.0, 1.0, 1.0)
    seed = _whole(given, "seed", -(1 << 63), (1 << 63) - 1, None)
    options = _of(given, "stream_options", dict, {})
    if options.keys() - {"include_usage"}:
        raise _wrong("stream_options", f"no option {sorted(options.keys() - {'include_usage'})[0]!r}")
    sampling = Sampling(
        temperature=heat,
        top_p=top_p if heat else 1.0,
        max_tokens=_whole(given, field, 1, 1 << 31, defaults.max_tokens) or defaults.max_tokens,
        stop=_stops(given),
        seed=seed,
        top_logprobs=_top(given, chat=chat),
    )
    return Asked(
        messages=_messages(given) if chat else (Message("user", _prompt(given)),),
        sampling=sampling,
        raw=not chat,
        seeded=heat == 0 or seed is not None,
        stream=_of(given, "stream", bool, False),
        usage=_of(options, "include_usage", bool, False),
    )


def said(name: str, asked: Asked, fingerprint: str) -> dict[str, Any]:
    """What every body and piece of an answer begins with."""
    kind = "text_completion" if asked.raw else "chat.completion"
    return {
        "id": f"{'cmpl' if asked.raw else 'chatcmpl'}-{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": fingerprint,
    }


def chat(head: Mapping[str, Any], answer: Completion) -> dict[str, Any]:
    """A chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": _chat_logprobs(answer.logprobs),
        "finish_reason": answer.finish_reason,
    }
    return {**head, "choices": [choice], "usage": _usage(answer)}


def text(head: Mapping[str, Any], answer: Completion) -> dict[str, Any]:
    """A completion of raw text."""
    choice = {
        "index": 0,
        "text": answer.text,
        "logprobs": _text_logprobs(answer.logprobs),
        "finish_reason": answer.finish_reason,
    }
    return {**head, "choices": [choice], "usage": _usage(answer)}


def chat_chunks(head: Mapping[str, Any], asked: Asked, answer: Completion) -> Iterator[dict[str, Any]]:
    """The pieces of a chat completion's stream: the role, the text, why it ended, and its usage if that was asked for."""
    head = {**head, "object": "chat.completion.chunk"}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    text = {"index": 0, "delta": {"content": answer.text}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": answer.finish_reason}
    yield from _stream(head, asked, answer, [first, {**text, "logprobs": _chat_logprobs(answer.logprobs)}, last])


def text_chunks(head: Mapping[str, Any], asked: Asked, answer: Completion) -> Iterator[dict[str, Any]]:
    """The pieces of a raw completion's stream."""
    yield from _stream(head, asked, answer, text(head, answer)["choices"])


def _stream(
    head: Mapping[str, Any], asked: Asked, answer: Completion, choices: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    nothing = {"usage": None} if asked.usage else {}
    for choice in choices:
        yield {**head, "choices": [choice], **nothing}
    if asked.usage:
        yield {**head, "choices": [], "usage": _usage(answer)}


def _check_names(given: Mapping[str, Any], known: set[str]) -> None:
    for key, value in given.items():
        if key in known or key in _INDIFFERENT:
            continue
        if key not in _NEUTRAL:
            names = known | _NEUTRAL.keys()
            raise _wrong(key, f"no parameter {key!r} here.{did_you_mean(key, names)}", "unknown_parameter")
        if not any((type(value) is not bool and value == neutral) or value is neutral for neutral in _NEUTRAL[key]):
            allowed = " or ".join(map(repr, _NEUTRAL[key]))
            raise _wrong(key, f"it would change the answer and is not done here; leave it out or send {allowed}")


def _messages(given: Mapping[str, Any]) -> tuple[Message, ...]:
    found = given.get("messages")
    if not isinstance(found, list) or not found:
        raise _wrong("messages", "send a list of one or more {role, content}")
    messages = []
    for place, turn in enumerate(found):
        where = f"messages[{place}]"
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ("system", "user", "assistant"):
            raise _wrong(where, f"found role {role!r}; allowed are system, user and assistant")
        if more := {k for k, v in turn.items() if v is not None} - {"role", "content", "name"}:
            raise _wrong(where, f"{sorted(more)[0]!r} is not done here")
        if isinstance(content, list):
            parts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            content = (
                "".join(part for part in parts if isinstance(part, str))
                if all(isinstance(p, str) for p in parts)
                else None
            )
        if not isinstance(content, str):
            raise _wrong(where, "its content is no text")
        messages.append(Message(role, _sound(content, where)))
    return tuple(messages)


def _prompt(given: Mapping[str, Any]) -> str:
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise _wrong("prompt", "send one text")
    return _sound(prompt, "prompt")


def _sound(content: str, where: str) -> str:
    """The text; a half of a surrogate pair is none, and no tokenizer reads it."""
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _wrong(where, "it holds half a surrogate pair") from None
    return content


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    found = given.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", "send a text, or a list of at most 4 texts")
    return tuple(_sound(stop, "stop") for stop in stops)


def _top(given: Mapping[str, Any], *, chat: bool) -> int | None:
    """How many alternatives a token; None without logprobs."""
    if not chat:
        return _whole(given, "logprobs", 0, _TOP, None)
    wanted = _of(given, "logprobs", bool, False)
    top = _whole(given, "top_logprobs", 0, _TOP, None)
    if top is not None and not wanted:
        raise _wrong("top_logprobs", "logprobs must be true with it")
    return (top or 0) if wanted else None


def _of(given: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = given.get(key, default)
    if not isinstance(value, kind):
        names = {str: "a text", bool: "true or false", dict: "an object"}
        raise _wrong(key, f"found {value!r}; send {names[kind]}")
    return value


def _number(given: Mapping[str, Any], key: str, least: float, most: float, default: float) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(key, f"found {value!r}; allowed is {least:g} to {most:g}")
    return float(value)


def _whole(given: Mapping[str, Any], key: str, least: int, most: int, default: int | None) -> int | None:
    value = given.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
        raise _wrong(key, f"found {value!r}; allowed is a whole number from {least} to {most}")
    return value


def _wrong(param: str, what: str, code: str = "invalid_value") -> Refused:
    return Refused(f"{param}: {what}", 400, code, param)


def _usage(answer: Completion) -> dict[str, int]:
    prompt, made = answer.prompt_tokens or 0, answer.completion_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _chat_logprobs(logprobs: Logprobs | None) -> dict[str, Any] | None:
    """Token by token, with bytes, and ids as llama.cpp gives them; the end token or the stop that ended it is among them."""
    if logprobs is None:
        return None
    table, numbers = logprobs.table, logprobs.numbers

    def entry(place: int, logprob: float) -> dict[str, Any]:
        token = table[place]
        number = {} if numbers is None else {"id": int(numbers[place])}
        return {
            "token": token.decode("utf-8", "replace"),
            "bytes": list(token),
            "logprob": max(logprob, _NEVER),
            **number,
        }

    content = []
    for place, logprob, top, values in _steps(logprobs):
        alternatives = [entry(p, value) for p, value in zip(top, values, strict=True) if p >= 0]
        content.append({**entry(place, logprob), "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _text_logprobs(logprobs: Logprobs | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    spelt = [_spelt(token) for token in logprobs.table]
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    offset = 0
    for place, logprob, top, values in _steps(logprobs):
        found["tokens"].append(spelt[place])
        found["token_logprobs"].append(max(logprob, _NEVER))
        found["top_logprobs"].append({spelt[p]: max(v, _NEVER) for p, v in zip(top, values, strict=True) if p >= 0})
        found["text_offset"].append(offset)
        offset += len(logprobs.table[place].decode("utf-8", "ignore"))
    return found


def _steps(logprobs: Logprobs) -> Iterator[tuple[int, float, list[int], list[float]]]:
    columns = (logprobs.chosen, logprobs.logprobs, logprobs.top, logprobs.top_logprobs)
    yield from zip(*(column.tolist() for column in columns), strict=True)


def _spelt(token: bytes) -> str:
    """A token as a text; a piece of a character as OpenAI's legacy endpoint spells it."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
