"""Who hears how a tick ended: a webhook, an e-mail, a command. None of them can harm the run, and each that fails is named.

What is sent is JSON: `job`, `tick`, `state`, `reason`, `run`, `headline`, the counts and dollars, and `text`, a sentence of
them, which chat services show. Secrets (an address, a password) are in the environment and in no message.
"""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from http.client import HTTPException
from pathlib import Path
from typing import Any

from llm_distill.recipe_schedule import Email, Notify, Webhook
from llm_distill.scrub import scrubbed

#: How long anybody is waited for.
TIMEOUT_S = 15.0
_FACTS = (
    "job", "tick", "state", "reason", "run", "headline", "asked", "answered", "reused", "cost_usd", "owed", "rows_kept",
    "not_before",
)  # fmt: skip


def tell(whom: Sequence[Notify], found: Mapping[str, Any]) -> list[str]:
    """Tell all who want to hear of a tick's state; gives what went wrong in doing so, without any secret."""
    listening = [one for one in whom if found["state"] in one.on]
    if not listening:
        return []
    told = {name: found[name] for name in _FACTS if found.get(name) is not None}
    if said := headline(found.get("run")):
        told["headline"] = said
    told["text"] = sentence(told)
    problems = []
    for one in listening:
        try:
            _send(one, told)
        except _Unsaid as problem:
            problems.append(str(problem))
    return problems


def sentence(told: Mapping[str, Any]) -> str:
    """`nightly, 2026-11-27T03:00:00Z: fell short. <why>`."""
    more = [f"{told['job']}, {told['tick']}: {str(told['state']).replace('_', ' ')}."]
    more += [str(told[name]) for name in ("reason", "headline") if told.get(name)]
    if told.get("rows_kept") is not None:
        cost = "" if told.get("cost_usd") is None else f" for ${told['cost_usd']:,.4f}"
        more.append(f"{told['rows_kept']:,} rows kept{cost}.")
    return " ".join(more)


class _Unsaid(Exception):
    """Somebody could not be told."""


def _send(one: Notify, told: Mapping[str, Any]) -> None:
    if one.webhook:
        _post(one.webhook, json.dumps(told).encode())
    elif one.email:
        _mail(one.email, told)
    else:
        _call(one.command or [], json.dumps(told).encode())


def _secret(name: str, what: str) -> str:
    if value := os.environ.get(name):
        return value
    raise _Unsaid(f"{what}: {name} is not set")


class _Stay(urllib.request.HTTPRedirectHandler):
    """A message goes where it was addressed to."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


def _post(webhook: Webhook, body: bytes) -> None:
    what = f"the webhook in {webhook.url_env}"
    url = _secret(webhook.url_env, what)
    if not url.startswith(("https://", "http://")):
        raise _Unsaid(f"{what}: it is no http(s) address")
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  looked at above
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        raise _Unsaid(f"{what}: HTTP {error.code}") from None
    except (
        OSError,
        ValueError,
        HTTPException,
    ) as error:  # their words may hold the address, so only their kind is said
        reason = getattr(error, "reason", error)
        raise _Unsaid(f"{what}: {type(reason).__name__}") from None


def _mail(email: Email, told: Mapping[str, Any]) -> None:
    what = f"e-mail through {email.smtp}:{email.port}"
    message = EmailMessage()
    message["Subject"] = " ".join(f"{told['job']} {told['state']} ({told['tick']})".split())
    message["From"], message["To"] = email.sender, ", ".join(email.to)
    message.set_content(f"{told['text']}\n\n{json.dumps(told, indent=2)}\n")
    password = _secret(email.password_env, what) if email.password_env else None
    context = ssl.create_default_context()
    try:
        if email.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(email.smtp, email.port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(email.smtp, email.port, timeout=TIMEOUT_S)
        with server:
            if email.security == "starttls":
                server.starttls(context=context)
            if email.user is not None and password is not None:
                server.login(email.user, password)
            server.send_message(message)
    except smtplib.SMTPResponseException as error:
        raise _Unsaid(f"{what}: {type(error).__name__} {error.smtp_code}") from None
    except (OSError, ValueError, smtplib.SMTPException) as error:
        raise _Unsaid(f"{what}: {type(error).__name__}") from None


def _call(command: Sequence[str], body: bytes) -> None:
    what = f"the command {command[0]}"
    try:
        done = subprocess.run(command, input=body, capture_output=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise _Unsaid(f"{what}: no end within {TIMEOUT_S:g} s") from None
    except (OSError, ValueError) as error:
        raise _Unsaid(f"{what}: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if done.returncode:
        raise _Unsaid(f"{what}: exit code {done.returncode}")


def headline(run: Any) -> str | None:
    """What a run's report says it found, without secrets that a server repeated to it; None where it has none."""
    try:
        found = json.loads((Path(run) / "report" / "report.json").read_text(encoding="utf-8"))["headline"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return scrubbed(str(found))
