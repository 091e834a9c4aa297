"""Which rows are new to a data set: not equal to an earlier one, not near it, and not saying the same.

Rows of one counterfactual group are alike by intention and are not held against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llm_distill.embeddings import embedder, nearest
from llm_distill.mixing import unit
from llm_distill.near import NearIndex, near_index
from llm_distill.ngrams import portions
from llm_distill.recipe_data_set import DataSet
from llm_distill.records import Prompt, content_id

if TYPE_CHECKING:
    import numpy as np

#: Why a row is not new, or stays out all the same: it was forgotten, or would be taught and held out.
Why = Literal["exact", "near", "semantic", "forgotten", "other_side"]


def fingerprint(prompt: Prompt) -> str:
    """What is kept of a row that was forgotten: the hash of its gist, and no word of it."""
    return content_id(["forgotten", prompt.gist])


class Known:
    """The rows that new ones are held against; what is found to be new is one of them from then on."""

    def __init__(self, how: DataSet, rows: Sequence[Prompt], forgotten: set[str]) -> None:
        self._how, self._forgotten = how, forgotten
        self._gists: set[str] = set()
        self._units: list[str] = []  # of the rows, by their place in the index
        self._index = None if how.near is None else NearIndex(how.near)
        self._vectors: Any = None  # (n, d), in the same order
        for some, vectors in self._read(rows):
            for row in some:
                self._add(row)
            self._remember(vectors)

    def sift(self, rows: Sequence[Prompt]) -> list[Why | None]:
        """Of each row, in order, why it is not new; None where it is, and later ones are held against it."""
        found: list[Why | None] = []
        for some, vectors in self._read(rows):
            # By meaning: against what was known before these all at once, among themselves one by one.
            alike = [] if vectors is None else self._alike(vectors)
            fresh: list[int] = []
            for place, row in enumerate(some):
                why = self._why(row)
                if why is None and vectors is not None:
                    own, among = unit(row), self._above(vectors[fresh] @ vectors[place])
                    others = [*alike[place], *(unit(some[fresh[other]]) for other in among)]
                    why = "semantic" if any(other != own for other in others) else None
                found.append(why)
                if why is None:
                    self._add(row)
                    fresh.append(place)
            self._remember(None if vectors is None else vectors[fresh])
        return found

    def _why(self, row: Prompt) -> Why | None:
        if fingerprint(row) in self._forgotten:
            return "forgotten"
        if row.gist in self._gists:
            return "exact"
        if self._index and any(self._units[place] != unit(row) for place in self._index.near(row.text)):
            return "near"
        return None

    def _alike(self, vectors: np.ndarray) -> list[list[str]]:
        """For each of (n, d) vectors the units of the rows known before that say the same."""
        if self._vectors is None:
            return [[] for _ in vectors]
        best, _ = nearest(vectors, self._vectors)
        near = {int(place) for place in self._above(best)}
        return [
            [self._units[place] for place in self._above(self._vectors @ vector)] if i in near else []
            for i, vector in enumerate(vectors)
        ]

    def _above(self, cosines: np.ndarray) -> list[int]:
        assert self._how.semantic
        return [int(place) for place in (cosines > self._how.semantic.max).nonzero()[0]]

    def _read(self, rows: Sequence[Prompt]) -> Iterator[tuple[Sequence[Prompt], np.ndarray | None]]:
        """Rows some at a time, read ahead, with their vectors where those count."""
        texts = [row.text for row in rows]
        for some in portions(texts):
            part = texts[some.start : some.stop]
            if self._index is not None:
                self._index.expect(part)
            vectors = embedder(self._how.semantic.by)(part) if self._how.semantic else None
            yield rows[some.start : some.stop], vectors

    def _add(self, row: Prompt) -> None:
        self._gists.add(row.gist)
        if self._index is not None:
            self._index.add(len(self._units), row.text)
        self._units.append(unit(row))

    def _remember(self, vectors: np.ndarray | None) -> None:
        if vectors is None or not len(vectors):
            return
        import numpy as np

        self._vectors = vectors if self._vectors is None else np.concatenate([self._vectors, vectors])


class Across:
    """The rows of one side, by which a row of the other is told that equals one, is near it, is made from it, or is of its group.

    near: as the recipe's `held_out` has it; null: nearness does not count. Runs that fill a set side by side need it: each knew
    what the set had when it began, and not what another has taught or held out meanwhile.
    """

    def __init__(self, near: float | None, rows: Sequence[Prompt]) -> None:
        self._names = {unit(row) for row in rows} | {row.row_id for row in rows} | {row.gist for row in rows}
        self._index = None if near is None else near_index([row.text for row in rows], near)

    def has_like(self, row: Prompt) -> bool:
        """Whether a row would be on both sides."""
        names = {unit(row), row.row_id, row.gist, row.tags.get("parent", row.row_id)}
        return not names.isdisjoint(self._names) or (self._index is not None and bool(self._index.near(row.text)))


def counted(why: Sequence[Why | None]) -> dict[str, int]:
    """How many rows are not new, by why."""
    return dict(sorted(Counter(filter(None, why)).items()))
