"""A small OpenAI-compatible endpoint with faults, on loopback, in a thread of the test's process.

The answer names its prompt, so a test can prove that each row got its own. Faults are planned by prompt: a list of
faults is served one a request before the prompt is answered.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from aiohttp import web

LABELS = ("positive", "negative")


def label_of(prompt: str) -> str:
    """The label that this endpoint gives to a prompt."""
    return LABELS[zlib.crc32(prompt.encode()) % 2]


class MockApi:
    """Counters and plans; `url` is the base_url."""

    def __init__(self, latency_s: float, answer: str, key: str | None) -> None:
        self.latency_s, self.answer, self.key = latency_s, answer, key
        self.faults: dict[str, list[str]] = {}
        #: (body, prompt) -> fields of the message that the endpoint is to answer with, or a text; None for its own.
        self.says: Callable[[dict[str, Any], str], dict[str, Any] | str | None] = lambda _body, _prompt: None
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()  # answered whole
        self.billed: Counter[str] = Counter()  # generated, whatever became of it
        self.delivered: dict[str, float] = {}  # when a prompt's first whole answer went out
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []  # when each request came, on the monotonic clock
        self.in_flight = self.most_in_flight = 0
        self.may_answer: Callable[[], bool] = lambda: True  # an answer is held back until then
        self.serves_the_gone = True  # generates also for those who hung up before it began
        self.may_deliver: Callable[[], bool] = lambda: True  # what is billed is held back until then
        self.holding = 0  # billed and held back
        self.places: int | None = None  # more than so many in flight are turned away
        self.lanes: asyncio.Semaphore | None = None  # what is worked on at a time; the others wait
        self.refuses_stream_options = False
        self.last_delta: dict[str, Any] | None = {}  # of a stream, beside its finish_reason
        self.streams = False  # answers as server-sent events, where that is asked for, a word at a time
        self.per_second: float | None = None  # a token bucket of one second, stated in headers
        self._level, self._filled = 0.0, 0.0
        self.version = "2026-01-01"  # of the models behind its names
        self.url = ""

    def last_line(self, prompt: str) -> str:
        return prompt.rsplit("\n", 1)[-1].removeprefix("Text: ")

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided: sk-wro***", "invalid_api_key")
        return web.json_response({"data": [{"id": "mock-large"}, {"id": "mock-small"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided: sk-wro***", "invalid_api_key")
        if body["model"] not in ("mock-large", "mock-small"):
            return _error(404, "The model does not exist", "model_not_found")
        if self.refuses_stream_options and "stream_options" in body:
            return _error(400, "Unrecognized request argument supplied: stream_options", "invalid_request_error")
        prompt = self.last_line(body["messages"][-1]["content"])
        self.asked[prompt] += 1
        self.times.append(time.monotonic())
        if self.places is not None and self.in_flight >= self.places:
            return _error(429, "busy", "rate_limit")
        headers, enough = self._rate()
        if not enough:
            return _error(429, "too fast", "rate_limit", headers)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with self.lanes or nullcontext():
                await asyncio.sleep(self.latency_s)
            while not self.may_answer():
                await asyncio.sleep(0.01)
            if not self.serves_the_gone and (request.transport is None or request.transport.is_closing()):
                return web.Response()
        finally:
            self.in_flight -= 1
        planned = self.faults.get(prompt)
        fault = planned.pop(0) if planned else None
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault is not None and fault.endswith(":logprobs"):
            return _error(int(fault[:3]), "Invalid value for 'top_logprobs': it must be at most 20.", "invalid_value")
        if fault is not None and fault[0].isdigit():
            status, _, more = fault.partition(":")  # a number of seconds to wait, or the server's own words
            wait = {"Retry-After": more} if more.isdigit() else {}
            return _error(int(status), "try again" if wait or not more else more, "server_error", wait)
        if fault == "reset_after":  # generated, and lost on the way
            self.billed[prompt] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "quota":
            return _error(429, "You exceeded your current quota", "insufficient_quota")
        if fault == "empty_body":
            return web.Response(body=b"")
        if fault == "html":
            return web.Response(text="<html>gateway</html>", content_type="text/html")
        whole = self._body(body, prompt, fault)
        self.billed[prompt] += 1
        if not self.may_deliver():
            self.holding += 1
            while not self.may_deliver():
                await asyncio.sleep(0.01)
            self.holding -= 1
            if request.transport is None or request.transport.is_closing():
                return web.Response()  # nobody is there to hear it
        if fault == "cut":
            return web.Response(body=json.dumps(whole).encode()[: len(json.dumps(whole)) // 2])
        if fault == "nan_logprob":
            return web.Response(body=json.dumps(whole).replace("-0.1", "NaN").encode())
        if body.get("stream") and self.streams:
            return await self._events(request, whole)
        self.paid[prompt] += fault != "empty"
        self.delivered.setdefault(prompt, time.monotonic())
        if fault in ("text_plain", "text_event-stream"):  # which it is not
            return web.Response(text=json.dumps(whole), content_type=fault.replace("_", "/"))
        return web.json_response(whole, headers=headers, status=201 if fault == "created" else 200)

    async def _events(self, request: web.Request, whole: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        kept = {key: whole[key] for key in ("id", "model", "system_fingerprint")}
        text, end = whole["choices"][0]["message"]["content"], whole["choices"][0]["finish_reason"]
        for delta in [{"role": "assistant", "content": ""}, *({"content": word} for word in text.split(" "))]:
            await response.write(
                b"data: " + json.dumps({**kept, "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
            )
            await asyncio.sleep(self.latency_s)
        for more in (
            {"choices": [{"index": 0, "delta": self.last_delta, "finish_reason": end}]},
            *([] if self.refuses_stream_options else [{"choices": [], "usage": whole["usage"]}]),
        ):
            await response.write(b"data: " + json.dumps({**kept, **more}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _rate(self) -> tuple[dict[str, str], bool]:
        if self.per_second is None:
            return {}, True
        now = time.monotonic()
        self._level = min(self.per_second, self._level + (now - self._filled) * self.per_second)
        self._filled = now
        enough = self._level >= 1
        self._level -= enough
        reset_s = (self.per_second - self._level) / self.per_second
        stated = {"limit": self.per_second, "remaining": int(self._level), "reset": f"{round(1000 * reset_s)}ms"}
        return {f"x-ratelimit-{name}-requests": str(value) for name, value in stated.items()}, enough

    def _body(self, body: dict[str, Any], prompt: str, fault: str | None) -> dict[str, Any]:
        said = self.says(body, prompt)
        message: dict[str, Any] = {"role": "assistant", "content": self.answer or label_of(prompt)}
        message |= {"content": said} if isinstance(said, str) else said or {}
        text = message["content"] or ""
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": fault if fault in ("length", "content_filter") else "stop",
            "message": message,
        }
        if fault in ("empty", "empty_used"):
            choice["message"]["content"] = ""
        if fault == "refusal":
            choice["message"] |= {"content": None, "refusal": "I can't help with that."}
        if body.get("logprobs") and fault != "no_logprobs":
            other = LABELS[1 - LABELS.index(label_of(prompt))]
            content = []
            for token in message.pop("tokens", [text]):
                tops = [_logprob(token, None if fault == "null_logprob" else -0.1), _logprob(other, -2.5)]
                if body.get("return_tokens_as_token_ids"):
                    tops = [_placeholder(top) for top in tops]
                first = tops[0] | {"bytes": list(token.encode())}
                content.append({**first, "top_logprobs": tops[: body["top_logprobs"]]})
            if body.get("return_tokens_as_token_ids"):
                choice["token_ids"] = [LABELS.index(text)]
            choice["logprobs"] = {"content": content}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        whole = {
            "id": "x",
            "model": f"{body['model']}-{self.version}",
            "system_fingerprint": "fp_1",
            "choices": [choice],
        }
        return whole if fault == "no_usage" else whole | {"usage": usage}


def _logprob(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _placeholder(logprob: dict[str, Any]) -> dict[str, Any]:
    """As vLLM does it: labels are its vocabulary, and an alternative's bytes are those of the placeholder."""
    return _logprob(f"token_id:{LABELS.index(logprob['token'])}", logprob["logprob"])


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


@contextmanager
def serving(latency_s: float = 0.0, answer: str = "", key: str | None = None) -> Iterator[MockApi]:
    """A running endpoint."""
    api, started = MockApi(latency_s, answer, key), threading.Event()
    stopping: list[Callable[[], object]] = []

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", api.chat), web.get("/v1/models", api.models)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield api
    finally:
        stopping[0]()
        thread.join(10)
