"""Rows that people wrote: a file, or a data set of the Hugging Face Hub's kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from llm_distill.errors import UserError
from llm_distill.plugs import InputFile, Reading
from llm_distill.records import Prompt
from llm_distill.seed_files import Found, kind_of
from llm_distill.seeds import Columns, read_rows, rows_of
from llm_distill.text_files import UTF8, Encoding

if TYPE_CHECKING:
    from llm_distill.generators import Context

#: Names of `datasets` that are formats, not data sets: what is read are their `data_files`.
_FORMATS = ("arrow", "csv", "json", "parquet", "text")


class DataSet(BaseModel):
    """What `datasets.load_dataset` is told. A name is a local folder or one on the hub; a format needs `data_files`.

    Local files start from the recipe's folder and are noted, so that a change of them changes the run; on the hub it is
    `revision` that holds a data set still.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1)
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | None = None

    @model_validator(mode="after")
    def _at_hand(self, info: ValidationInfo) -> DataSet:
        reading = cast(Reading, info.context)
        folder = (reading["folder"] / Path(self.name).expanduser()).resolve()
        patterns = [self.data_files] if isinstance(self.data_files, str) else self.data_files
        if self.name in _FORMATS:
            if not patterns:
                raise ValueError(f"{self.name!r} is a format: name its files, `data_files: rows.{self.name}`")
            self.data_files = [str(path) for pattern in patterns for path in _matching(reading["folder"], pattern)]
            reading["files"].update(map(Path, self.data_files))
        elif folder.is_dir():
            self.name = str(folder)
            reading["files"].update(path for path in folder.rglob("*") if path.is_file())
        elif self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise ValueError(f"no such folder: {folder}")
        return self

    @property
    def on_hub(self) -> bool:
        """Whether it is not on this machine's disk."""
        return self.name not in _FORMATS and not Path(self.name).is_absolute()


def _matching(folder: Path, pattern: str) -> list[Path]:
    start = Path(pattern).expanduser()
    root, parts = (Path(start.anchor), start.relative_to(start.anchor)) if start.is_absolute() else (folder, start)
    found = sorted(path.resolve() for path in root.glob(str(parts)) if path.is_file())
    if not found:
        raise ValueError(f"data_files: no file matches {pattern!r} in {folder}")
    return found


def _one_source(file: Path | None, info: ValidationInfo) -> Path | None:
    if "dataset" in info.data and (file is None) == (info.data["dataset"] is None):
        raise ValueError(
            "required and missing; write a `file`, or a `dataset`" if file is None else "write a `file` or a `dataset`"
        )
    if file is not None:
        kind_of(file)
    return file


def _mapped(columns: Columns | None, info: ValidationInfo) -> Columns | None:
    if columns is None and info.data.get("dataset") is not None:
        raise ValueError("a data set needs them: say which of its columns are what, {prompt: text, label: label}")
    return columns


def _of_a_text(encoding: str, info: ValidationInfo) -> str:
    file = info.data.get("file")
    if encoding != UTF8 and (file is None or kind_of(file) == "parquet"):
        raise ValueError("only text files have an encoding; leave it out")
    return encoding


def seeds(
    context: Context,
    *,
    dataset: DataSet | None = None,
    file: Annotated[InputFile | None, AfterValidator(_one_source)] = None,
    columns: Annotated[Columns | None, AfterValidator(_mapped)] = None,
    encoding: Annotated[Encoding, AfterValidator(_of_a_text)] = UTF8,
    limit: Annotated[int, Field(ge=1)] | None = None,
) -> Iterator[Prompt]:
    """The rows of a JSONL, CSV, TSV or Parquet file, or of a data set, streamed in their order; the first `limit` if given.

    columns: which of its columns are what; without them a file's bear the names of a row's keys. encoding: of a text file.
    """
    if file is not None:
        return read_rows(file, columns, encoding, limit)
    assert dataset is not None  # either of them, and columns with it, says the check
    assert columns is not None
    if dataset.on_hub and dataset.revision is None:
        context.say(f"data set {dataset.name}: no `revision` is named, so what it holds may change between runs")
    return _rows(dataset, columns, limit)


def _rows(dataset: DataSet, columns: Columns, limit: int | None) -> Iterator[Prompt]:
    what = f"data set {dataset.name}"
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise UserError(f"{what}: `datasets` is not installed; pip install 'llm-distill[train]'.") from None

    def found(data: Any) -> Iterator[Found]:
        number = 0
        try:
            for record in data:
                number += 1
                yield f"{what}, {dataset.split}: row {number}", record
        except failures as error:
            raise UserError(f"{what}: cannot be read after row {number}: {' '.join(str(error).split())}") from None

    # what the library raises for names, splits, files and connections: its own errors, OSError and ValueError
    failures = (DatasetsError, OSError, ValueError, RuntimeError)
    try:
        data = datasets.load_dataset(
            dataset.name,
            dataset.config,
            split=dataset.split,
            revision=dataset.revision,
            data_files=dataset.data_files,
            streaming=True,
        )
    except failures as error:
        raise UserError(f"{what}: cannot be opened: {' '.join(str(error).split())}") from None
    features = data.features or {}
    classes = {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return rows_of(found(data), columns, f"{what}, {dataset.split}", data.column_names, classes, limit)
