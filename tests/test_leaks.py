"""What the student or a prompt has seen is not held out: found, named, refused, or allowed by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.leaks import check_leaks, leaks
from llm_distill.near import similarity
from llm_distill.recipe import Plan, load
from llm_distill.records import Message, Prompt, make_prompt
from tests.conftest import ROOT, Desk

HELD = "the hotel by the lake was far too loud for the five of us"
NEARLY = "the hotel by the lake was far too loud for the five of them"
OTHER = "a quiet evening with nothing at all to complain about"


def rows(*texts: str) -> list[Prompt]:
    return [make_prompt((Message("user", text),), label="positive") for text in texts]


def plan_of(desk: Desk, **keys: Any) -> Plan:
    desk.seeds([{"prompt": "x", "label": "positive"}])
    desk.seeds([{"prompt": NEARLY, "label": "negative"}], "examples.jsonl")
    student = {"transformers": {"model": "org/student"}}
    settings: dict[str, Any] = {
        "models": {"teacher": {"scripted": {"default": "negative"}}, "student": student},
        "held_out": {"share": 0.5},
        "train": "sft",
        "evaluate": {},
    }
    return load(desk.recipe(**settings | keys))


def kept(desk: Desk, *texts: str) -> Path:
    path = desk.folder / "kept.parquet"
    store.write_table(path, map(store.prompt_row, rows(*texts)), "prompts")
    return path


@pytest.mark.parametrize(
    ("text", "how"), [(HELD.upper(), "is a row learnt from"), (NEARLY, "nearly equals a row learnt")]
)
def test_a_row_learnt_from_is_found_and_named(desk: Desk, text: str, how: str) -> None:
    held_out = rows(OTHER, HELD)
    with pytest.raises(UserError, match=rf"1 of 2 held-out rows .*\(training\): {held_out[1].row_id} {how}"):
        check_leaks(plan_of(desk), held_out, kept(desk, "x y z", text))
    for name in ("training", held_out[1].row_id):
        plan = plan_of(desk, evaluate={"allow_overlap": [name]})
        assert check_leaks(plan, held_out, kept(desk, "x y z", text)) == [{"with": "training", "rows": 1}]
    assert check_leaks(plan_of(desk), held_out, kept(desk, "x y z")) == []


def test_what_calibrates_the_teacher_is_a_party(desk: Desk) -> None:
    desk.seeds([{"prompt": NEARLY, "label": "negative"}, {"prompt": "fine", "label": "positive"}], "dev.jsonl")
    keys: dict[str, Any] = {
        "task": {"classify": {"labels": ["positive", "negative"]}},
        "answers": {"top_logprobs": 5},
        "train": {"logit_kd": {"calibrate_on": "dev.jsonl"}},
    }
    held = rows(OTHER, HELD)
    with pytest.raises(
        UserError, match=rf"1 of 2 held-out rows .*\(calibration\): {held[1].row_id} nearly equals a row that"
    ):
        check_leaks(plan_of(desk, **keys), held, kept(desk, "x y z"))
    plan = plan_of(desk, **keys, evaluate={"allow_overlap": ["calibration"]})
    assert check_leaks(plan, held, kept(desk, "x y z")) == [{"with": "calibration", "rows": 1}]


def test_what_is_allowed_hides_nothing_that_is_not(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many overlaps one party is allowed, those of the next are looked for, and rows that no name allows."""
    monkeypatch.setattr("llm_distill.leaks.MOST", 2)
    task = {"classify": {"labels": ["positive", "negative"], "teacher": {"examples": ["examples.jsonl"]}}}
    held, learnt = (
        rows(OTHER, "one two three", "four five six", "seven eight nine", HELD),
        [OTHER, "one two three", "four five six"],
    )
    plan = plan_of(desk, task=task, evaluate={"allow_overlap": ["training"]})
    with pytest.raises(UserError, match=rf"1 of 5 held-out rows .*\(teacher\): {held[4].row_id}"):
        check_leaks(plan, held, kept(desk, *learnt))
    assert check_leaks(plan, held[:4], kept(desk, *learnt)) == [{"with": "training", "rows": 2, "more": True}]
    named = plan_of(desk, evaluate={"allow_overlap": [row.row_id for row in held[:3]]})
    with pytest.raises(UserError, match=rf"1 of 5 held-out rows .*\(training\): {held[4].row_id}"):
        check_leaks(named, held, kept(desk, *learnt, HELD))
    assert check_leaks(named, held, kept(desk, *learnt)) == [{"with": "training", "rows": 3}]


def test_near_is_as_the_recipe_holds_out(desk: Desk) -> None:
    found = check_leaks(plan_of(desk, held_out={"share": 0.5, "near": None}), rows(HELD), kept(desk, NEARLY))
    assert found == []
    with pytest.raises(UserError, match="nearly equals"):
        check_leaks(plan_of(desk, held_out={"share": 0.5, "near": 0.3}), rows(HELD), kept(desk, NEARLY))


def test_a_name_that_is_no_row_is_refused(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"no held-out row has the row_id 'few_shots'.*few_shot"):
        check_leaks(plan_of(desk, evaluate={"allow_overlap": ["few_shots"]}), rows(HELD), kept(desk))


def test_a_worked_example_near_a_held_out_row_fails_the_run_until_it_is_allowed(desk: Desk) -> None:
    desk.seeds([{"prompt": OTHER}])
    desk.seeds([{"prompt": HELD, "label": "negative"}, {"prompt": "fine", "label": "positive"}], "held.jsonl")
    desk.seeds([{"prompt": NEARLY, "label": "negative"}], "examples.jsonl")
    task = {"classify": {"labels": ["positive", "negative"], "teacher": {"examples": ["examples.jsonl"]}}}
    recipe = desk.recipe(task=task, held_out={"file": "held.jsonl"}, evaluate={})
    said = desk.llm_distill("run", recipe, code=2)
    assert "evaluate: 1 of 2 held-out rows overlap what was seen before (teacher)" in said
    (folder,) = (desk.folder / "data" / "runs" / "job").iterdir()
    assert not list(folder.glob("eval/*.parquet"))  # nobody was asked for what is worth nothing
    desk.seeds(
        [{"prompt": HELD, "label": "negative"}], "examples.jsonl"
    )  # an exact copy is found before any teacher is asked
    with pytest.raises(UserError, match="worked examples"):
        desk.here(recipe)
    summary = desk.here(recipe, "evaluate.allow_overlap=[teacher]")
    assert summary["status"] == "done"
    report = json.loads((Path(summary["run"]) / "report/report.json").read_text())
    assert report["overlap"] == [{"with": "teacher", "rows": 1}]
    assert "overlaps" in (Path(summary["run"]) / "report/report.html").read_text()


def test_what_counts_as_near_is_looked_at_anew(desk: Desk) -> None:
    """The rows are the same under another `near`, so that all before evaluation is taken over; whether they leak is not."""
    desk.seeds([{"prompt": OTHER}])
    desk.seeds([{"prompt": HELD, "label": "negative"}], "held.jsonl")
    desk.seeds([{"prompt": NEARLY, "label": "negative"}], "examples.jsonl")
    task = {"classify": {"labels": ["positive", "negative"], "teacher": {"examples": ["examples.jsonl"]}}}
    recipe = desk.recipe(task=task, held_out={"file": "held.jsonl", "near": None}, evaluate={})
    assert desk.here(recipe)["status"] == "done"
    with pytest.raises(UserError, match="nearly equals one of the teacher's"):
        desk.here(recipe, "held_out.near=0.7")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=8).map(" ".join), max_size=12),
    st.data(),
)
def test_all_and_only_what_is_near_is_found(texts: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    held, seen = rows(*dict.fromkeys(texts[:cut])), rows(*dict.fromkeys(texts[cut:]))
    found = {(leak.row_id, leak.text) for leak in leaks(held, {"training": seen}, 0.999)}
    assert found == {(h.row_id, s.text) for h in held for s in seen if similarity(h.text, s.text) >= 0.999}
    assert {leak.row_id for leak in leaks(held, {"training": seen}, None)} == {
        h.row_id for h in held if h.text in {s.text for s in seen}
    }


@pytest.mark.skipif(not (ROOT / "data/quickstart/cache/prepared.json").exists(), reason="needs `make setup`")
def test_the_quickstart_does_not_leak() -> None:
    from llm_distill.seeds import read_rows

    cache = ROOT / "data/quickstart/cache"
    shown = {name: list(read_rows(cache / f"{name}.jsonl")) for name in ("examples-1", "examples-2", "examples-3")}
    assert list(leaks(list(read_rows(cache / "held_out.jsonl")), shown, 0.7)) == []
