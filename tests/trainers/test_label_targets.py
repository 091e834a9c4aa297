"""A distribution over labels as targets of the tokens of one label."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.trainers.label_targets import by_labels
from llm_distill.trainers.targets import Targets

LABELS = st.lists(st.lists(st.integers(0, 2), max_size=3).map(tuple), min_size=2, max_size=5, unique=True)


def shown(targets: Targets) -> list[dict[int, float]]:
    return [
        {i: round(math.exp(p), 3) for i, p in zip(ids, logprobs, strict=True) if i >= 0}
        for ids, logprobs in zip(targets.ids.tolist(), targets.logprobs.tolist(), strict=True)
    ]


@given(LABELS, st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_labels_multiply_to_their_probabilities(labels: list[tuple[int, ...]], parts: list[int]) -> None:
    end = 9
    paths = [[*label, end] for label in labels]  # some begin others, and only the end tells them apart
    whole = sum(parts[: len(labels)]) + parts[5] or 1
    probabilities = [part / whole for part in parts[: len(labels)]]
    tail = 1 - sum(probabilities)
    for place, path in enumerate(paths):
        targets = by_labels(paths, probabilities, place)
        assert targets.ids.shape[0] == len(path) == len(targets.defined)
        product = 1.0
        for i, token in enumerate(path):
            found = dict(zip(targets.ids[i].tolist(), np.exp(targets.logprobs[i].astype(float)).tolist(), strict=True))
            found.pop(-1, None)
            if targets.defined[i]:
                assert 1 - sum(found.values()) == pytest.approx(0 if i else tail, abs=2e-3)
            else:
                assert not found
            product *= found.get(token, 0.0)
        assert product == pytest.approx(probabilities[place], abs=4e-3)
        if probabilities[place]:
            assert targets.defined.all()


def test_labels_with_a_common_beginning() -> None:
    labels = [[5, 6, 9], [5, 9], [7, 9], [5, 8, 9]]
    probabilities = [0.4, 0.2, 0.1, 0.0]
    assert shown(by_labels(labels, probabilities, 0)) == [{5: 0.6, 7: 0.1}, {6: 0.667, 9: 0.333}, {9: 1.0}]
    impossible = by_labels(labels, probabilities, 3)
    assert impossible.defined.tolist() == [True, True, False], "behind what the teacher holds to be impossible"
    assert shown(impossible) == [{5: 0.6, 7: 0.1}, {6: 0.667, 9: 0.333}, {}]


def test_the_likeliest_are_kept() -> None:
    targets = by_labels([[5, 6, 9], [5, 9], [7, 9], [8, 9]], [0.4, 0.2, 0.1, 0.2], 0)
    assert shown(targets.top(2)) == [{5: 0.6, 8: 0.2}, {6: 0.667, 9: 0.333}, {9: 1.0}]
    assert targets.confidence.tolist() == pytest.approx([0.6, 0.667, 1.0], abs=1e-3)
