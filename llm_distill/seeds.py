"""Reading rows that people wrote: JSONL with `prompt` or `messages`, optionally `reference`, `label`, `tags`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.records import Message, Prompt, make_prompt


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """A line as it may be written. Numbers are welcome where a tag or a label is meant."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    reference: str | None = None
    label: str | int | float | bool | None = None
    tags: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Row)


def read_rows(path: Path) -> Iterator[Prompt]:
    """The rows of a JSONL file as prompts, streamed. Malformed lines are a UserError naming file and line."""
    empty = True
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark that some editors write
            if text.strip():
                empty = False
                yield _read(text, f"{path}:{number}")
    if empty:
        raise UserError(f"{path}: the file holds no rows.")


def numbered(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The same prompts; those whose words stood there before get row_ids of their own: equal questions, but two rows."""
    seen: Counter[str] = Counter()
    for prompt in prompts:
        n = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += 1
        yield make_prompt(prompt.messages, prompt.tags, prompt.label, prompt.reference, occurrence=n) if n else prompt


def _read(line: bytes, where: str) -> Prompt:
    try:
        row = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: malformed row: {error}. A row is one JSON object with `prompt` (text) or `messages`, "
            "optionally `reference`, `label`, `tags`."
        ) from None
    if (row.prompt is None) == (row.messages is None):
        raise UserError(
            f"{where}: a row has either `prompt` or `messages`; found {'both' if row.prompt else 'neither'}."
        )
    messages = row.messages if row.messages is not None else (Message("user", row.prompt or ""),)
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise UserError(f"{where}: the last message must be a user turn with some text.")
    label = None if row.label is None else str(row.label)
    return make_prompt(messages, {k: str(v) for k, v in row.tags.items()}, label, row.reference)
