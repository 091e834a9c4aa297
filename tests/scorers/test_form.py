"""Answers that have a form, and those that only nearly do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.scorers import SCORERS, Scored
from tests.scorers.rows import answer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
#: A mapping of 10^9 keys.
_LAUGHS = "- &b0 {x: 1}\n" + "".join(f"- &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
FITS: list[tuple[dict[str, Any], str]] = [
    ({"regex": r"[A-D]"}, " B\n"),
    ({"regex": r"\d{4}-\d{2}-\d{2}"}, "2026-11-25"),
    ({"json_schema": PERSON}, '{"name": "Ada", "age": 36}'),
    ({"labels": ["positive", "negative"]}, "positive"),
    ({"parses": "python"}, "def f(x):\n    return x + 1"),
    ({"parses": "python"}, "Here you go:\n```python\nprint('a')\n```\nIt prints a."),
    ({"parses": "python"}, "First:\n```\nx = 1\n```\nthen\n~~~\ny = 2\n~~~"),
    ({"parses": "python"}, "```sh\npip install x\n```\n```py\nimport x\n```"),
    ({"parses": "python"}, "s = '\\d'"),  # an odd escape is a warning, not an error
    ({"parses": "json"}, '```json\n{"a": [1, 2]}\n```'),
    ({"parses": "yaml"}, "a: 1\nb: [2, 3]"),
    ({"parses": "yaml"}, "a: &a {x: 1}\nb: {<<: *a, y: 2}"),
    ({"parses": "yaml"}, "- &a x\n- &a y"),  # so is an anchor that stands twice
    ({"parses": "toml"}, "[tool]\nname = 'x'"),
    ({"min_lines": 2, "max_lines": 3}, "- one\n\n- two"),
]
MISSES: list[tuple[dict[str, Any], str, str]] = [
    ({"regex": r"[A-D]"}, "The answer is B", "does not match"),
    ({"json_schema": PERSON}, '{"name": "Ada", "age": "36"}', "$.age"),
    ({"json_schema": PERSON}, '{"name": "Ada"', "not JSON"),
    ({"json_schema": PERSON}, 'Sure! {"name": "Ada"}', "not JSON"),
    ({"labels": ["positive", "negative"]}, "Positive.", "none of the labels"),
    ({"parses": "python"}, "def f(x)\n    return x", "not python"),
    ({"parses": "python"}, "Use the print function.", "not python"),
    ({"parses": "python"}, "```python\nprint('a')", "never closed"),
    ({"parses": "python"}, "```js\nlet a = 1\n```", "no block of python, only js"),
    ({"parses": "python"}, "```python\nx = 1\n```\n```python\ny = = 2\n```", "not python"),
    ({"parses": "python"}, "x = '\x00'", "not python"),
    ({"parses": "python"}, "(" * 5000, "not python"),
    ({"parses": "python"}, "", "nothing there"),
    ({"parses": "json"}, "{'a': 1}", "not json"),
    ({"parses": "json"}, '{"a": NaN}', "not json"),
    ({"parses": "json"}, "[" * 100_000, "not json"),
    ({"parses": "yaml"}, "just words", "a single value"),
    ({"parses": "yaml"}, "a: 1\na: 2", "not yaml"),
    ({"parses": "yaml"}, "a: !!python/object/apply:os.system [ls]", "not yaml"),
    *(
        ({"parses": "yaml"}, f"a: {value}", "not of the kind")
        for value in ("!!int ''", "!!float ''", "!!bool x", "!!int _")
    ),
    ({"parses": "yaml"}, _LAUGHS, "more than 1,000 keys"),
    ({"parses": "toml"}, "name = ", "not toml"),
    ({"min_lines": 2}, "one", "1 lines, fewer than 2"),
    ({"max_lines": 1}, "one\ntwo", "2 lines, more than 1"),
    ({"regex": r"\w+", "max_lines": 1, "labels": ["a"]}, "b", "none of the labels"),
]


def _scored(text: str, **knobs: Any) -> Scored:
    plug = bind(
        "scorer", Spec("format", knobs, "filter.format"), SCORERS, Reading(folder=Path(), files=set(), roles=())
    )
    scored: Scored = plug([answer(text)])
    return scored


@pytest.mark.parametrize(("knobs", "text"), FITS)
def test_fits(knobs: dict[str, Any], text: str) -> None:
    assert _scored(text, **knobs) == Scored([0.0], [None])


@pytest.mark.parametrize(("knobs", "text", "why"), MISSES)
def test_does_not_fit(knobs: dict[str, Any], text: str, why: str) -> None:
    scored = _scored(text, **knobs)
    assert scored.values == [1.0]
    assert why in (scored.why[0] or "")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "say what form: json_schema, labels, min_lines, parses, regex or max_lines"),
        ({"regex": "("}, r"'\(' is not a regular expression"),
        ({"json_schema": {"type": "nonsense"}}, r"^filter\.format\.json_schema: not a JSON Schema"),
        ({"labels": []}, "at least 1 item"),
        ({"parses": "cobol"}, "'python', 'json', 'yaml' or 'toml'"),
        ({"min_lines": 3, "max_lines": 2}, "found 2, under min_lines: 3"),
    ],
)
def test_a_wrong_recipe(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _scored("a", **knobs)


def test_a_pattern_that_never_ends_is_given_up() -> None:
    found = _scored("a" * 60 + "b", regex="(a|aa)+")
    assert found.values == [1]
    assert "given up" in (found.why[0] or "")
