"""Notes on who judges whom."""

from __future__ import annotations

import pytest

from llm_distill.kinship import kindred_judges
from llm_distill.recipe import load
from tests.conftest import Desk


@pytest.mark.parametrize(
    ("teacher", "judge", "kindred"),
    [
        ("gpt-4.1-2025-04-14", "gpt-5-mini", True),
        ("Qwen/Qwen3-32B", "qwen2.5-7b", True),
        ("meta-llama/Meta-Llama-3-8B", "Llama-4-Scout", True),
        ("gpt-4.1-2025-04-14", "claude-sonnet-4", False),
        ("openai/gpt-4.1", "openai/o3", True),
    ],
)
def test_a_judge_of_the_teachers_family_is_noted(desk: Desk, teacher: str, judge: str, kindred: bool) -> None:
    desk.seeds([{"prompt": "x"}])
    models = {
        role: {"openai_api": {"model": name, "api_key_env": None}}
        for role, name in {"teacher": teacher, "judge": judge}.items()
    }
    plan = load(desk.recipe(task="generate", models=models, filter=[{"judge": {"min": 4}}]))
    assert bool(kindred_judges(plan)) == kindred
    out = desk.llm_distill("check", desk.folder / "job.yaml")
    assert ("favours what sounds like itself" in out) == kindred
    assert "up to 2 requests to judge" in out or "requests to judge" in out
