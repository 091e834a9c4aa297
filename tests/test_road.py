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
    assert report["headline"][:40] in page
    assert not any(stage["ran"] for stage in desk.run(recipe)["stages"].values())
