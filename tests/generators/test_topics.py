"""topic_tree: what grows, what is asked of the leaves."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators.topics import _key
from tests.conftest import Desk
from tests.generators.writing import CLASSIFY, Writer, at_most, bound, numbered, rows, tags, texts

TREE = {
    "physics": ["optics", "mechanics"],
    "optics": ["lenses", "Mirrors"],
    "mechanics": ["mirror", "Friction.", "statics", "dynamics"],
}


def answer(question: str) -> str:
    found = re.search(r'subject is "([^"]*)"', question)
    assert found
    topic = found[1]
    if "Divide" in question:
        return numbered(*TREE.get(topic, []))
    asked = int(re.findall(r"list from 1 to (\d+)", question)[0])
    return numbered(*(f"Tell me all about {topic} {'with care ' * n}please" for n in range(asked)))


def test_a_tree_is_grown_level_by_level_and_its_leaves_are_asked() -> None:
    writer = Writer(answer)
    found = writer.run("topic_tree", topics=["physics"], width=2, per_leaf=1, novelty=None)
    assert tags(found, "topic") == [
        "physics/optics/lenses",
        "physics/optics/Mirrors",
        "physics/mechanics/Friction",
        "physics/mechanics/statics",
    ]
    assert texts(found)[2] == "Tell me all about Friction please"
    assert [len(asked) for asked in writer.rounds] == [1, 2, 4]
    assert "as a part of optics, which is a part of physics" in writer.rounds[2][0].messages[0].content
    assert writer.said == [
        "topic_tree: 4 rows from 7 questions about 4 topics; thrown away: 1 topic twice, 1 topic over `width`"
    ]


def test_leaves_are_asked_as_often_as_it_takes_for_several_at_a_time() -> None:
    writer = Writer(answer)
    found = writer.run("topic_tree", topics=["wine"], depth=0, per_leaf=20, novelty=None)
    assert [(request.sample, request.messages[0].content.count("to 8,")) for request in writer.asked] == [
        (0, 1), (1, 1), (2, 0),
    ]  # fmt: skip
    assert len(found) == 8  # the second time it wrote the same
    assert "12 known" in writer.said[0]


def test_rows_bound_them_evenly() -> None:
    topics = ["bread", "wine", "cheese"]
    found = Writer(answer).run("topic_tree", topics=topics, depth=0, rows=5, novelty=None)
    assert tags(found, "topic") == ["bread", "bread", "wine", "wine", "cheese"]


def test_a_topic_that_cannot_be_divided_is_a_leaf() -> None:
    writer = Writer(lambda question: None if "Divide" in question else answer(question))
    found = writer.run("topic_tree", topics=["bread", "TCP/IP"], depth=3, per_leaf=1, novelty=None)
    assert tags(found, "topic") == ["bread", "TCP-IP"]
    assert len(writer.asked) == 4


def test_names_that_explain_and_prompts_that_are_known_or_alike_are_left_out() -> None:
    def wordy(question: str) -> str:
        if "Divide" in question:
            return numbered(
                "Optics: the study of light and of all that it does to us", "Heat", "**Waves**", "The heats"
            )
        return numbered(
            "What is heat made of, really?", "Why is it cold in space?", "Why is it so cold in space?", "Sort this:"
        )

    writer = Writer(wordy)
    before = rows("what is HEAT made of,  really?")
    found = writer.run("topic_tree", before, topics=["physics"], depth=1, per_leaf=4)
    assert {row.tags["topic"] for row in found} == {"physics/Heat"}
    assert texts(found) == ["Why is it cold in space?"]
    assert writer.said[0].split("thrown away: ")[1] == (
        "4 known, 2 unfinished, 1 topic too long, 1 topic twice, 1 not new"
    )


def test_more_than_was_asked_for_is_not_taken() -> None:
    writer = Writer(lambda _: numbered(*(f"Question number {n} about {n * n}?" for n in range(30))))
    assert len(writer.run("topic_tree", topics=["sums"], depth=0, per_leaf=3, novelty=None)) == 3


def test_labels_are_told_to_the_writer() -> None:
    writer = Writer(answer)
    writer.run("topic_tree", (), CLASSIFY, topics=["films"], depth=0)
    assert "positive, negative" in writer.asked[0].messages[0].content


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Lens", "lens ", True),
        ("The history of art", "Art history", True),
        ("Black holes", "black hole", True),
        ("Galaxies", "galaxy", True),
        ("Organic chemistry", "Inorganic chemistry", False),
        ("Microeconomics", "Macroeconomics", False),
        ("Physics", "Physic lessons", False),
        ("光学", "光学", True),
        ("光学", "力学", False),
        ("C", "C++", True),  # signs are no words: two such topics are one
    ],
)
def test_which_names_are_the_same_topic(one: str, other: str, same: bool) -> None:
    assert (_key(one) == _key(other)) is same


def test_wrong_recipes_are_found_before_anything_is_asked() -> None:
    for topics, why in (
        ([], "at least 1 item"),
        (["art", "The arts"], "the same topic: art, The arts"),
        (["?"], "a topic has some letters"),
    ):
        with pytest.raises(UserError, match=why):
            bound("topic_tree", topics=topics)


def test_check_says_what_it_may_come_to() -> None:
    assert at_most("topic_tree", 0, topics=["a", "b"], depth=2, width=3, per_leaf=20)[:2] == (360, 2 + 6 + 18 * 3)
    assert at_most("topic_tree", 0, topics=["a"], depth=1, width=4, rows=6)[:2] == (6, 1 + 4)


def test_fewer_leaves_are_asked_more_often_than_all_would_be() -> None:
    knobs: dict[str, Any] = {"topics": ["top"], "depth": 1, "width": 5, "per_question": 1, "rows": 5}
    writer = Writer(lambda _: numbered("roads", "bridges", "tunnels", "ferries"))
    writer.run("topic_tree", **knobs)
    assert len(writer.asked) == 1 + 4 * 2
    assert len(writer.asked) <= at_most("topic_tree", 0, **knobs).questions


@given(st.data())
def test_no_tree_asks_more_than_check_says(data: st.DataObject) -> None:
    draw, few = data.draw, st.integers(1, 5)
    knobs: dict[str, Any] = {"topics": ["top"], "depth": draw(st.integers(0, 2)), "novelty": None}
    knobs |= {name: draw(few) for name in ("width", "per_leaf", "per_question")}
    knobs["rows"] = draw(st.none() | st.integers(1, 30))
    names = iter(range(10**6))

    def some(question: str) -> str:
        return numbered(*(f"part n{next(names)}" for _ in range(draw(st.integers(0, knobs["width"])))))

    writer = Writer(some)
    most = at_most("topic_tree", 0, **knobs)
    assert len(writer.run("topic_tree", **knobs)) <= most.rows
    assert len(writer.asked) <= most.questions


def test_a_recipe_with_a_tree_runs(desk: Desk) -> None:
    rules = {"Divide": numbered("bread", "wine"), '"bread"': numbered("Why is my bread too dense?"), "wine": "no list"}
    recipe = desk.recipe(
        task="generate",
        models={"teacher": {"scripted": {"rules": rules, "default": "An answer."}}},
        prompts=[{"topic_tree": {"topics": ["food"], "depth": 1, "width": 2, "per_leaf": 1}}],
    )
    summary = desk.here(recipe)
    (row,) = desk.rows(summary, "prompts")
    assert dict(row["tags"]) == {"topic": "food/bread", "generator": "topic_tree"}
    assert desk.rows(summary, "answers")[0]["text"] == "An answer."
