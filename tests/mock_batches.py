"""The /v1/files and /v1/batches endpoints of a provider, with faults, on loopback, in a thread of the test's process.

A batch moves one step of its life each time somebody looks at it, so tests need no clock. What a batch says of a prompt
is what `MockApi` says of it. Faults are planned in three places: `trouble` by endpoint (a reset, an answer that is lost,
a pause), `fates` by prompt (what its line in the output looks like), `ends` by batch (how it ends). `paid` counts how
often a prompt was worked on, `overlaps` how often one was accepted while another batch held it.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import BodyPartReader, web

from tests.mock_api import MockApi

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_NAMES = {
    ("POST", "/v1/files"): "upload",
    ("GET", "/v1/files/{id}"): "file",
    ("GET", "/v1/files/{id}/content"): "content",
    ("DELETE", "/v1/files/{id}"): "delete",
    ("POST", "/v1/batches"): "create",
    ("GET", "/v1/batches"): "listing",
    ("GET", "/v1/batches/{id}"): "retrieve",
    ("POST", "/v1/batches/{id}/cancel"): "cancel",
    ("POST", "/v1/chat/completions"): "chat",
    ("GET", "/v1/models"): "models",
}
_LIFE = ["validating", "in_progress", "finalizing"]
_OVER = ("completed", "failed", "expired", "cancelled")


class MockBatches:
    """Counters and plans; `url` is the base_url, `api` answers single questions at the same address."""

    def __init__(self, key: str | None) -> None:
        self.api = MockApi(0.0, "", None)
        self.api.says = lambda _body, prompt: f"the answer to {prompt}"
        self.key, self.url = key, ""
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.trouble: dict[str, list[str]] = {}
        self.fates: dict[str, list[str]] = {}
        self.ends: list[str] = []
        self.calls: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.overlaps = 0
        self.max_requests, self.max_bytes, self.page = 50_000, 200_000_000, 100
        self.enqueued_tokens: int | None = None
        self.keeps_metadata = self.serves_batches = True
        self.hold = False  # nothing moves on
        self.held_models: set[str] = set()  # nothing of these does
        self.paused, self.resumed = threading.Event(), threading.Event()

    def prompts(self, batch: dict[str, Any]) -> list[str]:
        """What a batch asks, in its file's order."""
        return [self.prompt(row) for row in batch["_rows"]]

    def prompt(self, row: dict[str, Any]) -> str:
        return self.api.last_line(row["body"]["messages"][-1]["content"])

    def states(self) -> list[str]:
        return [batch["status"] for batch in self.batches.values()]

    # --- what happens on the way to a handler ---

    async def door(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        assert request.match_info.route.resource is not None
        name = _NAMES[request.method, request.match_info.route.resource.canonical]
        self.calls[name] += 1
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided", "invalid_api_key")
        if name not in ("chat", "models") and not self.serves_batches:
            return web.Response(status=404, text="404: Not Found")
        planned = self.trouble.get(name)
        fault = planned.pop(0) if planned else ""
        if fault[:3].isdigit():
            status, _, wait = fault.partition(":")
            return _error(int(status), "try again", "server_error", {"Retry-After": wait} if wait else {})
        if fault == "reset":
            return self._abort(request)
        if fault == "html":
            return web.Response(text="<html>gateway</html>", content_type="text/html")
        if fault == "pause":
            if name == "create":
                await request.read()  # it is heard to its end, and acted upon later
            await self._pause()
        answer = await handler(request)
        if fault == "lost":
            return self._abort(request)
        if fault == "late":
            await self._pause()
        if fault == "cut":  # half of the body, then the line goes dead
            assert isinstance(answer, web.Response)
            assert isinstance(answer.body, bytes)
            part = web.StreamResponse(headers={"Content-Length": str(len(answer.body))})
            await part.prepare(request)
            await part.write(answer.body[: len(answer.body) // 2])
            await asyncio.sleep(0.05)
            return self._abort(request)
        if fault == "short":  # half of the body, and nothing tells
            assert isinstance(answer, web.Response)
            assert isinstance(answer.body, bytes)
            return web.Response(body=answer.body[: len(answer.body) // 2])
        return answer

    def _abort(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _pause(self) -> None:
        self.paused.set()
        while not self.resumed.is_set():
            await asyncio.sleep(0.005)

    # --- files ---

    async def upload(self, request: web.Request) -> web.Response:
        purpose, name, content = "", "", b""
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "purpose":
                purpose = await part.text()
            elif part.name == "file":
                name, content = part.filename or "", bytes(await part.read())
        if purpose != "batch" or not name.endswith(".jsonl"):
            return _error(400, "a batch's file is a .jsonl with purpose `batch`", "invalid_request_error")
        if len(content) > self.max_bytes:
            return _error(413, "the file is too large", "file_too_large")
        return web.json_response(self._store(content, "batch", name))

    def _store(self, content: bytes, purpose: str, name: str) -> dict[str, Any]:
        file: dict[str, Any] = {
            "id": f"file-{len(self.contents)}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.files[file["id"]], self.contents[file["id"]] = file, content
        return file

    async def file(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["id"])
        return web.json_response(found) if found else _error(404, "No such File object", "not_found")

    async def content(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.files:
            return _error(404, "No such File object", "not_found")
        return web.Response(body=self.contents[request.match_info["id"]], content_type="application/octet-stream")

    async def delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if self.files.pop(name, None) is None:
            return _error(404, "No such File object", "not_found")
        return web.json_response({"id": name, "object": "file", "deleted": True})

    # --- batches ---

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["completion_window"] != "24h" or body["endpoint"] != "/v1/chat/completions":
            return _error(400, "Invalid value", "invalid_request_error")
        if body["input_file_id"] not in self.files:
            return _error(400, f"No such File object: {body['input_file_id']}", "invalid_request_error")
        batch: dict[str, Any] = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata") if self.keeps_metadata else None,
            "_end": self.ends.pop(0) if self.ends else "completed",
            "_rows": [],
        }
        self.batches[batch["id"]] = batch
        return web.json_response(_shown(batch))

    async def listing(self, request: web.Request) -> web.Response:
        newest = [*self.batches.values()][::-1]
        after = request.query.get("after")
        start = [b["id"] for b in newest].index(after) + 1 if after else 0
        size = min(self.page, int(request.query.get("limit", 20)))
        page = [_shown(b) for b in newest[start : start + size]]
        return web.json_response({"object": "list", "data": page, "has_more": start + size < len(newest)})

    async def retrieve(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return _error(404, "No batch found", "not_found")
        held = self.hold or not self.held_models.isdisjoint(row["body"]["model"] for row in batch["_rows"])
        if not held and batch["status"] not in _OVER:
            self._move_on(batch)
        return web.json_response(_shown(batch))

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        if batch["status"] in _OVER:
            return _error(409, "Cannot cancel a batch that is over", "invalid_request_error")
        batch["status"], batch["_end"] = "cancelling", "cancelled"
        return web.json_response(_shown(batch))

    def _move_on(self, batch: dict[str, Any]) -> None:
        step = _LIFE.index(batch["status"]) if batch["status"] in _LIFE else len(_LIFE)
        if batch["status"] == "validating" and (errors := self._validate(batch)):
            batch["status"], batch["errors"] = "failed", {"object": "list", "data": errors}
        elif step + 1 < len(_LIFE):
            batch["status"] = _LIFE[step + 1]
        else:
            self._finish(batch)

    def _validate(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        if batch["input_file_id"] not in self.files:
            return [_fault("invalid_file", "the input file is gone")]
        lines = self.contents[batch["input_file_id"]].splitlines()
        if len(lines) > self.max_requests:
            return [_fault("too_many_tasks", f"{len(lines)} requests, {self.max_requests} allowed")]
        rows, errors, seen = [], [], set()
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            assert (row["method"], row["url"]) == ("POST", batch["endpoint"])
            if row["custom_id"] in seen:
                errors.append(_fault("duplicate_custom_id", "used before", number))
            if row["body"]["model"] not in ("mock-large", "mock-small"):
                errors.append(_fault("model_not_found", "The provided model is not supported", number))
            if (self.fates.get(self.prompt(row)) or [""])[0] == "invalid":
                self.fates[self.prompt(row)].pop(0)
                errors.append(_fault("invalid_request", "this line is not right", number))
            seen.add(row["custom_id"])
            rows.append(row)
        running = [b for b in self.batches.values() if b["status"] in ("in_progress", "finalizing", "cancelling")]
        tokens = sum(len(p.split()) for b in [{"_rows": rows}, *running] for p in self.prompts(b))
        if not errors and self.enqueued_tokens is not None and tokens > self.enqueued_tokens:
            return [_fault("token_limit_exceeded", f"Enqueued token limit reached: {self.enqueued_tokens}")]
        if not errors:
            held = {row["custom_id"] for b in running for row in b["_rows"]}
            self.overlaps += sum(row["custom_id"] in held for row in rows)
            batch["_rows"] = rows
            batch["request_counts"]["total"] = len(rows)
        return errors

    def _finish(self, batch: dict[str, Any]) -> None:
        rows, end = batch["_rows"], batch["_end"]
        done = len(rows) if end in ("completed", "no_output", "bare") else len(rows) // 2
        output: list[str] = []
        errors: list[str] = []
        for number, row in enumerate(rows):
            if number < done:
                self._work(row, output, errors)
            elif end in ("expired", "cancelled"):
                why = {"code": f"batch_{end}", "message": "This request could not be executed in time."}
                errors.append(json.dumps({"id": "r", "custom_id": row["custom_id"], "response": None, "error": why}))
        for lines in (output, errors):
            random.Random(len(lines)).shuffle(lines)
        if output and end != "no_output":
            batch["output_file_id"] = self._store(_file(output), "batch_output", "out.jsonl")["id"]
        if errors and end != "bare":
            batch["error_file_id"] = self._store(_file(errors), "batch_output", "err.jsonl")["id"]
        batch["status"] = end if end in _OVER else "completed"
        batch["request_counts"] |= {"completed": len(output), "failed": len(errors)}

    def _work(self, row: dict[str, Any], output: list[str], errors: list[str]) -> None:
        prompt, key = self.prompt(row), row["custom_id"]
        planned = self.fates.get(prompt)
        fate = planned.pop(0) if planned else ""
        if fate == "missing":
            return
        if fate.isdigit():
            body = {"error": {"message": "try again", "code": "server_error"}}
            errors.append(json.dumps({"id": "r", "custom_id": key, "response": _response(int(fate), body)}))
            return
        self.paid[prompt] += 1
        body = self.api._body(row["body"], prompt, fate)
        line = json.dumps({"id": "r", "custom_id": key, "response": _response(200, body), "error": None})
        if fate == "cut_line":
            line = line[: len(line) // 2]
        if fate == "junk":
            output.append("\x00 not JSON {{{")
            output.append('["no", "object"]')
        if fate == "stranger":
            output.append(line.replace(key, "0" * 32))
        if fate == "twice":
            output.append(line)
        output.append(line)


def _response(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": "req_1", "body": body}


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if not key.startswith("_")}


def _fault(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def _file(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


@contextmanager
def serving_batches(key: str | None = None) -> Iterator[MockBatches]:
    """A running provider."""
    mock, started = MockBatches(key), threading.Event()
    stopping: list[Callable[[], object]] = []
    handlers: dict[str, _Handler] = {
        name: getattr(mock, name, None) or getattr(mock.api, name) for name in _NAMES.values()
    }

    @web.middleware  # type: ignore[untyped-decorator]
    async def door(request: web.Request, handler: _Handler) -> web.StreamResponse:
        return await mock.door(request, handler)

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        app = web.Application(middlewares=[door], client_max_size=1 << 30)
        app.add_routes([web.route(method, path, handlers[name]) for (method, path), name in _NAMES.items()])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        mock.url = mock.api.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield mock
    finally:
        mock.resumed.set()
        stopping[0]()
        thread.join(10)
