"""Nights of a job that grows a data set: the same recipe over seeds that change, as a schedule would run it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llm_distill.sets.shelf import Shelf
from tests.conftest import Desk

#: Words that make rows unlike each other.
NOUNS = [
    "river",
    "stone",
    "cloud",
    "market",
    "engine",
    "violin",
    "pepper",
    "window",
    "tunnel",
    "carpet",
    "harbour",
    "lemon",
]


def text(n: int) -> str:
    """A row that is near no other: its words are its own, but for the one that the scripted teacher looks for."""
    word = NOUNS[n % len(NOUNS)]
    return f"{word}{n} was {'good' if n % 2 else 'bad'}{n} for {word}{n * 7} and {n * 13}"


def rows(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    """Seeds of these numbers."""
    return [{"prompt": text(n), "tags": {"parity": str(n % 2)}, **more} for n in numbers]


def night(desk: Desk, seeds: Iterable[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """One run of the job over these seeds; another night where they are others."""
    desk.seeds(list(seeds))
    return desk.here(desk.recipe(**{"data_set": "tone", "filter": ["empty"]} | keys))


def shelf(desk: Desk, name: str = "tone") -> Shelf:
    """The set that the nights grow."""
    return Shelf(desk.folder / "data", name)


def taught(desk: Desk, version: int | None = None) -> list[str]:
    """What the rows ask that a version teaches."""
    found = shelf(desk)
    return [row["messages"][-1]["content"] for row in found.rows(version or found.latest, "taught")]


def held_out(desk: Desk, version: int | None = None) -> list[str]:
    """... and that it holds out."""
    found = shelf(desk)
    return [row["messages"][-1]["content"] for row in found.rows(version or found.latest, "held_out")]
