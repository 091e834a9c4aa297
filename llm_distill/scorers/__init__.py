"""What can be measured on an answer: `Scorer(answers[, context], *, knobs) -> Sequence[float]`, or `Scored`.

The whole list goes in and one number for each answer comes out; NaN means "cannot be measured here". A filter is a scorer
with bounds: a row stays while min <= score <= max; one that cannot be measured stays too, unless the filter says
`unmeasured: drop`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_distill.errors import UserError
from llm_distill.plugs import Plug, Reading, Spec, bind
from llm_distill.records import Answer, Ask, Prompt
from llm_distill.tasks import Task

if TYPE_CHECKING:
    import numpy as np

    from llm_distill.models import Model


def _nobody(*_: Any) -> Any:
    raise UserError("this scorer asks a model, and there is none to ask here: use it as a filter.")


def _unheard(_line: str) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What a scorer may look at besides the answers.

    rows: all rows of the run, those too that earlier filters dropped. ask: the entries of a model's answers to questions,
    in their order, failed ones too. model: the model of a role, for scorers that need its weights. max: the filter's bound,
    for scorers that compare a row with those that the filter keeps.
    """

    task: Task
    held_out: Sequence[Prompt] = ()
    rows: Sequence[Answer] = ()
    ask: Ask = _nobody
    model: Callable[[str], Model] = _nobody
    say: Callable[[str], None] = _unheard
    seed: int = 0
    max: float | None = None


class Scored(NamedTuple):
    """A scorer's numbers with more to say: `why` in words (`why.<name>` in the tables), and the `prompts` to train on in
    place of the rows' own, where a scorer had something to take out of them. Both are empty or one for each answer.
    """

    values: Sequence[float]
    why: Sequence[str | None] = ()
    prompts: Sequence[Prompt | None] = ()


#: Name in a recipe -> where its function is.
SCORERS = {
    "agreement": "llm_distill.scorers.teacher:agreement",
    "code": "llm_distill.scorers.code:code",
    "confidence": "llm_distill.scorers.teacher:confidence",
    "counterfactual_flip": "llm_distill.scorers.counterfactual:counterfactual_flip",
    "empty": "llm_distill.scorers.text:empty",
    "exact_duplicate": "llm_distill.scorers.text:exact_duplicate",
    "format": "llm_distill.scorers.form:format",
    "identity": "llm_distill.scorers.phrases:identity",
    "ifd": "llm_distill.scorers.student:ifd",
    "instructions": "llm_distill.scorers.instructions:instructions",
    "json_equal": "llm_distill.scorers.verifiers:json_equal",
    "judge": "llm_distill.scorers.judge:judge",
    "label_entropy": "llm_distill.scorers.teacher:label_entropy",
    "label_margin": "llm_distill.scorers.teacher:label_margin",
    "language": "llm_distill.scorers.language:language",
    "leakage": "llm_distill.scorers.overlap:leakage",
    "length": "llm_distill.scorers.text:length",
    "math": "llm_distill.scorers.verifiers:math",
    "mean_logprob": "llm_distill.scorers.teacher:mean_logprob",
    "mentions": "llm_distill.scorers.mentions:mentions",
    "near_duplicate": "llm_distill.scorers.duplicates:near_duplicate",
    "numeric": "llm_distill.scorers.verifiers:numeric",
    "perplexity": "llm_distill.scorers.student:perplexity",
    "pii": "llm_distill.scorers.pii:pii",
    "profanity": "llm_distill.scorers.toxicity:profanity",
    "refusal": "llm_distill.scorers.phrases:refusal",
    "repetition": "llm_distill.scorers.text:repetition",
    "representation": "llm_distill.scorers.mentions:representation",
    "reward": "llm_distill.scorers.reward:reward",
    "sample": "llm_distill.scorers.sample:sample",
    "semantic_duplicate": "llm_distill.scorers.duplicates:semantic_duplicate",
    "toxicity": "llm_distill.scorers.toxicity:toxicity",
    "truncated": "llm_distill.scorers.text:truncated",
    "unparsed": "llm_distill.scorers.teacher:unparsed",
    "unsafe": "llm_distill.scorers.judge:unsafe",
    "whole_groups": "llm_distill.scorers.counterfactual:whole_groups",
}
#: The bounds of a scorer that a recipe gives none, also of one that measures `by` something: yes-or-no scorers drop what
#: they find.
DEFAULT_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "code": (1.0, None),
    "empty": (None, 0.0),
    "exact_duplicate": (None, 0.0),
    "format": (None, 0.0),
    "identity": (None, 0.0),
    "instructions": (1.0, None),
    "json_equal": (1.0, None),
    "language": (0.5, None),
    "leakage": (None, 0.5),
    "leakage by embedding": (None, 0.9),
    "math": (1.0, None),
    "near_duplicate": (None, 0.8),
    "numeric": (1.0, None),
    "pii": (None, 0.0),
    "profanity": (None, 0.0),
    "profanity by model": (None, 0.5),
    "refusal": (None, 0.0),
    "repetition": (None, 0.3),
    "repetition by compression": (None, 2.4),
    "representation": (None, 1.0),
    "sample": (None, 0.0),
    "semantic_duplicate": (None, 0.95),
    "truncated": (None, 0.0),
    "unparsed": (None, 0.0),
    "unsafe": (None, 0.0),
    "whole_groups": (None, 0.0),
}
#: What a scorer cannot do without.
NEEDS = {
    "agreement": ("several",),
    "confidence": ("logprobs",),
    "label_entropy": ("logprobs", "labels"),
    "label_margin": ("logprobs", "labels"),
    "mean_logprob": ("logprobs",),
    "unparsed": ("labels",),
}
#: Scorers that look at one answer alone: any part of the rows can be scored anywhere, and they can say which of several
#: answers to a row is the best. A scorer of one's own says so by an attribute, `my_scorer.row_local = True`.
ROW_LOCAL = {
    "code", "confidence", "empty", "format", "identity", "instructions", "json_equal", "label_entropy", "label_margin",
    "language", "length", "math", "mean_logprob", "mentions", "numeric", "pii", "profanity", "refusal", "repetition", "toxicity",
    "truncated", "unparsed",
}  # fmt: skip
#: Of those that ask a model: name -> where `(rows, **knobs) -> AtMost` is, for `check`.
ASKS = {
    "judge": "llm_distill.scorers.judge:at_most",
    "refusal": "llm_distill.scorers.phrases:refusal_at_most",
    "unsafe": "llm_distill.scorers.judge:at_most",
}
#: Row-local scorers that use every core, or the accelerator, by themselves.
IN_PROCESSES = {"code", "math", "toxicity"}
#: Scorers without whose number a row is not known to be any good.
MUST_MEASURE = {"code", "instructions", "json_equal", "judge", "math", "numeric", "reward", "unsafe"}


@dataclass(frozen=True)
class Filter:
    """A scorer with its bounds."""

    name: str  # as in `score.<name>` and `dropped_by`
    plug: Plug
    min: float | None
    max: float | None
    unmeasured: str = "keep"  # or `drop`: what becomes of a row whose score is NaN

    @property
    def row_local(self) -> bool:
        """Whether each score depends on its own row alone."""
        return is_row_local(self.plug)

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there for the scorer to measure anything: `logprobs`, `labels`, `several` answers a row."""
        return NEEDS.get(self.plug.spec.name, ())

    def scores(self, answers: Sequence[Answer], context: Context) -> tuple[np.ndarray, Scored]:
        """One number for each answer, (n,) float64, and the scorer's own words."""
        return measured(self.plug, answers, replace(context, max=self.max))

    def keeps(self, scores: np.ndarray) -> np.ndarray:
        """Which rows stay, (n,) bool."""
        import numpy as np

        low = -np.inf if self.min is None else self.min
        high = np.inf if self.max is None else self.max
        unknown = np.isnan(scores) if self.unmeasured == "keep" else False
        return np.asarray(unknown | ((scores >= low) & (scores <= high)))


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

        scores, _ = measured(self.plug, answers, context)
        return np.nan_to_num(-scores if self.low else scores, nan=-np.inf).tolist()  # type: ignore[no-any-return]


def is_row_local(plug: Plug) -> bool:
    """Whether a scorer looks at one answer alone."""
    return plug.spec.name in ROW_LOCAL or bool(getattr(plug.function, "row_local", False))


def measured(plug: Plug, answers: Sequence[Answer], context: Context) -> tuple[np.ndarray, Scored]:
    """A scorer's numbers, (n,) float64, one for each answer, and its words; UserError when it gave another number of them."""
    import numpy as np

    found = plug(answers, context)
    said = found if isinstance(found, Scored) else Scored(found)
    try:
        scores = np.asarray(said.values, dtype=np.float64)
    except (TypeError, ValueError):
        wrong = f"{said.values!r:.60}"
        raise UserError(f"{plug.spec.where}: it gave {wrong}; a list of numbers is due, one for each answer.") from None
    for given in (scores.shape, (len(said.why or answers),), (len(said.prompts or answers),)):
        if given != (len(answers),):
            raise UserError(f"{plug.spec.where}: it gave {given} scores for {len(answers)} answers; one each is due.")
    return scores, said


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
    knobs = dict(spec.knobs)
    prefer = knobs.pop("prefer", "high")
    if prefer not in ("high", "low"):
        raise UserError(f"{spec.where}.prefer: found {prefer!r}; write high or low.")
    plug = bind("scorer", Spec(spec.name, knobs, spec.where), table, reading)
    if spec.name in table and not is_row_local(plug):
        raise UserError(f"{where}: {spec.name} looks at more than one answer; name a scorer that reads one alone.")
    if plug.roles:
        raise UserError(
            f"{where}: {spec.name} asks models.{plug.roles[0]}, which only a filter can; name one that does not."
        )
    return Pick(plug, prefer == "low")


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
        finite = isinstance(bound, int | float) and abs(bound) < float("inf")
        if bound is not None and (isinstance(bound, bool) or not finite):
            raise UserError(f"{spec.where}.{side}: found {bound!r}; write a number.")
    unmeasured = knobs.pop("unmeasured", "drop" if spec.name in MUST_MEASURE else "keep")
    if unmeasured not in ("keep", "drop"):
        raise UserError(f"{spec.where}.unmeasured: found {unmeasured!r}; write keep or drop.")
    plug = bind("scorer", Spec(spec.name, knobs, spec.where), table, reading)
    low, high = bounds["min"], bounds["max"]
    if low is None and high is None:
        usual = DEFAULT_BOUNDS.get(f"{spec.name} by {plug.knobs.get('by')}", DEFAULT_BOUNDS.get(spec.name))
        if usual is None:
            raise UserError(f"{spec.where}: give it `min`, `max` or both; without bounds it would drop nothing.")
        low, high = usual
    if low is not None and high is not None and low > high:
        raise UserError(f"{spec.where}: min {low} is above max {high}, so every row would be dropped.")
    return Filter(spec.name, plug, low, high, unmeasured)
