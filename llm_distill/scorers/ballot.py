"""What a judge may answer and how it must: reasons first, then one of a few verdicts, and nothing that only looks like one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llm_distill import reasoning, structured

Form = Literal["json", "line"]
_WHY_LONGEST = 500


@dataclass(frozen=True)
class Vote:
    """A judge's verdict as a number, and its reason; without a number the fault says what is wrong with the answer. owed: there
    was none, and a later run asks again.
    """

    score: float | None
    reason: str
    fault: str | None = None
    owed: bool = False


@dataclass(frozen=True)
class Ballot:
    """The verdicts that may be given, with the number each stands for, under the key they are given by."""

    key: str
    choices: Mapping[int | str, float]
    form: Form

    @property
    def schema(self) -> str | None:
        """A JSON Schema for endpoints that hold an answer to one; the reason comes first, so that it is not made to fit."""
        if self.form == "line":
            return None
        kind = "integer" if all(isinstance(choice, int) for choice in self.choices) else "string"
        verdict = {"type": kind, "enum": list(self.choices)}
        return json.dumps(
            {
                "title": "verdict",
                "type": "object",
                "properties": {"reason": {"type": "string"}, self.key: verdict},
                "required": ["reason", self.key],
                "additionalProperties": False,
            }
        )

    def instruction(self, code: str) -> str:
        """How to answer, in words. `code` marks the line of the verdict, so that no text which is judged can hold it."""
        allowed = ", ".join(map(str, self.choices))
        if self.form == "json":
            return (
                f'Answer with one JSON object and nothing else: {{"reason": "...", "{self.key}": ...}}. First the reason, in '
                f"one or two sentences; then {self.key}, one of: {allowed}."
            )
        return (
            f"First write your reason in one or two sentences. Then end with a line of its own, and write it exactly so, with "
            f"one of {allowed} in place of the dots:\n{self._line(code)} ..."
        )

    def repair(self, fault: str, code: str) -> str:
        """What is said to a judge whose answer is no verdict. A part of the second question's id: it stays as it is."""
        return f"That is no verdict: {fault}. {self.instruction(code)}"

    def read(self, text: str, judged: str, code: str) -> Vote:
        """The verdict of a judge's answer, read strictly; `judged` is the text it was about, whose echo is no verdict."""
        _, text = reasoning.separate(text)
        text = text.strip()
        if not text:
            return Vote(None, "", "there is no answer")
        if text in judged:
            return Vote(None, "", "it repeats the text that is judged")
        return self._json(text) if self.form == "json" else self._last_line(text, code)

    def _json(self, text: str) -> Vote:
        try:
            found = structured.parsed(text)
        except (ValueError, RecursionError):
            return Vote(None, "", "it is not one JSON object")
        if not isinstance(found, dict) or set(found) != {"reason", self.key} or not isinstance(found["reason"], str):
            return Vote(None, "", f"it is not an object of `reason` (a text) and `{self.key}`")
        return self._vote(found[self.key], found["reason"])

    def _last_line(self, text: str, code: str) -> Vote:
        *before, last = text.splitlines()
        said = re.fullmatch(rf"{re.escape(self._line(code))}\s*(\S+)", last.strip())
        if said is None:
            return Vote(None, "", f"its last line is not `{self._line(code)}` and a verdict")
        whole = {str(choice): choice for choice in self.choices}
        return self._vote(whole.get(said[1], said[1]), " ".join(before))

    def _vote(self, verdict: object, reason: str) -> Vote:
        known = isinstance(verdict, int | str) and not isinstance(verdict, bool) and verdict in self.choices
        if not known:
            allowed = ", ".join(map(str, self.choices))
            return Vote(None, "", f"{self.key} is none of {allowed}")
        reason = reason.encode("utf-8", "backslashreplace").decode()  # JSON can spell halves of a character
        return Vote(self.choices[verdict], " ".join(reason.split())[:_WHY_LONGEST])  # type: ignore[index]

    def _line(self, code: str) -> str:
        return f"{self.key.capitalize()} {code[:4]}:"
