"""Striking secrets out of texts that leave a run: a server may repeat the key that it was sent."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

#: How an environment variable is named that holds a secret.
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|HOOK|DSN|LEDGER", re.IGNORECASE)
#: A shorter value is no key, and would be struck out of words that have nothing to do with it.
_LEAST = 8
#: ... of a variable that a recipe names as a secret (`api_key_env`, `url_env`, `password_env`), which may be called anything.
_LEAST_NAMED = 4
_NAMED: set[str] = set()


def know(name: str) -> str:
    """Take note that an environment variable holds a secret, whatever it is called; gives its name."""
    _NAMED.add(name)
    return name


def names_secret(name: str) -> bool:
    """Whether an environment variable holds a secret: by how it is named, or because a recipe says so."""
    return name in _NAMED or _SECRET.search(name) is not None


def scrubbed(text: str) -> str:
    """A text without the values of this process's secrets, also as a URL quotes them."""
    # Without blank space around them, as they are sent: a secret that was read from a file ends with a line feed.
    named = {os.environ.get(name, "").strip() for name in _NAMED}
    values = {value for value in named if len(value) >= _LEAST_NAMED}
    values |= {v.strip() for name, v in os.environ.items() if _SECRET.search(name) and len(v.strip()) >= _LEAST}
    values = {value for value in values if not _is_path(value)}
    values |= {quote(value, safe="") for value in values}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _is_path(value: str) -> bool:
    """Whether it says where a secret lies, and is none."""
    return value.startswith("/") and os.path.exists(value)  # noqa: PTH110  which has no errors, as for too long a name


#: Who is named in an address, with a password that may hold slashes and more of `@`; not a port.
_WHO = re.compile(r"(\w+://)(?:[^/@\s'\"]*:(?!\d+/)[^@\s'\"]*|[^/@\s'\"]*)@(?:[^/@\s'\"]*@)*")
_QUERY = re.compile(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*")


def bare(text: str) -> str:
    """A text whose addresses name no user, password or query, and which has no value of a secret."""
    return _QUERY.sub(r"\1?***", _WHO.sub(r"\1", scrubbed(text)))
