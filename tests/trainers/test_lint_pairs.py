"""What is said of a round's pairs before they are learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from llm_distill.errors import UserError
from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.findings import Finding
from llm_distill.trainers.lint import Shelf
from llm_distill.trainers.lint_pairs import lint_pairs, samples_of
from llm_distill.trainers.preferences import Pair
from llm_distill.trainers.rows import Row, make_rows
from tests.models.conftest import byte_level_tokenizer
from tests.trainers.test_dpo import MakeJob, dpo, dull, generate, saying, texts

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.eos_token_id


def pair(sample: Sample, said: str, *, cut: bool = False) -> Pair:
    asked = [Sample(f"{sample.row_id}#0", sample.messages, text) for text in (sample.completion, said)]
    chosen, rejected = make_rows(asked, TOKENIZER, {END}, 512)
    return Pair(chosen, Row(rejected.row_id, rejected.input_ids[:-1], rejected.prompt_tokens) if cut else rejected)


def linted(samples: list[Sample], pairs: list[Pair], too_long: int = 0) -> dict[str, Finding]:
    shelf = Shelf(samples_of(pairs, samples), TOKENIZER, END, 512)
    return {finding.name: finding for finding in lint_pairs(pairs, too_long, shelf)}


def test_sound_pairs_are_said_to_be_sound() -> None:
    rows = texts(10)
    found = linted(rows, [pair(row, "a dull day", cut=i < 2) for i, row in enumerate(rows)])
    assert {finding.level for finding in found.values()} == {"note"}
    assert {"pairs", "length", "template", "bos", "end_token", "trained_tokens"} <= found.keys()
    assert "of 10 rejected answers 2 were cut off" in found["length"].found


def test_pairs_of_equal_tokens() -> None:
    rows = texts(10)
    pairs = [pair(row, row.completion if i < 2 else "a dull day") for i, row in enumerate(rows)]
    found = linted(rows, pairs)["pairs"]
    assert (found.level, found.rows) == ("warning", (pairs[0].chosen.row_id, pairs[1].chosen.row_id))
    assert "In 2 of 10 pairs" in found.found
    assert linted(rows, pairs[:2])["pairs"].level == "error"


def test_what_does_not_fit() -> None:
    rows = texts(9)
    left_out = linted(rows, [pair(row, "a dull day") for row in rows], too_long=3)["length"]
    assert (left_out.level, left_out.found[:17]) == ("warning", "3 of 12 pairs are")
    cut = linted(rows, [pair(row, "a dull", cut=i < 5) for i, row in enumerate(rows)])["length"]
    assert cut.level == "warning"
    assert "5 were cut off" in cut.found


def test_rejected_answers_without_anything_in_them() -> None:
    rows = texts(3)
    pairs = [pair(row, "a dull day") for row in rows]
    prompt = pairs[0].rejected.prompt_tokens
    nothing = Row(pairs[0].rejected.row_id, [*pairs[0].rejected.input_ids[:prompt], END], prompt)
    twice = Row(nothing.row_id, [*pairs[0].rejected.input_ids, END], prompt)
    assert (
        "nothing to learn but the end token" in linted(rows, [Pair(pairs[0].chosen, nothing)])["trained_tokens"].found
    )
    found = linted(rows, [Pair(pairs[0].chosen, twice), *pairs[1:]])["end_token"]
    assert (found.level, found.rows) == ("error", (nothing.row_id,))


def test_a_template_in_a_rows_own_words_is_found_in_pairs_too() -> None:
    messages = (Message("user", "say<|im_end|>\n<|im_start|>assistant\n"),)
    rows = [msgspec.structs.replace(row, messages=messages) for row in texts(2)]
    assert linted(rows, [pair(row, "a dull day") for row in rows])["template"].level == "error"


def test_a_round_is_linted_and_told(make_job: MakeJob) -> None:
    said: list[str] = []
    job: TrainingJob = make_job(texts(8), task=generate(), student_answers=saying(dull, "truncated"), say=said.append)
    story: dict[str, Any] = dpo(job, warm_up=False)
    names = [(one["name"], one["level"]) for one in story["lint"] if one["found"].startswith("Round 1: ")]
    assert ("length", "warning") in names
    assert ("pairs", "note") in names
    assert any(line.startswith("lint: round 1: length: 0 of 8 pairs") for line in said)
    told = json.loads((job.out / "training.json").read_text("utf-8"))["lint"]
    assert len(told) == len(story["lint"])
    messages = (Message("user", "say<|im_end|>\n<|im_start|>assistant\n"),)
    spoilt = [msgspec.structs.replace(row, messages=messages) for row in job.samples]
    with pytest.raises(UserError, match="it would be applied twice"):
        dpo(replace(job, samples=spoilt), warm_up=False)
