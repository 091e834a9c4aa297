"""Cohen's kappa against published examples and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.evals.kappa import kappa


def rows(table: list[list[int]]) -> dict[str, list[tuple[int, int]]]:
    """Rows that fall into the cells of a table."""
    pairs = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return {str(number): [pair] for number, pair in enumerate(pairs)}


@pytest.mark.parametrize(
    ("table", "expected", "raw"),
    [
        ([[20, 5], [10, 15]], 0.4, 0.7),  # of the textbook: 0.7 seen, 0.5 by chance
        ([[45, 15], [25, 15]], 0.1304, 0.6),
        ([[25, 35], [5, 35]], 0.2593, 0.6),
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 0.676, 0.89),  # Fleiss, Levin & Paik 2003, chapter 18: 0.68
    ],
)
def test_published_examples(table: list[list[int]], expected: float, raw: float) -> None:
    found = kappa(rows(table), len(table), ordered=False, seed=0, resamples=500)
    assert found["kappa"]["value"] == pytest.approx(expected, abs=5e-4)
    assert found["raw"]["value"] == pytest.approx(raw)
    assert found["kappa"]["low"] < expected < found["kappa"]["high"]


def test_the_interval_is_that_of_the_large_sample_formula() -> None:
    table = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    found = kappa(rows((4 * table).tolist()), 3, ordered=False, seed=0, resamples=4000)["kappa"]
    error = 0.0877 / 2  # sqrt(0.0077) on 100 rows (Fleiss, Cohen & Everitt 1969); here are 400
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.1)


@settings(deadline=None)  # the first example imports scikit-learn
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40), st.booleans())
def test_as_scikit_learn_has_it(pairs: list[tuple[int, int]], ordered: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    one, other = zip(*pairs, strict=True)
    found = kappa({str(i): [p] for i, p in enumerate(pairs)}, 5, ordered=ordered, seed=0, resamples=100)
    if len({*one, *other}) == 1:
        assert found["kappa"] is None
        assert "one and the same category" in found["reason"]
        return
    expected = metrics.cohen_kappa_score(one, other, labels=range(5), weights="quadratic" if ordered else None)
    assert found["kappa"]["value"] == pytest.approx(expected)


def test_several_people_on_a_row_are_one_row() -> None:
    one = {str(i): [(i % 3, (i + i // 10) % 3)] for i in range(30)}
    five = {name: of * 5 for name, of in one.items()}
    each, all_ = (kappa(of, 3, ordered=True, seed=0, resamples=500) for of in (one, five))
    assert all_["kappa"]["value"] == pytest.approx(each["kappa"]["value"])
    assert all_["kappa"]["low"] == pytest.approx(each["kappa"]["low"], abs=0.1), "no surer than thirty rows"
    assert (all_["n"], all_["rows"]) == (150, 30)


def test_what_cannot_be_said() -> None:
    assert kappa({}, 5, ordered=True, seed=0, resamples=100)["reason"].startswith("no judgement")
    few = kappa(rows([[2, 0], [0, 2]]), 2, ordered=False, seed=0, resamples=100)["kappa"]
    assert few == {"value": 1.0, "low": None, "high": None}
    whole = kappa(rows([[10, 0], [0, 10]]), 2, ordered=False, seed=0, resamples=500)["kappa"]
    assert whole["low"] < 1.0 == whole["high"], "twenty rows that agree do not prove that all would"


def test_a_mean_of_runs_is_not_rounded() -> None:
    """Quadratic kappa of whole numbers is Lin's (1989) concordance of the same, which takes any numbers."""
    rng = np.random.default_rng(7)
    people = rng.integers(0, 5, 60)
    judge = np.clip(people + rng.normal(0, 0.6, 60), 0, 4)
    found = kappa({str(i): [(int(a), float(b))] for i, (a, b) in enumerate(zip(people, judge, strict=True))}, 5,
                  ordered=True, seed=0, resamples=500)  # fmt: skip
    covariance = float(np.mean((people - people.mean()) * (judge - judge.mean())))
    lin = 2 * covariance / (people.var() + judge.var() + (people.mean() - judge.mean()) ** 2)
    assert found["kappa"]["value"] == pytest.approx(lin)
    assert found["raw"]["value"] == pytest.approx(float(np.mean(np.abs(people - judge) < 0.5)))
    rounded = kappa({str(i): [(int(a), round(float(b)))] for i, (a, b) in enumerate(zip(people, judge, strict=True))}, 5,
                    ordered=True, seed=0, resamples=500)  # fmt: skip
    assert rounded["kappa"]["value"] != pytest.approx(lin, abs=1e-3)
