"""How varied prompts are: distinct n-grams, distance between them, and the share of each tag's values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llm_distill.records import Prompt, content_id

if TYPE_CHECKING:
    import numpy as np

#: distinct-n falls with the number of texts, so it is measured on so many at most, picked by hash: sets can be compared.
_SAMPLE = 1000
#: Values of a tag that a report has room for, the most frequent ones; a tag with a value for every other row is an
#: identifier, and is counted only.
_VALUES = 50
_WORD = re.compile(r"\w+")


def embedding() -> Callable[[Sequence[str]], np.ndarray] | None:
    """What measures the distance between prompts, where it is installed: static word vectors, at thousands of rows a second."""
    if find_spec("wordllama") is None:
        return None
    from llm_distill.embeddings import embedder

    return embedder("wordllama")


def coverage(prompts: Sequence[Prompt], embed: Callable[[Sequence[str]], np.ndarray] | None) -> dict[str, Any]:
    """rows; distinct_1, distinct_2 (Li et al. 2016): the share of n-grams that are different ones; mean_distance: 1 minus
    the mean cosine of pairs of rows, by `embed`; tags: for each tag the share of rows that have it, how many values it has,
    and the share of each among them.
    """
    sample = sorted(prompts, key=lambda prompt: content_id(["coverage", prompt.row_id]))[:_SAMPLE]
    words = [_WORD.findall(prompt.text.casefold()) for prompt in sample]
    tags = sorted({tag for prompt in prompts for tag in prompt.tags} - {"parent", "group"})
    return {
        "rows": len(prompts),
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "mean_distance": None if embed is None else mean_distance(embed([prompt.text for prompt in sample])),
        "tags": {tag: _shares([p.tags[tag] for p in prompts if tag in p.tags], len(prompts)) for tag in tags},
    }


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def mean_distance(vectors: np.ndarray) -> float | None:
    """1 - the mean cosine over all pairs of (n, d) unit vectors: the square of their sum holds every pair twice, and n ones."""
    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0, dtype="float64")
    own = (vectors.astype("float64") ** 2).sum()
    return float(1 - (total @ total - own) / (n * (n - 1)))


def _shares(values: Sequence[str], rows: int) -> dict[str, Any]:
    counts = Counter(values)
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_VALUES]
    if len(counts) > max(_VALUES, len(values) / 2):
        top = []
    return {
        "rows": len(values) / rows,
        "values": len(counts),
        "shares": {value: count / len(values) for value, count in top},
    }
