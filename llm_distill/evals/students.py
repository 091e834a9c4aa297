"""The students of several runs, held against each other on the held-out rows that all of them answered.

A row is the same row in two runs when its words and its place among equal ones are, which is what a row_id says; its gold has
to be the same too. Only gold counts: runs have teachers of their own, and agreement with different ones compares nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.compare import Shared, paired, rounded
from llm_distill.evals.headline import WORDS, percent, points
from llm_distill.evals.metrics import PRIMARY, Scores, gold_scores
from llm_distill.evals.statistics import FEWEST, holm, mean, proportion, resampled_means
from llm_distill.plugs import Spec
from llm_distill.records import Answer, Prompt
from llm_distill.report.markdown import table

RESAMPLES = 10_000


def compare_runs(folders: Sequence[store.RunFolder]) -> dict[str, Any]:
    """Of each run its student's score, and of each two the difference, on the rows that all share; ready for JSON.

    UserError for runs without an evaluated student, of different tasks, or without a row with gold in common.
    """
    if len({folder.path.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(f"compare: name two or more different runs; found {', '.join(str(f.path) for f in folders)}.")
    tasks = [_task(folder) for folder in folders]
    if other := next((place for place, task in enumerate(tasks) if task != tasks[0]), None):
        raise UserError(
            f"compare: {folders[0].path} and {folders[other].path} have different tasks ({tasks[0]} and {tasks[other]}), so "
            "their students cannot be compared."
        )
    kind = tasks[0].partition(":")[0]
    metric = PRIMARY[kind]  # type: ignore[index]
    answers = [_answers(folder) for folder in folders]
    scores: list[Scores] = [gold_scores(of, kind)[metric] for of in answers]  # type: ignore[arg-type]
    rows = sorted(set.intersection(*map(set, scores)))
    _check(folders, answers, rows)
    names = _names([folder.path for folder in folders])
    values = np.array([[of[row] for of in scores] for row in rows])
    pairs = []
    for first, second in combinations(range(len(folders)), 2):
        two = values[:, [second, first]]
        means = resampled_means(two, 0, RESAMPLES)
        sides = ("student", "other")  # the later run less the earlier one
        shared = Shared(metric, rows, dict(zip(sides, two.T, strict=True)), dict(zip(sides, means.T, strict=True)))
        pairs.append({"run": names[second], "other": names[first], **paired(shared, "other")})
    corrected = holm([pair["p"] for pair in pairs])
    pairs = [pair | {"p_holm": p} for pair, p in zip(pairs, corrected, strict=True)]
    students = []
    for name, folder, of, column in zip(names, folders, answers, values.T, strict=True):
        whole = metric == "accuracy"
        score = proportion(int(column.sum()), len(rows)) if whole else mean(column, 0, RESAMPLES)
        failed = sum(a.status == "failed" and a.prompt.row_id in set(rows) for a in of)
        students.append(
            {"run": name, "folder": str(folder.path), "held_out": len(of), "failed": failed, "score": score._asdict()}
        )
    found: dict[str, Any] = rounded({"metric": metric, "rows": len(rows), "students": students, "pairs": pairs})
    return found


def _task(folder: store.RunFolder) -> str:
    recipe = json.loads(folder.file("recipe.resolved.json").read_text(encoding="utf-8"))
    task = Spec.read(recipe.get("task", "generate"), "task")
    return f"{task.name}: {', '.join(map(str, sorted(task.knobs.get('labels', []))))}".rstrip(": ")


def _answers(folder: store.RunFolder) -> list[Answer]:
    """The student's answers to its held-out rows; UserError where there are none that are vouched for."""
    path, stamp = folder.file("eval/student.parquet"), folder.stamp("evaluate")
    if not stamp or not path.exists():
        raise UserError(
            f"compare: {folder.path} has no evaluated student; run its recipe to its end, with `train` and `evaluate`."
        )
    if stamp["outputs"]["eval"] != store.digest(folder.file("eval")):
        raise UserError(
            f"compare: the answers in {folder.path}/eval are not those of its evaluation; run its recipe again."
        )
    return store.read_answers(path)


def _check(folders: Sequence[store.RunFolder], answers: Sequence[Sequence[Answer]], rows: Sequence[str]) -> None:
    if not rows:
        sizes = ", ".join(f"{folder.path} {len(of)}" for folder, of in zip(folders, answers, strict=True))
        raise UserError(
            f"compare: the runs have no held-out row with gold in common (held out: {sizes}), so nothing is measured on the same "
            "rows; hold out the same labelled file in all of them."
        )
    known: dict[str, Prompt] = {}
    for folder, of in zip(folders, answers, strict=True):
        prompts = {a.prompt.row_id: a.prompt for a in of}
        for row in rows:
            before, now = known.setdefault(row, prompts[row]), prompts[row]
            if (before.label, before.reference) != (now.label, now.reference):
                raise UserError(
                    f"compare: the row {row} ({now.text[:60]!r}) has another label or reference in {folder.path} than in the "
                    "runs before; what is right must be the same for all."
                )


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name for each run: its recipe's where that tells them apart, else with its folder's."""
    recipes = [path.resolve().parent.name for path in paths]
    if len(set(recipes)) == len(recipes):
        return recipes
    return [f"{recipe}/{path.resolve().name}" for recipe, path in zip(recipes, paths, strict=True)]


def markdown(found: dict[str, Any]) -> str:
    """Both tables, and on how many rows they stand."""
    said = WORDS[found["metric"]]
    outside = [f"{of['run']} {of['held_out']:,}" for of in found["students"]]
    lines = [f"{found['rows']:,} held-out rows with gold are common to all (held out: {', '.join(outside)})."]
    if found["rows"] < FEWEST:
        lines.append(f"Nothing can be concluded from fewer than {FEWEST} rows.")
    students = [
        (of["run"], percent(of["score"]["value"]), _span(of["score"]), f"{of['failed']:,}") for of in found["students"]
    ]
    pairs = [
        (f"{of['run']} less {of['other']}", points(of["difference"]), _span(of), f"{of['wins']}, {of['losses']}",
         f"{of['p']:.3g}", f"{of['p_holm']:.3g}")
        for of in found["pairs"]
    ]  # fmt: skip
    test = found["pairs"][0]["test"]
    return "\n\n".join(
        [
            *lines,
            table(["Student of", said, "95 %", "Failed rows, wrong"], students),
            table(["Difference, in points", "Value", "95 %", "Wins, losses", f"p ({test})", "p, Holm"], pairs),
        ]
    )


def _span(of: dict[str, Any]) -> str:
    return "—" if of["low"] is None or of["high"] is None else f"{points(of['low'])} to {points(of['high'])}"
