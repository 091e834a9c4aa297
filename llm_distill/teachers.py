"""Who answers which row: the recipe's `teachers`.

    teachers: [big, small]                                        every one answers every row; their answers are merged
    teachers: {mix: {big: 0.7, small: 0.3}}                       one each row, by a hash of the row, in these shares
    teachers: {route: {tag: lang, to: {de: german}, otherwise: big}}       one each row, by the value of its tag

The names are roles of `models`. Without the key, the role `teacher` answers alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Prompt, content_id

if TYPE_CHECKING:
    from llm_distill.recipe import Plan

_SHAPES = "write a list of roles, `{mix: {role: share}}` or `{route: {tag: name, to: {value: role}}}`"
#: Shares may sum to 1 within this much: 0.333 three times is meant well, 0.7 and 0.03 is a slip.
_ROUNDING = 0.002


class Route(BaseModel):
    """The role that answers for each value of a tag, and who answers for all other rows."""

    model_config = ConfigDict(extra="forbid")
    tag: str
    to: dict[str, str] = Field(min_length=1)
    otherwise: str | None = None


class Teachers(BaseModel):
    """One of the three shapes."""

    model_config = ConfigDict(extra="forbid")
    each: list[str] | None = Field(None, min_length=1)
    mix: dict[str, float] | None = Field(None, min_length=1)
    route: Route | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_shape(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"each": value}
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("mix", "route"):
            return value
        raise ValueError(f"found {value!r}; {_SHAPES}")

    @model_validator(mode="after")
    def _sound(self) -> Teachers:
        if self.each and len(set(self.each)) < len(self.each):
            raise ValueError(f"a role stands twice in {self.each}; ask one model several times with answers.samples")
        if self.mix:
            wrong = [role for role, share in self.mix.items() if not 0 < share <= 1]
            total = math.fsum(self.mix.values())
            if wrong or abs(total - 1) > _ROUNDING:
                raise ValueError(f"mix: shares are above 0 and sum to 1; found {self.mix}, which sum to {total:g}")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that may be asked, sorted: nothing depends on the order in which a recipe names them."""
        if self.route:
            others = [self.route.otherwise] if self.route.otherwise else []
            return tuple(sorted({*self.route.to.values(), *others}))
        return tuple(sorted(self.mix or self.each or ()))

    @property
    def a_row(self) -> int:
        """How many of them answer one row."""
        return len(self.each) if self.each else 1

    @property
    def described(self) -> str:
        """In words: who, and how the rows are shared."""
        if self.route:
            cases = [f"{value}: {role}" for value, role in sorted(self.route.to.items())]
            cases += [f"otherwise: {self.route.otherwise}"] if self.route.otherwise else []
            return f"by the tag {self.route.tag} ({', '.join(cases)})"
        if self.mix:
            return "one a row (" + ", ".join(f"{role} {share:g}" for role, share in sorted(self.mix.items())) + ")"
        return self.roles[0] if self.a_row == 1 else f"all of {', '.join(self.roles)}"

    def of(self, prompt: Prompt) -> tuple[str, ...]:
        """The roles that answer a row, sorted.

        A mix is weighted rendezvous hashing (Schindelhauer and Schomaker 2005): a row keeps its teacher when rows are
        added, and when shares change rows move only to those whose share of the whole has grown.
        """
        if self.route:
            role = self.route.to.get(prompt.tags.get(self.route.tag, ""), self.route.otherwise)
            assert role is not None, "check_rows was not called"
            return (role,)
        if self.mix:
            return (min(sorted(self.mix), key=lambda role: _wait(role, prompt.prompt_id) / (self.mix or {})[role]),)
        return self.roles

    def check_roles(self, models: Collection[str]) -> None:
        """UserError for a role that `models` does not have."""
        for role in self.roles:
            if role not in models:
                raise UserError(f"teachers: no role {role!r} in models.{did_you_mean(role, models)}")

    def check_models(self, identities: Mapping[str, str]) -> None:
        """UserError where two that answer the same rows are one model (role -> identity): it would agree with itself."""
        for one, other in combinations(self.roles if self.each else (), 2):
            if identities[one] == identities[other]:
                raise UserError(
                    f"teachers: {one} and {other} are the same model ({identities[one]}); name one of them, and ask it "
                    "several times with answers.samples."
                )

    def check_rows(self, prompts: Sequence[Prompt]) -> None:
        """UserError for rows that no route leads from."""
        if self.route is None or self.route.otherwise:
            return
        tag, to = self.route.tag, self.route.to
        lost = Counter(p.tags.get(tag, "(no such tag)") for p in prompts if p.tags.get(tag, "") not in to)
        if lost:
            named = ", ".join(f"{value} ({n:,} rows)" for value, n in lost.most_common(10))
            more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
            raise UserError(
                f"teachers.route: no teacher for these values of the tag {tag!r}: {named}{more}; routed are "
                f"{', '.join(sorted(to))}. Add them under `to`, or name who answers the rest: `otherwise: role`."
            )


def check_asking(plan: Plan) -> None:
    """UserError where samples, best_by or schema do not go with the rest of the recipe."""
    answers, kind = plan.answers, plan.task.kind
    if answers.samples > 1 and answers.temperature == 0:
        raise UserError(
            f"answers.samples: at temperature 0 all {answers.samples} would be the same; set `temperature: 0.7`, or "
            "`samples: 1`."
        )
    if plan.pick and kind == "classify":
        raise UserError("answers.best_by: labels are merged, not chosen among; remove it.")
    if plan.pick and plan.questions_a_row == 1:
        raise UserError(
            "answers.best_by: each row is asked for once, so there is nothing to choose from; remove it, or add "
            "`samples: 5` to answers."
        )
    if answers.json_schema and kind == "classify":
        raise UserError(
            "answers.schema: a classify task reads a label from the start of an answer; remove it, or make the task "
            "`generate`."
        )
    if answers.json_schema and plan.task.teacher_view.raw:
        raise UserError("answers.schema: `raw` text is no conversation in which to ask again; remove task.teacher.raw.")


def _wait(role: str, row: str) -> float:
    """A draw from the exponential distribution with mean 1, the same for ever for a role and a row."""
    return -math.log1p(-int(content_id(["mix", role, row])[:13], 16) / 16**13)
