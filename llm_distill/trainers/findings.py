"""What the linter says of the rows that a student is about to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llm_distill.errors import UserError

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What was found, and what is right. rows: the first of those that it is about."""

    level: Level
    name: str
    found: str
    right: str = ""
    rows: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """In one line."""
        return f"{self.found}. {self.right}" if self.right else f"{self.found}."


class Linted(Exception):
    """The findings of a job that is only to be looked at (`TrainingJob.only_lint`)."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__(f"{len(findings)} findings")
        self.findings = list(findings)


def refuse(findings: Iterable[Finding]) -> None:
    """UserError with the first error and how many there are; nothing where there is none."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" This is 1 of {len(errors)} errors; `llm-distill lint RUN` lists them." if len(errors) > 1 else ""
        raise UserError(f"train: {errors[0].line}{more}")


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """As they are kept in training.json and printed by `lint --json`."""
    return [asdict(finding) | {"rows": list(finding.rows)} for finding in findings]
