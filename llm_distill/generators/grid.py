"""Rows from a template and lists of values: all their combinations, or a sample of these that is never laid out whole."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationInfo

from llm_distill.errors import UserError, did_you_mean
from llm_distill.plugs import InputFile
from llm_distill.records import Prompt, make_prompt
from llm_distill.templates import Source, check_with, render_with
from llm_distill.text_files import lines

if TYPE_CHECKING:
    from llm_distill.generators import Context

Value = str | StrictBool | StrictInt | StrictFloat
#: Combinations that are all laid out; more are a sample's business, for every row is held in memory.
_ALL_AT_MOST = 1_000_000
#: Tags that the house gives a meaning.
_RESERVED = frozenset({"attribute", "augmentation", "document", "generator", "group", "parent", "variant"})


class Listed(BaseModel):
    """Values that stand in a file, one on a line; blank lines do not count."""

    model_config = ConfigDict(extra="forbid")
    file: InputFile


def _laid_out(values: Mapping[str, list[Value] | Listed], info: ValidationInfo) -> dict[str, list[Value]]:
    """The lists, checked against each other and the template."""
    found = {name: _read(v.file) if isinstance(v, Listed) else v for name, v in values.items()}
    for name, several in found.items():
        if not name.isidentifier() or name in ("system", "user", "assistant"):
            raise ValueError(f"{name!r} cannot be a variable of a template; it is a word, and none of the turn marks")
        if not several:
            raise ValueError(f"{name}: the list is empty")
        twice = next((v for v, times in Counter(map(str, several)).items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"{name}: {twice!r} stands twice")
    if (source := _source(info.data)) is not None:
        try:
            used = check_with(source, found)
        except UserError as error:
            raise ValueError(str(error)) from None
        if unused := sorted(found.keys() - used):
            raise ValueError(
                f"{unused[0]}: the template does not use it; write {{{{ {unused[0]} }}}} there, or remove it"
            )
    return found


def _read(path: Path) -> list[Value]:
    found = (line.strip() for line in lines(path))
    return [line for line in found if line]


def _source(knobs: Mapping[str, object]) -> Source | None:
    return cast(Source | None, knobs.get("template") or knobs.get("text"))


def _one_template(text: str | None, info: ValidationInfo) -> str | None:
    if "template" in info.data and (text is None) == (info.data["template"] is None):
        raise ValueError("write either `template: file.md` or `text: ...`")
    return text


def _sampled(sample: int | None, info: ValidationInfo) -> int | None:
    if "values" in info.data:
        total = _total(info.data["values"])
        if sample is not None and sample > total:
            raise ValueError(f"found {sample:,}, but the values have only {total:,} combinations")
        if sample is None and total > _ALL_AT_MOST:
            raise ValueError(
                f"the values have {total:,} combinations, and at most {_ALL_AT_MOST:,} are all made: say how many"
            )
    return sample


def _tagged(tags: list[str] | None, info: ValidationInfo) -> list[str] | None:
    values = info.data.get("values")
    if values is not None:
        for tag in values if tags is None else tags:
            if tag not in values:
                raise ValueError(f"no value {tag!r}.{did_you_mean(tag, values)}")
            if tag in _RESERVED:
                raise ValueError(
                    f"the tag {tag!r} has a meaning of its own; give the value another name, or list `tags` without it"
                )
    return tags


def templates(
    context: Context,
    *,
    template: InputFile | None = None,
    text: Annotated[str | None, AfterValidator(_one_template)] = None,
    values: Annotated[dict[str, list[Value] | Listed], Field(min_length=1), AfterValidator(_laid_out)],
    sample: Annotated[int | None, Field(ge=1), AfterValidator(_sampled)] = None,
    tags: Annotated[list[str] | None, AfterValidator(_tagged)] = None,
) -> Iterator[Prompt]:
    """A row for each combination of the values, filled into a template (a file, or `text`), the last list moving fastest.

    values: lists by variable, or `{file: ...}` with a value on each line. sample: so many combinations, all different and
    equally likely, drawn by the seed; a larger sample begins with the smaller one. tags: the values that become tags,
    all of them by default.
    """
    source = cast(Source, template or text)
    lists = cast(Mapping[str, list[Value]], values)
    names = list(lists) if tags is None else tags
    for combination in _combinations(lists, sample, random.Random(f"{context.seed}:templates:{sample is not None}")):
        messages = render_with(source, combination, f"the values {dict(combination)}")
        if messages[-1].role != "user" or not messages[-1].content:
            raise UserError(
                f"{source}: for the values {dict(combination)} it does not end in a user turn with some text."
            )
        yield make_prompt(messages, {name: str(combination[name]) for name in names})


def _total(values: Mapping[str, Sequence[Value]]) -> int:
    return math.prod(map(len, values.values()))


def _combinations(
    values: Mapping[str, Sequence[Value]], sample: int | None, dice: random.Random
) -> Iterator[Mapping[str, Value]]:
    numbers = range(_total(values)) if sample is None else _distinct(_total(values), sample, dice)
    for number in numbers:
        combination: dict[str, Value] = {}
        rest = number
        for name, several in reversed(list(values.items())):
            rest, index = divmod(rest, len(several))
            combination[name] = several[index]
        yield {name: combination[name] for name in values}


def _distinct(total: int, count: int, dice: random.Random) -> Iterator[int]:
    """`count` different numbers below `total`, however large that is: the first steps of a Fisher-Yates shuffle, of which
    only the places that were swapped are kept.
    """
    moved: dict[int, int] = {}
    for place in range(count):
        other = dice.randrange(place, total)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)
