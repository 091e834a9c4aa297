from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer

KINDS = {"byte_level": byte_level_tokenizer, "fallback": fallback_tokenizer}


@functools.cache
def known(kind: str) -> tuple[Any, Vocabulary]:
    tokenizer = KINDS[kind]()
    return tokenizer, Vocabulary.of(tokenizer)


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


def written(folder: Path, tokenizer: Any) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_the_same_without_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer, vocabulary = known(kind)
    read = read_vocabulary(written(tmp_path, tokenizer))
    assert [read.token(i) for i in range(len(tokenizer) + 3)] == [
        vocabulary.token(i) for i in range(len(tokenizer) + 3)
    ]
    assert read.special == vocabulary.special
    assert read.name == tmp_path.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_says_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer, vocabulary = known(kind)
    file = tmp_path / "model.gguf"
    write_gguf(file, {"byte_level": "gpt2", "fallback": "llama"}[kind], tokenizer)
    read = read_vocabulary(str(file))
    assert [read.token(i) for i in range(len(tokenizer) + 3)] == [
        vocabulary.token(i) for i in range(len(tokenizer) + 3)
    ]
    assert read.special == vocabulary.special
    whole = file.read_bytes()
    for size in (2, 10, 30, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.gguf cannot be read"):
            read_vocabulary(str(file))


def write_gguf(file: Path, kind: str, tokenizer: Any) -> None:
    """A header with other things before and between what is looked for."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_array("general.tags", ["a", "b"])
    writer.add_array("general.numbers", [0.5, 1.5])
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_unigram_pieces_stand_in_a_list(tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["▁good", -1.0], ["!", -2.0]]
    added = [{"id": 0, "content": "<unk>", "special": True}]
    description = {
        "model": {"type": "Unigram", "vocab": pieces},
        "added_tokens": added,
        "decoder": {"type": "Metaspace"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    read = read_vocabulary(str(tmp_path))
    assert [read.token(i) for i in range(4)] == [b"<unk>", b" good", b"!", b""]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {"vocab": 3}}', b'{"model": null}', b"\xff"])
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        read_vocabulary(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_vocabulary(str(tmp_path))
    (tmp_path / "no.gguf").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_vocabulary(str(tmp_path / "no.gguf"))


def test_a_server_that_decodes_token_by_token_is_understood() -> None:
    _, vocabulary = known("fallback")
    good = next(i for i in range(400) if vocabulary.token(i) == b" good")
    half = next(i for i in range(400) if vocabulary.token(i) == b"\xe2")
    vocabulary.check({good: b"good", half: "\ufffd".encode(), 5: b""})
    vocabulary.check({})
    third = next(i for i in range(400) if vocabulary.token(i) == b"\x93")
    vocabulary.check({third: "こ".encode()})  # whole, where its last byte came
    for other in ({good: b"bad"}, {good: b"no good"}, {third: "え".encode()}, {half: b"x\xe2"}):
        with pytest.raises(UserError, match="spells token"):
            vocabulary.check(other)
