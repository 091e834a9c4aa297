from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from llm_distill.evals.statistics import (
    EFFORT,
    UNDEFINED,
    Floats,
    Interval,
    mean,
    percentiles,
    proportion,
    ratio,
    resampled_counts,
    resampled_means,
    sign_test,
    smallest_visible,
)


def difference(pairs: Floats, seed: int = 7, resamples: int = 2_000) -> Interval:
    draws = resampled_means(pairs, seed, resamples)
    return percentiles(float((pairs[:, 0] - pairs[:, 1]).mean()), draws[:, 0] - draws[:, 1], len(pairs))


def table(both: int, first: int, second: int, neither: int) -> Floats:
    """A published two-by-two table of matched pairs, as rows of scores (n, 2)."""
    cells = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    return np.repeat(cells, [both, first, second, neither], axis=0)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_newcombe_printed_it(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = proportion(k, n)
    assert (found.value, found.n) == (k / n, n)
    assert [found.low, found.high] == pytest.approx([low, high], abs=5e-5)


def test_a_share_of_nothing_is_undefined() -> None:
    assert proportion(0, 0) is UNDEFINED
    assert mean(np.array([]), 7, 100) is UNDEFINED


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (1, 7, 0.0703),  # airway hyper-responsiveness before and after transplantation: Fagerland et al. 2013
        (6, 16, 0.0525),  # complete response before and after consolidation: Fagerland et al. 2013
        (5, 0, 0.0625),  # by hand: 2 / 2**5
        (6, 0, 0.03125),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_exact_mcnemar(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, abs=5e-5)
    assert sign_test(losses, wins) == pytest.approx(p, abs=5e-5)


def test_the_paired_interval_is_agrestis_on_agrestis_table() -> None:
    """Approval of the prime minister, twice asked: 794, 150, 86, 570 (Agresti, Categorical Data Analysis, 10.1.1)."""
    found = difference(table(794, 150, 86, 570), resamples=10_000)
    assert found.value == pytest.approx(0.04)
    assert [found.low, found.high] == pytest.approx([0.0213, 0.0587], abs=0.001)


def test_with_300_rows_it_is_scipys_paired_bootstrap() -> None:
    rows = table(180, 80, 14, 26)

    def apart(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(a.mean(axis) - b.mean(axis))

    theirs = bootstrap(
        tuple(rows.T), apart, paired=True, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = difference(rows, resamples=10_000)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.005)


@pytest.mark.parametrize(("both", "first", "second", "neither"), [(20, 0, 0, 10), (30, 0, 0, 0), (10, 9, 1, 10)])
def test_few_rows_get_about_agresti_and_mins_interval(both: int, first: int, second: int, neither: int) -> None:
    """Wald + 2 (Agresti & Min 2005), which is not empty where the arms never differ."""
    n = both + first + second + neither
    centre = (first - second) / (n + 2)
    half = 1.96 * math.sqrt(first + second + 1 - (first - second) ** 2 / (n + 2)) / (n + 2)
    found = difference(table(both, first, second, neither), resamples=10_000)
    assert [found.low, found.high] == pytest.approx([centre - half, centre + half], abs=0.04)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("n", "least"), [(20, 0.93), (150, 0.91)])
def test_the_paired_interval_holds_the_truth_about_as_often_as_it_says(n: int, least: float) -> None:
    rng = np.random.default_rng(20)
    shares = [0.60, 0.20, 0.08, 0.12]
    held = 0
    for _ in range(200):
        found = difference(table(*rng.multinomial(n, shares)), resamples=1_000)
        held += found.low <= 0.12 <= found.high
    assert least <= held / 200 <= 0.995


def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(21)
    held = 0
    for _ in range(200):
        found = mean(rng.beta(2, 3, size=60), 7, 1_000)
        held += found.low <= 0.4 <= found.high
    assert 0.91 <= held / 200 <= 0.995


scores = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 2 / 3, 1.0])] * 2), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(scores, st.integers(0, 2**31))
def test_laws_of_the_paired_interval(pairs: list[tuple[float, float]], seed: int) -> None:
    rows = np.array(pairs)
    found = difference(rows, seed, 300)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert difference(rows[::-1], seed, 300) == pytest.approx(found), "the order of rows does not matter"
    same = difference(rows[:, [0, 0]], seed, 300)
    assert same.value == 0
    assert same.low < 0 < same.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(1, 200))
def test_every_resample_has_n_rows(weights: list[int], n: int) -> None:
    chunks = np.concatenate(list(resampled_counts(np.array(weights), n, 3, 50)))
    assert chunks.shape == (50, len(weights))
    assert (chunks.sum(1) == n).all()


@pytest.mark.parametrize("n", [6, 4_000])  # row by row; by multinomial
def test_both_ways_of_resampling_follow_the_weights(n: int) -> None:
    weights = np.array([1, 2, 3, 4])
    drawn = np.concatenate(list(resampled_counts(weights, n, 5, 8_000))) / n
    assert drawn.mean(0) == pytest.approx(weights / 10, abs=0.01)
    assert drawn.var(0) == pytest.approx(weights / 10 * (1 - weights / 10) / n, rel=0.08)


def test_many_patterns_get_fewer_resamples_and_never_fewer_than_a_thousand() -> None:
    def drawn(patterns: int, asked: int) -> int:
        return sum(len(chunk) for chunk in resampled_counts(np.ones(patterns, dtype=np.int64), 3, 1, asked))

    assert drawn(10, 10_000) == 10_000
    assert drawn(4_000, 10_000) == EFFORT // 4_000
    assert drawn(40_000, 10_000) == 1_000
    assert drawn(40_000, 100) == 100


def test_an_undefined_draw_widens_the_interval() -> None:
    draws = np.linspace(0, 1, 1_001)
    assert percentiles(0.5, draws, 9) == (0.5, 0.025, 0.975, 9)
    assert percentiles(0.99, draws, 9).high == 0.99, "a value outside its draws is taken in"
    draws[::20] = np.nan
    found = percentiles(0.5, draws, 9)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(percentiles(math.nan, draws, 9).low)


def test_a_ratio_with_nothing_below_is_undefined() -> None:
    found = ratio([1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 0.0, -1.0])
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_the_smallest_visible_difference_is_found_four_times_out_of_five() -> None:
    rng = np.random.default_rng(4)
    n, differing = 300, 0.2
    visible = smallest_visible(np.repeat([1.0, -1.0, 0.0], [30, 30, 240]))
    shares = [(differing + visible) / 2, (differing - visible) / 2, 1 - differing]
    found = [sign_test(int(w), int(lost)) < 0.05 for w, lost, _ in rng.multinomial(n, shares, size=400)]
    assert 0.72 <= np.mean(found) <= 0.9
    assert math.isnan(smallest_visible(np.ones(5)))
    assert smallest_visible(np.zeros(10)) >= 0.6, "six wins of ten are the least that p < 0.05 takes"
