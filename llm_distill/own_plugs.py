"""A plug of one's own, `package.module:function`: found in somebody's module, and refused where it could not be called."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from llm_distill.errors import UserError

#: What the house hands over to a plug of each kind; one that wants less is given less.
_HANDED: Mapping[str, tuple[str, ...]] = {
    "model": (),
    "generator": ("context",),
    "scorer": ("answers", "context"),
    "metric": ("answers", "schema"),
    "trainer": ("run",),
}


def load(target: str, where: str) -> Callable[..., Any]:
    """The function at `package.module:function`."""
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # noqa: BLE001  importing runs somebody's module, which may fail in any way
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: cannot load {target!r}: {why}. Is it installed where llm-distill runs?") from None
    if not callable(found):
        raise UserError(f"{where}: {target!r} is not a function.")
    return cast(Callable[..., Any], found)


def source(function: Callable[..., Any], name: str) -> Path | None:
    """The file that a function stands in, or its module where it is none of Python's own making (a `partial`); None of a
    builtin.
    """
    try:
        found = inspect.getsourcefile(function)
    except TypeError:
        found = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    return Path(found) if found and Path(found).is_file() else None


def check_callable(kind: str, function: Callable[..., Any], where: str) -> None:
    """UserError for a function that wants more than the house hands over."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"{where}: its parameters cannot be read; write a Python function that calls it.") from None
    wants = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    handed = _HANDED[kind]
    if len(wants) > len(handed):
        given = f"at most {len(handed)}: {', '.join(handed)}" if handed else "none"
        raise UserError(
            f"{where}: it takes {', '.join(wants)} by position, and a {kind} is given {given}. Knobs come after a `*`."
        )
