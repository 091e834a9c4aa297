"""From a teacher's tokens to the student's: its tokens of any bytes, and whether two vocabularies are one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llm_distill.models.vocabulary import Vocabulary

#: A vocabulary is over after so many ids that it does not spell: padding rows of an embedding, not a gap before added tokens.
_GAP = 2048
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class StudentTokens:
    """Bytes -> token ids of a student, each text tokenised once. The bytes of the ids are the text's, or there are none.

    lead: what its tokenizer puts before an answer (see `rows.lead`).
    """

    def __init__(self, tokenizer: Any, lead: bytes = b"") -> None:
        self.lead = lead
        self.vocabulary = Vocabulary.of(tokenizer)
        self._tokenizer = tokenizer
        self._known: dict[bytes, tuple[int, ...] | None] = {b"": ()}

    def learn(self, texts: Iterable[bytes]) -> None:
        """Tokenise what is not known yet, all at once: a tokenizer takes a call's worth of time for each call."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        whole = [text for text in new if is_text(text)]
        tried = self._spelt(whole, "") | {text: self._by_length(text) for text in new if not is_text(text)}
        # Some tokenizers put a blank before any text: what they cannot spell so is read after a line break, where they put none.
        self._known |= tried | self._spelt([text for text in whole if tried[text] is None], "\n")

    def ids(self, text: bytes) -> tuple[int, ...] | None:
        """The ids of a text as generation would make them from its first byte on; None where they cannot spell it."""
        if text not in self._known:
            self.learn([text])
        return self._known[text]

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """How many bytes each id has."""
        return [len(self.vocabulary.token(number)) for number in ids]

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids."""
        return b"".join(map(self.vocabulary.token, ids))

    def _spelt(self, texts: Sequence[bytes], before: str) -> dict[bytes, tuple[int, ...] | None]:
        """By text, its ids behind some other text; special tokens that it spells out stay text."""
        if not texts:
            return {}
        settings = {"add_special_tokens": False, "split_special_tokens": True}
        lead: list[int] = self._tokenizer(before, **settings)["input_ids"] if before else []
        found = self._tokenizer([before + text.decode() for text in texts], **settings)["input_ids"]
        own = [ids[len(lead) :] if ids[: len(lead)] == lead else [] for ids in found]
        return {text: tuple(ids) if self.spell(ids) == text else None for text, ids in zip(texts, own, strict=True)}

    def _by_length(self, text: bytes) -> tuple[int, ...] | None:
        """The ids of bytes that are no whole characters, each time the longest token that fits.

        Text can be tokenised, pieces of characters cannot. A token that is just these bytes is found, others end in the
        student's tokens of single bytes; both are what merging would give but for rare ties.
        """
        ids, place = list[int](), 0
        while place < len(text):
            lengths = range(min(self._longest, len(text) - place), 0, -1)
            size = next((size for size in lengths if text[place : place + size] in self._numbers), 0)
            if not size:
                return None
            ids.append(self._numbers[text[place : place + size]])
            place += size
        return tuple(ids)

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """Every text token by its bytes. Where a character and a byte are spelt alike, the character: `a`, not `<0x61>`."""
        found: dict[bytes, int] = {}
        for number in range(len(self._tokenizer)):
            token = self.vocabulary.token(number)
            if not token or number in self.vocabulary.special:
                continue
            if token < b"\x80" and len(token) == 1 and _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(number)):
                found.setdefault(token, number)
            else:
                found[token] = number
        return found

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._numbers), default=0)


def is_text(data: bytes) -> bool:
    """Whether bytes are whole UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Spelling:
    """A teacher's vocabulary, as far as it was met. special: ids that belong to no text; ends: ids at which it stops."""

    tokens: Mapping[int, bytes]
    special: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Bridge:
    """From a teacher's tokens to a student's. first: (m,) int64, by teacher id the student's first token, -1 where there is
    none; `end` is the student's end token, `stops` are what the teacher's texts were cut at.
    """

    first: np.ndarray
    spelling: Spelling
    student: StudentTokens
    end: int
    stops: tuple[bytes, ...] = ()


def bridge(
    ids: Iterable[int], spelling: Spelling, student: StudentTokens, end: int, stop: Sequence[str], *, same: bool
) -> Bridge:
    """A bridge over which these ids of a teacher can go. `same`: they are the student's own."""
    numbers = sorted(set(ids))
    stops = tuple(text.encode() for text in stop if text)
    cuts = {number: _cut(number, spelling, stops) for number in numbers}
    student.learn(text for text, _ in filter(None, cuts.values()) if text is not None)
    first = np.full(max(numbers, default=-1) + 1, -1, dtype=np.int64)
    for number, cut in cuts.items():
        own = spelling.tokens.get(number) or b""
        if cut is None:
            known = same and own != b"" and student.vocabulary.token(number) == own
            first[number] = number if known else -1
            continue
        text, sure = cut
        if text is None:
            first[number] = end
        elif same and text == own:
            known = student.vocabulary.token(number) == own
            first[number] = number if known and len(own) <= sure else -1
        else:
            first[number] = first_token(text, sure, student)
    return Bridge(first, spelling, student, end, stops)


def _cut(number: int, spelling: Spelling, stops: Sequence[bytes]) -> tuple[bytes | None, int] | None:
    """What of a token is text, and how many bytes of that do not depend on what follows; (None, 0): it is the end. None where
    it is not known to be either.
    """
    token = spelling.tokens.get(number)
    if number in spelling.ends or (number in spelling.special and token in stops):
        return None, 0
    if not token or number in spelling.special:
        return None
    return cut_at(token, stops)


def cut_at(text: bytes, stops: Sequence[bytes]) -> tuple[bytes | None, int]:
    """A text up to the first stop string, and how much of it stays if more follows; (None, 0) where nothing is before it."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if found:
        return (text[: min(found)], min(found)) if min(found) else (None, 0)
    return text, len(text) - dangling(text, stops)


def dangling(text: bytes, stops: Sequence[bytes]) -> int:
    """How many bytes at a text's end may be the beginning of a stop string."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def first_token(text: bytes, sure: int, student: StudentTokens) -> int:
    """The student's first token of a text, -1 where there is none, or where it needs more of the text than is sure."""
    ids = student.ids(text)
    return ids[0] if ids and len(student.vocabulary.token(ids[0])) <= sure else -1


@dataclass(frozen=True)
class Comparison:
    """Two vocabularies, id by id. compared: tokens that the teacher has; differ: those of a text that the student spells
    otherwise or lacks, `example` the first of them; special: special tokens of other names, which no text holds.
    """

    compared: int
    differ: int
    special: int
    example: tuple[int, bytes, bytes] | None = None

    @property
    def same(self) -> bool:
        """Whether the teacher's ids are the student's."""
        return self.compared > 0 and not self.differ

    def __str__(self) -> str:
        """In words."""
        if self.same:
            renamed = f", {self.special:,} special ones under other names" if self.special else ""
            return f"teacher and student share a vocabulary ({self.compared:,} tokens{renamed})"
        if self.example is None:
            return "the teacher's vocabulary is not known"
        number, teacher, student = self.example
        return (
            f"teacher and student have different vocabularies: {self.differ:,} of {self.compared:,} tokens differ (first: "
            f"{number} is {teacher!r} to the teacher and {student!r} to the student)"
        )


def same_vocabulary(teacher: Vocabulary, student: Vocabulary) -> Comparison:
    """Compare by what the tokens are, never by how many: embeddings are padded to different sizes (trl issue 3028), and equal
    sizes prove nothing. What only the student has does not matter, for the teacher never says it.
    """
    compared = differ = renamed = number = blank = 0
    example = None
    last = max(teacher.special, default=0)
    while blank < _GAP or number <= last:
        ours, theirs = teacher.token(number), student.token(number)
        blank = 0 if ours else blank + 1
        compared += bool(ours)
        if ours and ours != theirs:
            if number in teacher.special and (number in student.special or not theirs):
                renamed += 1
            else:
                differ += 1
                example = example or (number, ours, theirs)
        elif ours and (number in teacher.special) != (number in student.special):
            differ += 1
            example = example or (number, ours, theirs)
        number += 1
    return Comparison(compared, differ, renamed, example)
