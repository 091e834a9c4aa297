"""The run folder: Parquet tables in prompt order, and run.json with a stamp for each finished stage.

    <workspace>/runs/<recipe>/<date>-<digest>/
        recipe.yaml  recipe.resolved.json  run.json  prompts.parquet  held_out.parquet  answers.parquet  logprobs.parquet
        logprob_tokens.parquet  kept.parquet  dropped.parquet  student/  eval/  report/

Every file is written under a temporary name and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.records import Answer, Message, Prompt

#: Of run folders; a change of the tables or of run.json raises it.
FORMAT = 2
#: Rows of a table that are in memory as Python objects at once.
_GROUP_ROWS = 2000


def schema(kind: str, scores: Mapping[str, str] = MappingProxyType({}), why: Sequence[str] = ()) -> Any:
    """The Arrow schema of a table: `prompts`, `answers` (also the arms of an evaluation), `kept` or `dropped`.

    scores: of each filter, who measured: kept with its column, so that another run can tell whether its numbers hold there.
    """
    import pyarrow as pa

    text, integer, real = pa.string(), pa.int64(), pa.float64()
    fields = {
        "row_id": text,
        "prompt_id": text,
        "messages": pa.list_(pa.struct({"role": text, "content": text})),
        "tags": pa.map_(text, text),
        "label": text,
        "reference": text,
    }
    if kind != "prompts":
        fields |= {
            "text": text,
            "status": text,
            "reason": text,
            "prediction": text,
            "label_probs": pa.list_(real),
            "model": text,
            "terms": text,
            "prompt_tokens": integer,
            "completion_tokens": integer,
            "cost_usd": real,
            "attempts": integer,
            "seconds": real,
            "mean_logprob": real,
            "requests": pa.list_(text),
            "role": text,
            "agreement": real,
            "reasoning": text,
        }
    columns = [pa.field(name, form) for name, form in fields.items()]
    columns += [pa.field(f"score.{name}", real, metadata={"scorer": scorer}) for name, scorer in scores.items()]
    columns += [pa.field(f"why.{name}", text) for name in why]
    if kind in ("kept", "dropped"):  # what a reviewer decided, and which filter drops the row by itself
        columns += [pa.field("review", text), pa.field("filtered_by", text)]
    return pa.schema([*columns, *([pa.field("dropped_by", text)] if kind == "dropped" else [])])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; when the block ends well it is synced to disk and takes the path's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a dead process's, which may be another run's table by a second name
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented JSON, so that equal values are equal bytes. ValueError, for it is ours, for a number that JSON has not:
    what is undefined is null.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def write_table(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    kind: str,
    scores: Mapping[str, str] = MappingProxyType({}),
    why: Sequence[str] = (),
) -> None:
    """Write rows as a Parquet table, holding few of them at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, rest = schema(kind, scores, why), iter(rows)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, columns, compression="zstd") as writer:
        while group := list(islice(rest, _GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, columns))


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a table row."""
    row = msgspec.structs.asdict(prompt)
    return row | {"messages": msgspec.to_builtins(prompt.messages), "tags": sorted(prompt.tags.items())}


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as a table row: its prompt's columns, then its own."""
    row = msgspec.structs.asdict(answer)
    return prompt_row(row.pop("prompt")) | row


def read_table(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A table's rows, with all columns or some."""
    return list(_each_row(path, columns))


def _each_row(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in file.iter_batches(_GROUP_ROWS, columns=columns):
                yield from group.to_pylist()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # a page that does not unpack is an OSError
        why = " ".join(str(error).split())
        raise UserError(f"{path} is no whole table: {why}. Run the recipe again with --from its stage.") from None


def read_prompts(path: Path) -> list[Prompt]:
    """The rows of a table as prompts."""
    return [_prompt(row) for row in _each_row(path)]


def read_answers(path: Path) -> list[Answer]:
    """The rows of a table as answers."""
    own = [name for name in Answer.__struct_fields__ if name != "prompt"]
    answers = []
    for row in _each_row(path):
        values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in own}
        answers.append(Answer(prompt=_prompt(row), **values))
    return answers


def _prompt(row: Mapping[str, Any]) -> Prompt:
    messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    return Prompt(row["row_id"], row["prompt_id"], messages, dict(row["tags"]), row["label"], row["reference"])


def digest(path: Path) -> str:
    """A file's content as 128 bits of hex; a folder's as that of its files' names and contents, hidden ones aside."""
    made = blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
            made.update(f"{file.relative_to(path)}:{digest(file)};".encode())
    elif path.is_file():
        with path.open("rb") as file_:
            while block := file_.read(1 << 20):
                made.update(block)
    else:
        return "absent"
    return made.hexdigest()


def training_log(student: Path) -> list[dict[str, Any]]:
    """What a training noted of its steps, in order; nothing where a student has no metrics.jsonl, or none that can be read."""
    with suppress(OSError, ValueError):
        return [json.loads(line) for line in (student / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return []


def loss_curve(student: Path, most: int = 200) -> list[dict[str, float]]:
    """A training's `loss` by `step`, neighbours averaged where there are more steps than so many."""
    logged = [one for one in training_log(student) if "loss" in one]
    group = -(-len(logged) // most) or 1
    parts = [logged[i : i + group] for i in range(0, len(logged), group)]
    return [{key: round(sum(one[key] for one in of) / len(of), 6) for key in ("step", "loss")} for of in parts]


def copy(source: Path, target: Path) -> None:
    """A file or folder of another run, copied, tables without taking room twice; a folder is emptied first, a file that is
    not there removed.
    """
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        for file in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")):
            copy(file, target / file.relative_to(source))
    elif source.is_file():
        with replacing(target) as temporary:
            try:  # a table is replaced, never changed, so that two runs can share one
                if source.suffix != ".parquet":
                    raise OSError
                os.link(source, temporary)
            except OSError:  # or another disk, or one without links
                shutil.copyfile(source, temporary)
    else:
        target.unlink(missing_ok=True)


class RunFolder:
    """One run's folder and its run.json."""

    def __init__(self, path: Path) -> None:
        self.path, self._held = path, False
        self.record: dict[str, Any] = {"format": FORMAT, "stages": {}}
        if (path / "run.json").exists():
            try:
                self.record = json.loads((path / "run.json").read_text(encoding="utf-8"))
                found, _ = self.record["format"], dict(self.record["stages"])
            except (OSError, ValueError, KeyError, TypeError):
                raise UserError(f"{path}/run.json is not a run record; remove the folder and run again.") from None
            if found != FORMAT:
                raise UserError(
                    f"{path} has run format {found}, and this llm-distill reads {FORMAT}; remove the folder and run "
                    "again (the answers are in the ledger and are not paid for again)."
                )

    @classmethod
    def of(cls, workspace: Path, name: str, recipe_digest: str) -> RunFolder:
        """The folder of a recipe's run: the one that exists, whatever its date, or a new one."""
        home = workspace / "runs" / name
        short = recipe_digest[:10]
        found = sorted(home.glob(f"*-{short}"))
        return cls(found[0] if found else home / f"{date.today().isoformat()}-{short}")

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.path / name

    @property
    def words(self) -> dict[str, Any]:
        """The recipe that the run was made of, overrides among it."""
        path = self.file("recipe.resolved.json")
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{path} is missing or no recipe; run the recipe with `--from report`, which writes it."
            ) from None

    @property
    def lessons(self) -> Path:
        """The table of what a student learns: the rows that the run kept, or those of the data set that it grows."""
        return self.file("set.parquet") if self.file("set.parquet").exists() else self.file("kept.parquet")

    def stamp(self, stage: str) -> dict[str, Any]:
        """What is recorded of a stage that finished; empty when it did not."""
        return self.record["stages"].get(stage) or {}

    def siblings(self) -> Iterator[RunFolder]:
        """The other runs of the same recipe that this version can read, the latest first."""
        for path in sorted(self.path.parent.glob("*/run.json"), reverse=True):
            if path.parent != self.path:
                with suppress(UserError):
                    yield RunFolder(path.parent)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other processes, waiting for them; what they recorded meanwhile is read. May be nested."""
        if self._held:
            yield
            return
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._held = True
            try:
                self.record["stages"] = RunFolder(self.path).record["stages"]
                yield
            finally:
                self._held = False

    def save(self, stage: str | None = None, stamp: Mapping[str, Any] | None = None) -> None:
        """Write run.json, with a stage's stamp if one is given (an empty one removes it); others' stamps stay."""
        with self.lock():
            if stage is not None:
                self.record["stages"][stage] = dict(stamp or {})
            write_json(self.path / "run.json", self.record)
