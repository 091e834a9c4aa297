"""What a student lost outside of its task: its scores on tasks of general ability against those of its untrained self.

Both answered the same rows, so differences are paired. Every row counts the same, in a task and over all of them; what the
gate judges is all rows together, for the tasks alone are many chances to be unlucky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_distill.evals.compare import rounded
from llm_distill.evals.pairs import Shared, paired
from llm_distill.evals.statistics import holm, mean, proportion, resampled_means

ALL = "all"


class Row(NamedTuple):
    """One row of a task: its place in the data, the metric and the score, what is right, what was answered, and why it failed."""

    doc: int
    metric: str
    score: float
    target: str
    said: str
    failed: str | None = None


Rows = Mapping[str, Sequence[Row]]


def held_against_base(base: Rows, student: Rows, *, seed: int, resamples: int) -> dict[str, Any]:
    """Per task and over all rows (`all`): both scores, and the student less its base, with a paired interval and an exact test.

    `p_holm` allows for there being several tasks. `loss` is the difference the other way round: what is above zero was lost.
    """
    tasks = {name: _compared(base[name], student[name], seed, resamples) for name in base}
    corrected = holm([of["difference"]["p"] for of in tasks.values()])
    for of, p in zip(tasks.values(), corrected, strict=True):
        of["difference"]["p_holm"] = p
    together = _compared(
        [row for rows in base.values() for row in rows],
        [row for rows in student.values() for row in rows],
        seed,
        resamples,
    )
    found: dict[str, Any] = rounded({"tasks": [{"name": name} | of for name, of in tasks.items()], ALL: together})
    return found


def _compared(base: Sequence[Row], student: Sequence[Row], seed: int, resamples: int) -> dict[str, Any]:
    assert [row.doc for row in base] == [row.doc for row in student], "both are asked the same rows"
    table = np.array([[ours.score, theirs.score] for ours, theirs in zip(student, base, strict=True)])
    means = resampled_means(table, seed, resamples)
    metric = " or ".join(dict.fromkeys(row.metric for row in base))
    sides = ("student", "base")
    shared = Shared(
        metric, [str(place) for place in range(len(table))], dict(zip(sides, table.T, strict=True)),
        dict(zip(sides, means.T, strict=True)),
    )  # fmt: skip
    pair = paired(shared, "base")
    loss = {"value": -pair["difference"], "low": -pair["high"], "high": -pair["low"], "n": pair["n"]}
    scores = {
        side: (
            proportion(int(of.sum()), len(of)) if set(np.unique(of)) <= {0.0, 1.0} else mean(of, seed, resamples)
        )._asdict()
        for side, of in shared.scores.items()
    }
    failed = {
        "base": sum(row.failed is not None for row in base),
        "student": sum(row.failed is not None for row in student),
    }
    return {"metric": metric, "rows": len(table), **scores, "difference": pair, "loss": loss, "failed": failed}
