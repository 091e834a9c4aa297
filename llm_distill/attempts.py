"""Several answers to every held-out row, for pass@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill import store
from llm_distill.collect import collect
from llm_distill.perturbing import asked_arms
from llm_distill.recipe_probes import right_or_wrong
from llm_distill.records import Answer

if TYPE_CHECKING:
    from llm_distill.evaluating import Evaluation
    from llm_distill.recipe_probes import PassAt


def pass_at(seen: Evaluation, how: PassAt) -> dict[str, Any]:
    """eval/pass_at/<arm>.parquet, which has a row for each answer, and report.json's `pass_at`: how answers were drawn, what is
    `found` (see `evals.passing`), and what they cost beyond those that the comparison has.
    """
    from llm_distill.evals.compare import PAIRS, rounded
    from llm_distill.evals.measures import measure
    from llm_distill.evals.passing import held_against
    from llm_distill.report.build import spent_on

    run, plan = seen.run, seen.run.plan
    assert plan.evaluate is not None
    rmtree(run.folder.file("eval/pass_at"), ignore_errors=True)  # of arms that are none any more; the ledger has all
    drawn: dict[str, Sequence[Sequence[Answer]]] = {}
    new: list[Answer] = []
    for arm in asked_arms(seen, how.arms):
        panel, table = seen.panels[arm], f"eval/pass_at/{arm}.parquet"
        chance = msgspec.structs.replace(panel.sampling, temperature=how.temperature, top_p=1.0, seed=plan.seed)
        run.watch.say(f"evaluate: {arm.replace('_', ' ')}, {how.samples} answers a row")
        several = replace(panel, sampling=chance, samples=how.samples, apart=True)
        seen.ask.owed += collect(run, seen.prompts, several, table).owed
        drawn[arm] = _by_row(store.read_answers(run.folder.file(table)))
        known = panel.samples if chance == panel.sampling else 0  # the comparison has these answers already
        new += [answer for row in drawn[arm] for answer in row[known:]]
    passed: dict[str, dict[str, Mapping[str, Sequence[bool]]]] = {}
    for plug in right_or_wrong(plan):
        # Each round of answers by itself, for a metric gives a row one score.
        scores = {
            arm: [measure(plug, of, schema=plan.answers.json_schema)[0] for of in zip(*rows, strict=True)]
            for arm, rows in drawn.items()
        }
        # Of a row that can be measured, an answer that cannot (`math` may run out of time) is wrong: none gains by it.
        measured = set().union(*(of for rounds in scores.values() for of in rounds))
        passed[plug.spec.name] = {
            arm: {row: [of.get(row) == 1 for of in rounds] for row in measured} for arm, rounds in scores.items()
        }
    found = held_against(passed, how.k, PAIRS, plan.seed, plan.evaluate.resamples)
    how_drawn = {"samples": how.samples, "temperature": how.temperature}
    return {**how_drawn, "found": rounded(found), "spent": spent_on(new)}


def _by_row(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Each row's answers, in the order in which they were drawn."""
    rows: dict[str, list[Answer]] = {}
    for answer in answers:
        rows.setdefault(answer.prompt.row_id, []).append(answer)
    return list(rows.values())
