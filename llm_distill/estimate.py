"""What a recipe would ask and cost, found out without asking: `llm-distill check`."""

from __future__ import annotations

import os
from typing import Any

from llm_distill.limits import cost_usd
from llm_distill.recipe import Plan, known_prices
from llm_distill.records import Prompt
from llm_distill.splits import check_rows, split_held_out

#: Bytes of English a token, about, over today's vocabularies; the real count comes back with each answer.
BYTES_PER_TOKEN = 4.0
#: Rows that are rendered to estimate the length of all of them.
_SAMPLE = 200


def estimate(plan: Plan) -> dict[str, Any]:
    """Rows, requests, and an estimate of tokens and dollars for answers and evaluation. Reads the seeds, asks nobody."""
    prompts, held_out = split_held_out(plan)
    check_rows(plan, prompts, held_out)
    teacher = _requests(plan, prompts)
    if plan.evaluate:
        teacher = {key: teacher[key] + value for key, value in _requests(plan, held_out).items()}
    prices = known_prices(plan.models["teacher"])
    tokens = (teacher["prompt_tokens"], teacher["completion_tokens"])
    return {
        "prompts": len(prompts),
        "held_out": len(held_out),
        "teacher_requests": teacher["requests"],
        "teacher_prompt_tokens": tokens[0],
        "teacher_completion_tokens_at_most": tokens[1],
        "cost_usd_at_most": None if prices is None else round(cost_usd(prices, *tokens), 4),
    }


def _requests(plan: Plan, prompts: list[Prompt]) -> dict[str, int]:
    view = plan.task.teacher_view
    sample = prompts[:: max(1, len(prompts) // _SAMPLE)][:_SAMPLE]
    rendered = [question for prompt in sample for question in view.questions(prompt, plan.task.labels)]
    requests = len(prompts) * max(1, len(view.examples))
    if not rendered:
        return {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    size = sum(len(m.content.encode()) for question in rendered for m in question) / len(rendered)
    return {
        "requests": requests,
        "prompt_tokens": round(requests * size / BYTES_PER_TOKEN),
        "completion_tokens": requests * plan.answers.max_tokens,
    }


def missing_keys(plan: Plan) -> list[str]:
    """Environment variables that the recipe's models name and that are not set."""
    named = {plug.knobs.get("api_key_env") for plug in plan.models.values()}
    return sorted(name for name in named if name and not os.environ.get(name))
