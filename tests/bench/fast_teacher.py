"""A teacher that costs next to nothing to serve, so that a benchmark measures the client.

One event loop, a hand-written HTTP/1.1 keep-alive protocol, bodies rendered beforehand. The answer carries the CRC-32 of
its prompt in brackets, so that a client can prove that each row got its own.

    python -m tests.bench.fast_teacher --port 8123 --latency 0.25
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
from functools import lru_cache
from typing import cast
from zlib import crc32

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_TAG = "00000000"
_TOKENS = 80
_VARIANTS = 64


@lru_cache
def body(variant: int, top: int) -> tuple[bytes, bytes]:
    """A chat completion of 80 tokens with `top` alternatives each, cut where its tag goes."""
    rng = random.Random(variant)
    words = [f"[{_TAG}]", *(f" w{rng.randrange(5000)}" for _ in range(_TOKENS - 1))]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(words)}}
    if top:
        choice["logprobs"] = {"content": [_token(rng, word, top) for word in words]}
    usage = {"prompt_tokens": 60, "completion_tokens": _TOKENS, "total_tokens": 60 + _TOKENS}
    whole = json.dumps({"id": "x", "model": "fast", "choices": [choice], "usage": usage}).encode()
    head, _, tail = whole.partition(_TAG.encode())
    return head, tail


def _token(rng: random.Random, word: str, top: int) -> dict[str, object]:
    tops = [(word, -rng.random())]
    while len(tops) < top:
        tops.append((f" w{rng.randrange(5000)}", tops[-1][1] - rng.expovariate(1.5)))
    listed = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in tops]
    return {**listed[0], "top_logprobs": listed}


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it are answered in turn."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s, self._buffer = latency_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        found = _LENGTH.search(self._buffer[: head_end + 2])
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) >= end:
            if self._buffer.startswith(b"GET"):
                self._buffer = self._buffer[end:]
                self._transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}')
                return
            request = json.loads(self._buffer[head_end + 4 : end])
            self._buffer = self._buffer[end:]
            asyncio.get_running_loop().call_later(self._latency_s, self._answer, request)

    def _answer(self, request: dict[str, object]) -> None:
        messages = request["messages"]
        assert isinstance(messages, list)
        tag = crc32(messages[-1]["content"].encode())
        top = request.get("top_logprobs") or 0
        assert isinstance(top, int)
        head, tail = body(tag % _VARIANTS, top)
        size = len(head) + len(_TAG) + len(tail)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b%08x%b"
            % (size, head, tag, tail)
        )


async def serve(port: int, latency_s: float) -> None:
    """Serve on loopback until killed."""
    for top in (0, 20):
        for variant in range(_VARIANTS):
            body(variant, top)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency_s), "127.0.0.1", port, backlog=8192)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--latency", type=float, default=0.25)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.latency))
