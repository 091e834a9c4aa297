"""Harder and other prompts, made from those that are there (Evol-Instruct)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.gathering import Gathering, check_template, prompt_tokens
from llm_distill.generators.lists import between, fault, words
from llm_distill.generators.novelty import shared
from llm_distill.plugs import InputFile, Role
from llm_distill.records import Message, Prompt, Request, Sampling, content_id, make_prompt
from llm_distill.templates import BUILT_IN, render_with

#: What can be done to a prompt: four ways into the depth, as the paper's program has them, and one into the breadth.
Operation = Literal["constrain", "deepen", "concretise", "reason", "broaden"]
#: Those that make sense of a text which is to be classified: it asks for nothing that could be deepened.
_OF_TEXTS: tuple[Operation, ...] = ("concretise", "broaden")
#: Words in a row that an evolution shares with its template only if it was copied from there.
_COPIED = 6
#: How a model speaks of its task, and a prompt does not.
_OF_THE_TASK = re.compile(
    r"\b(?:given|original|initial|rewritten|revised|evolved|modified|new|created) prompt\b|</?prompt>", re.IGNORECASE
)
#: How it leads up to an answer: a first line that ends in a colon.
_LEADING = re.compile(
    r"\s*(?:sure|certainly|of course|okay|here(?:'s| is| are)|below is)\b[^\n]*:[ \t*]*(?:\n|$)", re.I
)
#: How it declines to give one.
_DECLINED = re.compile(
    r"\s*(?:(?:i'm |i am )?(?:very |so )?sorry\b|i apologi[sz]e\b|as an ai\b"
    r"|(?:unfortunately,? )?i (?:can(?:not|'t)|am (?:unable|not able)|won't)\b"
    r"|es tut mir leid\b|lo siento\b|(?:je suis )?désolée?\b|mi dispiace\b|desculpe\b)",
    re.IGNORECASE,
)
_VERDICT = re.compile(r"\W*(same|different)\b", re.IGNORECASE)


def _operations(given: Mapping[Operation, Path]) -> Mapping[Operation, Path]:
    for path in given.values():
        check_template(path, ("prompt",), ("prompt",))
    return given


def _judging(path: Path) -> Path:
    return check_template(path, ("parent", "prompt"), ("parent", "prompt"))


@dataclass
class _Line:
    """A row on its way through the rounds: what it has become, and what was tried on that in vain."""

    now: Prompt
    tried: set[Operation]

    @property
    def turn(self) -> str:
        """What is rewritten."""
        return self.now.messages[-1].content


def evol_instruct(
    context: Context,
    *,
    rows: Annotated[int, Field(ge=1)] | None = None,
    rounds: Annotated[int, Field(ge=1, le=16)] = 4,  # the paper's
    operations: Annotated[list[Operation], Field(min_length=1)] | None = None,
    model: Role = "teacher",
    judge: Role | None = None,
    new_words: Annotated[int, Field(ge=1)] = 3,  # a name, a number and its unit: the least that makes a text concrete
    growth: Annotated[int, Field(ge=1)] = 60,  # thrice what the templates ask for
    temperature: Annotated[float, Field(ge=0)] = 1.0,  # as the paper's program has it
    max_tokens: Annotated[int, Field(ge=1)] = 1024,  # half of that program's, for `growth` bounds the length as well
    templates: Annotated[dict[Operation, InputFile], AfterValidator(_operations)] = {},  # noqa: B006 - never changed
    judge_template: Annotated[InputFile, AfterValidator(_judging)] = BUILT_IN / "evolve_judge.md",
) -> Iterator[Prompt]:
    """The rows before, evolved: in each round each row by one operation, drawn among `operations`. Only what is new is given.

    `rows` bounds how many are given: so many of the rows before are taken that `rounds` of them make it up. A row's last
    turn is rewritten, those before it stay; gold labels and answers are not carried over, for they answer another question.
    `operations` are all, or concretise and broaden where texts are classified; `templates` replaces the built-in one of an
    operation. An evolution has failed, as in the paper's elimination, when it is empty, declines, speaks of its task, shares
    six words in a row with its template, has a blank to fill in, is there already, grows by more than `growth` words, or
    gains nothing: fewer than `new_words` words besides the longest common subsequence with its parent, or, where a `judge`
    is named, asking for the same in that model's eyes. The parent then stays in the pool and the next round tries another
    operation on it. What the paper learns from answers (too short, or sorry) is left to the filters. Tags: `evolution`,
    `round`, `parent`. Xu et al. 2023, arXiv 2304.12244.
    """
    if not context.before:
        raise UserError("evol_instruct: there are no rows to evolve; put an entry above it.")
    all_ = get_args(Operation) if context.task.kind == "generate" else _OF_TEXTS
    lines = [_Line(row, set()) for row in _chosen(context.before, rows, rounds)]
    gathering = Gathering(context)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    for number in range(1, rounds + 1):
        drawn = [
            (line, random.Random(f"{context.seed}:evolve:{number}:{line.now.row_id}").choice(left))
            for line in lines
            if (left := [one for one in operations or all_ if one not in line.tried])
        ]
        files = [templates.get(operation, BUILT_IN / f"evolve_{operation}.md") for _, operation in drawn]
        asked = [
            Request(render_with(file, {"prompt": line.turn}, f"row {line.now.row_id}"), sampling, sample=number)
            for (line, _), file in zip(drawn, files, strict=True)
        ]
        evolved: list[tuple[_Line, Prompt]] = []
        for (line, operation), file, answer in zip(drawn, files, gathering.ask(model, asked), strict=True):
            line.tried.add(operation)
            if answer is None:
                continue
            text = between(answer, "prompt")
            why = "malformed" if text is None else _failed(text, line.turn, file, new_words, growth)
            if text is None or why:
                gathering.gone[why or ""] += 1
                continue
            tags = context.tagged(line.now, evolution=operation, round=str(number))
            evolved.append((line, make_prompt((*line.now.messages[:-1], Message("user", text)), tags)))
        if judge:
            evolved = _different(evolved, gathering, judge, judge_template, Sampling(max_tokens=max_tokens))
        for line, row in evolved:
            if gathering.unknown(row):
                gathering.rows.append(row)
                line.now, line.tried = row, set()
    gathering.rows = gathering.rows[:rows]
    gathering.say("evol_instruct", rows)
    yield from gathering.rows


def at_most(before: int, *, rows: int | None, rounds: int, judge: str | None, max_tokens: int, **knobs: Any) -> AtMost:
    """What it may come to."""
    lines = before if rows is None else min(before, ceil(rows / rounds))
    files = [
        knobs["templates"].get(one, BUILT_IN / f"evolve_{one}.md") for one in knobs["operations"] or get_args(Operation)
    ]
    made = lines * rounds
    size = max(prompt_tokens(file, 100) for file in files)  # a prompt, about
    return AtMost(made if rows is None else min(made, rows), made * (2 if judge else 1), size, max_tokens)


def _chosen(before: Sequence[Prompt], rows: int | None, rounds: int) -> list[Prompt]:
    """The rows to evolve, in their order: by a hash, so that rows which are added leave the choice as it is."""
    if rows is None:
        return list(before)
    ranked = sorted(before, key=lambda row: content_id(["evolve", row.row_id]))
    chosen = {row.row_id for row in ranked[: ceil(rows / rounds)]}
    return [row for row in before if row.row_id in chosen]


def _failed(text: str, parent: str, template: Path, new_words: int, growth: int) -> str | None:
    """Why an evolution of a parent is no good, as far as one can see without asking."""
    plain = text.replace("\u2019", "'")
    if _DECLINED.match(plain) and not _DECLINED.match(parent.replace("\u2019", "'")):
        return "declined"
    if _LEADING.match(plain):
        return "with an introduction"
    if set(map(str.casefold, _OF_THE_TASK.findall(text))) - set(map(str.casefold, _OF_THE_TASK.findall(parent))):
        return "about its task"
    new, old = words(text), words(parent)
    if _runs(new) & _instructions(template) - _runs(old):
        return "copied from the template"
    if why := fault(text, most=len(old) + growth):
        return why
    return "without gain" if len(new) - shared(new, old) < new_words else None


@lru_cache
def _instructions(template: Path) -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(words(" ".join(turn.content for turn in render_with(template, {"prompt": ""})))))


def _runs(text: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(text[start : start + _COPIED]) for start in range(len(text) - _COPIED + 1)}


def _different(
    evolved: Sequence[tuple[_Line, Prompt]], gathering: Gathering, judge: str, template: Path, sampling: Sampling
) -> list[tuple[_Line, Prompt]]:
    """Those of which a model says that they ask for something other than their parents."""
    pairs = [{"parent": line.turn, "prompt": row.messages[-1].content} for line, row in evolved]
    answers = gathering.ask(judge, [Request(render_with(template, pair), sampling) for pair in pairs])
    kept = []
    for one, answer in zip(evolved, answers, strict=True):
        said = _VERDICT.match(answer or "")
        if said and said[1].lower() == "different":
            kept.append(one)
        elif answer is not None:
            gathering.gone["the same to the judge" if said else "without a verdict"] += 1
    return kept
