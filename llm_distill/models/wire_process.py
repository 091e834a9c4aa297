"""Completions with many logprobs, read in a process of their own.

With 20 alternatives a token, an answer is 150 kB of JSON and takes a millisecond of Python until it is packed for the
ledger, on the one thread that also speaks HTTP. Once that much has come that a process pays for its start, bodies go to one
over a socket and come back as completions; small ones are read at home, as are those for which it has no room.

It is the same code on both sides, so it is the same result. The process ends when its socket closes, which a parent's
death does by itself; when it is the process that dies, or stands still, what it owed is read at home.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, suppress
from io import BufferedRWPair

import msgspec

from llm_distill.errors import DistillError
from llm_distill.models import wire
from llm_distill.records import Completion

#: So many bytes of logprobs are read at home first: the start of a process costs what a few hundred bodies do.
FIRST_BYTES = 32 << 20
#: With fewer requests in flight than this, nobody waits for the reading.
LEAST_IN_FLIGHT = 32
#: A smaller body is read sooner than it is sent.
LEAST_BYTES = 16 << 10
#: Bytes that wait for the process, at most. What is read at home keeps the loop from its sockets, this process's too, so
#: that comes into question only where memory would.
MOST_WAITING_BYTES = 64 << 20
#: A process that takes so long for a few bodies stands still.
PATIENCE_S = 20.0

_BODY = struct.Struct("<I?")  # its size, and whether ids were asked for
_REPLY = struct.Struct("<I")
_Read = Completion | DistillError | None


class Reading:
    """Reads the bodies of one model's answers: at home, and in a process while there is enough to do for one."""

    def __init__(self) -> None:
        self._process: _Process | None = None
        self._starting = False
        self._bytes, self._first_bytes = 0, FIRST_BYTES

    async def completion(self, body: bytes, seconds: float, in_flight: int, *, token_ids: bool) -> Completion:
        """As `wire.completion`; the logprobs may come packed."""
        if len(body) >= LEAST_BYTES and in_flight >= LEAST_IN_FLIGHT:
            self._bytes += len(body)
            none = self._process is None or self._process.gone
            if none and not self._starting and self._bytes >= self._first_bytes:
                await self._start()
            if self._process and self._process.has_room:
                read = await self._process.read(body, token_ids=token_ids)
                if isinstance(read, DistillError):
                    raise read
                if read is not None:
                    return msgspec.structs.replace(read, seconds=seconds)
        return wire.completion(body, seconds, token_ids=token_ids)

    async def _start(self) -> None:
        self._bytes, self._first_bytes = 0, 8 * self._first_bytes  # if it dies, the next one is less urgent
        self._starting = True
        try:
            self._process = await _start()
        except OSError:  # no room for another process
            self._process = None
        finally:
            self._starting = False

    def close(self) -> None:
        """End the process; the next `completion` may be in another event loop."""
        if self._process:
            self._process.end()
        self._process, self._bytes, self._first_bytes = None, 0, FIRST_BYTES


class _Process(asyncio.Protocol):
    """Our end of the socket."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.gone = False
        self._ready = False
        self._owed: deque[asyncio.Future[_Read]] = deque()  # replies come in the order of the bodies
        self._waiting_bytes = 0
        self._buffer = bytearray()

    @property
    def has_room(self) -> bool:
        return self._ready and not self.gone and self._waiting_bytes < MOST_WAITING_BYTES

    async def read(self, body: bytes, *, token_ids: bool) -> _Read:
        """What the body is; None where nothing came back, or what only reading it at home can tell."""
        owed: asyncio.Future[_Read] = asyncio.get_running_loop().create_future()
        self._owed.append(owed)
        self._waiting_bytes += len(body)
        self._transport.writelines([_BODY.pack(len(body), token_ids), body])
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await owed
        except TimeoutError:
            self.end()
            return None
        finally:
            self._waiting_bytes -= len(body)

    def end(self) -> None:
        """It holds nothing that could be lost."""
        self.popen.kill()
        self.popen.wait()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _REPLY.size:
            end = _REPLY.size + _REPLY.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            reply = bytes(self._buffer[_REPLY.size : end])
            del self._buffer[:end]
            if not self._ready:  # its first word says that it has imported everything
                self._ready = True
            elif not (owed := self._owed.popleft()).done():
                owed.set_result(pickle.loads(reply))  # noqa: S301  # our own process wrote it

    def connection_lost(self, _why: Exception | None) -> None:
        self.gone = True
        for owed in self._owed:
            if not owed.done():
                owed.set_result(None)
        self._owed.clear()
        self.popen.kill()
        self.popen.wait()


async def _start() -> _Process:
    ours, its = socket.socketpair()
    ours.setblocking(False)
    with its, ExitStack() as undo:
        undo.callback(ours.close)
        popen = _spawn(its.fileno())
        undo.callback(popen.wait)
        undo.callback(popen.kill)
        _, process = await asyncio.get_running_loop().create_unix_connection(lambda: _Process(popen), sock=ours)
        undo.pop_all()
    return process


def _spawn(fd: int) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for us, who let what is in flight arrive."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, with what it can import
        [sys.executable, "-P", "-m", __name__],
        stdin=fd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )


def _packed(body: bytes, *, token_ids: bool) -> _Read:
    """What `Reading.completion` is to give or to raise; None for a bug, which is met at home again, with its traceback."""
    try:
        read = wire.completion(body, token_ids=token_ids)
    except DistillError as error:
        return error
    except Exception:  # noqa: BLE001
        return None
    if read.logprobs is None:
        return read
    return msgspec.structs.replace(read, logprobs=None, packed=read.logprobs.pack())


def serve(stream: BufferedRWPair) -> None:
    """Read bodies until there are no more."""
    gc.disable()  # there are no circles in an answer
    import numpy as np  # noqa: F401  # before the first body, not with it
    import pyarrow as pa  # noqa: F401

    def say(reply: bytes) -> None:
        stream.write(_REPLY.pack(len(reply)) + reply)
        stream.flush()

    say(b"")
    while len(head := stream.read(_BODY.size)) == _BODY.size:
        size, token_ids = _BODY.unpack(head)
        body = stream.read(size)
        if len(body) < size:
            return
        say(pickle.dumps(_packed(body, token_ids=token_ids), pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    with suppress(OSError), socket.socket(fileno=0) as parent, parent.makefile("rwb") as stream_:
        serve(stream_)
