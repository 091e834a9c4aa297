"""What this machine has: `llm-distill doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from llm_distill import __version__
from llm_distill.provenance import PACKAGES

#: Variables that hold keys of well-known services; a recipe may name any other.
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY", "OPENROUTER_API_KEY", "HF_TOKEN")


def findings() -> Iterator[tuple[str, str]]:
    """Pairs of subject and finding. A key's value is never read beyond whether it is there."""
    yield "llm-distill", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "sqlite", sqlite3.sqlite_version
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed (pip install 'llm-distill[train]')"
    yield "devices", _devices()
    free = shutil.disk_usage(".").free / 2**30
    yield "disk", f"{free:.1f} GiB free here"
    for name in KEYS:
        yield name, "set" if os.environ.get(name) else "not set"


def _devices() -> str:
    if find_spec("torch") is None:
        return "unknown without torch"
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"CPU only, {torch.get_num_threads()} threads"
