"""Which settings of the trainer do best: the recipe's own and others, each trained on the same answers and judged on rows that
none of them has learnt from.

    prompts, answers, filter: once -> for each trial: other knobs -> a student -> the rows that decide -> the best of them

The held-out rows have no part in it: whoever picks on them has nothing left to evaluate on. `sweep_rows` says which rows
decide, `sweep_space` what is tried next. There is no pruning: settings differ in what their loss is made of, so that halfway
no curve tells which of two students will answer better.

A trial (`sweep_trial`) is a folder within the recipe's run, trained and asked as any run's student is. One that is there is
never made again, so a sweep goes on after any stop, and with more `trials` after its end. Its weights are not kept, for `run`
trains the winner again, on all rows. The numbers lie in `sweep.json` and `sweep.md` of the run's folder.

The best of many is lucky as well as good. What it scored, on rows it was picked by, is therefore held against what such a
pick scores on other rows, and its lead on the recipe's own settings counts as a gain only where it would not be expected of
the luckiest of so many (`evals.selection`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill import lineage, pipeline, store
from llm_distill.errors import FellShort, UserError
from llm_distill.recipe import Plan
from llm_distill.recipe_evaluation import Evaluate
from llm_distill.stages import Run, Watch, gate_training
from llm_distill.sweep_rows import Dev, given, part, write_without
from llm_distill.sweep_space import Setting, Space, overrides, own, space, trials, variant
from llm_distill.sweep_table import best_said, brief, markdown, notes
from llm_distill.sweep_trial import Bench, Trial
from llm_distill.variants import Work, mean_of, measured

NUMBERS, TABLE = "sweep.json", "sweep.md"


def sweep(plan: Plan, workspace: Path, watch: Watch, *, ledger_url: str | None = None) -> Iterator[dict[str, Any]]:
    """The sweep as it stands after each trial; the last one is whole. Raises what stops it; what is done is kept."""
    if not find_spec("optuna"):
        raise UserError("sweep: optuna is not installed; `pip install 'llm-distill[sweep]'`.")
    plan = lineage.settled(plan, workspace)
    found_in = space(plan)
    assert plan.sweep is not None
    for role in plan.pupils:
        plan.models[role]().preflight()
    work = Work(plan, workspace, watch, ledger_url)
    watch.say("sweep: the answers, once for all trials")
    rows = given(plan, store.read_prompts(work.run("sweep", plan, "prompts").file("held_out.parquet")))
    full = work.run("sweep", plan, "filter")
    ledger = work.ledger()
    try:
        gate_training(Run(plan, full, ledger, watch))
        dev = part(plan, store.read_answers(full.file("kept.parquet")), rows)
        for table in ("kept.parquet", "answers.parquet"):
            write_without(full.file(table), full.file(f"sweep/{table}"), dev.withheld)
        bench = Bench(plan, full, dev, ledger, watch)
        found = _started(plan, full, dev, found_in)
        try:
            yield from _trials(bench, found_in, found)
        except FellShort as short:
            if found["trials"]:
                _save(full, found | {"stopped": str(short)})
            raise
    finally:
        ledger.close()
        if full.file(NUMBERS).exists():
            work.report(plan, full)
    _hand_on(work, found["best"], full)


def _trials(bench: Bench, found_in: Space, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    plan, mine = bench.plan, own(bench.plan, found_in.paths)
    before: list[tuple[Setting, float]] = []
    done: list[Trial] = []
    for number in range(found["wanted"] + 1):
        trial = Trial(number, found_in.next(before) if number else None)
        parameters = mine if trial.setting is None else trial.setting
        which = f"trial {number} of {found['wanted']}" if number else "the recipe's own settings"
        bench.watch.say(f"sweep: {which}: {brief(parameters)}")
        bench.make(trial)
        row: dict[str, Any] = {
            "trial": number,
            "parameters": dict(parameters),
            "students": trial.ids,
            "failed": trial.failed,
            "loss": store.loss_curve(bench.home / trial.ids[0] / "student") if trial.ids else [],
        }
        same = next((other for other in done if other.ids == trial.ids), None)
        row["same_as"] = same.number if same else None
        row |= {"seconds": 0.0 if same else round(trial.seconds, 1), "cost_usd": 0.0 if same else trial.cost_usd}
        if trial.failed is None:
            row |= measured(trial.scores, (done or [trial])[0].scores, plan, _resamples(plan))
        # A student that could not be trained gets nothing right. In a grid, points are counted: its own place takes none.
        if number or (found_in.sampler != "grid" and found_in.holds(mine)):
            before.append((parameters, row["score"]["value"] if trial.failed is None else 0.0))
        done.append(trial)
        found["trials"].append(row)
        found["best"] = _best([one for one in done if one.failed is None], bench, mine)
        found |= {"complete": number == found["wanted"], "said": best_said(found)}
        _save(bench.full, found)
        yield found


def _best(students: Sequence[Trial], bench: Bench, mine: Setting) -> dict[str, Any]:
    """The trial with the highest score, the earliest of equals, and what its score and its lead are worth."""
    from llm_distill.evals.compare import rounded
    from llm_distill.evals.headline import clear
    from llm_distill.evals.selection import adjusted, expected
    from llm_distill.evals.statistics import sign_test

    plan, resamples = bench.plan, _resamples(bench.plan)
    different = [one for i, one in enumerate(students) if all(one.ids != other.ids for other in students[:i])]
    scores = [mean_of(one.scores)[bench.dev.metric] for one in different]
    table = np.array([[of[row] for of in scores] for row in sorted(scores[0])])
    order = np.argsort(-np.round(table.mean(axis=0), 12), kind="stable")
    best = different[order[0]]
    found = {"trial": best.number, "parameters": dict(mine if best.setting is None else best.setting)}
    found |= {"metric": bench.dev.metric, "score": measured(best.scores, best.scores, plan, resamples)["score"]}
    found |= {"overrides": [] if best.setting is None else overrides(best.setting), "verdict": "own settings"}
    if len(different) > 1:
        leads = table[:, order[:1]] - np.delete(table, order[0], axis=1)
        tests = [sign_test(int((of > 0).sum()), int((of < 0).sum())) for of in leads.T]
        second = different[order[1]]
        found["runner_up"] = {
            "trial": second.number, "change": measured(best.scores, second.scores, plan, resamples)["change"]
        }  # fmt: skip
        found |= {"others": len(tests), "alike": sum(p >= 0.05 for p in tests)}
        picked = expected(table, plan.seed)
        found["expected"] = {"score": picked.score._asdict(), "gain": picked.gain._asdict()}
    if best.setting is not None:
        change = measured(best.scores, students[0].scores, plan, resamples)["change"]
        p = adjusted(change["p"], len(different) - 1)
        found |= {"change": change, "p_adjusted": p}
        found["verdict"] = "gain" if clear(change) and p < 0.05 else "no measurable gain"
    return rounded(found)  # type: ignore[no-any-return]


def _resamples(plan: Plan) -> int:
    return (plan.evaluate or Evaluate()).resamples


def _started(plan: Plan, full: store.RunFolder, dev: Dev, found_in: Space) -> dict[str, Any]:
    """A sweep before its first trial."""
    assert plan.sweep is not None
    file = plan.sweep.dev.file
    rows = {"file": None if file is None else file.name, "share": None if file else plan.sweep.dev.share}
    rows |= {"metric": dev.metric, "rows": len(dev.prompts), "learnt": dev.learnt, "aside": dev.aside}
    owed = sum(full.stamp(name).get("owed", 0) for name in pipeline.STAGES)
    return {
        "settings": plan.raw["sweep"],
        "optuna": version("optuna"),
        "wanted": trials(plan, found_in),
        "dev": rows,
        "kept": store.digest(full.file("kept.parquet")),
        "notes": notes(plan.sweep, rows, found_in.size, owed),
        "trials": [],
        "complete": False,
    }


def _save(full: store.RunFolder, found: dict[str, Any]) -> None:
    store.write_json(full.file(NUMBERS), found)
    with store.replacing(full.file(TABLE)) as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")


def _hand_on(work: Work, best: dict[str, Any], full: store.RunFolder) -> None:
    """Put the sweep beside the run of its winner, for that run's report."""
    if not best["overrides"]:
        return
    winner = variant(work.plan, best["parameters"])
    folder = store.RunFolder.of(work.workspace, winner.name, winner.digest)
    for name in (NUMBERS, TABLE):
        store.copy(full.file(name), folder.file(name))
    if folder.stamp("report"):
        work.report(winner, folder)
