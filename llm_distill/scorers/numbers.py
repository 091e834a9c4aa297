"""The numbers that stand in a text, exactly."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from llm_distill.tasks import UNDIVIDED

Mark = Literal[".", ","]
_MINUS = "-\u2212\u2013\ufe63\uff0d"
_CURRENCY = r"(?:\\?\$|[€£¥₹₩₽]|(?:USD|EUR|GBP|CHF|JPY|INR)\s?)"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
#: A power of ten beyond this is no quantity that anybody states, and costs its size in memory.
_LARGEST_POWER = 400


@dataclass(frozen=True)
class Number:
    """A number as it stands in a text: its figure, before a percent sign divides it, and how it was written."""

    figure: Fraction
    percent: bool
    text: str


@lru_cache(maxsize=2)
def _pattern(decimal: Mark) -> re.Pattern[str]:
    group = "," if decimal == "." else r"\."
    point = r"\." if decimal == "." else ","
    # In English a plain space is no separator: it would glue a number to the next.
    space = "" if decimal == "." else " "
    between = rf"(?:{group}|\{{,\}}|\\,|['\u2019_\u00a0\u202f\u2009{space}])"
    whole = rf"\d{{1,3}}(?P<by>{between})\d{{3}}(?:(?P=by)\d{{3}})*(?!\d)|\d+"
    sign = rf"[{_MINUS}+]?"
    exponent = (
        rf"(?:\^|\*\*)[{{(]?(?P<ten>{sign}\d+)[}})]?|(?P<up>[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)"
    )
    power = rf"[eE](?P<e>{sign}\d+)|\s?(?:[\u00d7x*\u00b7]|\\times|\\cdot)\s?10(?:{exponent})"
    return re.compile(
        # Not inside a word, a version or an address; a hyphen behind a letter or a figure is no minus.
        # A script that does not divide words puts no blank before a number either.
        rf"(?:(?<=[{UNDIVIDED}])|(?<![\w\\/]))(?<!\w\.)(?<![A-Za-z]-)"
        rf"(?:(?:(?<=[{UNDIVIDED}])|(?<![\w)\]}}]))(?P<sign>[{_MINUS}+]))?(?:{_CURRENCY}\s?)?(?P<inner>(?<=\$)[{_MINUS}])?"
        rf"(?:(?:(?P<mixed>\d+)\s?)?\\[dt]?frac\s?\{{(?P<over>\d+)\}}\s?\{{(?P<under>\d+)\}}"
        rf"|(?:(?P<mixed2>\d+)\s)?(?P<over2>\d+)\s?[/\u2044]\s?(?P<under2>\d+)(?![\d/])"
        rf"|(?P<mixed3>\d+)?\s?(?P<vulgar>[¼-¾⅐-⅞])"
        # Possessive: of 192.168.1.1 no shorter beginning is a number either.
        rf"|(?:(?>(?P<whole>{whole}))(?P<part>{point}\d++)?|(?P<bare>{point}\d++))(?:{power})?(?!\.\d))"
        r"(?P<percent>\s?(?:\\?[%\uff05\u066a]|percent\b|per cent\b))?"
    )


def numbers(text: str, decimal: Mark = ".") -> list[Number]:
    r"""All numbers of a text, in their order.

    Signs, thousands, currency, percent, fractions (`3/4`, `1 1/2`, `½`, `\frac{3}{4}`) and powers of ten (`1e-3`, `2e5`)
    are read; `decimal: ","` reads `1.234,5` and `12 000`.
    """
    found = (_number(match, decimal) for match in _pattern(decimal).finditer(text))
    return [number for number in found if number is not None]


def _number(match: re.Match[str], decimal: Mark) -> Number | None:
    part = match.groupdict()
    try:
        figure = _size(part, decimal)
    except (ValueError, ZeroDivisionError):  # thousands of digits, a power beyond all use, or 1/0
        return None
    minus = (part["sign"] or part["inner"] or "+") in _MINUS
    return Number(-figure if minus else figure, part["percent"] is not None, match[0].strip())


def _size(part: dict[str, str | None], decimal: Mark) -> Fraction:
    if part["vulgar"]:
        return Fraction(part["mixed3"] or 0) + Fraction(unicodedata.numeric(part["vulgar"])).limit_denominator(100)
    for over, under, mixed in (("over", "under", "mixed"), ("over2", "under2", "mixed2")):
        if part[over]:
            return Fraction(part[mixed] or 0) + Fraction(int(part[over] or 0), int(part[under] or 0))
    digits = re.sub(r"\D", "", part["whole"] or "0")
    rest = (part["part"] or part["bare"] or "").replace(decimal, ".")
    power = part["e"] or part["ten"] or (part["up"] or "0").translate(_SUPERSCRIPTS)
    power = re.sub(f"[{_MINUS}]", "-", power)
    if len(power) > 4 or abs(int(power)) > _LARGEST_POWER:
        raise ValueError
    return Fraction(digits + rest) * Fraction(10) ** int(power)


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` of a text holds, braces in it balanced; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(begin := start + len("\\boxed{"), len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            if depth == 0:
                return text[begin:place]
            depth -= 1
    return None
