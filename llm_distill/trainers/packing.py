"""Rows that are read together: side by side in a batch, or as one sequence, where short ones fill what would be padding.

Rows of a sequence must not see each other. Each row's positions start at 0, and wherever they do so, and no padding mask is
given, transformers masks attention between what is before and what is behind. A family that remembers otherwise (a recurrent
state, a convolution, positions by distance) would leak: `check_apart` measures whether one does, on the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from llm_distill.errors import UserError
from llm_distill.trainers.rows import UNTRAINED, Row

#: How far a packed row's states may be off, relative to their size: when other tokens stand before it, which is none at all
#: but for kernels that sum in any order; and from those it has alone, in float32 and in bfloat16. SmolLM2 135M and Gemma 3 270M
#: give 0, 8e-7 and at most 2e-2; where rows see each other they give 0.6, and a short memory (recurrent_gemma's) 0.07.
_MOVED, _ALONE, _ALONE_HALF = 1e-3, 1e-3, 0.1
#: How many states of each row are looked at.
_FIRST = 8


@dataclass(frozen=True)
class Unit:
    """Rows that are never parted into two batches; packed, they are one sequence. `places` are their numbers in the lesson."""

    places: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def input_ids(self) -> list[int]:
        """Of all rows."""
        return [token for row in self.rows for token in row.input_ids]

    @property
    def labels(self) -> list[int]:
        """Of all rows; each begins with a prompt, so none is predicted from its neighbour."""
        return [label for row in self.rows for label in row.labels]

    @property
    def lengths(self) -> list[int]:
        """Of each row."""
        return [len(row.input_ids) for row in self.rows]

    @property
    def positions(self) -> list[int]:
        """Of each token in its own row."""
        return [position for length in self.lengths for position in range(length)]

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt."""
        return sum(row.trained_tokens for row in self.rows)


def units_of(rows: Sequence[Row], groups: Sequence[tuple[int, ...]] = ()) -> list[Unit]:
    """Rows by the groups that they are to be read in, else each by itself."""
    return [Unit(places, tuple(rows[p] for p in places)) for places in groups or [(p,) for p in range(len(rows))]]


def pack(units: Sequence[Unit], max_length: int) -> list[Unit]:
    """All units in as few sequences of at most `max_length` tokens as best-fit decreasing finds (Ding et al. 2024,
    arXiv 2404.10830), by TRL, which says which went where. One that no sequence could hold is taken apart.
    """
    from datasets import Dataset
    from trl import pack_dataset

    rows = {place: row for unit in units for place, row in zip(unit.places, unit.rows, strict=True)}
    parts = [p for u in units for p in ([u.places] if len(u.input_ids) <= max_length else [(p,) for p in u.places])]
    lengths = [sum(len(rows[place].input_ids) for place in part) for part in parts]
    numbers = Dataset.from_dict({"part": [[number] * length for number, length in enumerate(lengths)]})
    # One batch, since batches are packed apart; in memory, since a cache on disk would be read again.
    once = {"batch_size": len(parts), "keep_in_memory": True, "load_from_cache_file": False}
    packs = []
    for sequence in pack_dataset(numbers, max_length, map_kwargs=once):
        starts = list(accumulate(sequence["seq_lengths"], initial=0))[:-1]
        places = tuple(place for start in starts for place in parts[sequence["part"][start]])
        packs.append(Unit(places, tuple(rows[place] for place in places)))
    return packs


def filled(packs: Sequence[Unit]) -> dict[str, Any]:
    """What packing came to, for training.json; `filled` is the mean share that a sequence has of the longest."""
    lengths = [sum(p.lengths) for p in packs]
    rows = sum(len(p.rows) for p in packs)
    return {"rows": rows, "sequences": len(packs), "filled": round(sum(lengths) / len(packs) / max(lengths), 3)}


def told(found: dict[str, Any], steps: int) -> str:
    """The same in one line, with the steps that it leaves."""
    return (
        f"train: {found['rows']:,} rows packed into {found['sequences']:,} sequences ({found['filled']:.0%} full): {steps:,} "
        "steps; a smaller batch_size or max_length makes more."
    )


def check_packed(batch: Any, packs: Sequence[Unit]) -> None:
    """That the trainer's first batch is these sequences; a difference is a bug, ours or TRL's.

    `batch` holds `input_ids`, `labels` and `position_ids`, each (batch, seq) padded on the right, and no attention mask, with
    which transformers would not look at where rows begin.
    """
    if batch.get("attention_mask") is not None:
        raise RuntimeError("The first batch of packed rows has an attention mask, so they would see each other.")
    for name, wanted in (
        ("input_ids", [p.input_ids for p in packs]),
        ("labels", [p.labels for p in packs]),
        ("position_ids", [p.positions for p in packs]),
    ):
        found = batch[name].tolist()
        whole = [line[: len(want)] for line, want in zip(found, wanted, strict=False)] == wanted
        padding = {label for line, want in zip(found, wanted, strict=False) for label in line[len(want) :]}
        if len(found) != len(wanted) or not whole or (name == "labels" and padding - {UNTRAINED}):
            raise RuntimeError(f"Between packing and the first batch, {name} became other than what was packed.")


def check_apart(model: Any, packs: Sequence[Unit]) -> None:
    """UserError where rows in one sequence see each other: measured on the last row of the fullest sequence.

    Its states may not move when every token before it is another, and must be those that it has alone, in places of its own.
    Only its first are looked at, which have the least of their own to see: even a short convolution shows there.
    """
    import torch

    fullest = max(packs, key=lambda p: len(p.rows))
    *before, last = fullest.rows
    if not before:
        return
    others = [(token + 1) % model.config.get_text_config().vocab_size for row in before for token in row.input_ids]

    def states(ids: Sequence[int], positions: Sequence[int]) -> Any:
        own, where = (torch.tensor([list(numbers)], device=model.device) for numbers in (ids, positions))
        out = model.base_model(input_ids=own, position_ids=where, use_cache=False).last_hidden_state[0]
        return out[-len(last.input_ids) :][:_FIRST].float()

    model.eval()
    with torch.no_grad():
        packed = states(fullest.input_ids, fullest.positions)
        moved = states([*others, *last.input_ids], fullest.positions)
        alone = states(last.input_ids, range(len(last.input_ids)))
    exact = model.dtype == torch.float32
    for found, most in ((moved, _MOVED), (alone, _ALONE if exact else _ALONE_HALF)):
        off = float((found - packed).norm() / packed.norm())
        if not off < most:
            raise UserError(
                f"train.packing: rows in one sequence see each other in a {model.config.model_type} model with "
                f"{model.config._attn_implementation} attention (row {last.row_id} is off by {off:.2g} of itself); set "
                "`packing: false`."
            )
