"""How rows of several entries and tags are mixed: shares hold, groups stay whole, picks are stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_distill.errors import UserError
from llm_distill.mixing import Balance, Mix, balanced, mixed, pick
from llm_distill.records import Message, Prompt, make_prompt


def row(text: str, **tags: str) -> Prompt:
    return make_prompt((Message("user", text),), tags)


def rows(n: int, name: str = "row", **tags: str) -> list[Prompt]:
    return [row(f"{name} {i}", **tags) for i in range(n)]


@given(n=st.integers(0, 60), count=st.integers(0, 60), more=st.integers(0, 20))
def test_a_pick_is_exact_and_stays_when_rows_are_added(n: int, count: int, more: int) -> None:
    chosen = pick(rows(n), count)
    assert len(chosen) == min(n, count)
    assert chosen == [r for r in rows(n) if r in chosen], "in their own order"
    if len(chosen) == count:
        again = pick(rows(n + more), count)
        assert {r.row_id for r in again} & {r.row_id for r in rows(n)} <= {r.row_id for r in chosen}


@given(sizes=st.lists(st.integers(1, 5), max_size=12), count=st.integers(0, 40))
def test_a_group_is_picked_whole_or_not_at_all(sizes: Sequence[int], count: int) -> None:
    all_rows = [r for g, size in enumerate(sizes) for r in rows(size, f"group {g}", group=f"g{g}")]
    chosen = Counter(r.tags["group"] for r in pick(all_rows, count))
    assert chosen.total() <= count or count >= len(all_rows)
    assert all(chosen[f"g{g}"] in (0, size) for g, size in enumerate(sizes))


def test_shares_hold_and_the_scarcest_entry_bounds_the_mix() -> None:
    few, many = rows(10, "few"), rows(100, "many")
    assert Counter(r.text.split()[0] for r in mixed([few, many], [0.25, 0.75], None)) == {"few": 10, "many": 30}
    assert Counter(r.text.split()[0] for r in mixed([few, many], [0.25, 0.75], 20)) == {"few": 5, "many": 15}
    assert len(mixed([few, many], None, None)) == 110
    assert len(mixed([few, many], None, 50)) == 50


def test_the_names_of_shares_are_those_of_entries() -> None:
    mix = Mix.model_validate({"shares": {"seeds": 0.5, "seeds.2": 0.2, "templates": 0.3}})
    assert mix.of(["seeds", "templates", "seeds"]) == [0.5, 0.3, 0.2]
    with pytest.raises(UserError, match=r"no entry of prompts is 'seeds.2'; give each of seeds, templates its share"):
        mix.of(["seeds", "templates"])
    own = Mix.model_validate({"shares": {"pkg.one:make": 0.5, "pkg.two:make": 0.5}})
    assert own.of(["pkg.one:make", "pkg.two:make"]) == [0.5, 0.5]
    with pytest.raises(ValidationError, match="above 0 and sum to 1"):
        Mix.model_validate({"shares": {"a": 0.5, "b": 0.6}})


LANGS = [*rows(30, "en", lang="en"), *rows(6, "de", lang="de"), *rows(4, "none")]


def test_a_balance_thins_what_there_is_too_much_of() -> None:
    kept = balanced(LANGS, Balance(tag="lang"), None, None, print)
    assert Counter(r.tags.get("lang") for r in kept) == {"en": 6, "de": 6, None: 4}
    kept = balanced(LANGS, Balance(tag="lang", shares={"en": 0.75, "de": 0.25}), 12, None, print)
    assert Counter(r.tags.get("lang") for r in kept) == {"en": 6, "de": 2, None: 4}


def test_a_balance_asks_for_more_where_a_value_is_short() -> None:
    def fill(of: Sequence[Prompt], count: int) -> Iterator[Prompt]:
        assert {r.tags["lang"] for r in of} == {"de"}
        yield of[0]  # not new
        yield from rows(count - 4, "new", lang="de")

    said: list[str] = []
    kept = balanced(LANGS, Balance(tag="lang"), None, fill, said.append)
    assert Counter(r.tags.get("lang") for r in kept) == {"en": 30, "de": 26, None: 4}
    assert said == ["balance: lang = de has 26 of 30 rows"]


def test_a_tag_that_no_row_has_is_named() -> None:
    with pytest.raises(UserError, match=r"no row has the tag 'language'\. Did you mean 'lang'"):
        balanced(LANGS, Balance(tag="language"), None, None, print)
    with pytest.raises(UserError, match=r"mix\.rows: 4 rows, and 4 without the tag 'lang' stay"):
        balanced(LANGS, Balance(tag="lang"), 4, None, print)
    with pytest.raises(UserError, match="no row has lang = 'fr'"):
        balanced(LANGS, Balance(tag="lang", shares={"en": 0.5, "fr": 0.5}), None, None, print)
