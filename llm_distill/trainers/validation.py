"""Early stopping on rows that training does not read: a slice of the training distribution, never the evaluation set.

Which rows are set aside is decided by a hash of their content. Rows that nearly equal each other, that belong to one
counterfactual group, were made from one row or have one prompt stay together, or validation would look at what was learnt.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.near import joined, near_pairs
from llm_distill.records import Sample, content_id
from llm_distill.trainers import mishaps
from llm_distill.trainers.checkpoints import newest_whole, step_of
from llm_distill.trainers.curve import Curve
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.packing import Unit

#: How alike rows may be at most that do not stay together; as `held_out.near`.
_NEAR = 0.7
#: Looks in one pass over the rows: enough to see where it turns, few enough to cost little.
_A_PASS = 4


def set_aside(samples: Sequence[Sample], units: Sequence[Unit], share: float) -> frozenset[int]:
    """Places of the rows that are kept for validation, of about this share of the units; UserError where none can be."""
    if not share:
        return frozenset()
    members: dict[str, list[Unit]] = {}
    for unit, cluster in zip(units, _clusters(samples, units), strict=True):
        members.setdefault(cluster, []).append(unit)
    most, chosen = max(1, round(share * len(units))), list[Unit]()
    for name in sorted(members, key=lambda name: content_id(["validation", name])):
        if len(chosen) + len(members[name]) <= most:
            chosen += members[name]
    if not chosen or len(chosen) == len(units):
        smallest = min(map(len, members.values()))
        raise UserError(
            f"train.validation_share: found {share:g}, and rows that nearly equal each other stay together: of {len(units):,} "
            f"rows the smallest such group has {smallest:,}. Add other rows, raise it, or set it to 0."
        )
    return frozenset(place for unit in chosen for place in unit.places)


def _clusters(samples: Sequence[Sample], units: Sequence[Unit]) -> list[str]:
    """Of each unit a name that it shares with all that it belongs to, made of content alone."""
    own = {sample.row_id: sample for sample in samples}
    texts = {row.row_id: _text(own[row.row_id]) for unit in units for row in unit.rows}
    names = {row_id: content_id(text.casefold().split()) for row_id, text in texts.items()}
    bound: dict[tuple[str, str], str] = {}
    pairs = [(names[unit.rows[0].row_id], names[row.row_id]) for unit in units for row in unit.rows]
    for row_id, name in names.items():
        answer = own[row_id].answer
        tags = answer.prompt.tags if answer else {}
        bonds = [
            ("row", row_id),
            *((kind, tags[tag]) for kind, tag in (("row", "parent"), ("group", "group")) if tag in tags),
        ]
        pairs += [(name, bound.setdefault(bond, name)) for bond in bonds]
    ids = list(texts)
    pairs += [(names[ids[later]], names[ids[earlier]]) for later, earlier in near_pairs(list(texts.values()), _NEAR)]
    of = joined(pairs)
    return [of[names[unit.rows[0].row_id]] for unit in units]


def _text(sample: Sample) -> str:
    """The row's own words; what a template and worked examples put around them, all rows share."""
    if sample.answer is not None:
        return sample.answer.prompt.text
    return "\n".join(m.content for m in sample.messages if m.role == "user")


@dataclass
class Validation:
    """What is read, when, how long no better loss may follow the best, and what has been seen so far.

    rows: which of the trainer's units; folder: where the best weights lie, as `best-<step>`.
    """

    rows: Sequence[int]
    steps: int
    epochs: float
    patience: int
    folder: Path
    seed: int
    history: list[tuple[int, float]] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether a step is followed by a look: some in each pass, and the last."""
        every = max(1, round(self.steps / self.epochs / _A_PASS))
        return step % every == 0 or step == self.steps

    def resume(self, lines: Sequence[Mapping[str, float]], done: int) -> None:
        """Go on behind a checkpoint: its curve's lines say what was seen, and weights of later steps are dropped."""
        self.history = [(int(line["step"]), line["validation_loss"]) for line in lines if "validation_loss" in line]
        for kept in self.folder.glob("best-*"):
            if kept.suffix or step_of(kept) > done:
                shutil.rmtree(kept)

    @property
    def best(self) -> tuple[int, float]:
        """The step of the lowest loss, the first of them, and that loss; (0, inf) before any look."""
        return min(self.history, key=lambda seen: seen[1], default=(0, math.inf))

    @property
    def exhausted(self) -> bool:
        """Whether so many looks brought nothing better that training ends."""
        return sum(step > self.best[0] for step, _ in self.history) >= self.patience

    def place(self, step: int) -> Path:
        """Where the weights after a step lie."""
        return self.folder / f"best-{step}"

    def saw(self, step: int, loss: float) -> bool:
        """Note a loss; gives whether it is the best so far, whose weights are to be kept."""
        self.history.append((step, loss))
        return self.best[0] == step

    def tidy(self) -> None:
        """Drop what is the best of no checkpoint: all but the newest one, and the newest that the last checkpoint knows."""
        steps = sorted(step_of(kept) for kept in self.folder.glob("best-*") if not kept.suffix)
        last = newest_whole(self.folder)
        known = [step for step in steps if last and step <= step_of(last)]
        for step in steps[:-1]:
            if step not in known[-1:]:
                shutil.rmtree(self.place(step))

    @property
    def ended(self) -> int:
        """After which step it looked last."""
        return self.history[-1][0] if self.history else 0

    def told(self) -> str:
        """What came of it, in one line."""
        step, loss = self.best
        return (
            f"train: on {len(self.rows):,} rows set aside, the loss was lowest after step {step} ({loss:.4f}), which is kept; "
            f"training ended after step {self.ended} of {self.steps}."
        )

    def story(self) -> dict[str, Any]:
        """For training.json."""
        step, loss = self.best
        return {
            "rows": len(self.rows), "looks": len(self.history), "best_step": step, "best_loss": loss, "ended": self.ended,
        }  # fmt: skip


def look(trainer: Any, validation: Validation) -> float:
    """The loss after a step, noted, and its weights kept where it is the best so far. UserError for one that is no number."""
    step = trainer.state.global_step
    loss = mean_loss(trainer, validation.rows, validation.seed)
    if not math.isfinite(loss):
        raise mishaps.not_finite("validation loss", loss, step, kept=mishaps.kept(Path(trainer.args.output_dir)))
    if validation.saw(step, loss):
        partial = validation.place(step).with_suffix(".partial")
        trainer.save_model(str(partial), _internal_call=True)
        partial.replace(validation.place(step))
        validation.tidy()
    return loss


def mean_loss(trainer: Any, rows: Sequence[int], seed: int) -> float:
    """The loss of some of a trainer's units (per learnt token, where all count alike): the objective of training, without dropout
    and with the same draws each time.
    """
    import torch

    size, model, device = trainer.args.per_device_train_batch_size, trainer.model_wrapped, trainer.accelerator.device
    loss, mass = 0.0, 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        for start in range(0, len(rows), size):
            batch = trainer.data_collator([{"unit": place} for place in rows[start : start + size]])
            mass += float(trainer.mass(batch))
            with trainer.compute_loss_context_manager():
                one = torch.tensor(1.0, device=device)  # what its sum is divided by
                loss += float(trainer.compute_loss(model, trainer._prepare_inputs(batch), num_items_in_batch=one))
        model.train()
    trainer._metrics["eval"].clear()
    return loss / mass


def watch(
    rows: Sequence[int], curve: Curve, hyper: Hyperparameters, folder: Path, done: int, seed: int
) -> Validation | None:
    """Who looks at what is set aside, going on behind a checkpoint of `done` steps; None where nothing is."""
    if not rows:
        return None
    found = Validation(rows, curve.steps, hyper.epochs, hyper.patience, folder, seed)
    found.resume(curve.lines, done)
    return found
