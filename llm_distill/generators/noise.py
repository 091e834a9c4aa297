"""Texts as people really write them: with slips of the keyboard, in one case, without punctuation. No model is asked.

After the noise models of Belinkov & Bisk 2018 (arXiv 1711.02173) and Naplava et al. 2021 (arXiv 2110.07428): a slip is a
neighbouring key, two letters swapped, one left out, or one doubled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

#: Keys beside each other on a QWERTY keyboard, row by row; the rows below are set off by half a key.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS: dict[str, str] = {
    key: "".join(
        row[i]
        for row, places in (
            (own, (x - 1, x + 1)),
            *([(_ROWS[y - 1], (x, x + 1))] if y else []),
            *([(_ROWS[y + 1], (x - 1, x))] if y + 1 < len(_ROWS) else []),
        )
        for i in places
        if 0 <= i < len(row)
    )
    for y, own in enumerate(_ROWS)
    for x, key in enumerate(own)
}
#: Blank space stays as it is, so that lines and columns do.
_PIECE = re.compile(r"\S+|\s+")
_OPENING, _ENDING = "\"'([\u201c\u2018\u00bf\u00a1", "\"')].,!?;:\u201d\u2019\u2026\u3002\uff01\uff1f"
#: Signs at the end of a word that close a sentence or a part of it. One between digits, or in a smiley, is none of them.
_CLOSING = re.compile(
    r"(?<=[\w)\"\u201d\u2019'])(?:[.,!?\u2026\u3002\uff0c\uff01\uff1f\u3001]+(?=[\"'\u201d\u2019)]?(?:\s|$))"
    r"|[;:]+(?=[\"'\u201d\u2019]?(?:\s|$)))"
)
_QUOTES = re.compile(r"(?<!\w)[\"\u201c](?=\w)|(?<=\w)[\"\u201d](?!\w)")


def typos(text: str, share: float, seed: str) -> str:
    """The text with slips in that share of its words, rounded up; the same text where no word can have one.

    Only words of three letters or more and nothing but letters have slips: an address, a number, a price and a name of a
    file stay what they are. A word's first letter stays, and so does its case.
    """
    pieces = _PIECE.findall(text)
    places = [i for i, piece in enumerate(pieces) if len(core := _parted(piece)[1]) >= 3 and core.isalpha()]
    drawn = random.Random(f"{seed}:typo")
    count = min(len(places), max(1, round(share * len(places)))) if places else 0
    for place in sorted(drawn.sample(places, count)):
        opening, core, closing = _parted(pieces[place])
        pieces[place] = opening + _slip(core, drawn) + closing
    return "".join(pieces)


def _parted(piece: str) -> tuple[str, str, str]:
    rest = piece.lstrip(_OPENING)
    core = rest.rstrip(_ENDING)
    return piece[: len(piece) - len(rest)], core, rest[len(core) :]


def _slip(word: str, drawn: random.Random) -> str:
    place = drawn.randrange(1, len(word))
    letter = word[place]
    slips = [word[:place] + word[place + 1 :], word[:place] + letter + word[place:]]
    swap = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
    if swap:
        i = drawn.choice(swap)
        slips.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    if near := _NEIGHBOURS.get(letter.lower()):
        key = drawn.choice(near)
        slips.append(word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :])
    return drawn.choice(slips)


def unpunctuated(text: str) -> str:
    """The text without the signs that close its sentences and their parts, and without double quotes.

    Signs that mean something stay: in 3.5, 50%, don't, a-b, an address, a smiley.
    """
    return _QUOTES.sub("", _CLOSING.sub("", text))


#: How the letters and signs of a text may be changed with no change to its words.
CASES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("lower", str.lower),
    ("no_punctuation", unpunctuated),
    ("upper", str.upper),
)
