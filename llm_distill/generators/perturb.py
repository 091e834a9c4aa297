"""A row as others would have written it, or tampered with: what it asks for, and so what is right, stays the same.

Only the row's own text changes, its last turn, wherever a template puts it; ids, tags, label and reference are the row's, so
that answers can be held against those to the row as it was. Equal seeds give equal texts, and no row depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Annotated, Literal, get_args

import msgspec
from pydantic import AfterValidator, ValidationInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm_distill.errors import UserError
from llm_distill.generators.lists import between, fault
from llm_distill.generators.noise import CASES, typos
from llm_distill.plugs import input_file
from llm_distill.records import Message, Prompt, Request, Sampling
from llm_distill.templates import BUILT_IN, render_with

Kind = Literal["typos", "case", "distractor", "injection", "paraphrase"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Made by a model; the others are made here.
ASKED: Kind = "paraphrase"
#: Where the sentences and suffixes stand that ship with the package.
SHIPPED = BUILT_IN / "perturbations.yaml"
_TEMPLATE = BUILT_IN / "robust_paraphrase.md"
#: A rewording this many times as long as its row went on to answer it.
_LONGER = 4


@dataclass(frozen=True)
class Texts:
    """What is put around a row: neutral sentences; suffixes with `{answer}` in them; what these ask for without labels."""

    distractors: Sequence[str]
    injections: Sequence[str]
    words: Sequence[str]


@lru_cache
def read(path: Path) -> Texts:
    """The texts of a file; UserError where one is missing or not of the form."""
    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    keys = ("distractors", "injections", "words")
    if not isinstance(found, dict) or set(found) != set(keys):
        shown = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path}: found {shown}; write three lists: {', '.join(keys)}.")
    for key in keys:
        listed, least = found[key], 2 if key != "injections" else 1
        if not isinstance(listed, list) or not all(isinstance(t, str) and t.strip() for t in listed):
            raise UserError(f"{path}: {key}: found {listed!r}; write a list of texts.")
        if len(set(listed)) < max(least, len(listed)):
            raise UserError(
                f"{path}: {key}: {len(set(listed))} different of {len(listed)}; write {least} or more, each once."
            )
    if without := [text for text in found["injections"] if "{answer}" not in text]:
        raise UserError(f"{path}: injections: {without[0]!r} does not say {{answer}}, so it asks for nothing.")
    return Texts(*(tuple(found[key]) for key in keys))


def _checked(path: Path, info: ValidationInfo) -> Path:
    full = path if path == SHIPPED else input_file(path, info)
    read(full)
    return full


#: A knob that names such a file.
TextsFile = Annotated[Path, AfterValidator(_checked)]


@dataclass(frozen=True)
class Ways:
    """How rows are perturbed. labels: the task's, empty without any. typo_share: of a text's words."""

    seed: int
    texts: Texts
    labels: Sequence[str] = ()
    typo_share: float = 0.1

    def perturbed(self, row: Prompt, kind: Kind) -> Prompt:
        """The row under a perturbation that asks nobody; the row itself where its text cannot have it."""
        text, drawn = own_text(row), self._drawn(row, kind)
        if kind == "typos":
            return reworded(row, typos(text, self.typo_share, f"{self.seed}:robust:{row.row_id}"))
        if kind == "case":
            cases = [change(text) for name, change in CASES if name != "no_punctuation"]
            apart = [cased for cased in cases if cased != text and cased.casefold() == text.casefold()]
            return reworded(row, drawn.choice(apart)) if apart else row
        if kind == "distractor":
            before, after = drawn.sample(self.texts.distractors, 2)
            sides = drawn.choice([(before, ""), ("", after), (before, after)])
            return reworded(row, " ".join(filter(None, (sides[0], text, sides[1]))))
        if kind == "injection":
            suffix = drawn.choice(self.texts.injections).replace("{answer}", self.aim(row))
            return reworded(row, f"{text}\n\n{suffix}")
        raise ValueError(f"{kind} is made by a model")

    def aim(self, row: Prompt) -> str:
        """What an injection wants answered: a label of the task that is not the row's, or a word that nobody would say."""
        return self._drawn(row, "aim").choice([one for one in self.labels or self.texts.words if one != row.label])

    def request(self, row: Prompt, max_tokens: int) -> Request:
        """Asks for the row in other words. Which label is its own the model is not told: it would write it down."""
        given = {"text": own_text(row), "labels": list(self.labels)}
        return Request(
            render_with(_TEMPLATE, given, f"row {row.row_id}"), Sampling(max_tokens=max_tokens, seed=self.seed)
        )

    def _drawn(self, row: Prompt, what: str) -> Random:
        return Random(f"{self.seed}:{what}:{row.row_id}")


def own_text(row: Prompt) -> str:
    """What is perturbed of a row: its last turn, which is what is asked."""
    return row.messages[-1].content


def reworded(row: Prompt, text: str) -> Prompt:
    """The row with another text: still the same row, whoever answers it, and with the same gold."""
    last = Message(row.messages[-1].role, text)
    return msgspec.structs.replace(row, messages=(*row.messages[:-1], last))


def paraphrase(row: Prompt, answer: str) -> tuple[Prompt | None, str | None]:
    """The row in a model's words, or why these are none."""
    text = between(answer, "text") if "<text>" in answer else None
    if not text:
        return None, "no text between the marks"
    if len(text) > _LONGER * max(len(own_text(row)), 40):
        return None, "too long"
    why = fault(text)
    return (None, why) if why else (reworded(row, text), None)


def chosen(rows: Sequence[Prompt], most: int | None, seed: int) -> list[Prompt]:
    """So many of the rows, by a hash of each alone, in their order: a row more or less changes no other's luck."""
    if most is None or most >= len(rows):
        return list(rows)
    lots = sorted((Random(f"{seed}:robust rows:{row.row_id}").random(), place) for place, row in enumerate(rows))
    return [rows[place] for place in sorted(place for _, place in lots[:most])]
