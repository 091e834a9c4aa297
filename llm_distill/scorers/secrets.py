"""Keys and tokens in a text: by the marks that their makers give them, and by how random the rest is."""

from __future__ import annotations

import binascii
import math
import re
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

#: Bits a sign of a random key has at least; "your-key-goes-here" and "xxxxxxxxxxxx" have fewer, or say what they are.
_RANDOM = 3.0
_STAND_IN = re.compile(r"example|placeholder|your[-_]?|changeme|dummy|redacted|x{6}|\.{3}|\*{3}|<|\{|\$", re.IGNORECASE)


class _Mark(NamedTuple):
    """A kind of secret; group 1 of the pattern is what must look random."""

    pattern: re.Pattern[str]
    sound: Callable[[str], bool]


def entropy(text: str) -> float:
    """Shannon's entropy of a text's signs, in bits a sign."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) if text else 0.0


def _random(text: str) -> bool:
    return entropy(text) >= _RANDOM and not _STAND_IN.search(text)


def _key(text: str) -> bool:
    """Whether a text is random and no words: names of classes and packages begin with sk- as well."""
    return _random(text) and all(any(map(kind, text)) for kind in (str.isdigit, str.isalpha))


def _password(text: str) -> bool:
    return _key(text) and "(" not in text


def _token(text: str) -> bool:
    """Whether a JSON Web Token's head is one (RFC 7519)."""
    head = text.split(".", maxsplit=1)[0]
    try:
        found = msgspec.json.decode(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and "alg" in found


def _anything(text: str) -> bool:
    return bool(text) and not _STAND_IN.search(text)


_B, _E = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
_PEM = "(?:[A-Z]+ ){0,2}PRIVATE KEY"
_MARKS = [
    _Mark(re.compile(rf"{_B}(?:AKIA|ASIA|ABIA|ACCA)([A-Z2-7]{{16}}){_E}"), _random),  # AWS
    _Mark(re.compile(rf"{_B}gh[pousr]_([A-Za-z0-9]{{36,251}}){_E}"), _random),  # GitHub
    _Mark(re.compile(rf"{_B}github_pat_(\w{{60,244}}){_E}"), _random),
    _Mark(re.compile(rf"{_B}glpat-([\w-]{{20,64}}){_E}"), _random),  # GitLab
    _Mark(re.compile(rf"{_B}sk-(?:proj-|svcacct-|admin-|ant-(?:api|admin)\d\d-)?([\w-]{{20,200}}){_E}"), _key),
    _Mark(re.compile(rf"{_B}xox[abeoprs]-([A-Za-z0-9-]{{10,250}}){_E}"), _random),  # Slack
    _Mark(re.compile(r"hooks\.slack\.com/services/T\w{6,12}/B\w{6,12}/(\w{20,32})"), _random),
    _Mark(re.compile(rf"{_B}AIza([\w-]{{35}}){_E}"), _random),  # Google
    _Mark(re.compile(rf"{_B}[sr]k_(?:live|test)_([A-Za-z0-9]{{16,247}}){_E}"), _random),  # Stripe
    _Mark(re.compile(rf"{_B}hf_([A-Za-z0-9]{{30,64}}){_E}"), _random),  # Hugging Face
    _Mark(re.compile(rf"{_B}npm_([A-Za-z0-9]{{36}}){_E}"), _random),
    _Mark(re.compile(rf"{_B}pypi-AgEIcHlwaS5vcmc([\w-]{{50,400}}){_E}"), _random),
    _Mark(re.compile(rf"{_B}(eyJ[\w-]{{8,2000}}\.eyJ[\w-]{{8,8000}}\.[\w-]{{8,1000}}){_E}"), _token),
    _Mark(re.compile(rf"-----BEGIN {_PEM}-----([\s\S]{{40,20000}}?)-----END {_PEM}-----"), _random),
    _Mark(re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s:/@]{1,64}:([^\s@/]{4,128})@[\w.-]+"), _anything),
    _Mark(
        re.compile(
            r"(?i)\b(?:pass(?:word|wd|phrase)|pwd|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|(?:access|auth|bearer)[_-]?token"
            r"|client[_-]?secret)\b[\"']?\s{0,3}(?:[:=]|is)\s{0,3}[\"']?([^\s\"',;]{8,200})"
        ),
        _password,
    ),
]  # fmt: skip


#: What every one of these has: most texts have none of it, and are read once.
_HINT = re.compile(
    r"A(?:KI|SI|BI|CC)A|_|glpat-|sk-|xox|hooks\.slack|AIza|pypi-|eyJ|PRIVATE|://|pass|pwd|secret|key|token",
    re.IGNORECASE,
)


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where secrets stand in a text."""
    for mark in _MARKS if _HINT.search(text) else ():
        for match in mark.pattern.finditer(text):
            if mark.sound(match[1]):
                yield match.span()
