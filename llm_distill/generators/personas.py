"""Prompts that different people would write, and the people."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering, check_template, prompt_tokens, spread
from llm_distill.generators.lists import fault
from llm_distill.generators.novelty import ROUGE_L, Novelty, Pool
from llm_distill.plugs import InputFile, Role
from llm_distill.records import Prompt, Request, Sampling
from llm_distill.templates import BUILT_IN, render_with

#: Personas this much alike are the same: as the paper's own bound, on shared words.
_SAME = Novelty(rouge_l=0.9)
#: A persona is a sentence or two.
_PERSONA_WORDS = 60
#: Characters of a persona in its tag.
_TAG = 60


class _Line(msgspec.Struct):
    persona: str


class Source(BaseModel):
    """Where personas come from: a list, a file (one a line, or JSONL with `persona`), or a domain whose people a model is
    asked for. None of these: the people whom the rows before let one think of.
    """

    model_config = ConfigDict(extra="forbid")
    personas: Annotated[list[str], Field(min_length=1)] | None = None
    file: InputFile | None = None
    domain: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if sum(part is not None for part in (self.personas, self.file, self.domain)) > 1:
            raise ValueError("write one of `personas`, `file` and `domain`")
        return self

    @property
    def listed(self) -> list[str] | None:
        """The personas that stand in the recipe or the file, each once; UserError when there are none."""
        found = self.personas
        if self.file is not None:
            found = _read(self.file)
        if found is None:
            return None
        found = list(dict.fromkeys(text for one in found if (text := " ".join(one.split()))))
        if not found:
            raise UserError(f"{self.file or 'personas.source.personas'}: there are no personas.")
        return found


def personas(
    context: Context,
    *,
    source: Source = Source(),  # noqa: B008 - never changed
    count: Annotated[int, Field(ge=1)] | None = None,
    per_persona: Annotated[int, Field(ge=1)] = 1,  # as the paper does it: more people, not more from each
    rows: Annotated[int, Field(ge=1)] | None = None,
    per_question: Annotated[int, Field(ge=1, le=64)] = 8,  # longer lists repeat themselves
    model: Role = "teacher",
    novelty: Novelty | None = ROUGE_L,
    max_words: Annotated[int, Field(ge=1)] = 150,  # self-instruct's
    temperature: Annotated[float, Field(ge=0)] = 1.0,  # equal questions are asked again for more, and are to differ
    max_tokens: Annotated[
        int, Field(ge=1)
    ] = 2048,  # 8 prompts of 150 words are about 1,600; a list that is cut is lost
    template: Annotated[
        InputFile,
        AfterValidator(partial(check_template, given=("persona", "count", "labels"), needed=("persona", "count"))),
    ] = BUILT_IN / "personas.md",
    domain_template: Annotated[
        InputFile, AfterValidator(partial(check_template, given=("domain", "count"), needed=("domain", "count")))
    ] = BUILT_IN / "personas_domain.md",
    text_template: Annotated[
        InputFile, AfterValidator(partial(check_template, given=("text", "count"), needed=("text", "count")))
    ] = BUILT_IN / "personas_text.md",
) -> Iterator[Prompt]:
    """`per_persona` prompts as each of the personas would write them, `rows` at most.

    Personas come from `source`. Of a list or file, `count` bounds how many are taken, in their order. A domain or the rows
    before are asked for `count` of them (100 unless said otherwise; a row for each, or several where the rows are fewer);
    those that are like an earlier one (ROUGE-L 0.9) are left out, and it is not asked again for those that are missing. A
    prompt is thrown away that has more than `max_words`, is unfinished or not new. Tags: `persona`, its first words. Ge et
    al. 2024 (Persona Hub), arXiv 2406.20094.
    """
    gathering = Gathering(context, novelty)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    people = source.listed
    if people is None:
        wanted = _wanted(count, rows, per_persona)
        if source.domain is not None:
            plan = list(enumerate(spread(wanted, per_question)))
            questions = [
                Request(render_with(domain_template, {"domain": source.domain, "count": n}), sampling, sample=number)
                for number, n in plan
            ]
        else:
            questions = _of_rows(context, wanted, per_question, text_template, sampling)
        people = _people(gathering, model, questions)[:wanted]
    people = people[:count]
    if rows is not None:
        people = people[: ceil(rows / per_persona)]
    tags = _tags(people)
    shares = [
        (persona, tag, *each)
        for persona, tag in zip(people, tags, strict=True)
        for each in enumerate(spread(per_persona, per_question))
    ]
    requests = [
        Request(
            render_with(template, {"persona": persona, "count": n, "labels": context.task.labels}),
            sampling,
            sample=number,
        )
        for persona, _, number, n in shares
    ]
    found = [
        (text, {"persona": tag})
        for (_, tag, _, n), listed in zip(shares, gathering.ask_lists(model, requests), strict=True)
        for text in listed[:n]
    ]
    gathering.take(found, most=rows, wrong=partial(fault, most=max_words))
    gathering.say("personas", rows, f" as {len(people):,} people")
    yield from gathering.rows


def at_most(
    before: int,
    *,
    source: Source,
    count: int | None,
    per_persona: int,
    per_question: int,
    rows: int | None,
    **knobs: Any,
) -> AtMost:
    """What it may come to; reads the file of personas."""
    listed, questions = source.listed, 0
    if listed is not None:
        people = len(listed[:count])
    else:
        people = _wanted(count, rows, per_persona)
        questions = len(spread(people, per_question))
        if source.domain is None and before:
            questions = min(people, before) * ceil(ceil(people / before) / per_question)
    if rows is not None:
        people = min(people, ceil(rows / per_persona))
    questions += people * len(spread(per_persona, per_question))
    made = people * per_persona
    files = [Path(knobs[name]) for name in ("template", "domain_template", "text_template")]
    size = max(prompt_tokens(file, 100) for file in files)  # a persona or a row, about
    return AtMost(made if rows is None else min(made, rows), questions, size, knobs["max_tokens"])


def _wanted(count: int | None, rows: int | None, per_persona: int) -> int:
    return count or (100 if rows is None else ceil(rows / per_persona))


def _of_rows(context: Context, wanted: int, per_question: int, template: Path, sampling: Sampling) -> list[Request]:
    """Questions about some rows that are there, each for as many people as it takes to have `wanted` of all."""
    if not context.before:
        raise UserError(
            "personas: there are no rows to find people for; put an entry above it, or name a `source`: "
            "{domain: ...}, {file: ...} or {personas: [...]}."
        )
    rows = context.before
    if wanted < len(rows):
        rows = random.Random(f"{context.seed}:personas").sample(list(rows), wanted)
    more, left = divmod(wanted, len(rows))
    return [
        Request(render_with(template, {"text": row.text, "count": n}, f"row {row.row_id}"), sampling, sample=number)
        for place, row in enumerate(rows)
        for number, n in enumerate(spread(more + (place < left), per_question))
    ]


def _people(gathering: Gathering, model: str, questions: Sequence[Request]) -> list[str]:
    found = []
    for text in (text for listed in gathering.ask_lists(model, questions) for text in listed):
        why = fault(text, most=_PERSONA_WORDS)
        if why:
            gathering.gone[f"persona {why}"] += 1
        else:
            found.append(" ".join(text.split()))
    new = Pool(_SAME).take(found)
    gathering.gone["persona twice"] += len(found) - sum(new)
    return [persona for persona, is_new in zip(found, new, strict=True) if is_new]


def _tags(people: Sequence[str]) -> list[str]:
    """The first words of each, told apart by a number where they are the same."""
    seen: Counter[str] = Counter()
    tags = []
    for persona in people:
        tag = persona if len(persona) <= _TAG else persona[:_TAG].rsplit(" ", 1)[0].rstrip(" ,;.") + " …"
        seen[tag] += 1
        tags.append(f"{tag} ({seen[tag]})" if seen[tag] > 1 else tag)
    return tags


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if file.suffix != ".jsonl":
        return lines
    try:
        return [msgspec.json.decode(line, type=_Line).persona for line in lines if line.strip()]
    except msgspec.MsgspecError as error:
        raise UserError(f"{file}: {error}; each line is one JSON object with `persona` (text).") from None
