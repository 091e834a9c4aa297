"""Whether a recipe and its rows have what `logit_kd` learns from, found out before anything is asked. Each message states the
repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels
from llm_distill.trainers import WITHOUT_LOGPROBS

if TYPE_CHECKING:
    from llm_distill.recipe import Plan
    from llm_distill.records import Prompt


def check_recipe(plan: Plan) -> None:
    """UserError where no logprobs are asked for, a knob would have nothing to do, or labels are to be learnt that the task does
    not have.
    """
    knobs = plan.trained_by("logit_kd")
    if knobs is None:
        return
    if plan.answers.top_logprobs is None and plan.answers.attach is None:
        raise UserError(f"train.logit_kd: answers are asked for without logprobs; {WITHOUT_LOGPROBS}")
    said = plan.trainer.spec.knobs if plan.trainer else {}
    for name, kind in (("beta", "jsd"), ("draws", "sampled")):
        if name in said and knobs["divergence"] != kind:
            raise UserError(
                f"train.logit_kd.{name}: it is a knob of `divergence: {kind}`, and divergence is {knobs['divergence']}; remove "
                f"`{name}`, or set that."
            )
    if "most_undefined" in said and plan.task.kind == "classify":
        raise UserError(
            "train.logit_kd.most_undefined: it bounds what of a token's distribution may be lost between two tokenizers, and a "
            "classify task teaches labels, of which nothing is; remove it."
        )
    if knobs["hard_labels"] == "gold" and plan.task.kind != "classify":
        raise UserError(
            f"train.logit_kd.hard_labels: gold labels are of a classify task, and this one is {plan.task.kind}; remove "
            "`hard_labels`."
        )


def check_taught(plan: Plan, prompts: Sequence[Prompt]) -> None:
    """UserError for a row whose gold label is to be learnt and is none of the task's, or where no row has one."""
    knobs = plan.trained_by("logit_kd")
    if knobs is None or knobs["hard_labels"] != "gold":
        return
    check_labels(prompts, plan.task.labels)
    if not any(p.label is not None for p in prompts):
        raise UserError(
            "train.logit_kd.hard_labels: `gold` learns the rows' own labels, and no row has one; use `hard_labels: teacher`, or "
            "seeds with a column `label`."
        )
