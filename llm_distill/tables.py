"""Looking at a run's tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from llm_distill.errors import UserError, did_you_mean
from llm_distill.logprob_table import LOGPROBS, TOKENS, batches, token_bytes
from llm_distill.store import RunFolder, read_table

if TYPE_CHECKING:
    from llm_distill.logprob_table import Batch

#: Alternatives of a token that a line has room for.
_ALTERNATIVES = 5


def look(folder: RunFolder, table: str, where: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table, tags as columns `tags.<name>`, those that fit a pandas query if one is given."""
    found = {p.relative_to(folder.path).with_suffix("").as_posix(): p for p in folder.path.rglob("*.parquet")}
    tables = {name: path for name, path in found.items() if path.name not in (LOGPROBS, TOKENS)}
    if table not in tables:
        raise UserError(f"no table {table!r} in {folder.path}.{did_you_mean(table, tables)}")
    return matching([row | {f"tags.{k}": v for k, v in row.pop("tags")} for row in read_table(tables[table])], where)


def matching(rows: list[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    """The rows that fit a pandas query; all without one."""
    if where is None or not rows:
        return rows
    import pandas as pd

    frame = pd.DataFrame(rows)
    try:
        mask: Any = frame.eval(where)
        if str(getattr(mask, "dtype", "")) != "bool":
            raise TypeError("it is no yes-or-no question; compare something")
        return [rows[i] for i in frame.index[mask]]
    except Exception as error:  # noqa: BLE001  a query fails in as many ways as Python has
        columns = ", ".join(f"`{name}`" if "." in name else name for name in frame.columns)
        raise UserError(f"--where {where}: {' '.join(str(error).split())}. Columns: {columns}.") from None


def look_logprobs(folder: RunFolder, table: str, where: str | None, limit: int) -> list[dict[str, Any]]:
    """The completions of `logprobs`, or of an evaluation's `eval/<arm>/logprobs`, token by token, `limit` at most.

    `where` is a query on the table of answers that they belong to. Alternatives are sorted by falling probability.
    """
    path = folder.file(f"{table}.parquet")
    if not path.exists():
        raise UserError(f"no {table} in {folder.path}: they are kept where answers.top_logprobs asks for them.")
    answers = table.removesuffix("/logprobs") if "/" in table else "answers"
    wanted = None if where is None else [row["row_id"] for row in look(folder, answers, where)]
    spelt = token_bytes(path)
    return list(islice((row for batch in batches(path, wanted) for row in _spelt_rows(batch, spelt)), limit))


def _spelt_rows(batch: Batch, spelt: dict[str | None, dict[int, bytes]]) -> Iterator[dict[str, Any]]:
    offsets, tops, chosen = batch.offsets.tolist(), batch.top_offsets.tolist(), batch.chosen.tolist()
    for i, (row_id, request, name) in enumerate(zip(batch.row_ids, batch.requests, batch.vocabularies, strict=True)):

        def one(place: int, name: str | None = name) -> dict[str, Any]:
            number, logprob = int(batch.top_ids[place]), float(batch.top_logprobs[place])
            token = spelt[name].get(number)
            return {
                "token": f"token_id:{number}" if token is None else token.decode("utf-8", "replace"),
                "bytes": None if token is None else list(token),
                "id": None if name is None else number,
                "logprob": logprob if math.isfinite(logprob) else None,
                "probability": math.exp(logprob),
            }

        tokens = []
        for t in range(offsets[i], offsets[i + 1]):
            top = sorted(map(one, range(tops[t], tops[t + 1])), key=lambda other: -other["probability"])
            tokens.append({**one(chosen[t]), "top": top})
        yield {"row_id": row_id, "request": request, "vocabulary": name, "tokens": tokens}


def token_lines(row: dict[str, Any]) -> Iterator[str]:
    """A completion as lines to read, one a token: how likely it was, and what else could have come."""
    yield f"{row['row_id'][:10]}  request={row['request'][:10]}  vocabulary={row['vocabulary'] or 'strings'!r}"
    for token in row["tokens"]:
        others = [other for other in token["top"] if (other["bytes"], other["id"]) != (token["bytes"], token["id"])]
        said = [f"{_said(other)} {other['probability']:.4f}" for other in others[:_ALTERNATIVES]]
        yield f"  {token['probability']:.4f}  {_said(token):<24}" + "   ".join(["", *said])


def _said(token: dict[str, Any]) -> str:
    """A token in quotes, in printable characters alone: what a model wrote must not steer the terminal."""
    if token["bytes"] is None:
        return str(token["token"])
    try:
        return repr(bytes(token["bytes"]).decode())
    except UnicodeDecodeError:
        return repr(bytes(token["bytes"]))
