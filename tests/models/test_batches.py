from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.models.batches import by_beginning, common_length

HEAD = list(range(1, 40))


def rows(beginning: list[int], count: int) -> list[list[int]]:
    return [[*beginning, 1000 + i, 2000 + i] for i in range(count)]


@pytest.mark.parametrize(
    ("one", "other", "length"), [([], [1], 0), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1, 2], 2)]
)
def test_common_length(one: list[int], other: list[int], length: int) -> None:
    assert common_length(one, other) == length


def test_rows_of_several_few_shot_prompts_are_told_apart() -> None:
    examples = [[*HEAD, *range(start, start + 200)] for start in (100, 400, 700)]
    asked = [row for group in zip(*(rows(beginning, 20) for beginning in examples), strict=True) for row in group]
    groups = by_beginning(asked)
    assert sorted(map(sorted, groups)) == [list(range(start, 60, 3)) for start in range(3)]


def test_rows_of_one_prompt_stay_together() -> None:
    assert len(by_beginning(rows(HEAD, 50))) == 1
    assert len(by_beginning([[n, n + 1] for n in range(50)])) == 1  # nothing shared
    assert len(by_beginning([HEAD] * 50)) == 1  # several samples of one prompt


def test_prompts_that_each_begin_the_next_do_not_recurse_without_end() -> None:
    assert sum(map(len, by_beginning([[1] * n for n in range(2000)]))) == 2000


@given(st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=40))
def test_every_prompt_is_in_one_group(prompts: list[list[int]]) -> None:
    groups = by_beginning(prompts)
    assert sorted(index for group in groups for index in group) == list(range(len(prompts)))
    assert all(groups)
