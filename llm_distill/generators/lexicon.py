"""Words that name people by group: found in a text, and swapped for another group's.

A term is matched as a whole word, longest first and from the left, so of two that overlap one is meant. Nothing here knows
what a row or a file is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

_WORD = re.compile(r"\w+")
#: What may stand on neither side of a term: a letter, or a hyphen or an accent that joins it to one.
_BEFORE, _AFTER = r"(?<![\w@#])(?<!\w[-'\u2019])", r"(?!\w)(?!-\w)(?![\u0300-\u036f])"
_POSSESSIVE = re.compile(r"(['\u2019])(s(?!\w)|(?=\s+\w))", re.IGNORECASE)
_ARTICLE = re.compile(r"(?<![\w'\u2019-])(an?)(\s+)$", re.IGNORECASE)
_NEXT_WORD = re.compile(r"\s+[\"'\u201c\u2018(]?(\w[\w'\u2019-]*)")
_NAME_GOES_ON = re.compile(r"\s+[A-Z][a-z]")
_NAME_BEGAN = re.compile(r"\w[\s,]+[A-Z][\w'\u2019]*\.?\s+$")
_OPENING = "\"'\u201c\u2018("  # what may stand between a sentence's end and its first word
_YOO = re.compile(r"eu|uni(?!m|n)|uk|ug(?!l)|us[aeu]|uru|one\b|once\b|u\b", re.IGNORECASE)
_SILENT_H = re.compile(r"hon(?!e(?!st)|k|d|g)|hour|heir", re.IGNORECASE)
_SPELT_OUT = re.compile(r"[FHLMNRSX](?:[A-Z]|\b)")


@dataclass(frozen=True)
class Term:
    """One word or phrase as each variant has it."""

    forms: Mapping[str, str]
    exact: bool = False
    given_name: bool = False
    when: Literal["noun", "alone"] | None = None

    @property
    def name(self) -> str:
        """What tells it from other terms, in any text."""
        return "|".join(f"{variant}={form}" for variant, form in self.forms.items())


@dataclass(frozen=True)
class Found:
    """A term in a text, at [start, end); `text` is how it is written there."""

    start: int
    end: int
    text: str
    term: Term
    variant: str

    @property
    def shouted(self) -> bool:
        """Whether it stands in capitals that are not its own."""
        return len(self.text) > 1 and self.text.isupper() and not self.term.forms[self.variant].isupper()


@dataclass(frozen=True)
class Attribute:
    """What a lexicon knows of one attribute, such as gender."""

    name: str
    variants: tuple[str, ...]
    terms: tuple[Term, ...]
    leave: tuple[str, ...]
    no_noun: frozenset[str]

    @cached_property
    def known(self) -> dict[str, list[tuple[str, Term]]]:
        """Folded form -> the terms that have it, each with its variant."""
        known: dict[str, list[tuple[str, Term]]] = {}
        for term in self.terms:
            for variant, form in term.forms.items():
                known.setdefault(folded(form), []).append((variant, term))
        return known

    @cached_property
    def _first_words(self) -> frozenset[str]:
        return frozenset(_WORD.findall(form)[0] for form in self.known)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        phrases = sorted({*self.known, *map(folded, self.leave)}, key=lambda phrase: (-len(phrase), phrase))
        by_letter: dict[str, list[str]] = {}  # so that at each place few are tried
        for phrase in phrases:
            rest = re.escape(phrase[1:]).replace(r"\ ", r"\s+").replace("'", "['\u2019]")
            by_letter.setdefault(re.escape(phrase[0]), []).append(rest)
        either = "|".join(f"{letter}(?:{'|'.join(rests)})" for letter, rests in by_letter.items())
        return re.compile(f"{_BEFORE}(?:{either}){_AFTER}", re.IGNORECASE)

    def find(self, text: str, *, names: bool = False) -> list[Found] | None:
        """The terms in a text, from the left; None where one is part of a name, as in "John Wayne" or "The Good Girl": whoever
        or whatever it is of keeps it, so no counterpart would make sense. `names`: take these for terms as well.
        """
        if self._first_words.isdisjoint(_words(text)):
            return []
        found: list[Found] = []
        at = 0
        while match := self._pattern.search(text, at):
            start, end = match.span()
            meant = self.meant(text, start, end)
            left = meant is None and folded(_plain(match[0])) not in self.known
            at = start + 1 if meant is None and not left else end  # a shorter term may begin inside
            if meant:
                found.append(Found(start, end, match[0], meant[1], meant[0]))
                if not names and _within_a_name(found[-1], text):
                    return None
        return found

    def meant(self, text: str, start: int, end: int) -> tuple[str, Term] | None:
        """The variant and the term that text[start:end] is, seen with what follows it; None where it is none."""
        written = _plain(text[start:end])
        following = _NEXT_WORD.match(text, end)
        noun = following is not None and _plain(following[1]).casefold() not in self.no_noun
        for variant, term in self.known.get(folded(written), ()):
            as_written = not term.exact or written in (term.forms[variant], term.forms[variant].upper())
            if as_written and term.when in (None, "noun" if noun else "alone"):
                return variant, term
        return None

    def without_terms(self, text: str) -> str:
        """The text with the same sign for all variants of a term, so that texts are compared apart from these."""
        found = self.find(text, names=True) or []
        return abstracted(text, found, dict.fromkeys(self.variants, "*")) if found else text


def _within_a_name(one: Found, text: str) -> bool:
    own = one.term.forms[one.variant]
    if not one.term.given_name and (one.shouted or not one.text[:1].isupper() or own[:1].isupper()):
        return False
    return bool(_NAME_GOES_ON.match(text, one.end) or _NAME_BEGAN.search(text, max(0, one.start - 60), one.start))


def swapped(text: str, found: Sequence[Found], into: Mapping[str, str]) -> str:
    """The text with each term in another variant's form, `into` being variant -> variant: capitals follow the text, `a` and
    `an` the new word, a bare possessive apostrophe the new ending.
    """
    parts: list[str] = []
    at = 0
    for one in found:
        form = one.term.forms[into[one.variant]]
        article_for, form = "an" if _vowel_sound(form) else "a", _cased(one, form, text)
        before = text[at : one.start]
        if article := _ARTICLE.search(before):
            new = _as_written(article[1], article_for, one.shouted)
            before = before[: article.start()] + new + article[2]
        at = one.end
        if (ending := _possessive(one, text)) and not ending[2] and not form.lower().endswith("s"):
            form, at = f"{form}{ending[1]}{'S' if one.shouted else 's'}", ending.end()
        parts += [before, form]
    return "".join([*parts, text[at:]])


def abstracted(text: str, found: Sequence[Found], roles: Mapping[str, str]) -> str:
    """The text with `roles[variant]` and the term's name for each term: the same for all texts of a counterfactual group."""
    parts: list[str] = []
    at = 0
    for one in found:
        before = _ARTICLE.sub(lambda article: f"{article[1][0]}~{article[2]}", text[at : one.start])
        at = one.end
        if possessive := _possessive(one, text):
            at = possessive.end()
        mark = f"{roles[one.variant]}:{one.term.name}:{'!' if one.shouted else ''}{'+' if possessive else ''}"
        parts += [before, f"\0{mark}\0"]
    return "".join([*parts, text[at:]])


def _possessive(one: Found, text: str) -> re.Match[str] | None:
    """The ending of a term that owns something; an apostrophe alone is one only after an s, elsewhere it ends a quotation."""
    ending = _POSSESSIVE.match(text, one.end)
    return ending if ending and (ending[2] or one.text[-1] in "sS") else None


def _cased(one: Found, form: str, text: str) -> str:
    own = one.term.forms[one.variant]
    if one.shouted:
        return form.upper()
    if one.text.islower() and not own.islower():
        return form.lower()
    if one.text.istitle() and not own.istitle() and " " in own:
        return " ".join(word[:1].upper() + word[1:] for word in form.split(" "))
    opens = one.text[:1].isupper() and (own[:1].islower() or _opens_a_sentence(text, one.start))
    return form[:1].upper() + form[1:] if opens else form


def _opens_a_sentence(text: str, start: int) -> bool:
    while start and (text[start - 1].isspace() or text[start - 1] in _OPENING):
        start -= 1
        if text[start] == "\n":
            return True
    return start == 0 or text[start - 1] in ".!?:"


def _as_written(old: str, new: str, shouted: bool) -> str:
    if old == "AN" or (old == "A" and shouted):
        return new.upper()
    return new.capitalize() if old[0].isupper() else new


def _vowel_sound(word: str) -> bool:
    if _SPELT_OUT.match(word):
        return True
    return bool(_SILENT_H.match(word)) or (word[:1].casefold() in "aeiou" and not _YOO.match(word))


@lru_cache(maxsize=64)  # every attribute looks at the same text in turn
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").split())


def folded(form: str) -> str:
    return " ".join(form.casefold().split())
