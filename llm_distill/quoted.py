"""What a run quotes of its rows beside its tables: a judge's reasons, and the row that a training shows as it is learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_distill import store

#: The key of training.json that holds a whole row, and the name of a finding that does.
_EXAMPLE = "example"


def unquote(run: store.RunFolder, ids: set[str], texts: Sequence[str], *, taught: bool) -> None:
    """Take rows out of what a run quotes. taught: whether some of them were learnt from, and so may be the row that is shown."""
    for path in sorted(run.path.rglob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not any(row_id in line for row_id in ids)]
        if len(kept) < len(lines):
            _write(path, "".join(kept))
    for path in sorted(run.path.rglob("training.json")) if taught else ():
        story = json.loads(path.read_text(encoding="utf-8"))
        found = {**story, "lint": [one for one in story.get("lint", ()) if not _quotes(one, texts)]}
        found.pop(_EXAMPLE, None)  # whichever row it is: no id stands there, and a tokenizer may have changed its words
        _write(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _quotes(finding: dict[str, Any], texts: Sequence[str]) -> bool:
    return finding.get("name") == _EXAMPLE or any(text in finding.get("found", "") for text in texts)


def _write(path: Path, text: str) -> None:
    with _same_student(path), store.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _same_student(path: Path) -> Iterator[None]:
    """A file of a student is changed, not what it learnt: the stamp of its training goes on to vouch for it."""
    student = next((one for one in path.parents if one.name == "student" and (one.parent / "run.json").exists()), None)
    if student is None:
        yield
        return
    run = store.RunFolder(student.parent)
    stamp = run.stamp("train")
    whole = bool(stamp) and stamp["outputs"].get("student") == store.digest(student)
    yield
    if whole:
        run.save("train", {**stamp, "outputs": {**stamp["outputs"], "student": store.digest(student)}})
