"""Scorers of insulting and obscene language: by a classifier, by a small linear model, by words.

What they find is tone: words and phrases that often stand in abuse. None of them finds a stereotype said politely, and all
of them take a quotation, a reclaimed word or a name of a group in an angry text for abuse more often than people do
(Dixon et al. 2018). The report's fairness table shows whom a bound takes out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill.errors import UserError, did_you_mean
from llm_distill.models import weights
from llm_distill.plugs import InputFile, Weights
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import Part, texts
from llm_distill.templates import BUILT_IN

_SIGNS = str.maketrans({"@": "a", "$": "s", "0": "o", "1": "i", "3": "e", "!": "i", "5": "s", "7": "t"})
_TOKEN = re.compile(r"[\w@$!*#]+")
_STARRED = "*#"
_ENDING = "[a-z]*"


def _pattern(word: str) -> str:
    stem = word.removesuffix("*")
    starred = "".join(f"[{re.escape(letter)}{_STARRED}]" for letter in stem[1:])
    return re.escape(stem[0]) + starred + (_ENDING if word.endswith("*") else "")


@lru_cache
def _words(path: Path) -> re.Pattern[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    words = [line.strip().casefold() for line in lines if line.strip() and not line.startswith("# ")]
    if odd := [word for word in words if not re.fullmatch(r"\w[\w'-]*\*?", word)]:
        raise UserError(f"{path}: found {odd[0]!r}; write one word a line, with * only at its end.")
    if not words:
        raise UserError(f"{path}: no words; write one a line.")
    return re.compile("|".join(map(_pattern, words)))


def _read(path: Path) -> Path:
    _words(path)
    return path


def _at_hand(by: str) -> str:
    if by == "model" and find_spec("profanity_check") is None:
        raise UserError(
            "profanity: `by: model` needs alt-profanity-check; pip install 'llm-distill[toxicity]', or use `by: words`."
        )
    return by


def profanity(
    answers: Sequence[Answer],
    *,
    by: Annotated[Literal["words", "model"], AfterValidator(_at_hand)] = "words",
    of: Part = "answer",
    words: Annotated[InputFile, AfterValidator(_read)] = BUILT_IN / "profanity.txt",
) -> Scored:
    """How profane a text is. It finds words, not stereotypes, and not who is meant.

    words: how many words of the list in `words` it has; English. model: the probability that the linear model of
    alt-profanity-check gives (character and word counts, trained on 200,000 labelled comments; English); extra `toxicity`.
    """
    if by == "model":
        return Scored(_linear(texts(answers, of)))
    pattern = _words(words)
    known: dict[str, bool] = {}  # a text's words are mostly those of the texts before it
    found: list[list[str]] = []
    for text in texts(answers, of):
        found.append([])
        for token in _tokens(text):
            if token not in known:
                known[token] = pattern.fullmatch(token) is not None
            if known[token]:
                found[-1].append(token)
    return Scored([float(len(some)) for some in found], [", ".join(sorted(set(some))) or None for some in found])


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text.casefold()):
        token = match[0].rstrip("!#")
        letters = sum(sign.isalpha() for sign in token)
        if letters:  # a price, a year or a row of signs is no word
            yield token.translate(_SIGNS) if letters * 2 >= len(token) - token.count("*") else token


def _linear(found: Sequence[str]) -> list[float]:
    _at_hand("model")
    from profanity_check import predict_prob

    return [float(p) for p in predict_prob(list(found))] if found else []


def _stated(labels: list[str], info: ValidationInfo) -> list[str]:
    """Labels that a local classifier has; those of one on the hub are seen when it is loaded."""
    config = Path(info.data.get("model", "")) / "config.json"
    if config.is_file():
        _check_labels(labels, msgspec.json.decode(config.read_bytes()).get("id2label") or {}, str(config.parent))
    return labels


def _check_labels(labels: Sequence[str], names: Mapping[Any, str], where: str) -> None:
    known = [str(name) for name in names.values()]
    for label in labels:
        if label not in known:
            raise UserError(f"toxicity.labels: {where} has no label {label!r}.{did_you_mean(label, known)}")


def toxicity(
    answers: Sequence[Answer],
    *,
    model: Annotated[Weights, AfterValidator(weights.loadable)],
    labels: Annotated[list[str], Field(min_length=1), AfterValidator(_stated)],
    of: Part = "answer",
    revision: str | None = None,
    batch_size: Annotated[int, Field(ge=1)] = 32,
    max_tokens: Annotated[int, Field(ge=8)] = 512,
) -> Scored:
    """The highest probability that a classifier gives to any of `labels`, in any part of the text.

    `model`: a text-classification checkpoint with safetensors, a folder or a hub id; code that comes with it is never run.
    NaN where a text is empty. A text longer than `max_tokens`, or than the model takes, is read in parts that overlap by a
    quarter. What it finds is what its makers labelled; read the model's card before you set a bound.
    """
    from llm_distill.scorers.classifier import Classifier

    classifier = Classifier(model, revision, max_tokens)
    _check_labels(labels, classifier.labels, model)
    places = [place for place, name in classifier.labels.items() if name in labels]
    probabilities = classifier.probabilities(texts(answers, of), batch_size)
    scores: list[float] = []
    why: list[str | None] = []
    for row in probabilities:
        score, place = max(((row[place], place) for place in places), default=(math.nan, -1))
        scores.append(score)
        why.append(None if math.isnan(score) else f"{classifier.labels[place]} {score:.2f}")
    return Scored(scores, why)
