"""A context for generators that ask: answers from a function, and a note of what was asked and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_distill.generators import GENERATORS, Context
from llm_distill.models import Model
from llm_distill.models.scripted import ScriptedModel
from llm_distill.plugs import Plug, Spec, bind
from llm_distill.records import Entry, Message, Prompt, Request, make_prompt
from llm_distill.tasks import Task

GENERATE = Task(kind="generate")
CLASSIFY = Task(kind="classify", labels=["positive", "negative"])


def rows(*texts: str, **tags: str) -> list[Prompt]:
    return [make_prompt((Message("user", text),), tags) for text in texts]


def numbered(*texts: str) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


@dataclass
class Writer:
    """Answers by a function of the question's last turn; an Entry, or None for an answer that never came."""

    answer: Callable[[str], str | Entry | None]
    rounds: list[list[Request]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    model: Model = field(default_factory=ScriptedModel)

    def ask(self, role: str, requests: Sequence[Request]) -> list[Entry]:
        self.rounds.append(list(requests))
        self.roles.append(role)
        given = [self.answer(request.messages[-1].content) for request in requests]
        return [
            one
            if isinstance(one, Entry)
            else Entry("", "ok", text=one)
            if one is not None
            else Entry("", "failed", "no")
            for one in given
        ]

    @property
    def asked(self) -> list[Request]:
        return [request for asked in self.rounds for request in asked]

    def run(
        self, name: str, before: Sequence[Prompt] = (), task: Task = GENERATE, seed: int = 0, **knobs: Any
    ) -> list[Prompt]:
        context = Context(before, task, self.ask, lambda _role: self.model, self.said.append, seed)
        return list(bound(name, **knobs)(context))


def bound(name: str, folder: Path = Path(), **knobs: Any) -> Plug:
    """A generator with its knobs checked, in a recipe with a teacher and a judge."""
    reading: Any = {"folder": folder, "files": set(), "roles": ["judge", "teacher"]}
    return bind("generator", Spec(name, knobs, f"prompts[0].{name}"), GENERATORS, reading)


def at_most(name: str, before: int, **knobs: Any) -> Any:
    from llm_distill.generators import AT_MOST
    from llm_distill.plugs import find

    return find("generator", name, AT_MOST, name)(before, **bound(name, **knobs).knobs)


def texts(found: Sequence[Prompt]) -> list[str]:
    return [row.text for row in found]


def tags(found: Sequence[Prompt], name: str) -> list[str]:
    return [row.tags[name] for row in found]
