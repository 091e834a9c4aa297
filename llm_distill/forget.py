"""Forgetting rows: out of every version of every data set, and no set takes them in again; with `everywhere` out of the runs'
tables, their reports and the ledger's texts too. Students that have learnt them are named: weights do not forget.

What is kept of a row is its id and a hash of what it asks. The order is such that the same command completes what a crash cut
off: hashes first; then the ledger, whose keys stand in the runs' tables; then these, the tables of prompts last; then the sets,
over whose rows a query chooses, versions before shards.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill import ledger_texts, store
from llm_distill.errors import UserError
from llm_distill.quoted import unquote
from llm_distill.records import Prompt
from llm_distill.sets import card
from llm_distill.sets.adding import identity, without_rows
from llm_distill.sets.facts import described
from llm_distill.sets.novelty import fingerprint
from llm_distill.sets.shelf import SPLITS, Shelf, forgotten, forgotten_file, prompt_of, shelves, table_row
from llm_distill.story import one_id, row_of, runs, students

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: Why a version lacks a row that its parent had.
FORGOTTEN = "forgotten"
#: The tables of a run by which a row is found.
_NAMING = ("prompts.parquet", "held_out.parquet")


@dataclass(frozen=True)
class Chosen:
    """Rows to be forgotten, by row_id, and where they are."""

    rows: Mapping[str, Prompt]
    sets: Mapping[str, int]
    runs: Mapping[str, int]
    students: Sequence[Mapping[str, Any]]

    @property
    def found(self) -> dict[str, Any]:
        """As JSON."""
        return {"rows": sorted(self.rows), "sets": self.sets, "runs": self.runs, "students": list(self.students)}


def choose(workspace: Path, row_ids: Sequence[str], where: str | None) -> Chosen:
    """The rows that are meant: by how their ids begin, in runs and sets; by a pandas query over the rows of all sets."""
    wanted = {one_id(workspace, prefix) for prefix in row_ids}
    rows = {row_id: found for row_id in wanted if (found := _anywhere(workspace, row_id))}
    if where is not None:
        rows |= _queried(workspace, where)
    ids = set(rows) | wanted
    in_sets = {shelf.name: len(_in(shelf, ids)) for shelf in shelves(workspace)}
    in_runs = {f"{run.path.parent.name}/{run.path.name}": sum(1 for _ in _tables(run, ids)) for run in runs(workspace)}
    return Chosen(
        rows,
        {name: n for name, n in in_sets.items() if n},
        {name: n for name, n in in_runs.items() if n},
        students(workspace, ids),
    )


def _in(shelf: Shelf, ids: set[str]) -> set[str]:
    """Those that some version of a set has."""
    found: set[str] = set()
    for file in (shelf.path / "shards").glob("*.parquet"):
        found |= {row["row_id"] for row in store.read_table(file, ["row_id"])} & ids
    return found


def _anywhere(workspace: Path, row_id: str) -> Prompt | None:
    for shelf in shelves(workspace):
        for file in (shelf.path / "shards").glob("*.parquet"):
            if row := row_of(file, row_id):
                return prompt_of(row)
    for run in runs(workspace):
        for table in ("prompts", "held_out"):
            if row_of(run.file(f"{table}.parquet"), row_id):
                return next(p for p in store.read_prompts(run.file(f"{table}.parquet")) if p.row_id == row_id)
    return None


def _queried(workspace: Path, where: str) -> dict[str, Prompt]:
    from llm_distill.tables import matching

    found: dict[str, Prompt] = {}
    for shelf in shelves(workspace):
        for file in sorted((shelf.path / "shards").glob("*.parquet")):
            rows = [table_row(row) for row in store.read_table(file)]
            asks = {row["row_id"]: prompt_of(row) for row in store.read_table(file)}
            looked = [
                {
                    **row,
                    **{f"tags.{k}": v for k, v in row["tags"]},
                    "question": asks[row["row_id"]].text,
                    "set": shelf.name,
                }
                for row in rows
            ]
            found |= {row["row_id"]: asks[row["row_id"]] for row in matching(looked, where)}
    return found


def forget(workspace: Path, chosen: Chosen, ledger: Ledger | None) -> dict[str, Any]:
    """Do it. ledger: where the runs' tables and the ledger's texts are to forget as well.

    UserError, before anything is changed, for a run that is going on: it would write its rows again.
    """
    if ledger is not None:
        _check_at_rest(workspace, chosen, ledger_texts.asking(ledger))
    remember(workspace, chosen.rows.values())
    ids = set(chosen.rows)
    elsewhere = {} if ledger is None else _out_of_runs(workspace, chosen, ledger)
    versions = {shelf.name: _out_of_set(shelf, ids) for shelf in shelves(workspace)}
    return {**chosen.found, "versions": {name: v for name, v in versions.items() if v}, **elsewhere}


def _check_at_rest(workspace: Path, chosen: Chosen, asking: set[str]) -> None:
    for path in sorted(workspace.glob("runs/*/*/run.json")):
        try:
            store.RunFolder(path.parent)
        except UserError as error:  # damaged, or of another version: it may hold the rows
            raise UserError(f"forget --everywhere: {error}") from None
    for run in runs(workspace):
        name = f"{run.path.parent.name}/{run.path.name}"
        account = f"{run.path.parent.name}/{run.record.get('account')}"  # as it asks, whatever its budget
        if name in chosen.runs and (account in asking or _held(run.path / ".lock")):
            raise UserError(
                f"forget --everywhere: the run {name} is going on and would write the rows again; stop it first."
            )


def _held(lock: Path) -> bool:
    """Whether another process holds a lock."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _out_of_runs(workspace: Path, chosen: Chosen, ledger: Ledger) -> dict[str, int]:
    """Erase the questions of the ledger, then rewrite the runs' tables. Gives how many of each."""
    ids = set(chosen.rows)
    _clear(workspace / "runs")
    found = [(run, path) for run in runs(workspace) for path in _tables(run, ids)]
    keys = {key for _, path in found for key in _requests(path, ids)}
    keys |= set(ledger_texts.quoting(ledger, [prompt.text for prompt in chosen.rows.values()]))
    erased = ledger_texts.erase(ledger, sorted(keys))
    for run in {run.path: run for run, _ in found}.values():  # while the tables still say that it has them
        own = {path.name for of, path in found if of.path == run.path}
        taught = bool(own & {"kept.parquet", "set.parquet"})
        unquote(run, ids, [prompt.text for prompt in chosen.rows.values()], taught=taught)
    for run, path in sorted(found, key=lambda pair: pair[1].name in _NAMING):
        shutil.rmtree(
            run.file("report"), ignore_errors=True
        )  # its page shows rows; `llm-distill report` makes it again
        _rewrite(path, ids)
    return {"tables": len(found), "ledger": erased}


def _clear(folder: Path) -> None:
    """Remove what killed writers left under temporary names; those of processes that live here stay."""
    for path in folder.rglob(".*.tmp"):
        writer = path.name.removesuffix(".tmp").rpartition(".")[2]
        if writer.isdecimal() and path.is_file():
            try:
                os.kill(int(writer), 0)
            except (ProcessLookupError, OverflowError):
                path.unlink(missing_ok=True)
            except PermissionError:  # somebody else's
                continue


def remember(workspace: Path, prompts: Any) -> None:
    """Add the hashes of rows to the list of those that no set takes in."""
    path = forgotten_file(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(".forgotten.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known, now = forgotten(workspace), datetime.now(UTC).isoformat(timespec="seconds")
        new = sorted({fingerprint(prompt) for prompt in prompts} - known)
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        with store.replacing(path) as temporary:
            lines = (json.dumps({"hash": one, "at": now}) + "\n" for one in new)
            temporary.write_text(earlier + "".join(lines), encoding="utf-8")


def _out_of_set(shelf: Shelf, ids: set[str]) -> int | None:
    """Rewrite every version without the rows; a new one says that the last had them. Gives it, None where none had."""
    with shelf.lock():
        latest = shelf.manifest(shelf.latest)
        has = {r["row_id"] for split in SPLITS for r in shelf.rows(shelf.latest, split, ["row_id"])} & ids
        rewritten: dict[str, list[dict[str, Any]]] = {}
        for version in shelf.versions:
            for shard in shelf.manifest(version)["shards"]:
                if shard["file"] not in rewritten:
                    rows = without_rows(shelf, shard, ids)
                    rewritten[shard["file"]] = [shard] if rows is None else shelf.write_shards(rows, shard["split"])
        new = None
        if has:
            new = {
                **latest, "version": latest["version"] + 1, "parent": latest["version"], "run": FORGOTTEN,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "added": dict.fromkeys(SPLITS, 0), "not_new": {}, "set_aside": {}, "drift": None,
                "removed": [{"row_id": row_id, "why": FORGOTTEN} for row_id in sorted(has)],
                "asked": 0, "kept": 0, "status": {}, "filters": [], "price": {"usd": 0.0, "usd_a_row": None},
            }  # fmt: skip
            new = _changed(shelf, new, rewritten) | {"forgotten": 0}
            shelf.write_version(new, card.written(shelf, new))
        parent = None
        for version in shelf.versions:
            manifest = _changed(shelf, shelf.manifest(version), rewritten) | {"parent_id": parent}
            parent = identity(manifest)
            shelf.rewrite_version(manifest, card.written(shelf, manifest))
        shelf.sweep_shards()
        return int(new["version"]) if new else None


def _changed(shelf: Shelf, manifest: dict[str, Any], rewritten: Mapping[str, Any]) -> dict[str, Any]:
    """A version's manifest after rows were taken out of its shards; `forgotten` counts those that it has lost so, ever."""
    shards = [new for shard in manifest["shards"] for new in rewritten.get(shard["file"], [shard])]
    rows = {split: sum(shard["rows"] for shard in shards if shard["split"] == split) for split in SPLITS}
    lost = manifest.get("forgotten", 0) + sum(manifest["rows"].values()) - sum(rows.values())
    return {**manifest, "shards": shards, "rows": rows, "forgotten": lost, **described(shelf, shards)}


def _tables(run: store.RunFolder, ids: set[str]) -> Iterator[Path]:
    """A run's tables that have some of the rows, whatever they are for."""
    import pyarrow.parquet as pq

    for path in sorted(run.path.rglob("*.parquet")):
        if path.name.startswith(".") or "row_id" not in pq.read_schema(path).names:
            continue
        if {row["row_id"] for row in store.read_table(path, ["row_id"])} & ids:
            yield path


def _requests(path: Path, ids: set[str]) -> set[str]:
    import pyarrow.parquet as pq

    if "requests" not in pq.read_schema(path).names:
        return set()
    rows = store.read_table(path, ["row_id", "requests"])
    return {key for row in rows if row["row_id"] in ids for key in row["requests"] or ()}


def _rewrite(path: Path, ids: set[str]) -> None:
    """The same table without the rows; its columns and what is noted of them stay."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    keep = [row_id not in ids for row_id in table.column("row_id").to_pylist()]
    with store.replacing(path) as temporary:
        pq.write_table(table.filter(keep), temporary, compression="zstd")


def lines(found: Mapping[str, Any], *, everywhere: bool) -> Iterator[str]:
    """What would be done, or was, to read."""
    yield f"{len(found['rows']):,} rows" + (
        f": {', '.join(row_id[:10] for row_id in found['rows'][:8])}" if found["rows"] else ""
    )
    yield from (f"  data set  {name}: {n:,} of them, out of every version" for name, n in found["sets"].items())
    for name, n in found["runs"].items():
        yield f"  run       {name}: in {n:,} tables" + ("" if everywhere else ", which stay (--everywhere)")
    for student in found["students"]:
        yield f"  student   {student['student']} was trained on {student['rows']:,} of them: weights do not forget; train again"
        yield from (f"            exported to {path}" for path in student["exports"])
    yield from (f"  made      {name}@v{version}" for name, version in found.get("versions", {}).items())
    if "ledger" in found:
        yield f"  erased    {found['ledger']:,} questions of the ledger, {found['tables']:,} tables rewritten; costs stay noted"


def check_choice(row_ids: Sequence[str], where: str | None) -> None:
    """UserError for no choice."""
    if not row_ids and where is None:
        raise UserError(
            "forget: say which rows: --row ID, or --where \"tags.customer == 'acme'\" over the rows of data sets."
        )
