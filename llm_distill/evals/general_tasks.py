"""Which tasks of general ability a recipe names: files as lm-evaluation-harness reads them, and the data beside them.

A task file is read here only as far as one must know before anything is spent: what it is called, of what kind it is, and which
files decide its score. Its rows come from a local file, never from a hub: a score that is held against another one has to
be of the same rows, next year too. The harness itself is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from llm_distill.errors import did_you_mean

_ROOT = Path(__file__).parent.parent
#: The tasks that ship with the package: beside it in a checkout, inside it in a wheel.
BUILT_IN = _ROOT / "general_tasks" if (_ROOT / "general_tasks").is_dir() else _ROOT.parent / "data" / "general"
#: Formats of local files that the `datasets` package reads without code of anybody's.
FORMATS = ("json", "csv", "parquet", "text")
#: What the harness asks a model for; the last one is asked of it, the others are read off its weights.
READ = ("multiple_choice", "loglikelihood")
ASKED = "generate_until"


@dataclass(frozen=True)
class TaskFile:
    """A task: its name, its file, its kind, its data by split, and every file that decides its score.

    rows: of the split that it is scored on, None where that cannot be told without reading the data. prompt_bytes: of a question,
    about. max_tokens: of an answer, where one is generated.
    """

    name: str
    path: Path
    kind: str
    data: Mapping[str, Sequence[Path]]
    files: tuple[Path, ...]
    rows: int | None
    prompt_bytes: int
    max_tokens: int

    @property
    def asked(self) -> bool:
        """Whether its answers are generated, rather than read off the weights."""
        return self.kind == ASKED


def find_tasks(named: Sequence[str], include: Path | None, folder: Path) -> tuple[TaskFile, ...]:
    """The tasks that a recipe in `folder` names: paths of task files, or names of those in `include` and of the shipped ones;
    all that ship where it names none. ValueError says what is wrong.
    """
    places = [place for place in (include, BUILT_IN) if place is not None]
    by_name: dict[str, Path] = {}
    for place in reversed(places):  # one's own hides a shipped one of the same name
        for path in sorted([*place.rglob("*.yaml"), *place.rglob("*.yml")]):
            if isinstance(name := _config(path).get("task"), str):
                by_name |= {path.stem: path, name: path}
    if not named:
        paths = sorted(set((include or BUILT_IN).glob("*.yaml")))
        if not paths:
            raise ValueError(f"no task file in {include}; name the tasks, or another folder")
    else:
        paths = [_path(name, by_name, folder) for name in named]
    found = [_task(path) for path in paths]
    names = [task.name for task in found]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the task {again} is named twice")
    return tuple(found)


def _path(name: str, by_name: Mapping[str, Path], folder: Path) -> Path:
    if not (name.endswith((".yaml", ".yml")) or "/" in name):
        if name not in by_name:
            raise ValueError(
                f"no task {name!r} here.{did_you_mean(name, by_name)} Name a task file, or the folder that it is in as `include`"
            )
        return by_name[name]
    path = (folder / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


class _Function(str):
    """What `!function utils.score` names: Python beside the task file, which the harness runs."""

    __slots__ = ()


class _Constructor(SafeConstructor):
    """Plain values, and the harness's own mark for functions."""


_Constructor.add_constructor("!function", lambda loader, node: _Function(loader.construct_scalar(node)))


def _config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with what it includes, its own keys first; `files` gives all that were read."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        found = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a task is a mapping of keys; found {type(found).__name__}")
    included = found.pop("include", [])
    whole: dict[str, Any] = {}
    read: list[Path] = []
    for name in included if isinstance(included, list) else [included]:
        other = (path.parent / str(name)).resolve()
        if other in above or not other.is_file():
            raise ValueError(f"{path}: include: {'it includes itself' if other in above else f'no such file: {other}'}")
        below = _config(other, (*above, path))
        read += below.pop("files")
        whole |= below
    modules = (path.parent / f"{name.rpartition('.')[0].replace('.', '/')}.py" for name in _functions(found))
    return whole | found | {"files": [*read, path, *(module for module in modules if module.is_file())]}


def _functions(of: Any) -> Iterator[_Function]:
    if isinstance(of, _Function):
        yield of
    elif isinstance(of, Mapping | list):
        for one in of.values() if isinstance(of, Mapping) else of:
            yield from _functions(one)


def _task(path: Path) -> TaskFile:
    config = _config(path)
    name, kind = config.get("task"), config.get("output_type", ASKED)
    if not isinstance(name, str):
        what = "a group; name its tasks" if "group" in config else "no task: it has no `task:` with a name"
        raise ValueError(f"{path}: {what}")
    if kind not in (*READ, ASKED):
        raise ValueError(
            f"{path}: output_type is {kind!r}, which gives no score for each row; allowed: {', '.join(READ)}, {ASKED}"
        )
    data = _data(path, config)
    split = config.get("test_split") or config.get("validation_split")
    if split not in data:
        raise ValueError(f"{path}: it is scored on the split {split!r}, and its data_files have {', '.join(data)}")
    size = sum(file.stat().st_size for file in data[split])
    rows = _lines(data[split]) if config["dataset_path"] == "json" else None
    how = config.get("generation_kwargs") or {}
    most = next((how[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in how), 256)
    files = (*config["files"], *(file for of in data.values() for file in of))
    shown = len(str(config.get("doc_to_text", ""))) + size // (rows or 1)
    return TaskFile(name, path, kind, data, tuple(dict.fromkeys(files)), rows, shown, int(most))


def _data(path: Path, config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of each split; ValueError for data that lie elsewhere."""
    source = config.get("dataset_path")
    if source not in FORMATS:
        raise ValueError(
            f"{path}: its rows come from {source!r}; general ability is measured on local files: write `dataset_path: json` and "
            "`dataset_kwargs: {data_files: {test: rows.jsonl}}`"
        )
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(named, str | list):
        named = {"train": named}  # so it is called by the `datasets` package
    if not isinstance(named, Mapping) or not named:
        raise ValueError(f"{path}: dataset_kwargs has no data_files; write `data_files: {{test: rows.jsonl}}`")
    found = {}
    for split, names in named.items():
        paths = [(path.parent / str(name)).resolve() for name in (names if isinstance(names, list) else [names])]
        if missing := next((one for one in paths if not one.is_file()), None):
            raise ValueError(f"{path}: no such file: {missing} (data_files are relative to the task file)")
        found[str(split)] = paths
    return found


def _lines(files: Sequence[Path]) -> int | None:
    """The rows of JSON Lines; None for a file that is one JSON array."""
    count = 0
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                if count == 0 and line.lstrip().startswith(b"["):
                    return None
                count += bool(line.strip())
    return count
