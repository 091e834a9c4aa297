"""Scorers that compare a row with texts it must not resemble."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill import embeddings
from llm_distill.embeddings import STATIC, Embedder
from llm_distill.ngrams import hashed, portions
from llm_distill.records import Answer
from llm_distill.scorers import Context, Scored
from llm_distill.scorers.benchmarks import Source, name_of, texts_of
from llm_distill.scorers.parts import Part, texts

if TYPE_CHECKING:
    import numpy as np

#: Words a gram: of the recipe's own held-out rows, which may be short, and of benchmarks.
_OWN, _PUBLIC = 8, 13
_HELD_OUT = "held-out rows"


def _by(name: str | None, info: ValidationInfo) -> str | None:
    if info.data.get("by") == "embedding":
        return embeddings.installed(name or STATIC)
    if name is not None:
        raise ValueError("only `by: embedding` embeds; remove it, or set `by`")
    return None


def leakage(
    answers: Sequence[Answer],
    context: Context,
    *,
    against: list[Source] = [],  # noqa: B006  never changed
    by: Literal["words", "embedding"] = "words",
    of: Part = "prompt",
    n: Annotated[int, Field(ge=1, le=32)] | None = None,
    embedder: Annotated[Embedder | None, AfterValidator(_by)] = None,
) -> Scored:
    """How far a row is the same as a held-out prompt, or as a text of the benchmarks and files named in `against`.

    words: the share of the row's word n-grams that stand in those texts; 1 is a copy. With 13 words (Brown et al. 2020,
    appendix C; `max: 0` is their rule, that a single one is too many) few are shared by chance, but the short rows of
    classification tasks have none, so held-out rows are compared by 8. A text shorter than n counts as one gram, so it
    leaks only when it is the same text. embedding: the cosine with the nearest of those texts, which finds what is said in
    other words, and what is only of the same kind: look at the rows before you trust a bound.
    """
    found = texts(answers, of)
    values, why = [0.0] * len(found), [None] * len(found)  # type: list[float], list[str | None]
    sources = [(_HELD_OUT, [prompt.text for prompt in context.held_out])] if context.held_out else []
    embed = embeddings.embedder(embedder or STATIC) if by == "embedding" else None
    own = None if embed is None else embed(found)
    for name, kept_out in [*sources, *((name_of(source), texts_of(source)) for source in against)]:
        if embed is not None and own is not None:
            scores, _ = embeddings.nearest(own, embed(list(kept_out)))
            told = "cosine {:.2f} with {}"
        else:
            words = n or (_OWN if name == _HELD_OUT else _PUBLIC)
            scores = _shares(found, _all_grams(kept_out, words), words)
            told = f"{{:.2f}} of its {words}-grams stand in {{}}"
        for place, score in enumerate(scores.tolist()):
            if score > values[place]:
                values[place], why[place] = min(score, 1.0), told.format(score, name)
    return Scored(values, why)


def _all_grams(kept_out: Iterable[str], n: int) -> np.ndarray:
    """Every n-gram of the texts once, sorted."""
    import numpy as np

    held = list(kept_out)
    each = [np.unique(hashed(held[some.start : some.stop], n).hashes) for some in portions(held)]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *each]))


def _shares(found: Sequence[str], known: np.ndarray, n: int) -> np.ndarray:
    """The share of each text's n-grams that are among the known ones, (texts,); 0 for a text without words."""
    import numpy as np

    shares = [np.zeros(0)]
    for some in portions(found):
        grams = hashed(found[some.start : some.stop], n)
        place = np.searchsorted(known, grams.hashes)
        there = np.append(known, np.uint64(0))[place] == grams.hashes
        there &= place < len(known)
        counts = np.diff(grams.offsets)
        hits = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=there, minlength=len(counts))
        shares.append(hits / np.maximum(counts, 1))
    return np.concatenate(shares)
