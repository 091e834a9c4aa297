"""Near duplicates: which texts share most of their word n-grams with an earlier one.

MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) finds the
candidates, by the package rensa; each is then compared gram by gram, so chance decides what is found, never what is reported.
A text of fewer words than n is one gram of all its words; one without words is near to nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from llm_distill.ngrams import Grams, hashed, portions

#: A pair at the threshold is found with at least this probability; one above it with more.
_RECALL = 0.985
#: More bands find more and cost more: each is a hash table over all rows.
_BANDS, _ROWS, _LEAST = 16, 8, 64
_SEED = 42
#: How many standard errors below the threshold an estimate may lie for its pair to be compared exactly.
_ERRORS = 3.5
#: Portions of texts that are hashed before they are needed.
_AHEAD = 2
#: Texts that are remembered as read: who asks for one often adds it next.
_RECENT = 64
#: A text's n-grams: where they are among those of several texts, and their sketch.
_Read = tuple[Grams, int, Any]
#: A row with so many neighbours is not offered to later ones, which find those neighbours: work grows with the rows, not
#: with their square, where thousands are made from one template.
_CROWD = 8


def near_pairs(texts: Sequence[str], threshold: float = 0.7, ngram: int = 3) -> Iterator[tuple[int, int]]:
    """(later, earlier) indices of texts whose word n-grams have a Jaccard similarity of at least the threshold.

    Of a crowd, where a text has eight neighbours before it, later texts are paired with those neighbours instead of it.
    """
    for later, found in enumerate(neighbours(texts, threshold, ngram, lambda near: len(near) >= _CROWD)):
        for earlier, _ in found:
            yield later, earlier


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of every name in the pairs, the least of all names that pairs join it with, through others too."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while (up := above.setdefault(name, name)) != name:
            above[name] = name = above[up]
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        above[high] = low
    return {name: root(name) for name in list(above)}


def neighbours(
    texts: Sequence[str], threshold: float, ngram: int, passed_over: Callable[[Sequence[float]], bool]
) -> Iterator[list[tuple[int, float]]]:
    """For each text the earlier ones of at least this similarity with it, nearest first: (index, Jaccard similarity).

    A text is offered to later ones unless `passed_over(its similarities)`. Memory grows by the index alone.
    """
    index = _Bands(threshold)
    for rows, grams in _ahead(texts, ngram):
        sketches = index.sketches(grams)
        for row, sketch in zip(rows, sketches, strict=True):
            index.insert(row, sketch)
        likely = [index.likely(sketch, row) for row, sketch in zip(rows, sketches, strict=True)]
        needed = {key for row, keys in zip(rows, likely, strict=True) if keys for key in (row, *keys)}
        before = sorted(key for key in needed if key < rows.start)
        again = hashed([texts[key] for key in before], ngram)
        sets = {key: again.of(place) for place, key in enumerate(before)}
        sets |= {key: grams.of(key - rows.start) for key in needed if key >= rows.start}
        for row, keys in zip(rows, likely, strict=True):
            found = []
            if keys:
                pairs = ((key, _jaccard(sets[row], sets[key])) for key in keys if key in index)
                found = sorted((pair for pair in pairs if pair[1] >= threshold), key=lambda pair: (-pair[1], pair[0]))
                if passed_over([similarity for _, similarity in found]):
                    index.remove(row)
            yield found


def _ahead(texts: Sequence[str], ngram: int) -> Iterator[tuple[range, Grams]]:
    """The n-grams of some texts after others; the next are hashed meanwhile, for which numpy needs no turn of Python's."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[tuple[range, Future[Grams]]] = deque()
        for rows in portions(texts):
            waiting.append((rows, thread.submit(hashed, texts[rows.start : rows.stop], ngram)))
            if len(waiting) > _AHEAD:
                done, grams = waiting.popleft()
                yield done, grams.result()
        for done, grams in waiting:
            yield done, grams.result()


class NearIndex:
    """Texts that can be asked, one at a time, for those near to another. The texts are held, not copied."""

    def __init__(self, threshold: float = 0.7, ngram: int = 3) -> None:
        self._threshold, self._bands, self._texts = threshold, _Bands(threshold), dict[int, str]()
        self._ngram, self._expected = ngram, dict[str, _Read]()
        self._alone = lru_cache(maxsize=_RECENT)(lambda text: self._together([text])[text])

    def expect(self, texts: Sequence[str]) -> None:
        """Read the texts that are asked for next: many at once take a third of the time that they take one by one."""
        self._expected = self._together(texts)

    def _together(self, texts: Sequence[str]) -> dict[str, _Read]:
        grams = hashed(texts, self._ngram)
        sketches = self._bands.sketches(grams)
        return {text: (grams, place, sketches[place]) for place, text in enumerate(texts)}

    def _read(self, text: str) -> _Read:
        return self._expected.get(text) or self._alone(text)

    def add(self, key: int, text: str) -> None:
        """Put a text in under a key of its own, 0 or more."""
        if key in self._texts:
            raise ValueError(f"the key {key} is taken")
        self._texts[key] = text
        self._bands.insert(key, self._read(text)[-1])

    def near(self, text: str) -> list[int]:
        """Keys of the texts whose similarity with this one is at least the threshold, the nearest first."""
        grams, place, sketch = self._read(text)
        found = []
        if keys := self._bands.likely(sketch):
            own = grams.of(place)
            for key in keys:
                others, where, _ = self._read(self._texts[key])
                found.append((_jaccard(own, others.of(where)), key))
        return [key for s, key in sorted(found, key=lambda pair: (-pair[0], pair[1])) if s >= self._threshold]


def near_index(texts: Sequence[str], threshold: float) -> NearIndex:
    """An index of all these texts, each under its place."""
    index = NearIndex(threshold)
    for some in portions(texts):
        index.expect(texts[some.start : some.stop])
        for place in some:
            index.add(place, texts[place])
    return index


def similarity(one: str, other: str, ngram: int = 3) -> float:
    """The Jaccard similarity of two texts' word n-grams, exactly; 0 where one has no words."""
    grams = hashed([one, other], ngram)
    return _jaccard(grams.of(0), grams.of(1))


def _jaccard(one: set[int], other: set[int]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both) if both else 0.0


class _Bands:
    """MinHash sketches under their keys, in bands: two texts with equal values in some band are looked at."""

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHash, RMinHashLSH

        bands, rows = _shape(threshold)
        self._size, self._kept = bands * rows, dict[int, Any]()
        self._floor = threshold - _ERRORS * math.sqrt(threshold * (1 - threshold) / self._size)
        self._lsh = RMinHashLSH(threshold=threshold, num_perm=self._size, num_bands=bands)
        self._new = partial(RMinHash, self._size, _SEED)

    def __contains__(self, key: int) -> bool:
        return key in self._kept

    def sketches(self, grams: Grams) -> list[Any]:
        """One for each text; None for a text without words."""
        tokens, made = grams.hashes.view("V8").tolist(), []
        for start, end in pairwise(grams.offsets.tolist()):
            made.append(sketch := self._new() if end > start else None)
            if sketch is not None:
                sketch.update(tokens[start:end])
        return made

    def insert(self, key: int, sketch: Any) -> None:
        if sketch is not None:
            self._lsh.insert(key, sketch)
            self._kept[key] = sketch

    def remove(self, key: int) -> None:
        if self._kept.pop(key, None) is not None:
            self._lsh.remove(key)

    def likely(self, sketch: Any, before: float = math.inf) -> list[int]:
        """The keys, below a limit, whose estimated similarity is not far under the threshold, in order."""
        if sketch is None:
            return []
        kept, floor = self._kept, self._floor
        found = [key for key in self._lsh.query(sketch) if key < before and sketch.jaccard(kept[key]) >= floor]
        found.sort()
        return found


def _shape(threshold: float) -> tuple[int, int]:
    """Bands, and values a band: as many values as still find a pair at the threshold, for they keep others out."""
    for rows in range(_ROWS, 1, -1):
        bands = math.ceil(math.log(1 - _RECALL) / math.log1p(-(threshold**rows))) if threshold < 1 else 1
        if bands <= _BANDS:
            return max(bands, _LEAST // rows), rows
    return _LEAST, 1
