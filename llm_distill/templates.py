"""Prompt templates: Jinja2 text in its sandbox, rendered to messages.

A template may use `prompt` (the row's own text), `messages`, `tags`, `labels` and `examples` (each with `prompt` and
`label` or `reference`). `{{ system }}`, `{{ user }}` and `{{ assistant }}` start a turn; a template without them is one
user turn. The turn marks hold a random nonce, so no text that is filled in can open a turn of its own.

Generators and judges fill in templates too, with variables of their own: `check_with` and `render_with`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Message, Prompt, Role

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_NONCE = secrets.token_hex(16)
_MARKS = {role: f"\0{_NONCE}:{role}\0" for role in get_args(Role)}
_TURN = re.compile(f"\0{_NONCE}:(\\w+)\0")
VARIABLES = {"prompt", "messages", "tags", "labels", "examples", *_MARKS}
#: A template is a file, or its text itself.
Source = Path | str

_PACKAGE = Path(__file__).parent
#: Templates that ship with the package: beside it in a checkout, inside it in a wheel.
BUILT_IN = _PACKAGE / "prompts" if (_PACKAGE / "prompts").is_dir() else _PACKAGE.parent / "prompts"


@lru_cache
def _compiled(source: Source) -> tuple[Any, frozenset[str]]:
    where = _where(source)
    try:
        text = source.read_text(encoding="utf-8-sig") if isinstance(source, Path) else source
        return _ENVIRONMENT.from_string(text), frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except TemplateError as error:
        raise UserError(f"{where}: not a Jinja2 template: {error}.") from None


def _where(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "text"


def check(path: Path) -> frozenset[str]:
    """The variables that a template of rows uses; UserError when it is malformed or names an unknown one."""
    return check_with(path, VARIABLES)


def check_with(source: Source, allowed: Collection[str]) -> frozenset[str]:
    """The variables that a template uses; UserError when it is malformed or names one that is neither allowed nor a
    turn mark.
    """
    used = _compiled(source)[1]
    if unknown := used.difference(allowed, _MARKS):
        name = min(unknown)
        raise UserError(
            f"{_where(source)}: the template uses {name!r}, which it is not given.{did_you_mean(name, allowed)}"
        )
    return used


def render(
    path: Path, prompt: Prompt, labels: Sequence[str] = (), examples: Sequence[Mapping[str, Any]] = ()
) -> tuple[Message, ...]:
    """The messages that a template makes of one prompt; surrounding blank space of each turn is cut."""
    given = {"prompt": prompt.text, "messages": prompt.messages, "tags": prompt.tags}
    return render_with(path, {**given, "labels": labels, "examples": examples}, f"row {prompt.row_id}")


def render_with(source: Source, variables: Mapping[str, Any], what: str = "what it is given") -> tuple[Message, ...]:
    """The messages that a template makes of variables; `what` names these in a message."""
    check_with(source, variables)
    try:
        text = _compiled(source)[0].render({**variables, **_MARKS})
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{_where(source)}: cannot be filled in for {what}: {error}.") from None
    head, *turns = _TURN.split(text)
    messages = [Message("user", head.strip())] if head.strip() else []
    messages += [
        Message(role, content.strip())  # type: ignore[arg-type]
        for role, content in zip(turns[::2], turns[1::2], strict=True)
    ]
    if not messages:
        raise UserError(f"{_where(source)}: the template is empty for {what}.")
    return tuple(messages)
