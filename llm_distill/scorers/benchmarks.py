"""The texts that training data must not hold: public benchmarks by name, and files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo

from llm_distill.errors import UserError, did_you_mean
from llm_distill.models import hub
from llm_distill.plugs import InputFile, input_file, one_line
from llm_distill.recipe_file import read_mapping
from llm_distill.seed_files import kind_of, records
from llm_distill.seeds import read_rows

_TABLE = Path(__file__).parent.parent / "benchmarks.yaml"


class Benchmark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a benchmark's texts are on the hub."""

    hub: str
    configs: tuple[str, ...]
    split: str
    columns: tuple[str, ...]
    licence: str
    read: str


@lru_cache(maxsize=1)
def benchmarks() -> dict[str, Benchmark]:
    """The table of benchmarks, by name."""
    return msgspec.convert(
        read_mapping(_TABLE, "the table of benchmarks")["benchmarks"], dict[str, Benchmark], strict=False
    )


class File(BaseModel):
    """A file of texts that are kept out: those in its `columns`, or its rows' prompts where no columns are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: InputFile
    columns: Annotated[list[str], Field(min_length=1)] | None = None


def _source(source: Any, info: ValidationInfo) -> str | File:
    if isinstance(source, File):
        return source
    if not isinstance(source, str):
        try:
            return File.model_validate(source, context=info.context)
        except ValidationError as error:
            raise ValueError(one_line(error, "", File.model_fields)) from None
    if source in benchmarks():
        _readable(source)
        return source
    if "/" not in source and "." not in source:
        raise ValueError(f"no benchmark {source!r}.{did_you_mean(source, benchmarks())} Or name a file")
    path = input_file(Path(source), info)
    kind_of(path)
    return File.model_construct(file=path, columns=None)


#: A benchmark's name, a file of rows, or a file with the names of its columns.
Source = Annotated[Any, PlainValidator(_source)]


def name_of(source: str | File) -> str:
    """What a source is called in words."""
    return source if isinstance(source, str) else source.file.name


def texts_of(source: str | File) -> Iterator[str]:
    """The texts of a benchmark or a file; UserError where they cannot be had."""
    if isinstance(source, str):
        yield from _online(source, benchmarks()[source])
    elif source.columns is None:
        yield from (prompt.text for prompt in read_rows(source.file))
    else:
        for where, record in records(source.file, source.columns):
            yield from _texts(where, record, tuple(source.columns))


def _texts(where: str, record: Any, columns: tuple[str, ...]) -> Iterator[str]:
    for column in columns:
        if column not in record:
            raise UserError(f"{where}: no column {column!r}.{did_you_mean(column, record)}")
        if isinstance(text := record[column], str):
            yield text


_INSTEAD = "download its questions and name the file, against: [{{file: {}.jsonl, columns: [...]}}]"


def _readable(name: str) -> None:
    """UserError where the package that reads benchmarks is not installed."""
    if find_spec("datasets") is None:
        raise UserError(
            f"leakage: {name} is read by the package datasets: pip install 'llm-distill[train]'; or {_INSTEAD.format(name)}."
        )


def _online(name: str, benchmark: Benchmark) -> Iterator[str]:
    """Streamed from the hub, or out of an earlier download in the hub's offline mode."""
    _readable(name)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants

    what, instead = f"leakage: {name} ({benchmark.hub})", _INSTEAD.format(name)
    offline = constants.is_offline_mode()
    if not offline and not hub.answers(constants.ENDPOINT):  # asked once: the library tries half a minute
        raise UserError(
            f"{what}: {constants.ENDPOINT} is out of reach; go online, set HF_HUB_OFFLINE=1 where it was read before, "
            f"or {instead}."
        )
    for config in benchmark.configs:
        try:
            rows = load_dataset(benchmark.hub, config, split=benchmark.split, streaming=not offline)
            for number, record in enumerate(rows, start=1):
                yield from _texts(f"{benchmark.hub}, {config}: row {number}", record, benchmark.columns)
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{what} cannot be read: {why}. Go online, or {instead}.") from None
