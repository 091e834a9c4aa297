"""Counterfactual groups: who is a member, what its tags are, and what is left alone."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.generators import Context
from llm_distill.generators.counterfactual import counterfactual
from llm_distill.records import Message, Prompt, make_prompt
from llm_distill.tasks import Task
from tests.conftest import Desk


def _row(text: str, **more: Any) -> Prompt:
    return make_prompt((Message("user", text),), **more)


def _nobody(role: str, requests: Sequence[Any]) -> Any:
    raise AssertionError("it asks nobody")


def _groups(rows: Sequence[Prompt], **knobs: Any) -> dict[str, list[Prompt]]:
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for row in counterfactual(Context(rows, Task(kind="generate"), _nobody), **knobs):
        groups[row.tags["group"]].append(row)
    return groups


def test_a_group_is_the_row_itself_with_its_new_tags_and_every_other_variant() -> None:
    origin = _row("He is a Muslim baker.", tags={"domain": "talk"}, label="positive", reference="yes")
    (members,) = _groups([origin], attributes=["religion"]).values()
    assert members[0].row_id == origin.row_id
    assert members[0].prompt_id == origin.prompt_id
    assert [m.text for m in members] == [
        "He is a Muslim baker.", "He is a Jewish baker.", "He is a Hindu baker.", "He is a Buddhist baker.",
        "He is an atheist baker.", "He is a Christian baker.",
    ]  # fmt: skip
    assert [m.tags["variant"] for m in members] == ["muslim", "jewish", "hindu", "buddhist", "atheist", "christian"]
    assert {m.tags["attribute"] for m in members} == {"religion"}
    assert {m.tags["domain"] for m in members} == {"talk"}
    assert {(m.label, m.reference) for m in members} == {("positive", "yes")}
    assert "parent" not in members[0].tags
    assert {m.tags["parent"] for m in members[1:]} == {origin.row_id}


def test_rows_without_a_term_and_rows_about_a_name_are_left_alone() -> None:
    assert not _groups([_row("The lid is too tight."), _row("I met John Wayne and he smiled."), _row("日本語")])
    assert not _groups([_row("Ask him or her for his or her name, or for his/her number.")])
    assert not _groups([])


def test_a_row_goes_to_the_first_attribute_that_it_has_a_term_of() -> None:
    rows = [_row("The Muslim woman"), _row("the woman")]
    assert [g[0].tags["attribute"] for g in _groups(rows).values()] == ["religion", "gender"]
    assert [g[0].tags["attribute"] for g in _groups(rows, attributes=["gender"]).values()] == ["gender", "gender"]


def test_several_people_stay_different_people() -> None:
    (members,) = _groups([_row("He told her that his wife left him.")]).values()
    assert [m.text for m in members][1] == "She told him that her husband left her."
    assert [m.tags["variant"] for m in members] == ["male", "female"]


def test_rows_that_are_each_other_s_variants_make_one_group() -> None:
    rows = [_row("She likes tea."), _row("unrelated"), _row("He likes tea.")]
    (members,) = _groups(rows).values()
    assert [m.row_id for m in members] == [rows[0].row_id, rows[2].row_id]
    assert [m.tags["variant"] for m in members] == ["female", "male"]
    again = _groups(list(reversed(rows)))
    assert again.keys() == {members[0].tags["group"]}  # the id does not depend on the order


def test_a_conversation_is_swapped_in_all_its_turns() -> None:
    row = make_prompt((Message("system", "Help the customer, a woman."), Message("user", "My husband and I")))
    (members,) = _groups([row]).values()
    assert [m.content for m in members[1].messages] == ["Help the customer, a man.", "My wife and I"]


def test_gold_that_names_a_term_stays_with_its_own_row() -> None:
    (members,) = _groups([_row("Who is she?", label="woman", reference="She is Ada.")]).values()
    assert (members[0].label, members[0].reference) == ("woman", "She is Ada.")
    assert (members[1].label, members[1].reference) == (None, None)


def test_the_share_is_stable_and_counts_groups() -> None:
    rows = [_row(f"She has {n} apples.") for n in range(400)]
    some = set(_groups(rows, share=0.25))
    assert 70 < len(some) < 130
    assert some == set(_groups(rows[::-1], share=0.25))
    assert set(_groups(rows[:200], share=0.25)) <= some
    assert some <= set(_groups(rows, share=0.5))
    assert not _groups(rows, share=0.0)


@pytest.mark.parametrize(
    "text", ["Muslims pray. " * 14_000, "\n" * 200_000 + "Muslims", "a " + " " * 200_000 + "Muslim"]
)
def test_work_grows_with_the_text_and_not_with_its_square(text: str) -> None:
    start = time.monotonic()
    assert _groups([_row(text)])
    assert time.monotonic() - start < 10


def test_equal_rows_and_two_hundred_thousand_signs_are_no_trouble() -> None:
    row = _row("she " * 50_000)
    (members,) = _groups([row, row, make_prompt(row.messages, occurrence=1)]).values()
    assert len(members) == 3
    assert members[-1].text.split() == ["he"] * 50_000


def _file(folder: Path, *texts: str) -> Path:
    path = folder / "templates.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "tags": {"tone": "flat"}}) + "\n" for text in texts))
    return path


def test_templates_are_filled_with_each_variant(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        "{group:gender:She} said a {group:gender:actress} is {group:gender:her} hero.",
        "An {group:religion} choir",
    )
    first, second = _groups([], templates=file).values()
    assert [m.text for m in first] == ["She said an actress is her hero.", "He said an actor is his hero."]
    assert [m.tags["variant"] for m in first] == ["female", "male"]
    assert [m.text for m in second][:2] == ["A Christian choir", "A Muslim choir"]
    assert second[5].text == "An atheist choir"
    assert {m.tags["tone"] for m in second} == {"flat"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no place", "places for no attribute"),
        ("{group:gender} and {group:age}", "places for age, gender; a row has them for one"),
        ("{group:gendre}", "no attribute 'gendre'. Did you mean 'gender'?"),
        ("{group:gender:table}", "'table' is no form of gender"),
        ("{group:religion:priest} {group:religion:an atheist}", "no two variants in common"),
    ],
)
def test_a_template_s_faults_are_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        _groups([], templates=_file(tmp_path, text))
    assert said in str(error.value)


def test_a_place_in_a_row_that_would_be_asked_is_an_error() -> None:
    with pytest.raises(UserError, match="name it as `templates:`"):
        _groups([_row("A {group:gender} choir")])


def test_through_the_door_the_groups_are_tagged_split_and_filtered_whole(desk: Desk) -> None:
    texts = [f"She is {word} at it." for word in ("good", "bad", "new", "fast", "slow", "kind", "late", "calm")]
    desk.seeds([{"prompt": text} for text in [*texts, "No one is here."]])
    rules = {"He is bad": "positive", "He is kind": "negative, indeed", "good": "positive"}
    filters: list[Any] = [{"counterfactual_flip": {"max": 0}}, {"length": {"max": 8}}, "whole_groups"]
    entries: list[Any] = [{"seeds": {"file": "seeds.jsonl"}}, "counterfactual"]
    recipe = desk.recipe(
        models={"teacher": {"scripted": {"rules": rules, "default": "negative"}}},
        prompts=entries,
        held_out={"share": 0.3, "near": None},
        filter=filters,
    )
    summary = desk.here(recipe)
    asked, held = desk.rows(summary, "prompts"), desk.rows(summary, "held_out")
    assert len(asked) + len(held) == 17
    tags = [dict(row["tags"]) for row in asked + held]
    sizes: dict[str, set[str]] = defaultdict(set)
    for row in tags:
        if "group" in row:
            sizes[row["group"]].add(row["variant"])
    assert len(sizes) == 8
    assert all(variants == {"female", "male"} for variants in sizes.values())
    sides = [{dict(row["tags"]).get("group") for row in side} - {None} for side in (asked, held)]
    assert not sides[0] & sides[1]
    gone = {(row["messages"][0]["content"], row["dropped_by"]) for row in desk.rows(summary, "dropped")}
    assert gone == {
        ("She is bad at it.", "counterfactual_flip"),
        ("He is bad at it.", "counterfactual_flip"),
        ("He is kind at it.", "length"),
        ("She is kind at it.", "whole_groups"),
    }


def test_a_lexicon_and_its_attributes_are_checked_before_anything_runs(desk: Desk) -> None:
    desk.seeds(["{}"])
    (desk.folder / "groups.yaml").write_text(
        "attributes:\n  pets:\n    variants: [cats, dogs]\n    sets: [{cats: cat}]\n"
    )
    entry: dict[str, Any] = {"seeds": {"file": "seeds.jsonl"}}
    wrong = [entry, {"counterfactual": {"groups": "groups.yaml"}}]
    assert "a set needs two" in desk.llm_distill("check", desk.recipe(prompts=wrong), code=2)
    wrong = [entry, {"counterfactual": {"attributes": ["gendre"]}}]
    assert "Did you mean 'gender'?" in desk.llm_distill("check", desk.recipe(prompts=wrong), code=2)
