"""A small run from its prompts to its report, with a tiny student that has learnt its task: made once, copied to be changed."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import Desk
from tests.models.conftest import byte_level_tokenizer, tiny

ROWS = [
    {"prompt": f"item {i} is {'good' if i % 2 else 'bad'}", "label": "positive" if i % 2 else "negative"}
    for i in range(60)
]
TEACHER = {"scripted": {"rules": {"good": "positive"}, "default": "negative", "terms": "apache-2.0"}}
STUDENT = {"model": "base", "device": "cpu", "terms": "apache-2.0"}
LORA = {"epochs": 20, "learning_rate": 0.005}
WHOLE = {"epochs": 20, "learning_rate": 0.003, "lora_rank": None}


def finish(folder: Path, **keys: Any) -> Path:
    """Run a recipe in a folder from its prompts to its report; gives the run."""
    desk = Desk(folder)
    desk.seeds(ROWS)
    tiny("llama", folder / "base", byte_level_tokenizer(), tie_word_embeddings=True)
    settings: dict[str, Any] = {
        "models": {"teacher": TEACHER, "student": {"transformers": STUDENT}},
        "held_out": {"share": 0.3},
        "filter": ["empty", {"length": {"max": 500}}],
        "train": {"sft": LORA},
        "evaluate": {"resamples": 200},
    }
    return Path(desk.here(desk.recipe(**settings | keys))["run"])


@cache
def made(home: Path, kind: str) -> Path:
    """A finished run that nobody may change, by what was trained: `lora` or `whole`."""
    folder = home / f"finished-{kind}"
    folder.mkdir()
    return finish(folder, train={"sft": WHOLE if kind == "whole" else LORA})


def copied(home: Path, kind: str, to: Path) -> Path:
    """A copy of a finished run with its workspace, to do with as one likes."""
    run = made(home, kind)
    top = home / f"finished-{kind}"
    shutil.copytree(top, to, dirs_exist_ok=True)
    return to / run.relative_to(top)
