"""Whether an answer stands in a text: of its words and numbers, and of nothing else. What they say together is not judged."""

from __future__ import annotations

import re
import unicodedata

#: Signs that are the same to a reader, and blank space that cannot be seen.
_ALIKE = str.maketrans(
    {char: sign for chars, sign in (("\u2018\u2019\u201a\u201b\u2032`\u00b4", "'"), ("“”„‟″«»", '"')) for char in chars}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff")
)
#: Scripts that put no space between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+")
#: Of a word that says something; most of the shorter ones are articles, prepositions and the like.
_CONTENT_LETTERS = 4


def normalised(text: str) -> str:
    """A text with one kind of quote, dash and blank space, in Unicode's compatibility form (NFKC); its case stays."""
    return " ".join(unicodedata.normalize("NFKC", text.translate(_ALIKE)).split())


def stands_in(span: str, text: str) -> bool:
    """Whether a normalised span stands in a normalised text word for word, not cutting a word in two."""
    start = text.find(span) if span else -1
    while start >= 0:
        end = start + len(span)
        if not (_joined(text, start) or _joined(text, end)):
            return True
        start = text.find(span, start + 1)
    return False


def grounded(answer: str, span: str) -> float:
    """The share of a normalised answer's content words that a normalised span has too, case aside; 0 if it has a number
    that the span has not, or no word and no number at all.

    Content words have four letters or more; an answer without any is taken by all its words. Where a script puts no space
    between words, its pairs of letters are taken. Word forms, synonyms, order and negation are not looked at.
    """
    numbers, words = _numbers(answer), _words(answer)
    if not (numbers or words) or not numbers <= _numbers(span):
        return 0.0
    content = {w for w in words if len(w) >= _CONTENT_LETTERS or _UNSPACED.search(w)} or words
    return len(content & _words(span)) / len(content) if content else 1.0


def _joined(text: str, place: int) -> bool:
    """Whether a place is within a word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    return before.isalnum() and after.isalnum() and not (_UNSPACED.match(before) or _UNSPACED.match(after))


def _numbers(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def _words(text: str) -> set[str]:
    found: set[str] = set()
    for run in _WORD.findall(text.casefold()):
        if _UNSPACED.search(run) and len(run) > 1:
            found.update(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.add(run)
    return found
