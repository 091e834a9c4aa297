"""How pleased a text sounds, by counting words: no model, the same on every machine, and no more than a count.

The words are those of `prompts/polarity.yaml`. A word within three words of a negator counts the other way round.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from ruamel.yaml import YAML

from llm_distill.templates import BUILT_IN

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_REACH = 3  # words after a negator that it turns round: "not at all good"


@lru_cache
def _lists(path: Path) -> tuple[re.Pattern[str], re.Pattern[str], frozenset[str]]:
    lists = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    positive, negative = (
        re.compile("|".join(re.escape(word).replace(r"\*", ".*") for word in lists[side]))
        for side in ("positive", "negative")
    )
    return positive, negative, frozenset(lists["negators"])


def polarity(text: str) -> float:
    """(pleased - displeased) / (pleased + displeased) of the words that are either, in [-1, 1]; 0 where none is."""
    positive, negative, negators = _lists(BUILT_IN / "polarity.yaml")
    words = [word.casefold().replace("\u2019", "'") for word in _WORD.findall(text)]
    pleased = displeased = 0
    turned_at = -_REACH - 1
    for place, word in enumerate(words):
        if word in negators:
            turned_at = place
            continue
        sign = bool(positive.fullmatch(word)) - bool(negative.fullmatch(word))
        if place - turned_at <= _REACH:
            sign = -sign
        pleased, displeased = pleased + (sign > 0), displeased + (sign < 0)
    return (pleased - displeased) / (pleased + displeased) if pleased + displeased else 0.0
