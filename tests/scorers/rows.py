"""Answers for the tests of scorers."""

from __future__ import annotations

from llm_distill.records import Answer, Message, make_prompt


def answer(text: str, reference: str | None = None, prompt: str = "p", **fields: object) -> Answer:
    """A row with its answer; `tags` go to the prompt."""
    tags = fields.pop("tags", None)
    row = make_prompt((Message("user", prompt),), tags, reference=reference)  # type: ignore[arg-type]
    return Answer(row, text, **{"status": "ok", **fields})  # type: ignore[arg-type]
