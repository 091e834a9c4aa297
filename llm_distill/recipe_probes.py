"""The keys under `evaluate` that look at students beyond the comparison: under perturbed rows, and at groups of people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llm_distill.errors import UserError, did_you_mean
from llm_distill.generators.lexicon_file import SHIPPED as WORDS
from llm_distill.generators.lexicon_file import Attributes, LexiconFile
from llm_distill.generators.perturb import ASKED, KINDS, SHIPPED, Kind, TextsFile
from llm_distill.recipe_keys import Strict

if TYPE_CHECKING:
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


def check_recipe(plan: Plan) -> None:
    """UserError for robustness that cannot be asked in this recipe."""
    how = plan.evaluate.robustness if plan.evaluate else None
    if plan.evaluate and plan.evaluate.bias:
        _check_bias(plan, plan.evaluate.bias)
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
    there = {"base": "student" in plan.models, "student": plan.trainer is not None, "teacher": True}
    if not any(there[arm] for arm in how.arms):
        raise UserError(
            f"{where}.arms: none of {', '.join(how.arms)} is there; add `train` and models.student, or write `arms: [teacher]`."
        )


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
