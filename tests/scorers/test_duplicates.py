"""Rows that say again what an earlier row says: which are found, which stay, what the reason names."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from llm_distill import near
from llm_distill.ngrams import hashed
from llm_distill.scorers import Context
from llm_distill.scorers.duplicates import near_duplicate, semantic_duplicate
from llm_distill.tasks import Task
from tests.bench.planted import edited, real_sentences
from tests.conftest import Desk
from tests.scorers.rows import answer

CONTEXT = Context(Task(kind="generate"))
#: Pairs a reader can check: near in words at 0.7, or not.
NEAR = [
    (
        "The screen of this phone is bright and sharp, the battery lasts two days and the camera is good even at night.",
        "The screen of this phone is bright and sharp, the battery lasts three days and the camera is good even at night.",
    ),
    (
        "Great product, I would buy it again and again for all of my friends.",
        "GREAT PRODUCT! I would buy it again and again, for all of my friends",
    ),
    (
        "\u8fd9\u4e2a\u624b\u673a\u7684\u5c4f\u5e55\u5f88\u597d\uff0c\u7535\u6c60\u53ef\u4ee5\u7528\u4e24\u5929\u3002",
        "\u8fd9\u4e2a\u624b\u673a\u7684\u5c4f\u5e55\u5f88\u597d\uff0c\u7535\u6c60\u53ef\u4ee5\u7528\u4e24\u5929\u4e86\u3002",
    ),
]
FAR = [
    ("The film is great.", "The film is awful."),
    ("How many legs does a spider have?", "How many legs does an ant have?"),
    ("What is 12 + 30?", "What is 12 * 30?"),
    ("I love this phone and would buy it again.", "This phone I would buy again, for I love it."),
    ("", ""),
    ("!!!", "!!!"),
]


@pytest.mark.parametrize(("one", "other"), NEAR)
def test_near_in_words(one: str, other: str) -> None:
    scored = near_duplicate([answer("x", prompt=one), answer("x", prompt=other)], replace(CONTEXT, max=0.7))
    assert scored.values[0] == 0.0
    assert scored.values[1] == near.similarity(one, other) > 0.7


@pytest.mark.parametrize(("one", "other"), FAR)
def test_not_near_in_words(one: str, other: str) -> None:
    assert near_duplicate([answer("x", prompt=one), answer("x", prompt=other)], CONTEXT).values == [0.0, 0.0]


def test_the_reason_names_the_row_and_the_part_is_chosen() -> None:
    rows = [answer("yes, it is", prompt="first question"), answer("yes, it is", prompt="second question")]
    assert near_duplicate(rows, CONTEXT).values == [0.0, 0.0]
    said = near_duplicate(rows, CONTEXT, of="answer")
    assert said.values == [0.0, 1.0]
    assert said.why[1] == f"1.00 like {rows[0].prompt.row_id}"
    assert near_duplicate(rows, CONTEXT, of="both").values == [0.0, 0.0]


def _chain(steps: int) -> list[str]:
    """Texts of which each shares most words with the one before, and the last none with the first."""
    return [" ".join(f"w{n}" for n in range(step * 2, step * 2 + 20)) for step in range(steps)]


def test_a_chain_does_not_fall_whole() -> None:
    texts = _chain(10)
    assert near.similarity(texts[0], texts[1], 1) > 0.8 > near.similarity(texts[0], texts[2], 1)
    scored = near_duplicate([answer("x", prompt=text) for text in texts], CONTEXT, ngram=1)
    assert [value > 0.8 for value in scored.values] == [False, True] * 5


def test_every_kept_row_is_unlike_all_kept_before_it_and_every_dropped_one_like_some() -> None:
    rng = random.Random(1)
    texts = real_sentences()[:400]
    texts += [edited(rng, rng.choice(texts), 1) for _ in range(200)]
    rng.shuffle(texts)
    scored = near_duplicate([answer("x", prompt=text) for text in texts], replace(CONTEXT, max=0.6), ngram=2)
    grams, kept, missed = hashed(texts, 2), list[set[int]](), 0
    for row, value in enumerate(scored.values):
        own = grams.of(row)
        best = max((len(own & other) / len(own | other) for other in kept), default=0.0)
        if value > 0.6:
            assert value == best
        else:
            missed += best > 0.6
            kept.append(own)
    dropped = len(texts) - len(kept)
    assert dropped > 100
    assert missed <= 0.02 * dropped


def test_meaning_is_compared_too() -> None:
    rows = [
        answer("x", prompt="How can I change the password of my account?"),
        answer("x", prompt="The train to Hamburg leaves at noon."),
        answer("x", prompt="How do I change the password for my account?"),
        answer("x", prompt=""),
        answer("x", prompt=" "),
    ]
    scored = semantic_duplicate(rows, replace(CONTEXT, max=0.9))
    assert [value > 0.9 for value in scored.values] == [False, False, True, False, False]
    assert scored.why[2] == f"{scored.values[2]:.2f} like {rows[0].prompt.row_id}"
    assert semantic_duplicate([], CONTEXT).values == []


def test_a_semantic_chain_does_not_fall_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit vectors 20 degrees apart: each is like the last, and every second one is far enough from the last one kept."""
    monkeypatch.setattr("llm_distill.scorers.duplicates._ROWS", 3)  # so that the chain goes over several blocks
    angles = np.radians(np.arange(12) * 20)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    monkeypatch.setattr("llm_distill.embeddings.embedder", lambda name: lambda texts: vectors.copy())
    scored = semantic_duplicate([answer("x", prompt=str(n)) for n in range(12)], replace(CONTEXT, max=0.9))
    assert [value > 0.9 for value in scored.values] == [False, True] * 6
    np.testing.assert_allclose(scored.values[2::2], np.cos(np.radians(40)), atol=1e-5)


def test_a_run_drops_near_duplicates_by_its_own_bound(desk: Desk) -> None:
    text = "the phone has a bright screen and the battery lasts for two whole days"
    desk.seeds([{"prompt": text}, {"prompt": f"{text} indeed"}, {"prompt": "good"}])
    recipe = desk.recipe(filter=[{"near_duplicate": {"max": 0.8}}])
    strict = desk.rows(desk.here(recipe), "kept")
    loose = desk.rows(desk.here(recipe, "filter.near_duplicate.max=0.95"), "kept")
    assert (len(strict), len(loose)) == (2, 3)
