"""report.md says what the page says, to a forge; report.json is of the form that its schema publishes."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt

from llm_distill.evals.compare import compare
from llm_distill.evals.metrics import agreement_scores, arm_numbers, gold_scores
from llm_distill.report.build import build
from llm_distill.report.html import render
from llm_distill.report.pull_request import brief
from llm_distill.store import RunFolder, write_json
from tests.conftest import Desk
from tests.evals.rows import LABELS, answer, arm, right_on
from tests.finished import made
from tests.report.example_report import full
from tests.report.test_html import HOSTILE, poisoned
from tests.report.test_rows import rows_of

SCHEMA = json.loads(files("llm_distill.report").joinpath("schema.json").read_text(encoding="utf-8"))
GATE = {
    "ships": False,
    "conditions": [
        {"name": "min_kept_share", "unit": "share", "value": 0.958, "min": 0.95, "holds": True, "note": "98.5 % kept"},
        {
            "name": "max_bias_rise",
            "unit": "points",
            "value": None,
            "max": 0.05,
            "holds": False,
            "note": "not | measured",
        },
    ],
}


@pytest.mark.parametrize(
    ("mute", "said"), [("teacher", "Teacher"), ("base_zero_shot", "Base, zero-shot"), ("student", "Student")]
)
def test_an_arm_that_failed_on_every_row_is_neither_better_nor_worse(mute: str, said: str) -> None:
    arms = {who: right_on(30, right) for who, right in (("base_zero_shot", 9), ("student", 20), ("teacher", 28))}
    arms[mute] = [answer(a.prompt, None, status="failed") for a in arms[mute]]
    numbers = compare(arms, "classify", LABELS, seed=1, resamples=200)
    pair = "Student vs base, zero-shot" if mute == "base_zero_shot" else "Student vs teacher"
    (line,) = [line for line in brief({"name": "n"} | numbers).splitlines() if f"{pair}: " in line]
    assert line.startswith("- !")
    assert line.endswith(f"{said} failed on every row, so nothing is known of what it can do.")
    assert ("points gained" in render({"name": "n"} | numbers)) == (mute == "teacher")


def test_it_says_what_a_reviewer_asks() -> None:
    said = brief(full() | {"gate": GATE}).replace("\u00a0", " ")
    assert said.startswith("## quickstart\n\n**The student keeps 98.5 % of its teacher's accuracy")
    for line in (
        "### Ship gate: the student does not ship",
        "| Share of the teacher kept, lower bound | 95.8 % | at least 95.0 % | holds | 98.5 % kept |",
        "| More uneven groups than before training | cannot be judged | at most 5.0 points | FAILS | not \\| measured |",
        "| Student vs base, few-shot | \\+22.6 | \\+17.0 to +28.3 | under 0.001 | 300 |",
        "| Student vs teacher | 41.0 % (36.0 to 46.0) | 52.0 % (46.0 to 58.0) | 88 | 70 | 142 | 31.0 % (26.0 to 36.0) |",
        "- ! Teacher, asked rows: label changes with gender alone in 15.0 %",
    ):
        assert line in said, line
    student = next(line for line in said.splitlines() if line.startswith("| Student | "))
    assert "87.3 % (83.7 to 90.9)" in student
    assert brief(full()) == brief(full())
    assert "Ship gate" not in brief(full() | {"gate": None})
    assert brief({"name": "bare", "headline": "Nothing yet."}).startswith("## bare\n\n**Nothing yet.**")


def test_what_others_wrote_stays_text() -> None:
    report = poisoned(full() | {"gate": GATE}, HOSTILE)
    page = MarkdownIt("gfm-like", {"linkify": False}).render(brief(report))
    ours = {"h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code"}
    assert set(re.findall(r"<(\w+)", page)) <= ours
    assert re.findall(r"<code>(.*?)</code>", page) == ["report.html", "report.json"]


def test_nobody_is_called_by_what_models_wrote() -> None:
    calls = "thanks @octocat and @org/team, see #123, org/repo#7, GH-42, gh-43, !9 and mail a@b.org; F# 5, @ all"
    report = full() | {"gate": GATE, "title": calls, "headline": calls}
    report["gate"]["conditions"][0]["note"] = calls
    for filter_ in report["ablation"]["arms"]:
        filter_["arm"] = f"@octocat #5 {filter_['arm']}"
    shown = unescape(re.sub(r"<[^>]+>", "", MarkdownIt("gfm-like", {"linkify": False}).render(brief(report))))
    # As forges look for them, in what is shown: https://github.com/github/markup, step 4.
    assert not re.search(r"(?<![\w`])@\w", shown)
    assert not re.search(r"[#!]\d|\bgh-\d", shown, re.IGNORECASE)
    assert "thanks @\u2060octocat and @\u2060org/team, see #\u2060123, org/repo#\u20607, GH-\u206042" in shown
    assert "mail a@b.org; F# 5, @ all" in shown, "the rest as it is"


def check(report: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(SCHEMA).iter_errors(report)]


def test_the_example_that_pages_are_tried_with_is_as_the_schema_says() -> None:
    assert check(full()) == []


def test_a_number_that_json_has_not_is_refused_and_nothing_written(tmp_path: Path) -> None:
    for strange in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "report.json", {"value": strange})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "report.json", {"value": None})
    assert (tmp_path / "report.json").read_text() == '{\n  "value": null\n}\n'


def test_a_finished_run_shows_its_rows_and_is_as_the_schema_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    run = made(tmp_path_factory.mktemp("made"), "lora")
    data = rows_of((run / "report/report.html").read_text(encoding="utf-8"))
    assert [arm for arm, _ in data["arms"]] == ["base_zero_shot", "student", "teacher"]
    assert sum(len(table["rows"]) for table in data["tables"].values()) == 60
    assert all(row["arms"]["teacher"]["score"] == 1 for row in data["tables"]["held_out"]["rows"])
    report = json.loads((run / "report/report.json").read_text())
    assert check(report) == []
    assert check(report | {"gate": GATE}) == []
    described = set(SCHEMA["properties"])
    assert set(report) <= described, "a key that nobody described"
    for name, part in (("arm", "arms"), ("paired", "paired")):
        keys = {key for of in report[part].values() for key in of}
        assert keys <= set(SCHEMA["$defs"][name]["properties"]), "a key that nobody described"
    for path, wrong in (
        (("arms", "student", "accuracy", "low"), "0.3"),
        (("paired", "student_vs_teacher", "p"), 1.2),
        (("arms", "student", "undefined", "brier"), 3),
        (("funnel", "kept"), -1),
        (("cost", "stages", "answers", "cost_usd"), "free"),
        (("format",), 2),
    ):
        broken = deepcopy(report)
        inner = broken
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = wrong
        assert check(broken) == ["$." + ".".join(path)], path
    del report["paired"]
    assert check(report) == ["$"]


def test_a_run_without_a_student_is_as_the_schema_says(desk: Desk) -> None:
    desk.seeds([{"prompt": f"{i} is good", "label": "positive"} for i in range(9)])
    folder = RunFolder(Path(desk.here(desk.recipe(filter=["empty"]))["run"]))
    assert check(json.loads(json.dumps(build(folder)))) == []
    assert folder.file("report/report.md").read_text().startswith("## job\n\n**9 of 9 answers were kept")


def test_thousands_of_labels_stay_small() -> None:
    names = [f"intent {i}" for i in range(3000)]
    said = [None if i == 7 else names[1] if i % 500 == 0 else names[i] for i in range(3000)]
    answers = arm(names, said)
    scores = gold_scores(answers, "classify") | {"agreement_with_teacher": agreement_scores(answers, [], "classify")}
    found = arm_numbers(answers, scores, "classify", names, seed=7, slices=(), resamples=20)
    assert found["confusion"]["cells"][:2] == [[0, 1, 1], [1, 1, 1]]
    assert [7, 3000, 1] in found["confusion"]["cells"], "unparsed"
    assert sum(n for _, _, n in found["confusion"]["cells"]) == 3000
    report = full()
    report["arms"]["student"] = found
    assert [path for path in check(report) if path.startswith("$.arms.student")] == []
    assert len(json.dumps(report)) < 1_000_000
    matrix = render(report).split('id="confusion"')[1].split("</section>")[0]
    assert "intent 500</bdi>" in matrix
    assert "unparsed</bdi>" in matrix
    assert "intent 501</bdi>" not in matrix, "only what was confused"
