"""How varied prompts are, in numbers that are checked against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.coverage import coverage, mean_distance
from tests.test_mixing import row, rows


def test_distinct_n_is_the_share_of_different_grams() -> None:
    found = coverage([row("a b a b"), row("a b c")], None)
    assert found["distinct_1"] == pytest.approx(3 / 7)
    assert found["distinct_2"] == pytest.approx(3 / 5)
    assert found["mean_distance"] is None


def test_tags_are_shares_and_ids_are_none() -> None:
    found = coverage([*rows(3, topic="x"), *rows(1, "other", topic="y", parent="p", group="g"), *rows(1, "bare")], None)
    assert found["tags"] == {"topic": {"rows": 0.8, "values": 2, "shares": {"x": 0.75, "y": 0.25}}}


def test_an_identifier_is_counted_and_topics_are_listed() -> None:
    found = coverage([row(f"text {i}", id=str(i), topic=str(i % 60)) for i in range(120)], None)["tags"]
    assert found["id"] == {"rows": 1.0, "values": 120, "shares": {}}
    assert len(found["topic"]["shares"]) == 50


def test_no_rows_have_no_variety() -> None:
    assert coverage([], None) == {"rows": 0, "distinct_1": None, "distinct_2": None, "mean_distance": None, "tags": {}}


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_the_mean_distance_is_that_of_all_pairs(n: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - float(vectors[i] @ vectors[j]) for i in range(n) for j in range(n) if i != j]
    found = mean_distance(vectors)
    assert found is not None
    assert math.isclose(found, sum(pairs) / len(pairs), abs_tol=1e-5)


def test_one_row_is_at_no_distance() -> None:
    assert mean_distance(np.ones((1, 4), np.float32)) is None
