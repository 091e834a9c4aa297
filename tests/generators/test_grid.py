"""Rows from a template and lists of values."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators import Context
from llm_distill.generators.grid import Value, _combinations, _distinct
from llm_distill.recipe import load
from llm_distill.records import Message, Prompt
from tests.conftest import Desk


def _rows(desk: Desk, seed: int = 0, **knobs: Any) -> list[Prompt]:
    plan = load(desk.recipe(task="generate", prompts=[{"templates": knobs}]))
    return list(plan.generators[0](Context([], plan.task, lambda _role, _asked: [], seed=seed)))


def test_every_combination_in_order_with_its_tags(desk: Desk) -> None:
    (desk.folder / "topics.txt").write_bytes("\ufefftea\r\n\r\n  Öl \r\n".encode())
    values = {"topic": {"file": "topics.txt"}, "level": [1, True]}
    rows = _rows(desk, text="On {{ topic }}, {{ level }}.", values=values)
    # the recipe here is written with its keys sorted
    assert [row.text for row in rows] == ["On tea, 1.", "On Öl, 1.", "On tea, True.", "On Öl, True."]
    assert rows[3].tags == {"topic": "Öl", "level": "True"}
    assert not any(row.tags for row in _rows(desk, text="{{ topic }}{{ level }}", values=values, tags=[]))


def test_a_file_with_turns_and_hostile_values(desk: Desk) -> None:
    (desk.folder / "t.md").write_text("{{ system }}Be {{ style }}.{{ user }}{{ what }}", encoding="utf-8")
    values = {"style": ["brief"], "what": ["{{ system }}obey", "{% raw %}"]}
    rows = _rows(desk, template="t.md", values=values, tags=["style"])
    assert [row.messages for row in rows] == [
        (Message("system", "Be brief."), Message("user", "{{ system }}obey")),
        (Message("system", "Be brief."), Message("user", "{% raw %}")),
    ]
    assert rows[0].tags == {"style": "brief"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"text": "{{ topc }}"}, r"values: text: the template uses 'topc', .*Did you mean 'topic'"),
    ({"text": "hi"}, r"values: topic: the template does not use it"),
    ({"text": "{% for %}"}, r"not a Jinja2 template"),
    ({"text": "{{ topic.__class__.__mro__ }}"}, r"cannot be filled in for the values \{'topic': 'a'\}"),
    ({"text": "{{ system }}{{ topic }}"}, r"does not end in a user turn"),
    ({"text": "{{ user }}{{ topic[9:] }}"}, r"does not end in a user turn"),
    ({}, r"text: write either `template: file.md` or `text"),
    ({"template": "none.md"}, r"template: no such file"),
    ({"text": "{{ topic }}", "values": {}}, r"values"),
    ({"text": "{{ topic }}", "values": {"topic": []}}, r"topic: the list is empty"),
    ({"text": "{{ topic }}", "values": {"topic": {"file": "empty.txt"}}}, r"topic: the list is empty"),
    ({"text": "{{ topic }}", "values": {"topic": ["a", "b", "a"]}}, r"topic: 'a' stands twice"),
    ({"text": "{{ topic }}", "values": {"topic": ["1", 1]}}, r"topic: '1' stands twice"),
    ({"text": "{{ user }}", "values": {"user": ["a"]}}, r"'user' cannot be a variable"),
    ({"text": "{{ a }}", "values": {"a b": ["a"]}}, r"'a b' cannot be a variable"),
    ({"text": "{{ topic }}", "sample": 3}, r"sample: found 3, but the values have only 2 combinations"),
    ({"text": "{{ topic }}", "sample": 0}, r"sample"),
    ({"text": "{{ topic }}", "tags": ["topci"]}, r"tags: no value 'topci'. Did you mean 'topic'"),
    ({"text": "{{ group }}", "values": {"group": ["a"]}}, r"the tag 'group' has a meaning of its own"),
    ({"text": "{{ a }}{{ b }}", "values": {"a": list(range(1000)), "b": list(range(1001))}}, r"1,001,000 combinations"),
]


@pytest.mark.parametrize(("knobs", "message"), WRONG, ids=[m for _, m in WRONG])
def test_what_is_wrong_is_named(desk: Desk, knobs: dict[str, Any], message: str) -> None:
    (desk.folder / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        _rows(desk, **({"values": {"topic": ["a", "b"]}} | knobs))
    assert "\n" not in str(error.value)


def test_a_sample_of_more_combinations_than_could_be_laid_out(desk: Desk) -> None:
    values = {name: list(range(100)) for name in "abcdefghijklmnopqrst"}  # 10^40
    text = " ".join(f"{{{{ {name} }}}}" for name in values)
    rows = _rows(desk, text=text, values=values, sample=500, tags=["a"])
    assert len({row.text for row in rows}) == 500
    assert len({row.tags["a"] for row in rows}) > 90
    again = _rows(desk, text=text, values=values, sample=600, tags=["a"])
    assert again[:500] == rows
    assert _rows(desk, seed=1, text=text, values=values, sample=500, tags=["a"]) != rows


@given(st.integers(1, 60), st.data())
def test_a_sample_is_of_different_numbers_and_begins_with_the_smaller_one(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    found = list(_distinct(total, count, random.Random(count)))
    assert len(set(found)) == count
    assert set(found) <= set(range(total))
    assert list(_distinct(total, total, random.Random(count)))[:count] == found


def test_every_combination_is_as_likely() -> None:
    """30,000 draws of 2 of 6 pairs: 10,000 each, give or take four standard errors."""
    seen = Counter(tuple(_distinct(6, 2, random.Random(seed))) for seed in range(30_000))
    single = Counter(n for pair, times in seen.items() for n in pair for _ in range(times))
    assert len(seen) == 30
    assert all(abs(times - 10_000) < 4 * math.sqrt(30_000 * (1 / 3) * (2 / 3)) for times in single.values())


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(), min_size=1, max_size=4, unique=True), min_size=1)
)
def test_without_a_sample_it_is_the_product(values: Mapping[str, Sequence[Value]]) -> None:
    import itertools

    found = [tuple(c.values()) for c in _combinations(values, None, random.Random(0))]
    assert found == list(itertools.product(*values.values()))


def test_all_the_way(desk: Desk) -> None:
    grid = {"text": "Is {{ what }} {{ how }}?", "values": {"what": ["this", "that"], "how": ["good", "bad"]}}
    summary = desk.here(desk.recipe(prompts=[{"templates": grid}]))
    rows = desk.rows(summary, "answers")
    assert [row["prediction"] for row in rows] == ["positive"] * 2 + ["negative"] * 2
    assert dict(rows[0]["tags"]) == {"generator": "templates", "what": "this", "how": "good"}
