"""The objective of distillation on stored distributions: what the teacher showed at each trained position, and its text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from llm_distill.trainers.rows import UNTRAINED
from llm_distill.trainers.sparse_kd import Divergence, buckets, chunked, divergence, with_tail

if TYPE_CHECKING:
    import numpy as np

    from llm_distill.trainers.targets import Targets


@dataclass(frozen=True)
class SoftTargets:
    """alpha * T^2 * D(teacher_T || student_T) + (1 - alpha) * cross-entropy with the text, summed over positions.

    Where nothing is known of the teacher's distribution its text still is, and counts whole. targets: of each row;
    weights: of each row, (trained positions,) float32, or None. See `sparse_kd.divergence` for the others.
    """

    targets: Sequence[Targets]
    weights: Sequence[np.ndarray] | None = None
    alpha: float = 0.5
    temperature: float = 1.0
    kind: Divergence = "forward_kl"
    beta: float = 0.5
    draws: int = 50
    #: Cross-entropy and divergence, each per trained token and before alpha.
    parts: Sequence[str] = ("ce", "kd")

    @cached_property
    def digest(self) -> str:
        """Of the targets and weights; the numbers are in the trainer's settings."""
        found = blake2b(digest_size=16)
        for target in self.targets:
            for array in (target.ids, target.logprobs, target.defined):
                found.update(repr(array.shape).encode())
                found.update(array.tobytes())
        for weights in self.weights or ():
            found.update(weights.tobytes())
        return found.hexdigest()

    def tensors(self, places: Sequence[int]) -> dict[str, Any]:
        """teacher_ids (n, k) int64, teacher (n, k + 1) float32 with the tail last, defined (n,) bool, weights (n,)."""
        import numpy as np
        import torch

        rows = [self.targets[place] for place in places]
        k = max(row.ids.shape[1] for row in rows)

        def joined(arrays: Sequence[np.ndarray], padding: float) -> Any:
            wide = [np.pad(a, ((0, 0), (0, k - a.shape[1])), constant_values=padding) for a in arrays]
            return torch.from_numpy(np.concatenate(wide))

        weights = [np.ones(len(r.ids), np.float32) for r in rows]
        if self.weights is not None:
            weights = [self.weights[place] for place in places]
        return {
            "teacher_ids": joined([row.ids for row in rows], -1).long(),
            "teacher": with_tail(joined([row.logprobs for row in rows], -math.inf)),
            "defined": torch.from_numpy(np.concatenate([row.defined for row in rows])),
            "weights": torch.from_numpy(np.concatenate(weights)).float(),
        }

    def loss(self, states: Any, head: Any, wanted: Any, more: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """See `course.Objective`."""
        return self._loss(states, head, wanted, more, self.alpha)

    def mass(self, batch: Mapping[str, Any]) -> Any:
        """Its trained tokens."""
        return (batch["labels"] != UNTRAINED).sum()

    def scales(self, states: Any, head: Any, wanted: Any, more: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """How large the gradients of both parts are by themselves, as norms over the states: `ce` and `kd`.

        One that drowns the other (easydistill issue 34), or does not reach the weights, is seen before the first step.
        """
        import torch

        norms = {}
        with torch.enable_grad():
            for name, alpha in (("ce", 0.0), ("kd", 1.0)):
                leaf = states.detach().requires_grad_()
                loss, _ = self._loss(leaf, head, wanted, {**more, "defined": more["defined"] | (alpha == 1)}, alpha)
                (gradient,) = torch.autograd.grad(loss, leaf)
                norms[name] = float(gradient.norm())
        return states.new_zeros(()), norms

    def _loss(
        self, states: Any, head: Any, wanted: Any, more: Mapping[str, Any], alpha: float
    ) -> tuple[Any, dict[str, float]]:
        import torch

        def chunk(logits: Any, place: slice) -> tuple[Any, Any]:
            ids, teacher, defined, weights = (more[n][place] for n in ("teacher_ids", "teacher", "defined", "weights"))
            student, normaliser = buckets(logits, ids)
            ce = (normaliser - logits.gather(-1, wanted[place, None])).squeeze(-1)
            kd = divergence(
                teacher, student, kind=self.kind, temperature=self.temperature, beta=self.beta, draws=self.draws
            )
            own = torch.where(defined, alpha * kd + (1 - alpha) * ce, ce)
            seen = torch.stack([(part * weights).sum().detach() for part in (ce, torch.where(defined, kd, 0))])
            return (own * weights).sum(), seen

        total, seen = chunked(states, head, chunk)
        return total, dict(zip(self.parts, seen.tolist(), strict=True))
