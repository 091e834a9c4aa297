"""What a teacher's stored distributions say of each token that a student is trained on.

Two ways lead there from its tokens, pure functions of values both. `by_ids`: the vocabulary is one, and the row was made of
the ids that the teacher sampled. `by_bytes`: tokenizers differ, and tokens are aligned by where they begin in the bytes of
one and the same text. (From a distribution over labels: label_targets.py.)

By bytes, this is well defined, and nothing else is:

- A position has a target where a token of the teacher begins at the byte at which the student's begins. Elsewhere it is
  masked: the teacher was never asked what comes next there. So of `2` `0` `1` against `201` the first digit has a target, and
  the inner ones have none; sums over spans that GOLD takes in place of this lose arithmetic (arXiv 2605.21699), and sorting
  probabilities as ULD does (Boizard et al. 2024, arXiv 2402.12030) forgets which token they were of.
- The token that came is known to be what the student's token is part of, so its mass is the student token's, whether it is
  longer or equal. Where the student's token is longer, its mass is that of the path which spells it: the product over the
  teacher's tokens up to the first that ends no earlier. What the teacher gave to the path's first token beyond that went to
  other continuations, which were not written down: it is undefined.
- An alternative's mass goes to the first token that the student makes of its bytes. It supposes that the student parts it
  from what would have come next, as the teacher did; several alternatives with one first token are summed (`201`, `202`: `2`).
  Where the student cannot spell it, it is undefined: special tokens, bytes that are not known.
- The end is a token of no bytes. All tokens at which the teacher stops are the student's end token. So is a stop string, for
  the text was cut there: an alternative is read only up to the stop string in it, and one that might only be its beginning is
  undefined where the student's first token reaches into that. Blank space that was taken off the text belongs to the end that
  follows it. A hosted API names no end among its alternatives: then the end's position is masked.
- Blank space before the text, within the teacher's first token, was taken off: it is taken off that token's alternatives too.
  A student's tokenizer may put a blank before any text, which is none of the text: it puts one before the alternatives too.

Undefined mass and what the teacher did not list are no token's: they are the tail, so mapped + undefined + unlisted = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from llm_distill.trainers.rows import Row
from llm_distill.trainers.student_tokens import Bridge, StudentTokens, cut_at, dangling, first_token
from llm_distill.trainers.targets import Targets, table

#: Less is no probability at all; unlike -inf it can be subtracted.
_LEAST = -1e4


@dataclass(frozen=True, eq=False)
class Told:
    """A completion of the teacher, placed against the text that is learnt: n tokens, a alternatives in all.

    offsets: (n + 1,), where each token's alternatives begin; chosen: (n,), which of all alternatives it is; ids: (a,) int32;
    logprobs: (a,) natural logs. begins, ends: (n,), the bytes of each token, counted from the text's first. first: the token
    that holds this byte; after: the first token behind the text, n where there is none. ended: what is there ended it.
    """

    text: bytes
    offsets: np.ndarray
    chosen: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    first: int
    after: int
    ended: bool


class Why(IntEnum):
    """Why a position has no target, if it has none."""

    DEFINED = 0
    INSIDE = 1  # no token of the teacher begins there
    NO_END = 2  # the teacher did not say how likely the end was
    VAGUE = 3  # more of the mass is undefined than is borne
    NO_ROW = 4  # nothing is known of the row


@dataclass(frozen=True)
class Placed:
    """Targets of a row, with the undefined mass (n,) and the reason (n,) of each position (`Why`)."""

    targets: Targets
    undefined: np.ndarray
    why: np.ndarray


@dataclass(frozen=True)
class _Spans:
    """Of each position of a row, (n,): the bytes [begins, ends) of its token, and the teacher's token that begins there. lead:
    what the student's first token has before the text.
    """

    at: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    lead: bytes = b""


def sampled(told: Told, student: StudentTokens) -> list[int] | None:
    """The ids that the teacher sampled, for a row of a student that has its vocabulary: text tokenised again need not be them.

    A token that reaches over either end of the text is in its place what the student makes of the part within, but for the
    blank that its tokenizer puts before any text; None where it can make nothing of it.
    """
    parts = _sampled(told, student)
    return None if parts is None else [number for ids, _, _ in parts for number in ids]


def _sampled(told: Told, student: StudentTokens) -> list[tuple[Sequence[int], int, int]] | None:
    """By token of the teacher: the ids that stand for it, its place, and where it begins."""
    numbers, parts = told.ids[told.chosen].tolist(), list[tuple[Sequence[int], int, int]]()
    for place in range(told.first, told.after):
        begin, end = max(int(told.begins[place]), 0), min(int(told.ends[place]), len(told.text))
        ahead = begin - int(told.begins[place])
        own = student.vocabulary.token(numbers[place])[:ahead] == student.lead[:ahead] and ahead <= len(student.lead)
        if own and end == told.ends[place]:
            parts.append(([numbers[place]], place, begin))
        elif (ids := student.ids(told.text[begin:end])) is not None:
            parts.append((ids, place, begin))
        else:
            return None
    return parts


def by_ids(row: Row, told: Told, bridge: Bridge, *, most_undefined: float) -> Placed:
    """Targets of a row that was made of `sampled`. ValueError for one that was not."""
    trained, student = row.input_ids[row.prompt_tokens :], bridge.student
    parts = _sampled(told, student)
    if parts is None or trained[:-1] != [number for ids, _, _ in parts for number in ids]:
        raise ValueError(f"row {row.row_id} is not made of the ids that its teacher sampled")
    at, begins, ends = list[int](), list[int](), list[int]()
    for ids, place, begin in parts:
        whole = list(ids) == [told.ids[told.chosen[place]]]
        lengths = [int(told.ends[place]) - begin] if whole else student.lengths(ids)
        at += [place] + [-1] * (len(ids) - 1)
        begins += [begin + sum(lengths[:i]) for i in range(len(ids))]
        ends += [begin + sum(lengths[: i + 1]) for i in range(len(ids))]
    size = len(told.text)
    lead = before(told.text, student.spell(trained[:-1])) or b""
    spans = _Spans(np.array([*at, _end(told)]), np.array([*begins, size]), np.array([*ends, size]), lead)
    return _place(row, told, bridge, spans, most_undefined)


def by_bytes(row: Row, told: Told, bridge: Bridge, *, most_undefined: float) -> Placed | None:
    """Targets of a row of any tokenizer; None where its tokens do not spell the text."""
    trained, student = row.input_ids[row.prompt_tokens :], bridge.student
    if (lead := before(told.text, student.spell(trained[:-1]))) is None:
        return None
    ends = np.cumsum([*student.lengths(trained[:-1]), 0]) - len(lead)
    begins = np.append(0, ends[:-1])
    at = np.searchsorted(told.begins, begins, side="right") - 1
    full = told.ends[at] > told.begins[at]
    # A token without text (a special one) stands before it: two distributions, and neither is that of the next text.
    double = (at > told.first) & (told.begins[at - 1] == begins)
    at = np.where((told.begins[at] == begins) & full & ~double & (begins > 0), at, -1)
    if ends[0]:  # else it is that blank alone, and what follows it would not begin a text
        at[0] = told.first
    at[-1] = _end(told)
    return _place(row, told, bridge, _Spans(at, begins, ends, lead), most_undefined)


def before(text: bytes, spelt: bytes) -> bytes | None:
    """What a student's tokens spell before a text: nothing, or the blank of its tokenizer; None where they spell another."""
    return spelt.removesuffix(text) if spelt in (text, b" " + text) else None


def unknown(row: Row) -> Placed:
    """Of a row of which nothing is known."""
    n = row.trained_tokens
    nothing = Targets(np.full((n, 1), -1, np.int32), np.full((n, 1), -np.inf, np.float16), np.zeros(n, bool))
    return Placed(nothing, np.zeros(n, np.float32), np.full(n, Why.NO_ROW, np.int8))


def _end(told: Told) -> int:
    """The token with which the end begins, -1 where the teacher did not end, or in the middle of one."""
    after = told.after
    return after if told.ended and after < len(told.begins) and told.begins[after] == len(told.text) else -1


def _place(row: Row, told: Told, bridge: Bridge, spans: _Spans, most_undefined: float) -> Placed:
    """Carry the mass over, at every position where it can be."""
    trained = np.array(row.input_ids[row.prompt_tokens :])
    at, n = spans.at.copy(), len(trained)
    if (
        told.begins[told.first] < 0
        and _token(told, bridge, told.chosen[told.first])[: -told.begins[told.first]].strip()
    ):
        at[0] = -1
    why = np.where(at >= 0, Why.DEFINED, Why.INSIDE).astype(np.int8)
    if at[-1] < 0:
        why[-1] = Why.NO_END
    some = np.flatnonzero(at >= 0)
    at, begins = at[some], spans.begins[some]
    last = np.where(some == n - 1, len(told.begins) - 1, _last(told, bridge, at, spans.ends[some]))
    upto = np.append(0, np.cumsum(np.maximum(told.logprobs[told.chosen].astype(np.float64), _LEAST)))
    path = np.exp(upto[last + 1] - upto[at])

    counts = told.offsets[at + 1] - told.offsets[at]
    position = np.repeat(np.arange(len(some)), counts)
    places = np.arange(len(position)) + np.repeat(told.offsets[at] - (np.cumsum(counts) - counts), counts)
    mass, to = np.exp(told.logprobs[places].astype(np.float64)), bridge.first[told.ids[places]]
    own = places == told.chosen[at][position]
    _mend(told, bridge, begins, position, places, to, spans.lead)
    to[own] = trained[some]
    undefined = mass[own] - path
    mass[own] = path
    undefined += np.bincount(position[to < 0], mass[to < 0], len(some))

    vague = undefined > most_undefined
    why[some[vague]] = Why.VAGUE
    kept = (to >= 0) & (mass > 0) & ~vague[position]
    targets = table(some[position[kept]], to[kept], mass[kept], why == Why.DEFINED, told.logprobs.dtype)
    return _behind(row, Placed(targets, _spread(undefined, some, n), why))


def _last(told: Told, bridge: Bridge, at: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The token of the teacher with which it is settled that the student's, which begins with that `at`, has come: the first
    that ends no earlier, and behind which no stop string can begin within it any more.
    """
    n, text = len(told.begins), told.text
    last = np.minimum(np.maximum(np.searchsorted(told.ends, ends), at), n - 1)
    longest = max(map(len, bridge.stops), default=1)
    if longest > 1:
        settled = told.ends.copy()
        for place in np.flatnonzero((told.ends > 0) & (told.ends <= len(text))).tolist():
            upto = int(told.ends[place])
            settled[place] -= dangling(text[max(0, upto - longest) : upto], bridge.stops)
        settled = np.minimum(settled, len(text))
        while (open_ := (settled[last] < ends) & (last < n - 1)).any():
            last = last + open_
    return last  # type: ignore[no-any-return]


def _mend(
    told: Told,
    bridge: Bridge,
    begins: np.ndarray,
    position: np.ndarray,
    places: np.ndarray,
    to: np.ndarray,
    lead: bytes,
) -> None:
    """Change where alternatives go that mean something else where they stand than by themselves."""
    hidden = bridge.spelling.special | bridge.spelling.ends
    blank = told.begins[told.first] < 0
    if len(begins) and begins[0] == 0 and (blank or lead):
        for i in np.flatnonzero(position == 0).tolist():
            if told.ids[places[i]] in hidden:
                continue
            token = _token(told, bridge, places[i])
            text, sure = cut_at(token.lstrip() if blank else token, bridge.stops)
            if text is None:
                to[i] = bridge.end
            else:
                ahead = b"" if text.startswith(lead) else lead
                to[i] = first_token(ahead + text, len(ahead) + sure, bridge.student) if text else -1
    longest = max(map(len, bridge.stops), default=1)
    for p, begin in enumerate(begins.tolist() if longest > 1 else ()):
        # The text before may have begun a stop string: what completes it would have cut the text further back.
        size = dangling(told.text[max(0, begin - longest) : begin], bridge.stops)
        for i in np.flatnonzero(position == p).tolist() if size else ():
            if told.ids[places[i]] in hidden:
                continue
            token = _token(told, bridge, places[i])
            both = told.text[begin - size : begin] + token
            if dangling(both, bridge.stops) > len(token) or any(0 <= both.find(s) < size for s in bridge.stops):
                to[i] = -1


def _token(told: Told, bridge: Bridge, place: int) -> bytes:
    return bridge.spelling.tokens.get(int(told.ids[place])) or b""


def _spread(values: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    made = np.zeros(n, np.float32)
    made[places] = np.maximum(values, 0)
    return made


def _behind(row: Row, placed: Placed) -> Placed:
    """The same behind what else of a row is learnt: earlier turns, of which no teacher has told."""
    earlier = row.trained_tokens - len(placed.why)
    if not earlier:
        return placed
    rows, targets = ((earlier, 0), (0, 0)), placed.targets
    return Placed(
        Targets(
            np.pad(targets.ids, rows, constant_values=-1),
            np.pad(targets.logprobs, rows, constant_values=-np.inf),
            np.pad(targets.defined, (earlier, 0)),
        ),
        np.pad(placed.undefined, (earlier, 0)),
        np.pad(placed.why, (earlier, 0), constant_values=Why.NO_ROW),
    )
