"""Which part of a row a scorer reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from llm_distill.records import Answer

Part = Literal["prompt", "answer", "both"]
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\r]*\r?")


def texts(answers: Sequence[Answer], of: Part) -> list[str]:
    """The rows' own texts (what their user turns say), the answers', or one after the other."""
    if of == "prompt":
        return [a.prompt.text for a in answers]
    if of == "answer":
        return [a.text for a in answers]
    return [f"{a.prompt.text}\n{a.text}" for a in answers]


def fenced(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text (CommonMark 4.5): the name after the fence, and what stands inside. ValueError for
    one that is never closed.
    """
    blocks: list[tuple[str, str]] = []
    fence = name = ""
    inside: list[str] = []
    for line in text.split("\n"):
        if not fence:
            if opened := _FENCE.fullmatch(line):
                fence, name, inside = opened[1], opened[2], []
        elif closed := _FENCE.fullmatch(line):
            if closed[1][0] == fence[0] and len(closed[1]) >= len(fence) and not line.strip().strip(fence[0]):
                blocks.append((name, "\n".join(inside)))
                fence = ""
            else:
                inside.append(line)
        else:
            inside.append(line)
    if fence:
        raise ValueError("a fenced block is never closed")
    return blocks
