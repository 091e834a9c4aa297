"""What a recipe would ask and cost, found out without asking: `llm-distill check`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from math import ceil
from typing import Any

from llm_distill import recipe_general, trainers
from llm_distill.estimate_probes import BYTES_PER_TOKEN, answering, passing, perturbing, priced
from llm_distill.generators import AtMost
from llm_distill.kinship import kindred_judges
from llm_distill.plugs import Plug, find
from llm_distill.prices import FREE
from llm_distill.probe_rows import frozen, greedy
from llm_distill.recipe import Plan
from llm_distill.recipe_checks import known_prices, open_terms, price_source
from llm_distill.recipe_judge import asked_of_judge
from llm_distill.records import Prompt
from llm_distill.scorers import ASKS
from llm_distill.seeds import read_rows
from llm_distill.sides import Earlier
from llm_distill.splits import Rows, check_rows, gather
from llm_distill.trainers.calibration_evidence import CONTENT_FREE, emptied

#: Rows that are rendered to estimate the length of all of them.
_SAMPLE = 200
#: What is counted of a plug's own questions.
_COUNTED = ("requests", "prompt_tokens", "completion_tokens_at_most", "cost_usd_at_most")
#: What is said about an answer that does not fit its schema, in tokens, at most about.
_REPAIR_TOKENS = 120


def estimate(plan: Plan, earlier: Earlier | None = None, forgotten: Collection[str] = ()) -> dict[str, Any]:
    """Rows, requests, and an estimate of tokens and dollars for answers and evaluation. Reads the seeds, asks nobody.

    With a schema, at most means that every question is asked a second time.
    """
    found = gather(plan, earlier=earlier, forgotten=forgotten)
    prompts, held_out = found.asked, found.held_out
    check_rows(plan, prompts, held_out, more=bool(found.at_most) or earlier is not None)
    rows = [*prompts, *(held_out if plan.evaluate else ())]
    who = [plan.teachers.of(prompt) for prompt in rows]
    said = [most for _, most in found.at_most if most]
    made = sum(most.rows for most in said)
    kept = min(len(prompts) + made, plan.mix.rows or len(prompts) + made)
    # Rows that are yet to be written count like those here; where there are none, as what they may be at most.
    unseen, each = kept - len(prompts), max((most.max_tokens for most in said), default=0)
    teachers = {}
    for role in plan.teachers.roles:
        own = [p for p, roles in zip(rows, who, strict=True) if role in roles]
        share = len(own) / len(rows) if rows else 1.0
        teachers[role] = _asked(plan, role, own, round(unseen * share), each)
    others = _writing(plan, found) + _judging(plan, kept) + _training(plan, kept) + _calibrating(plan, prompts)
    others += answering(plan, held_out) + perturbing(plan, held_out) + passing(plan, held_out)
    others += _probing(plan, held_out, forgotten)
    others += _clocked(plan, held_out)
    others += recipe_general.asking(plan, known_prices(plan.models["student"]) if "student" in plan.models else None)
    others += _examining(plan, len(held_out))
    costs = [asked["cost_usd_at_most"] for asked in (*teachers.values(), *others)]
    return {
        "prompts": len(prompts),
        "prompts_to_write_at_most": made,
        "held_out": len(held_out),
        "set_aside": found.aside,
        "teachers": teachers,
        "others": others,
        "teacher_requests": sum(t["requests"] for t in teachers.values()),
        "teacher_prompt_tokens": sum(t["prompt_tokens"] for t in teachers.values()),
        "teacher_completion_tokens_at_most": sum(t["completion_tokens_at_most"] for t in teachers.values()),
        "cost_usd_at_most": None if None in costs else round(sum(costs), 4),
        "open_terms": open_terms(plan),
        "notes": kindred_judges(plan),
    }


def _writing(plan: Plan, found: Rows) -> list[dict[str, Any]]:
    """What the generators that ask come to."""
    return [_errand(plan, plug, most) for plug, most in found.at_most]


def _judging(plan: Plan, rows: int) -> list[dict[str, Any]]:
    """What the scorers that ask come to, were no row dropped before them; of others that have a model it is not known."""
    found = []
    for plug in (f.plug for f in plan.filters if f.plug.roles):
        if plug.spec.name in ASKS:
            most = find("scorer", plug.spec.name, ASKS, plug.spec.where)(rows, **plug.knobs)
            found.append(_errand(plan, plug, most))
        elif any(known_prices(plan.models[role]) != FREE for role in plug.roles):
            found.append(_errand(plan, plug, None))
    return found


def _training(plan: Plan, rows: int) -> list[dict[str, Any]]:
    """What the trainer's own questions come to."""
    trainer = plan.trainer
    if trainer is None or trainer.spec.name not in trainers.ASKS:
        return []
    most = find("trainer", trainer.spec.name, trainers.ASKS, trainer.spec.where)(rows, **trainer.knobs)
    return [] if most is None else [_errand(plan, trainer, most)]


def _examining(plan: Plan, rows: int) -> list[dict[str, Any]]:
    """What the judge of the evaluation is asked."""
    judge, most = plan.evaluate.judge if plan.evaluate else None, asked_of_judge(plan, rows)
    return [priced(plan, "judge", (judge.model,), most)] if judge and most else []


def _calibrating(plan: Plan, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What the teachers are asked before the student learns their probabilities: about labelled rows, about rows without
    content, and about the rows once more in each order of worked examples.
    """
    how = plan.calibrating
    if how is None or not how.asks or plan.task.kind != "classify" or not prompts:
        return []
    rows = list(read_rows(how.calibrate_on)) if how.calibrate_on else []
    rows = rows * (1 + how.orders) + list(prompts) * how.orders
    found = []
    for role in plan.teachers.roles:
        own = [prompt for prompt in rows if role in plan.teachers.of(prompt)]
        own += [emptied(prompts[0], text) for text in CONTENT_FREE if how.calibration in ("auto", "contextual")]
        asked = _asked(plan, role, own, 0, 0)
        found.append({"plug": "calibration", "roles": [role], **{key: asked[key] for key in _COUNTED}})
    return found


def _probing(plan: Plan, held_out: Sequence[Prompt], forgotten: Collection[str]) -> list[dict[str, Any]]:
    """What the frozen rows come to; of held-out rows that are yet to be written, nothing is known."""
    if plan.probe is None or not (plan.probe.file or held_out):
        return []
    rows, plain, found = frozen(plan, held_out, forgotten), greedy(plan), []
    for role in plan.teachers.roles:
        asked = _asked(plain, role, [prompt for prompt in rows if role in plan.teachers.of(prompt)], 0, 0)
        found.append({"plug": "probe", "roles": [role], **{key: asked[key] for key in _COUNTED}})
    return found


def _clocked(plan: Plan, held_out: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What the measurement of speed asks anew, by role."""
    how = plan.evaluate.speed if plan.evaluate else None
    roles = {"teacher": plan.teachers.roles} if len(plan.teachers.roles) == 1 else {}
    found: dict[str, dict[str, Any]] = {}
    for arm in how.arms if how and held_out else ():
        for role in roles.get(arm, () if arm == "teacher" else ("student",)):
            plug = plan.models.get(role)
            if plug is None or getattr(plug.function, "batches", False):
                continue
            assert how is not None
            requests = how.most(int(plug.knobs.get("concurrency") or how.most_concurrency))
            asked = _asked(plan, role, list(held_out), 0, 0)
            share = requests / max(1, asked["requests"])
            scaled = {key: None if asked[key] is None else asked[key] * share for key in _COUNTED}
            new = {key: of if of is None or key == "cost_usd_at_most" else round(of) for key, of in scaled.items()}
            before = found.get(role, {"plug": "speed", "roles": [role], **dict.fromkeys(_COUNTED, 0)})
            found[role] = before | {
                key: None if of is None or before[key] is None else before[key] + of for key, of in new.items()
            }
    return list(found.values())


def _errand(plan: Plan, plug: Plug, most: AtMost | None) -> dict[str, Any]:
    """What a plug's own questions come to; unknown, and so unbounded, where it does not say."""
    if most is None:
        unknown = dict.fromkeys(_COUNTED)
        return {"plug": plug.spec.name, "roles": list(plug.roles), **unknown}
    return priced(plan, plug.spec.name, plug.roles, most)


def _asked(plan: Plan, role: str, prompts: list[Prompt], unseen: int, unseen_tokens: int) -> dict[str, Any]:
    """What one teacher is asked for these rows, and for others of which nothing is known but their number and bound."""
    view, answers, prices = plan.task.teacher_view, plan.answers, known_prices(plan.models[role])
    sample = prompts[:: max(1, len(prompts) // _SAMPLE)][:_SAMPLE]
    rendered = [question for prompt in sample for question in view.questions(prompt, plan.task.labels)]
    requests = (len(prompts) + unseen) * answers.samples * max(1, len(view.examples))
    size = sum(len(m.content.encode()) for question in rendered for m in question) / max(1, len(rendered))
    size = size if rendered else unseen_tokens * BYTES_PER_TOKEN
    size += len((answers.json_schema or "").encode())
    given, made = round(requests * size / BYTES_PER_TOKEN), requests * answers.max_tokens
    if answers.json_schema:  # the second question repeats the first, with the answer and what is wrong with it
        given, made = 2 * given + requests * (answers.max_tokens + _REPAIR_TOKENS), 2 * made
    each = ceil(given / max(1, requests)), ceil(made / max(1, requests))  # a price may depend on a request's length
    batch = getattr(plan.models[role].function, "batches", False)
    return {
        "model": plan.models[role].spec.name,
        "prices": price_source(plan.models[role]),
        "requests": requests,
        "prompt_tokens": given,
        "completion_tokens_at_most": made,
        "cost_usd_at_most": None if prices is None else requests * prices.at_most_usd(*each, batch=batch),
    }


def missing_keys(plan: Plan) -> list[str]:
    """Environment variables that the recipe's models name and that are not set."""
    named = {plug.knobs.get("api_key_env") for plug in plan.models.values()}
    return sorted(name for name in named if name and not os.environ.get(name))
