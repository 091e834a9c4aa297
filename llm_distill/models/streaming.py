"""An answer as server-sent events, put together again: the body that would have come in one piece, and when it began.

The events are those of `stream: true` in the OpenAI protocol (WHATWG HTML, 9.2, carries them): `data:` lines with chunks of
`choices[0].delta`, the usage in a last chunk without choices, then `[DONE]`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

#: What asks for a stream, and for the usage at its end.
ASKED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
#: The same without what some endpoints refuse: then nobody says how many tokens it took.
PLAIN: dict[str, Any] = {"stream": True}


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None  # some servers send null with the finish_reason
    message: _Delta | None = None  # of a whole answer in a single event
    text: str | None = None  # of a completion of raw text
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None  # null beside the usage, where a server is written in Go
    usage: Any = None
    model: str | None = None
    system_fingerprint: str | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_PARTS = ("content", "refusal", "reasoning_content", "reasoning")


async def gathered(parts: AsyncIterator[bytes]) -> tuple[bytes, float | None]:
    """(the whole body, when its first token came on the clock of `perf_counter`; None where none did).

    A stream that breaks off before its finish_reason gives a body without choices, which nobody takes for an answer. What
    holds no event at all is a body that is only called a stream.
    """
    said: dict[str, list[str]] = {name: [] for name in (*_PARTS, "text")}
    whole: dict[str, Any] = {"choices": []}
    first, ended, seen, others = None, None, False, []
    async for line in _lines(parts):
        data = line.strip()
        if not data.startswith(b"data:"):
            others += [] if seen else [line]
            continue
        seen, data = True, data[5:].strip()
        if data == b"[DONE]":
            continue
        try:
            chunk = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return data, None
        if chunk.error is not None:
            return data, None
        whole |= {k: v for k in ("usage", "model", "system_fingerprint") if (v := getattr(chunk, k)) is not None}
        for choice in (chunk.choices or [])[:1]:
            delta = choice.delta or choice.message
            new = {name: getattr(delta, name, None) for name in _PARTS} | {"text": choice.text}
            for name, words in new.items():
                if isinstance(words, str) and words:
                    said[name].append(words)
                    first = first or time.perf_counter()
            ended = choice.finish_reason or ended
    if not seen:
        return b"\n".join(others), None
    if ended is not None:
        joined = {name: "".join(words) for name, words in said.items() if words}
        text = {"text": joined.pop("text")} if "text" in joined else {}
        whole["choices"] = [{"message": joined, "finish_reason": ended} | text]
    return msgspec.json.encode(whole), first


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of what comes in parts, however long."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest
