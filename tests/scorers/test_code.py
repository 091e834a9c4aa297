"""Programs as answers: what is taken for one, and what its tests make of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from llm_distill import sandbox
from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.scorers import SCORERS
from llm_distill.scorers.code import code, extracted
from tests.conftest import Desk
from tests.scorers.rows import answer

held = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian: bubblewrap)")
ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


@pytest.mark.parametrize(
    "text",
    [
        ADD,
        f"```python\n{ADD}```",
        f"Here it is:\n\n```py\n{ADD}```\nIt adds.",
        f"```\n{ADD}```",
        f"~~~~python3\n{ADD}~~~~",
        f"````Python title=x\n{ADD}````",
    ],
)
def test_what_is_taken_for_a_program(text: str) -> None:
    assert extracted(text) == (ADD, None)


def test_only_a_line_feed_ends_a_line_of_a_program() -> None:
    program = "a = 'page\x0c\u2028'\n"
    assert extracted(f"```python\n{program}```") == (program, None)


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert extracted("````\na = '''\n```\n'''\n````") == ("a = '''\n```\n'''\n", None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no program"),
        (" \n", "no program"),
        (f"```python\n{ADD}", "no end"),
        (f"```python\n{ADD}```\nor\n```python\n{ADD}```", "2 code blocks"),
        (f"```javascript\n{ADD}```", "javascript"),
    ],
)
def test_what_is_not(text: str, why: str) -> None:
    program, fault = extracted(text)
    assert program == ""
    assert fault is not None
    assert why in fault
    if shutil.which("bwrap"):
        assert list(code([answer(text, TESTS)]).values) == [0.0]


@held
@pytest.mark.parametrize(
    ("program", "score", "why"),
    [
        (ADD, 1.0, "passed"),
        ("def add(a, b): return a - b", 0.0, "error: AssertionError"),
        ("def plus(a, b): return a + b", 0.0, "NameError"),
        ("def add(a, b) return a + b", 0.0, "SyntaxError"),
        ("def add(a, b):\n    while True: pass", 0.0, "timeout"),
        ("def add(a, b): return bytearray(1 << 40)", 0.0, "memory"),
        ("import sys; sys.exit(0)", 0.0, "ended before its tests"),
        ("import os; os._exit(0)", 0.0, "ended before its tests"),
        (f"{ADD}\nprint(open('/program.py').read())", 1.0, "passed"),
        ("print(open('/program.py').read()); import os; os._exit(0)", 0.0, "ended before its tests"),
        ("import socket; socket.socket()", 0.0, "forbidden"),
        ("while True: print('a' * 9999)", 0.0, "output"),
        (f"{ADD}\nif __name__ == '__main__': raise SystemExit(1)", 1.0, "passed"),
        (
            "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n  x: int\n"
            "def add(a, b): return A(a).x + A(b).x",
            1.0,
            "passed",
        ),
        ("def add(a, b): return a + b  # '''\\\"\"\" \u2028 😀", 1.0, "passed"),
    ],
)
def test_programs_against_tests(program: str, score: float, why: str) -> None:
    found = code([answer(program, TESTS)], cpu_s=1)
    assert list(found.values) == [score]
    assert why in (found.why[0] or "")


@held
def test_order_and_rows_without_tests() -> None:
    rows = [answer(ADD, TESTS), answer(ADD), answer("nothing", TESTS), answer(ADD, "  ")] * 3
    found = code(rows, at_once=3)
    assert [None if math.isnan(v) else v for v in found.values] == [1.0, None, 0.0, None] * 3
    assert found.why[1] == "no tests"
    assert list(code([]).values) == []


@held
def test_by_output() -> None:
    rows = [
        answer("print(6 * 7)", "42"),
        answer("print('a  \\nb\\n')", "a\nb"),
        answer("print(41)", "42"),
        answer("print(1)"),
    ]
    found = code(rows, by="output")
    assert list(found.values)[:3] == [1.0, 1.0, 0.0]
    assert math.isnan(found.values[3])
    assert found.why[2] == "output: '41', due '42'"


@held
def test_tests_of_a_template(tmp_path: Path) -> None:
    (file := tmp_path / "tests.md").write_text("{{ reference }}\ncheck({{ tags.entry_point }})\n")
    check = "def check(f):\n    assert f(1, 2) == 3"
    found = code([answer(ADD, check, tags={"entry_point": "add"})], tests=file)
    assert list(found.values) == [1.0]


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "road", lambda: "user")
    reading = Reading(folder=tmp_path, files=set(), roles=())
    (tmp_path / "tests.md").write_text("{{ answr }}")
    with pytest.raises(UserError, match="answr"):
        bind("scorer", Spec("code", {"tests": "tests.md"}, "filter[0].code"), SCORERS, reading)
    with pytest.raises(UserError, match="language"):
        bind("scorer", Spec("code", {"language": "cobol"}, "filter[0].code"), SCORERS, reading)

    def road() -> str:
        raise UserError("no program can be held here")

    monkeypatch.setattr(sandbox, "road", road)
    with pytest.raises(UserError, match="no program can be held here"):
        bind("scorer", Spec("code", {}, "filter[0].code"), SCORERS, reading)


@held
def test_through_a_recipe(desk: Desk) -> None:
    desk.seeds([{"prompt": f"add {n}", "reference": TESTS} for n in range(12)])
    rules = {"add [0-5]$": ADD}
    recipe = desk.recipe(
        task={"generate": {}},
        models={"teacher": {"scripted": {"rules": rules, "default": "def add(a, b): return 0"}}},
        answers={"max_tokens": 64},
        filter=["code"],
    )
    rows = desk.rows(desk.run(recipe, "--until", "filter"), "dropped")
    assert {row["why.code"] for row in rows} == {"error: AssertionError"}
    assert not {f"add {n}" for n in range(6)} & {row["messages"][0]["content"] for row in rows}
