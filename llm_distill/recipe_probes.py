"""The keys under `evaluate` that look at students beyond the comparison: under perturbed rows, and at groups of people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llm_distill.errors import UserError, did_you_mean
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


def check_recipe(plan: Plan) -> None:
    """UserError for robustness that cannot be asked in this recipe."""
    how = plan.evaluate.robustness if plan.evaluate else None
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
