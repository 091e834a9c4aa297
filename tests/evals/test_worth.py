"""What soft labels are worth beside hard ones: by hand, by laws, and on distributions that are right by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_distill.evals.calibration import ENOUGH, brier
from llm_distill.evals.statistics import Floats
from llm_distill.evals.worth import as_taught, worth
from tests.evals.test_calibration import drawn

SURE = st.integers(1, 80).flatmap(
    lambda n: arrays(np.float64, n, elements=st.floats(0.5, 1).map(lambda x: round(x, 2)))
)


def certain(probs: Floats) -> Floats:
    return np.asarray(np.eye(probs.shape[1])[probs.argmax(-1)])


@given(SURE, SURE)
def test_weighted_rows_are_as_sure_as_the_taught(sure: Floats, taught: Floats) -> None:
    weights, covered = as_taught(sure, taught)
    assert (weights >= 0).all()
    outside = (sure < taught.min()) | (sure > taught.max())
    assert (weights[outside] == 0).all()
    assert covered == 0 or weights.mean() == pytest.approx(1)
    assert 0 <= covered <= 1 + 1e-9
    assert (covered > 0) == (not outside.all())


@given(SURE)
def test_rows_that_are_the_taught_themselves_count_alike(sure: Floats) -> None:
    weights, covered = as_taught(sure, sure)
    assert weights == pytest.approx(np.ones(len(sure)))
    assert covered == pytest.approx(1)


def test_weights_by_hand() -> None:
    """Two bins: of the taught a half is below 0.9, of thirty labelled rows twenty, and ten more are beyond all of the taught."""
    taught = np.array([0.6] * 10 + [0.9] * 10)
    sure = np.array([0.7] * 20 + [0.9] * 10 + [0.3] * 10)
    weights, covered = as_taught(sure, taught)
    assert covered == 1
    assert weights / weights.sum() == pytest.approx([0.5 / 20] * 20 + [0.5 / 10] * 10 + [0] * 10)


def test_right_distributions_are_worth_more_than_labels() -> None:
    probs, gold = drawn(400, 3, 5)
    found = worth(probs, certain(probs), gold, probs.max(-1), probs.max(-1), 7)
    assert found.gain == pytest.approx((brier(certain(probs), gold) - brier(probs, gold)).mean())
    assert found.low is not None
    assert found.gain is not None
    assert 0 < found.low < found.gain
    assert found.hard_right == found.right
    assert found.effective == pytest.approx(400)


def test_of_rows_that_are_surely_right_nothing_is_gained() -> None:
    """Among all rows they gain; among those of which the teacher is sure there is next to nothing to gain."""
    probs, gold = drawn(2000, 2, 6)
    everywhere = worth(probs, certain(probs), gold, probs.max(-1), probs.max(-1), 7)
    sure = worth(probs, certain(probs), gold, probs.max(-1), probs.max(-1)[probs.max(-1) > 0.99], 7)
    assert everywhere.low is not None
    assert sure.gain is not None
    assert sure.low is not None
    assert sure.gain < everywhere.low
    assert sure.low <= 0
    assert sure.rows < 1000


def test_an_interval_holds_what_is_true() -> None:
    """Of 60 drawings the true gain, known from the distributions, is within the interval of 95 % in nearly all."""
    held = 0
    for seed in range(60):
        probs, gold = drawn(200, 2, 100 + seed)
        spoilt = np.stack([np.sqrt(p) / np.sqrt(p).sum() for p in probs])
        found = worth(spoilt, certain(probs), gold, probs.max(-1), probs.max(-1), seed)
        true = np.mean([
            sum(p[g] * float(brier(certain(probs)[i : i + 1], np.array([g]))[0] - brier(spoilt[i : i + 1], np.array([g]))[0])
                for g in (0, 1))
            for i, p in enumerate(probs)
        ])  # fmt: skip
        assert found.low is not None
        assert found.high is not None
        held += bool(found.low <= true <= found.high)
    assert held >= 54


def test_too_few_tell_nothing() -> None:
    probs, gold = drawn(ENOUGH - 1, 2, 8)
    few = worth(probs, certain(probs), gold, probs.max(-1), probs.max(-1), 7)
    assert (few.rows, few.gain, few.low) == (ENOUGH - 1, None, None)
    probs, gold = drawn(300, 2, 8)
    elsewhere = worth(probs, certain(probs), gold, np.full(300, 0.7), np.linspace(0.5, 1, 100), 7)
    assert elsewhere.covered < 0.9
    assert elsewhere.gain is None
    nowhere = worth(probs, certain(probs), gold, np.full(300, 0.2), np.linspace(0.5, 1, 100), 7)
    assert (nowhere.rows, nowhere.effective, nowhere.covered, nowhere.gain) == (0, 0, 0, None)
