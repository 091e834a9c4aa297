"""What is asked and what is held out, and the mistakes that would spoil the comparison between them."""

from __future__ import annotations

from collections.abc import Sequence

from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels, check_slices
from llm_distill.recipe import Plan
from llm_distill.records import Prompt, content_id
from llm_distill.seeds import numbered, read_rows


def split_held_out(plan: Plan) -> tuple[list[Prompt], list[Prompt]]:
    """What is to be asked, and the held-out rows: from their file, or those whose gist's hash falls within the share."""
    prompts = list(numbered(prompt for generator in plan.generators for prompt in generator()))
    if plan.held_out is None:
        return prompts, []
    if plan.held_out.file:
        return prompts, list(numbered(read_rows(plan.held_out.file)))
    share = plan.held_out.share or 0.0
    sides = {p.row_id: int(content_id(p.gist)[:8], 16) / 2**32 < share for p in prompts}
    return [p for p in prompts if not sides[p.row_id]], [p for p in prompts if sides[p.row_id]]


def check_rows(plan: Plan, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """UserError for rows that nothing can be asked for, that their templates cannot show, or that spoil the evaluation."""
    if not prompts:
        raise UserError("prompts: no rows are left to ask; raise a `limit`, or lower the held-out share.")
    plan.teachers.check_rows([*prompts, *(held_out if plan.evaluate else ())])
    known = {p.gist for p in prompts}
    _disjoint("prompts", held_out, known)
    known |= {p.gist for p in held_out}
    if plan.task.kind == "classify":
        check_labels(held_out, plan.task.labels)
    if plan.evaluate and held_out:
        check_slices(held_out, plan.evaluate.slices)
    for view in (plan.task.student_view, plan.task.teacher_view, plan.task.few_shot):
        for file in view.examples if view else ():
            examples = list(read_rows(file))
            if held_out:
                _disjoint(f"worked examples in {file}", held_out, {e.gist for e in examples})
            if plan.task.kind == "classify":
                check_labels(examples, plan.task.labels)
        if view:
            for prompt in {
                frozenset(p.tags): p for p in (*prompts, *held_out)
            }.values():  # a tag may be missing in some
                view.questions(prompt, plan.task.labels)


def _disjoint(what: str, held_out: Sequence[Prompt], gists: set[str]) -> None:
    both = [p for p in held_out if p.gist in gists]
    if both:
        raise UserError(
            f"held_out: {len(both)} of {len(held_out)} rows are also {what}, the first: {both[0].text[:80]!r}; "
            "remove them from one side."
        )
