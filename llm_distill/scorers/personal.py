"""Personal data in a text, found by shape and proved by check digits where there are some."""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left as bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from llm_distill.errors import UserError
from llm_distill.scorers import checksums
from llm_distill.scorers.secrets import secrets

Kind = Literal["secret", "email", "iban", "card", "national_id", "ip", "phone"]
#: All kinds. Of two that overlap the earlier one is meant: an account number holds what looks like a phone number.
KINDS: tuple[Kind, ...] = get_args(Kind)

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%-][\w.+%-]{0,63}@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[A-Za-z]{2,24})(?![\w-])"
)
#: Domains that nobody has (RFC 2606, RFC 6761).
_NOBODYS = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.IGNORECASE)
#: Digits in a row with single spaces or hyphens between: a card's number, and what stands beside it.
_FIGURES = re.compile(r"(?<![\w.-])\d+(?:[ -]\d+)*(?![\w-]|\.\d)")
_FIGURE = re.compile(r"\d+")
_CARD_DIGITS, _CARD_GROUP = range(13, 20), 3
#: First digits and lengths that card networks issue.
_NETWORKS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ -]?[A-Z0-9])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv(?:ersion|er\.?)?|\brelease|\bbuild)\s*$", re.IGNORECASE)
#: What unicast addresses are given out of (RFC 4291; IANA); `A::B` in a program is none of them.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_DIGITS = re.compile(r"\d")


class _Number(NamedTuple):
    """A national number; `said`: words of which one must stand before it, where one number in ten passes the check."""

    pattern: re.Pattern[str]
    sound: Callable[[str], bool]
    said: re.Pattern[str] | None = None


def _number(pattern: str, sound: Callable[[str], bool], said: str | None = None) -> _Number:
    words = None if said is None else re.compile(rf"\b(?:{said})\b", re.IGNORECASE)
    return _Number(re.compile(rf"(?<![\w-]){pattern}(?![\w-])"), sound, words)


_NATIONAL = [
    _number(r"\d{3}-\d{2}-\d{4}", checksums.us_ssn),
    _number(r"\d{3}[ ]?\d{2}[ ]?\d{4}", checksums.us_ssn, "ssn|social security(?: number)?"),
    _number(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]", checksums.gb_nino),
    _number(r"(?:\d{8}|[XYZ]-?\d{7})-?[TRWAGMYFPDXBNJZSQVHLCKE]", checksums.es_dni),
    _number(r"[A-Z]{6}\d\d[ABCDEHLMPRST]\d\d[A-Z]\d{3}[A-Z]", checksums.it_codice_fiscale),
    _number(r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", checksums.fr_nir),
    _number(r"\d{3}\.\d{3}\.\d{3}-\d\d", checksums.br_cpf),
    _number(r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d", checksums.ch_ahv),
    _number(r"\d{6}[-+]\d{4}", checksums.se_personnummer),
    _number(r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}", checksums.de_steuer_id, "steuer[a-z-]*|idnr|tin|tax id"),
    _number(r"\d{9}", checksums.nl_bsn, "bsn|burgerservicenummer|sofi"),
    _number(r"\d{11}", checksums.pl_pesel, "pesel"),
    _number(r"\d{3}[ -]?\d{3}[ -]?\d{3}", checksums.luhn, "sin|social insurance(?: number)?"),
    _number(r"[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}", checksums.in_aadhaar, "aadhaar|aadhar|uidai"),
]
_NEAR = 60  # signs before a number in which the word for it may stand


class Finding(NamedTuple):
    """A piece of personal data: text[start:end]."""

    start: int
    end: int
    kind: Kind


def personal(text: str, kinds: Collection[Kind], regions: Sequence[str]) -> list[Finding]:
    """What stands in a text, from the left, without overlaps. `regions`: countries whose own way to write phone numbers counts;
    numbers that begin with + count everywhere.
    """
    finders: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
        "secret": secrets, "email": _emails, "iban": _ibans, "card": _cards, "national_id": _national_ids, "ip": _addresses,
        "phone": lambda text: _phones(text, regions),
    }  # fmt: skip
    found: list[Finding] = []
    for kind in KINDS:
        if kind in kinds:
            for start, end in finders[kind](text):
                place = bisect(found, (start,))
                after = place == len(found) or end <= found[place].start
                if after and (place == 0 or found[place - 1].end <= start):
                    found.insert(place, Finding(start, end, kind))
    return found


def redacted(text: str, found: Sequence[Finding]) -> str:
    """The text with `[EMAIL]` and the like in place of what was found."""
    parts, at = [], 0
    for one in found:
        parts += [text[at : one.start], f"[{one.kind.upper()}]"]
        at = one.end
    return "".join([*parts, text[at:]])


def _emails(text: str) -> Iterator[tuple[int, int]]:
    for match in _EMAIL.finditer(text) if "@" in text else ():
        if not _NOBODYS.search(match[1]):
            yield match.span()


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _FIGURES.finditer(text):
        figures = [figure.span() for figure in _FIGURE.finditer(text, *match.span())]
        first = 0
        while first < len(figures):
            last = next((at for at in _longest_first(figures, first) if _card(text, figures[first : at + 1])), None)
            if last is not None:
                yield figures[first][0], figures[last][1]
            first = first + 1 if last is None else last + 1


def _longest_first(figures: Sequence[tuple[int, int]], first: int) -> Iterator[int]:
    """The places of last figures that make a number as long as a card's, the furthest first; a table of small figures has
    none.
    """
    length, places = 0, []
    for place in range(first, len(figures)):
        own = figures[place][1] - figures[place][0]
        length += own
        if own < _CARD_GROUP or length >= _CARD_DIGITS.stop:
            break
        if length in _CARD_DIGITS:
            places.append(place)
    return reversed(places)


def _card(text: str, figures: Sequence[tuple[int, int]]) -> bool:
    digits = "".join(text[start:end] for start, end in figures)
    between = {text[one[1]] for one in figures[:-1]}  # spaces or hyphens, not both
    return len(between) < 2 and _NETWORKS.fullmatch(digits) is not None and checksums.luhn(digits)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        length = checksums.IBAN_LENGTH.get(match[0][:2])
        if length is None:
            continue
        whole = re.compile(rf"[A-Z0-9](?:[ -]?[A-Z0-9]){{{length - 1}}}(?![A-Za-z0-9])").match(text, match.start())
        if whole and checksums.iban(re.sub("[ -]", "", whole[0])):
            yield whole.span()


def _national_ids(text: str) -> Iterator[tuple[int, int]]:
    if len(_DIGITS.findall(text)) < 6:
        return
    for number in _NATIONAL:
        for match in number.pattern.finditer(text):
            said = number.said is None or number.said.search(text, max(0, match.start() - _NEAR), match.start())
            if said and number.sound(re.sub(r"[ .+-]", "", match[0])):
                yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """Addresses that are reached from everywhere; those of private networks and of examples say nothing about anybody."""
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                known = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            given = known.version == 4 or known in _GIVEN_OUT
            if given and known.is_global and not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    if len(_DIGITS.findall(text)) < 7:
        return
    numbers = phonenumbers()
    for region in (*regions, *(() if regions else (None,))):
        for match in numbers.PhoneNumberMatcher(text, region, leniency=numbers.Leniency.STRICT_GROUPING):
            yield match.start, match.end


def phonenumbers() -> Any:
    """The library of that name; UserError where it is not installed."""
    try:
        import phonenumbers as library
    except ImportError:
        raise UserError(
            "pii: phone numbers need the phonenumbers library; pip install 'llm-distill[filter]', or leave `phone` out of "
            "`kinds`."
        ) from None
    return library
