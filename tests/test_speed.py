"""Speed and price: clocks that agree with known latencies, saturation that is found, costs that are counted, nothing reused.

Times are compared where they must hold on a machine that does other things as well: never below the known latency, in the
known order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill import speed, store
from llm_distill.collect import alone
from llm_distill.errors import Interrupted, Rejected, Unavailable, UserError
from llm_distill.estimate import estimate
from llm_distill.evals import timing
from llm_distill.evals.gate import gate
from llm_distill.evals.statistics import FEWEST
from llm_distill.evals.timing import Level, Measured, Shot
from llm_distill.ledger import Ledger
from llm_distill.measure_run import Clocked, alike, measure_run
from llm_distill.models import Model, streaming, wire
from llm_distill.models.footprint import Energy
from llm_distill.models.scripted import ScriptedModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.recipe import load
from llm_distill.recipe_evaluation import Speed
from llm_distill.records import Completion, Message, Request, make_prompt
from llm_distill.report.html import render
from llm_distill.report.pull_request import brief
from llm_distill.report.speed_section import claims, findings
from llm_distill.stages import Run
from tests.conftest import ROOT, Desk, Unwatched
from tests.evals.rows import right_on
from tests.finished import STUDENT, made
from tests.mock_api import MockApi
from tests.models.conftest import byte_level_tokenizer, tiny
from tests.report.test_brief import SCHEMA

SMOLLM = ROOT / "data" / "quickstart" / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = [{"prompt": f"row {i}", "label": "positive"} for i in range(30)]


def hosted(api: MockApi, **knobs: Any) -> dict[str, Any]:
    prices = {"prompt": 1, "completion": 2}
    return {
        "openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None, "prices_usd": prices} | knobs
    }


def timed(desk: Desk, api: MockApi, how: dict[str, Any], **keys: Any) -> Path:
    """A recipe whose teacher's speed is measured."""
    desk.seeds(ROWS)
    evaluate = {"resamples": 100, "speed": {"rows": 6, "most_concurrency": 1} | how}
    words: dict[str, Any] = {"models": {"teacher": hosted(api)}, "held_out": {"share": 0.4}, "evaluate": evaluate}
    return desk.recipe(**words | keys)


def speed_of(summary: dict[str, Any]) -> dict[str, Any]:
    report = json.loads((Path(summary["run"]) / "report/report.json").read_text())
    return report["speed"]  # type: ignore[no-any-return]


def bench(
    desk: Desk, how: Speed, recipe: dict[str, Any] | None = None, kept: Path | None = None, **models: Model
) -> dict[str, Any]:
    """The speed of some models as arms."""
    desk.seeds(ROWS)
    plan = load(desk.recipe(**recipe or {}))
    folder = store.RunFolder(desk.folder / "run")
    folder.path.mkdir(exist_ok=True)
    ledger = Ledger(desk.folder / "ledger.sqlite")
    prompts = [make_prompt((Message("user", f"row {i}"),)) for i in range(20)]
    panels = {arm: alone(arm, model, plan.task.student_view, plan.drawn) for arm, model in models.items()}
    try:
        return speed.measure(Run(plan, folder, ledger, Unwatched()), prompts, panels, how, kept)
    finally:
        ledger.close()


def test_latencies_are_those_of_the_models_and_so_is_their_ratio(desk: Desk) -> None:
    quick, slow = ScriptedModel(default="positive", latency_s=0.02), ScriptedModel(default="negative", latency_s=0.4)
    found = bench(desk, Speed(rows=6, most_concurrency=1), student=quick, teacher=slow)
    student, teacher = found["arms"]["student"], found["arms"]["teacher"]
    assert (student["n"], teacher["n"], student["rows"], student["failed"]) == (6, 6, 6, 0)
    assert student["p50_s"] >= 0.019  # a timer may go off up to a millisecond early
    assert teacher["p50_s"] >= 0.399
    assert teacher["p95_s"] >= teacher["p50_s"]
    assert teacher["answers_per_s"] <= 2.6
    ratio = found["ratios"]["p50_s"]
    assert ratio["value"] == pytest.approx(student["p50_s"] / teacher["p50_s"], rel=1e-4)
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] < 0.5 < 1 / 0.5 < found["ratios"]["answers_per_s"]["value"]
    assert found["ratios"]["prompt_tokens"]["value"] == 1.0
    assert student["missing"]["first_token_s"] == "this kind of model answers in one piece"


def test_the_sweep_ends_where_more_at_a_time_are_no_faster(desk: Desk, api: MockApi) -> None:
    api.latency_s, api.lanes = 0.1, asyncio.Semaphore(2)
    found = speed_of(desk.here(timed(desk, api, {"most_concurrency": 32})))["arms"]["teacher"]
    assert found["saturation"]["ended"] == "more at a time were answered no faster"
    levels = found["levels"]
    assert [level["concurrency"] for level in levels] == [1, 2, 4, 8, 16, 32][: len(levels)]
    assert len(levels) < 6
    assert found["saturation"]["concurrency"] >= 2
    assert found["answers_per_s"] > levels[0]["answers_per_s"] * 1.1
    assert max(level["answers_per_s"] for level in levels) < 1.5 * 2 / 0.1
    assert found["p50_s"] >= 0.099
    assert found["tokens_per_s"] == found["answers_per_s"]  # a word each


def test_everything_is_asked_anew_counted_and_not_measured_twice(desk: Desk, api: MockApi) -> None:
    recipe = timed(desk, api, {})
    (asked,) = json.loads(desk.llm_distill("check", recipe, "--json"))["others"]
    assert (asked["plug"], asked["roles"]) == ("speed", ["teacher"])
    assert asked["cost_usd_at_most"] > 0
    plain = desk.here(timed(desk, api, {}, name="plain", evaluate={"resamples": 100}))
    before, paid = api.paid.total(), plain["cost_usd"]
    first = desk.here(recipe)
    # Every question of the comparison was paid for by the other run; those with a clock are asked all the same.
    assert first["asked"] == api.paid.total() - before > 6
    assert first["asked"] <= asked["requests"]
    assert 0 < first["cost_usd"] <= asked["cost_usd_at_most"]
    report = json.loads((Path(first["run"]) / "report/report.json").read_text())
    assert report["cost"]["stages"]["evaluate speed"]["cost_usd"] == pytest.approx(first["cost_usd"])
    assert report["cost"]["total_usd"] == pytest.approx(paid + first["cost_usd"])
    again = desk.here(recipe, first="evaluate")
    assert (again["asked"], speed_of(again)) == (0, report["speed"])
    said = desk.llm_distill("measure", "job", "--rows", "7", "--most-concurrency", "1")
    assert "Times as fast as the teacher" in said
    assert speed_of(first)["arms"]["teacher"]["n"] == 7
    assert api.paid.total() >= before + first["asked"] + 7
    assert "no arm 'studnt'" in desk.llm_distill("measure", "job", "--arm", "studnt", code=2)
    assert "rows" in desk.llm_distill("measure", "job", "--rows", "2", code=2)


def test_arms_of_a_student_with_a_price_are_counted_before_they_are_asked(desk: Desk, api: MockApi) -> None:
    models = {"teacher": hosted(api), "student": hosted(api, model="mock-small")}
    held = {"file": "held.jsonl"}
    desk.seeds([{"prompt": f"unseen {i}", "label": "positive"} for i in range(12)], "held.jsonl")
    desk.seeds(ROWS)
    recipe = desk.recipe(models=models, held_out=held, evaluate={"resamples": 100})
    plan = load(recipe)
    (base,) = estimate(plan)["others"]
    assert (base["plug"], base["roles"], base["requests"]) == ("evaluate", ["student"], 12)
    summary = desk.here(recipe)
    assert summary["asked"] == 30 + 2 * 12
    spent = sum(row["cost_usd"] for row in desk.rows(summary, "eval/base_zero_shot"))
    assert 0 < spent <= base["cost_usd_at_most"]
    assert plan.evaluate is not None
    more = plan.evaluate.model_copy(update={"students": ["tone", "other"], "previous": "shipped"})
    others = estimate(dataclasses.replace(plan, evaluate=more))["others"]
    assert [one["requests"] for one in others] == [12] * 4, "each of them answers every row"
    free = plan.models | {"student": dataclasses.replace(plan.models["teacher"], function=ScriptedModel, knobs={})}
    assert estimate(dataclasses.replace(plan, models=free))["others"] == []


def test_one_arm_measured_again_leaves_the_others_as_they_are(
    desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.seeds(ROWS)
    tiny("llama", desk.folder / "base", byte_level_tokenizer(), tie_word_embeddings=True)
    models = {"teacher": hosted(api), "student": {"transformers": STUDENT}}
    recipe = timed(desk, api, {"machine_usd_per_hour": 0.9}, models=models, held_out={"share": 0.3})
    whole = desk.here(recipe)
    run, before = store.RunFolder(Path(whole["run"])), speed_of(whole)
    arms = list(before["arms"])
    assert arms == ["base_zero_shot", "teacher"]

    def again(**words: Any) -> dict[str, Any]:
        measure_run(run, desk.folder / "data", {"arms": ["teacher"], **words}, Unwatched())
        return speed_of(whole)

    api.latency_s, asked = 0.15, sum(api.paid.values())
    slower = again()
    assert sum(api.paid.values()) > asked
    assert slower["arms"]["base_zero_shot"] == before["arms"]["base_zero_shot"], "to the last figure, its price too"
    assert slower["arms"]["teacher"]["p50_s"] >= 0.149 > before["arms"]["teacher"]["p50_s"]
    assert (slower["elsewhere"], slower["stale"], "measured" in slower) == ({}, False, False)
    jsonschema.validate(json.loads(run.file("report/report.json").read_text()), SCHEMA)
    fewer = again(rows=7)
    assert (fewer["arms"]["teacher"]["n"], fewer["arms"]["base_zero_shot"]) == (7, before["arms"]["base_zero_shot"])
    assert fewer["elsewhere"] == {"base_zero_shot": f"6 rows, at most 1 at a time, on {before['machine']}"}
    page = run.file("report/report.html").read_text()
    assert "Base, zero-shot was measured before, and otherwise: 6 rows, at most 1 at a time" in page
    monkeypatch.setattr(speed, "machine", lambda: "another machine")
    there = measure_run(run, desk.folder / "data", {"arms": ["base_zero_shot"], "rows": 7}, Unwatched())
    assert there["elsewhere"] == {}, "where a provider's model runs, nobody knows"
    monkeypatch.setattr(speed, "machine", lambda: "a third machine")
    assert again(rows=7)["elsewhere"] == {"base_zero_shot": "7 rows, at most 1 at a time, on another machine"}
    # What is measured before a stop stands, and of the arms after it what was known.
    known = speed_of(whole)["arms"]["teacher"]
    api.says = lambda _body, _prompt: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        measure_run(run, desk.folder / "data", {"rows": 8}, Unwatched())
    api.says = lambda _body, _prompt: None
    found = speed_of(whole)["arms"]
    assert (found["base_zero_shot"]["n"], found["teacher"]) == (8, known)
    # Another title makes another run of the same parts, and what was measured of them goes with it.
    renamed = timed(
        desk, api, {"machine_usd_per_hour": 0.9}, models=models, held_out={"share": 0.3}, report={"title": "B"}
    )
    asked = sum(api.paid.values())
    other = desk.here(renamed)
    assert (other["run"] == whole["run"], sum(api.paid.values()) - asked) == (False, 0)
    assert speed_of(other) == speed_of(whole)
    assert speed_of(other)["arms"]["teacher"]["n"] == 7


def test_what_was_measured_elsewhere_is_not_held_against_what_is_here() -> None:
    def clocked(machine: str | None, rows: int = 9) -> Clocked:
        return Clocked("k", measured([0.1] * 9, here=machine is not None), rows, 1, 300.0, machine)

    assert clocked("a").unlike(clocked("b"))
    assert clocked("a").unlike(clocked("a", rows=8))
    assert not clocked("a").unlike(clocked(None))
    assert alike({"student": clocked("a"), "teacher": clocked("a"), "base_zero_shot": clocked("b")})
    assert alike({"student": clocked("a"), "teacher": clocked(None)})
    assert not alike({"student": clocked("a"), "teacher": clocked("b"), "base_zero_shot": clocked(None)})
    both = {"student": clocked("a").measured, "teacher": clocked("b").measured}
    assert speed.summary(both, Speed())["ratios"]
    assert not speed.summary(both, Speed(), alike=False)["ratios"]
    said = [
        one.text for one in findings({"speed": {"arms": {"student": {"n": 9}}, "elsewhere": {"teacher": "9 rows"}}})
    ]
    assert any(text.startswith("Speed of teacher was measured elsewhere") for text in said)


class Moody(ScriptedModel):
    """Refuses everything while it is `down`."""

    down, asked = True, 0

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        if self.down:
            raise Rejected("not now")
        return await super().complete(request)


def test_an_arm_that_answered_nothing_is_measured_when_it_does(desk: Desk) -> None:
    teacher, how, kept = Moody(default="positive"), Speed(rows=6, most_concurrency=1), desk.folder / "speed.json"
    down = bench(desk, how, kept=kept, teacher=teacher)["arms"]["teacher"]
    assert (down["n"], down["missing"]["p50_s"]) == (0, "no answer came")
    teacher.down = False
    assert bench(desk, how, kept=kept, teacher=teacher)["arms"]["teacher"]["n"] == 6
    asked = teacher.asked
    assert bench(desk, how, kept=kept, teacher=teacher)["arms"]["teacher"]["n"] == 6
    assert teacher.asked == asked, "and is found again from then on"
    longer = {"answers": {"max_tokens": 9}}
    assert bench(desk, how, longer, kept, teacher=teacher)["arms"]["teacher"]["n"] == 6
    assert teacher.asked > asked, "but not where answers may be longer"


def test_a_budget_holds_for_clocks_too(desk: Desk, api: MockApi) -> None:
    answers = {"max_tokens": 8, "budget_tokens": 800}
    plain = desk.here(timed(desk, api, {}, evaluate={"resamples": 100}, answers=answers))
    assert plain["status"] == "done"
    summary = desk.here(timed(desk, api, {"rows": 300}, answers=answers))
    assert summary["status"] == "fell_short"
    assert "800 tokens a run is reached" in summary["reason"]
    assert store.RunFolder(Path(summary["run"])).stamp("evaluate")["owed"] == 1


def test_the_first_token_of_a_stream_comes_before_its_last(desk: Desk, api: MockApi) -> None:
    api.latency_s, api.streams = 0.05, True
    api.says = lambda _body, _prompt: "positive and three more"
    found = speed_of(desk.here(timed(desk, api, {})))["arms"]["teacher"]
    assert found["first_token_s"] >= 0.05
    assert "first_token_s" not in found["missing"]
    streamed = [body for body in api.bodies if body.get("stream")]
    assert len(streamed) == 8
    assert all(body["stream_options"] == {"include_usage": True} for body in streamed)
    assert not any("logprobs" in body for body in streamed)


def test_an_endpoint_that_refuses_stream_options_is_asked_without(desk: Desk, api: MockApi) -> None:
    api.latency_s, api.streams, api.refuses_stream_options, api.last_delta = 0.02, True, True, None
    found = speed_of(desk.here(timed(desk, api, {})))["arms"]["teacher"]
    assert found["first_token_s"] >= 0.019
    assert "first_token_s" not in found["missing"]
    streamed = [body for body in api.bodies if body.get("stream")]
    refused = [body for body in streamed if "stream_options" in body]
    assert (len(refused), len(streamed)) == (1, 9)  # known from the first on


def test_streams_that_all_fail_are_not_taken_for_answers_in_one_piece(desk: Desk, api: MockApi) -> None:
    api.streams, api.says = True, lambda body, _prompt: "" if body.get("stream") else None
    found = speed_of(desk.here(timed(desk, api, {}, answers={"max_tokens": 8, "retries": 0})))["arms"]["teacher"]
    assert found["missing"]["first_token_s"] == "every question that asked for a stream failed"


def _lines(*events: str) -> AsyncIterator[bytes]:
    async def each() -> AsyncIterator[bytes]:
        for event in events:
            yield f"data: {event}\n".encode()
            yield b"\n"

    return each()


def _gathered(*events: str) -> tuple[bytes, float | None]:
    return asyncio.run(streaming.gathered(_lines(*events)))


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6).filter(any))
@settings(max_examples=40, deadline=None)
def test_a_stream_is_put_together_as_it_was_said(parts: list[str]) -> None:
    chunks = [json.dumps({"choices": [{"delta": {"content": part}}]}) for part in parts]
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]})
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "model": "m"})
    body, first = _gathered(*chunks, end, usage, "[DONE]")
    whole = wire.completion(body)
    assert (whole.text, whole.finish_reason, first is not None) == ("".join(parts), "length", True)
    assert (whole.prompt_tokens, whole.completion_tokens, whole.model) == (3, 4, "m")
    with pytest.raises(Unavailable, match="no choices"):  # broken off before its end
        wire.completion(_gathered(*chunks)[0])


def test_a_stream_that_reports_an_error_is_one() -> None:
    said = json.dumps({"error": {"message": "out of memory", "code": "500"}})
    with pytest.raises(Unavailable, match="out of memory"):
        wire.completion(_gathered(json.dumps({"choices": [{"delta": {"content": "a"}}]}), said)[0])
    with pytest.raises(Unavailable):
        wire.completion(_gathered("{not json")[0])


def test_a_delta_may_be_null() -> None:
    said = {"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"delta": None, "finish_reason": "stop"}]}
    body, first = _gathered(*map(json.dumps, said), "[DONE]")
    assert (wire.completion(body).text, first is not None) == ("a", True)


def test_choices_beside_the_usage_may_be_null() -> None:
    said = {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}
    used = {"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    whole = wire.completion(_gathered(json.dumps(said), json.dumps(used), "[DONE]")[0])
    assert (whole.text, whole.prompt_tokens, whole.completion_tokens) == ("a", 3, 4)


@pytest.mark.parametrize("form", ["{}", "data: {}\n\n", ": alive\n\ndata: {}\n\ndata: [DONE]\n\n"])
def test_a_whole_answer_that_is_called_a_stream_is_an_answer(form: str) -> None:
    said = {"choices": [{"message": {"content": "a" * 3_000_000}, "finish_reason": "stop"}], "usage": None}
    body = form.format(json.dumps(said)).encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 18):
            yield body[start : start + (1 << 18)]

    assert wire.completion(asyncio.run(streaming.gathered(parts()))[0]).text == "a" * 3_000_000


def test_a_few_answers_say_nothing_of_the_slowest() -> None:
    few = timing.arm(measured([1.0] * 6), None)  # five with a clock
    assert few["p95_s"] is None
    assert few["missing"]["p95_s"].startswith("5 answers are too few")
    assert "p95_s" not in few["spread"]
    assert timing.arm(measured([1.0] * 7), None)["p95_s"] == pytest.approx(1)
    none = timing.arm(Measured(1, False, [], [], [], ""), None)
    whole = {"student": right_on(20, 20)}  # which took no time to speak of
    for of, why in ((few, "5 answers are too few"), (none, "no answer came")):
        table = gate({"max_p95_seconds": 9, "max_usd_per_1000": 9}, {"speed": {"arms": {"student": of}}}, whole)
        notes = {one["name"]: (one["holds"], one["note"]) for one in table["conditions"]}
        assert not notes["max_p95_seconds"][0]
        assert why in notes["max_p95_seconds"][1]
    assert notes["max_usd_per_1000"] == (False, "none of its questions with a clock was answered; measure it again")
    assert "p95_s" not in timing.ratios(measured([1.0] * 6), measured([1.0] * 6), {"student": few, "teacher": few})


def shots(seconds: list[float], usd: float | None = 0.001) -> list[Shot]:
    ends = np.cumsum(seconds)
    return [
        Shot(f"r{i}", float(end - s), float(end), s / 2, 10, 5, usd)
        for i, (s, end) in enumerate(zip(seconds, ends, strict=True))
    ]


def measured(seconds: list[float], *, here: bool = False, usd: float | None = 0.001, **more: Any) -> Measured:
    each = shots(seconds, usd)
    return Measured(1, here, each[1:], [], [Level(1, each)], "", **more)


@given(st.lists(st.floats(0.01, 5), min_size=4, max_size=12), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_an_arm_so_many_times_as_slow_has_that_ratio_without_spread(seconds: list[float], factor: float) -> None:
    student, teacher = measured(seconds), measured([factor * s for s in seconds])
    numbers = {"student": timing.arm(student, None), "teacher": timing.arm(teacher, None)}
    found = timing.ratios(student, teacher, numbers)
    told = len(student.alone) >= FEWEST  # of fewer there is no 95th percentile
    assert ("p95_s" in found) == told
    for name in ("p50_s", "first_token_s", *(["p95_s"] if told else [])):
        assert found[name]["value"] == pytest.approx(1 / factor)
        # Drawn from the same rows of both, the ratio does not spread, however much the times do.
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((1 / factor, 1 / factor))
    assert found["answers_per_s"]["value"] == pytest.approx(factor)
    assert found["answers_per_s"]["low"] <= factor * (1 + 1e-9)
    assert found["usd_per_1000"]["value"] == pytest.approx(1)
    assert numbers["student"]["answers_per_s"] == pytest.approx((len(seconds) - 1) / sum(seconds[1:]))


def test_throughput_is_counted_in_blocks_after_the_first_are_through() -> None:
    ends = [9.0] * 4 + [10.0] * 4 + [11.0] * 4 + [13.0] * 4  # in fours, after a long beginning
    level = Level(4, [Shot(str(i), 0.0, end, None, 1, 3) for i, end in enumerate(ends)])
    found = timing.rate(level)
    assert found is not None
    assert found.seconds.tolist() == [1.0, 1.0, 2.0]
    assert timing.per_second(level) == 3.0
    answers, tokens = found.draws(0)
    assert tokens == pytest.approx(3 * answers)
    assert timing.rate(Level(4, level.shots[:4])) is None


def test_money_is_tokens_elsewhere_and_hours_here() -> None:
    local, elsewhere = measured([0.5] * 9, here=True, usd=0.0), measured([0.5] * 9)
    assert timing.arm(elsewhere, 3.6)["usd_per_1000"] == pytest.approx(1.0)
    assert timing.arm(local, 3.6)["usd_per_1000"] == pytest.approx(0.5)  # a thousand half seconds at a mil each
    assert timing.arm(local, None)["missing"]["usd_per_1000"] == "machine_usd_per_hour is not stated"
    unknown = timing.arm(measured([0.5] * 9, usd=None), 1.0)
    assert (unknown["usd_per_1000"], "add prices_usd" in unknown["missing"]["usd_per_1000"]) == (None, True)
    both = {"student": timing.arm(local, 3.6), "teacher": timing.arm(elsewhere, 3.6)}
    assert timing.ratios(local, elsewhere, both)["usd_per_1000"]["value"] == pytest.approx(0.5)


def test_claims_stand_beside_what_was_measured() -> None:
    def verdicts(p50: float, faster: tuple[float, float, float], kept: float | None) -> dict[str, str]:
        ratio = dict(zip(("value", "high", "low"), (1 / x for x in faster), strict=True))
        arms = {"student": {"p50_s": p50, "spread": {"p50_s": {"low": 0.9 * p50, "high": 1.1 * p50}}}}
        report = {
            "kept_share": {"value": kept, "low": kept, "high": kept},
            "speed": {"arms": arms, "ratios": {"p50_s": ratio}},
        }
        return {one["name"]: one["verdict"] for one in claims(report)}

    good = verdicts(0.05, (20, 12, 30), 0.95)
    assert good == {"kept": "reached", "faster": "reached", "cheaper": "not measured", "seconds": "reached"}
    found = verdicts(0.095, (6, 3, 9), 0.5)
    assert (found["kept"], found["faster"], found["seconds"]) == (
        "not reached",
        "within the spread",
        "within the spread",
    )
    found = verdicts(0.2, (2, 1, 3), None)
    assert (found["kept"], found["faster"], found["seconds"]) == ("not measured", "not reached", "not reached")


def test_the_gate_takes_the_clock_where_there_is_one() -> None:
    arm = timing.arm(measured([0.2] * 21, here=True, usd=0.0), 3.6)
    numbers: dict[str, Any] = {"speed": {"arms": {"student": arm}, "machine_usd_per_hour": 3.6}}
    arms = {"student": right_on(10, 10)}

    def judged(numbers: dict[str, Any], **ship: float) -> dict[str, Any]:
        (condition,) = gate(ship, numbers, arms)["conditions"]
        return condition  # type: ignore[no-any-return]

    found = judged(numbers, max_p95_seconds=0.1)
    assert (found["value"], found["holds"]) == (pytest.approx(0.2), False)
    assert "one answer at a time, 20 of them" in found["note"]
    assert judged(numbers, max_usd_per_1000=0.19)["value"] == pytest.approx(0.2)
    assert judged(numbers, max_usd_per_1000=0.5, machine_usd_per_hour=7.2)["value"] == pytest.approx(0.4)
    stale = {"speed": numbers["speed"] | {"stale": True}}
    assert "one answer at a time, 20" not in judged(stale, max_p95_seconds=0.1)["note"]


def test_energy_is_what_the_counters_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("llm_distill.models.footprint.find_spec", lambda _name: None)
    assert Energy(tmp_path).since() == (None, "no counter")
    for name, joules in (("intel-rapl:0", 5.0), ("intel-rapl:0:0", 4.0), ("intel-rapl:1", 99.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (tmp_path / name / "max_energy_range_uj").write_text(f"{round(100 * 1e6)}\n")
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("8000000")
    (tmp_path / "intel-rapl:1/energy_uj").write_text("1000000")  # it began again
    spent = energy.since()
    assert spent.of == "RAPL, all processor packages"
    assert spent.value == pytest.approx(3.0 + 2.0)
    read = [7000, 9500]
    counts = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=lambda _gpu: read.pop(0),  # millijoules
    )
    monkeypatch.setitem(sys.modules, "pynvml", counts)
    monkeypatch.setattr("llm_distill.models.footprint.find_spec", lambda _name: object())
    assert Energy(tmp_path).since() == (2.5, "NVML, all GPUs")


def test_a_local_student_is_measured_with_its_memory_and_its_files(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    home = tmp_path_factory.getbasetemp()
    made(home, "lora")
    shutil.copytree(home / "finished-lora", tmp_path, dirs_exist_ok=True)
    desk = Desk(tmp_path)
    (run,) = (tmp_path / "data/runs/job").iterdir()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"recipe_file": str(tmp_path / "job.yaml")}))
    said = desk.llm_distill(
        "measure", "job", "--rows", "6", "--most-concurrency", "4", "--machine-usd-per-hour", "0.5", "--json"
    )
    found = json.loads(said)
    student, base = found["arms"]["student"], found["arms"]["base_zero_shot"]
    assert student["here"]
    assert 0 < student["first_token_s"] <= student["p95_s"]
    weights = [*(tmp_path / "base").iterdir(), *(run / "student").glob("adapter_*")]
    assert student["disk_bytes"] == sum(file.stat().st_size for file in weights)
    assert student["disk_bytes"] > base["disk_bytes"]
    assert student["peak_bytes"] > 10_000_000
    assert student["usd_per_1000"] == pytest.approx(1000 / student["answers_per_s"] * 0.5 / 3600, rel=1e-4)
    assert student["usd_per_1000_alone"] == pytest.approx(1000 * student["mean_s"] * 0.5 / 3600, rel=1e-4)
    assert student["completion_tokens"] >= 1
    report = json.loads((run / "report/report.json").read_text())
    assert report["speed"]["arms"] == found["arms"]
    assert not report["speed"]["stale"]
    page, md = render(report), brief(report)
    for text in ("What is usually claimed of distilled models", "under 100", "Throughput at"):
        assert text in page
    assert "### Speed and price of an answer" in md
    (run / "student" / "note.txt").write_text("another student")
    from llm_distill.report.build import build

    assert build(store.RunFolder(run))["speed"]["stale"]


@pytest.mark.weights
@pytest.mark.skipif(not SMOLLM.is_file(), reason="needs data/quickstart/prepare.py")
def test_a_real_model_reads_before_it_writes(desk: Desk) -> None:
    student = TransformersModel(model=str(SMOLLM), device="cpu")
    words = {"task": "generate", "answers": {"max_tokens": 12}}
    found = bench(desk, Speed(rows=6, most_concurrency=2, machine_usd_per_hour=1.0), words, student=student)
    arm = found["arms"]["student"]
    assert (arm["n"], arm["rows"], arm["failed"]) == (6, 6, 0)
    assert 1 < arm["completion_tokens"] <= 12 < arm["prompt_tokens"]
    assert 0 < arm["first_token_s"] < arm["p50_s"] <= arm["p95_s"]
    assert arm["disk_bytes"] == SMOLLM.stat().st_size
    assert arm["peak_bytes"] > 4 * 134_000_000  # its parameters, in float32
    assert [level["concurrency"] for level in arm["levels"]] == [1, 2]
    assert arm["usd_per_1000"] == pytest.approx(1000 / arm["answers_per_s"] / 3600, rel=1e-4)
    assert found["ratios"] == {}


def test_who_has_no_speed_of_its_own_says_why(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    how = {"resamples": 100, "speed": {"rows": 6}}
    both = {"a": hosted(api), "b": hosted(api, model="mock-small")}
    report = speed_of(desk.here(desk.recipe(models=both, teachers=["a", "b"], held_out={"share": 0.4}, evaluate=how)))
    assert "several models answer together" in report["unmeasured"]["teacher"]
    assert not report["arms"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"arms": ["studnt"]}, "evaluate.speed.arms: there is no arm 'studnt'. Did you mean 'student'"),
        ({"rows": 2}, "evaluate.speed.rows"),
        ({"rowz": 9}, "rowz"),
    ],
)
def test_a_measurement_that_cannot_be_meant_is_refused(desk: Desk, how: dict[str, Any], said: str) -> None:
    desk.seeds(ROWS)
    with pytest.raises(UserError, match=said):
        load(desk.recipe(held_out={"share": 0.4}, evaluate={"speed": how}))
