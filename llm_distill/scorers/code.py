"""A verifier for answers that are programs: it runs them against the row's tests, in the sandbox."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llm_distill import sandbox, templates
from llm_distill.plugs import InputFile
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import fenced

_VARIABLES = ("prompt", "reference", "tags")
_NAMES = ("", "python", "python3", "py")
#: The answer is a module of its own, so that what it does for its own `__main__` is not done. The mark behind the tests says
#: that they ran to their end: a program that leaves early has passed nothing.
_HARNESS = """
import os, sys, types
module = types.ModuleType("answer")
sys.modules["answer"] = module
exec(compile({answer!r}, "answer.py", "exec"), module.__dict__)
exec(compile({tests!r}, "tests.py", "exec"), module.__dict__)
sys.stdout.flush()
os.write(1, {mark!r})
"""


def _tests(path: Path) -> Path:
    templates.check_with(path, _VARIABLES)
    return path


def _held(language: str) -> str:
    sandbox.road()
    return language


def code(
    answers: Sequence[Answer],
    *,
    by: Literal["tests", "output"] = "tests",
    tests: Annotated[InputFile, AfterValidator(_tests)] | None = None,
    language: Annotated[Literal["python"], AfterValidator(_held)] = "python",  # noqa: ARG001  there is no other yet
    cpu_s: Annotated[int, Field(ge=1)] = 5,
    memory_mb: Annotated[int, Field(ge=64)] = 512,
    at_once: Annotated[int, Field(ge=1)] | None = None,
) -> Scored:
    """1 where the answer's program does what the row asks for, else 0, and why.

    The program is the answer's one fenced block, or all of its text where it has none. `by: tests`: the row's reference is
    Python that uses what the program defines and raises where it is wrong; a `tests` template makes it of `prompt`,
    `reference` and `tags` (HumanEval: `{{ reference }}` and `check({{ tags.entry_point }})`). `by: output`: the program is run
    alone and prints the reference, blank space at the ends of lines aside. NaN where the row has nothing to test by.

    The standard library is there, no package, no network, no file but an empty folder. `at_once` programs run side by side,
    by default one for each core. Tests and program share a process, as in HumanEval (Chen et al. 2021, arXiv 2107.03374):
    one that sets out to fake its verdict from inside can, but none gets out.
    """
    limits = sandbox.Limits(cpu_s=cpu_s, wall_s=4.0 * cpu_s, memory_mb=memory_mb)

    def score(answer: Answer) -> tuple[float, str | None]:
        due = answer.prompt.reference if tests is None else _filled(tests, answer)
        if due is None or not due.strip():
            return math.nan, "no tests" if by == "tests" else "no reference"
        program, fault = extracted(answer.text)
        if fault:
            return 0.0, fault
        return _by_tests(program, due, limits) if by == "tests" else _by_output(program, due, limits)

    sandbox.road()  # once, before there are threads
    with ThreadPoolExecutor(at_once or os.cpu_count() or 1) as pool:
        scores = list(pool.map(score, answers))
    return Scored([value for value, _ in scores], why=[why for _, why in scores])


def extracted(text: str) -> tuple[str, str | None]:
    """(program, None) of an answer, or ("", why there is none): its one fenced block (CommonMark), or all of it."""
    try:
        blocks = fenced(text)
    except ValueError:
        return "", "form: the code block has no end"
    if len(blocks) > 1:
        return "", f"form: {len(blocks)} code blocks, and one is due"
    if not blocks:
        return (text, None) if text.strip() else ("", "form: no program")
    ((name, program),) = blocks
    if name.lower() not in _NAMES:
        return "", f"form: the code block is {name[:40].lower()}, not python"
    return f"{program}\n", None


def _filled(tests: Path, answer: Answer) -> str:
    row = answer.prompt
    given = {"prompt": row.text, "reference": row.reference, "tags": row.tags}
    return "\n".join(message.content for message in templates.render_with(tests, given, f"row {row.row_id}"))


def _by_tests(program: str, tests: str, limits: sandbox.Limits) -> tuple[float, str]:
    mark = f"\n{secrets.token_hex(16)}\n"
    found = sandbox.run(_HARNESS.format(answer=program, tests=tests, mark=mark.encode()), limits=limits)
    if found.verdict != "ok":
        return 0.0, _said(found)
    if mark.strip() not in found.stdout.splitlines():
        return 0.0, "error: it ended before its tests did"
    return 1.0, "passed"


def _by_output(program: str, due: str, limits: sandbox.Limits) -> tuple[float, str]:
    found = sandbox.run(program, limits=limits)
    if found.verdict != "ok":
        return 0.0, _said(found)
    if _lines(found.stdout) == _lines(due):
        return 1.0, "passed"
    return 0.0, f"output: {_brief(found.stdout)!r}, due {_brief(due)!r}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _said(found: sandbox.Result) -> str:
    last = (found.stderr.strip().splitlines() or [f"exit code {found.code}" if found.code else ""])[-1]
    return f"{found.verdict}: {_brief(last)}" if last else found.verdict


def _brief(text: str) -> str:
    return " ".join(text.split())[:200]
