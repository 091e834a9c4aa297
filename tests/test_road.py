"""The whole road with a real student: asked, killed, resumed, trained, evaluated, reported."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Desk
from tests.mock_api import serving

CACHE = ROOT / "data" / "quickstart" / "cache"
WEIGHTS = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _steps(folder: Path) -> list[int]:
    curve = folder / "student" / "metrics.jsonl"
    return [entry["step"] for entry in _read(curve)] if curve.exists() else []


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_twice_ends_as_if_it_was_not(desk: Desk) -> None:
    if not WEIGHTS.exists():
        pytest.skip("needs `make setup`")
    desk.seeds(_read(CACHE / "prompts.jsonl")[:40])
    desk.seeds(_read(CACHE / "held_out.jsonl")[:12], "held.jsonl")
    with serving(latency_s=0.1) as api:
        teacher = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 4}}
        recipe = desk.recipe(
            task={"classify": {"labels": ["positive", "negative"], "template": str(ROOT / "prompts" / "sentiment.md")}},
            models={"teacher": teacher, "student": {"transformers": {"model": str(WEIGHTS)}}},
            held_out={"file": "held.jsonl"},
            train={"sft": {"epochs": 2, "checkpoint_every_s": 0}},
            evaluate={"slices": ["domain"], "resamples": 500},
        )

        def killed_when(ready: Callable[[], bool]) -> None:
            process = desk.command("run", recipe)
            while not ready():
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()

        killed_when(lambda: sum(api.paid.values()) >= 12)
        (folder,) = desk.folder.glob("data/runs/job/*")
        killed_when(lambda: len(_steps(folder)) >= 4)
        said = desk.command("run", recipe, "--json")
        out, err = said.communicate(timeout=600)
        assert said.returncode == 0, err
        summary = json.loads(out.splitlines()[-1])
        assert summary["stages"]["train"]["rows_out"] == 40
        # 4 in flight and 0.2 s of answers at most were lost to each kill.
        assert sum(api.asked.values()) <= 40 + 12 + 16
    assert _steps(folder) == list(range(1, 11))
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert set(report["arms"]) == {"base_zero_shot", "student", "teacher"}
    assert report["arms"]["student"]["unparsed_rate"]["value"] < 0.5  # it has learnt the form at least
    assert len(report["training"]["loss"]) == 10
    assert (folder / "student" / "adapter_model.safetensors").exists()
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert report["headline"][:40] in page.replace("\u00a0", " ")
    assert not any(stage["ran"] for stage in desk.run(recipe)["stages"].values())


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_six_generators_write_and_filters_judge_with_a_real_teacher(desk: Desk) -> None:
    if not WEIGHTS.exists():
        pytest.skip("needs `make setup`")
    less = {
        "prompts.seeds.limit": 3, "prompts.magpie.rows": 2, "prompts.magpie.max_tokens": 24,
        "prompts.topic_tree.width": 2, "prompts.topic_tree.max_tokens": 64, "prompts.templates.sample": 3,
        "mix.rows": 14, "answers.max_tokens": 40, "answers.max_failed": 1,
    }  # fmt: skip
    overrides = [argument for key, value in less.items() for argument in ("-s", f"{key}={value}")]
    process = desk.command("run", ROOT / "jobs" / "generated.yaml", "--json", *overrides)
    out, err = process.communicate(timeout=800)
    assert process.returncode in (0, 1), err  # a small teacher may be cut off in every answer
    summary = json.loads(out.splitlines()[-1])
    folder = desk.folder / summary["run"]
    stages = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
    made = {entry["generator"]: entry["rows"] for entry in stages["prompts"]["made"]}
    assert list(made) == ["seeds", "templates", "counterfactual", "augment", "topic_tree", "magpie"]
    assert all(made[name] for name in ("seeds", "templates", "counterfactual", "augment", "magpie"))
    asked, held_out, answers = (desk.rows(summary, table) for table in ("prompts", "held_out", "answers"))
    assert len(asked) == len(answers) <= 14
    tags = [dict(row["tags"]) for row in (*asked, *held_out)]
    groups = {t["group"] for t in tags if "group" in t}
    held = {dict(row["tags"]).get("group") for row in held_out} - {None}
    assert not held & {dict(row["tags"]).get("group") for row in asked}
    assert groups
    kept, dropped = (desk.rows(summary, table) for table in ("kept", "dropped"))
    assert len(kept) + len(dropped) == len(answers)
    assert all(row["dropped_by"] for row in dropped)
