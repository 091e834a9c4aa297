"""Short ways to write answers down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_distill.records import Answer, Message, Prompt, make_prompt

LABELS = ["negative", "positive"]


def prompt(name: str, label: str | None = None, reference: str | None = None, **tags: str) -> Prompt:
    return make_prompt((Message("user", name),), tags, label, reference)


def answer(of: Prompt, said: str | None, **fields: Any) -> Answer:
    return Answer(of, said or "?", **({"status": "ok", "prediction": said} | fields))


def arm(gold: Sequence[str | None], said: Sequence[str | None], **fields: Any) -> list[Answer]:
    """Row i is called `row i`, so arms written with the same gold share their rows."""
    return [answer(prompt(f"row {i}", g), s, **fields) for i, (g, s) in enumerate(zip(gold, said, strict=True))]


def right_on(n: int, right: int, first: int = 0) -> list[Answer]:
    """n rows of which `right` are right, counted from row `first` on, round and round."""
    rows = {(first + i) % n for i in range(right)}
    return arm(["positive"] * n, ["positive" if i in rows else "negative" for i in range(n)])


def wrote(references: Sequence[str | None], texts: Sequence[str], **fields: Any) -> list[Answer]:
    """Answers of a generate task."""
    rows = [prompt(f"row {i}", reference=r) for i, r in enumerate(references)]
    return [Answer(p, t, **({"status": "ok"} | fields)) for p, t in zip(rows, texts, strict=True)]
