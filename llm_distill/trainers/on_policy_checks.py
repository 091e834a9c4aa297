"""Which teachers suit `gkd`, `gold` and `server`: what the recipe shows is found by `check`, what the tokenizers show before a
run asks anybody. Each message states the repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_distill.errors import UserError

if TYPE_CHECKING:
    from llm_distill.plugs import Plug
    from llm_distill.recipe import Plan

_LOCAL = (
    ("transformers",),
    "the teacher's weights",
    "use logit_kd (its logprobs), dpo (its texts), sft, or a transformers teacher",
)
#: Trainer -> kinds of models that can be its teacher, what it needs of them, and what to do with another.
_KINDS = {
    "gkd": _LOCAL,
    "gold": _LOCAL,
    "server": (
        ("vllm", "openai_api"),
        "a teacher behind a vLLM server",
        "use gkd for transformers, logit_kd or dpo for others",
    ),
}


def check_recipe(plan: Plan) -> None:
    """UserError where the recipe's words say that a teacher does not suit its trainer."""
    if plan.trainer and plan.trainer.spec.name in _KINDS:
        teacher_plug(plan.models, plan.trainer.knobs["teacher"], plan.trainer.spec.name)


def check_weights(plan: Plan) -> None:
    """UserError where weights and tokenizers say so; they are on this machine, and only tokenizers are loaded."""
    if plan.trainer and plan.trainer.spec.name in _KINDS:
        suited(plan.models, plan.models["student"].knobs, plan.trainer.knobs["teacher"], plan.trainer.spec.name)


def teacher_plug(models: Mapping[str, Plug], role: str, trainer: str) -> Plug:
    """The teacher's plug, where a model of its kind can be one; UserError elsewhere."""
    kinds, need, instead = _KINDS[trainer]
    plug = models.get(role)
    if plug is None:
        raise UserError(f"train.{trainer}.teacher: no model {role!r}; there are {', '.join(sorted(models)) or 'none'}.")
    if plug.spec.name not in kinds:
        raise UserError(f"train.{trainer} needs {need}, but {role} is {plug.spec.name}: {instead}.")
    if plug.spec.name == "openai_api":
        prices = plug.knobs.get("prices_usd")
        if prices is None or prices.prompt or prices.completion:
            raise UserError(
                f"train.{trainer}: the student's answers are scored past the ledger and every budget, so by a server that costs "
                f"nothing, and {role} does not say that it is one. If it is your own, add `prices_usd: {{prompt: 0, completion: "
                "0}` to it; for a paid one use logit_kd (its logprobs) or dpo (its texts)."
            )
        if not plug.knobs.get("tokenizer"):
            raise UserError(
                f"train.{trainer}: {role} is asked by token ids, and which they are is not known here; name its `tokenizer`."
            )
    return plug


def suited(models: Mapping[str, Plug], student: Mapping[str, Any], role: str, trainer: str) -> Plug:
    """The same, where its weights are not the student's own, and its vocabulary is (for gold: is another)."""
    plug = teacher_plug(models, role, trainer)
    if plug.spec.name != "openai_api" and identity(plug.knobs) == base(student):
        raise UserError(
            f"train.{trainer}: {role} has the student's own weights, and nothing to teach it; name another model."
        )
    found = difference(tokenizer(student), teacher_tokenizer(plug))
    if trainer == "gold" and not found:
        raise UserError(f"train.gold is for another vocabulary, and {role} has the student's own: use gkd.")
    if trainer != "gold" and found:
        local = "gold, or " if trainer == "gkd" else ""
        raise UserError(
            f"train.{trainer} compares token by token, but {role} has another vocabulary than the student: {found}. Use {local}"
            "logit_kd, which aligns by bytes."
        )
    if trainer == "gkd" and (rows := head_rows(plug.knobs)) < (own := head_rows(student)):
        raise UserError(
            f"train.gkd: the student's head has {own:,} rows and that of {role} {rows:,}; of {own - rows:,} the teacher says "
            "nothing. Use logit_kd, or a teacher with as many."
        )
    return plug


def head_rows(knobs: Mapping[str, Any]) -> int:
    """How many rows the head of these weights has, padding among them: more than there are tokens, often."""
    from transformers import AutoConfig

    from llm_distill.models import weights

    place = weights.prepare(knobs["model"], knobs.get("sha256"), knobs.get("revision"))
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    return int(config.get_text_config(decoder=True).vocab_size)


def identity(knobs: Mapping[str, Any]) -> str:
    """Which weights the knobs of a transformers or vllm model name."""
    from llm_distill.models import weights

    return weights.identity(knobs["model"], knobs.get("sha256"), knobs.get("revision"), knobs.get("adapter"))


def base(student: Mapping[str, Any]) -> str:
    """Which weights training begins with."""
    return identity({**student, "adapter": None})


def tokenizer(knobs: Mapping[str, Any]) -> Any:
    """The tokenizer of these weights."""
    from llm_distill.models import weights

    return weights.load_tokenizer(knobs["model"], knobs.get("sha256"), knobs.get("revision"))


def teacher_tokenizer(plug: Plug) -> Any:
    """That of a teacher: an endpoint's is named."""
    return tokenizer({"model": plug.knobs["tokenizer"]} if plug.spec.name == "openai_api" else plug.knobs)


def difference(student: Any, teacher: Any) -> str | None:
    """How two tokenizers' vocabularies differ, token by token and not by size (Qwen2.5's heads have two sizes and one
    vocabulary); None where they do not.
    """
    from llm_distill.models.vocabulary import Vocabulary

    one, other = Vocabulary.of(student), Vocabulary.of(teacher)
    sizes = len(student), len(teacher)
    unlike = [i for i in range(min(sizes)) if one.token(i) != other.token(i)]
    if sizes[0] == sizes[1] and not unlike and one.special == other.special:
        return None
    if unlike:
        i = unlike[0]
        return (
            f"{len(unlike):,} of {min(sizes):,} tokens differ (token {i} is {one.token(i)!r} to the student and "
            f"{other.token(i)!r} to the teacher)"
        )
    if sizes[0] != sizes[1]:
        return f"the student's has {sizes[0]:,} tokens and the teacher's {sizes[1]:,}"
    i = min(one.special ^ other.special)
    return f"token {i}, {one.token(i)!r}, is special to one of them only"
