"""Stored logprobs joined with token rows: which text they are of, where it stands, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_distill.models.vocabulary import Vocabulary
from llm_distill.plugs import Plug, Spec
from llm_distill.records import Sample
from llm_distill.trainers.alignment import RESPELT, Alignment, teach, vocabularies_of
from llm_distill.trainers.heard import ABSENT, BEFORE, BEHIND, OTHER, Heard, hear
from llm_distill.trainers.rows import make_rows
from llm_distill.trainers.student_tokens import same_vocabulary
from llm_distill.trainers.targets import Targets
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer
from tests.trainers.told import Said, known, sample, write

BYTE_LEVEL, FALLBACK = byte_level_tokenizer(), fallback_tokenizer()
IDS = {known(BYTE_LEVEL).vocabulary.token(i): i for i in range(len(BYTE_LEVEL))}


def said(*tokens: bytes, mass: float = 0.5) -> Said:
    return Said(tokens, [{token: mass, b"zz": 0.25} for token in tokens])


def by_id(*tokens: bytes) -> Said:
    numbers = [IDS[token] for token in tokens]
    return Said(numbers, [{number: 0.5, IDS[b" day"]: 0.25} for number in numbers])


def heard(
    folder: Path, rows: Mapping[str, Sequence[Said]], samples: Sequence[Sample], stop: Sequence[str] = ()
) -> Heard:
    return hear(write(folder, rows), samples, stop, {})


def taught(
    found: Heard, samples: Sequence[Sample], tokenizer: Any = FALLBACK, shared: Sequence[str] = (), most: float = 0.5
) -> tuple[list[Targets], Alignment]:
    student = known(tokenizer)
    rows = make_rows(samples, tokenizer, {tokenizer.eos_token_id}, 10_000, found.sampled(student, shared))
    return teach(rows, found, student, (), shared, most_undefined=most)


def test_what_is_counted(tmp_path: Path) -> None:
    samples = [
        sample("the bad", "whole"), sample("the bad", "hosted"), sample("the bad", "absent"),
        sample("the good", "other"), sample("the", "longer"), sample("bad", "shorter"), sample("201", "digits"),
        sample("a▁b", "respelt"),
    ]  # fmt: skip
    rows = {
        "whole": [said(b"the", b" bad", b"")],
        "hosted": [said(b"the", b" bad")],
        "other": [said(b"the", b" bad", b"")],
        "longer": [said(b"the", b" bad", b"")],
        "shorter": [said(b"the", b" bad", b"")],
        "digits": [said(b"201", b"", mass=0.7)],
        "respelt": [said(b"a", "▁".encode(), b"b")],
        "of no sample": [said(b"the")],
    }
    found = heard(tmp_path, rows, samples)
    assert found.without == {"absent": ABSENT, "other": OTHER, "longer": BEHIND, "shorter": BEFORE}
    targets, alignment = taught(found, samples)
    assert [t.defined.tolist() for t in targets[:3]] == [[True, True, True], [True, True, False], [False] * 3]
    assert targets[6].defined.tolist() == [True, False, False, True]
    lost = sum(len(targets[i].defined) for i in (2, 3, 4, 5, 7))
    assert alignment == Alignment(
        rows=8, by_ids=0, by_bytes=3, positions=sum(len(t.defined) for t in targets), defined=7, undefined=0.0,
        without={ABSENT: 1, OTHER: 1, BEHIND: 1, BEFORE: 1, RESPELT: 1},
        masked={
            "no token of the teacher begins there": 2, "the teacher did not show its end": 1,
            "nothing is known of the row": lost,
        },
    )  # fmt: skip
    assert alignment.share == 7 / alignment.positions
    alignment.write(tmp_path / "alignment.jsonl")
    record = [json.loads(line) for line in (tmp_path / "alignment.jsonl").read_text("utf-8").splitlines()]
    assert [row["row_id"] for row in record] == [one.row_id for one in samples]
    text = blake2b(b"the bad", digest_size=8).hexdigest()
    whole = {"way": "bytes", "without": None, "positions": 3, "defined": 3, "checksum": text}
    assert record[0] == {"row_id": "whole"} | whole
    assert record[1] == {"row_id": "hosted"} | whole | {"defined": 2}
    assert record[2] == {
        "row_id": "absent",
        "way": None,
        "without": ABSENT,
        "positions": 3,
        "defined": 0,
        "checksum": None,
    }
    assert [row["checksum"] for row in record[3:6]] == [None] * 3
    assert (record[7]["without"], record[7]["checksum"]) == (RESPELT, None)
    assert json.loads(json.dumps(alignment.story()))["share"] == alignment.share
    shown = str(alignment)
    assert f"{7 / alignment.positions:.1%} of {alignment.positions} trained tokens, in 3 of 8 rows" in shown
    assert "1 rows without: its text is not that of the teacher's tokens" in shown


def test_undefined_mass_is_counted_and_bounded(tmp_path: Path) -> None:
    samples = [sample("the")]
    one = Said([b"t", b"he", b""], [{b"t": 0.5, b"zz": 0.25}, {b"he": 0.2}, {b"": 1.0}])
    found = heard(tmp_path, {"r": [one]}, samples)
    _, loose = taught(found, samples, most=0.5)
    assert loose.undefined == pytest.approx((0.4 + 0.0) / 2, abs=1e-3)
    targets, strict = taught(found, samples, most=0.3)
    assert (strict.defined, strict.undefined) == (1, 0.0)
    assert strict.masked == {"too much of the mass is undefined": 1}
    assert targets[0].defined.tolist() == [False, True]


TEXT = "the film\nÇa va 2024 日本 😀"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(TEXT) - 1), other=st.characters(codec="utf-8"), cut=st.integers(1, 20))
def test_one_character_apart_is_another_text(tmp_path: Path, place: int, other: str, cut: int) -> None:
    data = TEXT.encode()
    tokens = [data[a : a + cut] for a in range(0, len(data), cut)]
    changed = [
        TEXT[:place] + other + TEXT[place + 1 :],
        TEXT[:place] + TEXT[place + 1 :],
        TEXT[:place] + other + TEXT[place:],
    ]
    for text in changed:
        if text.strip() == TEXT.strip():
            continue  # it is the same but for blank space around it
        samples = [sample(text)]
        found = heard(tmp_path, {"r": [said(*tokens, b"")]}, samples)
        assert not found.told
        (targets,), alignment = taught(found, samples)
        assert not targets.defined.any()
        assert (alignment.by_bytes, alignment.defined) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "text", "more", "why"),
    [
        ((b"<think>", b"so", b"</think>", b"\n\n", b"bad", b""), "bad", {"reasoning": "so"}, None),
        ((b"<think>", b"so", b"</think>", b"\n\n", b"bad", b""), "bad", {}, BEFORE),
        ((b"bad or bad", b"\n\nbad", b""), "bad", {"reasoning": "bad or bad"}, None),
        ((b"so", b".bad", b""), "bad", {"reasoning": "so."}, None),
        ((b" \n", b"bad", b" \n", b""), "bad", {}, None),
        ((b"bad", b"bad", b""), "bad", {}, BEFORE),
        ((b"bad", b"."), "bad", {}, BEHIND),
        ((b"bad", b"."), "bad.", {}, None),
        ((b"b", b"ad"), "bad", {"status": "truncated"}, None),
    ],
)
def test_what_may_stand_around_a_text(
    tokens: Sequence[bytes], text: str, more: dict[str, Any], why: str | None, tmp_path: Path
) -> None:
    samples = [sample(text, said="bad.", **more)]
    found = heard(tmp_path, {"r": [said(*tokens)]}, samples)
    assert found.without.get("r") == why
    if why is None:
        _, told = found.told["r"]
        spelt = b"".join(found.spellings[None].tokens[int(n)] for n in told.ids[told.chosen][told.first : told.after])
        assert spelt[-int(told.begins[told.first]) :] == text.encode()
        (targets,), _ = taught(found, samples)
        # A first token that begins within what stands before has no target, unless that is blank space.
        assert targets.defined[0] == (tokens != (b"so", b".bad", b""))
        assert targets.defined[-1] == (tokens[-1] == b"")


def test_stop_strings_end_a_text(tmp_path: Path) -> None:
    rows = {"r": [said(b"bad", b"\n", b"Q:")]}
    samples = [sample("bad")]
    assert heard(tmp_path, rows, samples).without == {"r": BEHIND}
    assert heard(tmp_path, rows, samples, ["\nQ"]).told["r"][1].ended
    assert heard(tmp_path, rows, samples, ["\n"]).without == {"r": BEHIND}, "text went on behind it"
    blank = {"r": [said(b"bad", b"\n")]}
    assert heard(tmp_path, blank, samples, ["\n"]).told["r"][1].ended
    assert not heard(tmp_path, blank, samples).told["r"][1].ended, "blank space alone is no end"
    targets, _ = taught(heard(tmp_path, blank, samples), samples)
    assert targets[0].defined.tolist() == [True, False]


def test_an_end_that_is_spelt_like_text_is_told_by_where_it_stands(tmp_path: Path) -> None:
    """A server that gives tokens as strings, its EOS among them."""
    tops = [{b"bad": 0.5, b"<|im_end|>": 0.25}, {b"<|im_end|>": 0.5, b" bad": 0.25}]
    rows = {"a": [Said([b"bad", b"<|im_end|>"], tops)], "b": [said(b"good", b"<|im_end|>")], "c": [said(b"good")]}
    samples = [sample("bad", "a"), sample("good", "b"), sample("good", "c")]
    found = heard(tmp_path, rows, samples)
    assert not found.without
    assert {found.spellings[None].tokens[n] for n in found.spellings[None].ends} == {b"<|im_end|>"}
    targets, _ = taught(found, samples)
    end = FALLBACK.eos_token_id
    assert [end in row.tolist() for row in targets[0].ids] == [True, True]
    assert [t.defined[-1] for t in targets] == [True, True, False]
    # Not where an answer's text goes on, or has the token within.
    labels = [sample("bad", "a", said="bad."), sample("good", "b", said="good.")]
    found = heard(tmp_path, {"a": [said(b"bad", b".")], "b": [said(b"good", b".")]}, labels)
    assert found.without == {"a": BEHIND, "b": BEHIND}
    within = [sample("bad", "a"), sample("a.b", "b")]
    found = heard(tmp_path, {"a": [said(b"bad", b".")], "b": [said(b"a", b".", b"b")]}, within)
    assert found.without == {"a": BEHIND}
    truncated = [sample("bad", "a", status="truncated")]
    assert heard(tmp_path, {"a": [said(b"bad", b".")]}, truncated).without == {"a": BEHIND}


def test_of_several_completions_the_one_with_the_text_is_taken(tmp_path: Path) -> None:
    rows = {"r": [said(b"good"), said(b"bad", mass=0.6), said(b"b", b"ad"), said(b"worse")]}
    for requests, mass in (((), 0.6), (("r/2", "r/1"), 0.5)):
        (one,) = [sample("bad", requests=requests)]
        _, told = heard(tmp_path, rows, [one]).told["r"]
        assert np.exp(told.logprobs[told.chosen[0]]) == pytest.approx(mass, abs=1e-3)


def test_ids_where_the_vocabulary_is_shared_and_bytes_elsewhere(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(BYTE_LEVEL)
    assert same_vocabulary(vocabulary, known(BYTE_LEVEL).vocabulary).same
    rows = {
        "ids": [by_id(b"t", b"he", b" film", b"<|im_end|>")],
        "apart": [by_id(b"the", b" film", b"<|im_end|>")],
        "within": [by_id(b"\n", b" film", b"<|im_end|>")],
    }
    samples = [sample("the film", "ids"), sample("the film", "apart"), sample("film", "within")]
    found = hear(write(tmp_path, rows, vocabulary), samples, (), {"model": vocabulary})
    student = known(BYTE_LEVEL)
    completions = found.sampled(student, {"model"})
    assert completions["ids"] == [IDS[b"t"], IDS[b"he"], IDS[b" film"]]
    assert student.spell(completions["within"]) == b"film"
    _, both = taught(found, samples, BYTE_LEVEL, ["model"])
    assert (both.by_ids, both.by_bytes, both.without) == (3, 0, {})
    assert both.masked == {"no token of the teacher begins there": len(completions["within"]) - 1}
    _, bytes_ = taught(found, samples, BYTE_LEVEL)
    assert (bytes_.by_ids, bytes_.by_bytes) == (0, 3)
    # Rows that were tokenised again, for whatever reason, are not taken for those that were sampled.
    again = make_rows(samples, BYTE_LEVEL, {2}, 10_000)
    targets, mixed = teach(again, found, student, (), {"model"}, most_undefined=0.5)
    assert (mixed.by_ids, mixed.by_bytes) == (2, 1)
    assert targets[0].defined.tolist() == [True, True, True]
    other = taught(found, samples, FALLBACK)[1]
    assert (other.by_ids, other.by_bytes) == (0, 3)


def test_special_tokens_that_a_server_was_told_to_show(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(BYTE_LEVEL)
    rows = {"r": [by_id(b"the", b"<|im_start|>", b" film", b"<|im_end|>")]}
    samples = [sample("the<|im_start|> film")]
    found = hear(write(tmp_path, rows, vocabulary), samples, (), {"model": vocabulary})
    (targets,), alignment = taught(found, samples)
    assert alignment.by_bytes == 1
    first = [int(ids[0]) for ids, defined in zip(targets.ids, targets.defined, strict=True) if defined]
    assert known(FALLBACK).spell(first) == b"the< <eos>"


def test_vocabularies_are_found_by_the_names_in_the_table(tmp_path: Path) -> None:
    def plug(name: str, **knobs: Any) -> Plug:
        return Plug(Spec(name, knobs), print, knobs)

    BYTE_LEVEL.save_pretrained(tmp_path / "teacher")
    FALLBACK.save_pretrained(tmp_path / "student")
    here, there = str(tmp_path / "teacher"), str(tmp_path / "student")
    models = {
        "a": plug("transformers", model=here, adapter=None),
        "b": plug("vllm", model=there, adapter=str(tmp_path)),
        "c": plug("openai_api", model="org/served", tokenizer=here),
        "d": plug("openai_api", model="gpt", tokenizer=None),
        "e": plug("scripted", model="teacher.py"),
    }
    names = ["teacher", "student", f"student+{tmp_path.name}", "org/served", "gpt", "teacher.py", None, "unheard of"]
    found = vocabularies_of(models, {name: {} for name in names})
    assert {name: one.special for name, one in found.items()} == {
        "teacher": {0, 1, 2},
        "student": {0, 1, 2, 3},
        f"student+{tmp_path.name}": {0, 1, 2, 3},
        "org/served": {0, 1, 2},
    }
    assert vocabularies_of(models, {None: {}}) == {}
    # Of two folders of one name, that which spells what the table has.
    BYTE_LEVEL.save_pretrained(tmp_path / "elsewhere" / "student")
    namesakes = {
        "a": plug("transformers", model=there),
        "b": plug("transformers", model=str(tmp_path / "elsewhere/student")),
    }
    number = next(
        i for i in range(4, 300) if known(BYTE_LEVEL).vocabulary.token(i) != known(FALLBACK).vocabulary.token(i)
    )
    for tokenizer, special in ((BYTE_LEVEL, {0, 1, 2}), (FALLBACK, {0, 1, 2, 3})):
        spelt: dict[str | None, dict[int, bytes]] = {"student": {number: known(tokenizer).vocabulary.token(number)}}
        assert vocabularies_of(namesakes, spelt)["student"].special == special
    assert vocabularies_of(namesakes, {"student": {number: b"neither"}}) == {}
