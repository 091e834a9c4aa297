"""The key `evaluate.judge`: who judges what the arms answered, by which standard, and what that comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, field_validator

from llm_distill import templates
from llm_distill.errors import UserError, did_you_mean
from llm_distill.evals.people import Opinion, Rival, read_opinions
from llm_distill.generators import AtMost
from llm_distill.kinship import refuse_kin
from llm_distill.plugs import InputFile
from llm_distill.recipe_keys import Strict
from llm_distill.scorers.ballot import Form
from llm_distill.scorers.judge import Rubric, Runs, Scale, Tokens, at_most
from llm_distill.scorers.verdicts import Case, comparing, scoring

if TYPE_CHECKING:
    from llm_distill.recipe import Plan


class Judge(Strict):
    """A model that judges the held-out answers. The knobs that the filter `judge` has mean the same here.

    rubric: the standard, for scores and comparisons. scores: whether each arm's answers get one. pairwise: with whom the
    student's answers are compared, in both orders; `base` is the few-shot base where there is one. human: people's ratings and
    preferences (see `evals.people`). strict: refuse a judge of the teacher's or the student's family.
    """

    model_config = ConfigDict(validate_default=True)
    model: str = "judge"
    rubric: Rubric = templates.BUILT_IN / "quality.md"
    scale: Scale = (1, 5)
    scores: bool = True
    pairwise: list[Rival] = Field([])
    reference: bool = False
    plain: bool = False
    runs: Runs = 1
    form: Form = "json"
    max_tokens: Tokens = 512
    human: InputFile | None = None
    strict: bool = False

    @field_validator("pairwise")
    @classmethod
    def _each_once(cls, found: list[Rival]) -> list[Rival]:
        if len(set(found)) < len(found):
            raise ValueError(f"found {found}; name each once")
        return found

    def model_post_init(self, _context: Any) -> None:
        """Something is asked, and people's opinions can be held against it."""
        if not self.scores and not self.pairwise:
            raise ValueError(
                "nothing is asked of the judge; add `pairwise: [teacher, base]`, or remove `scores: false`"
            )
        if self.human:
            self.opinions(self.human)

    def opinions(self, path: Path) -> list[Opinion]:
        """What people said, checked."""
        return read_opinions(path, self.scale, self.pairwise, scores=self.scores)

    @property
    def scoring(self) -> Case:
        """How an answer is scored: as the filter `judge` does it."""
        return scoring(
            self.rubric, self.scale, self.form, self.max_tokens,
            reference=self.reference, plain=self.plain, runs=self.runs,
        )  # fmt: skip

    @property
    def comparing(self) -> Case:
        """How two answers are compared. No reference is shown: its place is the other answer's."""
        return comparing(self.rubric, self.form, self.max_tokens, reference=False, plain=self.plain, runs=self.runs)


def judged_arms(plan: Plan) -> int:
    """How many arms there are to score."""
    student = "student" in plan.models
    how = plan.evaluate
    others = len(how.students) + (how.previous is not None) if how else 0
    return 1 + student + (student and plan.task.few_shot is not None) + (plan.trainer is not None) + others


def asked_of_judge(plan: Plan, rows: int) -> AtMost | None:
    """What the judge of the evaluation is asked about so many held-out rows, where each question is asked a second time;
    None where there is no judge.
    """
    how = plan.evaluate.judge if plan.evaluate else None
    if how is None:
        return None
    opinions = how.opinions(how.human) if how.human else []
    scored = (rows * judged_arms(plan) + sum(one.answer is not None for one in opinions)) * how.scores
    compared = rows * len(how.pairwise) + sum(one.answers is not None for one in opinions)
    parts = [
        at_most(scored, rubric=how.rubric, runs=how.runs, max_tokens=how.max_tokens),
        at_most(compared, rubric=how.rubric, runs=how.runs, max_tokens=how.max_tokens, against="another"),
    ]
    shown = plan.drawn.max_tokens * (2 if how.pairwise else 1)
    return AtMost(0, sum(part.questions for part in parts), parts[0].prompt_tokens + shown, how.max_tokens)


def check_recipe(plan: Plan) -> None:
    """UserError for a judge that does not fit the rest of the recipe."""
    how = plan.evaluate.judge if plan.evaluate else None
    if plan.evaluate is None or how is None:
        return
    where = "evaluate.judge"
    if how.model not in plan.models:
        raise UserError(f"{where}.model: no model {how.model!r} in `models`.{did_you_mean(how.model, plan.models)}")
    if how.pairwise and not plan.trainer:
        raise UserError(
            f"{where}.pairwise: it compares the student with others, and the recipe has no `train`; add it, or remove `pairwise`."
        )
    if plan.evaluate.metric == "judge" and plan.evaluate.robustness:
        raise UserError(
            "evaluate.robustness: it scores perturbed rows on evaluate.metric, and the judge is not asked about those; name "
            "another metric, or remove robustness."
        )
    if how.strict:
        refuse_kin(plan, f"{where}.strict")
