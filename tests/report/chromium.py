"""A page in a real headless Chromium, over the DevTools pipe: what it logs, asks of the network, measures and shows.

python -m tests.report.chromium REPORT.html PICTURE.png [--width 1200] [--height 1400] [--scale 2] [--dark] [--full]
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Page:
    """One tab. Commands are sent and answered in order; what happens meanwhile is kept in `events`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.events: list[dict[str, Any]] = []
        self.unread, self.last_id, self.session = b"", 0, ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one DevTools command."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (got := self._next()).get("id") != self.last_id:
            self.events.append(got)
        if "error" in got:
            raise RuntimeError(f"{method}: {got['error']}")
        result: dict[str, Any] = got["result"]
        return result

    def _next(self, timeout_s: float = 60) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while b"\0" not in self.unread:
            if not select.select([self.from_browser], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium did not answer")
            if not (chunk := os.read(self.from_browser, 1 << 20)):
                raise RuntimeError("Chromium ended")
            self.unread += chunk
        first, _, self.unread = self.unread.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False, scale: float = 1) -> None:
        """Shows a local file at a width in CSS px and waits until it has loaded; `events` starts anew."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send("Page.navigate", url=file.resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        got = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"]["text"])
        return got["result"].get("value")

    def complaints(self) -> list[str]:
        """What the console and the browser's log hold: errors, warnings, refused resources."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]

    def requests(self) -> list[str]:
        """Every URL that was asked for, the page's own included."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def picture(self, file: Path, full: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=full)["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it prints."""
        file.write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    """A page in a fresh browser with an empty profile."""
    if EXECUTABLE is None:
        raise FileNotFoundError("no Chromium on PATH: apt-get install chromium")
    pipes = [*os.pipe(), *os.pipe()]
    theirs_in, ours_out, ours_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pipes)
    for fd in pipes:
        os.close(fd)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Path(os.devnull).open("w") as silent:
        wiring = [
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            (os.POSIX_SPAWN_DUP2, silent.fileno(), 2),
        ]
        argv = [EXECUTABLE, *FLAGS, f"--user-data-dir={profile}"]
        pid = os.posix_spawn(EXECUTABLE, argv, os.environ, file_actions=wiring, setpgroup=0)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(ours_out, ours_in)
        finally:
            os.close(ours_out)
            os.close(ours_in)
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--scale", type=float, default=1, help="device pixels to a CSS pixel")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--full", action="store_true", help="the whole page, not its first window")
    given = parser.parse_args()
    with chromium() as page:
        page.open(given.report, given.width, given.height, given.dark, given.scale)
        page.picture(given.picture, given.full)
