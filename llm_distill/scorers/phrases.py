"""Scorers that know the words by which assistants decline, and those by which they name themselves.

The words are `prompts/phrases.yaml`, in 19 languages; a recipe may bring its own. They find what is usual and miss what is
said in other words, so `refusal` can ask a judge about what they leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator

from llm_distill.errors import UserError
from llm_distill.generators import AtMost
from llm_distill.plugs import InputFile, Role
from llm_distill.recipe_file import read_mapping
from llm_distill.records import Answer
from llm_distill.scorers import Context, Scored
from llm_distill.scorers import judge as asking
from llm_distill.templates import BUILT_IN

_PHRASES, _RUBRIC = BUILT_IN / "phrases.yaml", BUILT_IN / "refusal.md"
#: A refusal opens the answer: what is declined further on is a part of the task, or a caveat.
_OPENING = 400
_SENTENCES = 4
#: Where a sentence starts; no opening quotation mark, for what is quoted is somebody else's. A line may name its speaker.
_SPEAKER = r"(?:(?:\[[^\]\n]{1,30}\]|(?:assistant|ai|bot|chatbot|model|answer|response|\w{1,20}gpt):)\s*)?"
_START = re.compile(rf"(?:(?:\A|\n)[\s*_#>-]*{_SPEAKER}|[.!?\u2026\u3002\uff01\uff1f\u061f\u0964])[\s*_#>-]*")
_STOP = r"[^.!?\u2026\u3002\uff01\uff1f\u061f\u0964\n]"
_KEYS = {"version", "models", "makers", "openings", "refusal", "identity"}


def _phrases(path: Path) -> Path:
    _patterns(path, "refusal")
    _patterns(path, "identity")
    return path


Phrases = Annotated[InputFile, AfterValidator(_phrases)]


def refusal(
    answers: Sequence[Answer],
    context: Context,
    *,
    phrases: Phrases = _PHRASES,
    judge: Role | None = None,
) -> Scored:
    """1 where the model declined: by the API's refusal field, or in words that assistants use for it at an answer's beginning.

    With a `judge`, a model is asked about each answer in which no such words were found; NaN where it gives no verdict.
    """
    pattern = _patterns(phrases, "refusal")
    values = [1.0 if a.status == "refused" else 0.0 for a in answers]
    why: list[str | None] = ["the API says so" if value else None for value in values]
    for place, answer in enumerate(answers):
        if not values[place] and (found := _found(pattern, answer.text[:_OPENING], _SENTENCES)):
            values[place], why[place] = 1.0, found
    left = [place for place, value in enumerate(values) if not value]
    if judge and left:
        said = _judged([answers[place] for place in left], context, judge)
        for place, value, reason in zip(left, said.values, said.why, strict=True):
            values[place], why[place] = value, reason
    return Scored(values, why)


def _judged(answers: Sequence[Answer], context: Context, model: str) -> Scored:
    question = "Say whether the answer declines: yes or no."
    return asking.yes_or_no(answers, context, model, _RUBRIC, "declined", question)


def refusal_at_most(rows: int, *, judge: str | None = None, **_: object) -> AtMost:
    """What the judge comes to for so many rows."""
    return asking.at_most(rows if judge else 0, rubric=_RUBRIC)


def identity(answers: Sequence[Answer], *, phrases: Phrases = _PHRASES) -> Scored:
    """1 where an answer says what or whose its writer is: a student would learn to be its teacher, or an AI of that maker."""
    pattern = _patterns(phrases, "identity")
    why = [_found(pattern, answer.text) for answer in answers]
    return Scored([float(found is not None) for found in why], why)


def _found(pattern: re.Pattern[str], text: str, sentences: int | None = None) -> str | None:
    """The language and the words, where one of the first sentences begins with such."""
    text = text.replace("\u2019", "'").strip().lower()
    for number, start in enumerate(_START.finditer(text)):
        if sentences is not None and number >= sentences:
            break
        if match := pattern.match(text, start.end()):
            return f"{match.lastgroup}: {' '.join(match[0].split())[:80]}"
    return None


@lru_cache
def _patterns(path: Path, kind: str) -> re.Pattern[str]:
    """All of a file's patterns of a kind as one, each language's a group of its name; UserError for a file that is none."""
    found = read_mapping(path, "a list of phrases")
    if set(found) != _KEYS:
        raise UserError(f"{path}: its keys are {', '.join(found)}; write {', '.join(sorted(_KEYS))}.")
    names = {"{model}": _either(path, "models", found["models"]), "{maker}": _either(path, "makers", found["makers"])}
    openings = "|".join(_either(path, where, lines) for where, lines in _lists(path, "openings", found))
    languages = "|".join(
        f"(?P<{where.rpartition('.')[2]}>{_either(path, where, lines, names)})"
        for where, lines in _lists(path, kind, found)
    )
    try:
        # Of small letters: an engine that has to mind case tries every one of the alternatives at every sentence.
        return re.compile(rf"(?:(?:{openings})[\s,.:;!\uff0c\u3001\u3002\uff01\u2014-]*){{0,3}}(?:{languages})")
    except re.error as error:  # a group's name
        raise UserError(f"{path}: {kind}: its keys are languages, such as en: {error}.") from None


def _lists(path: Path, kind: str, found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Where each language's list stands, and the list."""
    if not isinstance(found[kind], dict) or not found[kind]:
        raise UserError(f"{path}: {kind}: write a list of phrases for each language.")
    return [(f"{kind}.{language}", lines) for language, lines in found[kind].items()]


def _either(path: Path, where: str, lines: Any, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """One pattern for several: with its names, any blank for a space, and dots that stay inside a sentence."""
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{path}: {where}: found {lines!r}; write a list of phrases, in quotes where YAML reads else.")
    filled = []
    for line in lines:
        text = line
        for name, pattern in names.items():
            text = text.replace(name, pattern)
        text = text.replace(".{", f"{_STOP}{{").replace(" ", r"\s")
        filled.append(re.sub(r"(\\.|\(\?P)|(.)", lambda found: found[1] or found[2].lower(), text, flags=re.DOTALL))
        try:
            re.compile(filled[-1])
        except re.error as error:
            raise UserError(f"{path}: {where}: {line!r} is not a regular expression: {error}.") from None
    return f"(?:{'|'.join(filled)})"
