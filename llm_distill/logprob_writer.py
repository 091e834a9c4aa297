"""Writing a run's logprobs as Parquet (see logprob_table.py for what is in it), row group by row group."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill.logprob_table import FOOTER, LISTS, spelling
from llm_distill.logprobs import Logprobs
from llm_distill.store import replacing

if TYPE_CHECKING:
    import numpy as np

    from llm_distill.models.vocabulary import Vocabulary

#: A row group ends after this many tokens: 10 MB of numbers at top-20, however long completions are.
GROUP_TOKENS = 1 << 16

#: Add a completion: row_id, ledger key, the model that was served, packed logprobs, and what spells ids without bytes.
Add = Callable[[str, str, str, bytes, "Vocabulary | None"], None]


@contextmanager
def writing(path: Path) -> Iterator[Add]:
    """Write a table of logprobs and its table of tokens while the block runs, in bounded memory.

    Without a single row neither file is left. UserError when a vocabulary is not the one of its completions' ids.
    """
    with ExitStack() as files:
        writer = _Writer(files, path)
        yield writer.add
        writer.finish()


def parquet(files: ExitStack, path: Path) -> Any:
    """A ParquetWriter of a table of logprobs; when `files` closes well, the file takes its place."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = [(name, pa.string()) for name in ("row_id", "request", "vocabulary")]
    lists = [(name, pa.list_(getattr(pa, kind)())) for name, kind in LISTS.items()]
    writer = pq.ParquetWriter(
        files.enter_context(replacing(path)),
        pa.schema(text + lists),
        compression="zstd",
        use_dictionary=["vocabulary", "counts.list.element", "chosen.list.element"],
        # Numbers byte by byte: 51 in place of 61 bytes a token for natural ids, 73 in place of 85 for uniform ones.
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("top_ids", "top_logprobs")},
        write_statistics=False,
    )
    return files.enter_context(writer)


@dataclass
class _Group:
    """Completions of one row group. `columns` are those of `_columns`, `names` their vocabularies."""

    row_ids: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    completions: list[Logprobs] = field(default_factory=list)
    columns: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    tokens: int = 0

    def of(self, name: str | None) -> list[Logprobs]:
        """The completions of one vocabulary."""
        return [c for c, own in zip(self.completions, self.names, strict=True) if own == name]


class _Ids:
    """The ids met of one vocabulary, and the bytes that the model gave for them."""

    def __init__(self) -> None:
        import numpy as np

        self.seen, self.spelt, self.bytes = np.zeros(0, bool), np.zeros(0, bool), dict[int, bytes]()

    def note(self, completions: Sequence[Logprobs]) -> None:
        """Remember the ids of completions."""
        import numpy as np

        numbers = np.concatenate([c.numbers for c in completions if c.numbers is not None])
        missing = int(numbers.max(initial=-1)) + 1 - len(self.seen)
        if missing > 0:
            self.seen, self.spelt = (np.pad(flags, (0, missing + len(flags))) for flags in (self.seen, self.spelt))
        self.seen[numbers] = True
        data, ends = _joined(completions)
        begins = np.append(0, ends[:-1])
        new = np.flatnonzero((ends > begins) & ~self.spelt[numbers])
        if len(new):
            latest = np.full(len(self.seen), -1)
            latest[numbers[new]] = new  # one place of each
            new = latest[latest >= 0]
            self.spelt[numbers[new]] = True
            places = zip(numbers[new].tolist(), begins[new].tolist(), ends[new].tolist(), strict=True)
            self.bytes |= {number: data[begin:end] for number, begin, end in places}


class _Writer:
    """What is being written: the group that fills up, and the tokens met so far."""

    def __init__(self, files: ExitStack, path: Path) -> None:
        self._files, self._path = files, path
        self._vocabularies: dict[str, Vocabulary] = {}
        self._parquet: Any = None
        self._group = _Group()
        self._strings: dict[bytes, int] = {}
        self._ids: dict[str, _Ids] = {}

    def add(self, row_id: str, request: str, model: str, packed: bytes, vocabulary: Vocabulary | None) -> None:
        """One completion."""
        logprobs, group = Logprobs.unpack(packed), self._group
        group.row_ids.append(row_id)
        group.requests.append(request)
        group.names.append(None if logprobs.numbers is None else vocabulary.name if vocabulary else model)
        if vocabulary:
            self._vocabularies[vocabulary.name] = vocabulary
        group.completions.append(logprobs)
        group.columns.append(_columns(logprobs))
        group.tokens += len(logprobs.chosen)
        if group.tokens >= GROUP_TOKENS:
            self._flush()

    def finish(self) -> None:
        """Write what waits, and the tokens."""
        if self._group.row_ids:
            self._flush()
        if self._parquet is None:
            for path in (self._path, spelling(self._path)):
                path.unlink(missing_ok=True)  # of an earlier run of the stage
            return
        names = [*self._ids, *([None] if self._strings else [])]
        self._parquet.add_key_value_metadata({FOOTER: json.dumps(names)})
        self._parquet.close()
        self._write_tokens()

    def _flush(self) -> None:
        """One row group."""
        import numpy as np
        import pyarrow as pa

        group, self._group = self._group, _Group()
        if self._parquet is None:
            self._parquet = parquet(self._files, self._path)
        counts, chosen, places, top_logprobs = zip(*group.columns, strict=True)
        shifts = np.cumsum([0, *(len(c.ends) for c in group.completions)]).tolist()
        top_ids = self._numbers(group)[np.concatenate([p + shift for p, shift in zip(places, shifts, strict=False)])]
        columns = [pa.array(values, pa.string()) for values in (group.row_ids, group.requests, group.names)]
        parts = {"counts": counts, "chosen": chosen, "top_ids": places, "top_logprobs": top_logprobs}
        for name, kind in LISTS.items():
            values = top_ids if name == "top_ids" else np.concatenate(parts[name])
            offsets = np.cumsum([0, *map(len, parts[name])], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, getattr(pa, kind)())))
        table = pa.Table.from_arrays(columns, schema=self._parquet.schema)
        self._parquet.write_table(table, row_group_size=len(table))

    def _numbers(self, group: _Group) -> np.ndarray:
        """The ids of all distinct tokens of a group, one completion's after the other's."""
        import numpy as np
        import pyarrow as pa

        for name in dict.fromkeys(group.names):
            if name is not None:
                self._ids.setdefault(name, _Ids()).note(group.of(name))
        data, ends = _joined(group.of(None))
        buffers = [None, pa.py_buffer(np.append(0, ends).astype(np.int32)), pa.py_buffer(data)]
        strings = pa.Array.from_buffers(pa.binary(), len(ends), buffers).dictionary_encode()
        known = self._strings
        of_distinct = np.array([known.setdefault(s, len(known)) for s in strings.dictionary.to_pylist()], np.int32)
        of_strings = of_distinct[strings.indices.to_numpy()]
        parts, start = [], 0
        for completion in group.completions:
            if completion.numbers is not None:
                parts.append(completion.numbers)
            else:
                parts.append(of_strings[start : start + len(completion.ends)])
                start += len(completion.ends)
        return np.concatenate(parts)

    def _write_tokens(self) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        names: list[str | None] = [None] * len(self._strings)
        numbers: list[int] = list(self._strings.values())
        tokens: list[bytes | None] = list(self._strings)
        for name, ids in self._ids.items():
            seen = np.flatnonzero(ids.seen).tolist()
            names += [name] * len(seen)
            numbers += seen
            if vocabulary := self._vocabularies.get(name):
                vocabulary.check(ids.bytes)
                tokens += map(vocabulary.token, seen)
            else:
                tokens += map(ids.bytes.get, seen)
        schema = pa.schema([("vocabulary", pa.string()), ("id", pa.int32()), ("bytes", pa.binary())])
        with replacing(spelling(self._path)) as temporary:
            pq.write_table(pa.table([names, numbers, tokens], schema=schema), temporary, compression="zstd")


def _joined(completions: Sequence[Logprobs]) -> tuple[bytes, np.ndarray]:
    """The bytes of all their distinct tokens, one completion's after the other's, and where each token ends."""
    import numpy as np

    shifts = np.cumsum([0, *(len(c.spelling) for c in completions)]).tolist()
    ends = [c.ends + shift for c, shift in zip(completions, shifts, strict=False)]
    return b"".join(c.spelling for c in completions), np.concatenate([np.zeros(0, np.int32), *ends])


def _columns(logprobs: Logprobs) -> tuple[np.ndarray, ...]:
    """The columns of a completion: counts (n,), chosen (n,), places and float16 logprobs of all alternatives."""
    import numpy as np

    with np.errstate(over="ignore"):  # less than float16 can say is no probability at all
        top, top_logprobs = logprobs.top, logprobs.top_logprobs.astype(np.float16, copy=False)
        column, own = logprobs.chosen[:, None], logprobs.logprobs[:, None].astype(np.float16)
    n, k = top.shape
    every = np.arange(n)
    if k and (top >= 0).all() and (top[every, chosen := (top == column).argmax(axis=1)] == logprobs.chosen).all():
        return np.full(n, k, np.int32), chosen.astype(np.int32), top.ravel(), top_logprobs.ravel()
    unlisted = (top != column).all(axis=1, keepdims=True)
    top, top_logprobs = np.hstack([top, np.where(unlisted, column, -1)]), np.hstack([top_logprobs, own])
    filled = top >= 0
    chosen = np.cumsum(filled, axis=1)[every, (top == column).argmax(axis=1)] - 1
    return filled.sum(axis=1, dtype=np.int32), chosen.astype(np.int32), top[filled], top_logprobs[filled]
