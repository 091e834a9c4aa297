"""Logprobs of a completion, by column, and their compact bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np


class Logprobs(msgspec.Struct, frozen=True):
    """Logprobs of one completion, by column. n completion tokens, k alternatives.

    tokens: n token byte strings; logprobs: (n,) natural logs; top_tokens: n lists of up to k byte strings;
    top_logprobs: (n, k), padded with -inf. ids (n,) and top_ids (n, k), padded with -1, where the model gives them.
    Alternatives are sorted by falling logprob.
    """

    tokens: list[bytes]
    logprobs: np.ndarray
    top_tokens: list[list[bytes]]
    top_logprobs: np.ndarray
    ids: np.ndarray | None = None
    top_ids: np.ndarray | None = None

    def pack(self) -> bytes:
        """Compact bytes for the ledger: ids as int32, logprobs as float16 (chosen token: float32)."""
        import numpy as np

        def raw(a: np.ndarray | None, dtype: str) -> bytes | None:
            return None if a is None else np.ascontiguousarray(a, dtype=dtype).tobytes()

        return msgspec.msgpack.encode(
            [
                self.tokens,
                raw(self.logprobs, "<f4"),
                self.top_tokens,
                raw(self.top_logprobs, "<f2"),
                raw(self.ids, "<i4"),
                raw(self.top_ids, "<i4"),
            ]
        )

    @classmethod
    def unpack(cls, data: bytes) -> Logprobs:
        """The inverse of `pack`, up to float16 rounding of the alternatives."""
        import numpy as np

        tokens, chosen, top_tokens, top, ids, top_ids = msgspec.msgpack.decode(data)
        n = len(tokens)

        def table(raw: bytes | None, dtype: str) -> np.ndarray:
            return np.frombuffer(raw or b"", dtype=dtype).reshape(n, -1) if n else np.zeros((0, 0), dtype=dtype)

        return cls(
            tokens=tokens,
            logprobs=np.frombuffer(chosen, dtype="<f4"),
            top_tokens=top_tokens,
            top_logprobs=table(top, "<f2").astype(np.float32),
            ids=None if ids is None else np.frombuffer(ids, dtype="<i4"),
            top_ids=None if top_ids is None else table(top_ids, "<i4"),
        )
