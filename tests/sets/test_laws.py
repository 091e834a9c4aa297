"""Laws of data sets: adding twice is adding once, versions form a chain, differences add up, no row is on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill import store
from llm_distill.recipe_data_set import DataSet
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.sets.adding import Contribution, add, identity
from llm_distill.sets.diff import diff, keys
from llm_distill.sets.shelf import SPLITS, Shelf

WORDS = ["river", "stone", "cloud", "market", "engine", "violin"]
questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
#: A night: what its run keeps (question -> answer), what it holds out, and which run it is (an early one may come again).
nights = st.lists(
    st.tuples(
        st.dictionaries(questions, st.sampled_from(["yes", "no"]), max_size=5),
        st.lists(questions, max_size=3),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=4,
)
HOW = DataSet(name="tone", near=0.5)


def _kept(question: str, text: str) -> dict[str, Any]:
    answer = Answer(make_prompt((Message("user", question),)), text, "ok", model="m", terms="own", role="teacher")
    return store.answer_row(answer) | {"score.length": 1.0}


def _held_out(question: str) -> dict[str, Any]:
    row = store.prompt_row(make_prompt((Message("user", question),)))
    return dict.fromkeys(store.schema("answers").names) | row


def _add(shelf: Shelf, kept: Mapping[str, str], held: list[str], run: int) -> dict[str, Any]:
    rows, out = [_kept(*pair) for pair in kept.items()], [_held_out(question) for question in held]
    return add(shelf, Contribution(f"job/{run}", HOW, rows, out, {}, {"by": "share", "share": 0.1, "near": 0.7}), set())


def _ids(found: dict[str, Any], what: str) -> set[str]:
    return {row["row_id"] for split in SPLITS for row in found[split][what]}


@settings(max_examples=12, deadline=None)
@given(nights)
def test_the_laws_of_a_set_that_grows(told: list[tuple[dict[str, str], list[str], int]]) -> None:
    with TemporaryDirectory() as home:
        shelf = Shelf(Path(home), "tone")
        for kept, held, run in told:
            before = shelf.versions
            manifest = _add(shelf, kept, held, run)
            assert shelf.versions in (before, [*before, len(before) + 1])
            again = _add(shelf, kept, held, run)
            assert shelf.versions == ([*before] if manifest["version"] in (0, *before) else [*before, len(before) + 1])
            assert again["version"] == manifest["version"] or again["run"] != f"job/{run}"
            taught = {row["messages"][0]["content"] for row in shelf.rows(shelf.latest, "taught")}
            out = [row["messages"][0]["content"] for row in shelf.rows(shelf.latest, "held_out")]
            assert not taught & set(out)
        for version in shelf.versions[1:]:
            now, last = shelf.manifest(version), shelf.manifest(version - 1)
            assert (now["parent"], now["parent_id"]) == (version - 1, identity(last))
            old, new = keys(shelf, version - 1, "held_out"), keys(shelf, version, "held_out")
            assert old.keys() <= new.keys()  # held out for ever
            change = diff((shelf, version - 1), (shelf, version))
            assert _ids(change, "added") or _ids(change, "removed")  # a version that changes nothing is none
            assert all(row["why"] for split in SPLITS for row in change[split]["removed"])
        _check_differences(shelf)


def test_a_version_appears_after_what_it_names_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each folder that is synced, whether the version stood there: power loss keeps no name whose file it takes."""
    shelf, synced = Shelf(tmp_path, "tone"), list[tuple[str, bool]]()
    there = shelf.folder(1)
    monkeypatch.setattr("llm_distill.sets.shelf._sync", lambda folder: synced.append((folder.name, there.exists())))
    _add(shelf, {"river stone": "yes"}, ["cloud market engine"], 0)
    assert synced == [("shards", False), ("shards", False), (".v0001.tmp", False), ("tone", True)]


def _check_differences(shelf: Shelf) -> None:
    """diff(A, B) then diff(B, C) lead where diff(A, C) does, row by row; diff(A, A) leads nowhere."""
    versions = shelf.versions
    for split in SPLITS:
        at = {version: {r["row_id"]: key for key, r in keys(shelf, version, split).items()} for version in versions}
        change = {}
        for a, b in product(versions, versions):
            found = diff((shelf, a), (shelf, b))[split]
            come = {at[b][row["row_id"]] for row in found["added"]}
            change[a, b] = come, {at[a][row["row_id"]] for row in found["removed"]}
            assert (found["before"], found["after"]) == (len(at[a]), len(at[b]))
        for a, b, c in product(versions, versions, versions):
            (come_1, gone_1), (come_2, gone_2), (come, gone) = change[a, b], change[b, c], change[a, c]
            there = (set(at[a].values()) - gone_1) | come_1
            assert there == set(at[b].values())
            assert (there - gone_2) | come_2 == (set(at[a].values()) - gone) | come == set(at[c].values())
            assert a != c or not come | gone
