"""A run's tables with as many rows as one likes, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.records import Answer, Message, Prompt, make_prompt
from llm_distill.report.rows import browsed
from tests.report.example_report import LABELS, TEXTS

ARMS = {"base_zero_shot": 2, "student": 5, "teacher": 11}  # wrong on every so manieth row


def prompts(what: str, rows: int, text: str) -> list[Prompt]:
    return [
        make_prompt(
            (Message("user", f"{what} {i}: {text or TEXTS[i % 4]}"),),
            {"domain": ("films", "phones")[i % 2]},
            LABELS[i % 2],
        )
        for i in range(rows)
    ]


def answered(prompt: Prompt, right: bool, text: str) -> Answer:
    label = prompt.label if right else LABELS[1 - LABELS.index(str(prompt.label))]
    return Answer(prompt, text or f"It is {label}.", "ok", prediction=label, role="teacher", model="m")


def browse(home: Path, held_out: int, asked: int, text: str = "", metric: str = "accuracy", kind: Any = None) -> Any:
    """What the page has of so many rows; every seventh that was asked is dropped."""
    folder = store.RunFolder(home)
    rows = prompts("Held out", held_out, text)
    arms = {
        arm: [answered(p, i % every != 0, text) for i, p in enumerate(rows)]
        for arm, every in (ARMS if held_out else {}).items()
    }
    taught = [answered(p, True, text) for p in prompts("Asked", asked, text)]
    store.write_table(folder.file("held_out.parquet"), map(store.prompt_row, rows), "prompts")
    for table, drops in (("kept", False), ("dropped", True)):
        more = {"score.sure": 0.61, **({"dropped_by": "sure", "why.sure": text or "too unsure"} if drops else {})}
        chosen = [store.answer_row(a) | more for i, a in enumerate(taught) if (i % 7 == 0) == drops]
        store.write_table(folder.file(f"{table}.parquet"), chosen, table, {"sure": "x"}, ["sure"])
    return browsed(folder, {"task": kind or {"classify": {"labels": LABELS}}}, metric, arms)
