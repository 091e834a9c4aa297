"""Ticks of a job that grows a data set and trains a student on it: night after night, and through a kill in its training."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from llm_distill.recipe import load
from llm_distill.recipe_schedule import moment
from llm_distill.schedule.night import opened, run_due
from tests.conftest import Desk, Unwatched
from tests.finished import LORA, STUDENT
from tests.mock_api import MockApi
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.sets.nights import held_out, rows, shelf, taught, text

T1, T2 = "2026-11-25T03:00:00Z", "2026-11-26T03:00:00Z"


def job(desk: Desk, api: MockApi, **keys: Any) -> Path:
    teacher = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}
    settings: dict[str, Any] = {
        "schedule": "0 3 * * *", "models": {"teacher": {"openai_api": teacher}}, "data_set": "tone", "filter": ["empty"],
        "held_out": {"share": 0.25},
    }  # fmt: skip
    return desk.recipe("nightly", **settings | keys)


def tick(desk: Desk, recipe: Path, due: str) -> dict[str, Any]:
    """What a scheduler does that looks when a tick has just come due."""
    (found,) = run_due(load(recipe), desk.folder / "data", Unwatched(), clock=lambda: moment(due) + 5)
    assert (found["tick"], found["state"]) == (due, "done")
    return found


def test_two_ticks_in_a_row_grow_one_set(desk: Desk, api: MockApi) -> None:
    recipe = job(desk, api)
    desk.seeds(rows(range(20)))
    first = tick(desk, recipe, T1)
    aside, ours = held_out(desk), taught(desk)
    assert aside
    assert sorted(aside + ours) == sorted(text(n) for n in range(20))
    desk.seeds(rows(range(10, 32)))  # the source has moved on
    second = tick(desk, recipe, T2)
    assert second["run"] != first["run"]
    new = {text(n) for n in range(20, 32)}
    assert {row["messages"][-1]["content"] for row in desk.rows(second, "prompts")} <= new
    assert set(api.asked.values()) == {1}
    assert shelf(desk).versions == [1, 2]
    assert held_out(desk)[: len(aside)] == aside
    assert taught(desk)[: len(ours)] == ours
    assert {*taught(desk), *held_out(desk)} == {text(n) for n in range(32)}
    assert [row["messages"][-1]["content"] for row in desk.rows(second, "held_out")] == held_out(desk)
    manifest = shelf(desk).manifest(2)
    assert (manifest["parent"], manifest["run"]) == (1, f"nightly/{Path(second['run']).name}")
    assert json.loads((Path(second["run"]) / "run.json").read_text())["stages"]["prompts"]["not_new"]["exact"] > 0
    found = json.loads(desk.llm_distill("data", "diff", "tone@v1", "tone@v2", "--json"))
    for split, count in (("taught", len(taught(desk)) - len(ours)), ("held_out", len(held_out(desk)) - len(aside))):
        assert (len(found[split]["added"]), found[split]["removed"]) == (count, [])
        assert {row["run"] for row in found[split]["added"]} <= {manifest["run"]}


def _steps(curve: Path) -> list[int]:
    return [json.loads(line)["step"] for line in curve.read_text().splitlines()] if curve.exists() else []


def test_a_kill_in_the_training_of_a_tick_leaves_its_run_to_go_on(desk: Desk, api: MockApi) -> None:
    tiny("llama", desk.folder / "base", byte_level_tokenizer(), tie_word_embeddings=True)
    desk.seeds(rows(range(24)))
    models = {"teacher": {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}}
    train = {"sft": LORA | {"epochs": 8, "checkpoint_every_s": 0}}
    recipe = job(desk, api, models=models | {"student": {"transformers": STUDENT}}, train=train)
    process = desk.command("jobs", "run", recipe, "--tick", T1)
    curve, until = "data/runs/nightly/*/student/metrics.jsonl", time.monotonic() + 200
    while not any(len(_steps(path)) >= 6 for path in desk.folder.glob(curve)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (run,) = desk.folder.glob("data/runs/nightly/*")
    assert not json.loads((run / "run.json").read_text())["stages"].get("train")
    assert shelf(desk).versions == [1]
    before = (run / "student" / "metrics.jsonl").read_text().splitlines()
    process = desk.command("jobs", "run", recipe, "--json")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    found = next(one for one in json.loads(out) if one["tick"] == T1)
    assert (found["state"], desk.folder / found["run"]) == ("done", run)
    assert not found["stages"]["answers"]["ran"]
    assert found["stages"]["train"]["ran"]
    steps = _steps(run / "student" / "metrics.jsonl")
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] > len(before)
    assert (run / "student" / "metrics.jsonl").read_text().splitlines()[:3] == before[
        :3
    ]  # its training was not begun anew
    assert (run / "student" / "adapter_model.safetensors").exists()
    assert set(api.paid.values()) == {1}
    assert shelf(desk).versions == [1]
    with opened(desk.folder / "data", None) as book:
        assert [(row.state, row.attempts) for row in book.ticks("nightly") if row.due == moment(T1)] == [("done", 1)]
