"""Rows that differ in a demographic term only, in groups, so that it can be asked whether the term alone changes an answer.

Counterfactual data augmentation (Lu et al. 2018, arXiv 1807.11714), with any number of variants. A term is a word of the
lexicon, `prompts/groups.yaml` or another file. In a row that names people of several variants ("he told her") each moves
on by the same number of places, so that who differed still differs; the row's variant is that of its first term.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from pydantic import Field

from llm_distill.errors import UserError, did_you_mean
from llm_distill.generators import Context
from llm_distill.generators.lexicon import Attribute, Found, abstracted, swapped
from llm_distill.generators.lexicon_file import SHIPPED, Attributes, Lexicon, LexiconFile, read
from llm_distill.plugs import InputFile
from llm_distill.records import Message, Prompt, content_id, make_prompt
from llm_distill.seeds import read_rows

_PLACE = re.compile(r"\{group:([^{}:\s]+)(?::([^{}]+))?\}")


@dataclass(frozen=True)
class Member:
    """A row as one of a group: which group, and where its first term stands among the variants."""

    prompt: Prompt
    attribute: str
    group: str
    found: tuple[tuple[Found, ...], ...]  # of each turn
    usable: tuple[str, ...]  # the variants that all of its terms have, in the lexicon's order
    first: str

    def moved(self, places: int) -> tuple[str, tuple[Message, ...]]:
        """The variant and the messages, with every term so many variants further on."""
        into = _moved(self.usable, places)
        turns = zip(self.prompt.messages, self.found, strict=True)
        messages = tuple(Message(m.role, swapped(m.content, found, into)) for m, found in turns)
        return into[self.first], messages


def counterfactual(
    context: Context,
    *,
    groups: LexiconFile = SHIPPED,
    attributes: Attributes = None,
    share: Annotated[float, Field(ge=0, le=1)] = 1.0,
    templates: InputFile | None = None,
) -> Iterator[Prompt]:
    """Groups of rows, each row with the tags `group`, `attribute` and `variant`.

    A row of the entries above that has a term is given again with its tags, in place of itself; then come the variants
    that are not there yet. Rows without a term, or with terms that share no variants, are left alone. `share`: that part
    of the groups, by a hash of what its rows have in common. A row's label and reference go to the variants unless they
    name a term themselves.

    `templates`: a file of rows with places for a variant, `{group:gender}` (the first set of that attribute) or
    `{group:gender:she}` (the set with that form); each row gives one for each variant.
    """
    lexicon = read(groups)
    chosen = [lexicon.attributes[name] for name in attributes or lexicon.attributes]
    there = {prompt.gist for prompt in context.before}
    found: dict[str, list[Member]] = {}
    for prompt in {p.prompt_id: p for p in reversed(context.before)}.values():
        _no_places(prompt)
    for prompt in {p.row_id: p for p in context.before}.values():
        member = next((m for attribute in chosen if (m := _member(prompt, attribute))), None)
        if member is not None and int(member.group[:13], 16) / 16**13 < share:
            found.setdefault(member.group, []).append(member)
    made = 0
    for members in found.values():
        new = list(_missing(members, lexicon.attributes[members[0].attribute], context, there))
        if len({member.first for member in members}) + len(new) > 1:
            made += len(new)
            yield from (_tagged(member) for member in members)
            yield from new
    context.say(f"counterfactual: {len(found):,} groups among the rows above, {made:,} new rows")
    if templates is not None:
        for row in read_rows(templates):
            yield from _variants(row, lexicon, str(templates))


def _member(prompt: Prompt, attribute: Attribute) -> Member | None:
    """A row as a member of the group that it makes with its variants; None where it has no terms, or none that fit."""
    found: list[tuple[Found, ...]] = []
    for message in prompt.messages:
        terms = attribute.find(message.content)
        if terms is None:
            return None
        found.append(tuple(terms))
    return _grouped(prompt, attribute, found)


def _grouped(prompt: Prompt, attribute: Attribute, found: Sequence[tuple[Found, ...]]) -> Member | None:
    terms = [one for turn in found for one in turn]
    usable = tuple(v for v in attribute.variants if all(v in one.term.forms for one in terms))
    if not terms or len(usable) < 2 or any(one.variant not in usable for one in terms):
        return None
    first = terms[0].variant
    start = usable.index(first)
    roles = {variant: str((place - start) % len(usable)) for place, variant in enumerate(usable)}
    turns = zip(prompt.messages, found, strict=True)
    common = [(message.role, abstracted(message.content, terms, roles)) for message, terms in turns]
    group = content_id([attribute.name, usable, common])
    return Member(prompt, attribute.name, group, tuple(found), usable, first)


def _moved(usable: Sequence[str], places: int) -> Mapping[str, str]:
    return {variant: usable[(i + places) % len(usable)] for i, variant in enumerate(usable)}


def _tagged(member: Member) -> Prompt:
    tags = {"group": member.group, "attribute": member.attribute, "variant": member.first}
    return msgspec.structs.replace(member.prompt, tags={**member.prompt.tags, **tags})


def _missing(members: Sequence[Member], attribute: Attribute, context: Context, there: set[str]) -> Iterator[Prompt]:
    """The variants of a group that no row is yet, made of its first row."""
    origin = members[0]
    present = {member.first for member in members}
    for places in range(1, len(origin.usable)):
        variant, messages = origin.moved(places)
        tags = context.tagged(origin.prompt, group=origin.group, attribute=origin.attribute, variant=variant)
        row = _row(messages, tags, origin.prompt, attribute)
        if variant not in present and row.gist not in there:
            there.add(row.gist)
            yield row


def _row(messages: tuple[Message, ...], tags: Mapping[str, str], origin: Prompt, attribute: Attribute) -> Prompt:
    """A variant. Gold that names a term may be right for its own row alone."""
    label, reference = (
        text if text is not None and attribute.find(text) == [] else None for text in (origin.label, origin.reference)
    )
    return make_prompt(messages, tags, label, reference)


def _no_places(prompt: Prompt) -> None:
    if any(_PLACE.search(message.content) for message in prompt.messages):
        raise UserError(
            f"counterfactual: the row {prompt.text[:60]!r} has a place for a group's word and would be asked as it stands; "
            "put such rows into a file of their own and name it as `templates:`."
        )


def _variants(template: Prompt, lexicon: Lexicon, file: str) -> Iterator[Prompt]:
    """The rows of a template: one for each variant."""
    where = f"{file}: {template.text[:60]!r}"
    places = [place for message in template.messages for place in _PLACE.finditer(message.content)]
    names = sorted({place[1] for place in places})
    if len(names) != 1:
        raise UserError(
            f"{where}: places for {', '.join(names) or 'no attribute'}; a row has them for one, such as {{group:gender}}."
        )
    if names[0] not in lexicon.attributes:
        raise UserError(f"{where}: no attribute {names[0]!r}.{did_you_mean(names[0], lexicon.attributes)}")
    attribute = lexicon.attributes[names[0]]
    filled = [_fill(message.content, attribute, where) for message in template.messages]
    messages = tuple(Message(m.role, text) for m, (text, _) in zip(template.messages, filled, strict=True))
    row = msgspec.structs.replace(template, messages=messages)
    member = _grouped(row, attribute, [terms for _, terms in filled])
    if member is None:
        raise UserError(f"{where}: its words have no two variants in common; choose others.")
    for places_on in range(len(member.usable)):
        variant, said = member.moved(places_on)
        tags = {**template.tags, "group": member.group, "attribute": attribute.name, "variant": variant}
        yield _row(said, tags, template, attribute)


def _fill(text: str, attribute: Attribute, where: str) -> tuple[str, tuple[Found, ...]]:
    """A template's turn with a first word in each place, and those words as they are found."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    at = length = 0
    for place in _PLACE.finditer(text):
        form = place[2] or attribute.terms[0].forms[min(attribute.terms[0].forms, key=attribute.variants.index)]
        before = text[at : place.start()]
        parts += [before, form]
        spans.append((length + len(before), length + len(before) + len(form)))
        at, length = place.end(), spans[-1][1]
    whole = "".join([*parts, text[at:]])
    found = []
    for start, end in spans:
        meant = attribute.meant(whole, start, end)
        if meant is None:
            raise UserError(
                f"{where}: {whole[start:end]!r} is no form of {attribute.name}; see its sets in the lexicon."
            )
        found.append(Found(start, end, whole[start:end], meant[1], meant[0]))
    return whole, tuple(found)
