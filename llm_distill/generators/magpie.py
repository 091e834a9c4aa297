"""Prompts that an aligned model writes when it is given nothing but the beginning of a user's turn (Magpie)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering
from llm_distill.generators.lists import fault
from llm_distill.generators.novelty import ROUGE_L, Novelty
from llm_distill.plugs import Role
from llm_distill.records import Message, Prompt, Request, Sampling

if TYPE_CHECKING:
    from llm_distill.models import Model

#: Hosts whose models take conversations only.
_CHAT_ONLY = ("api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com", "api.x.ai", "api.cohere.com")
#: A user's words, while the template around them is looked at.
_WORDS = "Zq7Words"
#: What is left in a text of turns that were gone through: tokens of well-known templates, or a role's name on its own line.
_TURNS = re.compile(
    r"<\|[\w ]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|^(?:assistant|user|system|model):?\s*$", re.MULTILINE
)


@dataclass(frozen=True)
class Turn:
    """A user's turn in a model's template: the text up to the user's words, and what ends these, if anything does."""

    prefix: str
    end: str | None


def magpie(
    context: Context,
    *,
    rows: Annotated[int, Field(ge=1)],
    model: Role = "teacher",
    prefix: Annotated[str, Field(min_length=1)] | None = None,
    system: Annotated[str, Field(min_length=1)] | None = None,
    stop: list[str] = [],  # noqa: B006 - never changed
    one_line: bool = True,
    temperature: Annotated[float, Field(gt=0)] = 1.0,  # the paper's, for all its models
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,  # the paper's
    max_tokens: Annotated[int, Field(ge=1)] = 512,  # a prompt that is longer still did not find its end
    novelty: Novelty | None = ROUGE_L,
    min_words: Annotated[int, Field(ge=1)] = 4,  # self-instruct's
    max_words: Annotated[int, Field(ge=1)] = 300,  # what `max_tokens` holds
    surplus: Annotated[float, Field(ge=1)] = 4.0,
) -> Iterator[Prompt]:
    r"""`rows` prompts that the model continues its own pre-query prefix with: its chat template up to the user's words.

    The prefix is read off the template of the role's weights (with its own system turn, or with `system`, which steers what
    is asked about), or is `prefix` itself, such as `<|im_start|>user\n`. A prompt ends with the end of the user's turn, with
    one of `stop`, and, unless `one_line` is false, with its first line, behind which models tend to answer themselves. The
    model is one whose text can be continued raw: transformers, vllm, vllm_offline, or a server with `/completions` and a
    `prefix`. It is asked until there are `rows`, until a round adds none, or `surplus` times as often as there are rows. A
    prompt is thrown away that is cut, has fewer than `min_words` or more than `max_words`, is unfinished, holds tokens of a
    template, or is not new. Xu et al. 2024, arXiv 2406.08464.
    """
    _check(prefix, system)
    turn, special = opening(context.model(model), model, prefix, system, stop)
    ends = [*([turn.end] if turn.end else []), *stop, *(["\n"] if one_line else [])]
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop=tuple(dict.fromkeys(ends)))
    gathering = Gathering(context, novelty)
    limit = ceil(rows * surplus)
    wrong = partial(_wrong, least=min_words, most=max_words, special=special)
    ended = ""
    while len(gathering.rows) < rows and not ended:
        due = min(rows - len(gathering.rows), limit - gathering.asked)
        samples = range(gathering.asked, gathering.asked + due)
        asked = [Request((Message("user", turn.prefix),), sampling, sample=n, raw=True) for n in samples]
        texts = [text for text in gathering.ask(model, asked) if text is not None]
        added = gathering.take([(text, {}) for text in texts], most=rows, wrong=wrong)
        if not added:
            ended = ", the last of which added nothing"
        elif gathering.asked >= limit:
            ended = ", as many as `surplus` allows"
    gathering.say("magpie", rows, ended if len(gathering.rows) < rows else "")
    yield from gathering.rows


def at_most(_before: int, *, rows: int, surplus: float, max_tokens: int, **knobs: Any) -> AtMost:
    """What it may come to."""
    _check(knobs["prefix"], knobs["system"])
    return AtMost(rows, ceil(rows * surplus), 50, max_tokens)  # a template's beginning, about


def opening(
    model: Model, role: str, prefix: str | None, system: str | None, stop: Collection[str] = ()
) -> tuple[Turn, frozenset[str]]:
    """The user's turn to continue, and the model's special tokens; a UserError where it has none that can be continued."""
    from llm_distill.models.vllm_server import VllmModel

    if model.batches or any(f"//{host}" in model.identity for host in _CHAT_ONLY):
        raise UserError(
            f"magpie needs a model whose text can be continued raw: models.{role} takes conversations only; name a "
            "`transformers`, `vllm` or `vllm_offline` model."
        )
    tokenizer = model.tokenizer()
    if tokenizer is None:
        if prefix is None:
            raise UserError(
                f"magpie needs a model whose text can be continued raw: models.{role} has no chat template here; name a "
                "`transformers`, `vllm` or `vllm_offline` model, or write its `prefix`, such as '<|im_start|>user\\n'."
            )
        return Turn(prefix, None), frozenset()
    if prefix is None and tokenizer.chat_template is None:
        raise UserError(
            f"magpie: models.{role} is a base model, which has no chat template and has not learned what users write; name "
            "an aligned one, or a `prefix`."
        )
    turn = Turn(prefix, None) if prefix is not None else _of_template(tokenizer, system)
    turn = Turn(_begun_once(tokenizer, turn.prefix), turn.end)
    tokens = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for end in (turn.end, *stop):
        if (
            isinstance(model, VllmModel)
            and end in tokens
            and tokens[end] not in _ends(tokenizer)
            and not model.spells_special
        ):
            raise UserError(
                f"magpie: {end!r} ends the user's turn of models.{role}, and vLLM leaves it out of its text without ending "
                "there; add `extra_body: {skip_special_tokens: false}` to the model, or use `vllm_offline`."
            )
    return turn, frozenset(tokens)


def _check(prefix: str | None, system: str | None) -> None:
    if prefix is not None and system is not None:
        raise UserError(
            "magpie: found `prefix` and `system`; a prefix holds its own system turn, so write one of them."
        )


def _of_template(tokenizer: Any, system: str | None) -> Turn:
    from jinja2 import TemplateError

    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": _WORDS})
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"magpie: the model's chat template refuses these turns: {error}; write a `prefix`.") from None
    prefix, _, rest = text.partition(_WORDS)
    if not prefix or _WORDS in rest or _WORDS not in text:
        raise UserError("magpie: the model's chat template does not set a user's words off; write a `prefix`.")
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number in tokenizer(rest, add_special_tokens=False)["input_ids"]:
        if number in special:
            return Turn(prefix, tokenizer.added_tokens_decoder[number].content)
    return Turn(prefix, next((line.strip() for line in rest.split("\n") if line.strip()), None))


def _begun_once(tokenizer: Any, prefix: str) -> str:
    """Without the BOS that the tokenizer adds itself."""
    ids = tokenizer(prefix)["input_ids"]
    twice = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return prefix.removeprefix(tokenizer.bos_token) if twice else prefix


def _ends(tokenizer: Any) -> set[int]:
    """The tokens that end whatever the model says: the tokenizer's, and those that its folder names."""
    files = [Path(tokenizer.name_or_path) / name for name in ("generation_config.json", "config.json")]
    said = [json.loads(file.read_text("utf-8")).get("eos_token_id") for file in files if file.is_file()]
    found = [tokenizer.eos_token_id, *said]
    return {number for end in found for number in (end if isinstance(end, list) else [end]) if number is not None}


def _wrong(text: str, *, least: int, most: int, special: frozenset[str]) -> str | None:
    if _TURNS.search(text) or any(token in text for token in special):
        return "with tokens of a template"
    return fault(text, least=least, most=most)
