"""What evaluation beyond the comparison would ask and cost, for `llm-distill check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llm_distill.generators import AtMost
from llm_distill.generators.perturb import Ways, chosen, read
from llm_distill.prices import FREE
from llm_distill.recipe import Plan
from llm_distill.recipe_checks import known_prices
from llm_distill.recipe_probes import Side
from llm_distill.records import Message, Prompt
from llm_distill.tasks import View

#: Bytes of English a token, about, over today's vocabularies; the real count comes back with each answer.
BYTES_PER_TOKEN = 4.0
#: Tokens that a perturbation adds to a row, at most about: an injection, or two sentences.
_ADDED = 30
_SAMPLE = 100


def answering(plan: Plan, held_out: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What the held-out rows come to that base, student and students of other runs answer, where `models.student`, which serves
    them all, has a price.
    """
    how, task = plan.evaluate, plan.task
    if how is None or not held_out or "student" not in plan.models or known_prices(plan.models["student"]) == FREE:
        return []
    students = bool(plan.trainer) + len(how.students) + (how.previous is not None)
    views = [task.student_view, *([task.few_shot] if task.few_shot else []), *[task.student_view] * students]
    found = []
    for view in views:
        rendered = [question for row in held_out[:_SAMPLE] for question in view.questions(row, task.labels)]
        questions = len(held_out) * max(1, len(view.examples))
        found.append(AtMost(len(held_out), questions, _tokens(rendered), plan.drawn.max_tokens))
    return [priced(plan, "evaluate", ("student",), most) for most in found]


def perturbing(plan: Plan, held_out: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What robustness comes to: paraphrases, and every arm's answers to every kind, were no row left as it is."""
    how = plan.evaluate.robustness if plan.evaluate else None
    rows = chosen(held_out, how.rows, plan.seed) if how else []
    if how is None or not rows:
        return []
    found = []
    if how.model:
        ways = Ways(plan.seed, read(how.texts), plan.task.labels)
        size = _tokens([ways.request(row, how.paraphrase_tokens).messages for row in rows[:_SAMPLE]])
        most = AtMost(len(rows), len(rows), size, how.paraphrase_tokens)
        found.append(priced(plan, "paraphrase", (how.model,), most))
    for role, view, some in _sides(plan, how.arms, rows):
        times = len(how.kinds) * (1 if view is not plan.task.teacher_view else plan.answers.samples)
        found.append(priced(plan, "robustness", (role,), _again(plan, view, some, times, _ADDED)))
    return found


def passing(plan: Plan, held_out: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What the several answers a row of pass@k come to."""
    how = plan.evaluate.pass_at if plan.evaluate else None
    if how is None or not held_out:
        return []
    asked = _sides(plan, how.arms, held_out)
    return [priced(plan, "pass_at", (role,), _again(plan, view, some, how.samples)) for role, view, some in asked]


def _sides(plan: Plan, sides: Sequence[Side], rows: Sequence[Prompt]) -> Iterator[tuple[str, View, Sequence[Prompt]]]:
    """Who is asked again for each of these sides: the role, its view, and its rows."""
    for side in sides if "student" in plan.models else ():
        view = plan.task.few_shot if side == "base" and plan.task.few_shot else plan.task.student_view
        if side == "base" or (side == "student" and plan.trainer):
            yield "student", view, rows
    if "teacher" in sides:
        for role in plan.teachers.roles:
            yield role, plan.task.teacher_view, [row for row in rows if role in plan.teachers.of(row)]


def _again(plan: Plan, view: View, rows: Sequence[Prompt], times: int, added: int = 0) -> AtMost:
    """Held-out rows asked so many times, in prompts that are longer by so many tokens."""
    questions = len(rows) * times * max(1, len(view.examples))
    rendered = [question for row in rows[:_SAMPLE] for question in view.questions(row, plan.task.labels)]
    return AtMost(len(rows), questions, _tokens(rendered) + added, plan.drawn.max_tokens)


def _tokens(questions: Sequence[Sequence[Message]]) -> int:
    size = sum(len(m.content.encode()) for question in questions for m in question)
    return round(size / max(1, len(questions)) / BYTES_PER_TOKEN)


def priced(plan: Plan, name: str, roles: Sequence[str], most: AtMost) -> dict[str, Any]:
    """What questions to each of these roles come to."""
    costs = []
    for role in roles:
        prices = known_prices(plan.models[role])
        batch = getattr(plan.models[role].function, "batches", False)
        each = None if prices is None else prices.at_most_usd(most.prompt_tokens, most.max_tokens, batch=batch)
        costs.append(None if each is None else most.questions * each)
    return {
        "plug": name,
        "roles": list(roles),
        "requests": most.questions,
        "prompt_tokens": most.questions * most.prompt_tokens,
        "completion_tokens_at_most": most.questions * most.max_tokens,
        "cost_usd_at_most": None if None in costs else sum(cost or 0.0 for cost in costs),
    }
