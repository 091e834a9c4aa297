"""What README.md and docs/*.md tell people to type: their blocks, their commands, and who reads a command."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from typer.core import TyperGroup

from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its text without the page's indentation."""

    page: Path
    kind: str
    text: str


def blocks(page: Path, kind: str | None = None) -> list[Block]:
    """The fenced blocks of a page, of one language if that is named."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        Block(page, k, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, k, text in found
        if kind in (None, k)
    ]


def console(page: Path) -> list[str]:
    """The lines that a page's console blocks have one type."""
    lines = [line.strip() for block in blocks(page, "console") for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def spans(page: Path) -> list[str]:
    """The code within a page's sentences, a line each."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in _SPAN.findall(prose)]


def commands(path: Path) -> list[list[str]]:
    """Every `llm-distill ...` of a page or a recipe: in console blocks, indented lines, comments and sentences; as arguments.

    What is not ours is cut off: what is piped on, words of explanation behind three blanks, `...`; options in [brackets] count.
    """
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    lines = re.findall(r"^(?:\$|#)?\s+(?:[A-Z_]+=\S+ )?(llm-distill \S.*)$|^(llm-distill \S.*)$", text, re.MULTILINE)
    said = [a or b for a, b in lines] if path.suffix == ".yaml" else []
    if path.suffix == ".md":
        bare = [line for block in blocks(path) for line in re.sub(r"\\\n\s*", "", block.text).splitlines()]
        bare += [line for line in _FENCE.sub("", text).splitlines() if line.startswith("    ")]
        said += [m[1] for line in bare if (m := re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )?(llm-distill \S.*)$", line))]
        said += [span for span in spans(path) if span.startswith("llm-distill ")]
    said = [re.sub(r" \[(-[^]]*)\]", r" \1", re.split(r" {3,}| \| | > ", one)[0]) for one in said]
    found = [re.sub(r"( -s)? \.\.\.", "", one) for one in said]
    return [shlex.split(one)[1:] for one in found]


def read(arguments: list[str]) -> None:
    """Have the real command line read a command, and run nothing of it. Raises what it refuses a command with.

    A command that is only named, as "`llm-distill check` finds mistakes" does, has to be there.
    """
    from llm_distill.cli import app

    command = typer.main.get_command(app)
    context, rest = command.make_context("llm-distill", list(arguments)), list(arguments)
    while isinstance(command, TyperGroup) and rest:
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        assert name is not None
        named = not rest and not isinstance(found, TyperGroup)
        context, command = found.make_context(name, list(rest), parent=context, resilient_parsing=named), found
        rest = [*context._protected_args, *context.args] if isinstance(found, TyperGroup) else []


def mapping(text: str) -> dict[str, Any] | None:
    """A YAML mapping, or None where a text is none."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None
    return value if isinstance(value, dict) else None
