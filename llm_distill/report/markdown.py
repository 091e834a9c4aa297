"""Text of others as Markdown shows it and nothing more: no markup, no HTML, no link, no character that hides, nobody called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_distill.report.words import visible

#: What CommonMark and its usual extensions act on within a line.
_MARKS = re.compile(r"[\\`*_\[\]{}~|$^]")
#: Markup of HTML, and what makes a bare address a link.
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
#: What a forge makes a notice or a reference of, after it has read entities and escapes: a word joiner within parts it.
_CALLS = re.compile(r"(?<![A-Za-z0-9_])@(?=\w)|[#!](?=\d)|\bGH-(?=\d)", re.IGNORECASE)
_LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: Any, most: int = 300) -> str:
    """One line that reads as the text; longer ones are cut."""
    line = " ".join(visible(str(text).replace("\n", " ")).split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    line = _CALLS.sub(lambda found: f"{found[0]}\u2060", line)
    escaped = "".join(_NAMED.get(character, character) for character in line)
    escaped = _LINKS.sub(lambda found: f"&#{ord(found[0])};", escaped)
    escaped = _MARKS.sub(lambda found: f"\\{found[0]}", escaped)
    escaped = re.sub(r"^([#+=-])", r"\\\1", escaped)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)  # no list


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of texts of others: every cell is escaped."""
    lines = [header, ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between its fences; every string is quoted as JSON, which YAML 1.2 reads as the same string."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {_quoted(item)}" for item in value)] if value else []
        elif value is not None:
            lines.append(f"{key}: {_quoted(value)}")
    return "\n".join(["---", *lines, "---", ""])


def _quoted(value: Any) -> str:
    return json.dumps(visible(value) if isinstance(value, str) else value, ensure_ascii=True)


def interval(of: Mapping[str, Any] | None, *, share: bool = True) -> str:
    """A value with its 95 % interval; a dash where there is none."""
    if not of or of.get("value") is None:
        return "—"
    scale, unit = (100, " %") if share else (1, "")
    text = f"{scale * of['value']:.1f}{unit}"
    if of.get("low") is None or of.get("high") is None:
        return text
    return f"{text} ({scale * of['low']:.1f} to {scale * of['high']:.1f})"
