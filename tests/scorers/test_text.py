"""Lengths, and text that goes round in circles: what a small model really wrote, and what people wrote."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.scorers import SCORERS
from llm_distill.scorers.text import length, repetition
from tests.bench.planted import real_sentences
from tests.scorers.loops import CIRCLES, LOOPS, STRAIGHT
from tests.scorers.rows import answer
from tests.test_counting import vocabularies

__all__ = ["vocabularies"]  # a fixture

PROSE = [
    "The museum is closed on Mondays, but the garden behind it is open to everyone who wants to rest under its old trees and "
    "listen to the fountain. In summer a small band plays there, and the cafe sells ice cream until the sun goes down.",
    "First, wash the rice. Second, bring two cups of water to the boil. Third, add the rice and a pinch of salt, cover the pot "
    "and turn the heat down. Fourth, wait for fifteen minutes. Fifth, take it from the stove and let it rest before serving.",
    "- Lisbon: hills, trams, custard tarts\n- Porto: bridges, cellars, tiles\n- Faro: lagoons, storks, a walled old town\n"
    "- Coimbra: a university, fado, narrow lanes\n- Braga: churches, gardens, long stairs",
]


def _brute(text: str, n: int) -> float:
    """The share of words that stand in a repeated n-gram, by definition."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if len(grams) < 2:
        return math.nan
    covered = {i + k for i, gram in enumerate(grams) if grams.count(gram) > 1 for k in range(n)}
    return len(covered) / len(words)


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_model_that_loops(text: str) -> None:
    assert repetition([answer(text)]).values[0] > 0.6
    assert repetition([answer(text)], by="compression").values[0] > 2.4


@pytest.mark.parametrize("text", CIRCLES.values(), ids=CIRCLES)
def test_a_model_that_comes_round_again(text: str) -> None:
    assert repetition([answer(text)]).values[0] > 0.15  # the paper's limit for prose


def test_a_long_run_of_stars_is_read_at_once() -> None:
    """What a model that loops writes too; looked at from each star it takes the square of their number."""
    began = time.process_time()
    repetition([answer("*" * 200_000), answer("a" + "*" * 200_000 + " b")])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", [*PROSE, *STRAIGHT.values()])
def test_prose_and_lists_do_not_loop(text: str) -> None:
    assert repetition([answer(text)]).values[0] < 0.15
    assert repetition([answer(text)], by="compression").values[0] < 2.0


def test_headings_of_one_form_do_not_loop() -> None:
    sections = ("Bees", "dance to show the way"), ("Ants", "lay a trail of scent"), ("Wolves", "howl across valleys")
    text = "\n\n---\n\n".join(f"### **{name}**\n\n* **How:** they {how}\n* **Why:** food" for name, how in sections)
    assert repetition([answer(text)]).values[0] == 0
    assert repetition([answer("3 * 4 * 3 * 4 * 3 * 4")]).values[0] == 1


def test_a_circle_inside_a_long_answer_is_seen() -> None:
    prose, circle = " ".join(real_sentences()[:40]), LOOPS["Sing the alphabet song."]
    quiet, spoilt = repetition(
        [answer(prose), answer(f"{prose} {circle} {circle} {prose[::-1]}")], by="compression"
    ).values
    assert quiet < 2.0
    assert spoilt > 2.4


def test_what_people_wrote_seldom_loops() -> None:
    rows = [answer(text) for text in real_sentences()]
    loops = np.array(repetition(rows).values)
    packed = np.array(repetition(rows, by="compression").values)
    assert np.nanmean(loops > 0.3) < 0.01
    assert np.nanmean(packed > 2.4) < 0.01


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=30).map(" ".join), max_size=8),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=100)
def test_loops_are_counted_by_definition(texts: Sequence[str], n: int) -> None:
    found = repetition([answer(text) for text in texts], n=n).values
    np.testing.assert_allclose(found, [_brute(text, n) for text in texts])


def test_short_texts_are_not_measured_and_say_why() -> None:
    scored = repetition([answer("no no no no no"), answer(""), answer("no " * 6), answer("\u54c8" * 20)])
    assert scored.why == ["no more than 5 words", "no more than 5 words", None, None]
    assert scored.values[2:] == [1.0, 1.0]
    packed = repetition([answer("x" * 99), answer("x" * 1000), answer("\ud800" * 100)], by="compression")
    assert math.isnan(packed.values[0])
    assert packed.why == ["under 100 bytes", None, None]
    assert packed.values[1] > 30
    assert repetition([]).values == []


def test_a_text_is_measured_alone_whatever_stands_beside_it() -> None:
    rng = random.Random(2)
    texts = [*LOOPS.values(), *PROSE, "", "word", *(" ".join(rng.choices(["ab", "cd", "ef"], k=k)) for k in range(40))]
    together = repetition([answer(text) for text in texts]).values
    np.testing.assert_equal(together, [repetition([answer(text)]).values[0] for text in texts])


def test_tokens_by_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "film": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reading = Reading(folder=tmp_path, files=set(), roles=())
    plug = bind("scorer", Spec("length", {"unit": "tokens", "tokenizer": "tokenizer.json"}), SCORERS, reading)
    assert plug([answer(" a good film "), answer("")]) == [3.0, 0.0]
    assert reading["files"] == {tmp_path / "tokenizer.json"}
    (tmp_path / "broken.json").write_text("{}", "utf-8")
    for knobs, message in (
        ({"tokenizer": "tokenizer.json"}, "only `unit: tokens` counts by it"),
        ({"unit": "tokens", "tokenizer": "broken.json"}, r"broken\.json is not a tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            bind("scorer", Spec("length", knobs, "filter.length"), SCORERS, reading)


def test_tokens_without_a_vocabulary_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    reading = Reading(folder=tmp_path, files=set(), roles=())
    with pytest.raises(UserError, match=r"o200k_base is not on this machine.*or name a model's tokenizer\.json"):
        bind("scorer", Spec("length", {"unit": "tokens"}, "filter.length"), SCORERS, reading)


@pytest.mark.usefixtures("vocabularies")
def test_tokens_by_the_vocabulary_of_gpt_4o() -> None:
    import tiktoken

    texts = ["good morning", "Gr\u00fc\u00dfe aus \u6771\u4eac", "<|endoftext|>", ""]
    expected = [len(tiktoken.get_encoding("o200k_base").encode_ordinary(text)) for text in texts]
    assert length([answer(text) for text in texts], unit="tokens") == expected
    assert length([answer("x", prompt=text) for text in texts], unit="tokens", of="prompt") == expected
