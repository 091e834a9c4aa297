"""What a run takes over from others, and what it must not: scores, questions of stages, stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_distill import templates
from tests.conftest import Desk
from tests.mock_api import MockApi
from tests.test_sieve import _judged


def _stamp(desk: Desk, summary: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((desk.folder / summary["run"] / "run.json").read_text())["stages"][stage]
    return found


def test_a_score_holds_for_the_reference_it_was_measured_with(desk: Desk) -> None:
    desk.seeds([{"q": f"{i}?", "a": "7", "b": "8"} for i in range(6)])
    models = {"teacher": {"scripted": {"default": "It is 7."}}}
    kept = []
    for column in "ab":
        prompts = [{"seeds": {"file": "seeds.jsonl", "columns": {"prompt": "q", "reference": column}}}]
        recipe = desk.recipe(task="generate", models=models, prompts=prompts, filter=["empty", {"numeric": {"min": 0}}])
        kept.append({r["score.numeric"] for r in desk.rows(desk.here(recipe, last="filter"), "kept")})
    assert kept == [{1.0}, {0.0}]


def test_a_score_holds_for_the_text_it_was_measured_on(desk: Desk) -> None:
    desk.seeds([{"prompt": f"{i}?"} for i in range(6)])
    models = {"teacher": {"scripted": {"default": "<think>a long thought</think>yes"}}}
    sizes = []
    for how in ("none", "auto"):
        recipe = desk.recipe(
            task="generate", models=models, answers={"max_tokens": 9, "reasoning": how}, filter=[{"length": {"min": 0}}]
        )
        rows = desk.rows(desk.here(recipe, last="filter"), "kept")
        sizes.append({(len(r["text"]), r["score.length"]) for r in rows})
    assert sizes[1] == {(3, 3.0)}, sizes


def test_a_verdict_that_never_came_is_not_taken_for_a_score(desk: Desk, api: MockApi) -> None:
    api.says = lambda _body, prompt: "fine" if "question" in prompt else '{"reason": "x", "declined": "no"}'
    desk.seeds([{"prompt": f"question {i}"} for i in range(8)])
    models = {
        "teacher": {"scripted": {"default": "odd"}},
        "judge": {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}},
    }
    recipe = desk.recipe(task="generate", models=models, filter=["empty"])
    desk.here(recipe, last="filter")
    desk.llm_distill("refilter", "job", "-s", "filter=[{refusal: {judge: judge}}]")
    summary = desk.here(recipe, "filter=[{refusal: {judge: judge}}]", last="filter")
    assert sum(api.asked.values()), "it was never asked"
    assert _stamp(desk, summary, "filter")["owed"] == 0


def test_personal_data_stays_out_of_rows_when_reviewers_have_decided(desk: Desk) -> None:
    desk.seeds([{"prompt": f"good, write to bob{i}@acme-mail.com"} for i in range(4)])
    recipe = desk.recipe(filter=[{"pii": {"do": "redact_prompt"}}])
    before = desk.rows(desk.here(recipe, last="filter"), "kept")
    desk.llm_distill("review", "job", "--out", "sheet.jsonl")
    sheet = desk.folder / "sheet.jsonl"
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    sheet.write_text(
        "".join(json.dumps(row | {"decision": "drop" if not i else ""}) + "\n" for i, row in enumerate(rows))
    )
    desk.llm_distill("review", "job", "--read", "sheet.jsonl")
    after = desk.rows(desk.here(recipe, last="filter"), "kept")
    texts = [[r["messages"][0]["content"] for r in rows] for rows in (before, after)]
    assert [len(some) for some in texts] == [4, 3]
    assert all("[EMAIL]" in text for some in texts for text in some), texts


def test_another_seed_filters_again(desk: Desk) -> None:
    (desk.folder / "seeded.py").write_text(
        "def own(answers, context):\n    return [float(context.seed)] * len(answers)\n"
    )
    desk.seeds([{"prompt": f"good {i}"} for i in range(4)])
    recipe = desk.recipe(filter=[{"seeded:own": {"min": 0}}])
    env: dict[str, Any] = {"PYTHONPATH": str(desk.folder)}
    for seed in (1, 2):
        summary = desk.run(recipe, "--until", "filter", "-s", f"seed={seed}", **env)
        assert {r["score.seeded:own"] for r in desk.rows(summary, "kept")} == {float(seed)}


def test_refilter_of_a_fresh_run_finds_its_verdicts(desk: Desk, api: MockApi) -> None:
    recipe = _judged(desk, api, filter=[{"judging:marks": {"min": 1}}], answers={"max_tokens": 8, "fresh": True})
    desk.run(recipe, "--until", "filter", PYTHONPATH=str(desk.folder))
    out = desk.llm_distill("refilter", "job", "-s", "filter.judging:marks.min=2", PYTHONPATH=str(desk.folder))
    assert "never asked" not in out


def test_a_shipped_text_that_was_edited_counts(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.seeds([{"prompt": f"good {i}"} for i in range(4)])
    recipe = desk.recipe()
    desk.here(recipe, last="filter")
    shipped = tmp_path / "prompts"
    shipped.mkdir()
    for file in templates.BUILT_IN.iterdir():
        if file.is_file():
            (shipped / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(templates, "BUILT_IN", shipped)
    assert not desk.here(recipe, last="filter")["stages"]["answers"]["ran"]
    (shipped / "classify.md").write_text((shipped / "classify.md").read_text() + "\nThink well.\n")
    templates._compiled.cache_clear()
    assert desk.here(recipe, last="filter")["stages"]["answers"]["ran"]


def test_how_reasoning_is_read_changes_prompts_too(desk: Desk) -> None:
    desk.seeds([{"prompt": "a"}])
    models = {"teacher": {"scripted": {"default": "<think>hm</think>1. first\n2. second"}}}
    prompts = [{"topic_tree": {"topics": ["x"], "depth": 0, "per_leaf": 2, "novelty": None}}]
    recipe = desk.recipe(task="generate", models=models, prompts=prompts)
    made = [desk.here(recipe, f"answers.reasoning={how}", last="prompts") for how in ("none", "auto")]
    texts = [{r["messages"][0]["content"] for r in desk.rows(summary, "prompts")} for summary in made]
    assert texts[1] == {"first", "second"}
    assert texts[0] != texts[1]


def test_a_scorer_that_asks_cannot_choose(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": f"good {i}"} for i in range(4)])
    models = {"teacher": {"scripted": {"default": "odd"}}, "judge": {"scripted": {"default": "x"}}}
    recipe = desk.recipe(
        task="generate", models=models,
        answers={"samples": 2, "temperature": 1.0, "best_by": {"refusal": {"judge": "judge", "prefer": "low"}}},
    )  # fmt: skip
    assert "asks" in desk.llm_distill("check", recipe, code=2)


def test_without_one_prompt_because_nobody_answered_it_fell_short(desk: Desk, api: MockApi) -> None:
    api.says = lambda _body, _prompt: None
    models = {"teacher": {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}}
    api.places = 0
    desk.seeds([{"prompt": "a"}])
    prompts = [{"topic_tree": {"topics": ["x"], "depth": 0, "per_leaf": 2, "novelty": None}}]
    recipe = desk.recipe(task="generate", models=models, prompts=prompts, answers={"retries": 0, "max_failed": 1})
    said = desk.llm_distill("run", recipe, code=1)
    assert "1 questions got no answer" in said


def test_what_scorers_asked_is_part_of_the_cost(desk: Desk, api: MockApi) -> None:
    recipe = _judged(desk, api, filter=[{"judging:marks": {"min": 1}}])
    priced = {"prompt": 1000.0, "completion": 1000.0}
    env: dict[str, Any] = {"PYTHONPATH": str(desk.folder)}
    summary = desk.run(recipe, "-s", f"models.judge.openai_api.prices_usd={json.dumps(priced)}", **env)
    cost = json.loads((desk.folder / summary["run"] / "report" / "report.json").read_text())["cost"]
    assert cost["total_usd"] == pytest.approx(summary["cost_usd"])
    assert cost["total_usd"] > 0
    assert cost["stages"]["filter"]["answered"] == 2


def test_an_own_scorer_that_asks_makes_the_estimate_unknown(desk: Desk, api: MockApi) -> None:
    recipe = _judged(desk, api, filter=[{"judging:marks": {"min": 1}}])
    priced = {"prompt": 1.0, "completion": 1.0}
    env: dict[str, Any] = {"PYTHONPATH": str(desk.folder)}
    out = desk.llm_distill("check", recipe, "-s", f"models.judge.openai_api.prices_usd={json.dumps(priced)}", **env)
    assert "nobody can say how many" in out
    assert "unknown: a plug does not say what it asks" in out
