"""A server of one's own: a command that answers HTTP on loopback, and that never outlives this process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llm_distill.errors import UserError

#: From SIGTERM to SIGKILL: a server frees its device and its shared memory in a second or two.
GRACE_S = 5.0
#: Logs that are kept, the newest first.
_LOGS = 20
_KEEPER = Path(__file__).parent / "outside" / "keeper.py"
#: What stands before a message of vLLM's log: process, level, time, place.
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?((ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
#: The end of a traceback, a command line's own complaint, or what the kernel or the C library has to say.
_FAULT = re.compile(
    r"^[A-Za-z_][\w.]*(Error|Exception|Exit)\b: .|^Value error, |\berror: |^(Killed|Segmentation fault|Fatal)|"
    r"[Cc]annot allocate memory"
)
#: Faults that only report another one.
_ECHO = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Worker failed|Engine core proc|"
    r"\d validation errors? for"
)


class Server:
    """A running command. It is stopped by `stop`, the garbage collector or the end of this process, kill -9 included.

    A keeper process (outside/keeper.py) stands between, in a session of its own, so that a Ctrl-C for us is none for
    it. What the command prints goes to `log`, which only its owner can read.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.log, self.since = log, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(log.parent.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)[_LOGS:]:
            old.unlink(missing_ok=True)
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            self._keeper = subprocess.Popen(  # noqa: S603 - the interpreter that the recipe names
                [sys.executable, "-I", "-S", str(_KEEPER), str(GRACE_S), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,  # `python -m` looks for modules there first
                env=env,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._keeper, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether the command runs."""
        return self._keeper.poll() is None

    def stop(self) -> None:
        """End the command and everything it started; back when all of it is gone."""
        self._end()

    async def ready(self, url: str, headers: Mapping[str, str], within_s: float) -> None:
        """Wait until `url` answers 200. UserError when the command ends before, or `within_s` seconds after its start."""
        import aiohttp

        patience = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=patience, headers=headers) as session:
            while self.alive:
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(url) as response:
                        if response.status == 200 and self.alive:  # and no stranger answers in its place
                            return
                if time.monotonic() - self.since > within_s:
                    raise UserError(f"the server did not answer within {within_s:g} s of its start; {self.words()}")
                await asyncio.sleep(0.2)
        raise UserError(f"the server ended while it started: {self.words()}")

    def words(self) -> str:
        """Why the command ended or what it is at, from its log, and where that is."""
        text = self.log.read_text("utf-8", errors="replace")
        code = self._keeper.poll()
        ended = "" if code is None else f"exit code {code}, " if code <= 128 else f"{_signal(code - 128)}, "
        return f"{ended}{fault(text) or 'the log says nothing'} ({self.log})"


def fault(log: str) -> str:
    """The line of a log that says best what went wrong: the first error that reports no other one, else the last line."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if _FAULT.search(line)]
    root = [line for line in errors if not _ECHO.search(line)]
    return (root or errors[::-1] or lines[::-1] or [""])[0][:500]


def free_port() -> int:
    """A port of the loopback interface that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """UserError when somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that were closed lately do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port: {port} cannot be used ({error.strerror}); name another, or 0 for a free one."
            ) from None


def _signal(number: int) -> str:
    if number == signal.SIGKILL:
        return "killed, as what takes too much memory is"
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {128 + number}"


def _end(keeper: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of ours ends, we do not
        return
    assert keeper.stdin is not None
    keeper.stdin.close()
    keeper.terminate()
    try:
        keeper.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:  # stopped by a debugger, or its command hangs in the kernel
        keeper.kill()
    if keeper.wait() < 0:  # the keeper itself was killed, and could not see to it
        with suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
