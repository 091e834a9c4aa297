"""How sure the teacher was, in the field's own measures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.scorers.teacher import label_entropy, label_margin, mean_logprob
from tests.scorers.rows import answer


@pytest.mark.parametrize(
    ("probs", "margin", "entropy"),
    [
        ((1.0, 0.0), 1.0, 0.0),
        ((0.5, 0.5), 0.0, math.log(2)),
        ((0.9, 0.1), 0.8, 0.3250829733914482),
        ((0.25, 0.25, 0.25), 0.0, math.log(4)),
        ((0.0, 0.0), 0.0, 0.0),  # all of it went to answers that are no label
        ((0.5, 0.25), 0.25, 1.0397207708399179),
        ((0.7, 0.3000002), 0.3999998, 0.6108642),
    ],
)
def test_margin_and_entropy(probs: tuple[float, ...], margin: float, entropy: float) -> None:
    rows = [answer("a", label_probs=probs)]
    assert label_margin(rows) == [pytest.approx(margin)]
    assert label_entropy(rows) == [pytest.approx(entropy, abs=1e-6)]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_their_bounds(probs: list[float]) -> None:
    rows = [answer("a", label_probs=tuple(p / max(1.0, sum(probs)) for p in probs))]
    assert 0 <= label_margin(rows)[0] <= 1
    assert 0 <= label_entropy(rows)[0] <= math.log(len(probs) + 1) + 1e-9


def test_without_logprobs_nothing_is_measured() -> None:
    rows = [answer("a"), answer("a", mean_logprob=-0.5)]
    assert math.isnan(mean_logprob(rows)[0])
    assert mean_logprob(rows)[1] == -0.5
    assert math.isnan(label_margin(rows)[0])
    assert math.isnan(label_entropy(rows)[0])
