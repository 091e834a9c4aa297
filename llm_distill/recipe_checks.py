"""What no single key of a recipe can know: which of them fit together. Each message states the repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_distill import recipe_general, recipe_judge, recipe_probes
from llm_distill.errors import UserError, did_you_mean
from llm_distill.plugs import Plug
from llm_distill.prices import FREE, Prices, listing
from llm_distill.recipe_evaluation import ARMS
from llm_distill.scorers import Filter, Pick, check_needs
from llm_distill.teachers import check_asking
from llm_distill.terms import judge, named_sources
from llm_distill.trainers import ON_COURSE, calibration_evidence, logit_kd_checks, on_policy_checks, sft_checks

if TYPE_CHECKING:
    from llm_distill.recipe import Plan


def known_prices(model: Plug) -> Prices | None:
    """A model's prices: the recipe's, the table's, or nothing to pay for a model that runs here; None when unknown."""
    if stated := model.knobs.get("prices_usd"):
        return stated  # type: ignore[no-any-return]
    found = listing(model.knobs.get("base_url"), model.knobs.get("model"))
    return found.prices if found else getattr(model.function, "prices", None)


def price_source(model: Plug) -> str | None:
    """Who says what a model costs: the recipe, or the price table in its version; None where nobody does."""
    if model.knobs.get("prices_usd"):
        return "recipe"
    found = listing(model.knobs.get("base_url"), model.knobs.get("model"))
    return found.source if found else None


def open_terms(plan: Plan) -> list[str]:
    """What the terms of the recipe's models and prompts leave open; UserError when they forbid what `policy` states."""
    if plan.trainer and plan.policy and not plan.policy.train:
        raise UserError("policy.train is false, and the recipe has `train`; remove one of them.")
    return judge(plan.policy, plan.terms, named_sources(plan.models, plan.generators, plan.prompt_terms))


def check_across(plan: Plan) -> None:
    """UserError for keys that do not fit together."""
    recipe_judge.check_recipe(plan)
    asked_in_training = plan.trainer.roles if plan.trainer else ()
    asked_in_evaluation = plan.evaluate.roles if plan.evaluate else ()
    asking = {*plan.teachers.roles, *plan.writers, *plan.judges, *asked_in_training, *asked_in_evaluation}
    for role in sorted(asking & plan.models.keys()):
        teacher = plan.models[role]
        if any(b.usd is not None for b in plan.answers.budgets) and known_prices(teacher) is None:
            raise UserError(
                f"answers.budget_usd: the price of models.{role} ({teacher.spec.name}) is unknown: stated neither here nor "
                "in prices.yaml, so dollars cannot be bounded; add `prices_usd: {prompt: ..., completion: ...}` (dollars "
                "per million tokens) to it, or use answers.budget_tokens."
            )
    _check_student(plan)
    if plan.evaluate and plan.held_out is None:
        raise UserError(
            "evaluate: there is no held_out to evaluate on; add `held_out: {file: rows.jsonl}` or `{share: 0.1}`."
        )
    for view, role in (*((plan.task.teacher, role) for role in plan.teachers.roles), (plan.task.few_shot, "student")):
        model = plan.models.get(role)
        if view and view.raw and model and model.spec.name in ("openai_api", "openai_batch"):
            raise UserError(f"task: `raw` text cannot be sent to models.{role}, a chat endpoint; remove `raw`.")
    for role, model in plan.models.items():
        if model.knobs.get("token_ids") and plan.answers.top_logprobs is None:
            raise UserError(
                f"{model.spec.where}.token_ids: ids come with logprobs, and answers.top_logprobs is not set; "
                "add `top_logprobs: 20` to answers, or remove `token_ids`."
            )
        if model.knobs.get("token_ids") and not model.knobs.get("tokenizer", True) and plan.task.kind == "classify":
            raise UserError(
                f"{model.spec.where}.token_ids: the probabilities of labels are read from the bytes of tokens, and ids "
                f"have none; add `tokenizer:` with the folder, .gguf or hub id of the model that {role} is."
            )
    check_asking(plan)
    _check_attach(plan)
    _check_rivals(plan)
    _check_speed(plan)
    recipe_general.check_recipe(plan)
    _check_ship(plan)
    recipe_probes.check_recipe(plan)
    sft_checks.check_recipe(plan)
    logit_kd_checks.check_recipe(plan)
    on_policy_checks.check_recipe(plan)
    calibration_evidence.check_recipe(plan)
    open_terms(plan)
    scorers: list[Filter | Pick] = [*plan.filters, *([plan.pick] if plan.pick else [])]
    logprobs = plan.answers.top_logprobs is not None or plan.answers.attach is not None
    several = plan.questions_a_row > 1
    check_needs(scorers, plan.task.kind, logprobs=logprobs, several=several)


def _check_student(plan: Plan) -> None:
    """UserError for a student that cannot be trained."""
    student = plan.models.get("student")
    if plan.trainer is None:
        return
    if student is None:
        raise UserError("train: there is no models.student; add `student: {transformers: {model: ...}}`.")
    if "adapter" not in student.knobs:
        raise UserError(
            f"train: models.student is {student.spec.name}, whose weights cannot be trained here; "
            "use `student: {transformers: {model: ...}}`."
        )
    if student.knobs.get("adapter"):
        raise UserError(
            f"train: {student.spec.where}.adapter is {student.knobs['adapter']}, and training starts from whole weights; remove "
            "`adapter`, or name as `model` a folder in which it is merged (`llm-distill export RUN --to merged`)."
        )
    if getattr(plan.trainer.knobs.get("hyper"), "validation_share", 0) and plan.trainer.spec.name not in ON_COURSE:
        raise UserError(
            f"{plan.trainer.spec.where}.validation_share: {plan.trainer.spec.name} sets no rows aside; remove it, or use "
            f"{', '.join(ON_COURSE[:-1])} or {ON_COURSE[-1]}."
        )


def _check_attach(plan: Plan) -> None:
    attach = plan.answers.attach
    if attach is None:
        return
    where = "answers.attach"
    if plan.answers.top_logprobs is not None:
        raise UserError(f"{where}: answers.top_logprobs asks the teachers for their own; remove one of them.")
    if attach.model not in plan.models:
        raise UserError(
            f"{where}.model: no model {attach.model!r} in `models`.{did_you_mean(attach.model, plan.models)}"
        )
    model = plan.models[attach.model]
    if model.spec.name not in ("transformers", "vllm", "openai_api"):
        raise UserError(
            f"{where}.model: models.{attach.model} is {model.spec.name}; an answer is read by transformers, vllm, or "
            "openai_api with the base_url of a vLLM server."
        )
    if model.spec.name == "openai_api" and not model.knobs.get("tokenizer"):
        raise UserError(
            f"{model.spec.where}.tokenizer: {where} sends token ids, so the tokenizer must be at hand; write its folder, .gguf "
            "or hub id."
        )
    if model.knobs.get("prices_usd"):
        raise UserError(
            f"{model.spec.where}.prices_usd: {where} reads with a model of one's own, outside of any budget."
        )


def _check_speed(plan: Plan) -> None:
    how = plan.evaluate and plan.evaluate.speed
    for arm in how.arms if how else ():
        if arm not in (*ARMS, "previous") and not arm.startswith("student_of_"):
            known = [*ARMS, "previous", "student_of_<recipe>"]
            raise UserError(f"evaluate.speed.arms: there is no arm {arm!r}.{did_you_mean(arm, known)}")


def _check_rivals(plan: Plan) -> None:
    how = plan.evaluate
    if how is None or not (how.students or how.previous):
        return
    key = "students" if how.students else "previous"
    student = plan.models.get("student")
    if student is None or "adapter" not in student.knobs:
        found = "there is no models.student" if student is None else f"models.student is {student.spec.name}"
        raise UserError(
            f"evaluate.{key}: other students are served as models.student says, and {found}; add `student: {{transformers: "
            "{model: ...}}`, or a `vllm` one."
        )
    if twice := [name for name in how.students if how.students.count(name) > 1]:
        raise UserError(f"evaluate.students: {twice[0]!r} is named twice; remove one.")


def _check_ship(plan: Plan) -> None:
    ship = plan.ship
    if plan.probe and plan.probe.file is None and plan.held_out is None:
        raise UserError(
            "probe: there are no held-out rows to ask; add `held_out: {share: 0.1}`, or name rows: `probe: {file: rows.jsonl}`."
        )
    if ship is None:
        return
    if not plan.trainer or not plan.evaluate:
        missing = "evaluate" if plan.trainer else "train"
        raise UserError(
            f"ship: there is no student to judge, for the recipe has no `{missing}`; add it, or remove `ship`."
        )
    if ship.max_slice_drop is not None and not plan.evaluate.slices:
        raise UserError(
            "ship.max_slice_drop: there are no slices to compare; name tags in evaluate.slices, e.g. `slices: [product]`."
        )
    if ship.min_gain_on_previous is not None and plan.evaluate.previous is None:
        raise UserError(
            "ship.min_gain_on_previous: there is no previous student to compare with; add `previous: shipped` to evaluate, or "
            "name one there."
        )
    if ship.min_win_rate is not None and "teacher" not in (plan.evaluate.judge.pairwise if plan.evaluate.judge else ()):
        raise UserError(
            "ship.min_win_rate: no judge compares the student with its teacher; add `judge: {pairwise: [teacher]}` to evaluate."
        )
    held_against = [key for key in ("min_kept_share", "max_slice_drop") if getattr(ship, key) is not None]
    if held_against and plan.evaluate.metric == "agreement_with_teacher":
        raise UserError(
            f"ship.{held_against[0]}: it holds the student's score against its teacher's, and evaluate.metric is "
            f"agreement_with_teacher, which no teacher has; name another metric, or remove {held_against[0]}."
        )
    free = known_prices(plan.models["student"]) in (None, FREE)
    hourly = ship.machine_usd_per_hour
    if hourly is None and plan.evaluate.speed:
        hourly = plan.evaluate.speed.machine_usd_per_hour
    if ship.max_usd_per_1000 is not None and free and hourly is None:
        raise UserError(
            "ship.max_usd_per_1000: models.student runs on a machine of yours, and nothing says what that costs; add "
            "`machine_usd_per_hour` to ship (0 if it costs nothing)."
        )
