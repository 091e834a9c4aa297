"""A plug of one's own that cannot be one: a line at `check`, before anything is asked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.recipe import load
from tests.conftest import Desk

MINE = """
import functools

def three(answers, context, more): return [0.0] * len(answers)
def shouts(answers): return ["loud" for _ in answers]
def asked(wanted): return []
part = functools.partial(three, more=1)
"""


@pytest.fixture
def mine(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk.seeds([{"prompt": "x"}])
    (desk.folder / "mine_own.py").write_text(MINE, encoding="utf-8")
    (desk.folder / "mine_quits.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(desk.folder)
    monkeypatch.delitem(sys.modules, "mine_own", raising=False)  # another test's
    return desk


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"filter": [{"mine_own:three": {"min": 0}}]},
            "filter[0].mine_own:three: it takes answers, context, more by position, and a scorer is given at most 2",
        ),
        ({"models": {"teacher": "mine_own:asked"}}, "it takes wanted by position, and a model is given none"),
        ({"filter": [{"mine_quits:x": {"min": 0}}]}, "cannot load 'mine_quits:x': SystemExit: 3"),
        ({"filter": [{"builtins:dict": {"min": 0}}]}, "its parameters cannot be read; write a Python function"),
    ],
)
def test_a_function_that_is_no_plug_is_refused(mine: Desk, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(mine.recipe(**keys))
    assert message in str(error.value)


def test_a_partial_is_known_by_its_module(mine: Desk) -> None:
    recipe = mine.recipe(filter=[{"mine_own:part": {"min": 0}}])
    before = load(recipe).digest
    with (mine.folder / "mine_own.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert load(recipe).digest != before


def test_scores_that_are_no_numbers_are_shown(mine: Desk) -> None:
    with pytest.raises(UserError) as error:
        mine.here(mine.recipe(filter=[{"mine_own:shouts": {"min": 0}}]))
    assert "filter[0].mine_own:shouts: it gave ['loud']; a list of numbers is due" in str(error.value)


def test_a_function_without_a_file_needs_none(mine: Desk) -> None:
    load(mine.recipe(filter=[{"os:listdir": {"min": 0}}]))  # a builtin's
    load(mine.recipe(filter=[{"os.path:isdir": {"min": 0}}]))  # frozen into the interpreter
