"""Which students have shipped: `<workspace>/shipped/NAME.json`, one entry for each, the latest last.

`llm-distill gate RUN --ship` writes an entry when the gate holds, and `evaluate: {previous: shipped}` reads it: the next
student has to stand up to the one that is in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError

_FORMAT = 1


def ship(run: store.RunFolder, workspace: Path, report: Mapping[str, Any]) -> Path:
    """Record that a run's student shipped, with the numbers that it shipped on; gives the file. Shipped again, the same
    student keeps its entry.
    """
    name, metric = report["name"], report.get("metric")
    path, student = _file(workspace, name), store.digest(run.file("student"))
    entries = _entries(path)
    if not entries or entries[-1]["student"] != student:
        score = (report["arms"]["student"].get(metric) or {}) if metric else {}
        entry = {
            "run": _place(run.path, workspace),
            "student": student,
            "recipe_digest": run.record["digest"],
            "shipped_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "headline": report["headline"],
            "metric": metric,
            "score": {key: score.get(key) for key in ("value", "low", "high", "n")},
            "gate": report["gate"],
        }
        store.write_json(path, {"format": _FORMAT, "recipe": name, "shipped": [*entries, entry]})
    return path


def last(workspace: Path, name: str, but: Path | None = None) -> store.RunFolder | None:
    """The run whose student of a recipe shipped last, one run aside (that is about to follow it); None where none has.

    UserError when that student is no longer what shipped.
    """
    path = _file(workspace, name)
    for entry in reversed(_entries(path)):
        place = workspace / entry["run"]
        if but is not None and place.resolve() == but.resolve():
            continue
        if store.digest(place / "student") != entry["student"]:
            raise UserError(
                f"{path}: the student that shipped on {entry['shipped_at'][:10]} is no longer in {place}; put it back, or name "
                "as evaluate.previous the one that is in use."
            )
        return store.RunFolder(place)
    return None


def places(workspace: Path) -> set[Path]:
    """The folders of all runs whose students have shipped."""
    files = sorted((workspace / "shipped").glob("*.json"))
    return {(workspace / entry["run"]).resolve() for file in files for entry in _entries(file)}


def _file(workspace: Path, name: str) -> Path:
    return workspace / "shipped" / f"{name}.json"


def _place(run: Path, workspace: Path) -> str:
    """A run's folder as seen from the workspace, where it lies in it."""
    with suppress(ValueError):
        return str(run.resolve().relative_to(workspace.resolve()))
    return str(run.resolve())


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        entries = found["shipped"]
        if found["format"] != _FORMAT or not all({"run", "student", "shipped_at"} <= entry.keys() for entry in entries):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a record of what shipped; put it right, or remove it.") from None
    return list(entries)
