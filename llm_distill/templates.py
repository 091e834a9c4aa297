"""Prompt templates: Jinja2 text in its sandbox, rendered to messages.

A template may use `prompt` (the row's own text), `messages`, `tags`, `labels` and `examples` (each with `prompt` and
`label` or `reference`). `{{ system }}`, `{{ user }}` and `{{ assistant }}` start a turn; a template without them is one
user turn. The turn marks hold a random nonce, so no text that is filled in can open a turn of its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
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

_PACKAGE = Path(__file__).parent
#: Templates that ship with the package: beside it in a checkout, inside it in a wheel.
BUILT_IN = _PACKAGE / "prompts" if (_PACKAGE / "prompts").is_dir() else _PACKAGE.parent / "prompts"


@lru_cache
def _compiled(path: Path) -> tuple[Any, frozenset[str]]:
    try:
        source = path.read_text(encoding="utf-8")
        used = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
        if unknown := used - VARIABLES:
            name = min(unknown)
            raise UserError(
                f"{path}: the template uses {name!r}, which it is not given.{did_you_mean(name, VARIABLES)}"
            )
        return _ENVIRONMENT.from_string(source), used
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except TemplateError as error:
        raise UserError(f"{path}: not a Jinja2 template: {error}.") from None


def check(path: Path) -> frozenset[str]:
    """The variables that a template uses; UserError when it is malformed or names an unknown one."""
    return _compiled(path)[1]


def render(
    path: Path, prompt: Prompt, labels: Sequence[str] = (), examples: Sequence[Mapping[str, Any]] = ()
) -> tuple[Message, ...]:
    """The messages that a template makes of one prompt; surrounding blank space of each turn is cut."""
    try:
        text = _compiled(path)[0].render(
            prompt=prompt.text, messages=prompt.messages, tags=prompt.tags, labels=labels, examples=examples, **_MARKS
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: cannot be filled in for row {prompt.row_id}: {error}.") from None
    head, *turns = _TURN.split(text)
    messages = [Message("user", head.strip())] if head.strip() else []
    messages += [
        Message(role, content.strip())  # type: ignore[arg-type]
        for role, content in zip(turns[::2], turns[1::2], strict=True)
    ]
    if not messages:
        raise UserError(f"{path}: the template is empty for row {prompt.row_id}.")
    return tuple(messages)
