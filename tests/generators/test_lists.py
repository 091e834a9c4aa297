"""What models write instead of lists, and what is read from it."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.generators.lists import between, fault, items, words


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1. one\n2. two\n3. three", ["one", "two", "three"]),
        ("Sure! Here are three:\n\n1) one\n2) two\n\n3) three\n\nLet me know if you want more.", ["one", "two", "three"]),
        ("9. nine\n10. ten", ["nine", "ten"]),
        ("1. **Optics**\n2. “Waves”\n3. \"Heat\"", ["Optics", "Waves", "Heat"]),
        ('1. "Yes" or "no"?\n2. **Bold** start', ['"Yes" or "no"?', "**Bold** start"]),
        ("1. Sort these:\npear, fig\n2. two", ["Sort these:\npear, fig", "two"]),
        ("1、苹果\n2、梨", ["苹果", "梨"]),
        ('["one", "two"]', ["one", "two"]),
        ('Here you are:\n```json\n["one", " two ", ""]\n```', ["one", "two"]),
        ("```\n1. one\n2. two\n```", ["one", "two"]),
        ("1. Mend this:\n```python\n[1, 2\n```\n2. two", ["Mend this:\n```python\n[1, 2\n```", "two"]),
        ("1. 3.5 is more than 3.\n2. two", ["3.5 is more than 3.", "two"]),
    ],
)  # fmt: skip
def test_lists_are_read(answer: str, expected: list[str]) -> None:
    assert items(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", []),
        ("I cannot do that.", []),
        ("- one\n- two", []),
        ("In 2024. there was", []),
        ('["one", "two"', []),  # cut: never mended
        ('["one", 2]', []),
        ('{"prompts": ["one"]}', []),
        ('[["one"]]', []),
        ("[" * 100_000, []),
        ("1. one\n1. one again\n2. two", []),  # counts otherwise: where the first ends, nobody knows
        ("1. one\n2. Follow these steps:\n1. go\n2. stop\n3. three", ["one"]),
        ("1. Translate this:\n\nBonjour\n\n2. two", ["two"]),
        ("1. one\n2. Translate this:\n\nBonjour", ["one"]),
        ("1. \n2. two", ["two"]),
    ],
)
def test_what_is_no_list_or_no_whole_item_is_left_out(answer: str, expected: list[str]) -> None:
    assert items(answer) == expected


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).map(str.strip).filter(bool)
    )
)
def test_a_json_array_comes_back(texts: list[str]) -> None:
    assert items(json.dumps(texts)) == texts


@given(
    st.lists(st.text("abc ?:.äß中", min_size=1).map(str.strip).filter(lambda t: t.strip()), max_size=20),
    st.integers(1, 900),
)
def test_numbered_lines_come_back(texts: list[str], start: int) -> None:
    answer = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start))
    assert items(answer) == texts


@given(st.text())
def test_any_answer_is_survived_and_nothing_is_made_up(answer: str) -> None:
    found = items(answer)
    if not answer.strip().startswith(("[", "`")):
        assert all(item in answer for item in found)
    between(answer, "prompt")
    fault(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" plain ", "plain"),
        ("Sure:\n<prompt>\nWhy?\n</prompt>\nDone.", "Why?"),
        ("<prompt>Why?", None),
        ("Why?</prompt>", None),
        ("</prompt>Why?<prompt>", None),
        ("<prompt>a</prompt><prompt>b</prompt>", None),
        ("<prompt></prompt>", ""),
    ],
)
def test_one_pair_of_marks_is_read(answer: str, expected: str | None) -> None:
    assert between(answer, "prompt") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why is the sky blue?", None),
        ("天空为什么是蓝色的", None),
        ("Übersetze »naïve« ins Englische.", None),
        ("Sort: pear, fig", None),
        ("", "empty"),
        ("?!…", "empty"),
        ("Why not", "too short"),
        ("why " * 31, "too long"),
        ("Translate the following text:", "unfinished"),
        ("**Translate the following text:**", "unfinished"),
        ("请把下面的句子翻译成英文：", "unfinished"),  # noqa: RUF001
        ("Summarise this article: [insert article here]", "unfinished"),
        ("Write to {{name}} about the rent", "unfinished"),
        ("Proof-read <your text> for me, please", "unfinished"),
        ("What is [x] in this Markdown [link](url)?", None),
        ("why is \x00 here at all", "not text"),
        ("why is \ud800 here at all", "not text"),
    ],
)
def test_what_is_wrong_with_a_prompt(text: str, expected: str | None) -> None:
    assert fault(text, least=3, most=30) == expected


def test_blanks_that_are_never_closed_are_read_in_time() -> None:
    start = time.monotonic()
    for piece in ("[insert ", "<your ", "{{ a"):
        assert fault(piece * 30_000) is None
    assert time.monotonic() - start < 5


def test_words_are_those_of_rouge_on_ascii_and_of_the_script_elsewhere() -> None:
    ascii_text = "Don't_stop 3.5 THE-end (a) \n b2b"
    assert words(ascii_text) == re.sub(r"[^a-z0-9]+", " ", ascii_text.lower()).split()
    assert words("Schöne Grüße") == ["schöne", "grüsse"]
    assert words("cafe\u0301") == words("caf\u00e9")
    assert words("我爱AI模型") == ["我", "爱", "ai", "模", "型"]


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_rouge(text: str) -> None:
    assert words(text) == re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
