"""Being at a tick: its lease is renewed while its run goes on, and the run is stopped at its time."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_distill.schedule.book import TickBook


class Held:
    """A claimed tick: its lease is renewed, and its run stopped at its time, as by Ctrl-C, or when another took the tick."""

    def __init__(self, book: TickBook, job: str, due_: int, max_runtime: float | None) -> None:
        self._book, self._job, self._due = book, job, due_
        self._until = None if max_runtime is None else time.monotonic() + max_runtime
        self._done, self._turn = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self.over = self.lost = False

    def __enter__(self) -> Held:
        if self._until is not None and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a tick with max_runtime is run in the main thread, which alone can be interrupted")
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()
        self._thread.join()

    def leave(self) -> None:
        """Stop nothing any more."""
        with self._turn:
            self._done.set()

    def _keep(self) -> None:
        pause = self._book.ledger.lease_s / 3
        while True:
            left = float("inf") if self._until is None else self._until - time.monotonic()
            if self._done.wait(max(0.0, min(pause, left))):
                return
            if self._until is not None and time.monotonic() >= self._until:
                self._until, self.over = None, True
                self._stop()
            try:
                if not self._book.renew(self._job, self._due) and not self.lost:
                    self.lost = True
                    self._stop()
            except Exception:  # noqa: BLE001, S112  the ledger is locked or away: the lease has time for two more looks
                continue

    def _stop(self) -> None:
        with self._turn:
            if not self._done.is_set():
                os.kill(os.getpid(), signal.SIGINT)
