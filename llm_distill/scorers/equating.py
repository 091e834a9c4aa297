"""A process that compares mathematical expressions, and may be ended at any moment.

math-verify bounds its time by signals, which only a main thread gets, and sympy can hang or grow where no signal is looked
at. So the work is done by a child, on its main thread, with a bound on its memory; one that is late is replaced.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from llm_distill.errors import UserError

#: Of a child; sympy itself takes a tenth.
_MEMORY_BYTES = 1 << 31
_START_S = 120.0
_BARE_LONGEST = 300
_EXPRESSION_MARKS = ("$", "\\boxed", "\\(", "\\[")


def check_installed() -> None:
    """UserError where math-verify is missing."""
    if find_spec("math_verify") is None:
        raise UserError("`math` needs math-verify: `pip install 'llm-distill[filter]'`.")


class Equating:
    """Compares one pair after the other; a context manager, for it owns a process."""

    def __init__(self, timeout_s: int) -> None:
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Equating:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, reference: str, answer: str) -> tuple[float, str | None]:
        """(1, None) where they are equal; (0 or NaN, why) otherwise."""
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([reference, answer, self._timeout_s]).encode() + b"\n")
            child.stdin.flush()
            said = self._line(child, 4.0 * self._timeout_s + 5)  # three steps, each with a time of its own
        except BrokenPipeError:
            said = None
        if not said:
            self._end()
            return math.nan, "the comparison took too long" if said is None else "the comparison took too much memory"
        value, why = json.loads(said)
        return (math.nan if value is None else float(value)), why

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        if not self._line(self._child, _START_S):
            self._end()
            raise UserError("`math`: the process that compares did not start; try `python -c 'import math_verify'`.")
        return self._child

    def _line(self, child: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
        """The child's next line; None when it is late, nothing when it has ended."""
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            return child.stdout.readline() if selector.select(timeout_s) else None

    def _end(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            with suppress(BrokenPipeError), child:
                pass


def _environment() -> dict[str, str]:
    """What the interpreter needs, and no keys: the child reads text that nobody has read."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _compared(reference: str, answer: str, timeout_s: int) -> tuple[float | None, str | None]:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    def read(text: str) -> list[Any]:
        found: list[Any] = parse(text, parsing_timeout=timeout_s, raise_on_error=True)
        return found

    def bare(text: str) -> list[Any]:
        """An expression that stands alone, without the marks of one."""
        alone = (
            len(text) <= _BARE_LONGEST and "\n" not in text.strip() and not any(m in text for m in _EXPRESSION_MARKS)
        )
        return read(f"${text.strip()}$") if alone else []

    step = "the reference"
    try:
        due = bare(reference) or read(reference)
        if not due:
            return None, "the reference holds no expression"
        step = "the comparison"
        found = read(answer) or bare(answer)
        equal = reference.split() == answer.split()  # `12:00` divides by zero, and is still itself
        same = equal or (bool(found) and verify(due, found, timeout_seconds=timeout_s, raise_on_error=True))
    except TimeoutException:
        return None, f"{step} took too long"
    except MemoryError:
        return None, f"{step} took too much memory"
    except Exception as error:  # noqa: BLE001  sympy may fail in any way
        return (None if step == "the reference" else 0.0), f"{step} failed: {type(error).__name__}"
    if not found:
        return 0.0, "no expression"
    return float(same), None if same else f"{found[-1]!s:.100}, due {due[-1]!s:.100}"


def _serve() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    import math_verify  # noqa: F401  the second that it takes belongs to the start

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        reference, answer, timeout_s = json.loads(line)
        sys.stdout.write(json.dumps(_compared(reference, answer, timeout_s)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
