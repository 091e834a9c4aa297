"""What can be measured on an answer: `Scorer(answers[, context], *, knobs) -> Sequence[float]`.

The whole list goes in and one number for each answer comes out; NaN means "cannot be measured here" and never drops a
row. A filter is a scorer with bounds: a row stays while min <= score <= max.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llm_distill.errors import UserError
from llm_distill.plugs import Plug, Reading, Spec, bind
from llm_distill.records import Answer, Prompt
from llm_distill.tasks import Task

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Context:
    """What a scorer may look at besides the answers."""

    task: Task
    held_out: Sequence[Prompt] = ()


#: Name in a recipe -> where its function is.
SCORERS = {
    "confidence": "llm_distill.scorers.teacher:confidence",
    "empty": "llm_distill.scorers.text:empty",
    "exact_duplicate": "llm_distill.scorers.text:exact_duplicate",
    "leakage": "llm_distill.scorers.overlap:leakage",
    "length": "llm_distill.scorers.text:length",
    "refusal": "llm_distill.scorers.text:refusal",
    "truncated": "llm_distill.scorers.text:truncated",
    "unparsed": "llm_distill.scorers.teacher:unparsed",
}
#: The bounds of a scorer that a recipe gives none: yes-or-no scorers drop what they find.
DEFAULT_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "empty": (None, 0.0),
    "exact_duplicate": (None, 0.0),
    "leakage": (None, 0.5),
    "refusal": (None, 0.0),
    "truncated": (None, 0.0),
    "unparsed": (None, 0.0),
}
#: What a scorer cannot do without.
NEEDS = {"confidence": ("logprobs",), "unparsed": ("labels",)}


@dataclass(frozen=True)
class Filter:
    """A scorer with its bounds."""

    name: str  # as in `score.<name>` and `dropped_by`
    plug: Plug
    min: float | None
    max: float | None

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there for the scorer to measure anything: `logprobs`, `labels`."""
        return NEEDS.get(self.plug.spec.name, ())

    def scores(self, answers: Sequence[Answer], context: Context) -> np.ndarray:
        """One number for each answer, (n,) float64."""
        import numpy as np

        scores = np.asarray(self.plug(answers, context), dtype=np.float64)
        if scores.shape != (len(answers),):
            raise UserError(
                f"{self.plug.spec.where}: it gave {scores.shape} scores for {len(answers)} answers; one each is due."
            )
        return scores

    def keeps(self, scores: np.ndarray) -> np.ndarray:
        """Which rows stay, (n,) bool."""
        import numpy as np

        low = -np.inf if self.min is None else self.min
        high = np.inf if self.max is None else self.max
        return np.asarray(np.isnan(scores) | ((scores >= low) & (scores <= high)))


def bind_filters(specs: Sequence[Spec], table: Mapping[str, str], reading: Reading) -> list[Filter]:
    """The filters of a recipe; a scorer's second use is called `<name>.2`."""
    filters: list[Filter] = []
    for spec in specs:
        filter_ = _bind_filter(spec, table, reading)
        same = sum(earlier.plug.spec.name == spec.name for earlier in filters)
        filters.append(replace(filter_, name=f"{spec.name}.{same + 1}") if same else filter_)
    return filters


def _bind_filter(spec: Spec, table: Mapping[str, str], reading: Reading) -> Filter:
    """Take the bounds out of a filter entry and check the rest against its scorer."""
    knobs = dict(spec.knobs)
    bounds = {side: knobs.pop(side, None) for side in ("min", "max")}
    for side, bound in bounds.items():
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise UserError(f"{spec.where}.{side}: found {bound!r}; write a number.")
    plug = bind("scorer", Spec(spec.name, knobs, spec.where), table, reading)
    low, high = bounds["min"], bounds["max"]
    if low is None and high is None:
        if spec.name not in DEFAULT_BOUNDS:
            raise UserError(f"{spec.where}: give it `min`, `max` or both; without bounds it would drop nothing.")
        low, high = DEFAULT_BOUNDS[spec.name]
    if low is not None and high is not None and low > high:
        raise UserError(f"{spec.where}: min {low} is above max {high}, so every row would be dropped.")
    return Filter(spec.name, plug, low, high)
