"""The students of several runs, held against each other on the held-out rows that all of them answered.

A row is the same row in two runs when its words and its place among equal ones are, which is what a row_id says; its gold has
to be the same too. Only gold counts: runs have teachers of their own, and agreement with different ones compares nothing.
Students are held against each other on the metric that their recipes name, by default the task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.compare import rounded
from llm_distill.evals.headline import percent, points, said
from llm_distill.evals.measures import bind_metrics, measures
from llm_distill.evals.metrics import AGREEMENT, PRIMARY, RIGHT_OR_WRONG, Kind, Scores, gold_scores
from llm_distill.evals.pairs import Shared, paired
from llm_distill.evals.statistics import FEWEST, holm, mean, proportion, resampled_means
from llm_distill.plugs import Reading, Spec
from llm_distill.records import Answer, Prompt
from llm_distill.report.markdown import table
from llm_distill.structured import Schema

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
    kind: Kind = "classify" if tasks[0].startswith("classify") else "generate"
    metric, measured = _metric(folders, kind)
    answers = [_answers(folder) for folder in folders]
    scores: list[Scores] = [measured(of) for of in answers]
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
    students, counted = [], set(rows)
    for name, folder, of, column in zip(names, folders, answers, values.T, strict=True):
        whole = metric in RIGHT_OR_WRONG
        score = proportion(int(column.sum()), len(rows)) if whole else mean(column, 0, RESAMPLES)
        failed = sum(a.status == "failed" and a.prompt.row_id in counted for a in of)
        students.append(
            {"run": name, "folder": str(folder.path), "held_out": len(of), "failed": failed, "score": score._asdict()}
        )
    found: dict[str, Any] = rounded({"metric": metric, "rows": len(rows), "students": students, "pairs": pairs})
    return found


def _metric(folders: Sequence[store.RunFolder], kind: Kind) -> tuple[str, Callable[[Sequence[Answer]], Scores]]:
    """The metric that the recipes name, and what measures it; UserError where they name different ones."""
    found = []
    for folder in folders:
        recipe = folder.words
        how = recipe.get("evaluate") or {}
        named = how.get("metric")
        metric = PRIMARY[kind] if named in (None, AGREEMENT) else str(named)
        if metric == "judge":
            raise UserError(
                f"compare: {folder.path} is judged by a model's scores (evaluate.metric: judge), which are no common measure of "
                "several runs; name another evaluate.metric and run its recipe again, for which nothing is asked."
            )
        words = [of for of in how.get("metrics") or [] if Spec.read(of, "evaluate.metrics").name == metric]
        schema = (recipe.get("answers") or {}).get("schema") if metric == "schema_valid" else None
        found.append((metric, words, schema))
    if other := next((place for place, one in enumerate(found) if one != found[0]), None):
        raise UserError(
            f"compare: {folders[0].path} is judged by {found[0][0]} and {folders[other].path} by {found[other][0]}, or by other "
            "settings of it; run one again with the other's evaluate.metric and metrics, for which nothing is asked again."
        )
    metric, words, schema = found[0]
    if not words:
        return metric, lambda of: gold_scores(of, kind)[metric]
    reading = Reading(folder=Path(folders[0].record.get("recipe_file", ".")).parent, files=set(), roles=[])
    if schema is not None:
        schema = TypeAdapter(Schema).validate_python(schema, context=reading)
    plugs = bind_metrics(words, metric, kind, schema, reading)
    return metric, lambda of: measures(plugs, schema)[metric](of)[0]


def _task(folder: store.RunFolder) -> str:
    task = Spec.read(folder.words.get("task", "generate"), "task")
    return f"{task.name}: {', '.join(map(str, sorted(task.knobs.get('labels', []))))}".rstrip(": ")


def unfit(folder: store.RunFolder) -> str | None:
    """Why a run's evaluation says nothing of its student, if so."""
    stamp = folder.stamp("evaluate")
    if not stamp:
        return "the run has not been evaluated; run the recipe again"
    whole = stamp["outputs"]["eval"] == store.digest(folder.file("eval"))
    if not whole or stamp.get("student") != store.digest(folder.file("student")):
        return "the student, or its answers, changed after the evaluation; run the recipe again"
    return None


def _answers(folder: store.RunFolder) -> list[Answer]:
    """The student's answers to its held-out rows; UserError where there are none that are vouched for."""
    path = folder.file("eval/student.parquet")
    if not folder.stamp("evaluate") or not path.exists():
        raise UserError(
            f"compare: {folder.path} has no evaluated student; run its recipe to its end, with `train` and `evaluate`."
        )
    if why := unfit(folder):
        raise UserError(f"compare: {folder.path}: {why}.")
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
            table(["Student of", said(found["metric"]), "95 %", "Failed rows, wrong"], students),
            table(["Difference, in points", "Value", "95 %", "Wins, losses", f"p ({test})", "p, Holm"], pairs),
        ]
    )


def _span(of: dict[str, Any]) -> str:
    return "—" if of["low"] is None or of["high"] is None else f"{points(of['low'])} to {points(of['high'])}"
