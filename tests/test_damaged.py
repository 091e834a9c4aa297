"""A run's folder that a disk or a hand has damaged, and places that cannot be written: one line that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Desk


@pytest.fixture
def run(desk: Desk) -> Path:
    desk.seeds([{"prompt": "good thing"}, {"prompt": "bad thing"}])
    return desk.folder / str(desk.here(desk.recipe(filter=["empty"]))["run"])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("3")])
def test_a_run_without_its_recipe_says_how_to_get_it_back(
    desk: Desk, run: Path, damage: Callable[[Path], object]
) -> None:
    damage(run / "recipe.resolved.json")
    for command in (["report", "job"], ["refilter", "job", "-s", "filter.empty.min=0"]):
        assert "recipe.resolved.json is missing or no recipe" in desk.llm_distill(*command, code=2)
    desk.llm_distill("run", "job.yaml", "--from", "report")
    desk.llm_distill("report", "job")


def test_a_record_that_cannot_be_read_is_no_bug(desk: Desk, run: Path) -> None:
    record = run / "run.json"
    record.unlink()
    record.mkdir()
    assert "not a run record" in desk.llm_distill("runs")
    assert "not a run record" in desk.llm_distill("show", "job", "kept", code=2)


def test_a_record_that_is_no_object_leaves_the_trend_of_the_others(desk: Desk, run: Path) -> None:
    desk.here(desk.recipe(filter=["empty"], seed=3))
    (run / "run.json").write_text("[]", encoding="utf-8")
    shown = json.loads(desk.llm_distill("trend", "job", "--json"))
    assert len(shown["runs"]) == 1
    assert run.name in " ".join(shown["notes"])


def test_a_table_with_a_torn_page_is_named(desk: Desk, run: Path) -> None:
    table = run / "kept.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:4] + bytes(200) + whole[204:])  # the footer is whole
    assert "kept.parquet is no whole table" in desk.llm_distill("show", "job", "kept", code=2)


def test_a_workspace_that_no_folder_can_be_made_in_is_named(desk: Desk) -> None:
    desk.seeds([{"prompt": "x"}])
    assert "cannot hold runs" in desk.llm_distill("run", desk.recipe(), "-w", "/proc/none", code=2)


def test_a_folder_is_no_file_of_metrics(desk: Desk) -> None:
    desk.seeds([{"prompt": "x"}])
    (desk.folder / "textfiles").mkdir()
    said = desk.llm_distill("run", desk.recipe(), "--metrics", "textfiles", code=2)
    assert "it is a folder; name a file in it, such as textfiles/llm_distill.prom" in said
    assert not (desk.folder / "data").exists()
