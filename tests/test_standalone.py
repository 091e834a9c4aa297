"""`llm-distill eval`: models of one's own on rows of one's own."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_distill.cli import app
from llm_distill.errors import UserError
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.standalone import Question, numbers, planned
from tests.conftest import Desk
from tests.finished import ROWS, copied
from tests.mock_api import MockApi
from tests.report.chromium import EXECUTABLE, chromium
from tests.report.test_html import Page
from tests.report.test_rows import rows_of

GOOD = {"scripted": {"rules": {"good": "positive"}, "default": "negative"}}
HALF = {"scripted": {"rules": {"[05] is": "positive"}, "default": "negative"}}
HTML = {"scripted": {"default": "<script>alert(1)</script>"}}
LABELS = ("--labels", "positive,negative")


def at(desk: Desk, rows: Any = ROWS, **models: Any) -> tuple[str, ...]:
    """The options that all tests share: rows, a file of models, a folder."""
    desk.seeds(rows, "rows.jsonl")
    (desk.folder / "models.yaml").write_text(json.dumps(models), encoding="utf-8")
    return ("eval", "--data", "rows.jsonl", "--model", "models.yaml", "--out", "out")


def inside(desk: Desk, *options: str) -> str:
    """The command in this process: quicker, and errors are raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk.folder)
        return CliRunner().invoke(app, options, catch_exceptions=False).stdout


def report(desk: Desk) -> dict[str, Any]:
    return json.loads((desk.folder / "out/report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_models_are_held_against_each_other_row_by_row_and_asked_once(desk: Desk) -> None:
    said = desk.llm_distill(*at(desk, ours=GOOD, theirs=HALF, odd=HTML), *LABELS)
    assert "ours is better than theirs (50.0 points" in said
    found = report(desk)
    assert set(found["paired"]) == {"ours_vs_theirs", "ours_vs_odd", "theirs_vs_odd"}
    pair = found["paired"]["ours_vs_theirs"]
    assert (pair["n"], pair["wins"], pair["losses"], pair["test"]) == (60, 30, 0, "exact McNemar")
    assert pair["p_holm"] >= pair["p"] == pytest.approx(2 / 2**30, rel=1e-3)
    page = (desk.folder / "out/report.html").read_text()
    assert "<script>alert" not in page
    assert "ours vs theirs" in page
    assert "ours vs theirs" in (desk.folder / "out/report.md").read_text()
    ledger = (desk.folder / "data/ledger.sqlite").read_bytes()
    before = (desk.folder / "out/report.json").read_bytes()
    inside(desk, *at(desk, ours=GOOD, theirs=HALF, odd=HTML), *LABELS, "--base", "theirs")
    assert set(report(desk)["paired"]) == {"ours_vs_theirs", "odd_vs_theirs"}
    inside(desk, *at(desk, ours=GOOD, theirs=HALF, odd=HTML), *LABELS)
    assert (desk.folder / "out/report.json").read_bytes() == before
    assert len((desk.folder / "data/ledger.sqlite").read_bytes()) == len(ledger)


def test_the_rows_can_be_searched_on_the_page(desk: Desk) -> None:
    inside(desk, *at(desk, ours=GOOD, theirs=HALF, odd=HTML), *LABELS, "--base", "theirs")
    html = (desk.folder / "out/report.html").read_text()
    data = rows_of(html)
    assert data["pair"] == [["ours", "Ours"], ["theirs", "Theirs"]], "the first pair of the comparison"
    assert list(data["tables"]) == ["held_out"]
    rows = data["tables"]["held_out"]["rows"]
    assert len(rows) == len(ROWS)
    assert rows[0]["arms"]["ours"] == {"label": "negative", "score": 1.0}
    assert rows[0]["arms"]["odd"] == {"text": "<script>alert(1)</script>", "score": 0.0}
    assert "Here are all 60 rows." in " ".join(Page(html).text.split())
    assert "llm-distill show RUN" not in html
    inside(desk, *at(desk, alone=GOOD), *LABELS)
    assert rows_of((desk.folder / "out/report.html").read_text())["pair"] == [["alone", "Alone"]]


@pytest.mark.browser
@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on PATH: apt-get install chromium")
def test_a_real_browser_finds_where_two_models_differ(desk: Desk) -> None:
    inside(desk, *at(desk, ours=GOOD, theirs=HALF), *LABELS)
    with chromium() as page:
        page.open(desk.folder / "out/report.html", 390)
        verdicts = "document.querySelector('#rows-filters select')"
        shown = page.evaluate(f"[...{verdicts}.options].map(one => one.text).join('|')")
        assert "Ours right and Theirs wrong" in shown
        assert page.evaluate("document.querySelector('#rows-table').textContent") == "Rows"
        found = page.evaluate(
            f"(s => {{ s.selectedIndex = [...s.options].findIndex(o => o.text === 'Ours right and Theirs wrong'); "
            f"s.dispatchEvent(new Event('change')); return document.getElementById('rows-count').textContent }})({verdicts})"
        )
        assert "30" in found
        assert page.evaluate("document.querySelector('#rows-list h3 b').textContent") == "Ours right"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert (page.complaints(), len(page.requests())) == ([], 1), "itself"


def test_five_rows_work_and_conclude_nothing(desk: Desk) -> None:
    said = inside(desk, *at(desk, ROWS[:5], ours=GOOD, theirs=HALF), *LABELS)
    assert "Nothing can be concluded from the 5 rows that ours and theirs both answered." in said


def test_equal_rows_are_rows_of_their_own(desk: Desk) -> None:
    rows = [{"prompt": "good", "label": "positive"}] * 3 + [{"prompt": "good", "label": "negative"}]
    said = inside(desk, *at(desk, rows, ours=GOOD, theirs=HALF), *LABELS)
    assert "have nothing to be held against" not in said
    arms = report(desk)["arms"]
    assert (arms["ours"]["accuracy"]["value"], arms["ours"]["accuracy"]["n"]) == (0.75, 4)
    assert arms["theirs"]["accuracy"]["value"] == 0.25


def test_a_report_needs_a_folder(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"--out rows\.jsonl: cannot hold a report: File exists: rows\.jsonl"):
        inside(desk, *at(desk, ours=GOOD)[:-1], "rows.jsonl", *LABELS)


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"prompt": "a", "label": "positive"}, {"prompt": "b", "label": "neutral"}], LABELS, "label 'neutral'"),
        ([{"prompt": "a"}], LABELS, "no row has a `label`, and accuracy holds"),
        ([{"prompt": "a"}], (), "no row has a `reference`, and token F1 holds"),
        (
            [{"prompt": "a", "reference": "none"}],
            ("--metric", "numeric"),
            "no row can be scored by numeric accuracy: the ref",
        ),
        (ROWS, (*LABELS, "--base", "our"), "--base our: no such model. Did you mean 'ours'"),
        (ROWS, (*LABELS, "--model", "transformer:x"), "write NAME=PLUG:MODEL, with one of openai_api"),
        (ROWS, (*LABELS, "--model", "a_vs_b=vllm:x"), "'a_vs_b' holds `_vs_`, which stands between two names"),
        (ROWS, (*LABELS, "--model", "ours=vllm:x"), "a model 'ours' is there already"),
        (ROWS, (*LABELS, "--metric", "rouge"), "no metric 'rouge'|metrics: they measure texts"),
        (ROWS, (*LABELS, "--task", "models.yaml"), "--labels says what --task says too"),
        (ROWS, ("--task", "models.yaml"), "--task models.yaml: it has no `task`"),
        (ROWS, (*LABELS, "--model", "b=run:nobody"), "nobody"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(
    desk: Desk, rows: Any, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        inside(desk, *at(desk, rows, ours=GOOD), *options)
    assert not (desk.folder / "out").exists()


def test_a_budget_needs_prices(desk: Desk) -> None:
    api = {"openai_api": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(UserError, match=r"the price of models.away \(openai_api\) is unknown"):
        inside(desk, *at(desk, ours=GOOD, away=api), *LABELS, "--budget-usd", "1")


def test_a_run_s_student_is_a_model_like_any_other(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    copied(tmp_path_factory.getbasetemp(), "lora", desk.folder)
    said = inside(desk, *at(desk, ROWS[:12], ours=GOOD), *LABELS, "--model", "student=run:job", "--max-tokens", "8")
    assert "student " in said
    assert report(desk)["arms"]["student"]["n"] == 12


def answered(count: int, right: int, failed: int = 0) -> list[Answer]:
    rows = [make_prompt((Message("user", f"row {i}"),), label="positive") for i in range(count)]
    return [
        Answer(p, "", "failed", "no answer")
        if i < failed
        else Answer(p, "x", "ok", prediction="positive" if i < right else "negative")
        for i, p in enumerate(rows)
    ]


def plan(desk: Desk) -> Any:
    data = desk.seeds(ROWS, "rows.jsonl")
    task = {"classify": {"labels": ["positive", "negative"]}}
    return planned({"a": GOOD, "b": HALF}, Question(data, task, None, 8, 0.0, None), desk.folder)[0]


def test_failed_rows_are_wrong_in_a_score_and_left_out_of_a_comparison(desk: Desk) -> None:
    found = numbers(plan(desk), {"a": answered(100, 100), "b": answered(100, 100, failed=10)})
    assert found["arms"]["b"]["accuracy"]["value"] == 0.9
    assert (found["paired"]["a_vs_b"]["n"], found["paired"]["a_vs_b"]["difference"]) == (90, 0.0)
    assert "b has no answer to 10 rows: wrong in its score, left out of its comparisons." in found["headline"]
    assert "no difference can be seen" in found["headline"]


def test_no_step_is_quadratic_in_the_rows(desk: Desk) -> None:
    bound = plan(desk)

    def seconds(count: int) -> float:
        arms = {"a": answered(count, count // 2), "b": answered(count, count // 3)}
        numbers(bound, {name: of[:10] for name, of in arms.items()})
        start = time.process_time()
        assert numbers(bound, arms)["paired"]["a_vs_b"]["n"] == count
        return time.process_time() - start

    few, many = seconds(10_000), seconds(100_000)
    assert many < 40 * few + 1, (few, many)  # ten times as many; a quadratic step would take a hundred times as long


def test_texts_are_scored_by_the_metric_that_is_named(desk: Desk) -> None:
    rows = [{"prompt": f"What is {i} and {i}?", "reference": str(2 * i)} for i in range(8)]
    ours = {"scripted": {"rules": {f"What is {i} and": f"It is {2 * i}" for i in range(8)}}}
    options = at(desk, rows, ours=ours, theirs={"scripted": {"default": "3"}})
    said = inside(desk, *options, "--metric", "numeric")
    assert said.startswith("Numeric accuracy: ours 100.0 %")
    assert report(desk)["metric"] == "numeric"
    assert inside(desk, *options, "--metric", "exact_match").startswith("Exact match: ours 0.0 %")


def test_rows_that_the_metric_cannot_be_had_of_are_counted(desk: Desk) -> None:
    rows = [{"prompt": f"row {i}", "reference": str(i) if i < 8 else "none"} for i in range(9)]
    said = inside(desk, *at(desk, rows, ours={"scripted": {"default": "3"}}), "--metric", "numeric")
    assert said.partition("\n")[0].endswith("on 9 rows. 1 row has nothing to be held against and is not scored.")
    assert report(desk)["without_gold"] == 1
    assert "agreement with the teacher" not in (desk.folder / "out" / "report.md").read_text(encoding="utf-8")


def test_what_was_paid_is_what_the_answers_cost_whichever_command_asked(desk: Desk, api: MockApi) -> None:
    prices = {"prompt": 1, "completion": 2}
    hosted = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "prices_usd": prices}}
    options = (*at(desk, ROWS[:8], ours=GOOD, hosted=hosted), *LABELS)
    inside(desk, *options)
    paid = report(desk)["cost"]
    assert paid["total_usd"] > 0
    assert set(paid["stages"]) == {"ours", "hosted"}
    assert paid["stages"]["hosted"]["cost_usd"] == paid["total_usd"]
    asked = api.asked.total()
    inside(desk, *options)
    assert (api.asked.total(), report(desk)["cost"]) == (asked, paid)
