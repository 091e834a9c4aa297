"""What a model takes of this machine: bytes on disk, peak memory, energy. Each says why where it cannot be had."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from llm_distill.models import weights

#: How often memory is looked at. A peak that is shorter is of no allocation that lasts a token.
_LOOK_S = 0.05
#: Linux's counters of energy, a folder for each package (Documentation/power/powercap).
_RAPL = Path("/sys/class/powercap")


class Found(NamedTuple):
    """A number and what it is of; None: it was not measured, and `of` says why."""

    value: float | None
    of: str


def disk_bytes(reference: str, sha256: str | None, revision: str | None, adapter: str | None) -> int:
    """Bytes of the files that serve these weights: safetensors (or the .gguf), tokenizer and settings, and the adapter's."""
    path = Path(reference).expanduser()
    if path.is_file():
        files = {path}
    else:
        folder = Path(weights.prepare(reference, sha256, revision))
        files = {file for form in ("*.safetensors", *weights.DESCRIPTION) for file in folder.glob(form)}
    for name in ("adapter_model.safetensors", "adapter_config.json") if adapter else ():
        files.add(Path(adapter or "") / name)
    return sum(file.stat().st_size for file in files)


class Memory:
    """The peak of this process and all that it started, between the beginning and the end of a `with` block: resident
    memory, or what was allocated on the GPU where weights lie there.
    """

    def __init__(self) -> None:
        self._peak, self._over = 0, threading.Event()
        self._looking: threading.Thread | None = None

    def __enter__(self) -> Memory:
        """Begin to look."""
        if find_spec("psutil"):
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_error: object) -> None:
        """Look no more."""
        self._over.set()
        if self._looking is not None:
            self._looking.join()

    @property
    def peak(self) -> Found:
        """In bytes."""
        cuda = _cuda()
        if cuda and (allocated := int(cuda.max_memory_allocated())):
            return Found(allocated, "allocated on the GPU")
        if self._looking is None:
            return Found(None, "psutil is not installed: pip install 'llm-distill[train]'")
        return Found(self._peak, "resident, of this process with its libraries and of all that it started")

    def _look(self) -> None:
        import psutil

        own = psutil.Process()
        while True:
            with suppress(psutil.Error):
                family = [own, *own.children(recursive=True)]
                self._peak = max(self._peak, sum(_resident(one, psutil.Error) for one in family))
            if self._over.wait(_LOOK_S):
                return


def _resident(process: Any, gone: type[Exception]) -> int:
    with suppress(gone):
        return int(process.memory_info().rss)
    return 0


def _cuda() -> Any:
    """torch.cuda, where weights may lie there already: torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


class Energy:
    """What this machine's counters say it took, whatever else runs on it: GPUs by NVML, else processors by RAPL."""

    def __init__(self, rapl: Path = _RAPL) -> None:
        self._rapl = rapl
        self._began, self.by = self._read()

    def since(self) -> Found:
        """Joules since this was made."""
        now, by = self._read()
        if not self._began or by != self.by or now.keys() != self._began.keys():
            return Found(None, by if not self._began else "the counters changed meanwhile")
        joules = 0.0
        for name, value in now.items():
            spent = value - self._began[name]
            joules += spent if spent >= 0 else spent + self._range(name)  # it began again at zero
        return Found(joules, by)

    def _read(self) -> tuple[Mapping[str, float], str]:
        """Joules by counter, and who counts; none, and why not."""
        if gpus := dict(_nvml()):
            return gpus, "NVML, all GPUs"
        found: dict[str, float] = {}
        for folder in sorted(self._rapl.glob("intel-rapl:*")):
            if folder.name.count(":") == 1:  # a package, with its cores within
                try:
                    found[folder.name] = int((folder / "energy_uj").read_text()) / 1e6
                except PermissionError:
                    return {}, f"no counter that may be read ({folder}/energy_uj is its owner's alone)"
                except (OSError, ValueError):
                    continue
        return (found, "RAPL, all processor packages") if found else ({}, "no counter")

    def _range(self, name: str) -> float:
        return int((self._rapl / name / "max_energy_range_uj").read_text()) / 1e6


def _nvml() -> Iterator[tuple[str, float]]:
    """Joules of each GPU since its driver was loaded (NVML, Volta and later)."""
    if find_spec("pynvml") is None:
        return
    import pynvml

    try:
        pynvml.nvmlInit()
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            yield f"gpu{i}", pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:  # no driver, or a GPU that does not count
        return
