"""New prompts after the example of those that are there (self-instruct)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from llm_distill import templates
from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering, check_template, prompt_tokens
from llm_distill.generators.lists import fault, words
from llm_distill.generators.novelty import ROUGE_L, Novelty
from llm_distill.plugs import InputFile, Role
from llm_distill.records import Prompt, Request, Sampling
from llm_distill.seeds import read_rows

#: A round asks for at least so many rows, however small the pool is.
_ROUND = 64
#: What a language model is neither shown nor able to show. The paper's list, less those of its words that stand in as many
#: prompts which can be answered (file, map, graph, plot, draw, go to).
_SIGHT = ("image", "images", "picture", "pictures", "photo", "photos")
#: What no prompt begins with: the leavings of a list. (Brackets, quotes and ¿ are beginnings.)
_MARKS = ".,;:!?)]}-–—*#>/\\|&=+~^%"  # noqa: RUF001 - dashes
_GIVEN = ("examples", "count", "labels")
Template = Annotated[InputFile, AfterValidator(partial(check_template, given=_GIVEN, needed=("examples", "count")))]


def self_instruct(
    context: Context,
    *,
    rows: Annotated[int, Field(ge=1)],
    model: Role = "teacher",
    seeds: InputFile | None = None,
    examples: Annotated[int, Field(ge=1, le=64)] = 8,  # the paper's
    own: Annotated[int, Field(ge=0)] = 2,  # of these, the paper's
    per_question: Annotated[int, Field(ge=1, le=64)] = 8,  # the paper's list goes on from 8 to 16
    novelty: Novelty | None = ROUGE_L,
    min_words: Annotated[int, Field(ge=1)] = 4,  # the paper's
    max_words: Annotated[int, Field(ge=1)] = 150,  # the paper's
    without: list[str] | None = None,
    temperature: Annotated[float, Field(ge=0)] = 1.0,
    max_tokens: Annotated[
        int, Field(ge=1)
    ] = 2048,  # 8 prompts of 150 words are about 1,600; a list that is cut is lost
    surplus: Annotated[float, Field(ge=1)] = 4.0,
    template: Template = templates.BUILT_IN / "self_instruct.md",
) -> Iterator[Prompt]:
    """`rows` new prompts, each question showing some that are there and asking for several more of their kind.

    The pool begins with the rows before (or those of `seeds`, JSONL, which are not given themselves) and grows by what is
    written: a question shows `examples` of it, up to `own` of them written by the model. Each round may double the pool, so
    that what is written is shown soon and rounds stay few. It ends with the rows that were wanted, with a round that adds
    none, or after `surplus` times the questions that would do if nothing were thrown away. A prompt is thrown away that
    has fewer than `min_words` or more than `max_words`, holds a word of `without` (by default words for pictures, in a
    `generate` task), begins with punctuation, or is not new. Temperature 1 is Alpaca's: the paper's 0.7 with top_p 0.5 was
    kept varied by a presence penalty that not every server has. Wang et al. 2023, arXiv 2212.10560.
    """
    given = list(read_rows(seeds)) if seeds else list(context.before)
    start = list(dict.fromkeys(text for p in given if 0 < len(words(text := " ".join(p.text.split()))) <= max_words))
    if not start:
        why = (
            f"none has up to {max_words} words; raise `max_words`"
            if given
            else "put an entry above it, or name `seeds`"
        )
        raise UserError(f"self_instruct: there are no rows to take as examples: {why}.")
    sights = _SIGHT if without is None and context.task.kind == "generate" else without or ()
    wrong = partial(_wrong, least=min_words, most=max_words, without={word.casefold() for word in sights})
    gathering = Gathering(context, novelty, start if seeds else ())
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    limit = _questions(rows, per_question, surplus)
    ended = ""
    while len(gathering.rows) < rows and not ended:
        made = [" ".join(row.text.split()) for row in gathering.rows]
        due = min(rows - len(made), max(len(start) + len(made), _ROUND))
        asked = range(gathering.asked, min(gathering.asked + ceil(due / per_question), limit))
        requests = []
        for number in asked:
            chance = random.Random(f"{context.seed}:self_instruct:{number}")
            shown = chance.sample(made, min(own, len(made), examples - 1))
            shown += chance.sample(start, min(examples - len(shown), len(start)))
            chance.shuffle(shown)
            filled = {"examples": shown, "count": per_question, "labels": context.task.labels}
            requests.append(Request(templates.render_with(template, filled), sampling, sample=number))
        found = [text for listed in gathering.ask_lists(model, requests) for text in listed]
        added = gathering.take([(text, {}) for text in found], most=rows, wrong=wrong)
        if not added:
            ended = ", the last of which added nothing"
        elif gathering.asked >= limit:
            ended = ", as many as `surplus` allows"
    gathering.say("self_instruct", rows, ended if len(gathering.rows) < rows else "")
    yield from gathering.rows


def at_most(_before: int, *, rows: int, per_question: int, surplus: float, **knobs: Any) -> AtMost:
    """What it may come to."""
    filled = knobs["examples"] * 30  # tokens of an example, about
    size = prompt_tokens(Path(knobs["template"]), filled)
    return AtMost(rows, _questions(rows, per_question, surplus), size, knobs["max_tokens"])


def _questions(rows: int, per_question: int, surplus: float) -> int:
    return ceil(rows / per_question * surplus)


def _wrong(text: str, *, least: int, most: int, without: set[str]) -> str | None:
    """What is wrong with a prompt, as the paper has it, in any script."""
    if why := fault(text, least=least, most=most):
        return why
    if without.intersection(words(text)):
        return "about pictures" if without <= set(_SIGHT) else "with a word of `without`"
    return "beginning with punctuation" if text.lstrip()[0] in _MARKS else None
