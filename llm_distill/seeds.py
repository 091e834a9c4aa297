"""Reading rows that people wrote: `prompt` or `messages`, optionally `reference`, `label`, `tags`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, model_validator

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Message, Prompt, make_prompt
from llm_distill.seed_files import Found, classes, header, json_lines, kind_of, records
from llm_distill.text_files import UTF8


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """A line of JSONL as it may be written. Numbers are welcome where a tag or a label is meant."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    reference: str | None = None
    label: str | int | float | bool | None = None
    tags: dict[str, Any] = {}
    # Verifiable instructions, as IFEval's rows have them; `key` is the number of such a row.
    instruction_id_list: list[str] | None = None
    kwargs: list[dict[str, Any]] | None = None
    key: int | str | None = None


_DECODER = msgspec.json.Decoder(_Row)


class Columns(BaseModel):
    """Which of a file's columns are what; those that are not named do not count.

    tags: columns that become tags under their own names; of one that holds an object its keys do. `reference` may name the
    column of `messages`: then a conversation's last turn, the assistant's, is the reference and not part of the prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: str | None = None
    messages: str | None = None
    label: str | None = None
    reference: str | None = None
    tags: list[str] = []

    @model_validator(mode="after")
    def _one_text(self) -> Columns:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("name the column of `prompt` (text) or of `messages`")
        if len(set(self.tags)) < len(self.tags):
            raise ValueError(f"a tag stands twice in {self.tags}")
        return self

    @property
    def named(self) -> set[str]:
        """All of them."""
        return {c for c in (self.prompt, self.messages, self.label, self.reference, *self.tags) if c is not None}


def read_rows(
    path: Path, columns: Columns | None = None, encoding: str = UTF8, limit: int | None = None
) -> Iterator[Prompt]:
    """The rows of a seed file as prompts, streamed; the first `limit` of them if given.

    Without `columns` a JSONL row has the keys of a row and no others; so has a table, where a column `tags.NAME` is the
    tag NAME. Malformed rows are a UserError naming file and line.
    """
    kind = kind_of(path)
    if kind == "jsonl" and columns is None:
        empty = True
        for number, (where, line) in enumerate(json_lines(path, encoding)):
            empty = False
            if limit is not None and number >= limit:
                return
            yield _read(line, where)
        if empty:
            raise UserError(f"{path}: the file holds no rows.")
        return
    names = None if kind == "jsonl" else header(path, encoding)
    if columns is None:
        columns = _own_columns(names or [], path)
    found = records(path, columns.named, encoding)
    yield from rows_of(found, columns, f"{path}: the file", names, classes(path) if kind == "parquet" else {}, limit)


def rows_of(
    found: Iterable[Found],
    columns: Columns,
    what: str,
    names: Collection[str] | None,
    label_names: Mapping[str, Sequence[str]],
    limit: int | None = None,
) -> Iterator[Prompt]:
    """Records as prompts, at most `limit`. `names` are the columns of all, None where each record has its own; a column that
    is in none is a UserError. `label_names`: of columns with class labels, the names behind their numbers.
    """
    missing = columns.named.difference(names or ())
    if names and missing:
        _no_column(what, missing, names)
    seen: set[str] = set()
    number = 0
    for number, (where, record) in enumerate(found, start=1):
        if missing:
            missing.difference_update(record)
            seen.update(record)
        yield _prompt(record, columns, label_names, where)
        if number == limit:
            break
    if not number:
        raise UserError(f"{what} holds no rows.")
    if missing:
        _no_column(what, missing, seen)


def numbered(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The same prompts; those whose words stood there before get row_ids of their own: equal questions, but two rows."""
    seen: Counter[str] = Counter()
    for prompt in prompts:
        n = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += 1
        yield make_prompt(prompt.messages, prompt.tags, prompt.label, prompt.reference, occurrence=n) if n else prompt


def _read(line: str, where: str) -> Prompt:
    try:
        row = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UserError(
            f"{where}: malformed row: {error}. A row is one JSON object with `prompt` (text) or `messages`, "
            "optionally `reference`, `label`, `tags`."
        ) from None
    if (row.prompt is None) == (row.messages is None):
        raise UserError(
            f"{where}: a row has either `prompt` or `messages`; found {'both' if row.prompt else 'neither'}."
        )
    told = {"instruction_id_list": row.instruction_id_list, "kwargs": row.kwargs}
    if (any(part is not None for part in told.values()) or row.key is not None) and (
        None in told.values() or row.reference is not None
    ):
        raise UserError(
            f"{where}: malformed row: `instruction_id_list` and `kwargs` stand together, `key` beside them alone, and they are "
            "the reference of their row, which has no other."
        )
    reference = row.reference if row.kwargs is None else msgspec.json.encode(told).decode()
    messages = row.messages if row.messages is not None else (Message("user", row.prompt or ""),)
    label = None if row.label is None else str(row.label)
    return _made(messages, {k: str(v) for k, v in row.tags.items() if v is not None}, label, reference, where)


def _made(
    messages: tuple[Message, ...], tags: Mapping[str, str], label: str | None, reference: str | None, where: str
) -> Prompt:
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise UserError(f"{where}: the last message must be a user turn with some text.")
    return make_prompt(messages, tags, label, reference)


def _own_columns(names: Sequence[str], path: Path) -> Columns:
    """The columns of a table that names them as a row's keys are named."""
    fields = {name for name in ("prompt", "messages", "label", "reference") if name in names}
    tags = [name for name in names if name == "tags" or name.startswith("tags.")]
    other = [name for name in names if name not in fields and name not in tags]
    if not names:
        raise UserError(f"{path}: the file holds no rows.")
    if other or len(fields & {"prompt", "messages"}) != 1:
        raise UserError(
            f"{path}: its columns are {', '.join(map(repr, names))}; a row has `prompt` or `messages`, optionally `label`, "
            "`reference` and tags (`tags.NAME`), and no others. Rename them, or say which count where there is a knob "
            "`columns`: {prompt: ..., label: ...}."
        )
    return Columns.model_validate({name: name for name in fields} | {"tags": tags})


def _no_column(what: str, missing: Collection[str], names: Collection[str]) -> None:
    name = min(missing)
    raise UserError(f"{what} has no column {name!r}.{did_you_mean(name, names)}")


def _prompt(record: Mapping[str, Any], columns: Columns, names: Mapping[str, Sequence[str]], where: str) -> Prompt:
    column = columns.prompt or columns.messages
    if column not in record:
        _no_column(f"{where}: it", {str(column)}, record)
    if columns.prompt is not None:
        messages: tuple[Message, ...] = (Message("user", _text(record, columns.prompt, where) or ""),)
    else:
        try:
            messages = msgspec.convert(record[str(column)], tuple[Message, ...])
        except (msgspec.ValidationError, TypeError) as error:
            raise UserError(f"{where}: malformed messages in column {column!r}: {error}.") from None
    if columns.reference is None:
        reference = None
    elif columns.reference == columns.messages:
        if not messages or messages[-1].role != "assistant":
            raise UserError(
                f"{where}: the reference is to be the last turn of {column!r}, but that is not the assistant's."
            )
        messages, reference = messages[:-1], messages[-1].content
    else:
        reference = _text(record, columns.reference, where)
    tags: dict[str, str] = {}
    for tag in columns.tags:
        value = record.get(tag)
        inner = value if isinstance(value, Mapping) else {tag.removeprefix("tags."): value}
        words = {str(name): _word(v, tag, names, where) for name, v in inner.items()}
        tags |= {name: word for name, word in words.items() if word is not None}
    label = None if columns.label is None else _word(record.get(columns.label), columns.label, names, where)
    return _made(messages, tags, label, reference, where)


def _text(record: Mapping[str, Any], column: str, where: str) -> str | None:
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} holds {type(value).__name__}, no text.")
    return value


def _word(value: Any, column: str, names: Mapping[str, Sequence[str]], where: str) -> str | None:
    """A label or a tag as text; None where there is none. A class label of -1 means that none is known."""
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124  a NaN stands for what is missing
        return None
    if not isinstance(value, str | int | float | bool):
        raise UserError(
            f"{where}: column {column!r} holds {type(value).__name__}; a label or a tag is text or a number."
        )
    known = names.get(column)
    if known is None or not isinstance(value, int):
        return str(value)
    if not -1 <= value < len(known):
        raise UserError(f"{where}: column {column!r} holds {value}, but it has {len(known)} class labels.")
    return None if value == -1 else known[value]
