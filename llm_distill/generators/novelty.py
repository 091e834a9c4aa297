"""Whether a text is new to a pool of texts: by ROUGE-L, or by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_distill.embeddings import STATIC, Embedder, embedder
from llm_distill.generators.lists import words

if TYPE_CHECKING:
    import numpy as np

#: Candidates that are compared with the pool at once: against 100,000 rows they take 130 MB.
_BLOCK = 64
#: How many words can be told apart, for each is written as one sign; further ones are taken for earlier ones.
_SIGNS = 0x110000
#: Texts as a measure compares them, and how alike each of some is to each of others: (some, others) from 0 to 1.
_Coded = list[Any]
_Measure = tuple[Callable[[Sequence[str]], _Coded], Callable[[_Coded, _Coded], "np.ndarray"]]


class Novelty(BaseModel):
    """How much a new text may be like one that is there already: below `rouge_l`, or below the cosine `embedding`.

    ROUGE-L below 0.7 is self-instruct's bound, and Alpaca's. It asks for other words; `embedding` asks for another meaning,
    at the price of loading `embedder`.
    """

    model_config = ConfigDict(extra="forbid")
    rouge_l: Annotated[float | None, Field(gt=0, le=1)] = None
    embedding: Annotated[float | None, Field(gt=0, le=1)] = None
    embedder: Embedder = STATIC

    @model_validator(mode="after")
    def _one_way(self) -> Novelty:
        if (self.rouge_l is None) == (self.embedding is None):
            raise ValueError("write either `rouge_l: 0.7` or `embedding: 0.9`")
        if self.rouge_l is not None and "embedder" in self.model_fields_set:
            raise ValueError("`embedder` goes with `embedding`, not with `rouge_l`")
        if self.embedding is not None:
            embedder(self.embedder)  # a package that is not installed is found now; nothing is loaded
        return self


#: What most methods use.
ROUGE_L = Novelty(rouge_l=0.7)


class Pool:
    """Texts that are there, joined by those that are new to them. A prompt of 20 words is compared with 10,000 in 1 ms."""

    def __init__(self, novelty: Novelty, texts: Iterable[str] = ()) -> None:
        self._limit = novelty.rouge_l or novelty.embedding or 1.0
        self._encode, self._likeness = _cosine(novelty.embedder) if novelty.embedding else _rouge_l()
        self._known = self._encode(list(texts))

    def take(self, texts: Sequence[str]) -> list[bool]:
        """Which of the texts are new, to the pool and to those before them; takes these in."""
        taken = []
        for start in range(0, len(texts), _BLOCK):
            taken += self._take(texts[start : start + _BLOCK])
        return taken

    def _take(self, texts: Sequence[str]) -> list[bool]:
        import numpy as np

        coded = self._encode(texts)
        old = np.any(self._likeness(coded, self._known) >= self._limit, axis=1)
        alike = self._likeness(coded, coded) >= self._limit
        chosen: list[int] = []
        for place in range(len(texts)):
            if not old[place] and not alike[place, chosen].any():
                chosen.append(place)
        self._known.extend(coded[place] for place in chosen)
        new = set(chosen)
        return [place in new for place in range(len(texts))]


def rouge_l(a: str, b: str) -> float:
    """The f-measure of ROUGE-L (Lin 2004) without stemming, as rouge-score has it; 0 where a text has no words."""
    first, second = words(a), words(b)
    return 2 * shared(first, second) / (len(first) + len(second)) if first and second else 0.0


def shared(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence of words."""
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(first, second)


def _rouge_l() -> _Measure:
    import numpy as np
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    signs: dict[str, str] = {}

    def encode(texts: Sequence[str]) -> _Coded:
        return ["".join(signs.setdefault(w, chr(len(signs) % _SIGNS)) for w in words(text)) for text in texts]

    def likeness(some: _Coded, others: _Coded) -> np.ndarray:
        common = cdist(some, others, scorer=LCSseq.similarity, dtype=np.int32, workers=-1)
        lengths = np.add.outer([len(one) for one in some], [len(one) for one in others])
        like: np.ndarray = 2 * common / np.maximum(lengths, 1)
        return like

    return encode, likeness


def _cosine(name: str) -> _Measure:
    import numpy as np

    embed = embedder(name)

    def encode(texts: Sequence[str]) -> _Coded:
        return list(embed(list(texts))) if texts else []

    def likeness(some: _Coded, others: _Coded) -> np.ndarray:
        if not some or not others:
            return np.zeros((len(some), len(others)))
        like: np.ndarray = np.asarray(some) @ np.asarray(others).T
        return like

    return encode, likeness
