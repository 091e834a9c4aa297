"""Scorers that compare a row with rows it must not resemble."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_distill.records import Answer
from llm_distill.scorers import Context

_WORD = re.compile(r"\w+")


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """The word n-grams of a text, case and punctuation aside; a shorter text is one gram of all its words."""
    words = _WORD.findall(text.casefold())
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def leakage(answers: Sequence[Answer], context: Context, *, n: int = 8) -> list[float]:
    """The share of a prompt's word n-grams that stand in some held-out prompt; 1 is a copy.

    8 words are rarely shared by chance; 13 (GPT-3, Brown et al. 2020, appendix C) misses the short rows of
    classification tasks. A text shorter than n counts as one gram, so it leaks only when it is the same text.
    """
    held_out: set[tuple[str, ...]] = set()
    for prompt in context.held_out:
        held_out |= ngrams(prompt.text, n)
    scores = []
    for answer in answers:
        grams = ngrams(answer.prompt.text, n)
        scores.append(len(grams & held_out) / len(grams) if grams else 0.0)
    return scores
