"""What the student is about to be trained on, checked before the first step: better no training than a wrong one.

Faults of this kind do not show in the loss, which falls nicely over a doubled BOS, a masked end token or padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llm_distill.trainers import packing
from llm_distill.trainers.findings import Finding
from llm_distill.trainers.lint_targets import lint_scale
from llm_distill.trainers.rows import UNTRAINED, Row
from llm_distill.trainers.soft_targets import SoftTargets

if TYPE_CHECKING:
    from llm_distill.trainers.course import Desk, Lesson


def faults(row: Row, tokenizer: Any, end: int) -> Iterator[tuple[str, str]]:
    """What is malformed about a row, each with the name of the check that finds it: its tokenizer or template is at fault."""
    bos, name = tokenizer.bos_token_id, tokenizer.convert_ids_to_tokens(end)
    for trained in (row.input_ids[start:stop] for start, stop in row.learnt):
        if trained.count(end) != 1 or trained[-1] != end:
            yield "end_token", f"{trained.count(end)} trained end tokens {name!r}, where one belongs at the very end"
        if len(trained) < 2:
            yield "trained_tokens", "nothing to learn but the end token"
    if row.prompt_tokens < 1:
        yield "prompt", "no prompt, so its first token could not be predicted from anything"
    if bos is not None and row.input_ids[:2] == [bos, bos]:
        yield "bos", f"two BOS tokens {tokenizer.bos_token!r} at its start, where one is right"


def counts(rows: Sequence[Row], tokenizer: Any, end: int) -> dict[str, Any]:
    """What the rows hold, for training.json."""
    bos = tokenizer.bos_token_id
    return {
        "rows": len(rows),
        "longest_row_tokens": max(len(r.input_ids) for r in rows),
        "prompt_tokens": sum(len(r.input_ids) - r.trained_tokens for r in rows),
        "trained_tokens": sum(r.trained_tokens for r in rows),
        "end_token": tokenizer.convert_ids_to_tokens(end),
        "end_token_is_pad": end == tokenizer.pad_token_id,
        "starts_with_bos": bos is not None and rows[0].input_ids[0] == bos,
    }


def check_batch(batch: Any, rows: Sequence[Row]) -> None:
    """That the trainer's first batch is these rows: in this order, whole, padded on the right, padding unlearnt.

    `batch` holds `input_ids`, `labels` and `attention_mask`, each (batch, seq). A difference is a bug, ours or TRL's.
    """
    ids, labels, mask = (batch[key].tolist() for key in ("input_ids", "labels", "attention_mask"))
    if len(ids) != len(rows):
        raise RuntimeError(f"The first batch has {len(ids)} rows; {len(rows)} were meant to be in it.")
    for i, row in enumerate(rows):
        pads = len(ids[i]) - len(row.input_ids)
        wrong = {
            "cut": pads < 0,
            "given other tokens": ids[i][: len(row.input_ids)] != row.input_ids,
            "given other labels": labels[i] != row.labels + [UNTRAINED] * pads,
            "given a wrong attention mask": mask[i] != [1] * len(row.input_ids) + [0] * pads,
        }
        found = [fault for fault, present in wrong.items() if present]
        if found:
            raise RuntimeError(f"Between tokenizing and the first batch, row {row.row_id} was {' and '.join(found)}.")


def preview(row: Row, tokenizer: Any) -> str:
    """The row as text, what is learnt between ⟦ and ⟧."""
    parts = []
    for learnt, run in groupby(zip(row.input_ids, row.labels, strict=True), lambda pair: pair[1] != UNTRAINED):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if learnt else text)
    return "".join(parts)


def ready(desk: Desk, lesson: Lesson, trainer: Any, first: Sequence[packing.Unit]) -> tuple[str, list[Finding]]:
    """Check that the trainer's first batch is what was prepared, and spare the head what nothing is learnt at; gives which
    positions it scores, and what there is to say of the batch.
    """
    from llm_distill.trainers import sft_loop
    from llm_distill.trainers.head import lighten

    on_cpu, objective = desk.device.type == "cpu", lesson.objective
    batch = next(iter(trainer.get_train_dataloader()))
    if lesson.packed:
        packing.check_packed(batch, first)
    else:
        check_batch(batch, [row for u in first for row in u.rows])
    scored = lighten(
        desk.model,
        {name: batch[name] for name in sft_loop.OF_THE_MODEL if name in batch},
        # On CUDA, TRL's kernels score trained positions only; a mixture of experts has a second loss, over all of them.
        ours=objective is not None or (on_cpu and not trainer.aux_loss_enabled),
        share=on_cpu and not (desk.settings["activation_checkpointing"] or lesson.packed),
    )
    return scored, [*lint_scale(objective, desk.model, batch)] if isinstance(objective, SoftTargets) else []
