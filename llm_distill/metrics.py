"""What a run comes to, for the textfile collector of Prometheus' node exporter: rows, failures, dollars, latency, queue.

Written while the run goes on and at its end, whole or not at all. Dollars are the ledger's, so they only ever rise and are always
there; what else is told is of the recipe's latest run. Labels hold names of recipes, stages, models and filters, and no text of
anybody.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill import store
from llm_distill.errors import UserError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

#: Seconds between two writes while rows are asked.
_PACE_S = 10.0
#: Upper bounds of the latency histogram, in seconds: from a small model near by to a reasoning one far away.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STATES = ("done", "fell_short", "interrupted", "failed", "postponed")


class Metrics:
    """A Watch that keeps a file of metrics."""

    def __init__(self, recipe: str, file: Path, workspace: Path, ledger: str | None) -> None:
        try:
            import prometheus_client  # noqa: F401  is it there?
        except ImportError:
            raise UserError(
                "--metrics: the package prometheus_client is not installed: pip install 'llm-distill[metrics]'."
            ) from None
        if file.is_dir():
            raise UserError(
                f"--metrics {file}: it is a folder; name a file in it, such as {file / 'llm_distill.prom'}."
            )
        if not file.parent.is_dir():
            raise UserError(f"--metrics {file}: there is no folder {file.parent}; make it.")
        self._recipe, self._file, self._workspace, self._ledger = recipe, file, workspace, ledger
        self._stage, self._done, self._total, self._failed, self._written = "", 0, 0, 0, 0.0
        self._start = time.time()

    def begin(self, run: str) -> None:
        """Its rows are told at its end."""

    def stage(self, name: str, state: str) -> None:
        """Another stage: its rows are counted from none."""
        self._stage, self._done, self._total = (name, 0, 0) if state == "running" else ("", 0, 0)
        self._write(None)

    def rows(self, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        """How far it is."""
        self._done, self._total = done, total
        self._failed = max(self._failed, int(numbers.get("failed") or 0))
        if time.monotonic() - self._written >= _PACE_S:
            self._write(None)

    def say(self, line: str) -> None:
        """Nothing of it is a number."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """How the run ended."""
        self._stage, self._done, self._total = "", 0, 0
        self._write(summary)

    def _write(self, summary: Mapping[str, Any] | None) -> None:
        from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would be when the file was written, each time anew
        self._written = time.monotonic()
        registry = CollectorRegistry()
        self._queue(registry, summary)
        self._spending(registry)
        if summary is not None and "run" in summary:
            self._rows(registry, store.RunFolder(Path(summary["run"])))
        with store.replacing(self._file) as temporary:
            temporary.write_bytes(generate_latest(registry))

    def _gauge(
        self, registry: CollectorRegistry, name: str, says: str, values: Mapping[Any, float], *labels: str
    ) -> None:
        from prometheus_client import Gauge

        gauge = Gauge(f"llm_distill_{name}", says, ["recipe", *labels], registry=registry)
        for of, value in values.items():
            gauge.labels(self._recipe, *of).set(value)

    def _queue(self, registry: CollectorRegistry, summary: Mapping[str, Any] | None) -> None:
        of = (self._stage or "none",)
        self._gauge(
            registry,
            "queue_rows",
            "Rows of the running stage that are not done yet.",
            {of: max(0, self._total - self._done)},
            "stage",
        )
        self._gauge(registry, "running", "1 while a run goes on.", {(): float(summary is None)})
        self._gauge(registry, "run_start_timestamp_seconds", "When the latest run was started.", {(): self._start})
        if summary is None:
            return
        self._gauge(registry, "run_end_timestamp_seconds", "When the latest run ended.", {(): time.time()})
        ended = {(state,): float(summary["status"] == state) for state in STATES}
        self._gauge(registry, "run_status", "How the latest run ended.", ended, "status")
        self._gauge(registry, "owed_rows", "Rows that a later run asks for again.", {(): summary.get("owed", 0)})
        outcomes = {(name,): float(summary.get(name, 0)) for name in ("asked", "answered", "reused")}
        outcomes |= {("failed",): float(self._failed)}
        self._gauge(registry, "requests", "Requests of the latest run by what became of them.", outcomes, "outcome")
        seconds = {(name,): float(stage["seconds"]) for name, stage in summary.get("stages", {}).items()}
        self._gauge(registry, "stage_seconds", "How long each stage took when it was done.", seconds, "stage")

    def _spending(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter as Total

        from llm_distill.ledger import Ledger
        from llm_distill.ledger_spending import costs
        from llm_distill.limits import NANO

        path = self._workspace / "ledger.sqlite"
        if self._ledger is None and not path.exists():
            return
        ledger = Ledger(self._ledger or path)
        try:
            rows = costs(ledger, "stage", recipe=self._recipe)
        finally:
            ledger.close()
        spent = Total(
            "llm_distill_spent_usd", "Dollars that answers came to, ever.", ["recipe", "stage"], registry=registry
        )
        tokens = Total("llm_distill_tokens", "Tokens that were paid for, ever.", ["recipe", "stage"], registry=registry)
        for row in rows:
            spent.labels(self._recipe, row["stage"]).inc(max(0, row["nano_usd"]) / NANO)
            tokens.labels(self._recipe, row["stage"]).inc(max(0, row["tokens"]))
        held = {(row["stage"],): row["reserved_nano_usd"] / NANO for row in rows}
        self._gauge(registry, "reserved_usd", "Dollars in flight, or when a process died.", held, "stage")

    def _rows(self, registry: CollectorRegistry, folder: store.RunFolder) -> None:
        from prometheus_client import Histogram

        answers = folder.file("answers.parquet")
        if answers.exists():
            rows = store.read_table(answers, ["status", "seconds", "role"])
            counts = Counter((row["status"],) for row in rows)
            self._gauge(registry, "rows", "Rows of the latest run by what became of their answers.", counts, "status")
            took = Histogram(
                "llm_distill_answer_seconds",
                "How long an answer took.",
                ["recipe", "role"],
                buckets=_SECONDS,
                registry=registry,
            )
            for row in rows:
                if row["status"] != "failed":
                    took.labels(self._recipe, row["role"]).observe(row["seconds"])
        filtered = folder.stamp("filter")
        if filtered:
            dropped = {(step["name"],): float(step["dropped"]) for step in filtered.get("filters", ())}
            self._gauge(registry, "dropped_rows", "Rows that each filter dropped.", dropped, "filter")
            self._gauge(registry, "kept_rows", "Rows that the filters kept.", {(): float(filtered["rows_out"])})
        if folder.file("set.json").exists():
            of = json.loads(folder.file("set.json").read_text(encoding="utf-8"))
            sizes = {(of["name"], split): float(n) for split, n in of["rows"].items()}
            self._gauge(registry, "set_rows", "Rows of the data set that the run grows.", sizes, "set", "split")
            self._gauge(registry, "set_version", "Its version.", {(of["name"],): float(of["version"])}, "set")
