"""The keys under `evaluate` that look at students beyond the comparison: under perturbed rows, at groups of people, and at
several answers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from llm_distill.errors import UserError, did_you_mean
from llm_distill.generators.lexicon_file import SHIPPED as WORDS
from llm_distill.generators.lexicon_file import Attributes, LexiconFile
from llm_distill.generators.perturb import ASKED, KINDS, SHIPPED, Kind, TextsFile
from llm_distill.recipe_keys import Strict

if TYPE_CHECKING:
    from llm_distill.plugs import Plug
    from llm_distill.recipe import Plan

#: Who is asked perturbed rows: the base that scores higher, the student, the teachers.
Side = Literal["base", "student", "teacher"]


class Robustness(Strict):
    """The held-out rows once more, each perturbed, to the arms named.

    kinds: all that need no model, unless named. rows: so many of the held-out ones by hash; null is all. arms: a teacher
    costs money, and is left out unless named. model: the role that writes paraphrases. typo_share: of a text's words.
    texts: a file like prompts/perturbations.yaml. paraphrase_tokens: of an answer with a paraphrase, at most.
    """

    kinds: list[Kind] = Field([kind for kind in KINDS if kind != ASKED], min_length=1)
    rows: int | None = Field(200, ge=1)
    arms: list[Side] = Field(["base", "student"], min_length=1)
    model: str | None = None
    typo_share: float = Field(0.1, gt=0, le=1)
    texts: TextsFile = SHIPPED
    paraphrase_tokens: int = Field(512, ge=16)

    def model_post_init(self, _context: Any) -> None:
        """Paraphrases have a writer, and nothing else has one."""
        if ASKED in self.kinds and self.model is None:
            raise ValueError("kinds: a paraphrase is written by a model; name its role, for example `model: teacher`")
        if self.model is not None and ASKED not in self.kinds:
            raise ValueError(
                "model: it writes paraphrases, and kinds has none; add `paraphrase` to kinds, or remove it"
            )
        for key in ("kinds", "arms"):
            if len(set(listed := getattr(self, key))) < len(listed):
                raise ValueError(f"{key}: found {', '.join(listed)}; each is named once")


class Bias(Strict):
    """Whether training made the student more uneven. Measured without this key where held-out rows are counterfactual groups.

    of: what of two answers in a group is compared; without it the label, or sentiment and length of texts. by: tags whose values
    are groups of people, compared by their rates. margin: as even as before is within it. groups, attributes: the lexicon whose
    words are counted in texts, and what of it.
    """

    of: list[Literal["label", "label_probs", "text", "sentiment", "length", "refusal"]] = Field([])
    by: list[str] = Field([])
    margin: float = Field(0.05, gt=0, lt=1)
    groups: LexiconFile = WORDS
    attributes: Attributes = None


class PassAt(Strict):
    """pass@k: how often at least one of k answers to a held-out row is right, by each metric of `evaluate.metrics` that says
    right or wrong, of the arms named. `pass_at: [1, 5]` is short for `pass_at: {k: [1, 5]}`.

    samples: answers a row that this is estimated from, at least the largest k; twice it unless given. temperature: they are drawn
    at; 0.8 is what suits a large k (Chen et al. 2021).
    """

    k: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    samples: int = Field(0, le=1000)
    temperature: float = Field(0.8, allow_inf_nan=False)
    arms: list[Side] = Field(["base", "student", "teacher"], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        return {"k": value} if isinstance(value, list) else value

    def model_post_init(self, _context: Any) -> None:
        """Enough answers, which differ."""
        for key in ("k", "arms"):
            if len(set(listed := getattr(self, key))) < len(listed):
                raise ValueError(f"{key}: found {', '.join(map(str, listed))}; each is named once")
        if "samples" not in self.model_fields_set:
            self.samples = 2 * max(self.k)
        if self.samples < max(self.k):
            raise ValueError(
                f"samples: pass@{max(self.k)} needs {max(self.k)} answers a row or more, and samples is {self.samples}; raise it"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature: found {self.temperature:g}, at which all answers to a row are the same; write one above 0, for "
                "example 0.8"
            )


def check_recipe(plan: Plan) -> None:
    """UserError for robustness, bias or pass@k that cannot be measured in this recipe."""
    how = plan.evaluate.robustness if plan.evaluate else None
    if plan.evaluate and plan.evaluate.bias:
        _check_bias(plan, plan.evaluate.bias)
    if plan.evaluate and plan.evaluate.pass_at:
        _check_pass_at(plan, plan.evaluate.pass_at)
    if plan.ship and plan.ship.min_robust_share is not None and (how is None or "student" not in how.arms):
        raise UserError(
            "ship.min_robust_share: the student is asked no perturbed rows; add `robustness: {}` to evaluate, with student in "
            "its `arms`."
        )
    if how is None:
        return
    where = "evaluate.robustness"
    if how.model is not None and how.model not in plan.models:
        raise UserError(f"{where}.model: no model {how.model!r} in `models`.{did_you_mean(how.model, plan.models)}")
    _check_arms(plan, how.arms, where)


def _check_arms(plan: Plan, arms: Sequence[Side], where: str) -> None:
    there = {"base": "student" in plan.models, "student": plan.trainer is not None, "teacher": True}
    if not any(there[arm] for arm in arms):
        raise UserError(
            f"{where}.arms: none of {', '.join(arms)} is there; add `train` and models.student, or write `arms: [teacher]`."
        )


def _check_pass_at(plan: Plan, how: PassAt) -> None:
    where = "evaluate.pass_at"
    if not right_or_wrong(plan):
        raise UserError(
            f"{where}: no metric says whether an answer is right; add one to evaluate.metrics that does, e.g. `metrics: [code]`."
        )
    _check_arms(plan, how.arms, where)


def right_or_wrong(plan: Plan) -> list[Plug]:
    """The metrics that the recipe names and that give 1 or 0."""
    from llm_distill.evals.metrics import RIGHT_OR_WRONG

    return [plug for plug in plan.metrics if plug.spec.name in RIGHT_OR_WRONG]


def _check_bias(plan: Plan, how: Bias) -> None:
    if plan.trainer is None:
        raise UserError(
            "evaluate.bias: it holds a student against its base and its teacher, and there is none; add `train`."
        )
    if plan.task.kind == "generate" and (labelled := [of for of in how.of if of.startswith("label")]):
        raise UserError(f"evaluate.bias.of: {labelled[0]} needs labels, and the task is generate; remove it.")
    if "label_probs" in how.of and plan.answers.top_logprobs is None:
        raise UserError(
            "evaluate.bias.of: label_probs reads logprobs, and answers.top_logprobs is not set; add `top_logprobs: 20` to "
            "answers."
        )
