"""Which prompts go through a model together: those that share their beginning, and among those equal lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

#: A beginning gets a KV cache of its own when that spares this many times the tokens it costs to fill.
GAIN = 4
_LEVELS = 32


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts share from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def by_beginning(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Indices of prompts, grouped so that the prompts of a group share as much of their beginning as pays off.

    Rows of one few-shot prompt share its examples; rows of several such prompts share only its first line, and are
    told apart here (a walk down the trie of the prompts).
    """
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    groups, rest = _split(prompts, order, 0, _LEVELS)
    return groups + ([rest] if rest else [])


def _split(
    prompts: Sequence[list[int]], order: list[int], covered: int, levels: int
) -> tuple[list[list[int]], list[int]]:
    """(groups, indices left over); all of `order` share `covered` tokens that are cached anyway."""
    if len(order) <= 1 or not levels:
        return [], order
    first, last = prompts[order[0]], prompts[order[-1]]  # of a sorted list these two differ earliest
    shared = common_length(first, last)
    gain = shared - covered
    groups: list[list[int]] = []
    rest: list[int] = [] if first != last else order
    if first != last:
        reached = shared if len(order) * gain > GAIN * shared else covered
        for _, branch in groupby(order, key=lambda index: prompts[index][shared : shared + 1]):
            below, left = _split(prompts, list(branch), reached, levels - 1)
            groups += below
            rest += left
    if len(rest) * gain > GAIN * shared:
        return [*groups, rest], []
    return groups, rest
