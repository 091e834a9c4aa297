"""The keys of a recipe that are objects of their own, as pydantic models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator

from llm_distill.limits import Budget, Limits, Per
from llm_distill.plain import Plain
from llm_distill.plugs import InputFile
from llm_distill.records import Sampling
from llm_distill.structured import Schema

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(ge=0)]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_name(name: str) -> str:
    """A recipe's name; ValueError when it cannot name a folder."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {name!r}; it names a folder: letters, digits, dot, dash and underscore, at most 64")
    return name


class Strict(Plain, BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class HeldOut(Strict):
    """Rows that only evaluation sees: a labelled file, or a share of the prompts picked by a hash of their content.

    near: rows whose word 3-grams are alike by so much (Jaccard) stay on one side; null compares nothing.
    """

    file: InputFile | None = None
    share: float | None = Field(None, gt=0, lt=1)
    near: float | None = Field(0.7, gt=0, le=1)

    def model_post_init(self, _context: Any) -> None:
        """Exactly one way."""
        if (self.file is None) == (self.share is None):
            raise ValueError("write either `file: rows.jsonl` or `share: 0.1`")


class Attach(Strict):
    """An open model that reads the teachers' answers, where they themselves give no logprobs: what it finds likely at each
    place is learnt in their stead.

    model: its role. top_logprobs: 20 is what hosted APIs give, and all but a hundredth of the mass (arXiv 2410.16215).
    """

    model: str
    top_logprobs: int = Field(20, ge=1, le=1024)


class Answers(Strict):
    """How the teachers are asked, and what that may cost."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1)
    stop: list[Annotated[str, Field(min_length=1)]] = []  # an empty one would end every answer before its first word
    seed: int | None = None
    top_logprobs: int | None = Field(None, ge=0)
    attach: Attach | None = None
    samples: int = Field(1, ge=1, le=256)
    best_by: str | dict[str, Any] | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    reasoning: Literal["auto", "none"] = "auto"
    fresh: bool = False
    budget_usd: Usd | Annotated[dict[Per, Usd], Field(min_length=1)] | None = None
    budget_tokens: _Tokens | Annotated[dict[Per, _Tokens], Field(min_length=1)] | None = None
    per: Per = "run"
    retries: int = Field(6, ge=0)
    max_failed: float = Field(0.05, ge=0, le=1)
    drain_s: float = Field(20.0, ge=0)

    @property
    def sampling(self) -> Sampling:
        """The part that every answer depends on."""
        stop, schema = tuple(self.stop), self.json_schema
        return Sampling(self.temperature, self.top_p, self.max_tokens, stop, self.seed, self.top_logprobs, schema)

    @property
    def limits(self) -> Limits:
        """The part that bounds the asking."""
        return Limits(self.budgets, self.retries, self.max_failed, self.drain_s)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Every bound, a plain number being one for the time that `per` says."""
        usd = self.budget_usd if isinstance(self.budget_usd, dict) else {self.per: self.budget_usd}
        tokens = self.budget_tokens if isinstance(self.budget_tokens, dict) else {self.per: self.budget_tokens}
        found = [Budget(per, usd.get(per), tokens.get(per)) for per in get_args(Per)]
        return tuple(b for b in found if b.usd is not None or b.tokens is not None)


class Probe(Strict):
    """Frozen rows that the teachers are asked anew by every run, to notice when one of them has moved.

    rows: of the held-out ones, where no file is named. min_agreement: of the answers with earlier ones, in shares; 0.9 of labels
    unless given, and of texts no bound.
    """

    file: InputFile | None = None
    rows: int = Field(50, ge=2, le=10_000)
    min_agreement: float | None = Field(None, gt=0, le=1)

    def model_post_init(self, _context: Any) -> None:
        """Not both."""
        if self.file is not None and "rows" in self.model_fields_set:
            raise ValueError("write either `file: rows.jsonl` or `rows: 50`")


class Report(Strict):
    """What the report says besides the numbers."""

    title: str | None = None
    notes: str | None = None


class Range(Strict):
    """Every number from `low` to `high`; `log`: factors count, not differences. Whole ones where the knob takes no others."""

    low: float
    high: float
    log: bool = False

    def model_post_init(self, _context: Any) -> None:
        """In order, and positive where factors count."""
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be the smaller")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, and `log: true` needs it above 0")


def _values(found: Any) -> Any:
    if isinstance(found, list) and (len(found) < 2 or any(one in found[:i] for i, one in enumerate(found))):
        raise ValueError(f"found {found}; list two or more different values")
    if not isinstance(found, list | Mapping):
        raise ValueError(f"found {found!r}; list the values, or write a range: {{low: 0.1, high: 0.9}}")
    return found


#: What a knob is tried at: the values of a list, or a range.
Values = Annotated[
    Annotated[list[Any], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(lambda found: "values" if isinstance(found, list) else "range"),
    BeforeValidator(_values),
]


class Dev(Strict):
    """The rows that trials are judged on: a share of those to be trained on (a fifth, as in five-fold cross-validation), or
    a labelled file.
    """

    file: InputFile | None = None
    share: float = Field(0.2, gt=0, lt=1)

    def model_post_init(self, _context: Any) -> None:
        """Not both."""
        if self.file is not None and "share" in self.model_fields_set:
            raise ValueError("write either `file: rows.jsonl` or `share: 0.2`")


class Sweep(Strict):
    """Which knobs of the trainer are tried at which values, how often, and what decides.

    trials: beside the recipe's own settings; a grid has as many as it has points. seeds: trainings of each, averaged.
    metric: null is agreement with the teacher on a share of its rows, and the task's own metric on a labelled file.
    """

    over: dict[str, Values] = Field(min_length=1)
    # Random search needs few trials where few knobs matter (Bergstra and Bengio 2012), and each is a training.
    trials: int | None = Field(None, ge=1, le=1000)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    metric: Literal["accuracy", "token_f1", "agreement_with_teacher"] | None = None
    seeds: int = Field(1, ge=1, le=20)
    dev: Dev = Dev()

    @field_validator("over")
    @classmethod
    def _of_training(cls, over: dict[str, Any]) -> dict[str, Any]:
        for path in over:
            steps = path.split(".")
            if steps[0] != "train" or not all(steps):
                raise ValueError(
                    f"found {path!r}; trials share every answer, so they differ in knobs of training alone: "
                    "`train.sft.learning_rate`"
                )
            if steps[-1] == "seed":
                raise ValueError(f"found {path!r}; a seed is no setting; `seeds: 3` averages over three")
            if above := [other for other in over if path.startswith(f"{other}.")]:
                raise ValueError(f"{path} lies within {above[0]}, which is swept too; keep one of them")
        return over

    def model_post_init(self, _context: Any) -> None:
        """A grid has points."""
        if self.sampler != "grid":
            return
        if self.trials is not None:
            raise ValueError("a grid has as many trials as points; remove `trials`, or use `sampler: random`")
        for path, values in self.over.items():
            if isinstance(values, Range):
                raise ValueError(f"a grid needs a list of values for {path}; found a range")
