"""Variants of a recipe that share its answers, as an ablation and a sweep compare them: run, trained with several seeds, scored
row by row, measured against one of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_distill import pipeline, store
from llm_distill.errors import FellShort, Interrupted, UserError
from llm_distill.ledger import Ledger
from llm_distill.recipe import Plan
from llm_distill.stages import Run, Watch

#: Of each metric, the score of each row.
RowScores = dict[str, dict[str, float]]


@dataclass
class Work:
    """What the variants share: where they run, who looks on, and what each has cost."""

    plan: Plan
    workspace: Path
    watch: Watch
    ledger_url: str | None
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan.data_set is not None:
            raise UserError(
                f"data_set: variants of a recipe would each add their rows to {self.plan.data_set.name!r}, and see another "
                "version of it; compare them without it, `-s data_set=null`."
            )

    def ledger(self) -> Ledger:
        """The workspace's ledger, for the caller to close."""
        return Ledger(self.ledger_url or self.workspace / "ledger.sqlite")

    def run(self, name: str, plan: Plan, last: str | None) -> store.RunFolder:
        """Bring a variant's run as far as a stage; FellShort or Interrupted where it stops before."""
        folder = store.RunFolder.of(self.workspace, plan.name, plan.digest)
        if plan.digest != self.plan.digest and folder.record.get("arm") != name:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.record["arm"] = name  # so that it is not taken for the recipe's own latest run
            folder.save()
            plan = replace(plan, probe=None)  # the recipe's own run asks it
        start = time.perf_counter()
        summary = pipeline.run(plan, self.workspace, self.watch, ledger_url=self.ledger_url, last=last)
        spent = self.spent.setdefault(name, {"seconds": 0.0, "cost_usd": 0.0})
        if any(stage["ran"] for stage in summary["stages"].values()):
            spent["seconds"] = round(spent["seconds"] + time.perf_counter() - start, 1)
        unknown = None in (spent["cost_usd"], summary["cost_usd"])
        spent["cost_usd"] = None if unknown else spent["cost_usd"] + summary["cost_usd"]
        if summary["status"] != "done":
            raise (Interrupted if summary["status"] == "interrupted" else FellShort)(f"{name}: {summary['reason']}")
        return store.RunFolder(Path(summary["run"]))

    def report(self, plan: Plan, folder: store.RunFolder) -> None:
        """A run's report again, with what was found out in it."""
        ledger = self.ledger()
        try:
            pipeline.do(Run(plan, folder, ledger, self.watch), "report")
        finally:
            ledger.close()


def mean_of(trainings: Sequence[RowScores]) -> RowScores:
    """Scores averaged over trainings, row by row."""
    first = trainings[0]
    both = {
        metric: [row for row in rows if all(row in one[metric] for one in trainings)] for metric, rows in first.items()
    }
    return {
        m: {row: sum(one[m][row] for one in trainings) / len(trainings) for row in rows} for m, rows in both.items()
    }


def metric_of(plan: Plan) -> str:
    """The one that the verdict of a recipe's evaluation is about; the kind's own where that is the judge's score, for variants
    are not judged one by one.
    """
    from llm_distill.evals.metrics import PRIMARY

    named = plan.evaluate.metric if plan.evaluate else None
    return PRIMARY[plan.task.kind] if named in (None, "judge") else named


def measured(
    here: Sequence[RowScores], other: Sequence[RowScores], plan: Plan, resamples: int, metric: str | None = None
) -> dict[str, Any]:
    """A variant's score over its trainings, and its change against another on the same rows, None where it is that one."""
    from llm_distill.evals.compare import rounded, share
    from llm_distill.evals.pairs import paired
    from llm_distill.evals.statistics import mean

    shared = share({"student": mean_of(here), "other": mean_of(other)}, plan.task.kind, plan.seed, resamples, metric)
    if shared.metric is None or not shared.has("student", "other"):
        return {"metric": shared.metric, "score": None, "by_seed": [], "change": None}
    score = mean(shared.scores["student"], plan.seed, resamples)
    numbers = {
        "metric": shared.metric,
        "score": score._asdict(),
        "by_seed": [sum(one[shared.metric][row] for row in shared.rows) / len(shared.rows) for one in here],
        "change": None if here is other else paired(shared, "other"),
    }
    return rounded(numbers)  # type: ignore[no-any-return]
