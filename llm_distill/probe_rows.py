"""Which rows a probe asks, and how; found out without asking."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.recipe import Plan
from llm_distill.records import Prompt
from llm_distill.seeds import numbered, read_rows
from llm_distill.sets.novelty import fingerprint


def frozen(plan: Plan, held_out: Sequence[Prompt], forgotten: Collection[str] = ()) -> list[Prompt]:
    """The rows that are asked each time: a file's, less those with a hash among `forgotten`; or those of the held-out rows with
    the least ids, which are hashes, so most of them stay the same where rows are added.
    """
    assert plan.probe is not None
    if plan.probe.file is not None:
        rows = [prompt for prompt in numbered(read_rows(plan.probe.file)) if fingerprint(prompt) not in forgotten]
        if not rows:
            raise UserError(
                f"probe.file: every row of {plan.probe.file} was forgotten; name other rows, or remove `probe`."
            )
        return rows
    if not held_out:
        raise UserError("probe: there are no held-out rows to ask; write `held_out`, or `probe: {file: rows.jsonl}`.")
    chosen = {p.row_id for p in sorted(held_out, key=lambda p: p.row_id)[: plan.probe.rows]}
    return [prompt for prompt in held_out if prompt.row_id in chosen]


def greedy(plan: Plan) -> Plan:
    """The plan as the probe asks by it: one greedy answer a row, without logprobs."""
    one = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "top_logprobs": None, "attach": None, "best_by": None}
    return replace(plan, answers=plan.answers.model_copy(update=one), pick=None)


def inputs(plan: Plan) -> list[str]:
    """What a probe depends on besides the recipe's words: its file."""
    return [store.digest(plan.probe.file)] if plan.probe and plan.probe.file else []
