"""A recipe's file: safe YAML, and overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm_distill.errors import UserError


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # YAML 1.2: `no` and `on` are text; duplicate keys are errors


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a recipe's file."""
    if not path.exists():
        near = [one for one in (path.with_suffix(".yaml"), Path("jobs", f"{path.name}.yaml")) if one.is_file()]
        hint = f". Did you mean {near[0]}?" if near else "; `llm-distill new NAME` writes one to start from."
        raise UserError(f"no recipe {path}{hint}")
    return read_mapping(path, "a recipe")


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Loaded safely; a duplicate key is an error."""
    try:
        value = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{place}: not valid YAML: {' '.join(str(getattr(error, 'problem', None) or error).split())}."
        ) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be read.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} is a mapping of keys; found {type(value).__name__}.")
    try:
        return _plain(value)  # type: ignore[no-any-return]
    except RecursionError:
        raise UserError(f"{path}: it holds itself, through an anchor.") from None


def assignment(text: str, option: str, form: str) -> tuple[str, Any]:
    """A name and its YAML value, as an option of the command line has them; form: how they are written."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{option} {text}: write {form}.")
    try:
        return name, _plain(_yaml().load(value))
    except (YAMLError, RecursionError):
        raise UserError(f"{option} {text}: {value!r} is not a YAML value.") from None


def override(raw: dict[str, Any], text: str) -> None:
    """Set one value. A step goes through a `name: {knobs}` entry, and picks the entry of that name in a list."""
    path, new = assignment(text, "-s", "key.key=value")
    here: Any = raw
    steps = path.split(".")
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(here, list):
            here = _entry_named(here, step, text)
            if last:
                raise UserError(f"-s {text}: name the knob of {step} to set.")
            continue
        slot = depth == (2 if steps[0] == "models" else 1) and steps[0] in ("models", "task", "train")
        if slot and step not in here and len(here) == 1:  # train.epochs means train.<its one plug>.epochs
            only = next(iter(here))
            here[only] = here[only] or {}
            if isinstance(here[only], dict):
                here = here[only]
        if last:
            here[step] = new
        else:
            if isinstance(here.get(step), str):  # `train: sft` is `train: {sft: {}}`
                here[step] = {here[step]: {}}
            here = here.setdefault(step, {})
            if not isinstance(here, dict | list):
                raise UserError(f"-s {text}: {'.'.join(steps[: depth + 1])} holds {here!r} and has no keys.")


def _entry_named(entries: list[Any], name: str, text: str) -> dict[str, Any]:
    for i, entry in enumerate(entries):
        if entry == name:
            entries[i] = {name: {}}
            return entries[i][name]  # type: ignore[no-any-return]
        if isinstance(entry, dict) and name in entry:
            entry[name] = entry[name] or {}
            if not isinstance(entry[name], dict):
                raise UserError(f"-s {text}: {name} holds {entry[name]!r} and has no keys.")
            return entry[name]  # type: ignore[no-any-return]
    raise UserError(f"-s {text}: no entry {name!r} in that list.")


def _plain(value: Any) -> Any:
    """Containers of the YAML reader as plain ones, so that equal recipes have equal digests."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
