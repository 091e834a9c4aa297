"""What each filter is worth: the same run with each filter off in turn, and what that does to the student.

    full run -> for each filter: the recipe without it -> rows kept -> a student of its own -> the same held-out rows

Every arm is a run like any other, in its own folder, of a recipe that lacks a filter: answers are shared through the
ledger, stages with equal inputs are taken over, and what was killed goes on. Arms that would train on the same rows share a
student. The numbers lie in `ablation.json` and `ablation.md` of the full run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_distill import pipeline, store
from llm_distill.ablate_table import markdown, notes
from llm_distill.errors import FellShort, UserError, did_you_mean
from llm_distill.recipe import Plan, load, seeded
from llm_distill.records import content_id
from llm_distill.stages import Watch
from llm_distill.variants import RowScores, Work, measured, metric_of

FULL = "all filters"
NUMBERS, TABLE = "ablation.json", "ablation.md"
#: What a row teaches: rows that are equal in these make equal students.
_TAUGHT = ("row_id", "messages", "tags", "text", "prediction")


@dataclass(frozen=True)
class Arm:
    """One run to compare: its name, and the filters that are off in it."""

    name: str
    without: tuple[str, ...] = ()


def arms(filters: Sequence[str], only: Sequence[str] = ()) -> list[Arm]:
    """The full run, one without each filter, and one without any; with `only`, the full run and those that lack these."""
    if not filters:
        raise UserError("filter: the recipe has no filters, so there is nothing to take away.")
    if strange := [name for name in only if name not in filters]:
        raise UserError(f"--only {strange[0]}: the recipe has no such filter.{did_you_mean(strange[0], filters)}")
    each = [Arm(f"without {name}", (name,)) for name in filters if not only or name in only]
    return [Arm(FULL), *each, *([] if only else [Arm("no filters", tuple(filters))])]


def derived(plan: Plan, without: Sequence[str] = (), *, rows: int | None = None, seed: int | None = None) -> Plan:
    """The plan of an arm: some filters off, at most `rows` rows kept, another seed of training.

    It goes on with the account of the full run, so that one budget bounds all arms and each finds the others' answers.
    """
    raw = deepcopy(plan.raw)
    if without:
        named = zip(raw["filter"], plan.filters, strict=True)
        raw["filter"] = [entry for entry, filter_ in named if filter_.name not in without]
    if rows is not None:
        raw["filter"] = [*raw["filter"], {"sample": {"rows": rows}}]
    if seed is not None:
        raw["train"] = seeded(plan, raw["train"], seed)
    return replace(load(plan.path, raw=raw), account=plan.account, sources=plan.sources)


def ablate(
    plan: Plan,
    workspace: Path,
    watch: Watch,
    *,
    only: Sequence[str] = (),
    seeds: int = 1,
    equal_rows: bool = False,
    ledger_url: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The ablation as it stands after each arm; the last one is whole. Raises what stops it; what is done is kept."""
    wanted = arms([filter_.name for filter_ in plan.filters], only)
    work = Work(plan, workspace, watch, ledger_url)
    measures = plan.trainer is not None and plan.evaluate is not None
    settings = {"only": sorted(only), "seeds": seeds if measures else 0, "equal_rows": equal_rows and measures}
    work.spent = _spent_before(store.RunFolder.of(workspace, plan.name, plan.digest), settings)
    watch.say(f"ablate: {FULL}")
    full = work.run(FULL, plan, None)
    found = _started(work, wanted, full, settings)
    students: dict[str, str] = {}  # what was taught -> the first arm that taught it
    scores: dict[str, list[RowScores]] = {}
    try:
        for i, (arm, row) in enumerate(zip(wanted, found["arms"], strict=True), start=1):
            if measures:
                watch.say(f"ablate: {arm.name} ({i} of {len(wanted)})")
                thin = found["rows_each"] if row["rows_kept"] > (found["rows_each"] or row["rows_kept"]) else None
                chosen = work.run(arm.name, derived(plan, arm.without, rows=thin), "filter")
                row["trained_on"], taught = _taught(chosen)
                first = students.setdefault(taught, arm.name)
                if first == arm.name:
                    plans = [derived(plan, arm.without, rows=thin, seed=plan.train_seed + n) for n in range(seeds)]
                    scores[arm.name] = [_scores(work.run(arm.name, one, "evaluate"), plan) for one in plans]
                else:
                    row["same_as"], scores[arm.name] = first, scores[first]
                row.update(_measured(scores[arm.name], scores[FULL], plan, same=row.get("same_as") == FULL))
            row.update(work.spent[arm.name])
            found["complete"] = i == len(wanted)
            _save(full, found)
            yield found
    except FellShort as short:
        _save(full, found | {"stopped": str(short)})
        raise
    finally:
        if full.file(NUMBERS).exists():
            work.report(plan, full)


def _started(work: Work, wanted: Sequence[Arm], full: store.RunFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An ablation before any student is trained: what each arm keeps."""
    kept = {}
    for arm in wanted:
        work.watch.say(f"ablate: {arm.name}: rows kept")
        kept[arm.name] = work.run(arm.name, derived(work.plan, arm.without), "filter")
    rows = _rows(wanted, kept, full)
    most = min(row["rows_kept"] for row in rows) if settings["equal_rows"] else None
    owed = sum(full.stamp(name).get("owed", 0) for name in pipeline.STAGES)
    return {
        "settings": settings,
        "rows_each": most,
        "kept": store.digest(full.file("kept.parquet")),
        "notes": notes(settings, most, owed),
        "arms": rows,
        "complete": False,
    }


def _spent_before(full: store.RunFolder, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the arms took until now: by the file that a kill left, and the full run by its stamps."""
    seconds = sum(stamp.get("seconds", 0.0) for stamp in full.record["stages"].values())
    spent = {FULL: {"seconds": round(seconds, 1), "cost_usd": 0.0}}
    with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or somebody's edit
        before = json.loads(full.file(NUMBERS).read_text(encoding="utf-8"))
        if before["settings"] == settings:
            done = [row for row in before["arms"] if "seconds" in row]
            spent |= {row["arm"]: {"seconds": row["seconds"], "cost_usd": row["cost_usd"]} for row in done}
    return spent


def _rows(wanted: Sequence[Arm], kept: Mapping[str, store.RunFolder], full: store.RunFolder) -> list[dict[str, Any]]:
    """Rows kept in each arm; of those that its filters took in the full run, what nothing else would have taken."""
    gone = {row["row_id"]: row for row in store.read_table(full.file("dropped.parquet"))}
    found = []
    for arm in wanted:
        ids = {row["row_id"] for row in store.read_table(kept[arm.name].file("kept.parquet"), ["row_id"])}
        # A row that the stage itself drops, for want of a label, may bear a filter's name, and has no score of it.
        took = {
            row_id
            for row_id, row in gone.items()
            if row["dropped_by"] in arm.without and row.get(f"score.{row['dropped_by']}") is not None
        }
        counts = {"rows_kept": len(ids), "took": len(took), "took_alone": len(took & ids)}
        found.append({"arm": arm.name, "without": list(arm.without), "run": kept[arm.name].path.name, **counts})
    return found


def _taught(run: store.RunFolder) -> tuple[int, str]:
    """How many rows a run trains on, and a digest of what they teach."""
    rows = store.read_table(run.file("kept.parquet"), _TAUGHT)
    return len(rows), content_id([content_id([row[name] for name in _TAUGHT]) for row in rows])


def _scores(run: store.RunFolder, plan: Plan) -> RowScores:
    """The student's score on each held-out row: by the evaluation's metric, and by agreement with the teacher."""
    from llm_distill.evals.measures import measures
    from llm_distill.evals.metrics import AGREEMENT, agreement_scores, gold_scores

    student, teacher = (store.read_answers(run.file(f"eval/{arm}.parquet")) for arm in ("student", "teacher"))
    metric, named = metric_of(plan), measures(plan.metrics, plan.answers.json_schema)
    gold = named[metric](student)[0] if metric in named else gold_scores(student, plan.task.kind).get(metric, {})
    return {metric: gold, AGREEMENT: agreement_scores(student, teacher, plan.task.kind)}


def _measured(here: Sequence[RowScores], full: Sequence[RowScores], plan: Plan, *, same: bool) -> dict[str, Any]:
    """An arm's score, its change against the full run on the same rows, and what it says of the filter."""
    assert plan.evaluate is not None
    found = measured(here, full, plan, plan.evaluate.resamples, metric_of(plan))
    if found["score"] is None:
        return found | {"verdict": "not measured"}
    return found | {"verdict": verdict(found["change"], same=same) if same or found["change"] else None}


def verdict(change: Mapping[str, Any] | None, *, same: bool = False) -> str:
    """What a student's change without a filter says of the filter; `same`: it has learnt from the same rows."""
    from llm_distill.evals.headline import clear

    if same:
        return "took nothing"
    if change is None:
        return "not measured"
    if not clear(change):
        return "no measurable gain"
    return "gain" if change["difference"] < 0 else "harmful"


def _save(full: store.RunFolder, found: dict[str, Any]) -> None:
    total = sum(row.get("seconds", 0.0) for row in found["arms"])
    for row in found["arms"]:
        row["share_of_time"] = round(row["seconds"] / total, 4) if total and "seconds" in row else None
    store.write_json(full.file(NUMBERS), found)
    with store.replacing(full.file(TABLE)) as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
