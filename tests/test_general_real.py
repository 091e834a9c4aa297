"""A real student, overfitted on purpose: its task is learnt, general ability is lost, and the gate says so. Minutes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_distill.evals.general_tasks import BUILT_IN
from llm_distill.models import weights
from tests.conftest import ROOT, Desk

pytestmark = [pytest.mark.weights, pytest.mark.timeout(1800)]
STUDENT = ROOT / "data" / "quickstart" / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT = 24
TASKS = ("common_knowledge", "grammar")
THINGS = [
    "the tent",
    "a lamp",
    "my order",
    "this kettle",
    "the blue chair",
    "a pair of boots",
    "the radio",
    "our table",
]
ENDS = {
    "billing": ["was charged twice on my card", "has the wrong price on the invoice", "shows a refund that never came"],
    "delivery": ["has not arrived yet", "was left at the wrong address", "is stuck at the depot since Monday"],
}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Path]:
    """All weights trained four times over 24 rows, at fifty times the usual rate."""
    pytest.importorskip("lm_eval")
    if not STUDENT.is_file():
        pytest.skip("needs `make setup`'s assets")
    desk = Desk(tmp_path_factory.mktemp("overfitted"))
    rows = [
        {"prompt": f"{thing} {end}", "label": label} for label, ends in ENDS.items() for end in ends for thing in THINGS
    ]
    random.Random(1).shuffle(rows)
    desk.seeds(rows[:24], "seen.jsonl")
    desk.seeds(rows[24:48], "held.jsonl")
    rules = dict.fromkeys(("charged", "invoice", "refund"), "billing")
    student = {"model": str(STUDENT), "device": "cpu", "dtype": "float32", "terms": "apache-2.0"}
    recipe = desk.recipe(
        task={"classify": {"labels": list(ENDS)}},
        models={
            "teacher": {"scripted": {"rules": rules, "default": "delivery", "terms": "apache-2.0"}},
            "student": {"transformers": student},
        },
        prompts=[{"seeds": {"file": "seen.jsonl"}}],
        held_out={"file": "held.jsonl"},
        train={"sft": {"epochs": 4, "learning_rate": 0.001, "lora_rank": None}},
        evaluate={"resamples": 2000, "general": {"tasks": list(TASKS), "limit": LIMIT}},
        ship={"min_kept_share": 0.5, "max_general_loss": 0.1},
    )
    process = desk.command("run", recipe, "--json")
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return desk, desk.folder / json.loads(out.splitlines()[-1])["run"]


def test_the_gate_stops_it_for_what_it_forgot(overfitted: tuple[Desk, Path]) -> None:
    desk, run = overfitted
    report = json.loads((run / "report/report.json").read_text())
    gained = report["paired"]["student_vs_base_zero_shot"]
    assert gained["low"] > 0, "the task itself is learnt"
    general = report["general"]["all"]
    assert general["loss"]["value"] > 0.08
    assert general["loss"]["low"] > 0
    process = desk.command("gate", "job")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "holds  Share of the teacher kept" in out
    assert "FAILS  General ability lost, upper bound" in out
    assert "does not ship (general ability lost" in err
    assert "General ability: some was lost" in (run / "report/report.md").read_text()


def test_the_harness_on_its_own_says_the_same_of_every_row(overfitted: tuple[Desk, Path], tmp_path: Path) -> None:
    """Its own command line, on the untrained student's folder."""
    _, run = overfitted
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "16", "--log_samples",
        "--model_args", f"pretrained={weights.prepare(str(STUDENT))},dtype=float32", "--limit", str(LIMIT),
        "--tasks", ",".join(f"{name}.yaml" for name in TASKS), "--output_path", str(tmp_path),
    ]  # fmt: skip
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, cwd=BUILT_IN, env=env, capture_output=True, check=True, timeout=900)
    ours = msgspec.json.decode((run / "eval/general/base_zero_shot.json").read_bytes())["tasks"]
    for name in TASKS:
        (logged,) = tmp_path.glob(f"*/samples_llm_distill_{name}_*.jsonl")
        theirs: list[dict[str, Any]] = [json.loads(line) for line in logged.read_text().splitlines()]
        expected = [(one["doc_id"], one["acc"]) for one in sorted(theirs, key=lambda one: int(one["doc_id"]))]
        assert [(row[0], row[2]) for row in ours[f"llm_distill_{name}"]] == expected
        assert len(expected) == LIMIT
