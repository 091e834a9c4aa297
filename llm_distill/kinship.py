"""Whether a judge is of the family of a model whose answers it judges.

A model favours what it wrote itself and can tell it apart (Panickssery et al. 2024, arXiv 2404.13076), and a judge favours
the students of its own family (Li et al. 2025, arXiv 2502.01534). Families are told by names, for a model's name is all that
an endpoint shows of it: what a name does not say is not found.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from llm_distill.errors import UserError
from llm_distill.plugs import Plug

if TYPE_CHECKING:
    from llm_distill.recipe import Plan

#: Family -> words in names of its models, and of models made from them.
_FAMILIES = {
    "claude": "claude",
    "command": "command|c4ai|aya",
    "deepseek": "deepseek",
    "exaone": "exaone",
    "falcon": "falcon",
    "gemini": "gemini|gemma|codegemma|medgemma|shieldgemma|palm",  # Gemma is made from Gemini's research and data
    "glm": "glm|chatglm|codegeex",
    "gpt": "gpt|chatgpt|o[134](?=-|$)|davinci|codex",
    "granite": "granite",
    "grok": "grok",
    "hunyuan": "hunyuan",
    "internlm": "internlm",
    "jamba": "jamba",
    "kimi": "kimi|moonlight",
    "llama": "llama|codellama|tinyllama|vicuna|alpaca",
    "minimax": "minimax",
    "mistral": "mistral|mixtral|ministral|magistral|codestral|devstral|pixtral|voxtral|zephyr",
    "nemotron": "nemotron",
    "nova": "nova",
    "olmo": "olmo",
    "phi": "phi",
    "qwen": "qwen|qwq|qvq|codeqwen",
    "smollm": "smollm",
    "yi": "yi",
}
_NAMES = {family: re.compile(rf"(?<![a-z])(?:{names})(?![a-z])") for family, names in _FAMILIES.items()}
#: Filters that look into a model without asking for its opinion.
_MEASURES = {"ifd", "perplexity"}


class Kin(NamedTuple):
    """A judge and a model it judges, by role, and the family of both."""

    judge: str
    role: str
    family: str

    def __str__(self) -> str:
        if self.judge == self.role:
            return f"models.{self.judge} judges its own answers, which it favours; name a judge of another family"
        return (
            f"models.{self.judge} judges answers of models.{self.role}, and both are of the family {self.family!r}: such a judge "
            "favours what sounds like itself; name one of another family"
        )


def families(name: str) -> frozenset[str]:
    """What a model's name says of its families: `qwen` of Qwen/Qwen3-32B; of DeepSeek-R1-Distill-Qwen-7B `deepseek` too. Its
    provider is no part of it. A name that is not known here is a family by its
    first word.
    """
    *before, last = name.rstrip("/").casefold().split("/")
    if found := {family for family, pattern in _NAMES.items() if pattern.search(last)}:
        return frozenset(found)
    word = None if len(before) > 1 else re.match(r"[a-z]+", last)  # a folder's name may be anything
    return frozenset({word[0]} if word else ())


def kin(plan: Plan) -> list[Kin]:
    """Each judge of the filters, of training or of the evaluation that is of a teacher's family, or, where it judges the
    student, of the student's.
    """
    own = plan.trainer.knobs.get("judge") if plan.trainer else None
    filters = {role for f in plan.filters if f.plug.spec.name not in _MEASURES for role in f.plug.roles}
    asked = [plan.evaluate.judge.model] if plan.evaluate and plan.evaluate.judge else []
    pairs = {(judge, role) for judge in {*filters, *([own] if own else []), *asked} for role in plan.teachers.roles}
    pairs |= {(judge, "student") for judge in asked if "student" in plan.models}
    found = []
    for judge, role in sorted(pairs):
        shared = _of(plan.models[judge]) & _of(plan.models[role])
        if judge == role or shared:
            found.append(Kin(judge, role, ", ".join(sorted(shared))))
    return found


def kindred_judges(plan: Plan) -> list[str]:
    """A note for each of them."""
    return list(map(str, kin(plan)))


def refuse_kin(plan: Plan, where: str) -> None:
    """UserError where there are any. where: what in the recipe or on the command line asks for that."""
    if found := kin(plan):
        raise UserError(f"{where}: {found[0]}.")


def _of(model: Plug) -> frozenset[str]:
    return families(str(model.knobs.get("model", "")))
