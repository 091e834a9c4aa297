from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, norm
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from llm_distill.evals.calibration import brier, reliability
from llm_distill.evals.compare import compare
from llm_distill.evals.metrics import balanced_accuracy, confusion
from llm_distill.evals.probabilities import auroc, calibration, distribution, kl, probability_numbers
from llm_distill.evals.statistics import Floats
from llm_distill.records import Answer
from tests.evals.rows import LABELS, answer, arm, prompt

names = ["a", "b", "c"]


def drawn(seed: int, n: int = 60, labels: int = 3) -> tuple[Floats, np.ndarray]:
    """Random distributions (n, L + 1), rounded so that many are equal, and true labels (n,)."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(labels, size=n)
    probs = np.round(rng.dirichlet(np.ones(labels), size=n) + 0.4 * np.eye(labels)[gold], 1) + 0.01
    return np.append(probs / probs.sum(1, keepdims=True), np.zeros((n, 1)), axis=1), gold


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [2, 3])
def test_they_are_scikit_learns(seed: int, labels: int) -> None:
    probs, gold = drawn(seed, labels=labels)
    each = [roc_auc_score(gold == k, probs[:, k]) for k in range(labels)]
    assert auroc(probs[:, :-1], gold).value == pytest.approx(np.mean(each))
    theirs = brier_score_loss(gold, probs[:, :-1], labels=list(range(labels)), scale_by_half=True)
    assert brier(probs[:, :-1], gold).mean() == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_an_arms_numbers_are_those_by_which_a_teacher_is_calibrated(seed: int) -> None:
    """One definition of confidence, of its bins and of the Brier score, mass that went to no label included."""
    probs, gold = drawn(seed, n=130)
    probs = probs[:, :-1] * np.random.default_rng(seed).uniform(0.3, 1, (len(probs), 1))
    rows = [
        answer(prompt(f"row {i}", names[g]), names[int(p.argmax())], label_probs=tuple(p.tolist()))
        for i, (p, g) in enumerate(zip(probs, gold, strict=True))
    ]
    found = probability_numbers(rows, [], names, seed=7, resamples=200)
    same = reliability(probs, (probs.argmax(1) == gold).astype(float), gold)
    assert (found["ece"]["value"], found["brier"]["value"]) == pytest.approx((same.ece, same.brier))
    curve = [number for one in found["calibration"] for number in (one["n"], one["confidence"], one["accuracy"])]
    assert curve == pytest.approx([number for one in same.bins for number in one])


labelled = st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(labelled)
@pytest.mark.filterwarnings("ignore:y_pred contains classes:UserWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
def test_balanced_accuracy_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    gold, said = zip(*pairs, strict=True)
    found = balanced_accuracy(confusion(arm(gold, said), names), 7, 200)
    assert found.value == pytest.approx(balanced_accuracy_score(gold, said))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_ties_count_half_and_one_label_alone_says_nothing() -> None:
    level = np.full((10, 2), 0.5)
    gold = np.array([0, 1] * 5)
    assert auroc(level, gold).value == 0.5
    assert math.isnan(auroc(level, np.zeros(10, dtype=np.int64)).value)
    assert math.isnan(auroc(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)).value)


def test_a_perfect_order_of_few_rows_is_not_certain() -> None:
    gold = np.array([0, 0, 0, 1, 1, 1])
    sure = np.stack([1.0 - gold, gold], axis=1)
    found = auroc(sure, gold)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(3 / (3 + 1.96**2), abs=1e-3), "Wilson's of three rows, all right"


@pytest.mark.parametrize(("n", "apart"), [(40, 1.5), (200, 0.5)])
def test_the_interval_of_auroc_holds_the_truth_about_as_often_as_it_says(n: int, apart: float) -> None:
    rng = np.random.default_rng(8)
    truth, held = norm.cdf(apart / math.sqrt(2)), 0
    for _ in range(300):
        gold = np.array([0, 1, *(rng.random(n - 2) < 0.3)], dtype=np.int64)
        score = rng.normal(size=n) + apart * gold
        found = auroc(np.stack([-score, score], axis=1), gold)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize("slope", [1.0, 0.4])
def test_the_interval_of_the_calibration_error_holds_the_truth(slope: float) -> None:
    """Right with 0.5 + slope x (sure - 0.5), so the true error is (1 - slope) / 4."""
    rng, held = np.random.default_rng(9), 0
    for _ in range(100):
        sure = rng.uniform(0.5, 1, 300)
        found, _ = calibration(sure, rng.random(300) < 0.5 + slope * (sure - 0.5), 7, 500)
        held += found["low"] <= (1 - slope) / 4 <= found["high"]
    assert held >= 88


def test_the_calibration_error_by_hand() -> None:
    sure = np.repeat([0.6, 0.9], 20)
    right = np.array([True] * 12 + [False] * 8 + [True] * 8 + [False] * 12)
    found, curve = calibration(sure, right, 7, 500)
    assert found["value"] == pytest.approx((0 + 0.5) / 2)
    assert [one["n"] for one in curve] == [20, 20]
    assert [one[key] for one in curve for key in ("confidence", "accuracy")] == pytest.approx([0.6, 0.6, 0.9, 0.4])
    assert found["by_chance"] < found["value"]
    assert 0 < found["low"] < found["value"] < found["high"]
    level, only = calibration(np.full(40, 0.7), np.arange(40) < 28, 7, 500)
    assert (level["value"], len(only)) == (pytest.approx(0), 1), "equally sure rows are one bin"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_kl_is_scipys(teacher: list[float], student: list[float]) -> None:
    p, q = np.array(teacher) / sum(teacher), np.array(student) / sum(student)
    assert kl(p, q) == pytest.approx(entropy(p, q), abs=1e-9)
    assert kl(p, p) == 0


def test_what_a_student_never_says_costs_no_more_than_can_be_known() -> None:
    assert kl(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(1e6))


def test_mass_that_went_to_no_label_is_an_outcome() -> None:
    some = answer(prompt("row"), "positive", label_probs=(0.2, 0.5))
    assert distribution(some) == pytest.approx([0.2, 0.5, 0.3])
    over = answer(prompt("row"), "positive", label_probs=(0.6, 0.6))
    assert distribution(over) == pytest.approx([0.5, 0.5, 0.0])
    assert distribution(answer(prompt("row"), "positive")) is None
    assert distribution(answer(prompt("row"), None, status="failed", label_probs=(0.5, 0.5))) is None


def sure(rows: list[Answer], *probs: tuple[float, float]) -> list[Answer]:
    return [msgspec.structs.replace(row, label_probs=p) for row, p in zip(rows, probs * len(rows), strict=False)]


def test_every_arm_says_what_its_probabilities_are_worth_or_why_not() -> None:
    gold = ["positive", "negative"] * 20
    teacher = sure(arm(gold, gold), (0.1, 0.9), (0.9, 0.1))
    student = sure(arm(gold, ["positive", "positive"] * 20), (0.2, 0.8), (0.4, 0.6))
    found = compare(
        {"teacher": teacher, "student": student, "base_zero_shot": arm(gold, gold)},
        "classify", LABELS, seed=7, resamples=500,
    )["arms"]  # fmt: skip
    of = found["student"]
    assert of["brier"]["value"] == pytest.approx((0.2**2 + 0.6**2) / 2)
    assert of["auroc"]["value"] == 1
    assert of["ece"]["value"] == pytest.approx((0.2 + 0.6) / 2)
    assert of["top1_agreement"]["value"] == 0.5
    apart = [0.9 * math.log(0.9 / p) + 0.1 * math.log(0.1 / (1 - p)) for p in (0.8, 0.4)]
    assert of["kl_from_teacher"]["value"] == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert of["kl_from_teacher"]["low"] < sum(apart) / 2 < of["kl_from_teacher"]["high"]
    assert of["undefined"] == {}
    assert found["base_zero_shot"]["brier"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["base_zero_shot"]["undefined"]["ece"].startswith("no answer has label probabilities: they come with")
    assert found["base_zero_shot"]["balanced_accuracy"]["value"] == 1
    assert found["teacher"]["undefined"] == dict.fromkeys(
        ("agreement_with_teacher", "top1_agreement", "kl_from_teacher"), "it is the teacher"
    )


def test_rows_without_gold_are_counted() -> None:
    found = compare({"student": arm(["positive", None, None], ["positive"] * 3)}, "classify", LABELS, seed=7)
    assert found["without_gold"] == 2
    assert found["arms"]["student"]["accuracy"]["n"] == 1
