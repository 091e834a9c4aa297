"""Mistakes in labelled rows, found before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Prompt


def check_labels(prompts: Sequence[Prompt], labels: Sequence[str]) -> None:
    """UserError for a gold label that the task does not have."""
    for prompt in prompts:
        if prompt.label is not None and prompt.label not in labels:
            raise UserError(
                f"row {prompt.row_id} ({prompt.text[:60]!r}) has the label {prompt.label!r}, which the task does "
                f"not have.{did_you_mean(prompt.label, labels)} Repair the row, or add the label to task.classify.labels."
            )


def check_slices(prompts: Sequence[Prompt], slices: Sequence[str], where: str = "evaluate.slices") -> None:
    """UserError for a slice that no row has as a tag: a misspelt one would hide what it was meant to show."""
    tags = {tag for prompt in prompts for tag in prompt.tags}
    for tag in slices:
        if prompts and tag not in tags:
            raise UserError(f"{where}: no held-out row has the tag {tag!r}.{did_you_mean(tag, tags)}")
