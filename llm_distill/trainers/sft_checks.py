"""Which knobs of `sft` fit a recipe and its rows, found out before anything is asked. Each message states the repair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels
from llm_distill.trainers.hard_labels import NO_GOLD

if TYPE_CHECKING:
    from llm_distill.recipe import Plan
    from llm_distill.records import Prompt


def check_recipe(plan: Plan) -> None:
    """UserError for knobs that make no sense beside the recipe's other keys."""
    knobs = plan.trained_by("sft")
    if knobs is None:
        return
    if knobs["turns"] == "all" and plan.task.student_view.template:
        raise UserError(
            "train.sft.turns: `all` learns the earlier answers of rows that are conversations, and this task shows its rows "
            f"through {plan.task.student_view.template.name}, whose turns nobody answered; use `turns: last`, or `task: "
            "generate` without a template."
        )
    if knobs["reasoning"] == "off":
        return
    if plan.answers.reasoning == "none":
        raise UserError(
            "train.sft.reasoning: `on` learns the reasoning that answers are parted from, and `answers: {reasoning: none}` parts "
            "none; remove one of them."
        )
    if knobs["gold"]:
        raise UserError(
            "train.sft.gold: gold texts come without reasoning, so a student could not learn both; use `reasoning: off`, or "
            "`gold: 0` with a filter for what the teacher gets wrong."
        )
    if knobs["turns"] == "all":
        raise UserError(
            "train.sft.turns: earlier turns come without reasoning, so a student would learn to write it and to leave it out; "
            "use `turns: last`, or `reasoning: off`."
        )


def check_weights(plan: Plan) -> None:
    """UserError where the student's chat template cannot show reasoning that is to be learnt; only its tokenizer is loaded."""
    from llm_distill.trainers.on_policy_checks import tokenizer
    from llm_distill.trainers.reasoned import form_of

    knobs = plan.trained_by("sft")
    if knobs is not None and knobs["reasoning"] == "on":
        form_of(tokenizer(plan.models["student"].knobs))


def check_taught(plan: Plan, prompts: Sequence[Prompt]) -> None:
    """UserError for knobs that ask of the rows what none of them has."""
    knobs = plan.trained_by("sft")
    if knobs is None:
        return
    if knobs["turns"] == "all" and not any(m.role == "assistant" for p in prompts for m in p.messages):
        raise UserError(
            "train.sft.turns: `all` learns the earlier answers of rows that are conversations, and no row has one; use "
            "`turns: last`, or seeds with `messages` in which the assistant speaks."
        )
    if knobs["gold"]:
        classify = plan.task.kind == "classify"
        if not any(p.label if classify else p.reference for p in prompts):
            raise UserError(
                f"train.sft.gold: found {knobs['gold']:g}, and none of {len(prompts)} rows has gold: {NO_GOLD}"
            )
        if classify:  # they are learnt as they are written
            check_labels(prompts, plan.task.labels)
