"""Students as teachers of other recipes: a chain run for real with tiny models, its terms, and what is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_distill import lineage, store
from llm_distill.errors import UserError
from llm_distill.recipe import load
from tests.conftest import Desk
from tests.models.conftest import byte_level_tokenizer, tiny

TEACHER = {"scripted": {"rules": {"good": "positive"}, "default": "negative"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("base"), byte_level_tokenizer())


def student(base: Path) -> dict[str, Any]:
    return {"transformers": {"model": str(base), "device": "cpu"}}


def assistant(desk: Desk, base: Path, *, teacher: dict[str, Any] = TEACHER, **keys: Any) -> Path:
    """A teacher's student."""
    desk.seeds([{"prompt": f"item {i} is {'good' if i % 2 else 'bad'}"} for i in range(8)])
    settings: dict[str, Any] = {
        "models": {"teacher": teacher, "student": student(base)},
        "train": {"sft": {"epochs": 20, "learning_rate": 0.01}},
    }
    return desk.recipe("assistant", **settings | keys)


def pupil(desk: Desk, base: Path, **keys: Any) -> Path:
    """The assistant's student."""
    local = {"transformers": {"model": "run:assistant", "device": "cpu"}}
    settings: dict[str, Any] = {
        "models": {"teacher": local, "student": student(base)},
        "train": {"sft": {"epochs": 1}},
    }
    return desk.recipe("pupil", **settings | keys)


def run_of(summary: dict[str, Any]) -> store.RunFolder:
    return store.RunFolder(Path(summary["run"]))


@pytest.mark.parametrize("rank", [4, None], ids=["adapter", "whole"])
def test_a_chain_of_three(desk: Desk, base: Path, rank: int | None) -> None:
    rate = 0.01 if rank else 0.003
    train = {"sft": {"epochs": 20, "learning_rate": rate, "lora_rank": rank}}
    first = run_of(desk.here(assistant(desk, base, train=train)))
    summary = desk.here(pupil(desk, base))
    second = run_of(summary)
    assert summary["asked"] == 8
    said = {a.prompt.text: a.prediction for a in store.read_answers(second.file("answers.parquet"))}
    taught = {a.prompt.text: a.prediction for a in store.read_answers(first.file("answers.parquet"))}
    assert said == taught, "the assistant has learnt it, and says it"
    graduate = lineage.latest(desk.folder / "data", "assistant")
    assert graduate is not None
    assert second.record["models"]["teacher"]["identity"].startswith(graduate.identity)
    assert second.record["models"]["teacher"]["model"] == "run:assistant"
    again = desk.here(pupil(desk, base))
    assert not any(stage["ran"] for stage in again["stages"].values())


def test_another_assistant_is_another_teacher(desk: Desk, base: Path) -> None:
    desk.here(assistant(desk, base))
    desk.here(pupil(desk, base))
    desk.here(assistant(desk, base, seed=1))
    again = desk.here(pupil(desk, base))
    assert again["asked"] == 8
    assert again["stages"]["answers"]["ran"]
    assert not again["stages"]["prompts"]["ran"]
    # Trained again to the same weights, it is the same.
    desk.here(assistant(desk, base, seed=1), first="train")
    assert not desk.here(pupil(desk, base))["stages"]["answers"]["ran"]


def test_the_same_student_elsewhere_is_the_same(desk: Desk, base: Path) -> None:
    desk.here(assistant(desk, base))
    desk.here(pupil(desk, base))
    shutil.move(desk.folder / "data", desk.folder / "moved")
    from llm_distill import pipeline
    from tests.conftest import Unwatched

    again = pipeline.run(load(pupil(desk, base)), desk.folder / "moved", Unwatched())
    assert not any(stage["ran"] for stage in again["stages"].values())


def test_what_is_missing_is_said(desk: Desk, base: Path) -> None:
    made = pupil(desk, base)
    desk.seeds([{"prompt": "item"}])
    with pytest.raises(
        UserError, match=r"models\.teacher\.transformers\.model: run:assistant .* there is no run of it"
    ):
        desk.here(made)
    checked = desk.llm_distill("check", made)
    assert "the recipe is sound" in checked
    assert "Run that recipe first, as far as its train stage" in checked
    desk.here(assistant(desk, base), last="filter")
    with pytest.raises(UserError, match="no run of it has trained a student"):
        desk.here(made)
    desk.here(assistant(desk, base))
    assert "Run that recipe first" not in desk.llm_distill("check", made)


def test_a_torn_student_is_not_taken(desk: Desk, base: Path) -> None:
    run = run_of(desk.here(assistant(desk, base)))
    (run.file("student") / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="no run of it has trained a student"):
        desk.here(pupil(desk, base))


def test_its_base_must_be_there_and_be_the_same(desk: Desk, base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(base, own)
    desk.here(assistant(desk, own))
    tiny("llama", own, byte_level_tokenizer(), initializer_range=0.5)
    with pytest.raises(UserError, match="was trained on own"):
        desk.here(pupil(desk, base))
    shutil.rmtree(own)
    with pytest.raises(UserError, match="is gone"):
        desk.here(pupil(desk, base))


def test_a_student_stands_under_its_teachers_terms(desk: Desk, base: Path) -> None:
    bound = {"name": "contract", "allows": {"train": "yes", "publish": "no"}}
    teacher = {"scripted": {**TEACHER["scripted"], "terms": bound}}
    desk.here(assistant(desk, base, teacher=teacher))
    summary = desk.here(pupil(desk, base))
    answers = store.read_answers(run_of(summary).file("answers.parquet"))
    assert {a.terms for a in answers} == {"contract"}
    assert run_of(summary).record["terms"]["contract"]["allows"]["publish"] == "no"
    with pytest.raises(UserError, match=r"do not allow passing on its answers .*policy\.publish"):
        desk.here(pupil(desk, base, policy={"publish": True}))
    # A name of one's own takes nothing away.
    local = {"transformers": {"model": "run:assistant", "device": "cpu", "terms": "apache-2.0"}}
    with pytest.raises(UserError, match="'contract'"):
        desk.here(pupil(desk, base, models={"teacher": local, "student": student(base)}, policy={"publish": True}))


def test_unknown_terms_stay_unknown(desk: Desk, base: Path) -> None:
    vague = {"name": "vague", "allows": {"train": "yes"}}
    desk.here(assistant(desk, base, teacher={"scripted": {**TEACHER["scripted"], "terms": vague}}))
    with pytest.raises(UserError, match=r"'vague' .* leave open whether they allow passing on"):
        desk.here(pupil(desk, base, policy={"publish": True}))


def test_references_that_cannot_be_meant(desk: Desk, base: Path) -> None:
    desk.here(assistant(desk, base))
    plan = load(pupil(desk, base))
    workspace = desk.folder / "data"
    with pytest.raises(UserError, match="cannot learn from its own student"):
        lineage.settled(replace(plan, name="assistant"), workspace)
    pinned = {"transformers": {"model": "run:assistant", "revision": "main"}}
    with pytest.raises(UserError, match=r"revision: run:assistant brings its own"):
        desk.here(pupil(desk, base, models={"teacher": pinned, "student": student(base)}))
    odd = {"transformers": {"model": "run:../x"}}
    with pytest.raises(UserError, match="it names a folder"):
        desk.here(pupil(desk, base, models={"teacher": odd, "student": student(base)}))
    with pytest.raises(UserError, match="training starts from whole weights"):
        desk.here(
            pupil(desk, base, models={"teacher": TEACHER, "student": {"transformers": {"model": "run:assistant"}}})
        )


def test_arms_of_an_ablation_are_not_the_recipes_own(desk: Desk, base: Path) -> None:
    run = run_of(desk.here(assistant(desk, base)))
    run.record["arm"] = "without empty"
    run.save()
    assert lineage.latest(desk.folder / "data", "assistant") is None
    assert json.loads(run.file("run.json").read_text("utf-8"))["arm"]
