"""A data set's folder: versions, each a manifest and a card, over shards that are named by their content.

    <workspace>/sets/NAME/
        shards/<hash>.parquet   rows, written once, shared by every version that has them
        v0001/manifest.json     which shards, how many rows, what changed since the version before and why
        v0001/README.md         the data card
    <workspace>/sets/forgotten.jsonl   hashes of rows that no set may take in again

A version appears whole, by a rename, after its shards are on disk: a crash leaves the last one, and at most a shard that
nothing names, which the next writer removes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from llm_distill import store
from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Message, Prompt

Split = Literal["taught", "held_out"]
SPLITS: tuple[Split, ...] = ("taught", "held_out")
#: Of manifests and shards.
FORMAT = 1
_VERSION = re.compile(r"v(\d{4,})")
#: Rows of a shard at most.
_SHARD_ROWS = 100_000


def schema() -> Any:
    """The Arrow schema of every shard, whichever recipe filled it: an answer's columns, its scores, and the run it came from.

    Maps are lists of pairs, which is what `datasets.load_dataset` reads. Rows held out have no answer.
    """
    import pyarrow as pa

    pairs = pa.list_(pa.struct({"key": pa.string(), "value": pa.string()}))
    scores = pa.list_(pa.struct({"key": pa.string(), "value": pa.float64()}))
    fields = [pa.field("tags", pairs) if field.name == "tags" else field for field in store.schema("answers")]
    more = {"scores": scores, "review": pa.string(), "recipe": pa.string(), "run": pa.string()}
    return pa.schema([*fields, *(pa.field(name, form) for name, form in more.items())])


def shard_row(row: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A row of a run's table as a shard has it. run: `<recipe>/<folder>`."""
    scores = [
        {"key": name.removeprefix("score."), "value": value} for name, value in row.items() if name.startswith("score.")
    ]
    tags = [{"key": key, "value": value} for key, value in row["tags"]]
    return {**row, "tags": tags, "scores": scores, "recipe": run.split("/", maxsplit=1)[0], "run": run}


def table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A shard's row as a run's table has it."""
    return {**row, "tags": [(tag["key"], tag["value"]) for tag in row["tags"]]}


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """A shard's row as a prompt."""
    messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    tags = {tag["key"]: tag["value"] for tag in row["tags"]}
    return Prompt(row["row_id"], row["prompt_id"], messages, tags, row["label"], row["reference"])


#: What `prompt_of` reads.
PROMPT_COLUMNS = ("row_id", "prompt_id", "messages", "tags", "label", "reference")


class Shelf:
    """One data set."""

    def __init__(self, workspace: Path, name: str) -> None:
        self.name, self.path = name, workspace / "sets" / name

    @property
    def versions(self) -> list[int]:
        """The versions that there are, in order."""
        found = (_VERSION.fullmatch(path.name) for path in self.path.glob("v*") if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    @property
    def latest(self) -> int:
        """The last version; 0 where there is none yet."""
        return max(self.versions, default=0)

    def folder(self, version: int) -> Path:
        """Where a version lies."""
        return self.path / f"v{version:04}"

    def manifest(self, version: int) -> dict[str, Any]:
        """What is written of a version; of version 0, that it is empty."""
        if version == 0:
            return {"format": FORMAT, "name": self.name, "version": 0, "shards": [], "terms": {}}
        path = self.folder(version) / "manifest.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            there = ", ".join(f"v{v}" for v in self.versions) or "none"
            raise UserError(f"the data set {self.name} has no version {version}; it has {there}.") from None
        except ValueError:
            raise UserError(f"{path} is no manifest; put the file back, or remove the folder.") from None
        if found.get("format") != FORMAT:
            raise UserError(f"{path} has format {found.get('format')}, and this llm-distill reads {FORMAT}.")
        return found

    def shard(self, named: Mapping[str, Any]) -> Path:
        """The file of a manifest's shard."""
        return self.path / "shards" / str(named["file"])

    def rows(self, version: int, split: Split, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a version, in the order in which they came."""
        for named in self.manifest(version)["shards"]:
            if named["split"] == split:
                yield from store.read_table(self.shard(named), columns)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the set against other writers, waiting for them."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write_shards(self, rows: Iterable[Mapping[str, Any]], split: Split) -> list[dict[str, Any]]:
        """Put rows on disk, as entries of a manifest; none for no rows. Equal rows are one file, however often written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        form, named, rows = schema(), [], list(rows)
        for start in range(0, len(rows), _SHARD_ROWS):
            some = rows[start : start + _SHARD_ROWS]
            home = self.path / "shards"
            home.mkdir(parents=True, exist_ok=True)
            temporary = home / f".new.{os.getpid()}.tmp"
            try:
                pq.write_table(pa.Table.from_pylist(some, form), temporary, compression="zstd")
                digest = store.digest(temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(home / f"{digest}.parquet")
            finally:
                temporary.unlink(missing_ok=True)
            named.append({"file": f"{digest}.parquet", "split": split, "rows": len(some)})
            _sync(home)
        return named

    def write_version(self, manifest: Mapping[str, Any], card: str) -> int:
        """Let a version appear. To be called with the lock held."""
        version = int(manifest["version"])
        temporary, place = self.path / f".v{version:04}.tmp", self.folder(version)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        store.write_json(temporary / "manifest.json", manifest)
        with store.replacing(temporary / "README.md") as file:
            file.write_text(card, encoding="utf-8")
        _sync(temporary)
        temporary.rename(place)
        _sync(self.path)
        return version

    def rewrite_version(self, manifest: Mapping[str, Any], card: str) -> None:
        """Change what is written of a version that stands. To be called with the lock held."""
        folder = self.folder(int(manifest["version"]))
        store.write_json(folder / "manifest.json", manifest)
        with store.replacing(folder / "README.md") as file:
            file.write_text(card, encoding="utf-8")

    def sweep_shards(self) -> None:
        """Remove shards that no version names, and what a killed writer left. To be called with the lock held."""
        named = {shard["file"] for version in self.versions for shard in self.manifest(version)["shards"]}
        for file in (self.path / "shards").glob("*"):
            if file.name not in named:
                file.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a rename survive power loss, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def shelves(workspace: Path) -> list[Shelf]:
    """The data sets of a workspace that have a version, by name."""
    found = [Shelf(workspace, path.name) for path in sorted((workspace / "sets").glob("*")) if path.is_dir()]
    return [shelf for shelf in found if shelf.versions]


def named(workspace: Path, text: str) -> tuple[Shelf, int]:
    """What NAME or NAME@v3 means: a data set and a version of it, by default the last. UserError for what is not there."""
    name, _, tail = text.partition("@")
    known = {shelf.name: shelf for shelf in shelves(workspace)}
    if name not in known:
        raise UserError(f"no data set {name!r} in {workspace / 'sets'}.{did_you_mean(name, known)}")
    shelf = known[name]
    if not tail:
        return shelf, shelf.latest
    if not re.fullmatch(r"v?\d{1,9}", tail):
        raise UserError(f"{text}: write NAME@v3 for the third version; {name} has {shelf.latest}.")
    version = int(tail.removeprefix("v"))
    shelf.manifest(version or -1)  # is it there?
    return shelf, version


def forgotten_file(workspace: Path) -> Path:
    """Where the hashes of forgotten rows are kept."""
    return workspace / "sets" / "forgotten.jsonl"


def forgotten(workspace: Path) -> set[str]:
    """The hashes of rows that no set may take in again."""
    path = forgotten_file(workspace)
    if not path.exists():
        return set()
    try:
        return {json.loads(line)["hash"] for line in path.read_text(encoding="utf-8").splitlines() if line}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no list of forgotten rows; mend the line, or put the file back.") from None
