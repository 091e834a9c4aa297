"""An evaluation that is stopped within one of its parts: what was measured stands, and only the rest is asked for again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llm_distill.evals.gate import gate
from llm_distill.report.sections import findings
from tests.conftest import Desk
from tests.evals.rows import right_on
from tests.mock_api import MockApi
from tests.report.test_brief import SCHEMA
from tests.test_speed import timed

ROBUST = {"kinds": ["injection", "case"], "arms": ["teacher"]}
CLOCK = {"rows": 6, "most_concurrency": 1}


def evaluated(desk: Desk, api: MockApi, budget: int, **parts: Any) -> Path:
    """A recipe whose teacher is evaluated with some parts, within so many tokens.

    What another run has paid for counts there.
    """
    answers = {"max_tokens": 8, "budget_tokens": budget, "retries": 0}
    return timed(desk, api, {}, evaluate={"resamples": 100} | parts, answers=answers)


def comparison(summary: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(summary["run"]) / "eval/comparison.json").read_text())  # type: ignore[no-any-return]


def perturbed(api: MockApi) -> int:
    """How many answers to perturbed rows were paid for, before a stop and after it."""
    return sum(n for text, n in api.paid.items() if not text.startswith("row "))


def test_a_budget_that_ends_within_a_part_takes_nothing_from_the_others(desk: Desk, api: MockApi) -> None:
    plain = desk.here(evaluated(desk, api, 100_000, robustness=ROBUST))
    assert plain["status"] == "done"
    short = desk.here(evaluated(desk, api, 200, robustness=ROBUST, speed=CLOCK))
    assert (short["status"], short["owed"]) == ("fell_short", 1)
    assert "evaluate: speed is owed; run again to ask for it." in short["reason"]
    assert "tokens a run is reached" in short["reason"]
    found = comparison(short)
    assert found["robustness"] == comparison(plain)["robustness"]
    assert list(found["owed"]) == ["speed"]
    assert found["speed"]["unmeasured"] == {"teacher": "it is owed: run again to measure it"}
    report = json.loads((Path(short["run"]) / "report/report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (said,) = [said.text for said in findings(report) if "is owed" in said.text]
    assert said.startswith("Speed is owed: ")
    assert "Speed is owed" in (Path(short["run"]) / "report/report.html").read_text()


def test_what_is_owed_is_all_that_is_asked_when_there_is_money_again(desk: Desk, api: MockApi) -> None:
    parts = {"robustness": ROBUST, "speed": CLOCK | {"rows": 200}}
    before = desk.here(evaluated(desk, api, 100_000))
    short = desk.here(evaluated(desk, api, 300, **parts))
    assert "evaluate: robustness and speed are owed; run again to ask for them." in short["reason"]
    assert list(comparison(short)["owed"]) == ["robustness", "speed"]
    assert comparison(short)["arms"] == comparison(before)["arms"]
    paid = dict(api.paid)
    whole = desk.here(evaluated(desk, api, 100_000, **parts))
    assert (whole["status"], whole["owed"]) == ("done", 0)
    found = comparison(whole)
    assert {"robustness", "speed"} <= found.keys()
    assert "owed" not in found
    assert perturbed(api) == sum(of["asked"] for of in found["robustness"]["rows"].values()) > 0, "each of them once"
    assert sum(api.paid.values()) == sum(paid.values()) + whole["asked"]
    assert desk.here(evaluated(desk, api, 100_000, **parts))["asked"] == 0


def test_an_arm_that_answered_no_question_with_a_clock_is_asked_again(desk: Desk, api: MockApi) -> None:
    recipe = evaluated(desk, api, 100_000, speed=CLOCK)
    api.says = lambda _body, prompt: "" if api.paid[prompt] else None  # the evaluation asks each row once
    down = desk.here(recipe)
    assert (down["status"], down["owed"]) == ("done", 1), down
    assert comparison(down)["speed"]["arms"]["teacher"]["n"] == 0
    api.says = lambda _body, _prompt: None
    up = desk.here(recipe)
    assert (up["owed"], comparison(up)["speed"]["arms"]["teacher"]["n"]) == (0, 6)
    assert desk.here(recipe)["asked"] == 0


@pytest.mark.parametrize("cut_off", ["robustness", "speed"])
def test_an_interrupted_evaluation_has_measured_what_came_before(desk: Desk, api: MockApi, cut_off: str) -> None:
    recipe = evaluated(desk, api, 100_000, robustness=ROBUST, speed=CLOCK)
    api.latency_s = 0.05

    def stop(body: dict[str, Any], prompt: str) -> None:
        again = prompt.startswith("row ") and "logprobs" not in body and api.paid[prompt] >= 1
        perturbed = not prompt.startswith("row ")
        if perturbed if cut_off == "robustness" else again:
            api.says = lambda _body, _prompt: None
            os.kill(os.getpid(), signal.SIGINT)

    api.says = stop
    summary = desk.here(recipe)
    assert summary["status"] == "interrupted"
    found = comparison(summary)
    assert found["arms"]["teacher"]["n"] > 0
    assert list(found["owed"]) == (["robustness", "speed"] if cut_off == "robustness" else ["speed"])
    assert ("robustness" in found) == (cut_off == "speed")
    assert set(found["owed"].values()) == {"the evaluation was stopped before it was asked for"}
    again = desk.here(recipe)
    assert (again["status"], "owed" in comparison(again)) == ("done", False)
    assert perturbed(api) == sum(of["asked"] for of in comparison(again)["robustness"]["rows"].values())


def test_a_gate_says_that_what_it_asks_about_is_owed() -> None:
    numbers = {"owed": {"robustness": "the budget of 5 dollars a run is reached.", "general": "stopped"}}
    table = gate({"min_robust_share": 0.9, "max_general_loss": 0.1}, numbers, {"student": right_on(10, 10)})
    notes = {one["name"]: one["note"] for one in table["conditions"]}
    assert not table["ships"]
    assert notes["min_robust_share"] == "it is owed: the budget of 5 dollars a run is reached; run again to measure it"
    assert notes["max_general_loss"] == "it is owed: stopped; run again to measure it"
