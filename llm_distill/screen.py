"""What the command line shows while a run goes on: one line a stage, one bar for the rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from llm_distill.report.words import visible

_SAYS = {
    "running": "running",
    "kept": "nothing to do",
    "done": "done",
    "owed": "done, but rows are owed: run again to ask for them",
}


class Screen:
    """A Watch on stderr, so that stdout stays for results. Text from models is shown as text, never as markup."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, numbers="", visible=False)
        self._name = ""

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, run: str) -> None:
        """Its folder is named at the end."""

    def stage(self, name: str, state: str) -> None:
        """Show where the run is."""
        self._name = name
        self._progress.update(self._task, visible=False)
        self._progress.reset(self._task, description=name, numbers="", visible=False)
        self._console.print(Text.assemble((f"{name:>9}", "bold"), f"  {_SAYS[state]}"))

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """Move the bar. `total` 0 means unknown."""
        shown = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        self._progress.update(
            self._task, description=self._name, completed=done, total=total or None, numbers=shown, visible=True
        )

    def say(self, line: str) -> None:
        """Print one line above the bar. It may quote what a model wrote, which must not steer the terminal."""
        self._console.print(Text("           " + visible(line).replace("\n", "\n           ")), soft_wrap=True)


def _short(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
