"""A run's student behind OpenAI's protocol on this machine's loopback: `llm-distill serve RUN`.

Requests that are in flight together share batches, through the same engine that evaluated the student. Answers come when
their batch is done, so a stream's pieces arrive together at its end. What a request leaves open is as it was in
evaluation. A parameter that would change the answer and is not done here is refused, never ignored.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from llm_distill import store
from llm_distill.errors import DistillError, Rejected, UserError
from llm_distill.export.student import Student, find
from llm_distill.models import Model
from llm_distill.records import Completion, Request, Sampling
from llm_distill.serving_wire import Asked, Refused, chat, chat_chunks, read, said, text, text_chunks

#: Bytes of a request: more than any context of a small model holds, logprobs of a request there are none.
MOST_BYTES = 4 << 20
#: Requests in flight: beyond, a client is asked to come again.
MOST_WAITING = 1024
#: How long Ctrl-C waits for what is in flight.
_DRAIN_S = 120.0
#: Whom a browser may have been sent to: a page of elsewhere that has its own name lead to 127.0.0.1 says that name.
_HERE = ("127.0.0.1", "localhost", "::1")


class Service:
    """A model with the name it is served under, and the defaults of its requests."""

    def __init__(self, model: Model, name: str, defaults: Sampling) -> None:
        self.model, self.name, self.defaults = model, name, defaults
        self._waiting = 0
        self._count = itertools.count()
        self._since = int(time.time())

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MOST_BYTES, middlewares=[_errors])
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._text)

        async def close(_app: web.Application) -> None:
            await self.model.close()

        app.on_cleanup.append(close)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        entry = {"id": self.name, "object": "model", "created": self._since, "owned_by": "llm-distill"}
        wanted = request.match_info.get("name")
        if wanted is None:
            return _json({"object": "list", "data": [entry]})
        if wanted != self.name:
            raise Refused(f"no model {wanted!r}; this endpoint serves {self.name!r}", 404, "model_not_found", "model")
        return _json(entry)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._completion(request, chat=True)

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._completion(request, chat=False)

    async def _completion(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        asked = read(await _body(request), self.name, self.defaults, chat=chat)
        # Chance without a seed is chance: two equal questions are two draws.
        sample = 0 if asked.seeded else next(self._count)
        answer = await self._answer(Request(asked.messages, asked.sampling, sample, asked.raw))
        return await self._sent(request, asked, answer)

    async def _answer(self, request: Request) -> Completion:
        if self._waiting >= MOST_WAITING:
            raise Refused(f"{self._waiting} requests are in flight; come again", 429, "rate_limit_exceeded", None)
        self._waiting += 1
        try:
            return await self.model.complete(request)
        except Rejected as error:
            code = "context_length_exceeded" if "exceed the context" in str(error) else "invalid_value"
            raise Refused(str(error), 400, code, "messages" if not request.raw else "prompt") from error
        finally:
            self._waiting -= 1

    async def _sent(self, request: web.Request, asked: Asked, answer: Completion) -> web.StreamResponse:
        head = said(self.name, asked, self.model.identity)
        if not asked.stream:
            return _json(text(head, answer) if asked.raw else chat(head, answer))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for piece in text_chunks(head, asked, answer) if asked.raw else chat_chunks(head, asked, answer):
            await response.write(b"data: " + msgspec.json.encode(piece) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def serve(run: store.RunFolder, port: int, say: Callable[[str], None]) -> None:
    """Serve a run's student until Ctrl-C, then answer what is in flight. UserError where the port is taken."""
    student = find(run)
    with socket.socket() as door:
        # Taken first: whoever has waited for the weights should not learn then that it was in vain.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another one, or 0 for any free one.") from None
        model = student.model()
        model.preflight()
        model.engine()
        asyncio.run(_until_stopped(Service(model, student.plan.name, defaults(student)), door, say))


async def _until_stopped(service: Service, door: socket.socket, say: Callable[[str], None]) -> None:
    runner = web.AppRunner(service.app(), access_log=None, handler_cancellation=True, shutdown_timeout=_DRAIN_S)
    await runner.setup()
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        say("Stopping when what is in flight is answered; Ctrl-C again stops at once.")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        stopped.set()

    try:
        await web.SockSite(runner, door).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        say(f"{service.name} answers at http://127.0.0.1:{door.getsockname()[1]}/v1; Ctrl-C stops it.")
        await stopped.wait()
    finally:
        await runner.cleanup()


def defaults(student: Student) -> Sampling:
    """What a request leaves open: as the student was evaluated, but without its stops, which the student has learnt."""
    found = student.plan.drawn
    return Sampling(temperature=found.temperature, max_tokens=found.max_tokens)


async def _body(request: web.Request) -> dict[str, Any]:
    """The body, an object. Only JSON that says so is read: what a page of elsewhere may send unasked is not."""
    if request.content_type != "application/json":
        raise Refused(
            f"content type {request.content_type!r}; send application/json", 415, "unsupported_media_type", None
        )
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {error}", 400, "invalid_json", None) from None
    if not isinstance(body, dict):
        raise Refused("the body is no JSON object", 400, "invalid_json", None)
    return body


@web.middleware  # type: ignore[untyped-decorator]
async def _errors(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Every error in OpenAI's form; those that are ours say what it was, and a bug says no more than that it is one."""
    try:
        if _host(request) not in _HERE:
            raise Refused(f"host {request.host!a} is not this machine's loopback", 403, "forbidden_host", None)
        answer: web.StreamResponse = await handler(request)
    except Refused as error:
        return _refusal(error.status, str(error), error.code, error.param)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, f"the body is larger than {MOST_BYTES:,} bytes", "request_too_large", None)
    except web.HTTPException as error:
        what = {404: f"no such address: {request.path}", 405: f"{request.path} does not take {request.method}"}
        return _refusal(
            error.status, what.get(error.status, error.reason), error.reason.lower().replace(" ", "_"), None
        )
    except DistillError as error:
        return _refusal(500, str(error), "server_error", None)
    return answer


def _host(request: web.Request) -> str | None:
    """By which name a client says that it found us; None where that cannot be read."""
    try:
        host: str | None = request.url.host
        return host
    except ValueError:  # no port, no letters
        return None


def _refusal(status: int, message: str, code: str, param: str | None) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status == 429 else None
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )
