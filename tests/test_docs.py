"""What docs/*.md say is so: the command line takes their commands, their recipes load, their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.generators import GENERATORS
from llm_distill.recipe import Plan, load
from llm_distill.scorers import SCORERS
from tests.conftest import ROOT, Desk
from tests.test_readme import NEEDS_SETUP
from tests.written import PAGES, README, Block, blocks, commands, console, mapping, read

JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
BLOCKS = [block for page in PAGES for block in blocks(page, "yaml")]
#: Console blocks that run as they stand, after `llm-distill new tone` and a run of it; the others are read.
RUN = ("recipe", "runs")


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [README, *PAGES, *JOBS], ids=lambda p: p.name)
def test_every_command_is_one_that_the_command_line_takes(path: Path) -> None:
    for arguments in commands(path):
        read(arguments)


def test_commands_that_are_refused_are_noticed(tmp_path: Path) -> None:
    text = "See `llm-distill show tone kept --limt 3`.\n\n```console\n$ llm-distill chek jobs/tone.yaml\n```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    found = commands(tmp_path / "page.md")
    assert len(found) == 2
    for arguments in found:
        with pytest.raises(Exception, match=r"(?i)no such"):
            read(arguments)


@pytest.mark.parametrize("name", RUN)
def test_cheap_commands_are_run(desk: Desk, name: str) -> None:
    for folder in ("jobs", "prompts", "data/support"):
        shutil.copytree(ROOT / folder, desk.folder / folder)
    desk.typed("new", "tone")
    desk.typed("run", "jobs/tone.yaml", "-s", "filter.confidence.min=0.5")
    ours = [shlex.split(line)[1:] for line in console(ROOT / "docs" / f"{name}.md")]
    assert ours
    for arguments in ours:
        if arguments[-1].startswith("jobs/") and Path(arguments[-1]).name in NEEDS_SETUP:
            if not (ROOT / "data/quickstart/cache/prepared.json").exists():
                continue
            arguments[-1] = str(ROOT / arguments[-1])
        assert desk.typed(*arguments).strip(), arguments


def test_every_override_of_a_shipped_recipe_is_one_that_it_takes() -> None:
    tried = 0
    for path in (README, *PAGES, *JOBS):
        for verb, *rest in (c for c in commands(path) if c and c[0] in ("run", "check", "ablate", "sweep")):
            recipe = ROOT / rest[0] if rest else ROOT
            setup = recipe.name not in NEEDS_SETUP or (ROOT / "data/quickstart/cache/prepared.json").exists()
            overrides = [text for option, text in pairwise(rest) if option == "-s"]
            if recipe.is_file() and setup and overrides:
                assert load(recipe, overrides).name, verb
                tried += 1
    assert tried


# --- recipes ---------------------------------------------------------------------------------------------------------


def _whole(block: Block, desk: Desk) -> Plan:
    """A fragment of a recipe, put into one that has the rest; the files that it names are there."""
    part = mapping(block.text)
    assert part is not None, block.text
    rows = [
        {"prompt": f"row {i} of some words", "label": ("upset", "calm")[i % 2], "tags": {"product": "x"}}
        for i in range(60)
    ]
    for named in {*re.findall(r"[\w./-]+\.(?:jsonl|md|yaml|gguf)\b", block.text), "seeds.jsonl"}:
        path = desk.folder / named
        path.parent.mkdir(parents=True, exist_ok=True)
        if named == "people.jsonl":
            (said,) = blocks(block.page, "json")
            path.write_text(said.text, encoding="utf-8")
        elif path.suffix == ".jsonl":
            desk.seeds(rows, named)
        elif named == "ours.md":
            shutil.copy(ROOT / "prompts" / "quality.md", path)
        elif path.suffix == ".md":
            path.write_text("{{ examples }}{{ prompt }}", encoding="utf-8")
        elif path.suffix == ".yaml" and not (ROOT / named).exists():
            shutil.copy(ROOT / "prompts" / "perturbations.yaml", path)
    if "prices_usd" in part or "terms" in part:  # knobs of a model
        part = {"models": {"teacher": {"openai_api": {"model": "m", **part}}}}
        (desk.folder / "my-model").mkdir()
        (desk.folder / "my-model" / "tokenizer.json").write_text("{}", encoding="utf-8")
    if "vllm" in str(part.get("teacher", "")):  # models
        part = {"models": part}
    teacher = {"openai_api": {"model": "gpt-4.1-mini-2025-04-14", "terms": "openai"}}
    student = {"transformers": {"model": "org/small", "terms": "apache-2.0"}}
    texts = {"best_by", "schema"} & {*part.get("answers", {})} or "metrics" in part.get("evaluate", {})
    base: dict[str, Any] = {
        "task": "generate" if texts else {"classify": {"labels": ["upset", "calm"]}},
        "held_out": {"share": 0.2},
        "answers": {"max_tokens": 8, "top_logprobs": 5},
        "train": "sft",
        "evaluate": {},
    }
    models = {"teacher": teacher, "student": student, "judge": teacher, "writer": teacher} | part.pop("models", {})
    return load(desk.recipe(**{**base, **part, "models": models}))


def test_the_recipe_that_is_explained_is_sound(desk: Desk) -> None:
    (first, *_rest) = blocks(ROOT / "docs" / "recipe.md", "yaml")
    assert _whole(first, desk).name == "support-tone"
    overrides = re.findall(r"-s ([\w.]+=[\w.]*\w)", page("recipe"))
    assert overrides == ["train.epochs=1", "filter.confidence.min=0.8"]
    assert load(desk.folder / "support-tone.yaml", overrides).name == "support-tone"


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{b.page.stem}-{i}" for i, b in enumerate(BLOCKS)])
def test_every_fragment_of_a_recipe_loads(desk: Desk, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in blocks(ROOT / "docs" / "plugins.md", "python"):
        (desk.folder / "mine.py").write_text(code.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(desk.folder))
    _whole(block, desk)


def test_a_fragment_that_does_not_load_is_noticed(desk: Desk) -> None:
    with pytest.raises(UserError, match="lenght"):
        _whole(Block(README, "yaml", "filter:\n  - lenght: {min: 2}\n"), desk)


def test_what_is_explained_of_prices_terms_teachers_and_mixes_means_what_it_says(desk: Desk) -> None:
    def plan(name: str, key: str) -> Plan:
        (block,) = (b for b in blocks(ROOT / "docs" / f"{name}.md", "yaml") if key in (mapping(b.text) or {}))
        folder = desk.folder / key
        folder.mkdir()
        return _whole(block, Desk(folder))

    assert plan("prices_and_terms", "terms").terms["our-contract-2026"].allows.train_competing == "no"
    several = plan("asking", "teachers")
    assert several.teachers.roles == ("big", "small")
    assert several.questions_a_row == 6
    assert plan("vllm", "student").trainer


def test_the_mix_that_is_explained_is_sound(desk: Desk) -> None:
    explained = next(m for b in blocks(ROOT / "docs" / "prompts.md", "yaml") if "mix" in (m := mapping(b.text) or {}))
    desk.seeds([{"prompt": "x"}])
    prompts: list[dict[str, Any]] = [
        {name: {"rows": 9} if name == "evol_instruct" else {}} for name in explained["mix"]["shares"]
    ]
    prompts[0] = {"seeds": {"file": "seeds.jsonl"}}
    prompts[2] = {"templates": {"text": "{{ a }}", "values": {"a": [1, 2]}}}
    plan = load(desk.recipe(prompts=prompts, **explained))
    assert plan.mix.of([g.spec.name for g in plan.generators]) == [0.5, 0.3, 0.2]
    assert plan.fill


def test_the_scorer_that_is_explained_works(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (fragment,) = (blocks(ROOT / "docs" / "plugins.md", kind) for kind in ("python", "yaml"))
    (desk.folder / "mine.py").write_text(code.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(desk.folder))
    desk.seeds([{"prompt": "x"}])
    filters = (mapping(fragment.text) or {})["filter"]
    filters[0]["mine:exclamations"]["max"] = 5  # three of them at 1.5 each are to stay
    recipe = desk.recipe(task="generate", models={"teacher": {"scripted": {"default": "yes!!!"}}}, filter=filters)
    summary = desk.here(recipe)
    assert desk.rows(summary, "kept")[0]["score.mine:exclamations"] == 4.5


# --- what they name --------------------------------------------------------------------------------------------------


def test_the_generators_and_scorers_are_all_named() -> None:
    for names, where in ((GENERATORS, "prompts"), (SCORERS, "filters")):
        for name in names:
            assert f"`{name}`" in page(where), name


@pytest.mark.parametrize("recipe", JOBS, ids=lambda p: p.name)
def test_the_recipes_to_start_from_are_named_with_what_they_need(desk: Desk, recipe: Path) -> None:
    (row,) = (line for line in page("recipe").splitlines() if line.startswith(f"| `{recipe.name}` |"))
    needs = row.rsplit(" | ", 1)[1]
    assert ("`make setup`" in needs) == (recipe.name in NEEDS_SETUP)
    if recipe.name not in NEEDS_SETUP:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OPENAI_API_KEY", raising=False)
            found = json.loads(desk.typed("check", recipe, "--json"))
        assert re.findall(r"`([A-Z_]+)`", needs) == found["missing_keys"]


def test_the_file_tree_names_every_room() -> None:
    for path in (ROOT / "llm_distill").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            assert path.name in page("code"), path.name


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", page("README")))
    assert linked == {path.name for path in PAGES} - {"README.md"}


def test_links_lead_somewhere() -> None:
    for path in (README, *PAGES):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            if "://" in target:
                continue
            there = path.parent / file if file else path
            assert there.is_file(), f"{path.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_lines_of_json_and_python_are_that() -> None:
    for path in PAGES:
        for block in blocks(path, "json"):
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        for block in blocks(path, "python"):
            compile(block.text, path.name, "exec")
