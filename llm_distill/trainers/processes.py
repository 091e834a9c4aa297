"""Training in several processes, as `accelerate launch` starts them: which of them this is, and what each of them reads.

`batch_size` counts what all processes read together, so that more GPUs change how fast a student learns, not what. The
numbers come from the environment, as torch.distributed has them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

from llm_distill.errors import UserError
from llm_distill.trainers.packing import Unit
from llm_distill.trainers.rows import Row

P = ParamSpec("P")
T = TypeVar("T")
#: How long a process waits for the others, of which the first may be asking teachers.
_PATIENCE = timedelta(hours=2)


def count() -> int:
    """How many processes train together; 1 where nobody launched more."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this one on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def first() -> bool:
    """Whether this process writes and prints; the others only compute."""
    return rank() == 0


@contextmanager
def joined(*, on_cpu: bool) -> Iterator[None]:
    """In the group of all processes within the block, if there is more than one. On one machine they speak over loopback."""
    if count() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    if os.environ.get("LOCAL_WORLD_SIZE") == str(count()) and sys.platform == "linux":
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    PartialState(cpu=on_cpu, timeout=_PATIENCE)
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def share(batch_size: int) -> int:
    """How much of a batch this process reads; UserError where it cannot be dealt out evenly."""
    if batch_size % count():
        raise UserError(
            f"train: batch_size is {batch_size}, which {count()} processes cannot share evenly; set it to a multiple of "
            f"{count()}, such as {-(-batch_size // count()) * count()}."
        )
    return batch_size // count()


def own(order: Sequence[int], batch_size: int) -> Sequence[int]:
    """Of a reading order, what this process reads first."""
    start = rank() * share(batch_size)
    return order[start : start + share(batch_size)]


def evened(units: list[Unit], order: list[int], batch_size: int) -> tuple[list[Unit], list[int]]:
    """The same, the last batch filled up with a row of which nothing is learnt, where processes share batches: they must
    make equally many steps, and accelerate would fill it with rows that then count twice.
    """
    missing = -len(order) % batch_size if count() > 1 else 0
    if not missing:
        return units, order
    shortest = min((row for unit in units for row in unit.rows), key=lambda row: len(row.input_ids)).input_ids
    return [*units, Unit((), (Row("", list(shortest), len(shortest)),))], [*order, *[len(units)] * missing]


def agreed(*decisions: bool) -> list[bool]:
    """What all processes do together: a thing that one of them wants. Clocks and signals differ between them."""
    return [bool(value) for value in _added([float(decision) for decision in decisions])]


def in_turn(asking: Callable[P, T]) -> Callable[P, T]:
    """The same function, called in the first process before it is in the others, which then find in the ledger what it asked."""

    @wraps(asking)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if not first():
            agreed(True)  # wait for it
        made = asking(*args, **kwargs)
        if first():
            agreed(True)
        return made

    return called


def summed(parts: Mapping[str, float]) -> dict[str, float]:
    """Numbers of one's own part of a batch, added up over all processes."""
    return dict(zip(parts, _added(list(parts.values())), strict=True))


def _added(values: Sequence[float]) -> Sequence[float]:
    if count() == 1 or not values:
        return values
    import torch
    from accelerate import PartialState

    total = torch.tensor(values, device=PartialState().device)
    torch.distributed.all_reduce(total)
    return total.tolist()  # type: ignore[no-any-return]
