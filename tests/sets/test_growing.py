"""A data set that nights grow: what is new, what is asked, which version has what, and what a crash leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_distill.errors import UserError
from llm_distill.sets.shelf import Shelf
from tests.conftest import ROOT, Desk
from tests.mock_api import MockApi
from tests.report.test_brief import SCHEMA
from tests.report.test_html import Page
from tests.sets.nights import NOUNS, held_out, night, rows, shelf, taught, text


def test_each_night_adds_what_is_new_and_shares_the_shards_that_stay(desk: Desk) -> None:
    night(desk, rows(range(8)))
    night(desk, rows(range(4, 12)))
    assert shelf(desk).versions == [1, 2]
    assert taught(desk, 1) == [text(n) for n in range(8)]
    assert taught(desk) == [text(n) for n in range(12)]
    one, two = shelf(desk).manifest(1), shelf(desk).manifest(2)
    assert one["shards"][0] in two["shards"]
    assert two["parent"] == 1
    assert two["added"] == {"taught": 4, "held_out": 0}
    assert len(list((shelf(desk).path / "shards").iterdir())) == 2


def test_a_night_that_brings_nothing_new_makes_no_version_and_is_no_failure(desk: Desk) -> None:
    night(desk, rows(range(8)))
    summary = night(desk, rows(range(1, 6)))
    assert summary["status"] == "done"
    assert summary["asked"] == 0
    assert shelf(desk).versions == [1]
    assert json.loads((Path(summary["run"]) / "set.json").read_text())["version"] == 1


def test_what_the_set_has_is_not_asked_again(desk: Desk, api: MockApi) -> None:
    """Neither the same row, nor one that only adds a word to it; `check` counts the same."""
    teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}
    long = " ".join(f"word{n}" for n in range(40))
    night(desk, [{"prompt": long}, *rows(range(4))], models={"teacher": teacher})
    before = api.asked.total()
    seeds = [{"prompt": f"{long} indeed"}, {"prompt": text(2).upper()}, *rows([9])]
    desk.seeds(seeds)
    recipe = desk.recipe(data_set="tone", filter=["empty"], models={"teacher": teacher})
    assert json.loads(desk.llm_distill("check", recipe, "--json"))["prompts"] == 1
    summary = desk.run(recipe)
    assert api.asked.total() - before == 1
    assert summary["asked"] == 1
    run = json.loads((desk.folder / summary["run"] / "run.json").read_text())
    assert run["stages"]["prompts"]["not_new"] == {"exact": 1, "near": 1}
    assert taught(desk)[-1] == text(9)


def test_rows_that_say_the_same_are_not_new_where_the_recipe_asks_for_meaning(desk: Desk) -> None:
    pytest.importorskip("wordllama")
    first = [{"prompt": "the parcel arrived late"}, *rows([1])]
    again = [{"prompt": "late arrived the parcel"}, *rows([2])]  # other 3-grams, the same words
    for semantic, kept in ((None, 1), ({"max": 0.95}, 0)):
        how = {"name": f"set{kept}", "semantic": semantic}
        night(desk, first, data_set=how)
        night(desk, again, data_set=how)
        found = [row["messages"][-1]["content"] for row in shelf(desk, f"set{kept}").rows(2, "taught")]
        assert found.count("late arrived the parcel") == kept


def test_members_of_a_counterfactual_group_are_not_near_each_other(desk: Desk) -> None:
    words = " ".join(f"word{n}" for n in range(40))
    twins = [{"prompt": f"{who} said {words}", "tags": {"group": "g"}} for who in ("she", "he")]
    night(desk, [*twins, {"prompt": f"they said {words}"}])
    assert len(taught(desk)) == 2


def test_the_same_run_adds_once_however_often_its_stage_is_done(desk: Desk) -> None:
    desk.seeds(rows(range(6)))
    recipe = desk.recipe(data_set="tone", filter=["empty"])
    first = desk.here(recipe)
    assert desk.here(recipe, first="data_set")["stages"]["data_set"]["ran"]
    assert desk.here(recipe, first="prompts")["stages"]["prompts"]["rows_out"] == 6  # it sees the set as it began
    assert not any(stage["ran"] for stage in desk.here(recipe)["stages"].values())
    assert shelf(desk).versions == [1]
    assert first["status"] == "done"


def test_a_row_that_its_run_no_longer_keeps_is_taken_out_with_the_reason(desk: Desk) -> None:
    desk.seeds(rows(range(6)))
    recipe = desk.recipe(data_set="tone", filter=["empty"])
    desk.here(recipe)
    sheet = desk.folder / "sheet.jsonl"
    desk.llm_distill("review", "job", "--out", sheet, "--rows", "1", "--by", "kept")
    judged = json.loads(sheet.read_text()) | {"decision": "drop"}
    sheet.write_text(json.dumps(judged) + "\n")
    desk.llm_distill("review", "job", "--read", sheet)
    desk.here(recipe)
    (gone,) = shelf(desk).manifest(2)["removed"]
    assert gone["why"] == "review"
    assert len(taught(desk, 1)) == 6
    assert len(taught(desk, 2)) == 5


def test_the_report_says_what_came_to_the_set_and_went(desk: Desk) -> None:
    night(desk, rows(range(40)))
    second = night(desk, [*rows(range(36, 40)), *rows(range(41, 61, 2))])
    folder = Path(second["run"])
    page, found = (folder / "report/report.html").read_text(), json.loads((folder / "report/report.json").read_text())
    assert not [error.json_path for error in Draft202012Validator(SCHEMA).iter_errors(found)]
    of = found["data_set"]
    assert (of["version"], of["before"], of["added"]["taught"], of["rows"]["taught"]) == (2, 1, 10, 50)
    assert of["slices"]["tags.parity"]["1"] == pytest.approx(30 / 50)
    assert of["slices_before"]["tags.parity"]["1"] == 0.5
    text = " ".join(Page(page).text.split())
    assert "tone, version 2. It has 50 rows to learn from and 0 held-out ones." in text
    assert "llm-distill data diff tone@v1 tone@v2" in text
    assert "nothing is known: the recipe has no probe" in text
    assert "50.0 % 60.0 %" in text.replace("\u00a0", " ")
    assert "data_set" not in json.loads(
        (Path(desk.here(desk.recipe("plain"))["run"]) / "report/report.json").read_text()
    )


def test_what_is_held_out_is_held_out_for_ever(desk: Desk) -> None:
    """By a hash: rows keep their side over nights, and each night's evaluation has all that were ever held out."""
    share: dict[str, Any] = {"held_out": {"share": 0.3}}
    night(desk, rows(range(30)), **share)
    first = held_out(desk)
    assert 3 < len(first) < 20
    summary = night(desk, rows(range(20, 60)), **share)
    assert held_out(desk)[: len(first)] == first
    assert not set(held_out(desk)) & set(taught(desk))
    asked = [row["messages"][-1]["content"] for row in desk.rows(summary, "held_out")]
    assert asked == held_out(desk)


@pytest.mark.parametrize("other", [{"share": 0.5}, {"share": 0.3, "near": None}, None])
def test_another_split_is_refused_before_anything_is_asked(desk: Desk, other: Any) -> None:
    night(desk, rows(range(30)), held_out={"share": 0.3})
    with pytest.raises(UserError, match=r"holds rows out by a share of 0.3.*name another data set"):
        night(desk, rows(range(30, 40)), held_out=other)


def test_a_file_of_held_out_rows_may_grow_but_not_by_what_was_taught(desk: Desk) -> None:
    desk.seeds(rows([100, 101], label="positive"), "gold.jsonl")
    night(desk, rows(range(6)), held_out={"file": "gold.jsonl"})
    desk.seeds(rows([101, 102], label="positive"), "gold.jsonl")
    summary = night(desk, rows(range(6, 9)), held_out={"file": "gold.jsonl"})
    assert held_out(desk) == [text(100), text(101), text(102)]
    assert len(desk.rows(summary, "held_out")) == 3  # also the one that the file has no more
    desk.seeds(rows([2], label="positive"), "gold.jsonl")
    with pytest.raises(UserError, match="taught already by the data set tone"):
        night(desk, rows([9]), held_out={"file": "gold.jsonl"})


ADD = """
import os, sys
from pathlib import Path
from llm_distill.sets import shelf
real, after = os.fsync, int(sys.argv[2])
def die(handle):
    global after
    after -= 1
    if after < 0:
        os._exit(9)
    real(handle)
os.fsync = die
from llm_distill import pipeline
from llm_distill.recipe import load
from tests.conftest import Unwatched
pipeline.run(load(Path(sys.argv[1])), Path("data"), Unwatched(), first="data_set")
"""


@pytest.mark.parametrize("after", range(1, 5))
def test_a_crash_leaves_the_last_whole_version_and_the_next_run_goes_on(desk: Desk, after: int) -> None:
    """Killed at each time that something is put on disk."""
    night(desk, rows(range(4)))
    desk.seeds(rows(range(8)))
    recipe = desk.recipe(data_set="tone", filter=["empty"])
    desk.here(recipe, last="filter")
    command = [sys.executable, "-c", ADD, str(recipe), str(after)]
    done = subprocess.run(command, cwd=desk.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 9
    found = shelf(desk)
    assert found.versions in ([1], [1, 2])
    assert len(taught(desk)) == (8 if found.versions == [1, 2] else 4)
    desk.here(recipe)
    assert found.versions == [1, 2]
    assert taught(desk) == [text(n) for n in range(8)]
    named = {shard["file"] for version in (1, 2) for shard in found.manifest(version)["shards"]}
    assert {file.name for file in (found.path / "shards").iterdir()} == named


def test_two_processes_that_add_at_once_both_get_in(desk: Desk) -> None:
    recipes = []
    for n in range(3):
        desk.seeds(rows(range(n * 5, n * 5 + 8)), f"seeds{n}.jsonl")
        prompts = [{"seeds": {"file": f"seeds{n}.jsonl"}}]
        recipes.append(desk.recipe(name=f"job{n}", data_set="tone", filter=["empty"], prompts=prompts))
    running = [desk.command("run", recipe) for recipe in recipes]
    for process in running:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
    assert len(shelf(desk).versions) == 3
    assert sorted(taught(desk)) == sorted(text(n) for n in range(18))


def _side(desk: Desk, name: str, seeds: list[dict[str, Any]], until: str | None = None) -> dict[str, Any]:
    """A recipe of its own, that fills the same set, over these seeds; equal rows alone are not new to it."""
    desk.seeds(seeds, f"{name}.jsonl")
    keys: dict[str, Any] = {
        "prompts": [{"seeds": {"file": f"{name}.jsonl"}}], "held_out": {"share": 0.5}, "filter": ["empty"],
        "data_set": {"name": "tone", "near": None},
    }  # fmt: skip
    return desk.here(desk.recipe(name, **keys), last=until)


def test_two_recipes_leave_nothing_alike_on_both_sides_of_a_set(desk: Desk) -> None:
    """They run side by side: each has chosen its sides before the other's rows are in."""
    words = [" ".join(f"{noun}{n}x{i}" for i, noun in enumerate(NOUNS * 3)) for n in range(24)]
    ours = [{"prompt": one} for one in words]
    theirs: list[dict[str, Any]] = [
        {"prompt": f"{one} indeed"} for one in words
    ]  # near, and by its own hash on either side
    theirs += [{"prompt": "lemon alone", "tags": {"group": "g"}}, {"prompt": "pepper alone", "tags": {"group": "g"}}]
    twin = [{"prompt": f"{noun} of the same group", "tags": {"group": "g"}} for noun in NOUNS[:1]]
    _side(desk, "ours", [*ours, *twin], until="filter")
    second = _side(desk, "theirs", theirs, until="filter")
    _side(desk, "ours", [*ours, *twin])
    _side(desk, "theirs", theirs)
    assert shelf(desk).versions == [1, 2]
    there = {"taught": taught(desk), "held_out": held_out(desk)}
    both = [
        (a, b) for a in there["taught"] for b in there["held_out"] if a.split(" indeed")[0] == b.split(" indeed")[0]
    ]
    assert both == []
    not_new = shelf(desk).manifest(2)["not_new"]["other_side"]
    new = {row["messages"][-1]["content"] for row in desk.rows(second, "held_out")} - set(there["held_out"])
    assert 0 < len(new) <= not_new < 24
    assert len(there["taught"]) + len(there["held_out"]) == len(ours) + len(twin) + len(theirs) - not_new


def test_a_version_is_read_by_datasets(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    night(desk, rows(range(30)), held_out={"share": 0.3})
    night(desk, rows(range(30, 50)), held_out={"share": 0.3}, filter=["empty", {"length": {"max": 500}}])
    found: Shelf = shelf(desk)
    files: dict[str, list[str]] = {}
    for shard in found.manifest(2)["shards"]:
        files.setdefault(shard["split"], []).append(str(found.shard(shard)))
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["taught"]["row_id"] == [row["row_id"] for row in found.rows(2, "taught")]
    assert len(loaded["held_out"]) == len(held_out(desk))
    assert loaded["taught"][-1]["scores"][0]["key"] == "empty"
