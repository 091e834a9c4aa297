"""Robustness: the held-out rows perturbed and asked again of the arms that the recipe names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from llm_distill import store
from llm_distill.collect import collect
from llm_distill.generators.perturb import ASKED, Kind, Ways, chosen, own_text, paraphrase, read
from llm_distill.records import Answer, Prompt

if TYPE_CHECKING:
    from llm_distill.evals.metrics import Scores
    from llm_distill.evals.robustness import Measure, Pair
    from llm_distill.evaluating import Evaluation
    from llm_distill.recipe_probes import Side


def robustness(seen: Evaluation) -> dict[str, Any]:
    """eval/robust/<kind>/<arm>.parquet, and report.json's `robustness`: `metric`, `rows` (of each kind: how many were asked, were
    `unchanged` by it, and were `lost`, with reasons) and `found`, see `evals.robustness`.

    A row that a perturbation leaves as it is says nothing of it and does not count.
    """
    from llm_distill.evals.robustness import held_against

    plan, run = seen.run.plan, seen.run
    assert plan.evaluate is not None
    assert plan.evaluate.robustness is not None
    how = plan.evaluate.robustness
    rmtree(
        run.folder.file("eval/robust"), ignore_errors=True
    )  # of arms that are none any more; the ledger has all answers
    ways = Ways(plan.seed, read(how.texts), plan.task.labels, how.typo_share)
    rows = chosen(seen.prompts, how.rows, plan.seed)
    arms, metric = asked_arms(seen, how.arms), seen.numbers["metric"]
    pairs: dict[str, dict[str, Pair]] = {}
    told: dict[str, Any] = {}
    for kind in how.kinds:
        perturbed, lost = _perturbed(seen, ways, rows, kind)
        asked = [one for row, one in zip(rows, perturbed, strict=True) if one and own_text(one) != own_text(row)]
        told[kind] = {"asked": len(asked), "unchanged": len(rows) - len(asked) - lost.total(), "lost": dict(lost)}
        pairs[kind] = {}
        for arm in arms if asked else ():
            table = f"eval/robust/{kind}/{arm}.parquet"
            run.watch.say(f"evaluate: {arm.replace('_', ' ')} under {kind}")
            seen.ask.owed += collect(run, asked, seen.panels[arm], table).owed
            answers = {a.prompt.row_id: a for a in store.read_answers(run.folder.file(table))}
            known = {a.prompt.row_id: a for a in seen.answers[arm]}
            both = [row.row_id for row in asked if row.row_id in answers and row.row_id in known]
            pairs[kind][arm] = [known[row] for row in both], [answers[row] for row in both]
    aims = {row.row_id: ways.aim(row) for row in rows} if "injection" in how.kinds else {}
    found = held_against(
        pairs, plan.task.kind, scored_by(seen, metric), aims, metric=metric, seed=plan.seed, resamples=plan.evaluate.resamples
    )  # fmt: skip
    return {"metric": metric, "rows": told, "found": found}


def asked_arms(seen: Evaluation, sides: Sequence[Side]) -> list[str]:
    """The arms behind `base`, `student` and `teacher`: the base is the one that scores higher."""
    arms = [base_of(seen) if side == "base" else side for side in sides]
    return [arm for arm in seen.panels if arm in arms]


def base_of(seen: Evaluation) -> str | None:
    """The base that is harder to beat, where there is one."""
    found: str | None = seen.numbers["gap_closed"]["from"]
    return found or next((arm for arm in seen.panels if arm.startswith("base_")), None)


def _perturbed(
    seen: Evaluation, ways: Ways, rows: Sequence[Prompt], kind: Kind
) -> tuple[list[Prompt | None], Counter[str]]:
    """Each row perturbed, None where a model failed to, and why."""
    if kind != ASKED:
        return [ways.perturbed(row, kind) for row in rows], Counter()
    plan = seen.run.plan
    assert plan.evaluate is not None
    how = plan.evaluate.robustness
    assert how is not None
    assert how.model is not None
    found: list[Prompt | None] = []
    lost: Counter[str] = Counter()
    entries = seen.ask(how.model, [ways.request(row, how.paraphrase_tokens) for row in rows])
    for row, entry in zip(rows, entries, strict=True):
        made, why = paraphrase(row, entry.text) if entry.status == "ok" else (None, f"{entry.status} answer")
        found.append(made)
        lost.update([why] if why else [])
    return found, lost


def scored_by(seen: Evaluation, metric: str | None) -> Measure:
    """What scores answers: the metric that the verdict is about. Agreement is with what the teacher said of the row as it is."""
    from llm_distill.evals.measures import measures
    from llm_distill.evals.metrics import AGREEMENT, agreement_scores, gold_scores

    plan = seen.run.plan
    teacher = seen.answers.get("teacher", ())
    own = {**measures(plan.metrics, plan.answers.json_schema), **(seen.judged.measures if seen.judged else {})}

    def scores(arm: str, answers: Sequence[Answer]) -> Scores:
        if metric is None or (metric == AGREEMENT and arm == "teacher"):
            return {}
        if metric == AGREEMENT:
            return agreement_scores(answers, teacher, plan.task.kind)
        if metric in own:
            return own[metric](answers)[0]
        return gold_scores(answers, plan.task.kind)[metric]

    return scores
