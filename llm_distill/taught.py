"""What the teachers say about rows that a stage has of its own, asked and merged as the recipe's rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_distill.merging import Candidate, merge, read
from llm_distill.records import Answer, Prompt, Request

if TYPE_CHECKING:
    from llm_distill.errand import Errand
    from llm_distill.stages import Run


def taught(run: Run, ask: Errand, prompts: Sequence[Prompt], orders: int = 0) -> list[Answer]:
    """The teachers' answers to rows, through the recipe's view, sampling, ledger and budgets.

    Each row is asked again with its worked examples in so many other orders, and all of its answers are merged: what depends
    on their order averages out (Lu et al. 2022, arXiv 2104.08786). A row whose answer did not come is `failed`, and owed.
    """
    plan, view, sampling = run.plan, run.plan.task.teacher_view, run.plan.answers.sampling
    asked: dict[str, list[Request]] = {role: [] for role in plan.teachers.roles}
    counts = []
    for prompt in prompts:
        shown = [m for order in (None, *range(orders)) for m in view.questions(prompt, plan.task.labels, order)]
        questions = [
            Request(messages, sampling, sample, view.raw)
            for sample in range(plan.answers.samples)
            for messages in shown
        ]
        counts.append(len(questions))
        for role in plan.teachers.of(prompt):
            asked[role] += questions
    entries = {}
    for role, questions in asked.items():
        told = ask(role, questions)
        # As the ledger has them: the errand's own are without reasoning, which logprobs still have.
        whole = run.ledger.read([entry.key for entry in told])
        entries[role] = iter([found or entry for found, entry in zip(whole, told, strict=True)])
    run.make_room()  # what follows is training

    def candidate(role: str) -> Candidate:
        entry, vocabulary = next(entries[role]), getattr(run.model(role), "vocabulary", None)
        separate = plan.answers.reasoning == "auto"
        return read(role, [entry.key], [entry], separate=separate, vocabulary=vocabulary)

    return [
        merge(plan.task, p, [candidate(role) for role in plan.teachers.of(p) for _ in range(count)])
        for p, count in zip(prompts, counts, strict=True)
    ]
