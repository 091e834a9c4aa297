"""A recipe's runs over time: in order, from their own reports, with the teacher's drift; as text, JSON and a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.records import Message, Prompt, make_prompt
from llm_distill.report.trend_page import MOVED, render
from llm_distill.trend import changes, history, table
from tests.conftest import Desk
from tests.mock_api import MockApi
from tests.report.chromium import EXECUTABLE, chromium
from tests.report.example_report import around, full
from tests.report.test_browser import WIDER
from tests.report.test_html import HOSTILE, Page
from tests.test_probe import probed, turned


def written(workspace: Path, name: str, reports: list[Any], arm: bool = False) -> None:
    """Runs with these reports, a week apart; None for one without."""
    for i, report in enumerate(reports):
        folder = workspace / f"runs/{name}/2026-0{1 + i // 4}-{1 + 7 * (i % 4):02}-0123456789{'a' * arm}"
        (folder / "report").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"arm": "without length"} if arm else {"stages": {}}))
        if report is not None:
            (folder / "report/report.json").write_text(json.dumps(report))


def week(i: int, **keys: Any) -> Any:
    report = full() | keys
    report["arms"]["student"]["accuracy"] = around(0.8 + 0.01 * i) | {"n": 300}
    report["cost"]["total_usd"] = 1.5 + i
    report["funnel"]["filters"][3]["dropped"] = 21 + 30 * i
    if i:
        report["probe"]["compared"][0]["agreement"] = around(0.98 - 0.03 * i, 0.05)
    else:
        report["probe"] |= {"compared": [], "said": []}
    return report


def test_runs_are_told_in_their_order(tmp_path: Path) -> None:
    written(tmp_path, "job", [week(0), week(1), week(2), None])
    written(tmp_path, "job", [week(0)], arm=True)
    found = history(tmp_path, "job")
    assert [run["date"] for run in found["runs"]] == ["2026-01-01", "2026-01-08", "2026-01-15"]
    last = found["runs"][-1]
    assert last["score"] == {
        "value": pytest.approx(0.82),
        "low": pytest.approx(0.784),
        "high": pytest.approx(0.856),
        "n": 300,
    }
    assert (last["cost_usd"], last["rows"]["kept"], last["rows"]["asked"]) == (3.5, 383, 420)
    assert last["rows"]["dropped"]["teacher_confidence"] == pytest.approx(81 / 404)
    assert found["notes"] == ["of 1 more there is no report yet"]
    header, *rows = table(found)
    assert len(header) == len(rows[0])
    assert rows[0][-1] == "first look"
    assert rows[1][1] == "81.0\u00a0% (77.4 to 84.6)"
    assert "agrees to 95.0\u00a0% (90.0 to 100.0); LOOK: models.teacher is served by" in rows[1][-1]
    assert changes(found["runs"]) == [
        "The last student scores +1.0 points against the one before it.",
        "teacher_confidence drops 20.0\u00a0% of what it sees, and dropped 12.6\u00a0%.",
    ]


def test_its_page_is_whole_and_inert(tmp_path: Path) -> None:
    bad = week(1)
    bad["probe"]["said"] = [HOSTILE.replace("\ud800", "")]
    bad["funnel"]["filters"][0]["name"] = "<script>alert(1)</script>"
    written(tmp_path, "job", [week(0), bad, week(2)])
    found = history(tmp_path, "job")
    html = render(found, table(found), changes(found["runs"]))
    page = Page(html)
    assert "3 runs of job: the teacher has moved" in page.text
    assert page.all("script") == []
    assert len(page.all("svg")) == 5
    assert "Student: 2026-01-01 80.0\u00a0%, 2026-01-08 81.0\u00a0%, 2026-01-15 82.0\u00a0%; Teacher:" in html
    assert "Rows kept" in page.text
    if EXECUTABLE is None:
        return
    file = tmp_path / "trend.html"
    file.write_text(html, encoding="utf-8")
    with chromium() as tab:
        for width, dark in ((390, True), (1200, False)):
            tab.open(file, width, dark=dark)
            assert tab.evaluate(WIDER) == []
            assert tab.complaints() == []
            assert [url for url in tab.requests() if url != "data:,"] == [file.as_uri()]


def test_rows_that_differ_are_noted_and_so_is_a_damaged_report(tmp_path: Path) -> None:
    written(tmp_path, "job", [week(0), week(1), week(2)])
    folders = sorted((tmp_path / "runs/job").iterdir())
    rows = [make_prompt((Message("user", f"row {i}"),)) for i in range(4)]

    def hold_out(folder: Path, chosen: list[Prompt]) -> None:
        store.write_table(folder / "held_out.parquet", map(store.prompt_row, chosen), "prompts")

    def notes() -> list[str]:
        return [
            note for note in history(tmp_path, "job")["notes"] if "different held-out rows" in note or "read" in note
        ]

    hold_out(folders[0], rows[:3])
    hold_out(folders[1], rows[2::-1])
    assert notes() == [], "the same rows in another order; of the third run nothing is known"
    hold_out(folders[2], rows[1:])
    assert ["different held-out rows" in note for note in notes()] == [True], "as many, but others"
    (folders[2] / "report/report.json").write_text('{"name": "jo')
    assert [run["run"] for run in history(tmp_path, "job")["runs"]] == [folder.name for folder in folders[:2]]
    assert [note.split(";")[0] for note in notes()] == [f"what is there of {folders[2].name} cannot be read"]


def test_a_teacher_that_moved_long_ago_does_not_fill_the_page(tmp_path: Path) -> None:
    written(tmp_path, "job", [week(i) for i in range(12)])
    found = history(tmp_path, "job")
    page = Page(render(found, table(found), changes(found["runs"]))).text
    before_charts = page.split("Score on the held-out rows")[0]
    assert before_charts.count("models.teacher is served by") == MOVED
    assert "6 earlier runs say of the teacher that it has moved" in before_charts
    assert page.count("models.teacher is served by") == MOVED + 11


def test_one_run_without_a_student_is_a_history_too(tmp_path: Path) -> None:
    bare = {"name": "job", "headline": "h", "funnel": {"asked": 9, "kept": 0}}
    written(tmp_path, "job", [bare])
    found = history(tmp_path, "job")
    assert table(found)[1][1:] == ["—", "—", "—", "0 of 9", "100.0\u00a0%", "unknown", "not asked"]
    assert "no run has a probe" in found["notes"][0]
    assert "1 run of job" in Page(render(found, table(found), [])).text


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    written(tmp_path, "tone", [None])
    with pytest.raises(UserError, match=r"no runs of 'tune' .* Did you mean 'tone'\? Allowed: tone\."):
        history(tmp_path, "tune")
    with pytest.raises(UserError, match="no run of 'tone' has a report yet"):
        history(tmp_path, "tone")


def test_the_command_line_shows_a_teacher_that_moved(desk: Desk, api: MockApi) -> None:
    probed(desk, api)
    api.version = "2026-06-01"
    turned(api, set(range(12)))
    first, _ = probed(desk, api, seed=1)
    os.utime(
        first / "report/report.json", (1e9, 1e9)
    )  # a day's runs are told as they began, whenever reports were written
    out = desk.llm_distill("trend", "job", "--html", "trend.html")
    lines = out.splitlines()
    assert lines[0].split()[0] == "Run"
    assert "first look" in lines[1]
    assert "LOOK: models.teacher is served by mock-large-2026-06-01" in lines[2]
    assert "the teacher has moved" in Page((desk.folder / "trend.html").read_text(encoding="utf-8")).text
    runs = json.loads(desk.llm_distill("trend", "job", "--json"))["runs"]
    assert [run["probe"]["rows"] for run in runs] == [None, 30]
    assert "no runs of 'jab'" in desk.llm_distill("trend", "jab", code=2)
