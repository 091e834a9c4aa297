"""Runs a program that nobody has read: a Python text in, what became of it out.

bubblewrap (Linux) gives the program its own process tree, network, host name and files: an interpreter with its standard
library, read-only, and an empty /tmp of a fixed size that is gone afterwards. libseccomp refuses the system calls that could
reach past that (sockets but local ones, mounts, name spaces, tracing, keys), resource limits bound the rest. What this comes
to on a machine is tried out, once, before the first program: a machine that cannot hold a program runs none.

Root is bound by no limit on processes, so where we are root the program runs as a user of its own; elsewhere it runs in a
user name space.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import IO, Literal

from llm_distill import sandbox_filter
from llm_distill.errors import UserError
from llm_distill.sandbox_trial import TRIAL

Verdict = Literal["ok", "error", "timeout", "memory", "output", "forbidden", "killed"]
Road = Literal["user", "namespace"]

_REPAIR = (
    "Programs are run on Linux only, with bubblewrap and libseccomp (Debian, Ubuntu: `apt install bubblewrap libseccomp2`), "
    "as a user who may make user name spaces, or as root."
)
#: Of the interpreter's folder, what it needs to start.
_PARTS = ("lib", "lib64")
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_MIB = 2**20
#: Users that no other program runs as, so that their processes can be counted. One for each run at a time.
_FIRST_USER, _USERS = 1_879_048_192, 4096
_NUMBERS = count(os.getpid())


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    `cpu_s` and `memory_mb` hold for each of its `processes` (threads count), `wall_s` for all of it: long enough that a busy
    machine does not decide. `disk_mb` is the size of /tmp, which is memory too; `output_kb` bounds stdout and stderr, each.
    """

    cpu_s: int = 5
    wall_s: float = 20.0
    memory_mb: int = 512
    processes: int = 8
    disk_mb: int = 16
    output_kb: int = 256


@dataclass(frozen=True)
class Result:
    """What became of a program.

    `code` is its exit code, 128 and the signal's number where one ended it, None where we did. `ok`: exit code 0. `error`:
    any other. `timeout`: out of CPU or wall time. `memory`: an allocation failed and nobody caught it. `output`: it wrote
    more than it may. `forbidden`: it tried a system call that nobody needs to compute something. `killed`: another signal.
    """

    verdict: Verdict
    code: int | None
    stdout: str
    stderr: str
    seconds: float


def run(program: str, *, stdin: str = "", limits: Limits = Limits()) -> Result:
    """Run a Python program by this interpreter, without the packages installed for it. UserError where nothing can hold it.

    Text is UTF-8; output that is none has its faults replaced. Hashes are not random, so equal programs do the same.
    """
    return _run(program, stdin, limits, road())


@lru_cache(maxsize=1)
def road() -> Road:
    """How programs are held on this machine, tried out; UserError with what is missing where they cannot be."""
    if sys.platform != "linux":
        raise UserError(f"no program can be held on {sys.platform}. {_REPAIR}")
    for tool in ("bwrap", "prlimit", "setpriv"):
        if shutil.which(tool) is None:
            raise UserError(f"no program can be held here: `{tool}` is missing. {_REPAIR}")
    roads: tuple[Road, ...] = ("user", "namespace") if os.geteuid() == 0 else ("namespace",)
    faults = []
    for way in roads:
        if (fault := _fault(way)) is None:
            return way
        faults.append(fault)
    raise UserError(f"no program can be held here: {'; '.join(faults)}. {_REPAIR}")


def _fault(way: Road) -> str | None:
    """What a program could do on this road that it must not; None when it is held."""
    limits = replace(Limits(), cpu_s=10, disk_mb=2, memory_mb=256)
    with tempfile.NamedTemporaryFile("w", suffix=".canary") as canary:
        Path(canary.name).chmod(0o644)
        try:
            found = _run(f"canary, processes = {canary.name!r}, {limits.processes}\n{TRIAL}", "", limits, way)
        except UserError as error:
            return str(error).rstrip(".")
    if found.verdict != "ok":
        last = (found.stderr.strip().splitlines() or ["nothing said"])[-1]
        return f"the trial ended with {found.verdict} ({last})"
    escaped = json.loads(found.stdout)
    return f"a program could {' and '.join(escaped)}" if escaped else None


def _run(program: str, stdin: str, limits: Limits, way: Road) -> Result:
    began = time.monotonic()
    with ExitStack() as held:
        text, given, rules, said = (
            held.enter_context(_memory(name, content))
            for name, content in (
                ("program", program.encode("utf-8", "surrogatepass")),
                ("stdin", stdin.encode("utf-8", "surrogatepass")),
                ("rules", sandbox_filter.rules()),
                ("said", b""),
            )
        )
        command = [
            *("bwrap", "--seccomp", str(rules.fileno()), "--json-status-fd", str(said.fileno())),
            *_walls(way, limits, text.fileno()),
            *_reins(way, limits),
            *(_python(), "-S", "-s", "-P", "-B", "/program.py"),
        ]
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            pass_fds=[file.fileno() for file in (text, rules, said)],
        )
        try:
            texts, over = _follow(process, began + limits.wall_s, limits.output_kb << 10)
        finally:
            process.kill()
            process.wait()
        code = _exit_code(said)
    stdout, stderr = (part.decode("utf-8", "replace") for part in texts)
    if code is None and over is None:
        why = " ".join(stderr.split())[:300] or f"bwrap ended with {process.returncode}"
        raise UserError(f"the sandbox did not start: {why}.")
    return Result(over or _verdict(code or 0, stderr), code, stdout, stderr, time.monotonic() - began)


@contextmanager
def _memory(name: str, content: bytes) -> Iterator[IO[bytes]]:
    """A file that is nowhere but in memory, at its beginning."""
    with os.fdopen(os.memfd_create(name), "r+b", buffering=0) as file:
        file.write(content)
        file.seek(0)
        yield file


def _walls(way: Road, limits: Limits, program: int) -> list[str]:
    """The arguments of bubblewrap: what there is to see, and nothing else."""
    prefix = Path(sys.base_prefix)
    shown = [*_SYSTEM, "/usr/bin/prlimit", "/usr/bin/setpriv", _python(), *(str(prefix / part) for part in _PARTS)]
    walls = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    walls += ["--cap-drop", "ALL", "--new-session", "--die-with-parent", "--hostname", "sandbox"]
    if way == "user":  # until it has become another user
        walls += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        walls += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    parents = dict.fromkeys(str(above) for path in (*shown, "/dev/null") for above in reversed(Path(path).parents))
    for folder in list(parents)[1:]:  # made on the way they would be bubblewrap's user's alone
        walls += ["--perms", "0755", "--dir", folder]
    for path in dict.fromkeys(shown):
        if Path(path).is_symlink() and not Path(path).is_file():
            walls += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).exists():
            walls += ["--ro-bind", str(Path(path).resolve()), path]
    for device in ("null", "zero", "full", "random", "urandom"):
        walls += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    walls += ["--symlink", "/tmp", "/dev/shm", "--perms", "0444", "--ro-bind-data", str(program), "/program.py"]  # noqa: S108
    walls += ["--perms", "1777", "--size", str(limits.disk_mb * _MIB), "--tmpfs", "/tmp", "--remount-ro", "/"]  # noqa: S108
    walls.append("--clearenv")
    for name, value in _ENVIRONMENT.items():
        walls += ["--setenv", name, value]
    return [*walls, "--chdir", "/tmp", "--"]  # noqa: S108


_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin",
    "PYTHONHASHSEED": "0",
    "TMPDIR": "/tmp",  # noqa: S108
}


def _reins(way: Road, limits: Limits) -> list[str]:
    """The command's beginning inside: who it is, and the limits of each process."""
    reins: list[str] = []
    if way == "user":
        user = str(_FIRST_USER + next(_NUMBERS) % _USERS)
        reins = ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"]
    bounds = {
        "as": limits.memory_mb * _MIB,
        "core": 0,
        "cpu": f"{limits.cpu_s}:{limits.cpu_s + 1}",  # one that ignores the signal is killed a second later
        "fsize": limits.disk_mb * _MIB,
        "memlock": 0,
        "msgqueue": 0,
        "nofile": 64,
        "nproc": limits.processes,
    }
    return [*reins, "/usr/bin/prlimit", *(f"--{name}={bound}" for name, bound in bounds.items()), "--"]


@lru_cache(maxsize=1)
def _python() -> str:
    """The interpreter itself, not an environment's link to it."""
    return str(Path(sys.executable).resolve())


def _follow(process: subprocess.Popen[bytes], end: float, most: int) -> tuple[Sequence[bytearray], Verdict | None]:
    """What it writes to stdout and stderr until the program is over; and what it went beyond, where it has to be ended."""
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    found = list(texts.values())
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():  # the pipes close when the last process of the sandbox is gone
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready and time.monotonic() >= end:
                return found, "timeout"
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                texts[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                if len(texts[key.fd]) > most:
                    del texts[key.fd][most:]
                    return found, "output"
        try:
            process.wait(max(0.0, end - time.monotonic()))  # it may have closed them and go on
        except subprocess.TimeoutExpired:
            return found, "timeout"
    return found, None


def _exit_code(said: IO[bytes]) -> int | None:
    """The exit code that bubblewrap noted; None where it never started the program or did not see its end."""
    said.seek(0)
    notes = [json.loads(line) for line in said.read().splitlines()]
    return next((note["exit-code"] for note in notes if "exit-code" in note), None)


def _verdict(code: int, stderr: str) -> Verdict:
    signals: dict[int, Verdict] = {128 + 31: "forbidden", 128 + 24: "timeout"}  # SIGSYS, SIGXCPU
    if code in signals:
        return signals[code]
    if code > 128:
        return "killed"
    last = (stderr.rstrip().splitlines() or [""])[-1]
    return "ok" if code == 0 else "memory" if last.startswith("MemoryError") else "error"
