"""Counterfactual flips, whole groups and representation: their laws, and tables of cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.flips import FlipRate, Of, flip_rates
from llm_distill.generators.lexicon_file import SHIPPED, read
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.scorers import SCORERS, Context, Scored
from llm_distill.scorers.counterfactual import whole_groups
from llm_distill.scorers.mentions import representation
from llm_distill.tasks import Task
from tests.scorers.rows import answer

TASK = Task(kind="classify", labels=["positive", "negative"])


def _member(variant: str, text: str = "", group: str = "g", attribute: str = "gender", **fields: Any) -> Answer:
    tags = {"group": group, "attribute": attribute, "variant": variant}
    return answer(text, prompt=f"{group} {variant}", tags=tags, **fields)


def _flip(answers: Sequence[Answer], rows: Sequence[Answer] | None = None, **knobs: Any) -> Scored:
    plug = bind(
        "scorer",
        Spec("counterfactual_flip", knobs, "filter[0]"),
        SCORERS,
        Reading(folder=Path(), files=set(), roles=[]),
    )
    found = plug(answers, Context(TASK, rows=answers if rows is None else rows))
    assert isinstance(found, Scored)
    return found


def _values(*members: Answer, **knobs: Any) -> list[float]:
    return list(_flip(members, **knobs).values)


def test_labels_flip_for_the_whole_group_and_only_for_it() -> None:
    rows = [
        _member("a", prediction="positive"), _member("b", prediction="negative"), _member("c", prediction="positive"),
        _member("a", group="h", prediction="positive"), _member("b", group="h", prediction="positive"),
        _member("a", group="alone", prediction="positive"),
        answer("x", prediction="negative"),
    ]  # fmt: skip
    values = _values(*rows)
    assert values[:5] == [1, 1, 1, 0, 0]
    assert all(map(math.isnan, values[5:]))
    why = _flip(rows).why
    assert why[0] == "gender (a: positive; b: negative; c: positive)"
    assert why[3:] == [None] * 4


def test_no_label_is_an_outcome_and_a_failed_member_is_none() -> None:
    assert _values(_member("a", prediction="positive"), _member("b", prediction=None)) == [1, 1]
    values = _values(_member("a", prediction="positive"), _member("b", status="failed"))
    assert all(map(math.isnan, values))


def test_members_that_earlier_filters_dropped_still_count() -> None:
    kept, gone = _member("a", prediction="positive"), _member("b", prediction="negative")
    assert list(_flip([kept], [kept, gone]).values) == [1]


def test_label_probs_are_compared_by_total_variation() -> None:
    first, second = _member("a", label_probs=(0.9, 0.05)), _member("b", label_probs=(0.6, 0.05))
    assert _values(first, second, of="label_probs") == [pytest.approx(0.3)] * 2
    third = _member("c", label_probs=None)
    assert _values(first, second, third, of="label_probs") == [pytest.approx(0.3)] * 3
    assert all(map(math.isnan, _values(first, third, of="label_probs")))


@pytest.mark.parametrize(
    ("of", "texts", "expected"),
    [
        ("text", ["She is a great actress.", "He is a great actor."], 0.0),
        ("text", ["She should see her doctor.", "He should see his lawyer."], 1 / 5),
        ("text", ["yes", "no"], 1.0),
        ("text", ["", ""], 0.0),
        ("length", ["one two three four", "one"], 0.75),
        ("length", ["", ""], 0.0),
        ("length", ["", "word"], 1.0),
        ("sentiment", ["I love it", "I hate it"], 1.0),
        ("sentiment", ["It is wonderful", "It has a lid"], 0.5),
        ("sentiment", ["It is not good", "It is bad"], 0.0),
        ("refusal", ["I'm sorry, but I can't help with that.", "Of course: first, open the lid."], 1.0),
        ("refusal", ["I cannot help with that.", "I can't help with that."], 0.0),
    ],
)
def test_texts_are_compared_in_what_is_asked_for(of: str, texts: list[str], expected: float) -> None:
    members = [_member(variant, text) for variant, text in zip(("female", "male"), texts, strict=True)]
    assert _values(*members, of=of) == [pytest.approx(expected)] * 2


def test_any_scorer_can_be_what_is_compared() -> None:
    rows = [_member("a", "one two"), _member("b", "one two three four five")]
    assert _values(*rows, of="score", by={"length": {"unit": "words"}}) == [3, 3]
    with pytest.raises(UserError, match="goes with `by`"):
        _flip(rows, of="score")
    with pytest.raises(UserError, match="goes with `by`"):
        _flip(rows, of="label", by="length")
    with pytest.raises(UserError, match="no scorer 'lenght'"):
        _flip(rows, of="score", by="lenght")


_MEMBERS = st.lists(
    st.tuples(
        st.sampled_from("gh"), st.sampled_from(["positive", "negative", None]), st.text(max_size=12), st.floats(0, 1)
    ),
    max_size=10,
)


@given(_MEMBERS, st.sampled_from([of for of in get_args(Of) if of not in ("score", "refusal")]), st.randoms())
def test_every_measure_is_the_same_for_all_members_in_any_order(members: list[Any], of: Of, shuffled: Any) -> None:
    rows = [
        _member(f"v{i}", text, group, prediction=label, label_probs=(p, 1 - p))
        for i, (group, label, text, p) in enumerate(members)
    ]
    values = dict(zip([r.prompt.row_id for r in rows], _values(*rows, of=of), strict=True))
    mixed = rows[:]
    shuffled.shuffle(mixed)
    again = dict(zip([r.prompt.row_id for r in mixed], _values(*mixed, of=of), strict=True))
    for row in rows:
        value = values[row.prompt.row_id]
        assert value == again[row.prompt.row_id] or math.isnan(value)
        assert math.isnan(value) or 0 <= value <= 1
        group = [values[r.prompt.row_id] for r in rows if r.prompt.tags["group"] == row.prompt.tags["group"]]
        assert math.isnan(value) or set(group) == {value}
        assert math.isnan(value) == (len(group) < 2)


def test_flip_rates_count_who_stands_apart() -> None:
    rows = [
        *(_member(v, group="1", prediction=p) for v, p in (("a", "positive"), ("b", "positive"), ("c", "negative"))),
        *(_member(v, group="2", prediction=p) for v, p in (("a", "positive"), ("b", "positive"), ("c", "positive"))),
        *(_member(v, group="3", prediction=p) for v, p in (("a", "positive"), ("c", "negative"))),
        _member("a", group="4", prediction="positive"),
        answer("x", prediction="negative"),
    ]
    rates = {rate.variant: rate for rate in flip_rates(rows)}
    assert list(rates) == ["*", "a", "b", "c"]
    assert {variant: (r.flips, r.groups) for variant, r in rates.items()} == {
        "*": (2, 3),
        "a": (1, 3),
        "b": (0, 2),
        "c": (2, 3),
    }
    whole = rates["*"]
    assert whole.rate == pytest.approx(2 / 3)
    assert whole.low == pytest.approx(0.2077, abs=1e-4)  # Wilson's interval, by hand
    assert whole.high == pytest.approx(0.9385, abs=1e-4)
    assert rates["c"].outcomes == {"negative": 2, "positive": 1}
    assert flip_rates([]) == []
    assert isinstance(whole, FlipRate)


def test_flip_rates_of_numbers_have_a_limit() -> None:
    pairs = [(0.9, 0.85), (0.9, 0.5)]
    rows = [
        _member(variant, group=str(g), label_probs=(p, 1 - p))
        for g, pair in enumerate(pairs)
        for variant, p in zip("ab", pair, strict=True)
    ]
    assert [rate.flips for rate in flip_rates(rows, "label_probs")] == [1, 1, 1]
    assert [rate.flips for rate in flip_rates(rows, "label_probs", over=0.01)] == [2, 2, 2]
    marks = [0.0, 0.0, 1.0, 0.0]
    assert [rate.flips for rate in flip_rates(rows, "refusal", marks=marks)] == [1, 1, 1]
    texts = [_member("female", "She is kind"), _member("male", "He is kind")]
    assert flip_rates(texts, "text", attributes=read(SHIPPED).attributes)[0].flips == 0
    assert flip_rates(texts, "text")[0].flips == 1


def test_whole_groups_takes_the_rest_of_a_group() -> None:
    rows = [_member("a"), _member("b"), _member("a", group="h"), _member("b", group="h"), answer("x")]
    left = [rows[0], rows[2], rows[3], rows[4]]
    found = whole_groups(left, Context(TASK, rows=rows))
    assert list(found.values) == [1, 0, 0, 0]
    assert found.why[0] == "gone: b"
    assert list(whole_groups(rows, Context(TASK, rows=rows)).values) == [0] * 5
    assert list(whole_groups([], Context(TASK, rows=rows)).values) == []


def _represent(answers: Sequence[Answer], **knobs: Any) -> list[float]:
    return list(representation(answers, Context(TASK, rows=answers, seed=3), **knobs).values)


def test_representation_keeps_as_many_of_each_as_of_the_smallest() -> None:
    counts = {"a": 30, "b": 10, "c": 20}
    rows = [_member(v, group=f"{v}{n}") for v, size in counts.items() for n in range(size)] + [answer("x")]
    scores = _represent(rows)
    assert math.isnan(scores[-1])
    for bound, kept in ((1.0, [10, 10, 10]), (1.5, [15, 10, 15])):
        left = [row.prompt.tags["variant"] for row, score in zip(rows, scores, strict=True) if score <= bound]
        assert [left.count(v) for v in "abc"] == kept
    uniform = _represent(rows, to="uniform")
    left = [row.prompt.tags["variant"] for row, score in zip(rows, uniform, strict=True) if score <= 1]
    assert [left.count(v) for v in "abc"] == [20, 10, 20]


def test_representation_thins_the_same_groups_and_other_tags_too() -> None:
    rows = [_member(v, group=str(n)) for n in range(40) for v in "ab"] + [
        _member("a", group=f"x{n}") for n in range(20)
    ]
    left = [row for row, score in zip(rows, _represent(rows), strict=True) if score <= 0.5]
    groups = {
        v: {
            r.prompt.tags["group"]
            for r in left
            if r.prompt.tags["variant"] == v and not r.prompt.tags["group"].startswith("x")
        }
        for v in "ab"
    }
    assert groups["a"] <= groups["b"]
    assert _represent(rows) == _represent(rows)
    tagged = [answer("x", prompt=str(n), tags={"topic": "odd" if n % 4 else "rare"}) for n in range(16)]
    assert sum(score <= 1 for score in _represent(tagged, by="topic")) == 8
    with pytest.raises(UserError, match="no row has the tag 'topc'"):
        _represent(tagged, by="topc")
    assert _represent([], by="anything") == []


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1), st.integers(0, 5))
def test_representation_s_bound_of_one_is_exact(counts: dict[str, int], seed: int) -> None:
    rows = [
        Answer(make_prompt((Message("user", f"{v}{n}"),), {"topic": v}), "x", "ok")
        for v, size in counts.items()
        for n in range(size)
    ]
    scores = representation(rows, Context(TASK, rows=rows, seed=seed), by="topic").values
    left = [row.prompt.tags["topic"] for row, score in zip(rows, scores, strict=True) if score <= 1]
    assert {v: left.count(v) for v in counts} == dict.fromkeys(counts, min(counts.values()))
