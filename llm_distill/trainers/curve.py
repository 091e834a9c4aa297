"""In which order rows are learnt, and the curve that training leaves behind."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llm_distill.trainers import processes
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.packing import Unit
from llm_distill.trainers.rows import Row

if TYPE_CHECKING:
    from llm_distill.trainers import TrainingJob

#: Rows are sorted by length within a pool of this many batches, as wide a choice as keeps batches well mixed.
_POOL_BATCHES = 16


class Curve:
    """The training curve: a line of metrics.jsonl a step, of which only `seconds` is a clock's. `parts` of the loss are
    written beside it. `after` is called after each step, when its line is the last of `lines`.
    """

    def __init__(
        self,
        job: TrainingJob,
        rows: Sequence[Row] | Sequence[Unit],
        order: Sequence[int],
        hyper: Hyperparameters,
        done: int,
        parts: Sequence[str] = (),
    ) -> None:
        per_step = hyper.batch_size * hyper.gradient_accumulation
        self.steps = math.ceil(len(order) / per_step)
        trained = list(accumulate(rows[i].trained_tokens for i in order))
        self._trained = [trained[min(step * per_step, len(order)) - 1] for step in range(1, self.steps + 1)]
        self._epochs_a_step, self._epochs = per_step / len(rows), len(order) / len(rows)
        self._parts = parts
        self._job, self._path = job, job.out / "metrics.jsonl"
        kept = self._path.read_text("utf-8").splitlines()[:done] if done and self._path.exists() else []
        if processes.first():
            self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in kept]
        self.after: Callable[[], None] = lambda: None
        self._begun = time.monotonic() - (self.lines[-1]["seconds"] if kept else 0.0)

    def add(self, step: int, logs: dict[str, float]) -> None:
        """Write a step's line, in the first process."""
        if not processes.first():
            return
        line = {
            "step": step,
            "epoch": round(min(step * self._epochs_a_step, self._epochs), 4),
            **{name: logs[name] for name in ("loss", *self._parts, "learning_rate", "grad_norm")},
            **{name: logs[name] for name in ("validation_loss",) if name in logs},
            "trained_tokens": self._trained[step - 1],
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._job.on_step(step, self.steps, line)
        self.after()


def reading_order(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[int]:
    """Row numbers in the order in which they are learnt: `epochs` shuffled passes, rows of like length side by side.

    A batch is padded to its longest row, so mixed lengths cost time. Batches stay in random order: sorting a whole pass
    would teach the short rows at one learning rate and the long ones at another.
    """
    draw = random.Random(seed)
    order: list[int] = []
    reads = max(1, round(len(lengths) * epochs))
    while len(order) < reads:
        order += draw.sample(range(len(lengths)), len(lengths))
    del order[reads:]
    mixed: list[int] = []
    pool = batch_size * min(_POOL_BATCHES, max(1, len(lengths) // batch_size))
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        short = [batches.pop()] if len(batches[-1]) < batch_size else []  # only the very last batch may be short
        draw.shuffle(batches)
        mixed += [i for batch in batches + short for i in batch]
    return mixed
