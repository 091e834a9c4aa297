"""The win rate at equal length, on judges of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from llm_distill.evals.length_control import PRIOR, fit, length_controlled
from llm_distill.evals.statistics import Floats


def lengths(rng: np.random.Generator, n: int, longer: float) -> tuple[Floats, Floats]:
    """Characters of two answers a row; the first is the longer one on about this share of the rows."""
    apart = rng.normal(size=n)
    apart = np.round(250 * (apart - np.quantile(apart, 1 - longer)))
    return 1000 + apart, np.full(n, 1000.0)


@pytest.mark.parametrize("longer", [0.5, 0.7, 0.3])
def test_a_judge_that_only_likes_length_finds_no_better_one(longer: float) -> None:
    found, missed = [], 0
    for seed in range(20):
        ours, theirs = lengths(np.random.default_rng(seed), 300, longer)
        won = np.where(ours > theirs, 1.0, np.where(ours < theirs, 0.0, 0.5))
        one = length_controlled(won, ours, theirs, seed, 400)
        missed += not one["low"] <= 0.5 <= one["high"]
        assert one["effect"]["low"] > 0
        assert won.mean() == pytest.approx(longer, abs=0.01), "the plain win rate is taken in"
        found.append(one["value"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)
    assert missed <= 2


def test_a_judge_that_does_not_see_length_is_left_as_it_is() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = lengths(rng, 2000, 0.7)
    won = (rng.random(2000) < 0.65).astype(float)
    found = length_controlled(won, ours, theirs, 0, 500)
    assert found["value"] == pytest.approx(0.65, abs=0.035)
    assert found["effect"]["low"] < 0 < found["effect"]["high"]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth, held, repeats = expit(0.8), 0, 60
    for seed in range(repeats):
        rng = np.random.default_rng(100 + seed)
        ours, theirs = lengths(rng, 200, 0.65)
        apart = ours - theirs
        won = (rng.random(200) < expit(0.8 + 1.5 * np.tanh(apart / apart.std(ddof=1)))).astype(float)
        found = length_controlled(won, ours, theirs, seed, 300)
        held += found["low"] <= truth <= found["high"]
    assert held >= 0.88 * repeats


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_fit_is_the_penalised_likeliest(pairs: list[tuple[float, float]]) -> None:
    rows = np.array(pairs)
    counts = np.random.default_rng(0).integers(0, 4, size=(3, len(rows))).astype(float)

    def loss(terms: Floats, weights: Floats) -> float:
        of = terms[0] + terms[1] * rows[:, 0]
        likelihood = rows[:, 1] * -np.logaddexp(0, -of) + (1 - rows[:, 1]) * -np.logaddexp(0, of)
        return float(-weights @ likelihood + np.sum(np.square(terms / np.array(PRIOR))) / 2)

    for weights, terms in zip(counts, fit(rows, counts), strict=True):
        best = minimize(loss, np.zeros(2), args=(weights,), method="BFGS")
        assert loss(terms, weights) <= best.fun + 1e-6


def test_what_cannot_be_said_says_why() -> None:
    always = length_controlled(np.ones(50), np.full(50, 20.0), np.full(50, 10.0), 0, 200)
    assert (always["value"], always["longer"]) == (None, 50)
    assert always["reason"] == "the answer is longer on all rows, so nothing shows what happens at equal length"
    few = length_controlled(np.ones(5), np.arange(5.0), np.arange(5.0), 0, 200)
    assert few["reason"] == "5 rows are too few"
    equal = length_controlled(np.repeat([1.0, 0.0], [30, 10]), np.full(40, 9.0), np.full(40, 9.0), 0, 400)
    assert equal["value"] == pytest.approx(0.75, abs=0.01), "equally long answers: the plain win rate"
    assert equal["low"] < 0.75 < equal["high"]


def test_many_rows_and_a_certain_judge() -> None:
    rng = np.random.default_rng(5)
    ours = rng.integers(1, 3000, size=100_000).astype(float)
    found = length_controlled(np.ones(100_000), ours, ours[::-1].copy(), 0, 10_000)
    assert found["value"] > 0.99
    assert found["low"] > 0.99
    again = length_controlled(np.zeros(40), ours[:40], ours[40:80], 0, 500)
    assert again["low"] <= again["value"] < 0.1 < again["high"] + 0.1
