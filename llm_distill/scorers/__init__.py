"""What can be measured on an answer: `Scorer(answers[, context], *, knobs) -> Sequence[float]`.

The whole list goes in and one number for each answer comes out; NaN means "cannot be measured here" and never drops a
row. A filter is a scorer with bounds: a row stays while min <= score <= max.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
    "agreement": "llm_distill.scorers.teacher:agreement",
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
NEEDS = {"agreement": ("several",), "confidence": ("logprobs",), "unparsed": ("labels",)}
#: Scorers that look at more than the one answer: they cannot say which of several answers to a row is the best.
SET_WIDE = {"agreement", "exact_duplicate", "leakage"}


@dataclass(frozen=True)
class Filter:
    """A scorer with its bounds."""

    name: str  # as in `score.<name>` and `dropped_by`
    plug: Plug
    min: float | None
    max: float | None

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there for the scorer to measure anything: `logprobs`, `labels`, `several` answers a row."""
        return NEEDS.get(self.plug.spec.name, ())

    def scores(self, answers: Sequence[Answer], context: Context) -> np.ndarray:
        """One number for each answer, (n,) float64."""
        return measured(self.plug, answers, context)

    def keeps(self, scores: np.ndarray) -> np.ndarray:
        """Which rows stay, (n,) bool."""
        import numpy as np

        low = -np.inf if self.min is None else self.min
        high = np.inf if self.max is None else self.max
        return np.asarray(np.isnan(scores) | ((scores >= low) & (scores <= high)))


@dataclass(frozen=True)
class Pick:
    """A scorer that chooses among several answers to one row: the highest score, or the lowest where `low`."""

    plug: Plug
    low: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """As a filter's."""
        return NEEDS.get(self.plug.spec.name, ())

    def scores(self, answers: Sequence[Answer], context: Context) -> list[float]:
        """One number for each answer, the highest for the best; what cannot be measured is never the best."""
        import numpy as np

        scores = measured(self.plug, answers, context)
        return np.nan_to_num(-scores if self.low else scores, nan=-np.inf).tolist()  # type: ignore[no-any-return]


def measured(plug: Plug, answers: Sequence[Answer], context: Context) -> np.ndarray:
    """A scorer's numbers, (n,) float64, one for each answer; UserError when it gave another number of them."""
    import numpy as np

    scores = np.asarray(plug(answers, context), dtype=np.float64)
    if scores.shape != (len(answers),):
        raise UserError(
            f"{plug.spec.where}: it gave {scores.shape} scores for {len(answers)} answers; one each is due."
        )
    return scores


def check_needs(scorers: Sequence[Filter | Pick], kind: str, *, logprobs: bool, several: bool) -> None:
    """UserError for a scorer that would find nothing to measure in this recipe."""
    for used in scorers:
        where = used.plug.spec.where
        if "logprobs" in used.needs and not logprobs:
            raise UserError(
                f"{where}: it reads logprobs, and answers.top_logprobs is not set; add `top_logprobs: 20` to answers."
            )
        if "labels" in used.needs and kind != "classify":
            raise UserError(f"{where}: it reads labels, and the task is {kind}; remove it.")
        if "several" in used.needs and not several:
            raise UserError(
                f"{where}: each row is asked for once, so nothing can agree; add `samples: 5` to answers, or name "
                "several teachers: `teachers: [role, role]`."
            )


def bind_pick(value: Any, where: str, table: Mapping[str, str], reading: Reading) -> Pick:
    """The scorer that a recipe names to choose by; `prefer: low` wants the lowest score."""
    spec = Spec.read(value, where)
    if spec.name in SET_WIDE:
        raise UserError(f"{where}: {spec.name} compares rows with others; name a scorer that reads one answer alone.")
    knobs = dict(spec.knobs)
    prefer = knobs.pop("prefer", "high")
    if prefer not in ("high", "low"):
        raise UserError(f"{spec.where}.prefer: found {prefer!r}; write high or low.")
    return Pick(bind("scorer", Spec(spec.name, knobs, spec.where), table, reading), prefer == "low")


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
