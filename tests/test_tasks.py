"""How answers are read: the stated parsing rule, and label probabilities from logprobs."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.logprobs import Logprobs
from llm_distill.tasks import Task, label_probs

TASK = Task(kind="classify", labels=["positive", "negative"])
EXACT = Task(kind="classify", labels=["transfer", "transfer money"], parse="exact")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("**Negative**, because", "negative"),
        ("NEGATIVE\n\nText: next", "negative"),
        ('"positive"', "positive"),
        ("positively", None),
        ("The answer is positive", None),
        ("neutral", None),
        ("", None),
    ],
)
def test_starts_with(text: str, label: str | None) -> None:
    assert TASK.prediction(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("transfer", "transfer"),
        ("Transfer money.", "transfer money"),
        ("transfer now", None),
        ("transfer\nmore", "transfer"),
    ],
)
def test_exact(text: str, label: str | None) -> None:
    assert EXACT.prediction(text) == label


def _logprobs(path: list[list[tuple[str, float]]]) -> Logprobs:
    """Positions of alternatives (token, probability); the first of each is the sampled one."""
    k = max(map(len, path))
    table = np.full((len(path), k), -np.inf, dtype=np.float32)
    for row, alternatives in zip(table, path, strict=True):
        row[: len(alternatives)] = [math.log(p) for _, p in alternatives]
    tokens = [[token.encode() for token, _ in alternatives] for alternatives in path]
    return Logprobs.of_tokens([row[0] for row in tokens], table[:, 0], tokens, table)


def test_each_alternative_gives_its_mass_to_the_one_label_it_begins() -> None:
    read = _logprobs([[(" pos", 0.5), ("Negative", 0.2), ("NEG", 0.1), ("maybe", 0.1)]])
    assert label_probs(read, TASK.labels) == pytest.approx((0.5, 0.3))


def test_the_walk_goes_on_while_labels_share_their_beginning() -> None:
    read = _logprobs([[("card", 0.8), ("pin", 0.2)], [(" lost", 0.75), (" stolen", 0.25)]])
    assert label_probs(read, ["card lost", "card stolen", "pin blocked"]) == pytest.approx((0.6, 0.2, 0.2))


def test_blank_space_first_is_walked_over() -> None:
    read = _logprobs([[("\n", 0.9), ("negative", 0.1)], [("positive", 1.0)]])
    assert label_probs(read, TASK.labels) == pytest.approx((0.9, 0.1))


@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "pos", " positive", "n", "Neg", "x", "\n", "é"]), st.floats(0.01, 1)),
        min_size=1,
        max_size=8,
        unique_by=lambda t: t[0],
    ),
    st.integers(1, 3),
)
def test_label_probabilities_are_probabilities(alternatives: list[tuple[str, float]], length: int) -> None:
    total = sum(p for _, p in alternatives)
    read = _logprobs([[(t, p / total) for t, p in alternatives]] * length)
    probs = label_probs(read, TASK.labels)
    assert all(0.0 <= p <= 1.0 + 1e-6 for p in probs)
    assert sum(probs) <= 1.0 + 1e-5


SIGNS = Task(kind="classify", labels=["C", "C++", "C#"], parse="exact")


@pytest.mark.parametrize(("text", "label"), [("C", "C"), ("C++", "C++"), ("c#", "C#"), ("C.", None), ("C--", None)])
def test_labels_of_signs_are_told_apart(text: str, label: str | None) -> None:
    assert SIGNS.prediction(text) == label


def test_exact_labels_of_which_one_begins_another_get_their_mass() -> None:
    short = _logprobs([[("transfer", 0.9), ("other", 0.1)]])
    long = _logprobs([[("transfer", 0.9)], [(" money", 0.8), (" it", 0.2)]])
    assert label_probs(short, EXACT.labels, exact=True) == pytest.approx((0.9, 0.0))
    assert label_probs(long, EXACT.labels, exact=True) == pytest.approx((0.0, 0.72))


@pytest.mark.parametrize(
    ("label", "text", "read"),
    [
        ("\u6b63\u9762", "\u6b63\u9762\u7684", True),
        ("A", "A\u662f\u5bf9\u7684", True),
        ("\uae0d\uc815", "\uae0d\uc815\uc785\ub2c8\ub2e4", True),
        ("\U0001f44d", "\U0001f44dgood", True),
        ("\u0434\u0430", "\u0414\u0430, \u044d\u0442\u043e \u0442\u0430\u043a", True),
        ("\u0434\u0430", "\u0434\u0430\u043d\u043d\u044b\u0445 \u043c\u0430\u043b\u043e", False),
        ("\u0644\u0627", "\u0644\u0627\u0632\u0645", False),
    ],
)
def test_a_word_ends_where_its_script_divides_words(label: str, text: str, read: bool) -> None:
    task = Task(kind="classify", labels=[label, "other"])
    assert task.prediction(text) == (label if read else None)


@pytest.mark.parametrize("parse", ["starts_with", "exact"])
@pytest.mark.parametrize(("labels", "text"), [(["\U0001f44d", "\U0001f44e"], "\U0001f44e"), (["+", "-"], " -")])
def test_labels_of_signs_alone_are_read(labels: list[str], text: str, parse: Literal["starts_with", "exact"]) -> None:
    task = Task(kind="classify", labels=labels, parse=parse)
    assert task.prediction(text) == labels[1]
    read = _logprobs([[(text, 0.7), (labels[0], 0.3)]])
    assert label_probs(read, labels, exact=parse == "exact") == pytest.approx((0.3, 0.7))
