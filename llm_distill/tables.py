"""Looking at a run's tables."""

from __future__ import annotations

from typing import Any

from llm_distill.errors import UserError, did_you_mean
from llm_distill.store import RunFolder, read_table


def look(folder: RunFolder, table: str, where: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table, tags as columns `tags.<name>`, those that fit a pandas query if one is given."""
    tables = {p.relative_to(folder.path).with_suffix("").as_posix(): p for p in folder.path.rglob("*.parquet")}
    if table not in tables:
        raise UserError(f"no table {table!r} in {folder.path}.{did_you_mean(table, tables)}")
    rows = [row | {f"tags.{k}": v for k, v in row.pop("tags")} for row in read_table(tables[table])]
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
