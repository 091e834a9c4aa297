"""Runs from end to end through the command line, with a scripted teacher or an endpoint on loopback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Desk
from tests.mock_api import MockApi

ROWS = [
    {
        "prompt": f"item {i} is {'good' if i % 2 else 'bad'}",
        "label": "positive" if i % 2 else "negative",
        "tags": {"third": i % 3},
    }
    for i in range(60)
]
TEACHER = {"scripted": {"rules": {"good": "positive", "item 1[02]": "dunno"}, "default": "negative"}}
STAGES = ["prompts", "answers", "filter", "evaluate", "report"]


def _job(desk: Desk, **keys: Any) -> Path:
    desk.seeds(ROWS)
    settings: dict[str, Any] = {
        "models": {"teacher": TEACHER},
        "held_out": {"share": 0.3},
        "answers": {"max_tokens": 8, "top_logprobs": 5},
        "filter": ["empty", "unparsed", {"confidence": {"min": 0.5}}],
        "evaluate": {"slices": ["third"], "resamples": 500},
    }
    return desk.recipe(**settings | keys)


def _priced_job(desk: Desk, api: MockApi) -> Path:
    """A job whose every answer costs half a cent."""
    prices = {"prompt": 1000, "completion": 1000}
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "prices_usd": prices}
    return _job(desk, models={"teacher": {"openai_api": knobs}}, held_out=None, evaluate=None)


def test_every_row_is_accounted_for(desk: Desk) -> None:
    summary = desk.run(_job(desk))
    assert summary["status"] == "done"
    assert list(summary["stages"]) == sorted(STAGES)
    tables = {name: desk.rows(summary, name) for name in ("prompts", "held_out", "answers", "kept", "dropped")}
    ids = {name: {row["row_id"] for row in rows} for name, rows in tables.items()}
    assert len(ids["prompts"]) + len(ids["held_out"]) == 60
    assert not ids["prompts"] & ids["held_out"]
    assert ids["answers"] == ids["prompts"] == ids["kept"] | ids["dropped"]
    assert not ids["kept"] & ids["dropped"]
    assert [r["row_id"] for r in tables["answers"]] == [r["row_id"] for r in tables["prompts"]]
    gone = tables["dropped"]
    assert gone
    assert {row["dropped_by"] for row in gone} == {"unparsed"}
    assert all(row["score.empty"] == 0 and row["score.confidence"] is None for row in gone)
    assert all(row["score.confidence"] == pytest.approx(0.9, abs=1e-3) for row in tables["kept"])
    for column in (
        "messages",
        "tags",
        "text",
        "status",
        "reason",
        "model",
        "prompt_tokens",
        "completion_tokens",
        "cost_usd",
        "attempts",
    ):
        assert column in tables["kept"][0]
    report = json.loads((desk.folder / summary["run"] / "report" / "report.json").read_text())
    assert report["funnel"]["asked"] == len(ids["prompts"])
    assert report["funnel"]["kept"] == len(ids["kept"])
    assert sum(f["dropped"] for f in report["funnel"]["filters"]) == len(gone)
    assert report["arms"]["teacher"]["accuracy"]["value"] < 1.0
    assert set(report["arms"]["teacher"]["slices"]["third"]) == {"0", "1", "2"}


def test_again_does_nothing_and_says_so(desk: Desk) -> None:
    recipe = _job(desk)
    desk.run(recipe)
    assert "Nothing to do" in desk.llm_distill("run", recipe)
    summary = desk.run(recipe)
    assert not any(stage["ran"] for stage in summary["stages"].values())
    assert summary["asked"] == 0


@pytest.mark.parametrize("torn", ["answers.parquet", "kept.parquet", "report/report.json", "eval/teacher.parquet"])
def test_a_torn_output_is_made_again(desk: Desk, torn: str) -> None:
    recipe = _job(desk)
    summary = desk.run(recipe)
    file = desk.folder / summary["run"] / torn
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = desk.run(recipe)
    assert again["asked"] == 0  # the ledger knows every answer
    if torn != "report/report.json":
        assert file.read_bytes() == whole
    assert json.loads((desk.folder / summary["run"] / "report" / "report.json").read_text())["funnel"]["kept"]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        desk = Desk(tmp_path / name)
        desk.folder.mkdir()
        summary = desk.run(_job(desk))
        folder = desk.folder / summary["run"]
        tables = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}
        report = json.loads((folder / "report" / "report.json").read_text())
        report.pop("seconds")
        made.append((tables, report))
    assert made[0][0].keys() == made[1][0].keys()
    assert len(made[0][0]) >= 6
    assert made[0] == made[1]


def test_until_from_and_one_stage_at_a_time(desk: Desk) -> None:
    recipe = _job(desk)
    for n, stage in enumerate(STAGES, start=1):
        summary = desk.run(recipe, "--until", stage)
        assert [name for name, done in sorted(summary["stages"].items()) if done["ran"]] == [stage]
        assert len(summary["stages"]) == n
    summary = desk.run(recipe, "--from", "filter")
    assert {name for name, done in summary["stages"].items() if done["ran"]} >= {"filter"}
    assert summary["asked"] == 0
    assert "no stage 'fliter'. Did you mean 'filter'?" in desk.llm_distill("run", recipe, "--until", "fliter", code=2)


def test_a_changed_filter_pays_for_nothing(desk: Desk) -> None:
    recipe = _job(desk)
    desk.run(recipe)
    summary = desk.run(recipe, "-s", "filter.confidence.min=0.95", code=1)
    assert (summary["asked"], summary["status"]) == (0, "fell_short")
    assert "every row was dropped" in summary["reason"]


def test_failed_rows_are_owed_and_asked_again(desk: Desk, api: MockApi) -> None:
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    recipe = _job(desk, models={"teacher": {"openai_api": knobs}}, held_out=None, evaluate=None)
    api.faults = {"item 5 is good": ["400"]}
    summary = desk.run(recipe)
    assert (summary["status"], summary["owed"]) == ("done", 1)
    assert [row["dropped_by"] for row in desk.rows(summary, "dropped")] == ["failed"]
    again = desk.run(recipe)
    assert (again["asked"], again["owed"], again["reused"]) == (1, 0, 59)
    assert [row["dropped_by"] for row in desk.rows(again, "dropped")] == []
    assert desk.run(recipe)["asked"] == 0


def test_beyond_max_failed_the_run_falls_short(desk: Desk, api: MockApi) -> None:
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    recipe = _job(desk, models={"teacher": {"openai_api": knobs}}, held_out=None, evaluate=None)
    api.faults = {str(row["prompt"]): ["400"] for row in ROWS[:30]}
    summary = desk.run(recipe, code=1)
    assert summary["status"] == "fell_short"
    assert "30 of 60 rows failed" in summary["reason"]
    assert len([r for r in desk.rows(summary, "answers") if r["status"] == "ok"]) == 30


def test_a_budget_stops_the_run_and_keeps_everything(desk: Desk, api: MockApi) -> None:
    recipe = _priced_job(desk, api)
    summary = desk.run(recipe, "-s", "answers.budget_usd=0.2", code=1)
    assert summary["cost_usd"] <= 0.2
    assert summary["answered"] > 0
    assert len(desk.rows(summary, "answers")) == summary["answered"]


def test_a_generate_job_keeps_messages_and_text(desk: Desk) -> None:
    desk.seeds([{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "reference": "r"}])
    recipe = desk.recipe(task="generate", models={"teacher": {"scripted": {"default": "<b>hi</b> & bye"}}})
    summary = desk.run(recipe)
    (row,) = desk.rows(summary, "kept")
    assert row["text"] == "<b>hi</b> & bye"
    assert row["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert row["reference"] == "r"


def test_the_same_prompt_twice_is_two_rows_and_one_question(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": "twin"}, {"prompt": "twin"}, {"prompt": "single"}])
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    recipe = desk.recipe(models={"teacher": {"openai_api": knobs}}, filter=["exact_duplicate"])
    summary = desk.run(recipe)
    assert api.paid == {"twin": 1, "single": 1}
    assert len({row["row_id"] for row in desk.rows(summary, "answers")}) == 3
    assert [row["dropped_by"] for row in desk.rows(summary, "dropped")] == ["exact_duplicate"]


def test_an_incompatible_run_folder_is_refused(desk: Desk) -> None:
    recipe = _job(desk)
    summary = desk.run(recipe)
    path = desk.folder / summary["run"] / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "run format 99" in desk.llm_distill("run", recipe, code=2)
    path.write_text("{")
    assert "not a run record" in desk.llm_distill("run", recipe, code=2)


def test_a_plug_of_ones_own(desk: Desk) -> None:
    (desk.folder / "mine.py").write_text(
        "def shouting(answers, *, weight: float = 1.0):\n    return [weight * a.text.isupper() for a in answers]\n"
    )
    desk.seeds(ROWS)
    recipe = desk.recipe(
        models={"teacher": {"scripted": {"rules": {"good": "POSITIVE"}, "default": "negative"}}},
        filter=[{"mine:shouting": {"max": 1, "weight": 2.0}}],
    )
    summary = desk.run(recipe, PYTHONPATH=str(desk.folder))
    assert len(desk.rows(summary, "dropped")) == 30
    said = desk.llm_distill("check", recipe, "-s", "filter.mine:shouting.wait=1", code=2, PYTHONPATH=str(desk.folder))
    assert "Did you mean 'weight'?" in said


def test_show_looks_at_rows(desk: Desk) -> None:
    recipe = _job(desk)
    summary = desk.run(recipe)
    shown = desk.llm_distill("show", "job", "dropped")
    assert "dropped_by=unparsed" in shown
    rows = desk.llm_distill(
        "show", summary["run"], "answers", "--where", "prediction == 'positive'", "--json", "--limit", "99"
    )
    assert {json.loads(line)["prediction"] for line in rows.splitlines()} == {"positive"}
    tagged = desk.llm_distill("show", "job", "kept", "--where", "`tags.third` == '1'", "--limit", "3", "--json")
    assert len(tagged.splitlines()) == 3
    assert "no table 'kepd'" in desk.llm_distill("show", "job", "kepd", code=2)
    assert "Columns:" in desk.llm_distill("show", "job", "kept", "--where", "nope == 1", code=2)
    assert "Did you mean 'job'? Allowed: job." in desk.llm_distill("show", "jop", "kept", code=2)


def test_what_a_model_wrote_cannot_steer_the_terminal(desk: Desk) -> None:
    desk.seeds([{"prompt": "x"}])
    desk.run(
        desk.recipe(task="generate", models={"teacher": {"scripted": {"default": "\x1b[31mred\x07 [bold]b[/bold]"}}})
    )
    shown = desk.llm_distill("show", "job", "kept")
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]b[/bold]" in shown


def test_runs_report_new_check_doctor(desk: Desk) -> None:
    wrote = desk.llm_distill("new", "tone")
    assert "jobs/tone.yaml" in wrote
    assert "exists" in desk.llm_distill("new", "tone", code=2)
    checked = desk.llm_distill("check", "jobs/tone.yaml")
    assert "the recipe is sound" in checked
    desk.llm_distill("run", "jobs/tone.yaml")
    assert "tone" in desk.llm_distill("runs")
    page = Path(desk.llm_distill("report", "tone").strip())
    assert (desk.folder / page).read_text().startswith("<!DOCTYPE html>")
    doctor = desk.llm_distill("doctor", OPENAI_API_KEY="sk-very-secret")
    assert re.search(r"OPENAI_API_KEY\s+set", doctor)
    assert "sk-very-secret" not in doctor


def test_check_estimates_and_says_what_is_missing(desk: Desk) -> None:
    prices = {"prompt": 0.4, "completion": 1.6}
    recipe = _job(
        desk, models={"teacher": {"openai_api": {"model": "m", "api_key_env": "NO_SUCH_KEY", "prices_usd": prices}}}
    )
    found = json.loads(desk.llm_distill("check", recipe, "--json"))
    assert found["prompts"] + found["held_out"] == found["teacher_requests"] == 60
    tokens = (found["teacher_prompt_tokens"], found["teacher_completion_tokens_at_most"])
    assert found["cost_usd_at_most"] == pytest.approx((0.4 * tokens[0] + 1.6 * tokens[1]) / 1e6, abs=1e-4)
    assert found["missing_keys"] == ["NO_SUCH_KEY"]
    assert "NO_SUCH_KEY" in desk.llm_distill("run", recipe, code=2)
    assert not list(desk.folder.glob("data/runs/*/*/answers.parquet"))


@pytest.mark.parametrize(
    ("label", "slices", "message"),
    [("postive", ["third"], "Did you mean 'positive'?"), ("positive", ["thrid"], "Did you mean 'third'?")],
)
def test_held_out_mistakes_are_found_by_check(desk: Desk, label: str, slices: list[str], message: str) -> None:
    desk.seeds([{"prompt": "held", "label": label, "tags": {"third": 1}}], "held.jsonl")
    recipe = _job(desk, held_out={"file": "held.jsonl"}, evaluate={"slices": slices})
    assert message in desk.llm_distill("check", recipe, code=2)


def test_a_full_disk_is_one_line(desk: Desk, tmp_path: Path) -> None:
    limit = ["bash", "-c", 'ulimit -f 40; trap "" XFSZ; exec "$@"', "bash"]
    desk.seeds([{"prompt": f"{i} " + "x" * 2000} for i in range(400)])
    import subprocess
    import sys

    done = subprocess.run(
        [*limit, sys.executable, "-m", "llm_distill.cli", "run", str(desk.recipe())],
        cwd=desk.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_title_or_another_resampling_makes_no_student_again(desk: Desk) -> None:
    recipe = _job(desk)
    desk.run(recipe)
    summary = desk.run(recipe, "-s", "report.title=new", "-s", "models.teacher.concurrency=3")
    assert summary["asked"] == summary["reused"] == 0  # taken over, not even looked up
    report = json.loads((desk.folder / summary["run"] / "report" / "report.json").read_text())
    assert report["title"] == "new"
    assert len(desk.llm_distill("runs").splitlines()) == 4


def test_a_raised_budget_goes_on_and_does_not_begin_again(desk: Desk, api: MockApi) -> None:
    recipe = _priced_job(desk, api)
    spent = []
    for budget in (0.2, 0.22, 0.24):
        desk.run(recipe, "-s", f"answers.budget_usd={budget}", code=1)
        spent.append(sum(api.paid.values()) * 5e-3)
        assert spent[-1] <= budget
    assert spent[0] < spent[-1]


def test_an_evaluation_in_which_everything_failed_falls_short(desk: Desk, api: MockApi) -> None:
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    desk.seeds([{"prompt": f"held {i}", "label": "positive", "tags": {"third": 1}} for i in range(20)], "held.jsonl")
    recipe = _job(desk, models={"teacher": {"openai_api": knobs}}, held_out={"file": "held.jsonl"})
    api.faults = {f"held {i}": ["400"] * 9 for i in range(20)}
    summary = desk.run(recipe, code=1)
    assert "eval/teacher.parquet: 20 of 20 rows failed" in summary["reason"]
    page = desk.llm_distill("report", "job")
    assert "report.html" in page


def test_two_processes_on_one_run_share_the_work(desk: Desk) -> None:
    from tests.mock_api import serving

    desk.seeds([{"prompt": f"row {i}"} for i in range(200)])
    with serving(latency_s=0.05) as api:
        knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "concurrency": 8}
        recipe = desk.recipe(models={"teacher": {"openai_api": knobs}})
        running = [desk.command("run", recipe, "--json") for _ in range(2)]
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, out + err
        assert set(api.asked.values()) == {1}
    assert not any(stage["ran"] for stage in desk.run(recipe)["stages"].values())


def test_the_same_prompt_from_two_files_is_two_rows(desk: Desk) -> None:
    desk.seeds([{"prompt": "same"}, {"prompt": "other"}])
    desk.seeds([{"prompt": "same"}, {"prompt": "third"}], "more.jsonl")
    both = [{"seeds": {"file": "seeds.jsonl"}}, {"seeds": {"file": "more.jsonl"}}]
    summary = desk.run(desk.recipe(prompts=both, filter=["exact_duplicate"]))
    assert len(desk.rows(summary, "kept")) == 3


def test_rows_that_differ_in_case_fall_on_one_side_of_the_split(desk: Desk) -> None:
    desk.seeds([{"prompt": text} for i in range(100) for text in (f"Row {i}", f"row  {i}")])
    summary = desk.run(desk.recipe(held_out={"share": 0.3}))
    sides = [
        {m["messages"][0]["content"].casefold().split()[1] for m in desk.rows(summary, name)}
        for name in ("prompts", "held_out")
    ]
    assert not sides[0] & sides[1]
    assert 15 <= len(sides[1]) <= 45


def test_one_scorer_twice_has_two_scores(desk: Desk) -> None:
    recipe = _job(desk, filter=[{"length": {"max": 99}}, {"length": {"max": 5, "unit": "words"}}])
    (row, *_rest) = desk.rows(desk.run(recipe), "kept")
    assert (row["score.length"], row["score.length.2"]) == (8, 1)


def test_broken_runs_do_not_break_the_list(desk: Desk) -> None:
    summary = desk.run(_job(desk))
    folder = desk.folder / summary["run"]
    (folder / "report" / "report.json").write_text("{")
    other = folder.parent / "2020-01-01-x"
    other.mkdir()
    (other / "run.json").write_text('{"format": 1}')
    listed = desk.llm_distill("runs")
    assert "not a run record" in listed
    assert "no report yet" in listed


def test_rows_without_a_label_leave_once_there_is_something_to_train(desk: Desk) -> None:
    desk.seeds([{"prompt": "good"}, {"prompt": "odd"}])
    models = {
        "teacher": {"scripted": {"rules": {"good": "positive"}, "default": "who knows"}},
        "student": {"transformers": {"model": "org/name"}},
    }
    plain = desk.recipe(models=models)
    assert len(desk.rows(desk.run(plain, "--until", "filter"), "kept")) == 2
    trained = desk.run(desk.recipe(models=models, train="sft"), "--until", "filter")
    assert [row["prediction"] for row in desk.rows(trained, "kept")] == ["positive"]


def test_a_scorer_of_ones_own_that_was_changed_is_asked_again(desk: Desk) -> None:
    desk.seeds([{"prompt": "good"}, {"prompt": "bad"}])
    recipe = desk.recipe(filter=[{"mine:score": {"min": 1}}])
    for code, kept in (("2", 2), ("0 if a.prompt.text == 'bad' else 2", 1)):
        (desk.folder / "mine.py").write_text(f"def score(answers):\n    return [{code} for a in answers]\n")
        summary = desk.run(recipe, PYTHONPATH=f"{desk.folder}:{ROOT}", PYTHONDONTWRITEBYTECODE="1")
        assert len(desk.rows(summary, "kept")) == kept


@pytest.mark.parametrize("changed", ["dev.txt", "mine.py"])
def test_a_student_is_trained_again_where_its_trainer_reads_something_else(desk: Desk, changed: str) -> None:
    desk.seeds([{"prompt": "good"}])
    (desk.folder / "student").mkdir()
    (desk.folder / "student/config.json").write_text("{}", encoding="utf-8")  # nobody loads it
    code = """from pathlib import Path
from llm_distill.plugs import InputFile

def learn(job, *, by: InputFile):
    job.out.mkdir()
    (job.out / "made").write_text(by.read_text() + "1")
"""
    for name, text in {"mine.py": code, "dev.txt": "a"}.items():
        (desk.folder / name).write_text(text, encoding="utf-8")
    models = {"teacher": TEACHER, "student": {"transformers": {"model": "./student"}}}
    recipe = desk.recipe(models=models, train={"mine:learn": {"by": "dev.txt"}})

    folder = Path()
    path: dict[str, Any] = {"PYTHONPATH": f"{desk.folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}

    def made() -> str:
        nonlocal folder
        folder = desk.folder / desk.run(recipe, **path)["run"]
        return str((folder / "student" / "made").read_text(encoding="utf-8"))

    assert made() == "a1"
    text = (desk.folder / changed).read_text(encoding="utf-8")
    (desk.folder / changed).write_text(text.replace("a" if changed == "dev.txt" else "1", "2"), encoding="utf-8")
    assert made() == ("21" if changed == "dev.txt" else "a2")
    assert "is one that lints nothing" in desk.llm_distill("lint", folder, code=2, **path), "and it was not run"


def test_a_report_speaks_of_its_own_run(desk: Desk) -> None:
    desk.seeds([{"prompt": "good"}, {"prompt": "bad"}])
    first, second = (desk.run(desk.recipe(answers={"max_tokens": 8, "retries": n})) for n in (1, 2))
    assert first["run"] != second["run"]
    for summary in (first, second):
        folder = desk.folder / summary["run"]
        told = json.loads((folder / "report" / "report.json").read_text())["provenance"]["recipe_digest"]
        assert told == json.loads((folder / "run.json").read_text())["digest"]


def test_a_mistake_in_the_task_is_found_before_a_finished_stage_is_taken_over(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": "good", "label": "positive"}, {"prompt": "bad", "label": "negative"}])
    desk.seeds([{"prompt": "fine", "label": "positive"}], "held_out.jsonl")
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    recipe = desk.recipe(models={"teacher": {"openai_api": knobs}}, held_out={"file": "held_out.jsonl"}, evaluate={})
    desk.run(recipe)
    asked = sum(api.asked.values())
    assert "slice" in desk.llm_distill("run", recipe, "-s", "evaluate.slices=[nosuch]", code=2)
    assert sum(api.asked.values()) == asked


def test_what_a_server_says_does_not_steer_the_terminal(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": "row 0"}])
    api.faults["row 0"] = ["400:\x1b]0;owned\x07\x1b[2J"]
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    message = desk.llm_distill("run", desk.recipe(models={"teacher": {"openai_api": knobs}}), code=1)
    assert "owned" in message
    assert "\x1b" not in message
