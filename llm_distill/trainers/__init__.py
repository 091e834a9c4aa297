"""How a student learns: `Trainer(job, *, knobs) -> None`, which writes an adapter and metrics.jsonl into `job.out`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_distill.records import Sample


def _quiet(_step: int, _steps: int, _numbers: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class TrainingJob:
    """What a trainer is handed.

    `student` are the student's loading knobs (`model`, `sha256`, `revision`, `dtype`, `device`) as in the recipe's
    `transformers` entry. `on_step(step, steps, numbers)` is called at each logged step, `say` prints one line.
    """

    samples: Sequence[Sample]
    student: dict[str, Any]
    out: Path
    seed: int
    on_step: Callable[[int, int, dict[str, float]], None] = _quiet
    say: Callable[[str], None] = field(default=lambda _line: None)


#: Name in a recipe -> where its function is.
TRAINERS = {"sft": "llm_distill.trainers.sft:sft"}
