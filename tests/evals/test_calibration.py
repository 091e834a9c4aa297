"""Calibration by its laws: what must hold of any distributions, and hand-worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_distill.evals import calibration as c
from llm_distill.evals.statistics import Floats, Ints

ROWS = st.tuples(st.integers(1, 12), st.integers(2, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 1 / shape[1]))
)


def drawn(n: int, labels: int, seed: int, spread: float = 2.0) -> tuple[Floats, Ints]:
    """Distributions that are right by construction, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, labels))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probs, (probs.cumsum(-1) > rng.random((n, 1))).argmax(-1)


@given(ROWS, st.floats(c.COLDEST, c.HOTTEST))
def test_whatever_is_done_it_is_a_distribution(probs: Floats, temperature: float) -> None:
    prior = c.mean_distribution(probs)
    for made in (c.over_labels(probs), c.without_prior(probs, prior), c.tempered(probs, temperature)):
        assert made.shape == probs.shape
        assert made.sum(-1) == pytest.approx(1)
        assert (made >= 0).all()
    assert prior.sum() == pytest.approx(1)


@given(ROWS, st.floats(0.2, 5))
def test_temperature_keeps_the_order_of_labels(probs: Floats, temperature: float) -> None:
    before, after = c.over_labels(probs), c.tempered(probs, temperature)
    for i in range(len(probs)):
        order = np.argsort(before[i], kind="stable")
        assert (np.diff(after[i][order]) >= -1e-12).all()
    assert c.tempered(probs, 1.0) == pytest.approx(before)


@given(ROWS)
def test_a_prior_that_is_uniform_changes_nothing(probs: Floats) -> None:
    labels = probs.shape[1]
    # Flooring twice moves a label that has nothing by as little as the floor itself.
    assert c.without_prior(probs, np.full(labels, 1 / labels)) == pytest.approx(c.over_labels(probs), abs=1e-5)


def test_a_constant_bias_is_taken_out_of_a_batch() -> None:
    """Two rows that mirror each other, seen through a bias of four to one: by hand 36/37 and 4/13, whose means are uneven."""
    fair = np.array([[0.9, 0.1], [0.1, 0.9]])
    seen = fair * [4, 1] / (fair * [4, 1]).sum(-1, keepdims=True)
    assert seen[:, 0] == pytest.approx([36 / 37, 4 / 13])
    mean = (36 / 37 + 4 / 13) / 2
    mended = c.without_prior(seen, c.mean_distribution(seen))
    by_hand = [(p / mean) / (p / mean + (1 - p) / (1 - mean)) for p in seen[:, 0]]
    assert mended[:, 0] == pytest.approx(by_hand, abs=1e-5)
    assert abs(mended[:, 0].mean() - 0.5) < 0.6 * abs(mean - 0.5)
    mirrored = np.array([[0.97, 0.03], [0.77, 0.23]])  # of a bias so strong that it decides
    assert c.without_prior(mirrored, c.mean_distribution(mirrored)).argmax(-1).tolist() == [0, 1]


def test_the_prior_of_a_content_free_input_becomes_uniform() -> None:
    prior = np.array([0.7, 0.2, 0.1])
    assert c.without_prior(prior[None], prior)[0] == pytest.approx([1 / 3] * 3)
    assert c.without_prior(np.array([[0.35, 0.1, 0.05]]), prior)[0] == pytest.approx([1 / 3] * 3), "without its tail"
    per_row = c.without_prior(np.array([[0.6, 0.4], [0.6, 0.4]]), np.array([[0.75, 0.25], [0.5, 0.5]]))
    assert per_row[:, 0] == pytest.approx([1 / 3, 0.6]), "each row by its own teacher's prior"


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(true: float) -> None:
    probs, gold = drawn(4000, 3, 1)
    spoilt = c.tempered(probs, 1 / true)
    assert c.fit_to_gold(spoilt, gold) == pytest.approx(true, rel=0.08)
    assert c.nll(c.tempered(spoilt, c.fit_to_gold(spoilt, gold)), gold).mean() <= c.nll(spoilt, gold).mean() + 1e-6


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_by_agreement(true: float) -> None:
    probs, _ = drawn(4000, 3, 2)
    assert c.fit_to_agreement(c.tempered(probs, 1 / true), probs.max(-1)) == pytest.approx(true, rel=0.02)


def test_rows_that_are_all_right_do_not_make_certainty() -> None:
    probs = np.tile([[0.7, 0.3]], (20, 1))
    found = c.tempered(probs, c.fit_to_gold(probs, np.zeros(20, np.int64)))
    assert found[0, 0] == pytest.approx(21 / 22, abs=1e-3), "Platt's: one imagined row of each label"


def test_a_vote_does_not_vouch_for_itself() -> None:
    assert c.repeated(np.array([1.0, 2 / 3, 1 / 3]), 3) == pytest.approx([1, 0.5, 0])
    rng = np.random.default_rng(3)
    chances = rng.uniform(0.5, 1, 200_000)
    votes = rng.random((200_000, 5)) < chances[:, None]
    first, others = votes[:, 0], votes[:, 1:].mean(-1)
    pairs = np.where(first, others, 1 - others)  # how often another vote repeats one of them
    share = votes.mean(-1)
    both = share * c.repeated(share, 5) + (1 - share) * c.repeated(1 - share, 5)
    assert both.mean() == pytest.approx(pairs.mean(), abs=2e-3)


def test_ece_by_hand() -> None:
    """Twenty rows, two bins of ten: 0.6 with 8 right, 0.9 with 7 right: (10 x 0.2 + 10 x 0.2) / 20."""
    probs = np.array([[0.6, 0.4]] * 10 + [[0.1, 0.9]] * 10)
    right = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 7 + [0.0] * 3)
    gold = np.where(right == 1, probs.argmax(-1), 1 - probs.argmax(-1))
    found = c.reliability(probs, right, gold)
    assert found.rows == 20
    assert [b.rows for b in found.bins] == [10, 10]
    assert [n for b in found.bins for n in (b.confidence, b.right)] == pytest.approx([0.6, 0.8, 0.9, 0.7])
    assert found.ece == pytest.approx(0.2)
    assert (found.confidence, found.right) == pytest.approx((0.75, 0.75)), "which the mean alone would not show"
    assert found.brier == pytest.approx((8 * 0.16 + 2 * 0.36 + 7 * 0.01 + 3 * 0.81) / 20)
    assert found.nll == pytest.approx(-(8 * np.log(0.6) + 2 * np.log(0.4) + 7 * np.log(0.9) + 3 * np.log(0.1)) / 20)
    assert c.reliability(probs, right).brier is None


@given(st.permutations(range(30)))
def test_the_order_of_rows_does_not_count(order: list[int]) -> None:
    probs, gold = drawn(30, 2, 4)
    probs = probs.round(1)  # many of equal confidence
    right = (probs.argmax(-1) == gold).astype(float)
    there, back = c.reliability(probs, right, gold), c.reliability(probs[order], right[order], gold[order])
    assert there.ece == pytest.approx(back.ece)
    assert there.brier == pytest.approx(back.brier)


def test_brier_counts_what_went_to_no_label() -> None:
    assert c.brier(np.array([[0.5, 0.2]]), np.array([0])) == pytest.approx((0.25 + 0.04 + 0.09) / 2)
    assert c.brier(np.array([[0.0, 1.0]]), np.array([0])) == pytest.approx(1)


def test_no_row_is_calibrated_by_its_own_label() -> None:
    """What is fitted on the rows themselves would look better than it is."""
    probs, gold = drawn(60, 2, 5, spread=4)
    made = c.out_of_fold(probs, gold, heated=True, seed=0)
    own = c.tempered(probs, c.fit_to_gold(probs, gold))
    assert not np.allclose(made, own)
    flipped = gold.copy()
    flipped[0] = 1 - flipped[0]
    again = c.out_of_fold(probs, flipped, heated=True, seed=0)
    assert again[0] == pytest.approx(made[0]), "its own label is not among what it is calibrated by"
    assert not np.allclose(again, made)
    assert c.out_of_fold(probs, gold, heated=False, seed=0) is probs


def test_the_simplest_that_is_good_enough_is_taken() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 1, 200)
    near, far = noise + rng.normal(0.001, 0.1, 200), noise + rng.normal(0.5, 0.1, 200)
    assert c.simplest_good({"none": near, "batch": noise}) == "none"
    assert c.simplest_good({"none": far, "batch": noise}) == "batch"
    assert c.simplest_good({"none": far, "batch": near, "contextual": noise}) == "batch"


def test_every_method_by_its_name() -> None:
    assert [m.name for m in c.METHODS] == [
        "none", "temperature", "batch", "batch+temperature", "contextual", "contextual+temperature",
    ]  # fmt: skip
    raw = np.array([[0.5, 0.2]])
    priors = {"batch": np.array([0.5, 0.5]), "contextual": np.array([5 / 7, 2 / 7])}
    assert c.METHODS[0].base(raw, priors) is raw, "with its tail"
    assert c.METHODS[2].base(raw, priors)[0] == pytest.approx([5 / 7, 2 / 7])
    assert c.METHODS[5].base(raw, priors)[0] == pytest.approx([0.5, 0.5])
