"""Programs that want out. Each must end, leave nothing behind, and see nothing that is not its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_distill import sandbox, sandbox_filter
from llm_distill.errors import UserError
from llm_distill.sandbox import Limits, Result, run
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian: bubblewrap)"
)
BRIEF = Limits(cpu_s=1, wall_s=3)


def living() -> set[int]:
    """Processes that run a sandboxed program."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"/program.py" in words and b"--seccomp" not in words:
            found.add(int(folder.name))
    return found


def gone(before: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
    """Whether all of them are, within a moment: the kernel ends a process tree after its root is reaped."""
    end = time.monotonic() + 5
    while living() - before and time.monotonic() < end:
        time.sleep(0.02)
    return not living() - before


@pytest.fixture(autouse=True)
def _nothing_survives() -> Iterator[None]:
    before = living()  # of other runs of these tests on the machine
    yield
    assert gone(before)


def ends(program: str, limits: Limits = BRIEF, stdin: str = "") -> Result:
    began = time.monotonic()
    found = run(program, stdin=stdin, limits=limits)
    assert time.monotonic() - began < limits.wall_s + 5
    return found


def test_a_program_that_does_its_work() -> None:
    found = run("name = input()\nprint('hello', name)", stdin="Zoë 😀\n")
    assert (found.verdict, found.code, found.stdout, found.stderr) == ("ok", 0, "hello Zoë 😀\n", "")


@pytest.mark.parametrize(
    ("program", "verdict", "said"),
    [
        ("", "ok", ""),
        ("raise SystemExit(3)", "error", ""),
        ("assert 1 == 2", "error", "AssertionError"),
        ("def", "error", "SyntaxError"),
        ("x = '\0'", "error", "null bytes"),
        ("x = '\ud800'", "error", "SyntaxError"),
        ("def f(): f()\nf()", "error", "RecursionError"),
        ("import numpy", "error", "ModuleNotFoundError"),
        ("import ctypes; ctypes.string_at(0)", "killed", ""),
        ("import os; os.kill(os.getpid(), 15)", "killed", ""),
        ("import os; os._exit(0)", "ok", ""),
    ],
)
def test_how_programs_end(program: str, verdict: str, said: str) -> None:
    found = ends(program)
    assert found.verdict == verdict, found
    assert said in found.stderr


def test_output_that_is_no_text() -> None:
    assert run(r"import sys; sys.stdout.buffer.write(b'a\xffb')").stdout == "a\ufffdb"


def test_equal_programs_say_the_same() -> None:
    program = "print({str(i) for i in range(50)}, hash('a'))"
    assert run(program).stdout == run(program).stdout


def test_the_standard_library_is_whole() -> None:
    assert run("import asyncio, ctypes, dataclasses, hashlib, json, re, sqlite3, typing, unittest").verdict == "ok"
    assert run("import asyncio; asyncio.run(asyncio.sleep(0))").verdict == "ok"
    assert run("import threading as t; a = t.Thread(target=print); a.start(); a.join()").verdict == "ok"


# -- time


def test_one_that_sleeps() -> None:
    assert ends("import time; time.sleep(600)", Limits(wall_s=1)).verdict == "timeout"


def test_one_that_never_stops() -> None:
    found = ends("while True: pass", Limits(cpu_s=1, wall_s=30))
    assert (found.verdict, found.code) == ("timeout", 128 + signal.SIGXCPU)


def test_one_that_will_not_be_stopped() -> None:
    ignore = "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, lambda *_: None)\n"
    assert ends(ignore + "while True: pass", Limits(cpu_s=1, wall_s=30)).verdict == "killed"
    assert ends(ignore + "while True: signal.pause()", Limits(wall_s=1)).verdict == "timeout"


def test_one_that_stops_listening_and_goes_on() -> None:
    assert ends("import os, time; os.close(1); os.close(2); time.sleep(600)", Limits(wall_s=1)).verdict == "timeout"


# -- space


def test_one_that_takes_memory() -> None:
    assert ends("a = []\nwhile True: a.append(bytearray(1 << 20))").verdict == "memory"
    assert ends("bytearray(1 << 40)").verdict == "memory"


def test_one_that_takes_memory_that_no_process_owns() -> None:
    memfd = "import os; os.memfd_create('a')"
    assert "Function not implemented" in ends(memfd).stderr
    shared = "import ctypes as c; l = c.CDLL(None, use_errno=True); print(l.shmget(0, 1 << 20, 0o1600), c.get_errno())"
    assert ends(shared).stdout == "-1 38\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_one_that_prints_a_gigabyte(stream: str) -> None:
    found = ends(f"import sys\nfor _ in range(1 << 10): sys.{stream}.write('a' * (1 << 20))", Limits(output_kb=64))
    assert found.verdict == "output"
    assert len(getattr(found, stream)) == 64 << 10


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_one_that_fills_the_disk(folder: str) -> None:
    before = shutil.disk_usage("/tmp").free
    program = (
        f"import os\nfor i in range(1 << 10):\n  with open(f'{folder}/{{i}}', 'wb') as f: f.write(bytes(1 << 20))\n"
    )
    found = ends(program, Limits(disk_mb=8))
    assert found.verdict == "error"
    assert "No space left" in found.stderr
    assert before - shutil.disk_usage("/tmp").free < 1 << 26


def test_one_that_writes_one_large_file() -> None:
    assert "OSError" in ends("f = open('/tmp/a', 'wb'); f.truncate(1 << 40)").stderr


def test_each_starts_with_an_empty_folder() -> None:
    for _ in range(2):
        found = run(
            "import os; print(os.getcwd(), os.listdir('.')); open('left', 'w').write('x'); print(os.listdir('.'))"
        )
        assert found.stdout == "/tmp []\n['left']\n"


# -- processes


def test_one_that_forks_without_end() -> None:
    found = ends("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", Limits(cpu_s=1, wall_s=5))
    assert found.verdict in ("timeout", "killed")
    assert "BlockingIOError" in ends("import os, time\nwhile True:\n  if not os.fork(): time.sleep(60)").stderr
    assert (
        "can't start new thread"
        in ends(
            "import threading as t, time\nwhile True: t.Thread(target=time.sleep, args=[9], daemon=True).start()"
        ).stderr
    )


def test_one_that_leaves_a_daemon() -> None:
    daemon = "import os, sys, time\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    time.sleep(600)\n  os._exit(0)\n"
    began = time.monotonic()
    assert run(f"{daemon}print('done')").stdout == "done\n"
    assert gone()
    assert time.monotonic() - began < 10


def test_one_that_kills_whom_it_can() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        program = (
            "import os, signal\n"
            f"for pid in (1, os.getppid(), {os.getpid()}, {sleeper.pid}, -1):\n"
            "  try: os.kill(pid, signal.SIGKILL)\n  except OSError as e: print(type(e).__name__)\n"
        )
        assert ends(program).verdict in ("ok", "killed")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_ours_being_killed_ends_it() -> None:
    code = "from llm_distill.sandbox import Limits, run; run('import time; time.sleep(600)', limits=Limits(wall_s=500))"
    ours = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        end = time.monotonic() + 30
        while not living() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)  # past the trial
        assert living()
    finally:
        ours.kill()
        ours.wait()
    assert gone()


# -- what there is to see


def test_one_that_reads_our_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secret := tmp_path / "secret").write_text("s3cret-of-ours")
    paths = ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/status", "/sys", "/home", "/run", "/var"]
    paths += [
        str(secret),
        str(ROOT / "pyproject.toml"),
        str(Path.home() / ".netrc"),
        "/dev/sda",
        "/dev/mem",
        "/dev/tty",
    ]
    found = run(f"import os\nprint([p for p in {paths!r} if os.path.lexists(p)])\nopen('/etc/passwd')")
    assert found.stdout == "[]\n"
    assert "FileNotFoundError" in found.stderr


def test_one_that_reads_our_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-ours")
    found = run("import os\nprint(dict(os.environ))")
    assert "sk-of-ours" not in found.stdout
    assert "OPENAI" not in found.stdout
    fds = "import os, stat\nfor fd in range(64):\n  try: os.fstat(fd); print(fd)\n  except OSError: pass"
    assert run(fds).stdout == "0\n1\n2\n"


def test_one_that_writes_where_it_should_not() -> None:
    places = ["/a", "/usr/a", "/usr/lib/a", "/dev/a", "/etc/a", "/program.py", f"{sys.base_prefix}/lib/a"]
    program = f"for p in {places!r}:\n  try: open(p, 'w'); print(p)\n  except OSError: pass"
    assert run(program).stdout == ""
    assert not (Path(sys.base_prefix) / "lib" / "a").exists()


def test_one_that_wants_a_shell() -> None:
    found = run("import os, subprocess; print(os.system('echo hi'))\nsubprocess.run(['ls'])")
    assert "hi" not in found.stdout
    assert "FileNotFoundError" in found.stderr


# -- the network


@pytest.mark.parametrize(
    "call",
    [
        "socket.create_connection(('127.0.0.1', PORT))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK: to the host of a virtual machine
        "socket.socket(16, socket.SOCK_RAW)",  # AF_NETLINK
        "socket.socket(17, socket.SOCK_RAW)",  # AF_PACKET
        "socket.socket(38, socket.SOCK_SEQPACKET)",  # AF_ALG
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:PORT')",
    ],
)
def test_one_that_calls_the_network(call: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        found = ends("import socket\n" + call.replace("PORT", str(server.getsockname()[1])))
        assert found.verdict == "forbidden"
        with pytest.raises(TimeoutError):
            server.accept()


def test_one_that_looks_for_local_sockets() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0llm-distill-test")
        server.listen()
        found = ends("import socket; socket.socket(socket.AF_UNIX).connect('\\0llm-distill-test')")
    assert "ConnectionRefusedError" in found.stderr


# -- the kernel


@pytest.mark.parametrize(
    "call",
    [
        "unshare(0x10000000)",  # a user name space of its own
        "syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",  # clone with CLONE_NEWUSER
        "ptrace(0, 0, 0, 0)",
        "mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "umount2(b'/tmp', 0)",
        "setns(0, 0)",
        "syscall(425, 1, 0)",  # io_uring_setup
        "syscall(321, 0, 0, 0)",  # bpf
        "syscall(250, 0, 0, 0)",  # keyctl
        "syscall(0x40000000 | 41, 2, 1, 0)",  # socket by its x32 number
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_one_that_calls_the_kernel_by_hand(call: str) -> None:
    found = ends(f"import ctypes; print(ctypes.CDLL(None).{call})")
    assert (found.verdict, found.code) == ("forbidden", 128 + signal.SIGSYS)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")
def test_one_that_calls_by_another_architectures_numbers() -> None:
    # mov eax, 20 (getpid of 32 bits); int 0x80; ret
    program = (
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())"
    )
    assert ends(program).verdict == "forbidden"


def test_one_that_wants_to_be_root() -> None:
    program = "import os\nprint(os.getuid() != 0)\nfor f in (os.setuid, os.setgid):\n"
    program += "  try: f(0); print(f)\n  except OSError: pass"
    assert run(program).stdout == "True\n"


# -- the machine


def test_many_at_once() -> None:
    programs = [f"print(sum(range({n})))" for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert [r.stdout for r in pool.map(run, programs)] == [f"{sum(range(n))}\n" for n in range(24)]


@pytest.fixture
def _tried_anew() -> Iterator[None]:
    sandbox.road.cache_clear()
    yield
    sandbox.road.cache_clear()


@pytest.mark.usefixtures("_tried_anew")
@pytest.mark.parametrize(
    ("weaker", "escaped"),
    [
        (["--size", "*"], "fill the disk"),
        (["--remount-ro", "*"], "write beside /tmp"),
        (["--clearenv"], "see who started it"),
        (["--nproc=*"], "start processes without end"),
        (["--as=*"], "take all memory"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_a_machine_that_holds_less_runs_nothing(
    weaker: list[str], escaped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sandbox with one wall left out. Root's own road has two against writing beside /tmp."""
    way = "namespace" if weaker[0] == "--remount-ro" else sandbox.road()

    class Without(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **more: Any) -> None:
            option, kept = weaker[0].removesuffix("*"), []
            words = iter(command)
            for word in words:
                if word == option or (option.endswith("=") and word.startswith(option)):
                    if weaker[1:]:
                        next(words)
                else:
                    kept.append(word)
            assert len(kept) < len(command)
            super().__init__(kept, **more | {"env": os.environ | {"LEAK": "1"}})

    monkeypatch.setattr("llm_distill.sandbox.subprocess.Popen", Without)
    assert escaped in (sandbox._fault(way) or "")


@pytest.mark.usefixtures("_tried_anew")
def test_a_machine_that_shows_its_files_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = sandbox._walls
    monkeypatch.setattr(sandbox, "_walls", partial(_open, walls))
    with pytest.raises(UserError, match="read files of this machine"):
        run("print(1)")


def _open(walls, *given) -> list[str]:  # type: ignore[no-untyped-def]
    command: list[str] = walls(*given)
    place = command.index("--perms", command.index("--ro-bind-data"))
    end = command.index("--tmpfs") + 2
    return [*command[:place], "--bind", "/tmp", "/tmp", *command[end:]]


@pytest.mark.usefixtures("_tried_anew")
def test_a_machine_without_the_filter_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    allow = bytes.fromhex("06000000 0000ff7f".replace(" ", ""))
    monkeypatch.setattr(sandbox_filter, "rules", lambda: allow)
    with pytest.raises(UserError, match="open a socket"):
        run("print(1)")


@pytest.mark.usefixtures("_tried_anew")
def test_a_machine_without_bubblewrap_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"`bwrap` is missing.*apt install bubblewrap"):
        run("print(1)")


@pytest.mark.skipif(os.geteuid() != 0, reason="already somebody else")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that everybody may read")
def test_somebody_who_is_not_root_is_held_too() -> None:
    """The other road, by the system's own interpreter: every trial it makes, and a program."""
    code = "from llm_distill.sandbox import road, run; print(road(), run('print(6 * 7)').stdout)"
    found = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", code], cwd=ROOT, user=65534, group=65534, extra_groups=[],
        env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ModuleNotFoundError" in found.stderr or "No module" in found.stderr:
        pytest.skip("the system's interpreter cannot read this checkout")
    assert found.stdout == "namespace 42\n\n", found.stderr
