"""A PostgreSQL server of one's own: started on a socket in a temporary folder, gone with the test session."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Where initdb and postgres are: on the PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


@contextmanager
def running() -> Iterator[str]:
    """The server's SQLAlchemy URL without a database name. It listens on no port."""
    bin_ = programs()
    assert bin_
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if as_other:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    subprocess.run(
        [*as_other, bin_ / "initdb", "-D", data, "-U", "me", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    server = subprocess.Popen(
        [*as_other, bin_ / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
        stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip
    assert server.stderr
    try:
        for line in server.stderr:
            if "ready to accept connections" in line:
                break
        yield f"postgresql+psycopg://me@/{{}}?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown: it waits for no client
        server.communicate(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)
