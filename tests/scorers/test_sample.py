"""Which rows are one too many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_distill.scorers.sample import sample
from tests.evals.rows import answer, prompt

ROWS = [answer(prompt(f"row {i}"), "x") for i in range(60)]


@given(st.permutations(ROWS[:20]), st.integers(1, 25), st.integers(0, 20))
def test_keeps_so_many_whatever_the_order(rows: list, few: int, more: int) -> None:  # type: ignore[type-arg]
    def stay(count: int) -> set[str]:
        return {a.prompt.row_id for a, score in zip(rows, sample(rows, rows=count), strict=True) if score == 0}

    assert len(stay(few)) == min(few, 20)
    assert stay(few) <= stay(few + more)
    assert stay(few) == {a.prompt.row_id for a, s in zip(ROWS[:20], sample(ROWS[:20], rows=few), strict=True) if s == 0}


def test_nothing_to_pick_from() -> None:
    assert sample([], rows=3) == []
