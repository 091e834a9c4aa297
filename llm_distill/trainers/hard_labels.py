"""Gold beside the teacher: what people say a row's answer is, learnt with a share of the row's weight (`gold`).

Where both say the same a row stays one row. Where they differ it becomes two, the teacher's text with weight 1 - gold and the
gold text with weight gold: the weighted sum of Hinton et al. 2015 (arXiv 1503.02531), with the teacher's text in the place of
its distribution. Both stay in one batch: in batches of their own, clipped to equal norms, gradients would weigh the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from llm_distill.errors import UserError
from llm_distill.records import Sample, content_id
from llm_distill.trainers.rows import Row
from llm_distill.trainers.sparse_kd import chunked

#: What is left to do where no row has any gold.
NO_GOLD = "`label` of a classify task, `reference` of any other; add it to the seeds, or set `gold: 0`."


@dataclass(frozen=True)
class Weighed:
    """Samples, each with its weight in (0, 1]; groups: which of them are one row's; counts: of the rows, by what gold says to
    the teacher's answer.
    """

    samples: Sequence[Sample]
    weights: Sequence[float]
    groups: Sequence[tuple[int, ...]]
    counts: Mapping[str, int]

    @classmethod
    def equally(cls, samples: Sequence[Sample]) -> Weighed:
        """Each for itself, as the teacher answered it."""
        return cls(samples, [1.0] * len(samples), (), {})


def with_gold(samples: Sequence[Sample], gold: float) -> Weighed:
    """Samples with the gold texts beside the teacher's, or in their place at 1; blank space around a text makes no difference.

    UserError where no row has any gold.
    """
    made: list[Sample] = []
    weights: list[float] = []
    groups = []
    counts = {"agree": 0, "differ": 0, "without": 0}
    for sample in samples:
        said = (sample.gold or "").strip()
        found = "without" if not said else "agree" if said == sample.completion.strip() else "differ"
        counts[found] += 1
        texts = [(sample, 1.0)]
        if found == "differ":
            texts = [(sample, 1 - gold), (msgspec.structs.replace(sample, completion=sample.gold), gold)]
        kept = [(text, weight) for text, weight in texts if weight > 0]
        groups.append(tuple(range(len(made), len(made) + len(kept))))
        made += [text for text, _ in kept]
        weights += [weight for _, weight in kept]
    if samples and counts["without"] == len(samples):
        raise UserError(f"train.sft.gold: found {gold:g}, and none of {len(samples)} samples has gold: {NO_GOLD}")
    return Weighed(made, weights, groups, counts)


@dataclass(frozen=True)
class WeightedText:
    """Cross-entropy with the text, times the weight of its row, summed over positions.

    A step's sum is divided by the weights of its tokens, not by how many they are: where gold says something else a row's tokens
    are those of two texts, and divided by all of them it would count half as much as in a step where both agree.
    weights: of each row; trained: tokens of each row.
    """

    weights: Sequence[float]
    trained: Sequence[int]
    #: Cross-entropy per trained token, without weights.
    parts: Sequence[str] = ("ce",)

    @classmethod
    def of(cls, rows: Sequence[Row], weights: Sequence[float]) -> WeightedText:
        """Of rows with a weight each."""
        return cls(list(weights), [row.trained_tokens for row in rows])

    @cached_property
    def digest(self) -> str:
        """Of the weights."""
        return content_id(list(self.weights))

    def tensors(self, places: Sequence[int]) -> dict[str, Any]:
        """weights: (n,) float32."""
        import torch

        counts = torch.tensor([self.trained[place] for place in places])
        return {"weights": torch.tensor([self.weights[place] for place in places]).repeat_interleave(counts)}

    def mass(self, batch: Mapping[str, Any]) -> Any:
        """The weights of its trained tokens."""
        return batch["weights"].sum()

    def loss(self, states: Any, head: Any, wanted: Any, more: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """See `course.Objective`."""

        def chunk(logits: Any, place: slice) -> tuple[Any, Any]:
            ce = logits.logsumexp(-1) - logits.gather(-1, wanted[place, None]).squeeze(-1)
            return (ce * more["weights"][place]).sum(), ce.sum().detach()

        total, seen = chunked(states, head, chunk)
        return total, {"ce": float(seen)}
