"""Words of texts, and how much two texts have in common, by SQuAD's token F1 for every script."""

from __future__ import annotations

import re
from collections import Counter

import regex

from llm_distill.ngrams import apart

#: SQuAD's, which is ASCII's and holds its symbols too, and that of other scripts.
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Text as SQuAD compares it (Rajpurkar et al. 2016): lower case, no punctuation, articles or extra spaces; no other script's
    punctuation either, as in MLQA (Lewis et al. 2020, arXiv 1910.07475).
    """
    return " ".join(_ARTICLE.sub(" ", _PUNCTUATION.sub("", text.lower())).split())


def bag(text: str) -> Counter[str]:
    """The normalised tokens of a text, as a multiset; each letter of a script that divides no words is one, as in MLQA."""
    return Counter(apart(normalised(text)).split())


def bag_f1(found: Counter[str], wanted: Counter[str]) -> float:
    """F1 of two multisets of tokens."""
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


def token_f1(text: str, reference: str) -> float:
    """F1 of the normalised tokens, as multisets; two texts without a token agree (SQuAD 2.0's rule)."""
    return bag_f1(bag(text), bag(reference))


def length(text: str) -> int:
    """How many words a text has, punctuation with them."""
    return len(apart(text).split())
