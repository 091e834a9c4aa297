"""The lines of a batch's files: one request a line on the way out, one outcome a line on the way back, in any order.

A line that is cut, is no JSON or names no row of the batch says nothing about any row: it is counted and passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from llm_distill.errors import Rejected, Unavailable
from llm_distill.models import wire
from llm_distill.models.refusals import RETRYABLE, filtered
from llm_distill.models.wire_logprobs import as_json
from llm_distill.records import Completion

#: The endpoint that every line names, whatever stands before it in base_url.
ENDPOINT = "/v1/chat/completions"
#: What became of one row: an answer, an error of its own, or one that another try may mend.
Outcome = Completion | Rejected | Unavailable


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None  # whatever it is, an answer beside it is one


_decode = msgspec.json.Decoder(_Line).decode


def line(key: str, body: dict[str, Any]) -> bytes:
    """One request as a line of a batch's input file; its key in the ledger is its custom_id."""
    return msgspec.json.encode({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}) + b"\n"


def outcomes(
    lines: Iterable[bytes], keys: Collection[str], stray: Counter[str], seconds: float = 0.0
) -> Iterator[tuple[str, Outcome]]:
    """(key, outcome) of every readable line about one of the keys; what else there was is counted in `stray`.

    A key's first answer or rejection stands, and later lines about it are passed over; one that another try may mend gives
    way to them. `seconds` is what each answer is said to have taken.
    """
    settled: set[str] = set()
    for text in lines:
        if not text.strip():
            continue
        try:
            read = _read(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            stray["unreadable"] += 1
            continue
        if read.custom_id not in keys:
            stray["unknown"] += 1
        elif read.custom_id in settled:
            stray["repeated"] += 1
        else:
            found = _outcome(read, seconds)
            if not isinstance(found, Unavailable):
                settled.add(read.custom_id)
            yield read.custom_id, found


def _read(text: bytes) -> _Line:
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _decode(as_json(text))


def _outcome(read: _Line, seconds: float) -> Outcome:
    if read.response is None:  # never worked on: the batch expired, was cancelled, or broke
        error = read.error if isinstance(read.error, dict) else {"message": read.error}
        words = f"{error.get('code') or 'no response'}: {error.get('message') or ''}"
        return Unavailable(wire.told(words).removesuffix(":"))
    status, body = read.response.status_code, bytes(read.response.body)
    if 200 <= status < 300:
        try:
            return wire.completion(body, seconds)
        except Unavailable as error:
            return error
    words = wire.detail(body)
    if filtered(status, words):
        return Completion("", "content_filter", seconds=seconds)
    reason = f"HTTP {status}: {words}"
    return Unavailable(reason) if status in RETRYABLE else Rejected(reason)


def full_files(sizes: Sequence[int], max_requests: int, max_bytes: int) -> list[int]:
    """How many rows go into each file that is full, of rows whose lines take so many bytes; the rest fill none.

    A file is full when the next row would break either limit. No size is above `max_bytes`.
    """
    counts, rows, bytes_ = [], 0, 0
    for size in sizes:
        if rows == max_requests or bytes_ + size > max_bytes:
            counts.append(rows)
            rows = bytes_ = 0
        rows, bytes_ = rows + 1, bytes_ + size
    return counts
