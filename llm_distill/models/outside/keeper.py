"""Run a command, and end it with everything it ever started when the pipe at standard input closes.

    python keeper.py GRACE_S COMMAND...

Whoever wants the command holds the other end of that pipe. However that process ends, kill -9 included, the kernel
closes its end. SIGTERM to the keeper means the same, for an end that a forked process keeps open.

On Linux the keeper is a subreaper (prctl(2)): grandchildren whose parent died, and those that moved to a session of
their own, become its children and are found. The command itself dies with the keeper. Elsewhere what is left of the
keeper's process group is killed, the keeper with it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: What the command leaves behind gets this long to go by itself, and what frees its shared memory as long again.
_LEFT_BEHIND_S = 0.5
_LINUX = sys.platform == "linux"


def main(grace_s: float, command: list[str]) -> NoReturn:
    """Exit with the command's code, 128 + n where signal n ended it, once nothing of it is left."""
    told: list[int] = []
    # Handlers, not SIG_IGN: that would be inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    libc = ctypes.CDLL(None) if _LINUX else None
    if libc:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_us() -> None:
        assert libc is not None
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    child = subprocess.Popen(  # noqa: S603 - the command is what this program is for
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_us if libc else None,  # noqa: PLW1509 - one thread
    )
    while child.poll() is None and not told and not _closed(sys.stdin.fileno(), 0.1):
        pass
    with suppress(subprocess.TimeoutExpired):
        child.terminate()
        child.wait(grace_s)
    child.kill()
    code = child.wait()
    _end_the_rest()
    raise SystemExit(code if code >= 0 else 128 - code)


def _closed(pipe: int, wait_s: float) -> bool:
    ready, _, _ = select.select([pipe], [], [], wait_s)
    return bool(ready) and not os.read(pipe, 1)


def _end_the_rest() -> None:
    if not _LINUX:
        os.killpg(0, signal.SIGKILL)
    began = time.monotonic()
    while left := _descendants():
        waited_s = time.monotonic() - began
        for process in left if waited_s > _LEFT_BEHIND_S else ():
            with suppress(OSError):
                if waited_s > 2 * _LEFT_BEHIND_S or not _tracks(process):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _tracks(process: int) -> bool:
    """Whether it is multiprocessing's tracker, which frees the others' shared memory when all of them are gone."""
    return b"resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()


def _descendants() -> set[int]:
    """Every living process below this one, after burying the dead."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    parents = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, parent = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    found = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
