"""Rows with planted near duplicates, made up and of real sentences, and how well those were found.

The made-up ones: about 75 words each, a fifth of them near copies (one to four words changed, cut or put in) of an earlier
row. Rows share whole sentences now and then, so that something nearly resembles without being a copy. Their words are drawn
by Zipf's law from syllables.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

_SYLLABLES = (
    "ba be bi bo bu da de di do du fa fe fi ga go ka ke ki la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se so "
    "ta te ti to va ve vi"
)
_CACHE = Path(__file__).parents[2] / "data" / "quickstart" / "cache"


def planted(n: int, share: float = 0.2, seed: int = 7) -> tuple[list[str], list[int]]:
    """n texts, and for each the row that it was copied from, or its own number."""
    rng = random.Random(seed)
    syllables = _SYLLABLES.split()
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))

    def sentence() -> list[str]:
        return rng.choices(vocabulary, cum_weights=weights, k=rng.randint(8, 16))

    shared = [sentence() for _ in range(max(1000, n // 2))]
    texts: list[str] = []
    origin: list[int] = []
    first: dict[int, list[str]] = {}
    originals: list[int] = []
    for row in range(n):
        if originals and rng.random() < share:
            origin.append(rng.choice(originals))
            words = _changed(rng, first[origin[-1]], rng.randint(1, 4), vocabulary)
        else:
            words = []
            while len(words) < 70:
                words += rng.choice(shared) if rng.random() < 0.15 else sentence()
            first[row] = words
            originals.append(row)
            origin.append(row)
        texts.append(" ".join(words) + ".")
    return texts, origin


def _changed(rng: random.Random, words: Sequence[str], times: int, vocabulary: Sequence[str]) -> list[str]:
    changed = list(words)
    for _ in range(times):
        place, kind = rng.randrange(len(changed)), rng.choice(("change", "cut", "put in"))
        changed[place : place + (kind != "put in")] = [] if kind == "cut" else [rng.choice(vocabulary)]
        changed = changed or [rng.choice(vocabulary)]
    return changed


def edited(rng: random.Random, text: str, times: int) -> str:
    """A sentence with some of its words changed, cut or put in."""
    return " ".join(
        _changed(rng, text.split(), times, ["really", "very", "film", "the", "not", "price", "quite", "one"])
    )


def real_sentences() -> list[str]:
    """Sentences that people wrote, from the files that `make setup` fetched; without those, this repository's own."""
    found = [
        json.loads(line)["prompt"]
        for name in ("prompts", "dev", "held_out")
        if (path := _CACHE / f"{name}.jsonl").is_file()
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return found or _of_the_readme()


def _of_the_readme() -> list[str]:
    root = Path(__file__).parents[2]
    pages = (root / "README.md", *sorted((root / "docs").glob("*.md")))
    texts = [path.read_text(encoding="utf-8") for path in (*pages, *sorted((root / "llm_distill").rglob("*.py")))]
    return [
        sentence
        for text in texts
        for sentence in " ".join(text.split()).split(". ")
        if 6 <= len(sentence.split()) <= 40
    ]


def copies_found(origin: Sequence[int], pairs: Iterable[tuple[int, int]]) -> tuple[float, float, int]:
    """Recall of planted copies, precision of removed rows, rows removed: a row is removed when it is in the family of an
    earlier one by some chain of pairs.
    """
    parent = list(range(len(origin)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    copies = [row for row, source in enumerate(origin) if source != row]
    removed = [row for row in range(len(origin)) if root(row) != row]
    found = sum(root(row) == root(origin[row]) for row in copies)
    right = sum(origin[row] == origin[root(row)] for row in removed)
    return found / max(1, len(copies)), right / max(1, len(removed)), len(removed)
