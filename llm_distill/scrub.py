"""Striking secrets out of texts that leave a run: a server may repeat the key that it was sent."""

from __future__ import annotations

import os
import re

#: How an environment variable is named that holds a secret.
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|HOOK|DSN|LEDGER", re.IGNORECASE)
#: A shorter value is no key, and would be struck out of words that have nothing to do with it.
_LEAST = 8


def scrubbed(text: str) -> str:
    """A text without the values of this process's secrets."""
    values = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _LEAST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
