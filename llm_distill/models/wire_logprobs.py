"""Logprobs as completions carry them, turned into columns.

The hot spot of asking with logprobs: 80 tokens with 20 alternatives are 1,680 objects an answer. Each is parsed into a
struct, and from there on whole columns are handled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.errors import Unavailable, UserError
from llm_distill.logprobs import Logprobs

if TYPE_CHECKING:
    import numpy as np

#: What stands for a token's text where ids are asked for (vLLM).
_PLACEHOLDER = b"token_id:"
#: The texts of pieces of characters hold one of these: U+FFFD, or `bytes:\xe2` (OpenAI's legacy spelling).
_PIECES = ("\ufffd".encode(), b"bytes:")
#: An escape in a JSON string: a pair of surrogates, half of one, which stands for no character, or another.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][\da-fA-F]{2})|\\."
)
#: Strings, to be left alone, and the numbers that Python's JSON writes and JSON does not have.
_STRING_OR_NAN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\b(?:NaN|Infinity)\b')


class Alternative(msgspec.Struct, gc=False):
    """One of the tokens that could have come. Any of its values may be null."""

    token: str
    logprob: float | None = None
    id: Any = None  # llama.cpp: the vocabulary id, unasked


class Token(Alternative, gc=False):
    """The token that came."""

    top_logprobs: Sequence[Alternative] | None = None


class Given(msgspec.Struct):
    """A choice's `logprobs`: `content` of a chat's, the others of raw text's."""

    content: Sequence[Token] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float | None] | None] | None = None

    def each(self) -> Sequence[Any]:
        """Token by token; of raw text, the alternatives by falling logprob, and the one that came among them."""
        if self.content is not None:
            return self.content
        tops = self.top_logprobs or [None] * len(self.tokens)
        return [
            SpeltToken(token, logprob, top_logprobs=sorted(starmap(Spelt, (top or {}).items()), key=_falling))
            for token, logprob, top in zip(self.tokens, self.token_logprobs, tops, strict=False)
        ]


class Unspelt(Exception):
    """A token's text does not say its bytes, and they were not read."""


class Spelt(Alternative, gc=False):
    """The same with its bytes. Few texts leave them open, and without them a body is read in two thirds of the time."""

    bytes: msgspec.Raw = msgspec.Raw(b"null")


class SpeltToken(Spelt, gc=False):
    top_logprobs: list[Spelt] | None = None


class SpeltGiven(Given):
    content: list[SpeltToken] | None = None  # type: ignore[assignment] # a token in all but its class


def _falling(alternative: Alternative) -> float:
    return math.inf if alternative.logprob is None else -alternative.logprob


def columns(given: Given | None, sampled: list[int] | None, *, token_ids: bool) -> Logprobs | None:
    """By column; None as soon as one chosen token has no finite logprob, for a partly known row would mislead.

    `sampled` are the ids beside the logprobs (vLLM's `return_token_ids`). `token_ids`: ids were asked for, so that their
    absence is a UserError, as are ids without bytes that were not asked for. Unspelt where bytes are needed and not there.
    """
    if given is None or not (content := given.each()):
        return None
    import numpy as np

    tops = [token.top_logprobs or [] for token in content]
    logprobs = _floats(content)
    if not np.isfinite(logprobs).all():
        return None
    flat = [alternative for top in tops for alternative in top]
    top_logprobs = _floats(flat)
    if np.isnan(top_logprobs).any():
        tops = [[alternative for alternative in top if alternative.logprob is not None] for top in tops]
        flat = [alternative for top in tops for alternative in top]
        top_logprobs = _floats(flat)
    spelling, ends, places, numbers = _distinct(content, flat)
    if token_ids and numbers is None:
        raise UserError("token_ids: the endpoint gives tokens as text, without ids; remove `token_ids`.")
    if numbers is not None and content[0].token == f"token_id:{numbers[places[0]]}" and not token_ids:
        raise UserError(
            f"the endpoint gives tokens as `{content[0].token}`; write `token_ids: true`, and as `tokenizer` the folder "
            "or hub id of the model it serves, or start it without --return-tokens-as-token-ids."
        )
    if numbers is not None and sampled is not None and sampled != numbers[places[: len(content)]].tolist():
        raise Unavailable("its token_ids are others than those of its logprobs", billed=True)
    counts = np.array([len(top) for top in tops])
    filled = np.arange(counts.max()) < counts[:, None]  # (n, k)
    return Logprobs(
        spelling=spelling,
        ends=ends,
        chosen=places[: len(content)],
        logprobs=logprobs,
        top=_table(places[len(content) :], filled, -1),
        top_logprobs=_table(top_logprobs, filled, -np.inf),
        numbers=numbers,
    )


def as_json(body: bytes) -> bytes:
    """A body without what some servers write as if JSON had it: NaN and Infinity are numbers and nulls; half a surrogate pair,
    of a character that was cut, is U+FFFD.
    """
    if b"\\ud" in body.lower():
        body = _ESCAPE.sub(lambda found: rb"\ufffd" if found["half"] else found[0], body)
    if b"NaN" not in body and b"Infinity" not in body:
        return body
    plain = {b"NaN": b"null", b"-NaN": b"null", b"Infinity": b"null", b"-Infinity": b"-1e308"}
    return _STRING_OR_NAN.sub(lambda found: plain.get(found[0], found[0]), body)


def _floats(tokens: Sequence[Alternative]) -> np.ndarray:
    """Logprobs as float32, null as NaN."""
    import numpy as np

    with np.errstate(over="ignore"):  # -1e308 is no probability at all
        return np.array([token.logprob for token in tokens], dtype=np.float64).astype(np.float32)


def _table(values: np.ndarray, filled: np.ndarray, padding: float) -> np.ndarray:
    """Values laid out row by row where there are any: (n, k)."""
    import numpy as np

    if filled.all():
        return values.reshape(filled.shape)
    table = np.full(filled.shape, padding, dtype=values.dtype)
    table[filled] = values
    return table


def _distinct(
    content: Sequence[Token], flat: list[Alternative]
) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray | None]:
    """(spelling, ends, places of both, numbers), as in Logprobs, of the tokens that came and of those that could have."""
    import numpy as np
    import pyarrow as pa

    tokens = [*content, *flat]
    if content[0].id is not None and all(type(token.id) is int and 0 <= token.id < 1 << 31 for token in tokens):
        found = np.unique([token.id for token in tokens], return_index=True, return_inverse=True)
        numbers, first, places = (part.astype(np.int32) for part in found)
        return *_buffers(pa.array([_bytes(tokens[i]) for i in first.tolist()], pa.binary())), places, numbers
    encoded = pa.array([token.token for token in tokens], pa.string()).dictionary_encode()
    places = encoded.indices.to_numpy()
    spelling, ends = _buffers(encoded.dictionary)
    if spelling.startswith(_PLACEHOLDER) and (ids := _ids(encoded.dictionary)) is not None:
        # The bytes of alternatives are those of their placeholders; so are a sampled token's, when its logprob is unknown.
        known = [b""] * len(ids)
        for token, place in zip(content, places.tolist(), strict=False):
            known[place] = known[place] or _bytes(token).removeprefix(token.token.encode())
        return *_buffers(pa.array(known, pa.binary())), places, ids
    if any(piece in spelling for piece in _PIECES):
        encoded = pa.array([_piece(token) for token in tokens], pa.binary()).dictionary_encode()
        return *_buffers(encoded.dictionary), encoded.indices.to_numpy(), None
    return spelling, ends, places, None


def _buffers(strings: Any) -> tuple[bytes, np.ndarray]:
    """The bytes of an Arrow array of strings, one after another, and where each ends."""
    import numpy as np

    _, offsets, spelling = strings.buffers()
    return spelling.to_pybytes() if spelling else b"", np.frombuffer(offsets, np.int32)[1 : len(strings) + 1]


def _ids(texts: Any) -> np.ndarray | None:
    """The ids of `token_id:123`; None when not every text is one."""
    import pyarrow.compute as pc

    if not pc.all(pc.match_substring_regex(texts, rf"^{_PLACEHOLDER.decode()}\d{{1,9}}$")).as_py():
        return None
    return pc.utf8_slice_codeunits(texts, len(_PLACEHOLDER)).cast("int32").to_numpy()  # type: ignore[no-any-return]


def _piece(token: Alternative) -> bytes:
    """A token's bytes. Only a piece of a character differs from its text."""
    text = token.token
    return _bytes(token) if "\ufffd" in text or text.startswith("bytes:") else text.encode()


def _bytes(token: Alternative) -> bytes:
    """The bytes that are given with a token, or else those of its text. Unspelt where they were not read."""
    if not isinstance(token, Spelt):
        raise Unspelt
    try:
        given = msgspec.json.decode(token.bytes, type=list[int] | None)
        return token.token.encode() if given is None else bytes(given)
    except (msgspec.MsgspecError, ValueError):
        raise Unavailable("the bytes of its tokens are none", billed=True) from None
