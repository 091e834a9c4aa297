"""On-policy training as part of a run: the teacher is another recipe's student, of the same base and so of its vocabulary."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.recipe import load
from llm_distill.trainers import on_policy
from tests.conftest import ROOT, Desk
from tests.models.conftest import fallback_tokenizer, tiny
from tests.test_lineage import assistant, base, run_of, student

__all__ = ["base"]  # a fixture


def pupil(desk: Desk, base: Path, trainer: str = "gkd", teacher: dict[str, Any] | None = None, **knobs: Any) -> Path:
    """A student that learns on-policy from the assistant, or from another teacher."""
    local = {"transformers": {"model": "run:assistant", "device": "cpu"}}
    short = {"epochs": 2, "max_new_tokens": 4, "learning_rate": 0.01}
    return desk.recipe(
        "pupil",
        models={"teacher": teacher or local, "student": student(base)},
        train={trainer: short | knobs},
    )


def test_a_run_trains_on_policy_with_one_teacher_in_memory(
    desk: Desk, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive() -> set[int]:
        return {id(o) for o in gc.get_objects() if type(o).__name__ == "LlamaForCausalLM"}

    desk.here(assistant(desk, base))
    gc.collect()
    before = alive()
    found: list[int] = []
    plain = on_policy.teacher_model

    def counted(*house: Any) -> Any:
        found.append(len(alive() - before))
        return plain(*house)

    monkeypatch.setattr("llm_distill.trainers.gkd.teacher_model", counted)
    summary = desk.here(pupil(desk, base))
    assert summary["status"] == "done"
    assert summary["asked"] == 8, "the teacher answered, so its weights were loaded"
    assert found == [1], "when it is loaded to teach only the student is there"
    folder = run_of(summary).file("student")
    story = json.loads((folder / "training.json").read_text("utf-8"))
    assert 0 < story["answers"]["share"] < 1
    assert story["lint"]
    assert story["settings"]["max_new_tokens"] == 4
    rounds = {json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()}
    assert rounds == {0, 1}
    weights.load_model(str(base), adapter=str(folder), device="cpu")
    assert not any(stage["ran"] for stage in desk.here(pupil(desk, base))["stages"].values())


def test_a_teacher_that_does_not_suit_is_found_before_it_is_asked(desk: Desk, base: Path, tmp_path: Path) -> None:
    desk.seeds([{"prompt": f"item {i} is good"} for i in range(4)])
    other = tiny("llama", tmp_path / "other", fallback_tokenizer())
    foreign = {"transformers": {"model": str(other), "device": "cpu"}}
    same = {"transformers": {"model": str(base), "device": "cpu"}}
    for trainer, teacher, match in (
        ("gkd", foreign, r"another vocabulary than the student: .* tokens differ .* Use gold, or logit_kd"),
        ("gkd", same, "has the student's own weights"),
    ):
        with pytest.raises(UserError, match=match):
            desk.here(pupil(desk, base, trainer, teacher))
        assert not list((desk.folder / "data").rglob("answers.parquet"))
    summary = desk.here(pupil(desk, base, "gkd", foreign), last="filter")
    assert summary["asked"] == 4, "as far as the filter any teacher will do"


def test_what_the_recipe_shows_is_found_by_check(desk: Desk, base: Path) -> None:
    desk.seeds([{"prompt": "item"}])
    api = {"openai_api": {"model": "gpt-4.1-mini-2025-04-14"}}
    own = {"openai_api": {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}}
    free = {"prices_usd": {"prompt": 0, "completion": 0}}
    named = {"openai_api": {**own["openai_api"], **free, "tokenizer": str(base)}}
    for trainer, teacher, match in (
        ("gkd", api, "train.gkd needs the teacher's weights, but teacher is openai_api: use logit_kd"),
        ("gold", api, "train.gold needs the teacher's weights"),
        ("server", api, "past the ledger and every budget"),
        ("server", own, "past the ledger and every budget"),
        ("server", {"openai_api": {**own["openai_api"], **free}}, "name its `tokenizer`"),
        ("server", student(base), "behind a vLLM server, but teacher is transformers: use gkd"),
    ):
        with pytest.raises(UserError, match=match):
            load(pupil(desk, base, trainer, teacher))
    assert load(pupil(desk, base, "server", named)).trainer is not None
    said = desk.llm_distill("check", pupil(desk, base, "gkd", api), code=2)
    assert "use logit_kd (its logprobs)" in said


def test_the_recipe_that_comes_along_is_sound() -> None:
    plan = load(ROOT / "jobs" / "gkd.yaml")
    assert plan.trainer is not None
    assert plan.trainer.spec.name == "gkd"
    assert plan.pupils == ("student", "teacher")
