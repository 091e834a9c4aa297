"""Bias after training: what the filters measure of the teacher's answers, measured of student, base and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_distill.evals.flips import Of
from llm_distill.generators.lexicon_file import read
from llm_distill.perturbing import base_of, scored_by
from llm_distill.recipe_probes import Bias
from llm_distill.scorers import Context

if TYPE_CHECKING:
    from llm_distill.evaluating import Evaluation


def bias_after(seen: Evaluation) -> dict[str, Any]:
    """report.json's `bias`, see `evals.bias`: from the answers that are there, nobody is asked."""
    from llm_distill.evals.bias import How, bias
    from llm_distill.scorers.phrases import refusal

    plan = seen.run.plan
    assert plan.evaluate is not None
    asked, task, metric = plan.evaluate.bias or Bias(), plan.task, seen.numbers["metric"]
    usual: tuple[Of, ...] = ("label",) if task.kind == "classify" else ("sentiment", "length")
    lexicon = read(asked.groups).attributes
    how = How(
        asked.of or usual,
        asked.by,
        asked.margin,
        {name: lexicon[name] for name in asked.attributes or lexicon},
        plan.seed,
        min(plan.evaluate.resamples, 2_000),
    )
    measure = scored_by(seen, metric)
    scores = {arm: measure(arm, answers) for arm, answers in seen.answers.items()}
    declined = {
        arm: [float(mark) for mark in refusal(answers, Context(task)).values]
        for arm, answers in seen.answers.items()
        if "refusal" in how.of
    }
    base = base_of(seen)
    against = [base, "teacher"] if base else ["teacher"]
    return bias(seen.answers, against, task.kind, task.labels, scores, metric, how, declined)


def wanted(seen: Evaluation) -> bool:
    """Where there is a student, and the recipe asks or held-out rows are counterfactual groups: it costs nothing."""
    asked = seen.run.plan.evaluate
    grouped = any("group" in prompt.tags for prompt in seen.prompts)
    return "student" in seen.answers and (grouped or (asked is not None and asked.bias is not None))
