"""The lexicon file: `prompts/groups.yaml`, or one like it. Its head says what may stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm_distill.errors import UserError, did_you_mean
from llm_distill.generators.lexicon import Attribute, Term, folded
from llm_distill.plugs import input_file, one_line
from llm_distill.templates import BUILT_IN

_RESERVED = ("with", "exact", "given_name", "when")


@dataclass(frozen=True)
class Lexicon:
    """A lexicon file, read."""

    attributes: Mapping[str, Attribute]


class _Attribute(BaseModel):
    model_config = ConfigDict(extra="forbid")
    variants: list[Annotated[str, Field(pattern=r"^\w+$")]]
    sets: list[dict[str, Any]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    attributes: dict[Annotated[str, Field(pattern=r"^\w+$")], _Attribute] = Field(min_length=1)
    no_noun: list[str] = []
    leave: list[str] = []


@lru_cache
def read(path: Path) -> Lexicon:
    """The lexicon of a file; what is wrong in it is a UserError with file and place."""
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        file = _File.model_validate(raw)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}.") from None
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error, '', _File.model_fields)}") from None
    leave, no_noun = tuple(file.leave), frozenset(word.casefold() for word in file.no_noun)
    attributes = {
        name: Attribute(name, tuple(attribute.variants), tuple(_terms(attribute, f"{path}: {name}")), leave, no_noun)
        for name, attribute in file.attributes.items()
    }
    for name, checked in attributes.items():
        for form, owners in checked.known.items():
            if len(variants := sorted({variant for variant, _ in owners})) > 1:
                raise UserError(f"{path}: {name}: {form!r} is a form of {' and of '.join(variants)}; keep it in one.")
    return Lexicon(attributes)


def _terms(attribute: _Attribute, where: str) -> Iterator[Term]:
    if len(set(attribute.variants)) < max(2, len(attribute.variants)):
        raise UserError(f"{where}: variants: found {attribute.variants}; name two or more different ones.")
    if clash := set(attribute.variants) & set(_RESERVED):
        raise UserError(f"{where}: variants: {min(clash)!r} is a key of the sets; call the variant something else.")
    if not attribute.sets:
        raise UserError(f"{where}: sets: found none; give each variant a word.")
    for number, words in enumerate(attribute.sets):
        place = f"{where}: sets[{number}]"
        if unknown := [key for key in words if key not in (*attribute.variants, *_RESERVED)]:
            allowed = [*attribute.variants, *_RESERVED]
            raise UserError(f"{place}: no variant {unknown[0]!r}.{did_you_mean(str(unknown[0]), allowed)}")
        yield from _expanded(words, [v for v in attribute.variants if v in words], place)


def _expanded(words: Mapping[str, Any], variants: Sequence[str], place: str) -> Iterator[Term]:
    if len(variants) < 2:
        raise UserError(f"{place}: found {len(variants)} variant; a set needs two, or there is nothing to swap with.")
    columns = [words[v] if isinstance(words[v], list) else [words[v]] for v in variants]
    if len({len(column) for column in columns}) > 1:
        raise UserError(
            f"{place}: lists of {', '.join(str(len(c)) for c in columns)} forms; they are aligned by place."
        )
    name, when = words.get("given_name", False), words.get("when")
    exact, stems = words.get("exact", name), words.get("with", [None])
    if not isinstance(name, bool) or not isinstance(exact, bool) or when not in (None, "noun", "alone"):
        raise UserError(f"{place}: `exact` and `given_name` are true or false, `when` is noun or alone.")
    if not isinstance(stems, list) or not stems:
        raise UserError(f"{place}: with: found {stems!r}; write a list of words.")
    for forms, stem in product(zip(*columns, strict=True), stems):
        made = {}
        for variant, form in zip(variants, forms, strict=True):
            filled = form if stem is None or not isinstance(form, str) else form.replace("{}", str(stem))
            if not isinstance(form, str) or not any(map(str.isalnum, filled)) or "{}" in filled:
                raise UserError(f"{place}: {variant}: found {form!r}; write a word, with {{}} only beside `with`.")
            made[variant] = " ".join(filled.split())
        if len(set(map(folded, made.values()))) < len(made):
            raise UserError(f"{place}: {', '.join(made.values())}: two variants have the same form.")
        yield Term(made, exact, name, when)


def _checked(path: Path, info: ValidationInfo) -> Path:
    full = input_file(path, info)
    read(full)
    return full


def _known_attributes(names: list[str] | None, info: ValidationInfo) -> list[str] | None:
    if names is not None and "groups" in info.data:
        known = read(info.data["groups"]).attributes
        if not names:
            raise ValueError("found an empty list; name attributes, or leave it out for all")
        for name in names:
            if name not in known:
                raise ValueError(f"no attribute {name!r} in {info.data['groups']}.{did_you_mean(name, known)}")
    return names


#: The lexicon that ships with the package.
SHIPPED = BUILT_IN / "groups.yaml"
#: A knob that names a lexicon file; call it `groups`.
LexiconFile = Annotated[Path, AfterValidator(_checked)]
#: A knob that picks attributes of the lexicon in the knob `groups`, which stands before it.
Attributes = Annotated[list[str] | None, AfterValidator(_known_attributes)]
