"""Reading what a model was asked to write: a list of texts, or one text between marks. Strictly: what is not in one of the
shapes below is nothing, never a guess.

A list is numbered lines (`1. text`; the lines right below an item belong to it, a blank line ends it) or one JSON array of
strings; either may stand in a fenced block. The built-in templates ask for numbered lines.
"""

from __future__ import annotations

import re
import unicodedata

from llm_distill.structured import parsed

_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_NUMBERED = re.compile(r"[ \t]{0,3}(\d{1,3})(?:[.)][ \t]+|[、．][ \t]*)(.*)")  # noqa: RUF001 - as Chinese writes it
#: Marks that a model puts around a whole item.
_AROUND = (("**", "**"), ('"', '"'), ("“", "”"), ("«", "»"), ("「", "」"))
#: Scripts that do not divide words: each sign counts as one.
_UNDIVIDED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNDIVIDED}]|(?:(?![{_UNDIVIDED}])[^\W_])+")
#: Control characters but for tab and line ends, and halves of surrogate pairs, which JSON can hold and UTF-8 cannot.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
#: What a writer leaves for others to fill in: "[insert text]", "[Your name]", "{{document}}".
_BLANK = re.compile(
    r"\[\s*(?:insert|your|paste|enter|add|provide|attach)\b[^\]\n]{0,200}\]|<\s*(?:insert|your|paste)\b[^>\n]{0,200}>"
    r"|\{\{[^}\n]{0,200}\}\}",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text, case and accents' spelling aside. On ASCII text they are the tokens of rouge-score, which sees
    no other letters.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def items(text: str) -> list[str]:
    """The texts of a list; none where the text is no list. Those that are not whole are left out."""
    body = text.strip()
    if (fenced := _FENCE.search(body)) and not any(map(_NUMBERED.match, body[: fenced.start()].split("\n"))):
        inner = fenced[1].strip()
        body = inner if inner.startswith("[") or _NUMBERED.match(inner) else body
    return _array(body) if body.startswith("[") else _numbered(body)


def between(text: str, mark: str) -> str | None:
    """What stands between `<mark>` and `</mark>`, or the whole text without them; None where they do not make one pair."""
    opening, closing = f"<{mark}>", f"</{mark}>"
    if opening not in text and closing not in text:
        return text.strip()
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    head, _, rest = text.partition(opening)
    inside, found, _ = rest.partition(closing)
    return inside.strip() if found and closing not in head else None


def fault(text: str, *, least: int = 1, most: int | None = None) -> str | None:
    """What is wrong with a text as a prompt of `least` to `most` words; None where nothing is.

    One that ends in a colon lacks what it announces, and one with a blank to fill in was not finished either.
    """
    if _NO_TEXT.search(text):
        return "not text"
    size = len(words(text))
    if size < least:
        return "empty" if size == 0 else "too short"
    if most is not None and size > most:
        return "too long"
    if text.rstrip(' *_"”').endswith((":", "：")) or _BLANK.search(text):  # noqa: RUF001 - as Chinese writes it
        return "unfinished"
    return None


def _array(body: str) -> list[str]:
    try:
        found = parsed(body)
    except (ValueError, ArithmeticError, RecursionError):
        return []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        return []
    return [item.strip() for item in found if item.strip()]


def _numbered(body: str) -> list[str]:
    """The items of numbered lines, which count on by one from wherever they start.

    An item with more behind a blank line is left out, for nobody knows where it ends; behind the last one that is what a
    model says in closing, unless the item announces it. A line that counts otherwise (a list in an item, another list) ends
    the list, and the item that it interrupts is not whole.
    """
    found: list[list[str]] = []
    item: list[str] = []
    due, inside, more = None, False, False
    for line in body.split("\n"):
        numbered = _NUMBERED.match(line)
        if numbered and due in (None, int(numbered[1])):
            if item and not more:
                found.append(item)
            item, due, inside, more = [numbered[2]], int(numbered[1]) + 1, True, False
        elif numbered:
            item = []
            break
        elif not line.strip():
            inside = False
        elif inside:
            item.append(line)
        else:
            more = True
    if item and not (more and item[-1].rstrip().endswith(":")):
        found.append(item)
    return [text for lines in found if (text := _bare("\n".join(lines)))]


def _bare(item: str) -> str:
    """Without the marks around the whole of it."""
    item = item.strip()
    for left, right in _AROUND:
        inner = item[len(left) : -len(right)]
        if item.startswith(left) and item.endswith(right) and left not in inner and right not in inner:
            return inner.strip()
    return item
