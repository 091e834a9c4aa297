from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels
from llm_distill.evals.metrics import (
    AGREEMENT,
    agreement_scores,
    arm_numbers,
    check_predictions,
    confusion,
    gold_scores,
    macro_f1,
    per_class,
)
from llm_distill.evals.tokens import normalised, token_f1
from llm_distill.records import Answer
from tests.evals.rows import LABELS, arm, prompt, wrote


@pytest.mark.parametrize(
    ("text", "reference", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("the cat sat", "a cat", 2 / 3),  # precision 1/2, recall 1
        ("in the year 1852, in Paris", "1852", 1 / 3),  # five tokens, "in" twice
        ("to be or to be", "to be to", 3 / 4),  # multisets: two of "to", one of "be"
        ("Denver Broncos", "Carolina Panthers", 0.0),
        ("", "", 1.0),
        ("the", "an", 1.0),  # nothing but articles
        ("", "Denver", 0.0),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", 1.0),
        ("\u5317\u4eac\u662f\u9996\u90fd", "\u9996\u90fd\u662f Beijing", 2 / 3),  # a letter is a word: three of 5 and 4
        ("\u0645\u0627\u0630\u0627\u061f", "\u0645\u0627\u0630\u0627", 1.0),
        ("今天天气很好。", "今天天气好、", 2 * 5 / 11),  # no spaces: each character is a token
        ("東京タワーは333m。", "東京タワーは333m", 1.0),
    ],
)
def test_token_f1(text: str, reference: str, f1: float) -> None:
    assert token_f1(text, reference) == pytest.approx(f1)
    assert token_f1(reference, text) == pytest.approx(f1)


def test_normalised_as_squad_does() -> None:
    assert normalised("  The U.S.A.'s   theory, an  Answer\n") == "usas theory answer"


def test_macro_f1_of_scikit_learns_example() -> None:
    """The example of scikit-learn's classification_report: F1 0.67, 0.00 and 0.80, macro average 0.49."""
    gold, said = [0, 1, 2, 2, 2], [0, 0, 2, 2, 1]
    labels = ["0", "1", "2"]
    counts = confusion(arm([str(g) for g in gold], [str(s) for s in said]), labels)
    found = per_class(counts, labels)
    assert [round(found[i]["f1"] or 0, 2) for i in labels] == [0.67, 0.0, 0.8]
    assert found["2"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3}
    assert macro_f1(counts, 7, 500).value == pytest.approx((2 / 3 + 0 + 0.8) / 3)


names = ["a", "b", "c", "d"]
labelled = st.lists(st.tuples(st.sampled_from(names), st.sampled_from([*names, None])), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(labelled)
def test_macro_f1_is_the_mean_over_the_labels_that_occur(pairs: list[tuple[str, str | None]]) -> None:
    gold, said = zip(*pairs, strict=True)
    answers = arm(gold, said)
    counts = confusion(answers, names)
    assert counts.sum() == len(pairs)
    each = []
    for label in sorted({label for label in (*gold, *said) if label}):
        right = sum(g == s == label for g, s in pairs)
        precision = right / said.count(label) if label in said else 0.0
        recall = right / gold.count(label) if label in gold else 0.0
        each.append(2 * precision * recall / (precision + recall) if right else 0.0)
    found = macro_f1(counts, 7, 200)
    assert found.value == pytest.approx(sum(each) / len(each))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_perfect_macro_f1_over_many_rare_labels_stays_near_one() -> None:
    """Resamples lose rare labels; a lost label must not count as a label got wrong."""
    names = [f"intent {i}" for i in range(77)]
    found = macro_f1(confusion(arm(names * 4, names * 4), names), 7, 1_000)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.97 < found.low < 1.0


def test_undefined_shares_are_none() -> None:
    counts = confusion(arm(["a", "a"], ["a", None]), ["a", "b"])
    assert per_class(counts, ["a", "b"])["b"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert counts.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert np.isnan(macro_f1(np.zeros((2, 3), dtype=np.int64), 7, 100).value)


def test_failed_and_unparsed_rows_are_wrong() -> None:
    failed = Answer(prompt("failed", "positive"), "", "failed", prediction="positive")
    rows = [*arm(["positive", "positive", None], ["positive", None, "positive"]), failed]
    assert sorted(gold_scores(rows, "classify")["accuracy"].values()) == [0.0, 0.0, 1.0]
    assert confusion(rows, LABELS).tolist() == [[0, 0, 0], [0, 1, 2]]


def test_a_failed_text_scores_nothing_even_where_nothing_is_right() -> None:
    ok, failed = wrote([""], [""]), wrote([""], [""], status="failed")
    assert gold_scores(ok, "generate") == {m: {ok[0].prompt.row_id: 1.0} for m in ("exact_match", "token_f1")}
    assert gold_scores(failed, "generate") == {m: {ok[0].prompt.row_id: 0.0} for m in ("exact_match", "token_f1")}


def test_agreement_is_counted_where_the_teacher_answered() -> None:
    gold = ["positive"] * 4
    teacher = arm(gold, ["positive", "negative", None, "positive"])
    student = arm(gold, ["positive", "positive", "positive", None])
    assert list(agreement_scores(student, teacher, "classify").values()) == [1.0, 0.0, 0.0]
    found = agreement_scores(
        wrote([None] * 3, ["a red fox", "x", "y"]), wrote([None] * 3, ["red", " ", "y"]), "generate"
    )
    assert list(found.values()) == [pytest.approx(2 / 3), 1.0]


def test_a_gold_label_outside_the_task_names_the_row_and_the_repair() -> None:
    rows = arm(["positive", "positve"], ["positive", "positive"])
    with pytest.raises(UserError) as failure:
        check_labels([row.prompt for row in rows], LABELS)
    message = str(failure.value)
    assert rows[1].prompt.row_id in message
    assert "'row 1'" in message
    assert "'positve'" in message
    assert "Did you mean 'positive'? Allowed: negative, positive." in message
    assert "task.classify.labels" in message


def test_a_prediction_outside_the_task_is_a_bug() -> None:
    with pytest.raises(ValueError, match="'neutral' is no label"):
        check_predictions(arm(["positive"], ["neutral"]), LABELS)


def test_a_text_without_spaces_is_as_long_as_its_characters() -> None:
    short, due = "今天天气好", "今天天气很好我们去公园走"
    (answer,) = wrote([due], [short])
    found = arm_numbers([answer], {AGREEMENT: {}}, "generate", [], seed=1, slices=(), resamples=100)
    assert found["length_ratio"]["value"] == pytest.approx(len(short) / len(due))
