"""Everything a run found out, as one JSON-able object: report.json. `schema.json` beside this module
says of what form.

Read from the run folder alone, so a report can be rebuilt where the recipe's inputs are gone. Wall-clock figures stand
under `seconds` and in fields named so; all else is the same for equal answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.evals.gate import gate
from llm_distill.evals.students import unfit
from llm_distill.plugs import Spec
from llm_distill.records import Answer
from llm_distill.report.data import about_data
from llm_distill.report.html import render, results
from llm_distill.report.pull_request import brief
from llm_distill.report.rows import browsed
from llm_distill.report.speed_section import claims
from llm_distill.terms import Policy, Record, Source, row_sources, shipped, verdicts

#: Of report.json, as `schema.json` describes it.
FORMAT = 1


def build(folder: store.RunFolder) -> dict[str, Any]:
    """The report of a run, as far as the run has got."""
    record = folder.record
    recipe = folder.words
    task = Spec.read(recipe.get("task", "generate"), "task")
    answers = store.read_answers(folder.file("answers.parquet"))
    numbers = _json(folder.file("eval/comparison.json")) or {}
    arms = {path.stem: store.read_answers(path) for path in sorted(folder.path.glob("eval/*.parquet"))}
    kept_rows = store.read_table(folder.file("kept.parquet"), ["model", "terms"])
    kept = len(kept_rows)
    for arm in numbers.get("arms", {}):
        rows = arms.get(arm, [])
        numbers["arms"][arm]["model"] = ", ".join(sorted({a.model for a in rows if a.model})) or None
    says = recipe.get("report") or {}
    report = numbers | {
        "format": FORMAT,
        "name": recipe["name"],
        "title": says.get("title"),
        "notes": says.get("notes"),
        "policy": recipe.get("policy"),
        "headline": numbers.get("headline") or _data_headline(len(answers), kept),
        "task": {"kind": task.name, "labels": task.knobs.get("labels", [])},
        "funnel": {
            "asked": folder.stamp("prompts").get("rows_out", len(answers)),
            "status": dict(Counter(a.status for a in answers)),
            "reasons": dict(Counter(a.reason for a in answers if a.reason)),
            "filters": folder.stamp("filter").get("filters", []),
            "dropped_by_review": (folder.stamp("filter").get("review") or {}).get("dropped", 0),
            "kept": kept,
        },
        "probe": _probe(folder),
        **about_data(folder, answers, arms, task.name),
        "overlap": folder.stamp("evaluate").get("overlap", []),
        "answered_by": _answered_by(answers),
        "training": _training(folder, recipe),
        "cost": _cost(
            folder, {"answers": answers} | {f"evaluate {arm}": rows for arm, rows in arms.items()} | _robust(folder)
        ),
        "seconds": {
            name: stamp["seconds"]
            for name, stamp in record["stages"].items()
            if "seconds" in stamp and name != "report"
        },
        "provenance": {
            "models": record["models"],
            "packages": record["versions"],
            "seed": record["seed"],
            "recipe_digest": record["digest"],
            "git": record["git"],
            "tables": {path.name: store.digest(path) for path in sorted(folder.path.glob("*.parquet"))},
        },
        **_terms(record, recipe, kept_rows),
    }
    if (report.get("speed") or {}).get("stale") and "speed" in numbers:
        report["speed"] = numbers["speed"]
    if speed := report.get("speed"):
        report["speed"] = speed | {"claims": claims(report)}
    spent = {f"evaluate {key}": of for key in ("speed", "pass_at") if (of := (report.get(key) or {}).get("spent"))}
    report["cost"] = costs(report["cost"]["stages"] | spent)
    if ship := recipe.get("ship"):
        report["gate"] = gate(ship, report, arms, unfit(folder))
    return report


def write(folder: store.RunFolder) -> Path:
    """Write report.json, report.md and report.html of a run; gives the page's path."""
    report = build(folder)
    recipe = folder.words
    arms, metric, _ = results(report)
    tables = {arm: table for arm in arms if (table := folder.file(f"eval/{arm}.parquet")).exists()}
    rows = browsed(folder, recipe, metric, {arm: store.read_answers(table) for arm, table in tables.items()})
    store.write_json(folder.file("report/report.json"), report)
    for name, text in (("report.md", brief(report)), ("report.html", render(report, rows))):
        with store.replacing(folder.file(f"report/{name}")) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder.file("report/report.html")


def _data_headline(asked: int, kept: int) -> str:
    return f"{kept:,} of {asked:,} answers were kept; no student was evaluated in this run."


def _training(folder: store.RunFolder, recipe: dict[str, Any]) -> dict[str, Any] | None:
    described: dict[str, Any] | None = _json(folder.file("student/training.json"))
    if described is None:
        return None
    logged = store.training_log(folder.file("student"))
    return described | {
        "trainer": next(
            (r["name"] for r in described.get("rungs", ()) if r["taken"]), Spec.read(recipe["train"], "train").name
        ),
        "validation_loss": [
            {"step": entry["step"], "loss": entry["validation_loss"]} for entry in logged if "validation_loss" in entry
        ],
        "loss": [{"step": entry["step"], "loss": entry["loss"]} for entry in logged if "loss" in entry],
    }


def _probe(folder: store.RunFolder) -> dict[str, Any] | None:
    """The last finished look of the run's probe, without the ids that pair its rows."""
    known = [about for path in sorted(folder.path.glob("probe/*.json")) if (about := _json(path)).get("done")]
    return {key: of for key, of in known[-1].items() if key not in ("questions", "done", "owed")} if known else None


def _answered_by(answers: Sequence[Answer]) -> dict[str, Any]:
    """Per role (or roles that made labels together): its rows, and how far their several answers agree."""
    found = {}
    for role in sorted({a.role for a in answers}):
        rows = [a for a in answers if a.role == role]
        known = [a.agreement for a in rows if a.agreement is not None]
        found[role] = {"rows": len(rows), "agreement": sum(known) / len(known) if known else None}
    return found


def _cost(folder: store.RunFolder, asked: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """What each table's answers came to, and the questions that generators and scorers had of their own."""
    own = ("prompts", "probe", "filter", "evaluate")
    stages = {name: spent for name in own if (spent := folder.stamp(name).get("spent"))}
    return costs(stages | {name: spent_on(answers) for name, answers in asked.items()})


def spent_on(answers: Sequence[Answer]) -> dict[str, Any]:
    """What a table's answers came to, whoever paid for them, and when."""
    paid = [a.cost_usd for a in answers if not a.owed or a.cost_usd is not None]
    return {
        "answered": len(paid),
        "prompt_tokens": sum(a.prompt_tokens or 0 for a in answers),
        "completion_tokens": sum(a.completion_tokens or 0 for a in answers),
        "cost_usd": None if None in paid else sum(usd for usd in paid if usd is not None),
    }


def costs(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """report.json's `cost`: the stages, and their sum, which nobody knows where one is unknown."""
    known = [stage["cost_usd"] for stage in stages.values()]
    return {"total_usd": None if None in known else sum(known), "stages": stages}


def _robust(folder: store.RunFolder) -> dict[str, list[Answer]]:
    """All answers to perturbed rows, where there are any."""
    tables = sorted(folder.path.glob("eval/robust/*/*.parquet"))
    return {"evaluate perturbed rows": [a for path in tables for a in store.read_answers(path)]} if tables else {}


def _terms(record: Mapping[str, Any], recipe: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Under which terms the models, the prompts and the rows kept stand, what these ask for and what they leave open."""
    records = shipped() | {name: Record(**entry) for name, entry in record.get("terms", {}).items()}
    roles = {f"{role}: {m.get('model', m['plug'])}": m.get("terms") for role, m in record["models"].items()}
    named = roles | {f"prompts ({name})": name for name in record.get("prompts_terms", [])}
    answered = list(row_sources(rows))
    used = [records[name] for name in sorted(records.keys() & {*named.values(), *(s.terms for s in answered)})]
    prompts = [Source(f"{what} stand", name) for what, name in named.items() if what not in roles]
    found = verdicts(Policy.model_validate(recipe.get("policy") or {}), records, prompts + answered)
    return {
        "terms": [_described(what, name, records.get(name or "")) for what, name in named.items()],
        "answered_under": [
            f"{who} under {f'the terms {name!r}' if name else 'terms that nobody named'}" for who, name in answered
        ],
        "duties": {
            "share_alike": sorted({r.share_alike for r in used if r.share_alike}),
            "attribution": [f"{r.licence}: {r.attribution}" for r in used if r.attribution],
        },
        "open_terms": [*found.forbidden, *found.unknown],
    }


def _described(what: str, name: str | None, known: Record | None) -> dict[str, Any]:
    unknown = {"licence": name, "note": "No terms are on record: find them before the student is used."}
    read = {"licence": known.licence, "note": known.clause, "url": known.url, "read": known.read} if known else unknown
    return {"model": what, "name": name, "allows": known.allows.model_dump() if known else None} | read


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
