"""Scorers that find rows which say again what an earlier row says: in nearly the same words, or in others.

A row is compared with those that its own filter keeps. So of a chain, where each row resembles the one before and the last is
nothing like the first, more than one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from llm_distill import embeddings
from llm_distill.embeddings import STATIC, Embedder
from llm_distill.near import neighbours
from llm_distill.records import Answer
from llm_distill.scorers import Context, Scored
from llm_distill.scorers.parts import Part, texts

#: Similarities above which a row is dropped, where the recipe says nothing else.
NEAR, SEMANTIC = 0.8, 0.95
#: No hash finds pairs that share less.
_LEAST = 0.05
#: Rows compared at once with all that are kept.
_ROWS = 512


def near_duplicate(
    answers: Sequence[Answer],
    context: Context,
    *,
    of: Part = "prompt",
    ngram: Annotated[int, Field(ge=1, le=16)] = 3,
) -> Scored:
    """How near the nearest earlier row is that this filter keeps: the Jaccard similarity of their word n-grams, exactly.

    0 where none is as near as the filter's `max` (0.8 unless the recipe says so): candidates come from MinHash with
    locality-sensitive hashing, which finds 98.5 % of the pairs that lie just there and more of the nearer ones. Three words
    a gram: one word changed in a sentence of ten leaves 5 of 11 grams, so short rows are near only when nearly equal.
    """
    bound = NEAR if context.max is None else context.max
    floor = min(max(bound, _LEAST), 1.0)
    values, why = [], []
    found = neighbours(texts(answers, of), floor, ngram, lambda near: bool(near) and near[0] > bound)
    for nearest in found:
        place, score = nearest[0] if nearest else (0, 0.0)
        values.append(score)
        why.append(f"{score:.2f} like {answers[place].prompt.row_id}" if nearest else None)
    return Scored(values, why)


def semantic_duplicate(
    answers: Sequence[Answer], context: Context, *, of: Part = "prompt", embedder: Embedder = STATIC
) -> Scored:
    """The cosine of a row with the nearest earlier row that this filter keeps (Abbas et al. 2023, arXiv 2303.09540).

    What is near depends on the embedder: with `wordllama` paraphrases lie between 0.7 and 0.95 and so do opposites, so 0.95,
    the bound unless the recipe says so, drops what differs in a word or two. Every row is compared with every kept one, some
    at a time: 100,000 rows of 256 numbers take 100 MB and about a minute on two cores.
    """
    bound = SEMANTIC if context.max is None else context.max
    vectors = embeddings.embedder(embedder)(texts(answers, of))
    kept: list[int] = []  # their vectors are moved to the front
    values: list[float] = []
    why: list[str | None] = []
    for first in range(0, len(answers), _ROWS):
        block = vectors[first : first + _ROWS].copy()
        before, places = embeddings.nearest(block, vectors[: len(kept)])
        inside, here, old = block @ block.T, list[int](), len(kept)
        for row, score in enumerate(before.tolist()):
            place = kept[places[row]] if old else -1
            if here and (within := inside[row, here]).max() > score:
                score, place = float(within.max()), first + here[int(within.argmax())]  # noqa: PLW2901
            values.append(min(max(score, 0.0), 1.0))  # rounding
            why.append(f"{score:.2f} like {answers[place].prompt.row_id}" if score > 0 else None)
            if score <= bound:
                vectors[len(kept)] = block[row]
                kept.append(first + row)
                here.append(row)
    return Scored(values, why)
