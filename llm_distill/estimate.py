"""What a recipe would ask and cost, found out without asking: `llm-distill check`."""

from __future__ import annotations

import os
from math import ceil
from typing import Any

from llm_distill.recipe import Plan
from llm_distill.recipe_checks import known_prices, open_terms, price_source
from llm_distill.records import Prompt
from llm_distill.splits import check_rows, split_held_out

#: Bytes of English a token, about, over today's vocabularies; the real count comes back with each answer.
BYTES_PER_TOKEN = 4.0
#: Rows that are rendered to estimate the length of all of them.
_SAMPLE = 200
#: What is said about an answer that does not fit its schema, in tokens, at most about.
_REPAIR_TOKENS = 120


def estimate(plan: Plan) -> dict[str, Any]:
    """Rows, requests, and an estimate of tokens and dollars for answers and evaluation. Reads the seeds, asks nobody.

    With a schema, at most means that every question is asked a second time.
    """
    prompts, held_out = split_held_out(plan)
    check_rows(plan, prompts, held_out)
    rows = [*prompts, *(held_out if plan.evaluate else ())]
    who = [plan.teachers.of(prompt) for prompt in rows]
    teachers = {
        role: _asked(plan, role, [p for p, roles in zip(rows, who, strict=True) if role in roles])
        for role in plan.teachers.roles
    }
    costs = [teacher["cost_usd_at_most"] for teacher in teachers.values()]
    return {
        "prompts": len(prompts),
        "held_out": len(held_out),
        "teachers": teachers,
        "teacher_requests": sum(t["requests"] for t in teachers.values()),
        "teacher_prompt_tokens": sum(t["prompt_tokens"] for t in teachers.values()),
        "teacher_completion_tokens_at_most": sum(t["completion_tokens_at_most"] for t in teachers.values()),
        "cost_usd_at_most": None if None in costs else round(sum(costs), 4),
        "open_terms": open_terms(plan),
    }


def _asked(plan: Plan, role: str, prompts: list[Prompt]) -> dict[str, Any]:
    """What one teacher is asked for these rows."""
    view, answers, prices = plan.task.teacher_view, plan.answers, known_prices(plan.models[role])
    sample = prompts[:: max(1, len(prompts) // _SAMPLE)][:_SAMPLE]
    rendered = [question for prompt in sample for question in view.questions(prompt, plan.task.labels)]
    requests = len(prompts) * answers.samples * max(1, len(view.examples))
    size = sum(len(m.content.encode()) for question in rendered for m in question) / max(1, len(rendered))
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
