"""The plainest scorers, with texts they should find and texts they should not; tests/scorers has the others."""

from __future__ import annotations

import math

import pytest

from llm_distill.records import Answer, Message, make_prompt
from llm_distill.scorers import Context
from llm_distill.scorers.overlap import leakage
from llm_distill.scorers.teacher import confidence, unparsed
from llm_distill.scorers.text import empty, exact_duplicate, length, truncated
from llm_distill.tasks import Task

CONTEXT = Context(Task(kind="classify", labels=["positive", "negative"]))


def _answer(text: str = "positive", prompt: str = "p", **fields: object) -> Answer:
    return Answer(make_prompt((Message("user", prompt),)), text, **{"status": "ok", **fields})  # type: ignore[arg-type]


def test_empty_length_and_truncated() -> None:
    rows = [_answer(" \n\t"), _answer(" two words "), _answer("cut", status="truncated")]
    assert empty(rows) == [1.0, 0.0, 0.0]
    assert length(rows) == [0.0, 9.0, 3.0]
    assert length(rows, unit="words") == [0.0, 2.0, 1.0]
    assert truncated(rows) == [0.0, 0.0, 1.0]


def test_exact_duplicates_keep_the_first() -> None:
    rows = [_answer("a", "Same  text"), _answer("b", "same text"), _answer("a", "other")]
    assert exact_duplicate(rows) == [0.0, 1.0, 0.0]
    assert exact_duplicate(rows, of="answer") == [0.0, 0.0, 1.0]
    assert exact_duplicate(rows, of="both") == [0.0, 0.0, 0.0]


def test_leakage_is_the_share_of_grams_seen_in_held_out() -> None:
    held = make_prompt((Message("user", "one two three four five six seven eight nine ten"),))
    context = Context(CONTEXT.task, [held])
    rows = [
        _answer(prompt="One, two, three; four five six seven eight nine ten!"),
        _answer(prompt="zero one two three four five six seven eight and then some other words follow here"),
        _answer(prompt="nothing in common with that at all, not even by chance"),
        _answer(prompt="one two three"),
    ]
    whole, part, none, short = leakage(rows, context).values
    assert (whole, none, short) == (1.0, 0.0, 0.0)
    assert 0.0 < part < 0.5


def test_confidence_is_the_mass_on_the_chosen_label() -> None:
    rows = [
        _answer(prediction="negative", label_probs=(0.2, 0.7)),
        _answer(prediction=None, label_probs=(0.2, 0.7)),
        _answer(prediction="positive"),
    ]
    first, second, third = confidence(rows, CONTEXT)
    assert first == 0.7
    assert math.isnan(second)
    assert math.isnan(third)
    generate = Context(Task(kind="generate"))
    assert confidence([_answer(mean_logprob=math.log(0.5))], generate) == [pytest.approx(0.5)]
    assert unparsed(rows) == [0.0, 1.0, 0.0]
