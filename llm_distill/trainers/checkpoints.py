"""Checkpoints that a kill cannot spoil.

The Trainer writes a checkpoint file by file into its final folder, so a killed run leaves a folder that looks whole.
Ours is whole when `complete.json`, written last, lists every file with its size. The folder is named by a digest of
rows and settings, so a checkpoint of other data or other settings is never gone on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_distill.records import content_id
from llm_distill.trainers import processes
from llm_distill.trainers.rows import Row

_MARK = "complete.json"


def fingerprint(rows: Iterable[Row], settings: dict[str, Any], seed: int) -> str:
    """A digest of everything that decides how training goes."""
    return content_id([[[r.input_ids, r.prompt_tokens, r.turns] for r in rows], settings, seed])


def seal(folder: Path) -> None:
    """Declare a checkpoint whole: the last thing written into it."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != _MARK}
    partial = folder / f"{_MARK}.partial"
    partial.write_text(json.dumps(sizes), encoding="utf-8")
    partial.rename(folder / _MARK)


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint, the torn ones and all other runs' checkpoints removed; None when there is none."""
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    return newest_whole(folder)


def resumed(folder: Path) -> Path | None:
    """The same, for all processes that train together: the first one clears up before any of them looks."""
    if processes.first():
        last_whole(folder)
    processes.agreed(True)  # wait for it
    return newest_whole(folder)


def newest_whole(folder: Path) -> Path | None:
    """The same, nothing removed."""
    return max(filter(_is_whole, folder.glob("checkpoint-*")), key=step_of, default=None)


def step_of(folder: Path) -> int:
    """The step after which a folder of weights was written."""
    return int(folder.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def publish(made: Path, out: Path, last: str) -> None:
    """Move finished files from `made` into `out`, the one named `last` last: where it exists, all of them do."""
    for name in sorted((p.name for p in made.iterdir()), key=lambda name: name == last):
        (made / name).replace(out / name)
    made.rmdir()
