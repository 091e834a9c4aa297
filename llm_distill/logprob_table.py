"""A run's logprobs as Parquet: `logprobs.parquet`, a row a completion in prompt order, and `logprob_tokens.parquet`.

    row_id, request   the prompt's row and the ledger's key
    vocabulary        what the row's ids are of: a model's vocabulary, or null: they number this run's own strings
    counts            list<int32>: how many alternatives each token of the completion has, itself among them
    chosen            list<int32>: which of its alternatives each token is
    top_ids           list<int32>, top_logprobs list<float16>: all alternatives, one token's after the other's

A chosen token is always among its alternatives (the last one, where the model did not list it), so that its id and logprob
stand there once. `logprob_tokens.parquet` (vocabulary, id, bytes) spells every id; bytes are null where the model gave none.
The footer names the vocabularies in the file, so that a reader knows them before the first row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LOGPROBS, TOKENS = "logprobs.parquet", "logprob_tokens.parquet"
FOOTER = "vocabularies"
#: The columns that hold a list a row, and what is in the lists.
LISTS = {"counts": "int32", "chosen": "int32", "top_ids": "int32", "top_logprobs": "float16"}


def beside(table: str) -> str:
    """Where the logprobs of a table of answers are: beside answers.parquet, and in a folder of each arm's own."""
    return LOGPROBS if table == "answers.parquet" else f"{table.removesuffix('.parquet')}/{LOGPROBS}"


def spelling(path: Path) -> Path:
    """The table of tokens that belongs to a table of logprobs."""
    return path.with_name(TOKENS)


@dataclass(frozen=True)
class Batch:
    """Completions by column: r rows, t tokens, a alternatives.

    offsets: (r + 1,), where each row's tokens begin; top_offsets: (t + 1,), where each token's alternatives begin;
    chosen: (t,), where each token is among all alternatives; top_ids: (a,) int32; top_logprobs: (a,) float16, natural
    logs. vocabularies: what each row's ids are of, None for the run's own strings.
    """

    row_ids: list[str]
    requests: list[str]
    vocabularies: list[str | None]
    offsets: np.ndarray
    chosen: np.ndarray
    top_offsets: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """(t,) int32: the tokens of the completions."""
        return self.top_ids[self.chosen]  # type: ignore[no-any-return]

    @property
    def logprobs(self) -> np.ndarray:
        """(t,) float16: how likely the model found them."""
        return self.top_logprobs[self.chosen]  # type: ignore[no-any-return]


def batches(path: Path, row_ids: Sequence[str] | None = None) -> Iterator[Batch]:
    """The completions of a table of logprobs, a row group at a time; only those of some rows, if such are named."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            mask = None
            if row_ids is not None:
                held = file.read_row_group(group, columns=["row_id"])["row_id"]
                mask = pc.is_in(held, pa.array(row_ids, pa.string()))
                if not pc.any(mask).as_py():
                    continue
            table = file.read_row_group(group)
            yield _batch(table if mask is None else table.filter(mask))


def _batch(table: Any) -> Batch:
    import numpy as np

    columns = {name: table[name].combine_chunks() for name in LISTS}
    flat = {name: column.flatten().to_numpy(zero_copy_only=False) for name, column in columns.items()}
    offsets = columns["chosen"].offsets.to_numpy()
    top_offsets = np.append(0, np.cumsum(flat["counts"], dtype=np.int64))
    return Batch(
        row_ids=table["row_id"].to_pylist(),
        requests=table["request"].to_pylist(),
        vocabularies=table["vocabulary"].to_pylist(),
        offsets=offsets - offsets[0],
        chosen=top_offsets[:-1] + flat["chosen"],
        top_offsets=top_offsets,
        top_ids=flat["top_ids"],
        top_logprobs=flat["top_logprobs"],
    )


def vocabularies(path: Path) -> list[str | None]:
    """What the ids of a table of logprobs are of: names of vocabularies, None for its own strings."""
    import pyarrow.parquet as pq

    return json.loads(pq.read_metadata(path).metadata[FOOTER.encode()])  # type: ignore[no-any-return]


def token_bytes(path: Path) -> dict[str | None, dict[int, bytes]]:
    """By vocabulary, the bytes of the ids in a table of logprobs, as far as they are known."""
    import pyarrow.parquet as pq

    found: dict[str | None, dict[int, bytes]] = {name: {} for name in vocabularies(path)}
    for name, number, token in zip(*pq.read_table(spelling(path)).to_pydict().values(), strict=True):
        if token is not None:
            found[name][number] = token
    return found
