"""The student against the other arms on each slice alone, with p values that allow for there being many slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_distill.evals.metrics import NO_TAG
from llm_distill.evals.statistics import holm
from llm_distill.records import Prompt

Slices = dict[str, dict[str, list[int]]]  # tag -> value -> places of its rows


def places(rows: Sequence[str], prompts: Mapping[str, Prompt], slices: Sequence[str]) -> Slices:
    """Where the rows of each slice stand among `rows`; tags in the recipe's order, values sorted."""
    found: Slices = {tag: {} for tag in slices}
    for place, row in enumerate(rows):
        for tag in slices:
            found[tag].setdefault(prompts[row].tags.get(tag, NO_TAG), []).append(place)
    return {tag: dict(sorted(values.items())) for tag, values in found.items()}


def by_slice(slices: Slices, compared: Callable[[list[int]], dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Comparison -> tag -> value of the tag -> what `compared` says of its rows, with `p_holm`.

    Holm's correction is over all slices of one comparison that have a p; the others' `p_holm` is None.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for tag, values in slices.items():
        for value, rows in values.items():
            for name, numbers in compared(rows).items():
                found.setdefault(name, {}).setdefault(tag, {})[value] = numbers | {"p_holm": None}
    for tags in found.values():
        tested = [numbers for values in tags.values() for numbers in values.values() if numbers["p"] is not None]
        for numbers, p in zip(tested, holm([numbers["p"] for numbers in tested]), strict=True):
            numbers["p_holm"] = p
    return found
