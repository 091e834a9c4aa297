"""Near duplicates: the pairs that brute force finds, on real sentences with planted edits, and the odd texts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.near import NearIndex, joined, near_pairs, neighbours, similarity
from llm_distill.ngrams import hashed
from tests.bench.planted import edited, real_sentences

TEXT = st.text(st.sampled_from("ab cd\u4e2d\u6587 \u00e9\u0301\ufe0f\U0001f600+-'\n"), max_size=40)


def _brute(texts: Sequence[str], threshold: float, ngram: int = 3) -> dict[tuple[int, int], float]:
    """Every pair's Jaccard similarity, where it is at least the threshold, without any of the code under test but words."""
    grams = hashed(texts, ngram)
    sets = [grams.of(i) for i in range(len(texts))]
    found = {}
    for later, one in enumerate(sets):
        for earlier in range(later):
            both = len(one & sets[earlier])
            if both and (score := both / (len(one) + len(sets[earlier]) - both)) >= threshold:
                found[later, earlier] = score
    return found


@pytest.mark.parametrize(("threshold", "ngram"), [(0.5, 3), (0.7, 2), (0.8, 1), (0.9, 1)])
def test_pairs_of_real_sentences_are_those_that_brute_force_finds(threshold: float, ngram: int) -> None:
    rng = random.Random(3)
    sentences = real_sentences()[:700]
    texts = sentences + [edited(rng, rng.choice(sentences), rng.randint(1, 2)) for _ in range(150)]
    rng.shuffle(texts)
    truth, found = _brute(texts, threshold, ngram), set(near_pairs(texts, threshold, ngram))
    assert found <= truth.keys()  # what is reported was compared exactly
    assert len(found) >= 0.97 * len(truth) > 20


def test_words_are_letters_digits_symbols_and_characters_of_scripts_without_spaces() -> None:
    def same(one: str, other: str) -> bool:
        return similarity(one, other, 1) == 1.0

    assert same("The CAT, sat!", "the cat sat")
    assert same("Stra\u00dfe", "STRA\u1e9eE")
    assert same("caf\u00e9 au lait", "cafe\u0301 au lait")
    assert same("\uff21\uff22\uff23 \uff11", "abc 1")
    assert not same("3 + 4", "3 * 4")
    assert not same("well \U0001f600", "well \U0001f622")
    assert same("\u2764\ufe0f yes", "\u2764 yes")
    assert similarity("\u6211\u559c\u6b22\u732b", "\u6211\u559c\u6b22\u72d7", 1) == pytest.approx(3 / 5)
    assert (
        similarity(
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", "\u0939\u093f\u0928\u094d\u0926\u0940", 1
        )
        == 0.5
    )
    assert similarity("one two three four five", "one two three four six", 3) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        ([], []),
        (["alone"], []),
        (["", "", "  \n", "!?!"], []),  # without words nothing is like anything
        (["yes", "Yes.", "no"], [(1, 0)]),
        (["two words", "two words", "two word"], [(1, 0)]),
        (["\ud800 half a pair", "\ud800 half a pair"], [(1, 0)]),
        (["a b c d e f g h", "x", "a b c d e f g h", "a b c d e f g h"], [(2, 0), (3, 0), (3, 2)]),
    ],
)
def test_odd_texts(texts: list[str], pairs: list[tuple[int, int]]) -> None:
    assert sorted(near_pairs(texts)) == pairs


@given(st.lists(TEXT, max_size=12), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_hashes_do_not_depend_on_what_stands_beside_a_text(texts: list[str], ngram: int) -> None:
    together = hashed(texts, ngram)
    for row, text in enumerate(texts):
        assert together.of(row) == hashed([text], ngram).of(0)


@given(st.lists(TEXT, max_size=12))
@settings(deadline=None, max_examples=60)
def test_equal_texts_are_always_found_and_nothing_under_the_threshold(texts: list[str]) -> None:
    doubled = [*texts, *texts]
    truth, found = _brute(doubled, 0.8), set(near_pairs(doubled, 0.8))
    assert found <= truth.keys()
    crowded = {
        later
        for later, found_ in enumerate(neighbours(doubled, 0.8, 3, lambda near: len(near) >= 8))
        if len(found_) >= 8
    }
    assert not [pair for pair, score in truth.items() if score == 1.0 and pair not in found and not crowded]


def test_an_index_says_what_the_batch_says() -> None:
    texts = real_sentences()[:300]
    texts += [edited(random.Random(n), text, 1) for n, text in enumerate(texts[:80])]
    index, found = NearIndex(0.7), set()
    for key, text in enumerate(texts):
        found |= {(key, earlier) for earlier in index.near(text)}
        index.add(key, text)
    assert found == set(near_pairs(texts, 0.7))
    assert len(found) > 20
    with pytest.raises(ValueError, match="is taken"):
        index.add(0, "again")


def test_the_nearest_comes_first() -> None:
    index = NearIndex(0.3)
    index.add(7, "the quick brown fox jumps over the lazy dog today")
    index.add(3, "the quick brown fox jumps over the lazy dog")
    index.add(5, "nothing of the kind stands in this sentence")
    assert index.near("the quick brown fox jumps over the lazy dog") == [3, 7]


def test_thousands_of_one_template_cost_no_square() -> None:
    texts = [
        f"Write a short and friendly review of product number {n} for our online shop, please" for n in range(3000)
    ]
    pairs = list(near_pairs(texts, 0.5))
    joined = {later for later, _ in pairs}
    assert joined == set(range(1, 3000))  # all hang together ...
    assert len(pairs) < 3000 * 40  # ... by few of their 4.5 million pairs


def test_portions_do_not_show() -> None:
    """Texts of all lengths, one of half a million characters: pairs across portions are found as within one."""
    rng = random.Random(5)
    words = [f"w{n}" for n in range(5000)]
    long = " ".join(rng.choices(words, k=80_000))
    texts = [long, *real_sentences()[:600], long + " end", *real_sentences()[:5]]
    pairs = set(near_pairs(texts, 0.8))
    assert (601, 0) in pairs
    assert {(602 + n, 1 + n) for n in range(5)} <= pairs


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hashed(["The cat sat on the mat."], 3).hashes[:2].tolist() == EXPECTED
    assert hashed([], 3).hashes.dtype == np.uint64


EXPECTED = [12131881435957398316, 517471677686715294]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_what_pairs_join_has_one_name(pairs: list[tuple[int, int]]) -> None:
    named = joined([(chr(97 + one), chr(97 + other)) for one, other in pairs])
    reached = {name: {name} for name in named}
    for _ in pairs:
        for one, other in pairs:
            both = reached[chr(97 + one)] | reached[chr(97 + other)]
            reached[chr(97 + one)] = reached[chr(97 + other)] = both
    assert named == {name: min(found) for name, found in reached.items()}
