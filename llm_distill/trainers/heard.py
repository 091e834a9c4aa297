"""A run's stored logprobs, joined with the samples that a student is trained on: which completion a sample's text is from, and
where in its tokens the text stands.

The text is looked for in the bytes of the tokens and nowhere else. They must be, in this order: blank space, or reasoning
where the answer had any; the text, byte for byte; blank space; and a special token or a stop string that ended it, or nothing
at all, as hosted APIs show it. Any other sample has no targets, for a reason that is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_distill.logprob_table import Batch, batches, token_bytes
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Sample
from llm_distill.trainers.placing import Told, sampled
from llm_distill.trainers.student_tokens import Spelling, StudentTokens

ABSENT = "no logprobs were stored of it"
OTHER = "its text is not that of the teacher's tokens"
BEFORE = "its text begins within the teacher's"
BEHIND = "the teacher's tokens go on behind its text"


@dataclass(frozen=True, eq=False)
class _Raw:
    """A stored completion: see `Told` for the arrays."""

    vocabulary: str | None
    offsets: np.ndarray
    chosen: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray

    @property
    def path(self) -> list[int]:
        return self.ids[self.chosen].tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Heard:
    """What was stored for some samples. told: by row_id, the vocabulary of a completion and the completion; without: by
    row_id, why there is none; spellings: of the vocabularies.
    """

    told: Mapping[str, tuple[str | None, Told]]
    without: Mapping[str, str]
    spellings: Mapping[str | None, Spelling]

    def sampled(self, student: StudentTokens, shared: Collection[str | None]) -> dict[str, list[int]]:
        """The completions of rows whose teacher has the student's vocabulary (one of `shared`) as the ids that it sampled."""
        found = {row: sampled(told, student) for row, (name, told) in self.told.items() if name in shared}
        return {row: ids for row, ids in found.items() if ids is not None}


def hear(
    path: Path, samples: Sequence[Sample], stop: Sequence[str], vocabularies: Mapping[str | None, Vocabulary]
) -> Heard:
    """Join a table of logprobs with samples. `stop` are the teacher's stop strings; `vocabularies` say which of its tokens are
    special, by their name in the table; without one, tokens behind a text are taken for its end where they are never within.

    Of several completions with a sample's text the first is taken, in the order in which its row's questions were asked.
    """
    spelt, stops = token_bytes(path), tuple(text.encode() for text in stop if text)
    wanted = {sample.row_id: sample for sample in samples}
    stored = _stored(path, wanted)
    hidden: dict[str | None, set[int]] = {name: set() for name in spelt}
    for name in hidden.keys() & vocabularies.keys():
        hidden[name] |= vocabularies[name].special
    told, without = _placed(wanted, stored, spelt, hidden, stops)
    if found := _unnamed_ends({row: wanted[row] for row in without}, stored, told, spelt, hidden, stops):
        for name, number in found:
            hidden[name].add(number)
        again, without = _placed({row: wanted[row] for row in without}, stored, spelt, hidden, stops)
        told |= again
    ends: dict[str | None, set[int]] = {name: set() for name in spelt}
    for name, one in told.values():
        number = int(one.ids[one.chosen[-1]])
        if one.ended and (number in hidden[name] or not spelt[name].get(number)):
            ends[name].add(number)
    spellings = {name: Spelling(spelt[name], frozenset(hidden[name]), frozenset(ends[name])) for name in spelt}
    return Heard(told, without, spellings)


def _stored(path: Path, wanted: Mapping[str, Sample]) -> dict[str, list[_Raw]]:
    """By row, its completions in the order of its questions."""
    found: dict[str, list[tuple[str, _Raw]]] = {}
    for batch in batches(path, list(wanted)):
        for row_id, request, raw in _rows(batch):
            found.setdefault(row_id, []).append((request, raw))
    ordered = {}
    for row_id, raws in found.items():
        answer = wanted[row_id].answer
        order = {request: i for i, request in enumerate(answer.requests if answer else ())}
        ordered[row_id] = [raw for _, raw in sorted(raws, key=lambda pair: order.get(pair[0], len(order)))]
    return ordered


def _rows(batch: Batch) -> Iterator[tuple[str, str, _Raw]]:
    for i, (row_id, request, name) in enumerate(zip(batch.row_ids, batch.requests, batch.vocabularies, strict=True)):
        tokens = slice(batch.offsets[i], batch.offsets[i + 1])
        tops = batch.top_offsets[tokens.start : tokens.stop + 1]
        some = slice(tops[0], tops[-1])
        chosen = batch.chosen[tokens] - tops[0]
        yield row_id, request, _Raw(name, tops - tops[0], chosen, batch.top_ids[some], batch.top_logprobs[some])


def _placed(
    wanted: Mapping[str, Sample],
    stored: Mapping[str, Sequence[_Raw]],
    spelt: Mapping[str | None, Mapping[int, bytes]],
    hidden: Mapping[str | None, Collection[int]],
    stops: Sequence[bytes],
) -> tuple[dict[str, tuple[str | None, Told]], dict[str, str]]:
    told: dict[str, tuple[str | None, Told]] = {}
    without: dict[str, str] = {}
    for row_id, sample in wanted.items():
        why = [ABSENT]
        for raw in stored.get(row_id, ()):
            path = raw.path
            tokens = [spelt[raw.vocabulary].get(number) or b"" for number in path]
            unseen = [number in hidden[raw.vocabulary] for number in path]
            one = place(raw, tokens, unseen, sample, stops)
            if isinstance(one, str) and any(unseen[:-1]):  # a server that was told to show special tokens
                shown = place(raw, tokens, [False] * (len(path) - 1) + unseen[-1:], sample, stops)
                one = one if isinstance(shown, str) else shown
            if isinstance(one, Told):
                told[row_id] = raw.vocabulary, one
                break
            why.append(one)
        else:
            without[row_id] = why[-1]
    return told, without


def place(
    raw: _Raw, tokens: Sequence[bytes], hidden: Sequence[bool], sample: Sample, stops: Sequence[bytes]
) -> Told | str:
    """A completion placed against a sample's text, or why it cannot be. `tokens` are its bytes, `hidden` which of them belong
    to no text.
    """
    text, answer, n = sample.completion.encode(), sample.answer, len(tokens)
    lengths = np.array([0 if unseen else len(token) for token, unseen in zip(tokens, hidden, strict=True)], np.int64)
    whole = b"".join(token for token, unseen in zip(tokens, hidden, strict=True) if not unseen)
    # A stop string was looked for as each token came: the last one completed it.
    before_last = len(whole) - int(lengths[np.flatnonzero(lengths)[-1]]) if lengths.any() else 0
    why, start, stopped = OTHER, whole.rfind(text), False
    while start >= 0:
        end = start + len(text)
        stopped = _stopped(whole, end, stops, before_last)
        if whole[end:].strip() and not stopped:
            fault = BEHIND
        elif whole[:start].strip() and not (answer and answer.reasoning):
            fault = BEFORE
        else:
            break
        why = fault if why == OTHER else why  # where it stands last is where it would be
        start = whole.rfind(text, 0, end - 1)
    if start < 0 or not text:
        return why
    ends = np.cumsum(lengths) - start
    begins = ends - lengths
    first = int(np.flatnonzero((begins <= 0) & (ends > 0))[0])
    after = int(np.searchsorted(begins, len(text)))
    # A token without text at the very end is what ended it; blank space alone is not.
    ended = (answer is None or answer.status == "ok") and after < n and (stopped or lengths[-1] == 0)
    return Told(text, raw.offsets, raw.chosen, raw.ids, raw.logprobs, begins, ends, first, after, bool(ended))


def _stopped(whole: bytes, end: int, stops: Sequence[bytes], before_last: int) -> bool:
    """Whether a text was cut at a stop string that stands behind it, blank space aside, and was completed by the last token."""
    rest = whole[end:]
    blank = len(rest) - len(rest.lstrip())
    places = ((rest.find(stop, 0, blank + len(stop)), len(stop)) for stop in stops)
    return any(place >= 0 and end + place + size > before_last for place, size in places)


def _unnamed_ends(
    unplaced: Mapping[str, Sample],
    stored: Mapping[str, Sequence[_Raw]],
    told: Mapping[str, tuple[str | None, Told]],
    spelt: Mapping[str | None, Mapping[int, bytes]],
    hidden: Mapping[str | None, Collection[int]],
    stops: Sequence[bytes],
) -> set[tuple[str | None, int]]:
    """Tokens with a text that end answers all the same, as some servers spell their EOS: an answer's text, as the server gave
    it, lacks them, and no answer's text has them.
    """
    found: set[tuple[str | None, int]] = set()
    inside: set[tuple[str | None, int]] = set()
    for row_id, sample in unplaced.items():
        answer = sample.answer
        for raw in stored.get(row_id, ()) if answer and answer.status == "ok" else ():
            assert answer is not None
            path = raw.path
            if not path or answer.text.strip() != sample.completion.strip():
                continue
            tokens = [spelt[raw.vocabulary].get(number) or b"" for number in path]
            unseen = [number in hidden[raw.vocabulary] for number in path[:-1]] + [True]
            one = place(raw, tokens, unseen, sample, stops)
            if isinstance(one, Told) and one.after == len(path) - 1:
                found.add((raw.vocabulary, path[-1]))
                inside |= {(raw.vocabulary, number) for number in path[:-1]}
    if found:
        for name, one in told.values():
            inside |= {(name, number) for number in one.ids[one.chosen[: one.after]].tolist()}
    return found - inside
