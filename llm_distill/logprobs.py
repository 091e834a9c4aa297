"""Logprobs of a completion, by column, and their compact bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from llm_distill.models.vocabulary import Vocabulary

#: What packed bytes begin with: a byte that MessagePack never writes, a format, the size of what is compressed. Blobs
#: without it are plain MessagePack, as they were written before this format.
_HEAD = struct.Struct("<BBI")
_MARK, _FORMAT = 0xC1, 2


class Logprobs(msgspec.Struct, frozen=True, eq=False):
    """Logprobs of one completion, by column: n completion tokens, up to k alternatives each, m distinct tokens in all.

    spelling: the bytes of the distinct tokens, one after another; ends: (m,) int32, where each of them ends.
    chosen: (n,) int32, the tokens of the completion as places among the distinct ones; logprobs: (n,) float32, natural logs.
    top: (n, k) int32, the alternatives as such places, in the order the model gave them, padded with -1;
    top_logprobs: (n, k) float32, padded with -inf; float16 once they were packed.
    numbers: (m,) int32, the vocabulary ids of the distinct tokens, where the model gives them; a token whose bytes it does
    not give is then spelt as nothing, until `spelled` says it.
    """

    spelling: bytes
    ends: np.ndarray
    chosen: np.ndarray
    logprobs: np.ndarray
    top: np.ndarray
    top_logprobs: np.ndarray
    numbers: np.ndarray | None = None

    @classmethod
    def of_tokens(
        cls, tokens: Sequence[bytes], logprobs: Any, top_tokens: Sequence[Sequence[bytes]], top_logprobs: Any
    ) -> Logprobs:
        """From n tokens with (n,) logprobs, and n lists of up to k alternatives with (n, k) logprobs."""
        import numpy as np

        place = {token: i for i, token in enumerate(dict.fromkeys(chain(tokens, *top_tokens)))}
        top_logprobs = np.asarray(top_logprobs, dtype=np.float32).reshape(len(tokens), -1 if len(tokens) else 0)
        top = np.full(top_logprobs.shape, -1, dtype=np.int32)
        for row, alternatives in zip(top, top_tokens, strict=True):
            row[: len(alternatives)] = [place[token] for token in alternatives]
        return cls(
            *_joined(list(place)),
            chosen=np.array([place[token] for token in tokens], dtype=np.int32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            top=top,
            top_logprobs=top_logprobs,
        )

    @classmethod
    def of_ids(
        cls, ids: Any, logprobs: Any, top_ids: Any, top_logprobs: Any, spell: Callable[[int], bytes]
    ) -> Logprobs:
        """From vocabulary ids: (n,) with logprobs, (n, k) alternatives padded with -1; `spell` gives an id's bytes."""
        import numpy as np

        ids, top_ids = np.asarray(ids, dtype=np.int32), np.asarray(top_ids, dtype=np.int32)
        numbers, places = np.unique(np.concatenate([ids, top_ids.ravel()]), return_inverse=True)
        padding = int(len(numbers) > 0 and numbers[0] < 0)
        numbers, places = numbers[padding:], (places - padding).astype(np.int32)
        return cls(
            *_joined([spell(number) for number in numbers.tolist()]),
            chosen=places[: len(ids)],
            logprobs=np.asarray(logprobs, dtype=np.float32),
            top=places[len(ids) :].reshape(top_ids.shape),
            top_logprobs=np.asarray(top_logprobs, dtype=np.float32),
            numbers=numbers,
        )

    @property
    def table(self) -> list[bytes]:
        """The m distinct tokens."""
        ends = self.ends.tolist()
        return [self.spelling[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def tokens(self) -> list[bytes]:
        """The n tokens of the completion."""
        table = self.table
        return [table[place] for place in self.chosen.tolist()]

    @property
    def top_tokens(self) -> list[list[bytes]]:
        """The alternatives at each of the n positions."""
        table = self.table
        return [[table[place] for place in row if place >= 0] for row in self.top.tolist()]

    @property
    def ids(self) -> np.ndarray | None:
        """(n,) int32 vocabulary ids, where the model gives them."""
        return None if self.numbers is None else self.numbers[self.chosen]

    @property
    def top_ids(self) -> np.ndarray | None:
        """(n, k) int32 vocabulary ids of the alternatives, padded with -1, where the model gives them."""
        import numpy as np

        if self.numbers is None:
            return None
        return np.append(self.numbers, np.int32(-1))[self.top]  # type: ignore[no-any-return] # place -1 is the last

    def after(self, first: int) -> Logprobs:
        """Those of the tokens from place `first` on."""
        names = ("chosen", "logprobs", "top", "top_logprobs")
        return msgspec.structs.replace(self, **{name: getattr(self, name)[first:] for name in names})

    def spelled(self, vocabulary: Vocabulary) -> Logprobs:
        """The same, with every token's bytes from a vocabulary. UserError when it is not the vocabulary of these ids."""
        if self.numbers is None:
            return self
        numbers = self.numbers.tolist()
        vocabulary.check(dict(zip(numbers, self.table, strict=True)))
        spelling, ends = _joined([vocabulary.token(number) for number in numbers])
        return msgspec.structs.replace(self, spelling=spelling, ends=ends)

    def pack(self) -> bytes:
        """Compact bytes for the ledger: alternatives as float16, chosen tokens as float32, all compressed with zstd.

        Numbers go byte plane by byte plane, the layout of Parquet's BYTE_STREAM_SPLIT: a third smaller for it.
        """
        import numpy as np
        import pyarrow as pa

        with np.errstate(over="ignore"):  # less than float16 can say is no probability at all
            top_logprobs = self.top_logprobs.astype("<f2", copy=False)
        lengths = np.diff(self.ends, prepend=np.int32(0))
        numbers = () if self.numbers is None else (self.numbers,)
        columns = (self.chosen, self.logprobs.view(np.int32), lengths, *numbers, self.top.ravel())
        whole = msgspec.msgpack.encode(
            (
                len(self.chosen),
                len(lengths),
                len(numbers),
                self.spelling,
                _planes(np.concatenate(columns).astype("<i4", copy=False)),
                _planes(top_logprobs),
            )
        )
        compressed: bytes = pa.Codec("zstd", 1).compress(whole, asbytes=True)
        return _HEAD.pack(_MARK, _FORMAT, len(whole)) + compressed

    @classmethod
    def unpack(cls, data: bytes) -> Logprobs:
        """The inverse of `pack`, up to float16 rounding of the alternatives."""
        import numpy as np
        import pyarrow as pa

        if data[0] != _MARK:
            return _unpack_plain(data)
        _, format_, size = _HEAD.unpack_from(data)
        if format_ != _FORMAT:
            raise UserError(
                f"ledger: logprobs of format {format_} are another llm-distill's; this one reads {_FORMAT}."
            )
        whole = pa.Codec("zstd").decompress(memoryview(data)[_HEAD.size :], size, asbytes=True)
        n, m, numbered, spelling, planes, top_logprobs = msgspec.msgpack.decode(whole)
        columns = _unplaned(planes, "<i4")
        top = columns[2 * n + m + numbered * m :]
        shape = (n, len(top) // n if n else 0)
        return cls(
            spelling=spelling,
            ends=np.cumsum(columns[2 * n : 2 * n + m], dtype=np.int32),
            chosen=columns[:n],
            logprobs=columns[n : 2 * n].view(np.float32),
            top=top.reshape(shape),
            top_logprobs=_unplaned(top_logprobs, "<f2").reshape(shape),
            numbers=columns[2 * n + m : 2 * n + 2 * m] if numbered else None,
        )


def _unpack_plain(data: bytes) -> Logprobs:
    """What was written before the present format: every token spelt out, ids beside them."""
    import numpy as np

    tokens, chosen, top_tokens, top, ids, top_ids = msgspec.msgpack.decode(data)
    shape = (len(tokens), -1) if tokens else (0, 0)
    logprobs, top_logprobs = np.frombuffer(chosen, "<f4"), np.frombuffer(top or b"", "<f2").reshape(shape)
    if ids is None or top_ids is None:
        return Logprobs.of_tokens(tokens, logprobs, top_tokens, top_logprobs)
    ids, top_ids = np.frombuffer(ids, "<i4"), np.frombuffer(top_ids, "<i4").reshape(shape)
    known = dict(zip(ids.tolist(), tokens, strict=True))
    for numbers, alternatives in zip(top_ids.tolist(), top_tokens, strict=True):
        known |= zip(numbers, alternatives, strict=False)
    return Logprobs.of_ids(ids, logprobs, top_ids, top_logprobs, known.__getitem__)


def _joined(tokens: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    import numpy as np

    return b"".join(tokens), np.cumsum([len(token) for token in tokens], dtype=np.int32)


def _planes(column: np.ndarray) -> bytes:
    """All first bytes of the numbers, then all second ones, and so on."""
    import numpy as np

    return np.ascontiguousarray(column).view(np.uint8).reshape(-1, column.itemsize).T.tobytes()


def _unplaned(planes: bytes, dtype: str) -> np.ndarray:
    import numpy as np

    width = np.dtype(dtype).itemsize
    numbers = np.empty((len(planes) // width, width), np.uint8)
    for place, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(width, -1)):
        numbers[:, place] = plane  # several times faster than a transposition
    return numbers.view(dtype).ravel()
