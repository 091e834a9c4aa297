"""Tests of drift: McNemar's and the sign test where they are one of them, quiet where nothing leans, and text by its words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from llm_distill.evals.drift import drift, served, swap_test
from llm_distill.records import Answer, Message, make_prompt


def answers(texts: list[str], labelled: bool, gold: str | None = None) -> list[Answer]:
    found = []
    for i, text in enumerate(texts):
        prompt = make_prompt(
            (Message("user", str(i)),), label=gold if labelled else None, reference=None if labelled else gold
        )
        found.append(Answer(prompt, text, "ok", prediction=text or None if labelled else None))
    return found


@given(st.integers(0, 13), st.integers(0, 13))
@settings(max_examples=60, deadline=None)
def test_on_two_labels_it_is_mcnemars_exact_test(up: int, down: int) -> None:
    rows = np.array([[1.0, -1.0]] * up + [[-1.0, 1.0]] * down + [[0.0, 0.0]] * 20)
    expected = binomtest(up, up + down).pvalue if up + down else 1.0
    assert swap_test(rows, seed=1) == pytest.approx(expected, abs=1e-9 if up + down <= 13 else 0.02)


def test_on_many_labels_it_agrees_with_stuart_and_maxwell() -> None:
    """Vision of 7,477 women, left eye against right (Stuart 1955): chi-square 11.96 on 3 degrees of freedom, p = 0.0075."""
    table = np.array([[1520, 266, 124, 66], [234, 1512, 432, 78], [117, 362, 1772, 205], [36, 82, 179, 492]])
    rows = [np.eye(4)[b] - np.eye(4)[a] for a in range(4) for b in range(4) if a != b for _ in range(int(table[a, b]))]
    found = swap_test(np.array(rows)[:, :], seed=3)
    assert chi2.sf(11.96, 3) == pytest.approx(0.0075, abs=2e-4)
    assert 0.001 < found < 0.03, "another statistic of the same margins, the same verdict"


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    dice = np.random.default_rng(5)
    p = [swap_test(dice.choice([-1.0, 0.0, 1.0], (40, 1), p=[0.1, 0.8, 0.1]), seed=i) for i in range(300)]
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_texts_are_held_against_themselves_by_words_and_length() -> None:
    before = answers([f"the answer number {i} is short" for i in range(20)], labelled=False)
    same = drift(before, before, "generate", seed=1)
    assert same["agreement"]["value"] == 1.0
    assert [test["p"] for test in same["tests"]] == [1.0]
    after = answers([f"the answer number {i} is short, and then it goes on and on" for i in range(20)], labelled=False)
    longer = drift(before, after, "generate", seed=1)
    assert longer["agreement"]["value"] < 0.8
    (words,) = longer["tests"]
    assert (words["before"], words["after"]) == (6.0, 13.0)
    assert words["p_holm"] < 0.001


def test_rows_that_failed_are_left_out_and_none_left_says_nothing() -> None:
    before, after = answers(["a", "b"], True), answers(["a", "b"], True)
    lost = [Answer(a.prompt, "", "failed", reason="timeout") for a in before]
    assert drift(before, [after[0], lost[1]], "classify", 1)["rows"] == 1
    nothing = drift(before, lost, "classify", 1)
    assert (nothing["rows"], nothing["tests"], nothing["agreement"]["value"]) == (0, [], None)


def test_a_label_that_was_none_counts_as_one() -> None:
    found = drift(answers(["a"] * 12, True), answers([""] * 12, True), "classify", 1)
    assert found["labels"] == {"a": [12, 0], "no label": [0, 12]}
    assert found["tests"][0]["p_holm"] < 0.001


def test_a_served_name_that_changed_is_named() -> None:
    assert served({"a": ["x"], "b": ["y"]}, {"a": ["x"], "b": ["y", "z"], "c": ["n"]}) == ["b"]
