"""Records out of seed files, streamed: JSONL, CSV, TSV and Parquet, told apart by their suffix."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec

from llm_distill.errors import UserError
from llm_distill.text_files import UTF8, lines

#: Where a record stands, for messages, and its values by column.
Found = tuple[str, Mapping[str, Any]]
Kind = Literal["jsonl", "csv", "tsv", "parquet"]
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_KINDS |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
#: The longest field of a CSV file, in characters: a quote that is never closed would take in the rest of the file.
_LONGEST_FIELD = 1 << 24
#: Of a Parquet file, held as Python objects at once.
_BATCH_ROWS = 1000
_DECODER = msgspec.json.Decoder(dict[str, Any])


def kind_of(path: Path) -> Kind:
    """What a seed file is, by its suffix; `.gz` after that of a text is fine. UserError for any other."""
    packed = path.suffix == ".gz"
    kind = _KINDS.get((path.with_suffix("") if packed else path).suffix.lower())
    if kind is None or (packed and kind == "parquet"):
        raise UserError(f"{path}: rows are read from .jsonl, .csv, .tsv (also with .gz) and .parquet files.")
    return kind


def header(path: Path, encoding: str = UTF8) -> list[str]:
    """The columns of a CSV, TSV or Parquet file; UserError for a name that stands twice."""
    kind = kind_of(path)
    names = _schema(path).names if kind == "parquet" else next(_table(path, kind, encoding), (0, []))[1]
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"{path}: the column {name!r} stands there {times} times; rename all but one.")
    return list(names)


def classes(path: Path) -> dict[str, Sequence[str]]:
    """The names behind the numbers of each class label column, as Hugging Face's `datasets` leaves them in a Parquet file."""
    noted = (_schema(path).metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted or "{}")["info"]["features"]
        return {column: f["names"] for column, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):  # another writer's notes
        return {}


def records(path: Path, wanted: Collection[str], encoding: str = UTF8) -> Iterator[Found]:
    """A file's records in its order, of a Parquet file no more than the columns wanted. An empty cell of a CSV is None."""
    kind = kind_of(path)
    if kind == "jsonl":
        yield from _objects(path, encoding)
    elif kind == "parquet":
        yield from _parquet(path, wanted)
    else:
        table = _table(path, kind, encoding)
        _, names = next(table, (0, []))
        for number, row in table:
            if len(row) != len(names):
                raise UserError(
                    f"{path}:{number}: {len(row)} fields, but the header has {len(names)}; put a field that holds a "
                    "delimiter or a line end in double quotes."
                )
            yield f"{path}:{number}", {name: cell or None for name, cell in zip(names, row, strict=True)}


def json_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[str, str]]:
    """The lines of a JSONL file that are not blank, each with its place."""
    for number, line in enumerate(lines(path, encoding), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def _objects(path: Path, encoding: str) -> Iterator[Found]:
    for where, line in json_lines(path, encoding):
        try:
            yield where, _DECODER.decode(line)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UserError(f"{where}: malformed row: {error}. A row is one JSON object a line.") from None


def _table(path: Path, kind: Kind, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a delimited file, RFC 4180, the header first, each with the line that it begins on."""
    if csv.field_size_limit() < _LONGEST_FIELD:
        csv.field_size_limit(_LONGEST_FIELD)
    delimiter = "\t" if kind == "tsv" else ","
    reader = csv.reader(lines(path, encoding, newline=""), delimiter=delimiter, strict=True)
    for _ in count():
        begun = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{begun}: malformed row: {error}. Is a double quote left open?") from None
        if row:
            yield begun, row


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {' '.join(str(error).split())}.") from None


def _parquet(path: Path, wanted: Collection[str]) -> Iterator[Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(wanted)):
                for record in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield f"{path}: row {number}", record
    except (pa.ArrowException, OSError, UnicodeError, KeyError) as error:  # KeyError: a map with a key twice
        raise UserError(f"{path}: cannot be read after row {number}: {' '.join(str(error).split())}.") from None
