"""Models of one's own on rows of one's own, held against each other: `llm-distill eval`. No recipe, no training, no teacher.

What is asked goes through the same door as a recipe's questions: into the workspace's ledger, within a budget, found again by
the same command. A failed row is a wrong one in a model's own score; a comparison of two models stands on the rows that both
answered, and says on how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill import lineage, store
from llm_distill.collect import alone, collect
from llm_distill.errors import UserError, did_you_mean
from llm_distill.evals.compare import rounded
from llm_distill.evals.gold import check_labels
from llm_distill.evals.headline import clear, interval, points, said
from llm_distill.evals.measures import measures, unmeasured
from llm_distill.evals.metrics import GOLD, PRIMARY, Kind, Scores, arm_numbers, gold_scores
from llm_distill.evals.pairs import Shared, paired
from llm_distill.evals.statistics import FEWEST, holm, resampled_means
from llm_distill.ledger import Ledger
from llm_distill.models import MODELS
from llm_distill.plugs import Spec
from llm_distill.recipe import Plan, load
from llm_distill.recipe_file import read_mapping
from llm_distill.recipe_keys import checked_name
from llm_distill.records import Answer, Prompt
from llm_distill.report.rows import DEAR
from llm_distill.seeds import numbered, read_rows
from llm_distill.stages import Run, Watch

#: Of a model named by `plug:what`, the knob that says what.
_KNOB = "model"
_PATHS = ("model", "adapter", "tokenizer")
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Question:
    """What is compared: rows, the task as a recipe writes it, and how answers are drawn and paid for. base: whom all others
    are held against. folder: where the task's files start from.
    """

    data: Path
    task: Any
    metric: str | None
    max_tokens: int
    temperature: float
    budget_usd: float | None
    base: str | None = None
    folder: Path = Path()
    seed: int = 0


def read_models(named: Sequence[str]) -> dict[str, Any]:
    """The models of a command line by name, as a recipe writes them.

    Each is `[NAME=]plug:what`, `[NAME=]run:RECIPE` (the student that it trained last), or a YAML file of several, by name.
    """
    found: dict[str, Any] = {}
    for text in named:
        name, equals, spec = text.partition("=")
        if not equals:
            name, spec = "", text
        if spec.endswith((".yaml", ".yml")) and not name:
            more = _placed(read_mapping(Path(spec), "a file of models"), Path(spec).parent)
        else:
            plug, colon, what = spec.partition(":")
            if not colon or not what or plug not in (*MODELS, "run"):
                raise UserError(
                    f"--model {text}: write NAME=PLUG:MODEL, with one of {', '.join(MODELS)}, or run:RECIPE, or a YAML file of "
                    f"models by name.{did_you_mean(plug, MODELS)}"
                )
            more = {name or what.rstrip("/").rsplit("/", 1)[-1]: _spec(plug, what)}
        for key, value in more.items():
            if key in found:
                raise UserError(f"--model {text}: a model {key!r} is there already; name them apart: NAME=PLUG:MODEL.")
            if "_vs_" in str(key):
                raise UserError(
                    f"--model {text}: {key!r} holds `_vs_`, which stands between two names; name it otherwise."
                )
            try:
                found[checked_name(str(key))] = value
            except ValueError as error:
                raise UserError(f"--model {text}: {error}.") from None
    if not found:
        raise UserError("eval: name a model, `--model A=openai_api:gpt-4.1-mini`; with two or more they are compared.")
    return found


def _placed(models: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with paths of weights whole: in a file of models they start from its folder."""
    found = {}
    for name, value in models.items():
        spec = Spec.read(value, f"models.{name}")
        paths = {knob: folder / Path(of).expanduser() for knob, of in spec.knobs.items() if knob in _PATHS and of}
        whole = {knob: str(path.resolve()) for knob, path in paths.items() if path.exists()}
        found[str(name)] = {spec.name: spec.knobs | whole}
    return found


def _spec(plug: str, what: str) -> dict[str, Any]:
    if plug == "run":
        return {"transformers": {_KNOB: f"run:{what}"}}
    if plug == "openai_api":
        return {plug: {_KNOB: what, "api_key_env": "OPENAI_API_KEY"}}
    path = Path(what).expanduser()
    return {plug: {_KNOB: str(path.resolve()) if path.exists() else what}}


def planned(models: Mapping[str, Any], question: Question, workspace: Path) -> tuple[Plan, list[Prompt]]:
    """The whole as a plan of its own, checked before anything is spent, and the rows."""
    rows = list(numbered(read_rows(question.data)))
    name, knobs = (spec := Spec.read(question.task, "--task")).name, spec.knobs
    metric = None if question.metric is None or question.metric == PRIMARY.get(_kind(name)) else question.metric
    own = {"exact_match"} if _kind(name) == "generate" else set[str]()
    raw = {
        "name": "eval",
        "seed": question.seed,
        "task": {name: knobs} if knobs else name,
        "models": dict(models),
        "teachers": sorted(models),  # whom a budget bounds, and whose prices it needs
        "prompts": [{"seeds": {"file": str(question.data.resolve())}}],
        "held_out": {"file": str(question.data.resolve())},
        "answers": {
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "max_failed": 1.0,
            **({"budget_usd": question.budget_usd} if question.budget_usd is not None else {}),
        },
        "evaluate": {"metric": metric, "metrics": [metric] if metric and metric not in own else []} if metric else {},
    }
    plan = lineage.settled(load(question.folder / "eval.yaml", raw=raw), workspace)
    if plan.task.kind == "classify":
        check_labels(rows, plan.task.labels)
    gold = [row for row in rows if getattr(row, GOLD[plan.task.kind]) is not None]
    if not gold and metric != "schema_valid":
        raise UserError(
            f"{question.data}: no row has a `{GOLD[plan.task.kind]}`, and {said(metric or PRIMARY[plan.task.kind])} holds "
            "answers against it; add it to the rows."
        )
    measure = measures(plan.metrics, plan.answers.json_schema).get(metric or "")
    if measure and metric not in DEAR and ":" not in str(metric) and (why := unmeasured(measure, gold)):
        raise UserError(
            f"{question.data}: no row can be scored by {said(str(metric))}: {why}; repair the rows, or name another metric."
        )
    return plan, rows


def _kind(name: str) -> Kind:
    return "classify" if name == "classify" else "generate"


def ask(
    plan: Plan,
    rows: Sequence[Prompt],
    question: Question,
    out: Path,
    workspace: Path,
    watch: Watch,
    ledger_url: str | None,
) -> dict[str, Any]:
    """The report of it all, which is written into `out` too: report.json, .md, .html, and each model's answers."""
    from llm_distill.report.build import costs, spent_on
    from llm_distill.report.html import render
    from llm_distill.report.pull_request import brief
    from llm_distill.report.rows import of_models

    folder = store.RunFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot hold a report: {error.strerror}: {error.filename}.") from None
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    ledger.stage = "eval"  # under which its costs are noted
    run = Run(plan, folder, ledger, watch)
    answers: dict[str, list[Answer]] = {}
    try:
        for name in plan.models:
            watch.say(f"eval: {name}")
            table = f"{name}.parquet"
            collect(run, rows, alone(name, run.model(name), plan.task.student_view, plan.answers.sampling), table)
            answers[name] = store.read_answers(folder.file(table))
    finally:
        run.make_room()
        ledger.close()
    scores = scored(plan, answers)
    report = numbers(plan, answers, question.base, scores)
    report["cost"] = costs({name: spent_on(of) for name, of in answers.items()})
    store.write_json(folder.file("report.json"), report)
    pair = next(iter(report["paired"]), "").split("_vs_") if report["paired"] else list(answers)[:1]
    verdicts = {name: of[report["metric"]] for name, of in scores.items()}
    searched = of_models(rows, report["metric"], answers, verdicts, pair)
    for file, text in (("report.md", brief(report)), ("report.html", render(report, searched))):
        with store.replacing(folder.file(file)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return report


def scored(plan: Plan, answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, Scores]]:
    """Of each model the scores of its rows, by metric."""
    more = measures(plan.metrics, plan.answers.json_schema)
    return {
        name: gold_scores(of, plan.task.kind) | {key: measure(of)[0] for key, measure in more.items()}
        for name, of in answers.items()
    }


def numbers(
    plan: Plan,
    answers: Mapping[str, Sequence[Answer]],
    base: str | None = None,
    scores: Mapping[str, dict[str, Scores]] | None = None,
) -> dict[str, Any]:
    """Each model's score, and each two models' difference on the rows that both answered; ready for JSON."""
    kind = plan.task.kind
    metric = (plan.evaluate.metric if plan.evaluate else None) or PRIMARY[kind]
    scores = scores or scored(plan, answers)
    arms = {
        name: arm_numbers(
            of,
            {**scores[name], "agreement_with_teacher": {}},
            kind,
            plan.task.labels,
            seed=plan.seed,
            slices=(),
            resamples=_RESAMPLES,
        )
        for name, of in answers.items()
    }
    for name, of in answers.items():
        arms[name] |= {"model": ", ".join(sorted({a.model for a in of if a.model})) or None, "undefined": {}}
    failed = {name: {a.prompt.row_id for a in of if a.status == "failed"} for name, of in answers.items()}
    pairs: dict[str, dict[str, Any]] = {}
    for first, second in combinations(answers, 2):
        if base not in (None, first, second):
            continue
        if first == base:
            first, second = second, first  # noqa: PLW2901  the base is what others are held against
        ours, theirs = scores[first][metric], scores[second][metric]
        shared = sorted((ours.keys() & theirs.keys()) - failed[first] - failed[second])
        if shared:
            pairs[f"{first}_vs_{second}"] = _pair(metric, shared, ours, theirs, plan.seed)
    for pair, p in zip(pairs.values(), holm([pair["p"] for pair in pairs.values()]), strict=True):
        pair["p_holm"] = p
    rows = max(map(len, answers.values()), default=0)
    known = set().union(*(of[metric] for of in scores.values()))
    found: dict[str, Any] = rounded(
        {
            "format": 1, "name": "eval", "metric": metric, "rows": rows, "without_gold": rows - len(known),
            "task": {"kind": kind, "labels": plan.task.labels}, "arms": arms, "paired": pairs,
            "failed": {name: len(of) for name, of in failed.items()},
        }
    )  # fmt: skip
    return found | {"headline": headline(found)}


def _pair(metric: str, rows: Sequence[str], ours: Scores, theirs: Scores, seed: int) -> dict[str, Any]:
    table = np.array([[ours[row], theirs[row]] for row in rows])
    means = resampled_means(table, seed, _RESAMPLES)
    sides = ("student", "other")
    shared = Shared(metric, list(rows), dict(zip(sides, table.T, strict=True)), dict(zip(sides, means.T, strict=True)))
    return paired(shared, "other")


def headline(found: Mapping[str, Any]) -> str:
    """The result in sentences that claim no more than the numbers do."""
    metric = found["metric"]
    scored = [f"{name} {interval(of[metric])}" for name, of in found["arms"].items() if of[metric]["n"]]
    lines = [f"{said(metric)[:1].upper()}{said(metric)[1:]}: {', '.join(scored)}, on {found['rows']:,} rows."]
    for key, pair in found["paired"].items():
        first, _, second = key.partition("_vs_")
        if pair["n"] < FEWEST:
            lines.append(f"Nothing can be concluded from the {pair['n']} rows that {first} and {second} both answered.")
            continue
        span = (
            f"{points(pair['difference'])} points, {points(pair['low'])} to {points(pair['high'])}, {pair['n']:,} rows"
        )
        if clear({**pair, "p": pair["p_holm"]}):
            lines.append(f"{first} is {'better' if pair['difference'] > 0 else 'worse'} than {second} ({span}).")
        else:
            more = f"; {pair['rows_needed']:,.0f} rows would mostly show it" if pair["rows_needed"] else ""
            lines.append(f"Between {first} and {second} no difference can be seen ({span}{more}).")
    for name, count in found["failed"].items():
        if count:
            lines.append(f"{name} has no answer to {count:,} rows: wrong in its score, left out of its comparisons.")
    if lost := found["without_gold"]:
        rows, be = ("1 row has", "is") if lost == 1 else (f"{lost:,} rows have", "are")
        lines.append(f"{rows} nothing to be held against and {be} not scored.")
    return " ".join(lines)
