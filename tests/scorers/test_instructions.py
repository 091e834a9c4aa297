"""Verifiable instructions: the harness's own verdicts, rows in the published format, and what is refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import pytest

from llm_distill.errors import UserError
from llm_distill.evals.following import following
from llm_distill.recipe import load
from llm_distill.records import Answer
from llm_distill.report.html import render
from llm_distill.scorers.instructions import check_rows, instructions
from llm_distill.seeds import read_rows
from tests.conftest import ROOT, Desk

ROWS: list[dict[str, Any]] = [
    {
        "key": 1000,
        "prompt": "Name three rivers. Use no commas, and end with: That is all.",
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{"num_words": None}, {"end_phrase": "That is all."}],
    },
    {
        "key": 1001,
        "prompt": "Tell me of tea in four words or more.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 4, "relation": "at least"}],
    },
    {
        "key": 1002,
        "prompt": "Answer in capital letters, in English.",
        "instruction_id_list": ["change_case:english_capital"],
        "kwargs": [{}],
    },
    {
        "key": 1003,
        "prompt": "Answer in JSON.",
        "instruction_id_list": ["detectable_format:json_format"],
        "kwargs": [{}],
    },
]
SAID = [
    "Rhine Elbe Oder. That is all.\nI hope this helps!",  # with its last line it does not end as told
    "Tea is hot.",
    "THE RIVER RUNS SLOWLY THROUGH THE GREEN VALLEY AND ON TO THE SEA.",
    "*{}*",
]


def answers(desk: Desk, said: list[str], **fields: Any) -> list[Answer]:
    prompts = read_rows(desk.seeds(ROWS))
    return [Answer(p, text, **({"status": "ok"} | fields)) for p, text in zip(prompts, said, strict=True)]


def test_every_number_is_the_harnesss_own(desk: Desk) -> None:
    rows = answers(desk, SAID)
    instructions(rows)  # which loads the harness without fetching anything
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results

    theirs = [process_results(row, [text]) for row, text in zip(ROWS, SAID, strict=True)]
    found = instructions(rows)
    assert list(found.values) == [float(one["prompt_level_strict_acc"]) for one in theirs] == [0, 0, 1, 0]
    assert list(instructions(rows, how="loose").values) == [float(one["prompt_level_loose_acc"]) for one in theirs]
    assert list(instructions(rows, how="loose").values) == [1, 0, 1, 1]
    assert list(found.why) == [
        "not followed: startend:end_checker",
        "not followed: length_constraints:number_words",
        None,
        "not followed: detectable_format:json_format",
    ]
    numbers = following({"student": rows}, 7, 500)["student"]
    assert numbers["n"] == 4
    for how in ("strict", "loose"):
        each = [one[f"inst_level_{how}_acc"] for one in theirs]
        assert numbers[f"instruction_{how}"]["value"] == pytest.approx(agg_inst_level_acc(each))
        whole = [one[f"prompt_level_{how}_acc"] for one in theirs]
        assert numbers[f"prompt_{how}"]["value"] == pytest.approx(sum(whole) / 4)
    assert numbers["kinds"]["punctuation:no_comma"]["value"] == 1
    assert numbers["kinds"]["startend:end_checker"]["value"] == 0


def test_a_failed_row_follows_nothing_and_a_row_without_instructions_does_not_count(desk: Desk) -> None:
    failed = following({"student": answers(desk, SAID, status="failed")}, 7, 500)["student"]
    assert [failed[f"{of}_{how}"]["value"] for of in ("prompt", "instruction") for how in ("strict", "loose")] == [
        0
    ] * 4
    (plain,) = read_rows(desk.seeds([{"prompt": "x", "reference": "{}"}]))
    assert following({"student": [Answer(plain, "y", status="ok")]}, 7, 500)["student"]["n"] == 0
    assert instructions([Answer(plain, "y", status="ok")]).why == ["no instructions"]


def test_a_handful_of_rows_that_follow_everything_prove_little(desk: Desk) -> None:
    both = {"instruction_id_list": ["punctuation:no_comma"] * 2, "kwargs": [{}] * 2}
    one = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    prompts = read_rows(desk.seeds([{"prompt": "a"} | both, *({"prompt": f"b{i}"} | one for i in range(4))]))
    found = following({"student": [Answer(p, "Yes.", status="ok") for p in prompts]}, 7, 2000)["student"]
    for how in ("strict", "loose"):
        share = found[f"instruction_{how}"]
        assert (share["value"], share["high"], share["n"]) == (1, 1, 5)
        assert share["low"] < 0.8, "as the share of rows, of which five are not many"


def test_json_that_is_nested_too_deeply_to_be_read_is_none(desk: Desk) -> None:
    deep = [*SAID[:3], "[" * 100_000]
    numbers = following({"student": answers(desk, deep)}, 7, 500)["student"]
    assert numbers["kinds"]["detectable_format:json_format"]["value"] == 0
    assert instructions(answers(desk, deep)).values[3] == 0


def test_languages_are_told_the_same_every_time(desk: Desk) -> None:
    row = {"prompt": "p", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    (prompt,) = read_rows(desk.seeds([row]))
    said = [Answer(prompt, text, status="ok") for text in ("Der Fluss ist lang.", "ok", "The river is long.")]
    first = list(instructions(said).values)
    assert (first[0], first[2]) == (1, 0)
    assert all(list(instructions(said).values) == first for _ in range(10))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]},
            "there is no instruction 'punctuation:no_coma'",
        ),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "1 instructions and 0 kwargs"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 0, "relation": "at least"}],
            },
            "lack 'num_words'",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "which it does not take",
        ),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"words": 3}]}, "which it does not take"),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["tea", "f(x"]}]},
            r"which it does not take: missing \)",
        ),
        (
            {
                "instruction_id_list": ["detectable_format:multiple_sections"],
                "kwargs": [{"section_spliter": "*", "num_sections": 2}],
            },
            "which it does not take: nothing to repeat",
        ),
        ({"reference": "free text"}, "no row has any"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "stand together"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "reference": "x"}, "which has no other"),
        ({"key": 3}, "stand together"),
    ],
)
def test_what_cannot_be_verified_is_refused(desk: Desk, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_rows(list(read_rows(desk.seeds([{"prompt": "p"} | row]))))


def test_data_that_are_missing_are_named_and_not_fetched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_a, **_k: pytest.fail("something is fetched"))
    row = {
        "prompt": "p",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"num_sentences": 3, "relation": "at least"}],
    }
    with pytest.raises(UserError, match=r"python -m nltk\.downloader punkt_tab"):
        check_rows(list(read_rows(desk.seeds([row]))))


def test_a_run_is_measured_filtered_and_compared(desk: Desk) -> None:
    more = [{**row, "prompt": f"{row['prompt']} ({i})", "key": i} for i in range(6) for row in ROWS]
    desk.seeds(more)
    loud = {"capital": SAID[2], "JSON": "{}", "rivers": "Rhine Elbe Oder. That is all.", "tea": "Tea is hot."}
    recipe = desk.recipe(
        task="generate",
        models={"teacher": {"scripted": {"rules": loud}}, "student": {"scripted": {"default": "I, too"}}},
        held_out={"share": 0.5},
        filter=["instructions"],
        evaluate={"metrics": ["instructions"], "metric": "instructions", "resamples": 200},
    )
    summary = desk.here(recipe)
    kept, dropped = desk.rows(summary, "kept"), desk.rows(summary, "dropped")
    assert {row["dropped_by"] for row in dropped} == {"instructions"}
    assert all("tea" in row["messages"][-1]["content"] for row in dropped)
    assert kept
    assert not any("tea" in row["messages"][-1]["content"] for row in kept)
    report = json.loads((desk.folder / summary["run"] / "report/report.json").read_text())
    held_out = desk.rows(summary, "held_out")
    right = sum("tea" not in row["messages"][-1]["content"] for row in held_out) / len(held_out)
    assert report["metric"] == "instructions"
    assert report["arms"]["teacher"]["instructions"]["value"] == pytest.approx(right, rel=1e-4)
    assert report["instructions"]["teacher"]["prompt_strict"]["value"] == pytest.approx(right, rel=1e-4)
    assert report["instructions"]["base_zero_shot"]["prompt_strict"]["value"] == 0
    jsonschema.validate(report, json.loads((ROOT / "llm_distill/report/schema.json").read_text(encoding="utf-8")))
    assert "By instruction, strict" in render(report)


def test_without_the_library_the_message_names_what_to_install(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llm_distill.scorers.instructions.find_spec", lambda name: None if name == "langdetect" else sys
    )
    desk.seeds(ROWS)
    with pytest.raises(UserError, match=r"needs langdetect.*llm-distill\[general\]"):
        load(desk.recipe(task="generate", filter=["instructions"]))
