"""Students of other runs as arms: asked the same rows, checked for what they learnt from, and what shipping records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.compare import compare
from llm_distill.evals.gate import gate
from llm_distill.recipe import load
from tests.conftest import Desk
from tests.evals.rows import LABELS, right_on
from tests.finished import LORA, ROWS, STUDENT, TEACHER, made
from tests.report.test_brief import SCHEMA

SHIP = {"min_kept_share": 0.5, "min_gain_on_previous": -0.1}


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def shop(home: Path, tmp_path: Path) -> Desk:
    """A workspace where the recipe `job` has a student that learnt its task."""
    made(home, "lora")
    shutil.copytree(home / "finished-lora", tmp_path, dirs_exist_ok=True)
    record = next((tmp_path / "data/runs/job").glob("*/run.json"))
    words = json.loads(record.read_text())
    record.write_text(json.dumps(words | {"recipe_file": str(tmp_path / "job.yaml")}))
    return Desk(tmp_path)


def following(desk: Desk, name: str = "next", **keys: Any) -> Path:
    """A recipe like `job` that hardly learns anything."""
    settings: dict[str, Any] = {
        "models": {"teacher": TEACHER, "student": {"transformers": STUDENT}},
        "held_out": {"share": 0.3},
        "filter": ["empty", {"length": {"max": 500}}],
        "train": {"sft": LORA | {"epochs": 1, "learning_rate": 1e-6}},
        "evaluate": {"resamples": 200},
    }
    return desk.recipe(name, **settings | keys)


def report_of(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(summary["run"]) / "report/report.json").read_text())
    return found


def run_of(desk: Desk, name: str = "job") -> Path:
    (folder,) = (desk.folder / "data/runs" / name).iterdir()
    return folder


def test_other_students_answer_the_same_rows_and_move_no_number() -> None:
    arms = {"base_few_shot": right_on(80, 40), "student": right_on(80, 70), "teacher": right_on(80, 78)}
    alone = compare(arms, "classify", LABELS, seed=7, resamples=500)
    rivals = {f"student_of_{n}": right_on(80, 40 + n) for n in range(12)}
    together = compare(arms | rivals, "classify", LABELS, seed=7, resamples=500, rivals=list(rivals))
    for key in ("headline", "paired_rows", "gap_closed", "kept_share"):
        assert together[key] == alone[key]
    assert {name: together["paired"][name] for name in alone["paired"]} == alone["paired"]
    assert together["arms"]["student"] == alone["arms"]["student"]
    worst = together["paired"]["student_vs_student_of_0"]
    assert (worst["difference"], worst["n"], worst["low"] > 0.2) == (0.375, 80, True)
    # The same rows in another order of names are the same comparison.
    assert worst == compare(arms | {"x": right_on(80, 40)}, "classify", LABELS, seed=7, resamples=500, rivals=["x"])[
        "paired"]["student_vs_x"]  # fmt: skip


def test_a_students_run_its_export_and_its_recipe_are_arms(shop: Desk) -> None:
    shop.llm_distill("export", "job", "--to", "gguf", "--quant", "q8_0")
    gguf = run_of(shop) / "exports" / "gguf-q8_0" / "job-q8_0.gguf"
    names = ["job", str(gguf.relative_to(shop.folder))]
    recipe = following(shop, evaluate={"resamples": 200, "students": names, "previous": str(run_of(shop))})
    assert "note " not in shop.llm_distill("check", recipe)
    summary = shop.here(recipe)
    report = report_of(summary)
    assert list(report["students"]) == ["previous", "student_of_job", "student_of_job-q8_0"]
    own, quantised, before = (report["arms"][arm] for arm in ("student_of_job", "student_of_job-q8_0", "previous"))
    taught = json.loads((run_of(shop) / "report/report.json").read_text())["arms"]["student"]
    assert own["accuracy"] == before["accuracy"] == taught["accuracy"], (
        "the same weights, the same rows, the same asking"
    )
    assert quantised["n"] == own["n"]
    assert quantised["accuracy"]["value"] >= own["accuracy"]["value"] - 0.3
    identities = {arm: of["identity"] for arm, of in report["students"].items()}
    assert identities["previous"] == identities["student_of_job"] != identities["student_of_job-q8_0"]
    taught_by = store.training_log(run_of(shop) / "student")
    curves = {arm: of["loss"] for arm, of in report["students"].items()}
    assert curves["previous"] == curves["student_of_job"] == curves["student_of_job-q8_0"]
    assert [one["step"] for one in curves["previous"]] == [one["step"] for one in taught_by if "loss" in one]
    assert "Training loss of several students" in (Path(summary["run"]) / "report/report.html").read_text()
    jsonschema.validate(report, SCHEMA)
    pair = report["paired"]["student_vs_student_of_job"]
    assert pair["difference"] == pytest.approx(
        report["arms"]["student"]["accuracy"]["value"] - own["accuracy"]["value"], abs=1e-5
    )
    page = (Path(summary["run"]) / "report/report.html").read_text()
    assert "Student of job-q8 0" in page
    assert "Previous student" in page
    again = shop.here(recipe)
    assert not any(stage["ran"] for stage in again["stages"].values())
    # Nothing is asked again where a rival goes, and its table goes with it.
    shop.here(recipe, first="evaluate")
    tables = {path.stem for path in (Path(summary["run"]) / "eval").glob("*.parquet")}
    assert tables == set(report["arms"])


def test_another_student_is_asked_in_the_words_it_learnt(shop: Desk) -> None:
    """Labels are a set to whoever compares, and a line of the prompt to a student."""
    ours = {"classify": {"labels": LABELS}}
    theirs = {"classify": {"labels": LABELS[::-1]}}
    summaries = [
        shop.here(following(shop, task=task, models={"student": {"transformers": STUDENT}, "teacher": TEACHER}, train=None,
                            evaluate={"resamples": 200, "students": ["job"], "allow_overlap": ["student_of_job"]}))
        for task in (ours, theirs)
    ]  # fmt: skip
    asked = [{row["row_id"]: row["requests"] for row in shop.rows(s, "eval/student_of_job")} for s in summaries]
    assert asked[0] == asked[1]
    assert summaries[0]["run"] != summaries[1]["run"]
    of_base = [[row["requests"] for row in shop.rows(s, "eval/base_zero_shot")] for s in summaries]
    assert of_base[0] != of_base[1]


def test_a_student_whose_template_was_edited_is_not_asked_in_words_it_never_saw(shop: Desk) -> None:
    words = shop.folder / "words.md"
    words.write_text("{{ prompt }}: {{ labels | join(' or ') }}?", encoding="utf-8")
    task = {"classify": {"labels": LABELS, "template": "words.md"}}
    first = shop.here(following(shop, "line", task=task))
    named = {"resamples": 200, "students": [first["run"]], "allow_overlap": ["student_of_line"]}
    assert "student_of_line" in report_of(shop.here(following(shop, task=task, evaluate=named)))["arms"]
    words.write_text("Which is it, {{ labels | join(' or ') }}? {{ prompt }}", encoding="utf-8")
    with pytest.raises(UserError, match=r"words\.md is not what it was when the student of .* learnt to read it"):
        shop.here(following(shop, task=task, evaluate=named))


def test_what_another_student_learnt_from_is_not_held_out(shop: Desk) -> None:
    learnt = store.read_prompts(run_of(shop) / "kept.parquet")[0]
    shop.seeds([{"prompt": learnt.text, "label": learnt.label}, *ROWS[:0], {"prompt": "unseen good", "label": "positive"}],
               "held.jsonl")  # fmt: skip
    shop.seeds([{"prompt": "one good thing"}, {"prompt": "a bad day elsewhere"}], "few.jsonl")
    keys: dict[str, Any] = {
        "prompts": [{"seeds": {"file": "few.jsonl"}}],
        "held_out": {"file": "held.jsonl"},
        "evaluate": {"resamples": 200, "students": ["job"]},
    }
    with pytest.raises(
        UserError, match=rf"\(student_of_job\): {learnt.row_id} is a row that student_of_job learnt from"
    ):
        shop.here(following(shop, **keys))
    allowing = keys["evaluate"] | {"allow_overlap": ["student_of_job"]}
    report = report_of(shop.here(following(shop, **keys | {"evaluate": allowing})))
    assert report["overlap"] == [{"with": "student_of_job", "rows": 1}]
    # Of one that learnt from a data set, all of that counts, and not what its last run added.
    kept = run_of(shop) / "kept.parquet"
    shutil.copy(kept, run_of(shop) / "set.parquet")
    pq.write_table(pq.read_table(kept).slice(1), kept)
    with pytest.raises(UserError, match=rf"\(student_of_job\): {learnt.row_id} is a row that student_of_job learnt"):
        shop.here(following(shop, **keys))
    # Weights that come from nowhere may have seen anything.
    unknown = {"resamples": 200, "students": ["./base"]}
    with pytest.raises(UserError, match=r"what student_of_base .* learnt from is not known"):
        shop.here(following(shop, **keys | {"evaluate": unknown}))
    report = report_of(
        shop.here(following(shop, **keys | {"evaluate": unknown | {"allow_overlap": ["student_of_base"]}}))
    )
    assert report["overlap"] == [{"with": "student_of_base", "rows": None}]
    assert report["arms"]["student_of_base"]["accuracy"] == report["arms"]["base_zero_shot"]["accuracy"]


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"students": ["jbo"]}, "the recipe 'jbo' has no run. Did you mean 'job'"),
        ({"students": ["next"]}, "'next' is this recipe"),
        ({"students": ["job", "job"]}, "'job' is named twice"),
        ({"students": ["./nowhere"]}, "is no run, no export and no weights"),
        ({"previous": "nobody"}, "evaluate.previous: in .* the recipe 'nobody' has no run"),
    ],
)
def test_who_cannot_be_meant_is_refused_before_anything_is_asked(
    shop: Desk, evaluate: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        shop.here(following(shop, evaluate=evaluate))
    assert not (shop.folder / "data/runs/next").exists()


def test_another_task_and_a_missing_server_are_refused(shop: Desk) -> None:
    task = {"classify": {"labels": ["positive", "negative", "neither"]}}
    with pytest.raises(UserError, match="does another task"):
        shop.here(following(shop, task=task, evaluate={"students": ["job"]}))
    with pytest.raises(UserError, match=r"evaluate\.students: .* there is no models\.student"):
        load(following(shop, models={"teacher": TEACHER}, train=None, evaluate={"students": ["job"]}))
    with pytest.raises(UserError, match=r"ship\.min_gain_on_previous: .* add `previous: shipped`"):
        load(following(shop, ship=SHIP))


def test_shipping_records_the_student_that_the_next_one_must_stand_up_to(shop: Desk) -> None:
    evaluate = {"resamples": 200, "previous": "shipped"}
    good = following(shop, "line", train={"sft": LORA}, evaluate=evaluate, ship=SHIP)
    first = shop.here(good)
    found = json.loads(shop.llm_distill("gate", "line", "--ship", "--json"))
    (idle,) = (c for c in found["conditions"] if c["name"] == "min_gain_on_previous")
    assert (idle["value"], idle["holds"]) == (None, True)
    assert "no student of this recipe has shipped before" in idle["note"]
    record = shop.folder / found["shipped"]
    shop.llm_distill("gate", "line", "--ship")
    (entry,) = json.loads(record.read_text())["shipped"]
    assert entry["student"] == store.digest(Path(first["run"]) / "student")
    assert entry["score"]["value"] == report_of(first)["arms"]["student"]["accuracy"]["value"]
    assert not any(stage["ran"] for stage in shop.here(good)["stages"].values()), "it does not follow itself"
    # One that unlearnt its task follows it, and does not ship.
    worse = following(shop, "line", evaluate=evaluate, ship=SHIP)
    second = shop.here(worse)
    assert second["run"] != first["run"]
    said = shop.llm_distill("gate", second["run"], "--ship", code=1)
    assert "above the previous student, lower bound" in said
    assert len(json.loads(record.read_text())["shipped"]) == 1
    report = report_of(second)
    assert report["previous"] == {"named": "shipped", "found": True}
    assert report["arms"]["previous"]["accuracy"] == report_of(first)["arms"]["student"]["accuracy"]
    shutil.rmtree(Path(first["run"]) / "student")
    with pytest.raises(UserError, match="is no longer in"):
        shop.here(worse)


def test_the_gain_is_judged_by_its_lower_end() -> None:
    arms = {"student": right_on(100, 90), "previous": right_on(100, 88), "teacher": right_on(100, 95)}
    numbers = compare(arms, "classify", LABELS, seed=7, resamples=1000, rivals=["previous"])
    numbers |= {"students": {"previous": {"run": "tone/1"}}, "previous": {"named": "shipped", "found": True}}

    def judged(bound: float, **more: Any) -> dict[str, Any]:
        (condition,) = gate({"min_gain_on_previous": bound}, numbers | more, arms)["conditions"]
        return condition  # type: ignore[no-any-return]

    found = judged(0.0)
    assert (found["holds"], -0.05 < found["value"] < 0.02) == (False, True)
    assert "2.0 points" in found["note"]
    assert "above tone/1, on 100 rows" in found["note"]
    assert judged(found["value"])["holds"]
    assert not judged(-1.0, paired={})["holds"]
