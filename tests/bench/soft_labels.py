"""What the teacher's distributions are worth to a student: tables in Markdown, on the quickstart's teacher, student and rows.

    labels    hard labels, soft labels as they are, and calibrated ones, on a few rows
    trainers  sft and logit_kd on more of them

All students of a table share the teacher's answers, and those of one size and seed their rows. Each is trained and asked once:
the same command goes on where it was stopped. Differences are on held-out rows, each averaged over the seeds, with paired
bootstrap intervals of 95 %. `data` as workspace finds the answers of `make quickstart`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill import pipeline, store
from llm_distill.collect import alone, collect
from llm_distill.errors import Interrupted, UserError
from llm_distill.evals.calibration import brier, reliability
from llm_distill.evals.statistics import Floats, Interval, percentiles, resampled_means
from llm_distill.ledger import Ledger
from llm_distill.recipe import Plan, load
from llm_distill.recipe_file import read_recipe
from llm_distill.records import content_id
from llm_distill.stages import Run, trained
from llm_distill.sweep_rows import write_without
from tests.conftest import Unwatched

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "jobs" / "quickstart.yaml"
PROMPTS, DEV = ("../data/quickstart/cache/prompts.jsonl", "../data/quickstart/cache/dev.jsonl")
QUICK = {"epochs": 2, "dtype": "bfloat16"}
RESAMPLES = 10_000
SEEDS = (7, 8, 9)


@dataclass(frozen=True)
class Table:
    """Sizes, and arms by their name: what stands under `train`. The first is what the others are measured against."""

    prompts: Sequence[Mapping[str, Any]]
    sizes: Sequence[int]
    arms: Mapping[str, Mapping[str, Any]]


def soft(**knobs: Any) -> dict[str, Any]:
    """The distribution alone, so that arms differ in nothing but how it is calibrated."""
    return {"logit_kd": {"alpha": 1.0, **QUICK, **knobs}}


HARD = {"sft": QUICK}
TABLES = {
    "labels": Table(
        [{"seeds": {"file": PROMPTS}}],
        (40, 120),
        {
            "hard": HARD,
            "soft, as it is": soft(calibration="none"),
            "soft, calibrated on labelled rows": soft(calibrate_on=DEV),
            "soft, calibrated on repetitions": soft(calibration="temperature"),
        },
    ),
    # Labels of the second file are left out: only its sentences are used.
    "trainers": Table(
        [{"seeds": {"file": PROMPTS}}, {"seeds": {"file": DEV, "columns": {"prompt": "prompt", "tags": ["tags"]}}}],
        (100, 300, 1000),
        {"sft": HARD, "logit_kd": {"logit_kd": QUICK}},
    ),
}


class Talking(Unwatched):
    """A Watch who prints what is said."""

    def say(self, line: str) -> None:
        print(f"  {line}", flush=True)


@dataclass
class Student:
    """What a student answered on the held-out rows: (rows,) right and brier, its distributions over labels (rows, labels)."""

    right: Floats
    brier: Floats
    probs: Floats


@dataclass
class Bench:
    """Where a table's students are made."""

    table: Table
    name: str
    workspace: Path
    ledger: Ledger
    base: store.RunFolder = field(init=False)

    def plan(self, train: Mapping[str, Any] | None, seed: int) -> Plan:
        """The quickstart with a table's prompts and another `train`."""
        raw = deepcopy(read_recipe(RECIPE)) | {
            "name": f"soft-labels-{self.name}",
            "prompts": deepcopy(self.table.prompts),
        }
        if train is not None:
            ((trainer, knobs),) = train.items()
            raw["train"] = {trainer: {**knobs, "seed": seed}}
        return load(RECIPE, raw=raw)

    def ask(self) -> None:
        """Have the teacher answer all prompts, and the filters decide."""
        plan = self.plan(None, SEEDS[0])
        summary = pipeline.run(plan, self.workspace, Talking(), last="filter")
        if summary["status"] != "done":
            raise SystemExit(f"{summary['status']}: {summary['reason']}; the same command goes on.")
        self.base = store.RunFolder(Path(summary["run"]))

    def student(self, arm: str, size: int, seed: int) -> Student:
        """Train a student on some rows and ask it, or find that it was."""
        plan = self.plan(self.table.arms[arm], seed)
        ids = [row["row_id"] for row in store.read_table(self.base.file("kept.parquet"), ["row_id"])]
        if len(ids) < size:
            raise UserError(f"{len(ids)} rows were kept, fewer than {size}.")
        chosen = set(sorted(ids, key=lambda row_id: content_id([seed, row_id]))[:size])
        made = content_id([plan.raw["train"], sorted(chosen), store.digest(self.base.file("kept.parquet"))])[:16]
        folder = store.RunFolder(self.workspace / "soft_labels" / made)
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.stamp("evaluate"):
            print(f"{self.name}: {arm}, {size} rows, seed {seed}", flush=True)
            write_without(self.base.file("kept.parquet"), folder.file("kept.parquet"), set(ids) - chosen)
            for name in ("answers", "held_out", "logprobs", "logprob_tokens"):
                store.copy(self.base.file(f"{name}.parquet"), folder.file(f"{name}.parquet"))
            run = Run(plan, folder, self.ledger, Talking())
            stamp = folder.stamp("train")
            if not stamp or store.digest(folder.file("student")) != stamp["outputs"]["student"]:
                pipeline.do(run, "train")
            model = run.model("student", **trained(folder.file("student")))
            asked = alone("student", model, plan.task.student_view, plan.drawn)
            collect(run, store.read_prompts(folder.file("held_out.parquet")), asked, "eval/student.parquet")
            run.make_room()
            for file in folder.path.glob("student/*"):
                if file.name not in ("training.json", "metrics.jsonl"):
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            folder.save("evaluate", {"arm": arm, "rows": size, "seed": seed})
        answers, labels = store.read_answers(folder.file("eval/student.parquet")), plan.task.labels
        gold = np.array([labels.index(a.prompt.label or "") for a in answers])
        probs = np.array([a.label_probs or [0.0] * len(labels) for a in answers])
        right = np.array([float(a.prediction == a.prompt.label) for a in answers])
        return Student(right, brier(probs, gold), probs)


def apart(scores: Floats, others: Floats) -> Interval:
    """The mean paired difference of (rows,) scores."""
    draws = resampled_means(np.column_stack([scores, others]), SEEDS[0], RESAMPLES)
    return percentiles(float(np.mean(scores - others)), draws[:, 0] - draws[:, 1], len(scores))


def shown(found: Interval, scale: float, digits: int) -> str:
    """A difference with its interval."""
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(*(scale * n for n in found[:3]), d=digits)


def lines(table: Table, size: int, students: Mapping[str, Sequence[Student]]) -> list[str]:
    """Rows of Markdown for one size."""
    first = next(iter(table.arms))
    found = []
    for arm, trainings in students.items():
        right, score = (np.mean([getattr(s, name) for s in trainings], axis=0) for name in ("right", "brier"))
        base = [np.mean([getattr(s, name) for s in students[first]], axis=0) for name in ("right", "brier")]
        ece = np.mean([reliability(s.probs, s.right).ece for s in trainings])
        each = " / ".join(f"{100 * s.right.mean():.1f}" for s in trainings)
        differences = (
            ["", ""] if arm == first else [shown(apart(right, base[0]), 100, 1), shown(apart(score, base[1]), 1, 3)]
        )
        cells = [
            size,
            arm,
            each,
            f"{100 * right.mean():.1f}",
            differences[0],
            f"{score.mean():.3f}",
            differences[1],
            f"{ece:.3f}",
        ]
        found.append("| " + " | ".join(map(str, cells)) + " |")
    return found


def main() -> None:
    """Make what is missing of a table's students, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--workspace", type=Path, default=ROOT / "data")
    parser.add_argument("--rows", type=int, nargs="+", help="other sizes than the table's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    asked = parser.parse_args()
    asked.workspace.mkdir(parents=True, exist_ok=True)
    table = TABLES[asked.table]
    ledger = Ledger(asked.workspace / "ledger.sqlite")
    try:
        bench = Bench(table, asked.table, asked.workspace, ledger)
        bench.ask()
        rows = [
            line
            for size in asked.rows or table.sizes
            for line in lines(
                table, size, {arm: [bench.student(arm, size, s) for s in asked.seeds] for arm in table.arms}
            )
        ]
    except Interrupted as stop:
        raise SystemExit(str(stop)) from None
    finally:
        ledger.close()
    first = next(iter(table.arms))
    print(f"\n| rows | taught | accuracy by seed, % | mean | against {first}, points | Brier | against {first} | ECE |")
    print("|---:|---|---|---:|---|---:|---|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
