"""The house's own rules: which way imports go, what starts fast, how long a module may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "llm_distill"
MODULES = sorted(PACKAGE.rglob("*.py"))
#: Lowest first: a module imports only from its own rank or below.
RANKS = [
    ["errors", "logprobs", "records", "scrub", "__init__"],
    [
        "own_plugs",
        "plain",
        "plugs",
        "text_files",
        "seed_files",
        "seeds",
        "templates",
        "store",
        "limits",
        "pacing",
        "recipe_file",
        "reasoning",
        "structured",
        "sandbox",
        "sandbox_filter",
        "sandbox_trial",
        "ngrams",
        "near",
    ],
    ["prices", "counting", "terms"],
    ["logprob_table", "logprob_writer"],
    ["ledger_tables", "tasks", "models", "mixing"],
    ["ledger_spending"],
    ["ledger", "account", "interrupts", "embeddings", "coverage"],
    ["ledger_batches", "ledger_texts"],
    ["batch_course"],
    ["asking", "batching"],
    ["ask"],
    ["generators", "scorers", "trainers", "evals", "report"],
    ["merging", "teachers"],
    [
        "kinship",
        "recipe_checks",
        "recipe_evaluation",
        "recipe_general",
        "recipe_judge",
        "recipe_keys",
        "recipe_probes",
        "recipe_schedule",
    ],
    ["recipe_data_set"],
    ["sets"],
    ["recipe"],
    ["sieve", "collect", "shipped", "lineage", "rivals", "attach", "sides"],
    ["splits", "leaks", "errand", "fairness", "review", "probe_rows", "probe", "growing"],
    ["taught", "perturbing", "attempts", "bias_after", "estimate_probes"],
    ["stages", "estimate", "speed"],
    ["general"],
    ["evaluating", "judging"],
    ["provenance"],
    ["pipeline"],
    [
        "refilter",
        "attach_run",
        "variants",
        "sweep_space",
        "sweep_rows",
        "sweep_table",
        "ablate_table",
        "ablate",
        "sweep_trial",
        "sweep",
        "lint_run",
        "measure_run",
        "launch",
    ],
    ["standalone"],
    ["schedule"],
    ["quoted"],
    ["screen", "trend", "tables", "starter", "doctor", "story", "forget", "metrics"],
    ["watching"],
    ["export"],
    ["serving_wire", "serving"],
    ["review_sheet"],
    ["cli_help", "cli_runs"],
    [
        "cli_attach",
        "cli_audit",
        "cli_data",
        "cli_eval",
        "cli_evals",
        "cli_sweep",
        "cli_students",
        "cli_training",
        "cli_jobs",
        "cli_trend",
    ],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("llm_distill")
            and id(node) not in typing_only
        ):
            names = [node.module] if node.module != "llm_distill" else [f"llm_distill.{a.name}" for a in node.names]
            for name in names:
                room = _room(name or "")
                room = room if room in RANK else "__init__"
                assert RANK[room] <= RANK[own], f"{own} imports {room}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_only_the_command_line_prints_or_exits() -> None:
    for path in MODULES:
        if path.name == "cli.py":
            continue
        banned = (
            "exit",
            "sys.exit",
            "quit",
            *(() if path.name.startswith("cli_") else ("print",)),
        )  # its commands on runs
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in banned, f"{path}:{getattr(node, 'lineno', 0)}"


def test_help_and_check_import_nothing_heavy(tmp_path: Path) -> None:
    heavy = [
        "torch",
        "transformers",
        "trl",
        "datasets",
        "pandas",
        "pyarrow",
        "scipy",
        "matplotlib",
        "sqlalchemy",
        "jsonschema",
    ]
    code = (
        "import sys, json; sys.argv = ['llm-distill', 'check', sys.argv[1]]\n"
        "from llm_distill.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    recipe = ROOT / "jobs" / "hosted_api.yaml"
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
