"""Who looks on where nobody sits before the screen: a log of JSON lines on stderr, and metrics for Prometheus.

Secrets are in neither: values of environment variables that are named like one are struck out of every text, whoever wrote it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from llm_distill.errors import DistillError, FellShort, Interrupted
from llm_distill.metrics import Metrics
from llm_distill.screen import Screen
from llm_distill.scrub import scrubbed
from llm_distill.stages import Watch

Form = Literal["text", "json"]
Level = Literal["info", "warning", "error"]
#: Of how a run ended; what is neither goes on later, or fell short.
_LEVELS: Mapping[str, Level] = {"done": "info", "failed": "error"}
#: Seconds between two lines about how far a stage is.
_PACE_S = 10.0


class JsonLog:
    """A Watch that writes a JSON object a line: `time`, `level`, `event` (begin, stage, rows, say, end), `recipe`, `run`, and
    more.
    """

    def __init__(self, recipe: str, stream: IO[str]) -> None:
        self._recipe, self._stream = recipe, stream
        self._stage, self._shown = "", 0.0
        self._run: dict[str, str] = {}

    def begin(self, run: str) -> None:
        """The run that is named in each line from here on."""
        self._run = {"run": run}
        self.write("begin")

    def stage(self, name: str, state: str) -> None:
        """A stage is running, done, kept or owed."""
        self._stage, self._shown = name, 0.0
        self.write("stage", stage=name, state=state)

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """How far it is, now and then."""
        if time.monotonic() - self._shown >= _PACE_S:
            self._shown = time.monotonic()
            self.write("rows", stage=self._stage, done=done, total=total or None, **numbers)

    def say(self, line: str) -> None:
        """One line worth reading."""
        self.write("say", stage=self._stage, text=line)

    def end(self, summary: Mapping[str, Any]) -> None:
        """How the run ended."""
        level: Level = _LEVELS.get(str(summary.get("status")), "warning")
        self.write("end", level, **summary)

    def write(self, event: str, level: Level = "info", **fields: Any) -> None:
        """A line."""
        self._stream.write(json_line(event, level, **{"recipe": self._recipe, **self._run, **fields}) + "\n")
        self._stream.flush()


def json_line(event: str, level: Level, **fields: Any) -> str:
    """One line of the log, without secrets; what cannot be JSON is its text."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    found = {"time": at, "level": level, "event": event} | {k: _without(v) for k, v in fields.items()}
    return json.dumps(found, default=lambda value: scrubbed(str(value)), allow_nan=False)


def _without(value: Any) -> Any:
    """Any value without secrets, in its names and texts at any depth; a number that JSON has not is null."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, float) and not math.isfinite(value):  # the loss of a training that diverges
        return None
    if isinstance(value, Mapping):
        return {scrubbed(str(key)): _without(one) for key, one in value.items()}
    return [_without(one) for one in value] if isinstance(value, list | tuple) else value


class Several:
    """A Watch that is several."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def begin(self, run: str) -> None:
        """To all of them."""
        for watch in self._watches:
            watch.begin(run)

    def stage(self, name: str, state: str) -> None:
        """To all of them."""
        for watch in self._watches:
            watch.stage(name, state)

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """To all of them."""
        for watch in self._watches:
            watch.rows(done, total, numbers)

    def say(self, line: str) -> None:
        """To all of them."""
        for watch in self._watches:
            watch.say(line)


class Watched:
    """What a run's command holds: who looks on, to be told how it ended."""

    def __init__(self, watch: Watch, log: JsonLog | None, metrics: Metrics | None) -> None:
        self.watch, self._log, self._metrics = watch, log, metrics

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write what is to be written at the end."""
        if self._log:
            self._log.end(summary)
        if self._metrics:
            self._metrics.end(summary)


@contextmanager
def watching(recipe: str, form: Form, metrics: Path | None, workspace: Path, ledger: str | None) -> Iterator[Watched]:
    """Look on: as text on a screen or as JSON lines, with metrics in a file. An error is told before it is raised."""
    from rich.console import Console

    with ExitStack() as stack:
        log = JsonLog(recipe, sys.stderr) if form == "json" else None
        shown: Watch = log or stack.enter_context(Screen(Console(stderr=True)))
        file = Metrics(recipe, metrics, workspace, ledger) if metrics else None
        found = Watched(Several([shown, *([file] if file else [])]), log, file)
        try:
            yield found
        except (FellShort, Interrupted):  # told as the summary of their run
            raise
        except Exception as error:
            why = str(error) if isinstance(error, DistillError | OSError) else f"a bug: {type(error).__name__}"
            with suppress(OSError):  # a full disk has no room for metrics either
                found.end({"status": "failed", "reason": why})
            raise
