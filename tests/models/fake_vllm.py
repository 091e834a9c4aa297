"""Stands in for the interpreter of vLLM's environment: `-c CODE`, and `-m vllm.entrypoints.openai.api_server ...`.

Its log and its ways to fail are vLLM's. `FAKE` in the environment says what goes wrong, `FAKE_DIR` is where it notes
each start, its arguments and its processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = os.environ.get("FAKE", "").split()
NOTES = Path(os.environ.get("FAKE_DIR", "."))


class Handler(BaseHTTPRequestHandler):
    """The paths that are asked, each for holders of the key."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(503 if "unhealthy" in FAULTS else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self._say(401, {"error": {"message": "no key"}})
        raw = self.path == "/v1/completions"
        asked = body["prompt"] if raw else body["messages"][-1]["content"]
        if "mortal" in FAULTS or asked == "die":
            print(
                "(EngineCore pid=1) ERROR 11-22 10:00:00 [core.py:9] torch.OutOfMemoryError: CUDA out of memory.",
                flush=True,
            )
            os._exit(1)
        time.sleep(float(os.environ.get("FAKE_LATENCY", "0")))
        with (NOTES / "asked").open("a") as file:
            file.write(json.dumps(body) + "\n")
        text = "positive" if "good" in asked else "negative"
        message: dict[str, Any] = (
            {"text": f"raw {text}"} if raw else {"message": {"role": "assistant", "content": text}}
        )
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        choice = {"index": 0, **message, "finish_reason": "stop"}
        return self._say(200, {"model": body["model"], "choices": [choice], "usage": usage})

    def _say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """No line a request."""


def main() -> None:
    if sys.argv[1] == "-c":
        raise SystemExit("no-vllm" in FAULTS)
    arguments = dict(part.partition("=")[::2] for part in sys.argv[3:])
    with (NOTES / "starts").open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "env": dict(os.environ)}) + "\n")
    print("(APIServer pid=1) INFO 11-22 10:00:00 [api_utils.py:286] version 0.32.0", flush=True)
    if "dies" in FAULTS:
        print("Traceback (most recent call last):\n  File 'x'\nValueError: no room for the KV cache", flush=True)
        print("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        raise SystemExit(1)
    for elsewhere in (False, True) if "children" in FAULTS else ():
        # A child that starts one of its own and ends: an orphan that ignores SIGTERM, once in a session of its own.
        shell = ["sh", "-c", "trap '' TERM; sleep 600 >/dev/null & echo $!"]
        made = subprocess.run(shell, start_new_session=elsewhere, stdout=subprocess.PIPE, check=True).stdout
        with (NOTES / "orphans").open("ab") as file:
            file.write(made)
    if "stubborn" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "mute" in FAULTS:
        time.sleep(600)
    ThreadingHTTPServer((arguments["--host"], int(arguments["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
