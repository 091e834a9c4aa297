"""Scorers that read the words of an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from llm_distill.records import Answer

#: Openings by which assistants decline, in the languages most often seen; matched at the start of a sentence only, so
#: that text which talks about refusing is not taken for a refusal.
_REFUSAL = re.compile(
    r"(?:^|[.!?\n]\s*)(?:sorry,? (?:but )?)?(?:"
    r"i(?:'m| am) (?:sorry|unable|not able|afraid)\b.{0,40}\b(?:can(?:'t|not)|unable|not able|assist|help)"
    r"|i (?:can(?:'t|not|not)|won't|will not|must decline|have to decline)\b.{0,20}\b"
    r"(?:help|assist|comply|provide|answer|do that|fulfil|support|engage|to)\b"
    r"|as an ai(?: language)?(?: model)?\b.{0,40}\b(?:can(?:'t|not)|unable|not able|do not|don't)"
    r"|es tut mir leid\b.{0,40}\bnicht|lo siento\b.{0,40}\bno puedo|(?:je suis )?désolée?\b.{0,40}\bne p(?:eux|uis)\b"
    r"|mi dispiace\b.{0,40}\bnon posso|desculpe\b.{0,40}\bnão posso"
    r")",
    re.IGNORECASE,
)


def empty(answers: Sequence[Answer]) -> list[float]:
    """1 where the answer has no text but blank space."""
    return [float(not a.text.strip()) for a in answers]


def length(answers: Sequence[Answer], *, unit: Literal["characters", "words"] = "characters") -> list[float]:
    """The length of the answer's text, blank space around it not counted."""
    if unit == "words":
        return [float(len(a.text.split())) for a in answers]
    return [float(len(a.text.strip())) for a in answers]


def truncated(answers: Sequence[Answer]) -> list[float]:
    """1 where the model stopped because max_tokens was reached (`finish_reason: length`)."""
    return [float(a.status == "truncated") for a in answers]


def refusal(answers: Sequence[Answer]) -> list[float]:
    """1 where the model declined: by the API's refusal field, or in words that assistants use for it."""
    return [float(a.status == "refused" or bool(_REFUSAL.search(a.text.replace("\u2019", "'")))) for a in answers]


def exact_duplicate(answers: Sequence[Answer], *, of: Literal["prompt", "answer", "both"] = "prompt") -> list[float]:
    """1 where the same text, but for case and blank space, stands in an earlier row."""
    seen: set[tuple[str, str]] = set()
    scores = []
    for a in answers:
        key = (
            a.prompt.gist if of != "answer" else "",
            " ".join(a.text.casefold().split()) if of != "prompt" else "",
        )
        scores.append(float(key in seen))
        seen.add(key)
    return scores
