"""Texts as hashed word n-grams, many texts at once.

Words are letters, marks and digits, case and compatibility forms aside. Each character of a script that is written without
spaces (Chinese, Japanese, Thai, ...) is a word, and so is each symbol: `3 + 4` is not `3 * 4`. Other punctuation counts for
nothing. Hashes are equal on every machine.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_TEXTS, _CHARACTERS = 512, 1 << 17
_MULTIPLIER, _LEAST = 0x9E3779B97F4A7C15, 1 << 18
#: A letter of a script that does not divide words.
_WORDS_ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_OPERATORS = frozenset("*/%#@&\\\u2212")


class Grams(NamedTuple):
    """The hashed word n-grams of some texts: `hashes` (grams,) uint64, and where each text's begin, `offsets` (texts + 1,)."""

    hashes: np.ndarray
    offsets: np.ndarray

    def of(self, row: int) -> set[int]:
        """One text's grams."""
        return set(self.hashes[self.offsets[row] : self.offsets[row + 1]].tolist())


def apart(text: str) -> str:
    """The text with blanks around each character of a script that is written without spaces, so that to split it gives words."""
    return text if text.isascii() else _WORDS_ALONE.sub(r" \g<0> ", text)


def portions(texts: Sequence[str]) -> Iterator[range]:
    """Places of texts that are worth hashing at once: arrays of so many characters fit the processor's cache."""
    first = size = 0
    for place, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHARACTERS or place - first == _TEXTS:
            yield range(first, place)
            first, size = place, 0
    if first < len(texts):
        yield range(first, len(texts))


def hashed(texts: Sequence[str], ngram: int) -> Grams:
    """The word n-grams of texts, as 64-bit hashes: equal on every machine."""
    import numpy as np

    words, ends = _words(texts)
    lengths = np.diff(ends)
    counts = np.where(lengths > 0, np.maximum(lengths - ngram + 1, 1), 0)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    padded = np.concatenate((words, np.zeros(ngram, dtype=np.uint64)))
    places = np.repeat(ends[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    left = np.repeat(ends[1:], counts) - places  # words from here to the text's end
    grams, factor = np.zeros(len(places), dtype=np.uint64), 1
    short = bool((lengths < ngram).any())
    for step in range(ngram):
        word = padded[places + step]
        grams += (np.where(step < left, word, np.uint64(0)) if short else word) * np.uint64(factor)
        factor = factor * _MULTIPLIER % 2**64
    return Grams(_mixed(grams), offsets)


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words of texts as hashes, (words,) uint64, and where each text's begin, (texts + 1,).

    A word's hash is a polynomial of its characters, modulo 2**32. It is taken over the whole of the texts and divided by the
    power that its place gave it, so all words are hashed at once.
    """
    import numpy as np

    joined = "\n".join(texts) + "\n"
    if not joined.isascii() and not unicodedata.is_normalized("NFC", joined):
        texts = [unicodedata.normalize("NFC", text) for text in texts]
        joined = "\n".join(texts) + "\n"
    ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    values, alone = _characters(joined)
    power, inverse = _powers(1 << max(len(values), _LEAST).bit_length())
    inside = values != 0
    start = inside.copy()
    start[1:] &= ~inside[:-1] | alone[1:] | alone[:-1]
    starts = np.flatnonzero(start)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros_like(ends)
    words = np.add.reduceat(values * power[: len(values)], starts, dtype=np.uint32) * inverse[starts]
    return _mixed(words.astype(np.uint64)), np.searchsorted(starts, ends)


def _characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """What each character adds to its word, uint32, 0 for one that is in no word; and whether it is a word of its own."""
    import numpy as np

    table, alone, known = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if not known[codes].all():
        _learn(np.unique(codes[~known[codes]]).tolist())
    return table[codes], alone[codes]


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By code point, filled as characters are met: value, whether alone, whether known."""
    import numpy as np

    size = sys.maxunicode + 1
    return np.zeros(size, dtype=np.uint32), np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)


def _learn(codes: Iterable[int]) -> None:
    table, alone, known = _tables()
    for code in codes:
        character = chr(code)
        kind = unicodedata.category(character)
        symbol = kind.startswith("S") or character in _OPERATORS
        if symbol or character.isalnum() or character == "_" or (kind.startswith("M") and character != "\ufe0f"):
            plain = unicodedata.normalize("NFKC", character).casefold().encode("utf-8", "surrogatepass")
            table[code] = int.from_bytes(blake2b(plain, digest_size=4).digest()) | 1
            alone[code] = symbol or bool(_WORDS_ALONE.match(character))
        known[code] = True


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier and of its inverse, modulo 2**32."""
    import numpy as np

    def powers(base: int) -> np.ndarray:
        factors = np.full(size, base, dtype=np.uint32)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint32)

    multiplier = _MULTIPLIER % 2**32
    return powers(multiplier), powers(pow(multiplier, -1, 2**32))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each bit of the result depends on every bit of the value (the finaliser of SplitMix64, Steele et al. 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
