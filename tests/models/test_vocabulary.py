from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.models.vocabulary import Vocabulary
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer

KINDS = {"byte_level": byte_level_tokenizer, "fallback": fallback_tokenizer}


@functools.cache
def known(kind: str) -> tuple[Any, Vocabulary]:
    tokenizer = KINDS[kind]()
    return tokenizer, Vocabulary(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # the first call makes the tokenizer
@given(text=st.one_of(st.text(), st.text("aé日😀👩‍👩‍👧 \n\t\x00▁Ġ<0xAB>")))
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(kind: str, text: str) -> None:
    tokenizer, vocabulary = known(kind)
    spelled = b"".join(map(vocabulary.token, tokenizer(text, add_special_tokens=False)["input_ids"]))
    if kind == "fallback":
        text = text.replace("▁", " ")  # what such a tokenizer reads them as
        spelled = spelled.replace("▁".encode(), b" ")
    assert spelled == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_keeps_its_byte(kind: str) -> None:
    tokenizer, vocabulary = known(kind)
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert b"".join(map(vocabulary.token, ids)) == "😀".encode()
    assert "�" in tokenizer.decode(ids[:1])  # what decoding would have made of it


def test_special_tokens_and_ids_that_do_not_exist() -> None:
    _, vocabulary = known("byte_level")
    assert {0, 1, 2} <= vocabulary.special
    assert vocabulary.token(2) == b"<|im_end|>"
    assert vocabulary.token(100_000) == b""
