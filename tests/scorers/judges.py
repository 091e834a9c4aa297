"""Judges that answer from a function, and keep what they were asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llm_distill.records import Entry, Request
from llm_distill.scorers import Context
from llm_distill.tasks import Task


@dataclass
class Judge:
    """`says` gives the text of an answer, or a whole Entry."""

    says: Callable[[Request], str | Entry]
    rounds: list[list[Request]] = field(default_factory=list)

    def ask(self, role: str, requests: Sequence[Request]) -> list[Entry]:
        assert role == "judge"
        self.rounds.append(list(requests))
        said = [(request, self.says(request)) for request in requests]
        return [text if isinstance(text, Entry) else Entry(r.key("judge"), "ok", text=text) for r, text in said]

    @property
    def context(self) -> Context:
        return Context(Task(kind="generate"), ask=self.ask)

    @property
    def questions(self) -> list[str]:
        return [request.messages[0].content for asked in self.rounds for request in asked]


def shown(request: Request, name: str) -> str:
    """A block of a question."""
    found = re.search(
        rf"^=== {name} (\w+) begins ===\n(.*)\n=== {name} \1 ends ===$", request.messages[0].content, re.M | re.S
    )
    assert found
    return found[2]
