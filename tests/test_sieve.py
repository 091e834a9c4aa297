"""The filters in their order: who measures what, what is kept from earlier runs, what a filter does to groups of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill import sieve
from llm_distill.errors import UserError
from llm_distill.evals.statistics import difference, proportion
from llm_distill.fairness import fairness, unfair
from llm_distill.plugs import Plug, Spec
from llm_distill.records import Answer
from llm_distill.scorers import Context, Filter, Scored
from llm_distill.tasks import Task
from tests.conftest import Desk
from tests.mock_api import MockApi
from tests.test_mixing import row

TASK = Task(kind="generate")
CONTEXT = Context(TASK)
CALLS: list[int] = []


def answers(n: int, **tags: str) -> list[Answer]:
    return [Answer(row(f"prompt {i}", **tags), "x" * i, "ok", requests=(f"key{i}",)) for i in range(n)]


def size(given: Sequence[Answer]) -> list[float]:
    CALLS.append(len(given))
    return [float(len(a.text)) for a in given]


def odd(given: Sequence[Answer]) -> Scored:
    return Scored([math.nan if len(a.text) % 2 else 1.0 for a in given], [a.text or None for a in given])


def filter_(function: Any, name: str = "own", **bounds: Any) -> Filter:
    return Filter(name, Plug(Spec(name), function, {}), bounds.pop("min", None), bounds.pop("max", None), **bounds)


def test_each_filter_sees_what_those_before_it_left() -> None:
    CALLS.clear()
    filters = [filter_(size, "a", min=3), filter_(size, "b", max=7)]
    found = sieve.sieve(answers(10), filters, {answers(10)[9].prompt.row_id: "refused"}, CONTEXT, {})
    assert CALLS == [9, 6]
    assert [(s["rows_in"], s["dropped"], s["rows_out"]) for s in found.funnel] == [(9, 3, 6), (6, 1, 5)]
    assert sorted(found.dropped.values()) == ["a", "a", "a", "b", "refused"]
    assert answers(10)[0].prompt.row_id not in found.scores["b"]


def test_what_cannot_be_measured_stays_unless_told_otherwise() -> None:
    kept = sieve.sieve(answers(4), [filter_(odd, min=1)], {}, CONTEXT, {})
    assert (kept.dropped, kept.funnel[0]["unmeasured"]) == ({}, 2)
    strict = sieve.sieve(answers(4), [filter_(odd, min=1, unmeasured="drop")], {}, CONTEXT, {})
    assert len(strict.dropped) == 2
    assert strict.why["own"][answers(4)[3].prompt.row_id] == "xxx"


def test_scores_of_single_rows_are_taken_over_and_others_never() -> None:
    known = {"own": {(a.prompt.row_id, a.requests): (100.0, None) for a in answers(6)[:4]}}
    CALLS.clear()
    sieve.sieve(answers(6), [filter_(size, max=50)], {}, CONTEXT, known)
    assert CALLS == [6], "it may look at the whole set"
    size.row_local = True  # type: ignore[attr-defined]
    try:
        CALLS.clear()
        found = sieve.sieve(answers(6), [filter_(size, max=50)], {}, CONTEXT, known)
    finally:
        del size.row_local  # type: ignore[attr-defined]
    assert [2, 0][: len(CALLS)] == CALLS
    assert sum(CALLS) == 2
    assert len(found.dropped) == 4


def slow(given: Sequence[Answer]) -> Scored:
    import os
    import time

    time.sleep(0.002 * len(given))
    return Scored([float(len(a.text)) for a in given], [str(os.getpid()) for _ in given])


slow.row_local = True  # type: ignore[attr-defined]


def test_a_slow_scorer_is_spread_over_processes_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "_CHUNK", 20)
    monkeypatch.setattr(sieve, "_PATIENCE_S", 0.1)
    rows = answers(200)
    found = sieve.sieve(rows, [filter_(slow, min=0)], {}, CONTEXT, {})
    assert list(found.scores["own"].values()) == [float(len(a.text)) for a in rows]
    monkeypatch.setattr(sieve, "_PATIENCE_S", 1000.0)
    here = sieve.sieve(rows, [filter_(slow, min=0)], {}, CONTEXT, {})
    assert here.scores == found.scores
    assert len(set(here.why["own"].values())) == 1
    assert len(set(found.why["own"].values())) > 1


def test_a_scorer_that_gives_too_few_numbers_is_named() -> None:
    with pytest.raises(UserError, match=r"gave \(1,\) scores for 3 answers"):
        sieve.sieve(answers(3), [filter_(lambda given: [1.0], min=0)], {}, CONTEXT, {})
    with pytest.raises(UserError, match="one each is due"):
        sieve.sieve(answers(3), [filter_(lambda given: Scored([1.0] * 3, ["one"]), min=0)], {}, CONTEXT, {})


@given(n=st.integers(1, 80), m=st.integers(1, 80), data=st.data())
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    there, back = difference(a, n, b, m), difference(b, m, a, n)
    assert there.low - 1e-12 <= a / n - b / m <= there.high + 1e-12
    assert there.low >= -1 - 1e-9
    assert there.high <= 1 + 1e-9
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_the_interval_is_newcombes() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10
    found = difference(56, 70, 48, 80)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-4)
    found = difference(9, 10, 3, 10)
    assert (found.low, found.high) == pytest.approx((0.1705, 0.8090), abs=5e-4)
    assert proportion(0, 10).low == 0


def grouped() -> list[Answer]:
    texts = {"a": ["bad"] * 30 + ["fine"] * 20, "b": ["bad"] * 2 + ["fine"] * 48}
    return [Answer(row(f"{g} number {i}", lang=g), t, "ok") for g, said in texts.items() for i, t in enumerate(said)]


def test_a_filter_that_takes_more_of_one_group_is_found_out() -> None:
    found = sieve.sieve(
        grouped(), [filter_(lambda given: [float(a.text == "bad") for a in given], max=0)], {}, CONTEXT, {}
    )
    parts = {(p["by"], p["value"]): p for p in fairness(grouped(), found)}
    a = parts["lang", "a"]
    assert (a["rows"], a["dropped"], a["rate"][0], a["difference"][0]) == (50, 30, 0.6, 0.56)
    assert a["unfair"]
    assert not parts["lang", "b"]["unfair"]
    (line,) = [line for line in unfair(list(parts.values())) if "lang" in line]
    assert "own drops 60.0% of the rows with lang = a, 56.0 points more" in line


def test_drop_rates_are_compared_by_language() -> None:
    texts = {
        "en": "please write a short letter to my landlord about the heating, number",
        "de": "bitte schreibe einen kurzen Brief an meinen Vermieter wegen der Heizung, Nummer",
    }
    rows = [Answer(row(f"{t} {i}"), lang, "ok") for lang, t in texts.items() for i in range(30)]
    found = sieve.sieve(rows, [filter_(lambda given: [float(a.text == "de") for a in given], max=0)], {}, CONTEXT, {})
    parts = {(p["by"], p["value"]): p for p in fairness(rows, found)}
    assert parts["language", "de"]["unfair"]
    assert parts["language", "en"]["dropped"] == 0


def test_no_language_is_identified_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.fairness._languages", lambda _answers: pytest.fail("nothing was dropped"))
    found = sieve.sieve(grouped(), [filter_(size, min=0)], {}, CONTEXT, {})
    assert fairness(grouped(), found) == []


def test_a_filter_that_takes_alike_is_not_blamed() -> None:
    rows = [Answer(row(f"{i}", lang="ab"[i % 2]), "bad" if i % 10 < 2 else "fine", "ok") for i in range(400)]
    found = sieve.sieve(rows, [filter_(lambda given: [float(a.text == "bad") for a in given], max=0)], {}, CONTEXT, {})
    assert not any(part["unfair"] for part in fairness(rows, found))


JUDGE = """
import json
from llm_distill.plugs import Role
from llm_distill.records import Message, Request, Sampling
from llm_distill.scorers import Scored

def marks(answers, context, *, model: Role = "judge"):
    asked = [Request((Message("user", "mark this: " + a.text),), Sampling(max_tokens=4)) for a in answers]
    entries = context.ask(model, asked)
    return Scored([float(len(e.text)) if e.status == "ok" else float("nan") for e in entries], [e.text for e in entries])
"""


def _judged(desk: Desk, api: MockApi, **keys: Any) -> Path:
    (desk.folder / "judging.py").write_text(JUDGE)
    api.says = lambda _body, _prompt: "fine"
    desk.seeds([{"prompt": f"question {i}", "tags": {"lang": "ab"[i % 2]}} for i in range(20)])
    judge = {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None}}
    models = {"teacher": {"scripted": {"rules": {"[02468]$": "even"}, "default": "odd"}}, "judge": judge}
    return desk.recipe(task="generate", models=models, **keys)


def test_a_scorer_asks_through_the_ledger_once_and_its_bound_moves_for_nothing(desk: Desk, api: MockApi) -> None:
    recipe = _judged(desk, api, filter=["empty", {"judging:marks": {"min": 1}}])
    summary = desk.run(recipe, "--until", "filter", PYTHONPATH=str(desk.folder))
    asked = sum(api.asked.values())
    assert asked == 2, "two different answers, so two questions for twenty rows"
    kept = desk.rows(summary, "kept")
    assert {(r["score.judging:marks"], r["why.judging:marks"]) for r in kept} == {(4.0, "fine")}
    out = desk.llm_distill(
        "refilter", "job", "-s", "filter.judging:marks.min=1000", code=1, PYTHONPATH=str(desk.folder)
    )
    assert "every row was dropped" in out
    out = desk.llm_distill("refilter", summary["run"], "-s", "filter.judging:marks.min=2", PYTHONPATH=str(desk.folder))
    assert "judging:marks" in out
    assert "kept 20 rows, 20 before" in out
    assert sum(api.asked.values()) == asked
    again = desk.run(recipe, "--until", "filter", "-s", "filter.judging:marks.min=2", PYTHONPATH=str(desk.folder))
    assert sum(api.asked.values()) == asked
    assert len(desk.rows(again, "kept")) == 20


def test_refilter_never_asks_and_says_what_was_never_asked(desk: Desk, api: MockApi) -> None:
    desk.run(_judged(desk, api, filter=["empty"]), "--until", "filter", PYTHONPATH=str(desk.folder))
    out = desk.llm_distill("refilter", "job", "-s", "filter=[{judging:marks: {min: 1}}]", PYTHONPATH=str(desk.folder))
    assert "20 questions of scorers were never asked" in out
    assert not sum(api.asked.values())
    assert "refilter changes filters alone" in desk.llm_distill(
        "refilter", "job", "-s", "seed=4", code=2, PYTHONPATH=str(desk.folder)
    )


def test_unanswered_questions_of_a_scorer_are_owed(desk: Desk, api: MockApi) -> None:
    recipe = _judged(
        desk, api, filter=[{"judging:marks": {"min": 1}}], answers={"max_tokens": 8, "retries": 0, "max_failed": 1}
    )
    api.faults = {"mark this: odd": ["500"]}
    summary = desk.run(recipe, "--until", "filter", PYTHONPATH=str(desk.folder))
    record = json.loads((desk.folder / summary["run"] / "run.json").read_text())
    assert record["stages"]["filter"]["owed"] == 10
    summary = desk.run(recipe, "--until", "filter", PYTHONPATH=str(desk.folder))
    record = json.loads((desk.folder / summary["run"] / "run.json").read_text())
    assert record["stages"]["filter"]["owed"] == 0
    assert len(desk.rows(summary, "kept")) == 20


@pytest.mark.parametrize(("reasoning", "said"), [("auto", "fine"), ("none", "<think>hm</think>\nfine")])
def test_what_models_think_is_none_of_what_they_say(desk: Desk, api: MockApi, reasoning: str, said: str) -> None:
    recipe = _judged(
        desk, api, filter=[{"judging:marks": {"min": 1}}], answers={"max_tokens": 8, "reasoning": reasoning}
    )
    api.says = lambda _body, _prompt: "<think>hm</think>\nfine"
    summary = desk.run(recipe, "--until", "filter", PYTHONPATH=str(desk.folder))
    assert {row["why.judging:marks"] for row in desk.rows(summary, "kept")} == {said}
