"""Changed rows: what each kind makes, what is thrown away, and what is asked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators import Context
from llm_distill.generators.augment import at_most, augment
from llm_distill.generators.noise import CASES, typos, unpunctuated
from llm_distill.records import Entry, Message, Prompt, Request, make_prompt
from llm_distill.tasks import Task
from tests.conftest import Desk

CLASSIFY = Task(kind="classify", labels=["positive", "negative", "neutral"])


def _row(text: str, **more: Any) -> Prompt:
    return make_prompt((Message("user", text),), **more)


class Model:
    """Answers by a function of what is asked; keeps the questions, round by round."""

    def __init__(self, reply: Callable[[str], str], status: Any = "ok") -> None:
        self.rounds: list[Sequence[Request]] = []
        self._reply, self._status = reply, status

    def __call__(self, role: str, requests: Sequence[Request]) -> list[Entry]:
        assert role == "teacher"
        self.rounds.append(requests)
        return [Entry(str(i), self._status, text=self._reply(r.messages[-1].content)) for i, r in enumerate(requests)]


def _said(question: str) -> str:
    return question.rsplit("The text:\n", 1)[1]


def _backwards(question: str) -> str:
    return f"Sure!\n<text>{_said(question)[::-1]}</text>"


def _augment(before: Sequence[Prompt], model: Model, task: Task = CLASSIFY, **knobs: Any) -> tuple[list[Prompt], str]:
    lines: list[str] = []
    context = Context(before, task, model, say=lines.append, seed=7)
    return list(augment(context, **knobs)), lines[-1]


def test_a_paraphrase_keeps_label_reference_and_the_turns_before() -> None:
    row = make_prompt(
        (Message("system", "s"), Message("user", "the lid")), {"domain": "shop", "group": "g"}, "positive", "gold"
    )
    model = Model(_backwards)
    (made,), line = _augment([row], model)
    assert [(m.role, m.content) for m in made.messages] == [("system", "s"), ("user", "dil eht")]
    assert made.tags == {"domain": "shop", "parent": row.row_id, "augmentation": "paraphrase"}
    assert (made.label, made.reference) == ("positive", "gold")
    assert line == "augment: 1 of 1 rows from 1 questions"


def test_a_rewrite_goes_abroad_and_back_in_two_rounds_or_takes_another_style() -> None:
    rows = [_row(f"row number {n}") for n in range(12)]
    model = Model(lambda q: f"<text>{_said(q)} x</text>")
    made, _ = _augment(rows, model, kinds=["rewrite"], through=["Danish"], styles=["in verse"])
    first, second = model.rounds
    abroad = [r for r in first if "into Danish" in r.messages[-1].content]
    assert 0 < len(abroad) < 12
    assert len(second) == len(abroad)
    assert all("into English" in r.messages[-1].content for r in second)
    assert sum(row.text.endswith(" x x") for row in made) == len(abroad)
    assert sum(row.text.endswith(" x") for row in made) == 12
    _augment(rows, styled := Model(_backwards), kinds=["rewrite"], through=[], styles=["in verse"])
    assert len(styled.rounds) == 1


def test_a_hard_negative_aims_at_another_label_and_has_none_itself() -> None:
    rows = [_row("fine lid", label="positive"), _row("some lid")]
    model = Model(_backwards)
    made, _ = _augment(rows, model, kinds=["hard_negative"], per_row=2)
    asked = [r.messages[-1].content for r in model.rounds[0]]
    aims = [found[1] for text in asked if (found := re.search(r"belongs to \"(\w+)\"\s+all the same", text))]
    assert sorted(aims) == ["negative", "neutral"]
    assert (
        sum(
            "belongs to another\none" in re.sub(r"[ \n]+", " ", text).replace("another one", "another\none")
            for text in asked
        )
        == 2
    )
    assert all(row.label is None and row.reference is None for row in made)
    with pytest.raises(UserError, match="hard_negative needs labels"):
        _augment(rows, model, Task(kind="generate"), kinds=["hard_negative"])


def test_what_is_malformed_the_same_too_long_or_unanswered_is_counted() -> None:
    replies = {
        "a b": "no marks at all",
        "c d": "<text>C  D</text>",
        "e f": "<text>" + "long " * 200 + "</text>",
        "g h": "<text>a B</text>",
        "i j": "<text>one</text><text>two</text>",
        "k l": "<text> </text>",
        "m n": "I'm sorry, but I can't help with that.",
    }
    made, line = _augment([_row(text) for text in replies], Model(lambda q: replies[_said(q)]))
    assert not made
    assert line == "augment: 0 of 7 rows from 7 questions; thrown away: 4 malformed, 2 known, 1 too long"
    made, line = _augment([_row("a b")], Model(_backwards, status="truncated"))
    assert (made, line) == ([], "augment: 0 of 1 rows from 1 questions; thrown away: 1 truncated answer")


def test_typos_and_cases_ask_nobody_and_equal_seeds_give_equal_rows() -> None:
    rows = [_row(f"This LID number {n} was, frankly, far too tight: it cost $3.50 at shop.com!") for n in range(30)]
    model = Model(_backwards)
    made, line = _augment(rows, model, kinds=["typo", "case"], per_row=3, typo_share=0.2)
    again, _ = _augment(rows, model, kinds=["typo", "case"], per_row=3, typo_share=0.2)
    assert made == again
    assert not model.rounds
    cases = {row.text for row in made if row.tags["augmentation"] == "case"}
    assert len(cases) == 90
    assert rows[0].text.lower() in cases
    assert "This LID number 0 was frankly far too tight it cost $3.50 at shop.com" in cases
    slips = [row for row in made if row.tags["augmentation"] == "typo"]
    assert len({row.text for row in slips}) == len(slips) >= 88
    assert all("$3.50" in row.text and "shop.com!" in row.text for row in slips)
    others, _ = _augment(rows[5:], model, kinds=["typo"], typo_share=0.2)  # a row's slips do not depend on other rows
    assert {row.text for row in others} <= {row.text for row in slips}
    assert "thrown away" not in line or "known" in line


def test_share_rows_and_per_row_bound_what_is_made_and_asked() -> None:
    rows = [_row(f"row {n}") for n in range(400)]
    model = Model(lambda q: f"<text>new {_said(q)} {len(model.rounds)}</text>")
    made, _ = _augment(rows, model, share=0.25)
    assert 70 < len(made) < 130
    assert len(made) <= at_most(400, share=0.25).questions
    few, _ = _augment(rows, model, kinds=["paraphrase", "typo"], rows=9)
    assert len(few) <= 9
    assert at_most(400, kinds=["paraphrase", "typo"], rows=9).rows == 9
    assert at_most(400, kinds=["typo", "case"]).questions == 0
    assert at_most(10, kinds=["rewrite"]).questions == 20
    assert at_most(10, kinds=["rewrite"], through=[]).questions == 10
    assert at_most(0).questions == 0


def test_equal_questions_to_one_row_are_told_apart() -> None:
    model = Model(_backwards)
    _augment([_row("a b")], model, per_row=3)
    assert len({request.key("m") for request in model.rounds[0]}) == 3


def test_without_rows_or_ways_it_says_so() -> None:
    with pytest.raises(UserError, match="no rows to change"):
        _augment([], Model(_backwards))
    with pytest.raises(UserError, match="both are empty"):
        _augment([_row("a")], Model(_backwards), kinds=["rewrite"], through=[], styles=[])


@given(st.text(), st.floats(0.01, 1))
def test_a_slip_touches_no_space_and_few_letters(text: str, share: float) -> None:
    slipped = typos(text, share, "s")
    assert slipped == typos(text, share, "s")
    assert re.findall(r"\s+", slipped) == re.findall(r"\s+", text)
    assert len(slipped.split()) == len(text.split())
    assert abs(len(slipped) - len(text)) <= len(text.split())


def test_a_word_of_many_signs_takes_no_longer_than_others() -> None:
    start = time.monotonic()
    assert typos("a" + "!" * 200_000 + "b", 1.0, "s") == "a" + "!" * 200_000 + "b"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["", "a b c", "12 34", "at https://a.b/c 3.5 x@y.z", "  \n "])
def test_texts_without_words_have_no_slips(text: str) -> None:
    assert typos(text, 1.0, "s") == text


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Well, it's 3.5 stars: great!", "Well it's 3.5 stars great"),
        ('He said "fine" (twice).', "He said fine (twice)"),
        ("Nice :) and 50%, a-b; e.g. x.y", "Nice :) and 50%, a-b e.g x.y"),
        ("Wait... what?! ok:) (no.)", "Wait what ok:) (no)"),
        ("好。", "好"),
    ],
)
def test_only_signs_that_close_are_taken(text: str, bare: str) -> None:
    assert unpunctuated(text) == bare


@given(st.text(st.characters(codec="ascii")))
def test_a_case_changes_no_letter(text: str) -> None:
    for _, change in CASES:
        assert [c for c in change(text).casefold() if c.isalnum()] == [c for c in text.casefold() if c.isalnum()]


def test_through_the_door_it_is_asked_once_and_kept_in_the_ledger(desk: Desk) -> None:
    desk.seeds([{"prompt": "a good lid", "label": "positive"}, {"prompt": "an odd lid", "label": "negative"}])
    rules = {
        "(?:reword)[^~]*good": "<text>some good cover</text>",
        "reword": "<text>some odd cover</text>",
        "good": "positive",
    }
    recipe = desk.recipe(
        models={"teacher": {"scripted": {"rules": rules, "default": "negative"}}},
        prompts=[{"seeds": {"file": "seeds.jsonl"}}, {"augment": {"kinds": ["paraphrase", "typo"]}}],
    )
    assert "sound" in desk.llm_distill("check", recipe)
    summary = desk.here(recipe)
    rows = {row["messages"][0]["content"]: dict(row["tags"]) for row in desk.rows(summary, "prompts")}
    assert rows["some good cover"]["augmentation"] == "paraphrase"
    assert rows["some good cover"]["generator"] == "augment"
    assert len(rows) == 6
