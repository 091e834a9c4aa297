"""The keys of a recipe that are objects of their own, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from llm_distill.limits import Budget, Limits, Per
from llm_distill.plugs import InputFile
from llm_distill.records import Sampling
from llm_distill.structured import Schema

_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
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


class Answers(Strict):
    """How the teachers are asked, and what that may cost."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1)
    stop: list[str] = []
    seed: int | None = None
    top_logprobs: int | None = Field(None, ge=0)
    samples: int = Field(1, ge=1, le=256)
    best_by: str | dict[str, Any] | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    reasoning: Literal["auto", "none"] = "auto"
    fresh: bool = False
    budget_usd: _Usd | dict[Per, _Usd] | None = None
    budget_tokens: _Tokens | dict[Per, _Tokens] | None = None
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


class Evaluate(Strict):
    """How the arms are compared. Sampling defaults to the answers' own, greedy."""

    slices: list[str] = []
    temperature: float = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    resamples: int = Field(10_000, ge=100)


class Report(Strict):
    """What the report says besides the numbers."""

    title: str | None = None
    notes: str | None = None
