"""Logprobs from the wire: exact bytes, ids where a server gives them, and what servers get wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import Unavailable, UserError
from llm_distill.logprobs import Logprobs
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.wire import completion, payload
from llm_distill.records import Message, Request, Sampling


def spoken(token: bytes, logprob: float | None, **more: Any) -> dict[str, Any]:
    """A token as OpenAI's API writes it."""
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token), **more}


def body(content: list[dict[str, Any]], text: str = "x", **choice: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "logprobs": {"content": content}, **choice}]}).encode()


def read(content: list[dict[str, Any]], **choice: Any) -> Logprobs:
    logprobs = completion(body(content, **choice)).logprobs
    assert logprobs is not None
    return logprobs


TOKEN = st.one_of(st.binary(max_size=4), st.text(max_size=3).map(str.encode), st.sampled_from([b"\0", b"a\0b", b""]))
ALTERNATIVES = st.lists(st.tuples(TOKEN, st.floats(-9999.0, 0.0, width=32)), max_size=5)


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(TOKEN, st.floats(-9999.0, 0.0, width=32), ALTERNATIVES), min_size=1, max_size=5))
def test_every_byte_and_every_number_arrives(path: list[tuple[bytes, float, list[tuple[bytes, float]]]]) -> None:
    logprobs = read([spoken(t, p, top_logprobs=[spoken(*other) for other in others]) for t, p, others in path])
    assert logprobs.tokens == [token for token, _, _ in path]
    assert logprobs.logprobs.tolist() == [logprob for _, logprob, _ in path]
    assert logprobs.top_tokens == [[token for token, _ in others] for _, _, others in path]
    for row, (_, _, others) in zip(logprobs.top_logprobs.tolist(), path, strict=True):
        assert row == [p for _, p in others] + [-np.inf] * (len(row) - len(others))
    assert len(set(logprobs.table)) == len(logprobs.table)


def test_pieces_of_characters_are_told_apart_by_their_bytes() -> None:
    pieces = [b"\xe2\x82", b"\xf0\x9f", "\ufffd".encode()]
    legacy = {"token": r"bytes:\xe2\x82", "logprob": -3.0, "bytes": [0xE2, 0x82]}
    bare = {"token": "bytes: 3", "logprob": -4.0, "bytes": None}
    logprobs = read([spoken(pieces[0], -0.5, top_logprobs=[*(spoken(p, -1.0) for p in pieces), legacy, bare])])
    assert logprobs.tokens == pieces[:1]
    assert logprobs.top_tokens == [[*pieces, pieces[0], b"bytes: 3"]]


def test_the_sampled_token_may_be_one_more_than_was_asked_for() -> None:
    three = [spoken(b"a", -0.1), spoken(b"b", -2.0), spoken(b"c", -9.0)]
    logprobs = read([{**three[0], "top_logprobs": three[:2]}, {**three[2], "top_logprobs": three}])
    assert logprobs.top_tokens == [[b"a", b"b"], [b"a", b"b", b"c"]]
    assert logprobs.top_logprobs.tolist()[0][2] == -np.inf


def test_alternatives_without_a_logprob_are_none() -> None:
    others = [spoken(b"a", -0.1), spoken(b"b", None), spoken(b"c", -9999.0)]
    rows = [spoken(b"a", -0.1, top_logprobs=others), spoken(b"a", -0.1, top_logprobs=None), spoken(b"a", -0.1)]
    logprobs = read(rows)
    assert logprobs.top_tokens == [[b"a", b"c"], [], []]
    assert logprobs.top_logprobs[0].tolist() == pytest.approx([-0.1, -9999.0])


@pytest.mark.parametrize("unknown", [None, float("nan"), float("-inf"), float("inf")])
def test_a_sampled_token_without_a_logprob_leaves_the_row_its_text(unknown: float | None) -> None:
    answer = completion(body([spoken(b"a", -0.1), spoken(b"b", unknown)], text="ab"))
    assert (answer.text, answer.logprobs) == ("ab", None)


def test_numbers_that_json_does_not_have_do_not_cost_the_row() -> None:
    said = 'NaN, "Infinity" \\ and -Infinity'
    tops = [spoken(b"NaN", -0.25), spoken(b"b", float("nan")), spoken(b"c", float("-inf"))]
    answer = completion(body([spoken(b"NaN", -0.25, top_logprobs=tops)], text=said))
    assert answer.text == said
    assert answer.logprobs
    assert answer.logprobs.top_tokens == [[b"NaN", b"c"]]
    assert answer.logprobs.top_logprobs.tolist() == [[-0.25, -np.inf]]
    with pytest.raises(Unavailable, match="not a whole chat completion"):
        completion(body([spoken(b"a", float("nan"))])[:-20])


def test_half_of_a_character_does_not_cost_the_row() -> None:
    """As a server in Python writes a token that is half an emoji: no text can hold it, and the answer is paid for."""
    half = {"token": "\ud83d", "logprob": -0.5, "bytes": [240, 159]}
    answer = completion(body([half, spoken(b"a", -0.25)], text="whole \U0001f600, cut \ud83d, \ude00 and \\ud83d"))
    assert answer.text == "whole \U0001f600, cut \ufffd, \ufffd and \\ud83d"
    assert answer.logprobs
    assert answer.logprobs.tokens == [b"\xf0\x9f", b"a"]


def test_an_answer_without_tokens_has_no_logprobs() -> None:
    assert completion(body([], text="x")).logprobs is None


@pytest.mark.parametrize("given_", [[1, 300], "aa", [-1]])
def test_bytes_that_are_none_are_the_servers_trouble(given_: Any) -> None:
    with pytest.raises(Unavailable, match="bytes"):
        completion(body([{"token": "\ufffd", "logprob": -1.0, "bytes": given_}]))


def placeholder(number: int, logprob: float, token: bytes | None = None, **more: Any) -> dict[str, Any]:
    """As vLLM writes ids: a sampled token has its own bytes, an alternative those of its placeholder."""
    name = f"token_id:{number}"
    return {"token": name, "logprob": logprob, "bytes": list(token or name.encode()), **more}


IDS = [
    placeholder(5, -0.1, b" good", top_logprobs=[placeholder(5, -0.1), placeholder(151_000, -3.0)]),
    placeholder(2, -9999.0, top_logprobs=[placeholder(7, -0.2), placeholder(5, -3.0)]),
    placeholder(7, -0.4, b"\xef\xbf\xbd", top_logprobs=[placeholder(7, -0.2)]),
]


def test_ids_come_exactly_with_the_bytes_that_are_known() -> None:
    logprobs = completion(body(IDS, token_ids=[5, 2, 7]), token_ids=True).logprobs
    assert logprobs is not None
    assert logprobs.ids is not None
    assert logprobs.top_ids is not None
    assert logprobs.ids.tolist() == [5, 2, 7]
    assert logprobs.top_ids.tolist() == [[5, 151_000], [7, 5], [7, -1]]
    assert logprobs.tokens == [b" good", b"", "\ufffd".encode()]  # the second one's are those of its placeholder
    pieces = {2: "!", 5: "\u0120good", 7: "\u00e2", 151_000: "\u0120bad"}
    spelled = logprobs.spelled(Vocabulary(pieces.get, {}, set(), ["ByteLevel"]))
    assert spelled.tokens == [b" good", b"!", b"\xe2"]
    assert spelled.top_tokens == [[b" good", b" bad"], [b"\xe2", b" good"], [b"\xe2"]]
    assert spelled.top_ids is not None
    assert spelled.top_ids.tolist() == logprobs.top_ids.tolist()
    assert spelled.top_logprobs is logprobs.top_logprobs


def test_a_vocabulary_of_another_model_is_found_out() -> None:
    logprobs = completion(body(IDS), token_ids=True).logprobs
    assert logprobs is not None
    with pytest.raises(UserError, match=r"tokenizer: other spells token 5 b'zz', and the endpoint b' good'"):
        logprobs.spelled(Vocabulary({5: "zz"}.get, {}, set(), [], "other"))


def test_ids_and_what_was_asked_for_must_agree() -> None:
    with pytest.raises(UserError, match="without ids"):
        completion(body([spoken(b"a", -0.1)]), token_ids=True)
    with pytest.raises(UserError, match="write `token_ids: true`"):
        completion(body(IDS))
    with pytest.raises(Unavailable, match="others than"):
        completion(body(IDS, token_ids=[5, 2, 8]), token_ids=True)
    assert read([spoken(b"token_id:5", -0.1, top_logprobs=[spoken(b"x", -2.0)])]).tokens == [b"token_id:5"]


def test_llama_cpp_gives_ids_unasked_and_cuts_pieces_out_of_its_texts() -> None:
    others = [{"id": 9, "token": "", "bytes": [0xE2, 0x82], "logprob": -0.5}]
    others += [{"id": 4, "token": " ", "bytes": [0x20, 0xE2], "logprob": -3.4028234663852886e38}]
    logprobs = read([{**others[0], "top_logprobs": others}])
    assert logprobs.ids is not None
    assert (logprobs.ids.tolist(), logprobs.tokens) == ([9], [b"\xe2\x82"])
    assert logprobs.top_tokens == [[b"\xe2\x82", b" \xe2"]]
    assert Logprobs.unpack(logprobs.pack()).top_logprobs.tolist() == [[-0.5, -np.inf]]
    for other in ("chunk-1", -1, 1 << 70, True, 1.5):  # an id of something else
        assert read([{**others[0], "id": other}]).ids is None


def test_ids_are_asked_for_with_logprobs_and_are_another_answer() -> None:
    asked = Request((Message("user", "x"),), Sampling(top_logprobs=20))
    plain = payload(asked, "m", "max_tokens")
    more = payload(asked, "m", "max_tokens", token_ids=True)
    assert more == plain | {"return_token_ids": True, "return_tokens_as_token_ids": True}
    without = Request(asked.messages, Sampling())
    assert payload(without, "m", "max_tokens", token_ids=True) == payload(without, "m", "max_tokens")
    text, ids, spelt = (
        OpenAIModel(model="m", api_key_env=None, **knobs).identity
        for knobs in ({}, {"token_ids": True}, {"token_ids": True, "tokenizer": "org/name"})
    )
    assert text != ids == spelt  # a tokenizer is applied to answers afterwards


def raw_text(**choice: Any) -> bytes:
    """A completion of raw text, as vLLM 0.32 wrote it."""
    logprobs = {
        "text_offset": [0, 13, 24],
        "token_logprobs": [-0.27, -3.5, -0.98],
        "tokens": ["token_id:7042", "token_id:30", "token_id:198"],
        "top_logprobs": [
            {"token_id:7042": -0.27, "token_id:260": -2.7},
            {"token_id:30": -3.5, "token_id:28": -0.1, "token_id:5": -2.5},  # what came is not among the two likeliest
            {"token_id:198": -0.98, "token_id:378": -2.4},
        ],
    }
    given = {
        "index": 0,
        "text": " Paris.\n",
        "logprobs": logprobs,
        "token_ids": [7042, 30, 198],
        "finish_reason": "length",
    }
    usage = {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}
    return json.dumps({"object": "text_completion", "choices": [given | choice], "usage": usage}).encode()


def test_raw_text_is_asked_and_read() -> None:
    words = (Message("system", "The capital"), Message("user", "of France is"))
    asked = payload(Request(words, Sampling(top_logprobs=2, max_tokens=3), raw=True), "m", "max_tokens", token_ids=True)
    assert (asked["prompt"], asked["logprobs"]) == ("The capital\n\nof France is", 2)
    assert not {"messages", "top_logprobs"} & set(asked)
    answer = completion(raw_text(), token_ids=True)
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == (" Paris.\n", "length", 5)
    logprobs = answer.logprobs
    assert logprobs is not None
    assert logprobs.ids is not None
    assert logprobs.top_ids is not None
    assert logprobs.ids.tolist() == [7042, 30, 198]
    assert logprobs.top_ids.tolist() == [[7042, 260, -1], [28, 5, 30], [198, 378, -1]]
    np.testing.assert_allclose(logprobs.logprobs, [-0.27, -3.5, -0.98], rtol=1e-6)
    assert completion(raw_text(logprobs=None)).logprobs is None


def test_a_model_that_ends_at_once_has_answered() -> None:
    assert completion(raw_text(text="", finish_reason="stop", logprobs=None), token_ids=True).text == ""
    with pytest.raises(Unavailable, match="empty answer"):
        completion(raw_text(text="", finish_reason="stop", logprobs=None))
