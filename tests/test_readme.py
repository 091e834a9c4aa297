"""Every command and every recipe in the README is run, and what it says of the project is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from llm_distill import cli
from llm_distill.evals.headline import headline
from llm_distill.recipe import load
from tests.conftest import ROOT, Desk
from tests.written import README, blocks, console, mapping, read

TEXT = README.read_text(encoding="utf-8")

#: Recipes whose models and rows `make setup` brings.
NEEDS_SETUP = (
    "quickstart.yaml",
    "bias_audit.yaml",
    "generated.yaml",
    "chain.yaml",
    "soft_labels.yaml",
)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 250


def test_the_make_targets_exist() -> None:
    targets = [shlex.split(c)[1] for c in console(README) if c.startswith("make ")]
    assert targets == ["quickstart", "test"]
    for target in [*targets, "check", "bench", "setup", "probes", "vllm-cpu"]:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_commands_run_in_their_order(desk: Desk) -> None:
    ours = [shlex.split(c)[1:] for c in console(README) if c.startswith("llm-distill ")]
    assert len(ours) >= 15
    for arguments in ours:
        assert desk.typed(*arguments).strip(), arguments
    assert '"decision"' in (desk.folder / "sheet.csv").read_text(encoding="utf-8")


def test_the_recipes_that_are_explained_are_sound(desk: Desk) -> None:
    desk.typed("new", "tone")
    starter = mapping((desk.folder / "jobs" / "tone.yaml").read_text(encoding="utf-8"))
    assert starter is not None
    found = dict[str, Any]()
    for block in blocks(README, "yaml"):
        part = mapping(block.text)
        assert part is not None, block.text
        found |= part
    assert set(found) == {"models", "evaluate", "ship", "answers"}
    recipe = {**starter, "evaluate": found["evaluate"], "ship": found["ship"], "train": "sft"}
    recipe["models"] = {**found["models"], "student": {"transformers": {"model": "org/small"}}}
    recipe["answers"] = {**starter["answers"], **found["answers"]}
    recipe["prompts"] = [{"seeds": {"file": "jobs/tone.seeds.jsonl"}}]
    plan = load(desk.recipe(**recipe))
    assert plan.teachers.roles == ("teacher",)
    assert plan.evaluate is not None
    assert plan.evaluate.slices == ["product"]


def test_the_table_of_commands_has_every_command() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    table = TEXT.partition("## Commands")[2].partition("\n## ")[0]
    written = [cell for row in table.splitlines() for cell in re.findall(r"`([^`]+)`", row.partition(" | ")[0])]
    there = {line.split()[0] for line in written} - {"--help", "--install-completion", "RUN"}
    assert there == set(group.commands)
    for name in ("jobs", "data"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        inner = group.commands[name]
        assert isinstance(inner, TyperGroup)
        assert set(re.findall(r"`(\w+)`", row)) == {name, *inner.commands}
    for line in written:
        if line.split()[0] in there and " " in line:
            read(shlex.split(line))


def test_the_table_of_extras_has_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = TEXT.partition("## What it needs")[2].partition("\n## ")[0]
    cells = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(project["optional-dependencies"])


def test_the_headline_is_one_that_the_report_writes() -> None:
    (said,) = (" ".join(block.text.split()) for block in blocks(README, "text"))
    arms = {arm: {"n": 300, "accuracy": {"n": 300, "value": 0.9}} for arm in ("student", "teacher", "base_few_shot")}
    even = {"difference": 0.01, "low": -0.027, "high": 0.05, "p": 0.6, "smallest_visible": 0.056}
    numbers = {
        "metric": "accuracy",
        "paired_rows": 300,
        "arms": arms,
        "paired": {
            "student_vs_teacher": even,
            "student_vs_base_few_shot": even | {"difference": 0.2967, "low": 0.23, "high": 0.36, "p": 0.0},
        },
        "kept_share": {"value": 1.0111, "low": 0.97, "high": 1.057, "student": 0.91, "teacher": 0.9},
        "gap_closed": {"value": 1.0349, "low": 0.901, "high": 1.184, "from": "base_few_shot"},
    }
    assert said == headline(numbers)


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_passes_check(desk: Desk, recipe: Path) -> None:
    if recipe.name in NEEDS_SETUP and not (ROOT / "data/quickstart/cache/prepared.json").exists():
        pytest.skip("needs `make setup`")
    assert "the recipe is sound" in desk.typed("check", recipe)
