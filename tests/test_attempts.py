"""pass@k: the estimator against the mean over all subsets, several answers a held-out row, and what they cost."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.passing import estimated, held_against
from llm_distill.recipe import load
from llm_distill.report.html import render
from tests.conftest import ROOT, Desk
from tests.mock_api import MockApi


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_the_estimate_is_the_mean_over_all_choices_of_k_answers(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    every = [any(some) for some in combinations(right, k)]
    assert estimated(len(right), sum(right), k) == pytest.approx(sum(every) / len(every))


def test_the_estimate_is_the_published_one() -> None:
    """The product that Chen et al. (2021, figure 3) give as code, and 200 answers of which 3 are right, by hand."""

    def published(n: int, c: int, k: int) -> float:
        found = 1.0
        for i in range(n - c + 1, n + 1):
            found *= 1.0 - k / i
        return 1.0 if n - c < k else 1.0 - found

    assert estimated(200, 3, 100) == pytest.approx(1 - (100 * 99 * 98) / (200 * 199 * 198))
    for n, c, k in [(200, 3, 100), (200, 0, 1), (200, 200, 100), (10, 4, 5), (1000, 1, 999)]:
        assert estimated(n, c, k) == pytest.approx(published(n, c, k))


def test_arms_are_held_against_each_other_row_by_row() -> None:
    rows = [f"row {i}" for i in range(40)]
    student = {row: [True, i % 2 == 0, False, False] for i, row in enumerate(rows)}
    teacher = {row: [True, True, True, True] for row in rows} | {"of nobody else": [False] * 4}
    one, two = held_against({"code": {"student": student, "teacher": teacher}}, [2, 1], ["teacher"], 7, 1000)
    assert (one["k"], one["n"], two["k"]) == (1, 40, 2)
    assert one["arms"]["student"]["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert two["arms"]["student"]["value"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert two["arms"]["student"]["low"] < 2 / 3 < two["arms"]["student"]["high"]
    against = two["paired"]["student_vs_teacher"]
    assert against["difference"] == pytest.approx(-1 / 3)
    assert against["low"] < -1 / 3 < against["high"] < 0
    assert (against["losses"], against["wins"], against["test"]) == (40, 0, "sign test")
    assert against["p_holm"] == pytest.approx(2 * against["p"])  # two comparisons, k = 1 and k = 2


@pytest.fixture
def coder(desk: Desk, api: MockApi) -> Desk:
    """Twelve tasks; whether an answer is right depends on how often its row was asked: twice right, then twice wrong."""
    desk.seeds([{"prompt": f"add {i}", "reference": f"assert f() == {i}"} for i in range(12)] + [{"prompt": "more"}])

    def says(body: dict[str, Any], prompt: str) -> str:
        # The seed of a sample is the recipe's and its number, so that the same sample is answered the same.
        wrong = body["temperature"] > 0 and body["seed"] % 4 >= 2
        return f"def f():\n    return {'-1' if wrong else prompt.rsplit(maxsplit=1)[-1]}"

    api.says = says
    return desk


def recipe_of(desk: Desk, api: MockApi, answers: dict[str, Any] | None = None, **keys: Any) -> Any:
    endpoint = {
        "model": "mock-large",
        "base_url": api.url,
        "api_key_env": None,
        "prices_usd": {"prompt": 1, "completion": 1},
    }
    evaluate = {"metrics": ["code"], "metric": "code", "resamples": 200, "pass_at": [1, 3]} | keys
    return desk.recipe(
        task="generate",
        seed=0,
        models={"teacher": {"openai_api": endpoint}, "student": {"scripted": {"default": "def f(): return 3"}}},
        held_out={"share": 0.6},
        answers={"max_tokens": 64} | (answers or {}),
        evaluate=evaluate,
    )


def reported(desk: Desk, summary: Any) -> dict[str, Any]:
    return json.loads((desk.folder / summary["run"] / "report/report.json").read_text())  # type: ignore[no-any-return]


def test_a_run_asks_each_row_several_times_and_nothing_twice(coder: Desk, api: MockApi) -> None:
    recipe = recipe_of(coder, api)
    said = json.loads(coder.llm_distill("check", recipe, "--json"))
    n = said["held_out"]
    counted = {one["roles"][0]: one for one in said["others"] if one["plug"] == "pass_at"}
    assert {role: one["requests"] for role, one in counted.items()} == {"student": 6 * n, "teacher": 6 * n}
    assert counted["teacher"]["cost_usd_at_most"] > 0
    first = coder.here(recipe)
    report = reported(coder, first)
    tested = sum(row["reference"] is not None for row in coder.rows(first, "held_out"))
    assert max(api.asked.values()) == 7  # one greedy answer, and six by chance
    found = {(one["metric"], one["k"]): one for one in report["pass_at"]["found"]}
    assert set(found) == {("code", 1), ("code", 3)}
    assert found["code", 3]["n"] == tested
    # Of six answers, those of the samples 0, 1, 4 and 5 are right.
    assert found["code", 1]["arms"]["teacher"]["value"] == pytest.approx(4 / 6, rel=1e-4)
    assert found["code", 3]["arms"]["teacher"]["value"] == 1
    assert len(coder.rows(first, "eval/pass_at/teacher")) == 6 * n
    assert report["cost"]["stages"]["evaluate pass_at"]["answered"] == 12 * n
    assert report["cost"]["total_usd"] == pytest.approx(
        sum(one["cost_usd"] for one in report["cost"]["stages"].values())
    )
    schema = json.loads((ROOT / "llm_distill/report/schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(report, schema)
    page = render(report)
    assert "pass@3" in page
    before = api.asked.total()
    again = coder.here(recipe, first="evaluate")
    assert (again["asked"], api.asked.total()) == (0, before)
    assert reported(coder, again)["pass_at"] == report["pass_at"]
    more = coder.here(recipe, "evaluate.pass_at={k: [1, 3], samples: 8, arms: [teacher]}")
    assert api.asked.total() - before == 2 * n  # only what is new
    assert [list(one["arms"]) for one in reported(coder, more)["pass_at"]["found"]] == [["teacher"], ["teacher"]]


def test_answers_that_the_comparison_has_are_not_asked_again(coder: Desk, api: MockApi) -> None:
    recipe = recipe_of(coder, api, temperature=0.8, pass_at={"k": [2], "samples": 4, "arms": ["teacher"]})
    summary = coder.here(recipe)
    n = len(coder.rows(summary, "held_out"))
    assert max(api.asked.values()) == 4
    assert reported(coder, summary)["cost"]["stages"]["evaluate pass_at"]["answered"] == 3 * n


def test_an_answer_that_a_metric_cannot_measure_is_wrong(
    coder: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """Compares, and runs out of time over some answers, as may happen in any round."""

        def __init__(self, timeout_s: int) -> None: ...

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __call__(self, reference: str, text: str) -> tuple[float, str | None]:
            return (math.nan, "the comparison took too long") if text == "slow" else (float(text == "right"), None)

    monkeypatch.setattr("llm_distill.scorers.verifiers.Equating", Slow)
    pytest.importorskip("math_verify")
    api.says = lambda body, _prompt: "slow" if body["temperature"] > 0 and body["seed"] % 2 == 0 else "right"
    how = {"k": [1], "samples": 4, "arms": ["base", "teacher"]}
    found = reported(coder, coder.here(recipe_of(coder, api, metrics=["math"], metric="math", pass_at=how)))["pass_at"]
    (one,) = found["found"]
    assert one["n"] > 0
    assert (one["arms"]["teacher"]["value"], one["arms"]["base_zero_shot"]["value"]) == (0.5, 0)


def test_a_budget_holds_for_the_answers_of_pass_at_k(coder: Desk, api: MockApi) -> None:
    whole = coder.here(recipe_of(coder, api), "evaluate.pass_at=null")
    asked, n = api.asked.total(), len(coder.rows(whole, "held_out"))
    # What the comparison asks is known by now, and costs nothing any more.
    cut = coder.here(recipe_of(coder, api, answers={"budget_usd": 0.0002}))
    assert cut["status"] == "fell_short"
    assert "budget" in cut["reason"]
    assert cut["cost_usd"] <= 0.0002
    assert 0 < api.asked.total() - asked < 6 * n


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pass_at": {"k": [1, 5], "temperature": 0}}, "all answers to a row are the same; write one above 0"),
        ({"pass_at": {"k": [1, 5], "samples": 4}}, "pass@5 needs 5 answers a row or more, and samples is 4"),
        ({"pass_at": []}, r"evaluate\.pass_at\.k"),
        ({"pass_at": [0]}, r"evaluate\.pass_at\.k\.0"),
        ({"pass_at": [2, 2]}, "each is named once"),
        ({"pass_at": [2], "metrics": ["chrf"], "metric": "chrf"}, r"add one to evaluate\.metrics that does"),
        ({"pass_at": {"k": [2], "arms": ["student"]}}, "add `train`"),
    ],
)
def test_what_cannot_be_estimated_is_refused(coder: Desk, api: MockApi, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(recipe_of(coder, api, **keys))
