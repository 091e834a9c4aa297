"""What a recipe would ask and cost, found out without asking: `llm-distill check`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

from llm_distill.prices import Prices
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
    models = {
        role: plug() for role, plug in plan.models.items()
    }  # which refuses what no type can: an address, a pattern
    plan.teachers.check_models({role: model.identity for role, model in models.items()})
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
        "recipe": plan.name,
        "digest": plan.digest,
        "prompts": len(prompts),
        "held_out": len(held_out),
        "teachers": teachers,
        "teacher_requests": sum(t["requests"] for t in teachers.values()),
        "teacher_prompt_tokens": sum(t["prompt_tokens"] for t in teachers.values()),
        "teacher_completion_tokens_at_most": sum(t["completion_tokens_at_most"] for t in teachers.values()),
        "cost_usd_at_most": None if None in costs else round(sum(costs), 4),
        "open_terms": open_terms(plan),
        "counting": sorted({models[role].count.how for role in plan.teachers.roles}),
        "missing_keys": _missing_keys(plan),
        "prices": sorted({source for role in plan.teachers.roles if (source := price_source(plan.models[role]))}),
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
    return {
        "model": plan.models[role].spec.name,
        "requests": requests,
        "prompt_tokens": given,
        "completion_tokens_at_most": made,
        "cost_usd_at_most": None if prices is None else _cost_usd(prices, requests, given, made),
    }


def _cost_usd(prices: Prices, requests: int, given: int, made: int) -> float:
    """Dollars for requests of the average length: a price may depend on the length of each."""
    each = max(1, requests)
    return requests * prices.at_most_usd(ceil(given / each), ceil(made / each))


def described(plan: Plan, found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `check`."""
    cost = found["cost_usd_at_most"]
    yield f"{plan.name}: the recipe is sound."
    yield f"  prompts    {found['prompts']:,} to ask, {found['held_out']:,} held out"
    if len(found["teachers"]) > 1:
        yield f"  teachers   {plan.teachers.described}"
    for role, asked in found["teachers"].items():
        yield f"  {role:<10} {asked['model']}, {asked['requests']:,} requests"
    given, made = found["teacher_prompt_tokens"], found["teacher_completion_tokens_at_most"]
    yield f"  tokens     about {given:,} of prompt, at most {made:,} of completion"
    source = f", by {'; '.join(found['prices'])}" if found["prices"] else ""
    dollars = "" if cost is None else f"${cost:,.2f}" if cost >= 0.01 or not cost else f"${cost:.2g}"
    yield f"  cost       {f'at most about {dollars}{source}' if dollars else 'unknown: no prices_usd'}"
    yield f"  budgets    {'; '.join(found['counting'])}"
    yield f"  filters    {', '.join(f.name for f in plan.filters) or 'none'}"
    yield f"  training   {plan.trainer.spec.name if plan.trainer else 'none: this recipe makes data'}"
    yield f"  evaluation {'yes' if plan.evaluate else 'none'}"
    for note in found["open_terms"]:
        yield f"  note       {note}"
    for name in found["missing_keys"]:
        yield f"  note       the environment variable {name} is not set; `run` will need it"


def _missing_keys(plan: Plan) -> list[str]:
    """Environment variables that the recipe's models name and that are not set."""
    named = {plug.knobs.get("api_key_env") for plug in plan.models.values()}
    return sorted(name for name in named if name and not os.environ.get(name))
