"""From a run to a folder that can leave it: gate, write, check, describe, and only then take the name that was asked for."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_distill import __version__, store
from llm_distill.errors import UserError
from llm_distill.export import Form, Numbers, Quant, agreement, cards, gguf_file, licence
from llm_distill.export.merged import full_disk_is_an_oserror, write_adapter, write_merged
from llm_distill.export.student import Student, find
from llm_distill.models import gguf, weights

#: Written last; a folder that holds it is an export, which the next one to the same place may replace.
RECORD = "export.json"
_FORMAT = 1
_READ_BACK = "read_back"


def export(
    run: store.RunFolder,
    form: Form,
    out: Path | None = None,
    *,
    quant: Quant | None = None,
    numbers: Numbers = "auto",
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Export a run's student; gives export.json, with the folder as `out`.

    The folder appears whole under its name or not at all, whatever is killed or full. UserError where terms forbid what the
    policy states, where `out` holds something else, or where the form does not suit the student.
    """
    if quant is not None and form != "gguf":
        raise UserError(f"--quant {quant} goes with --to gguf; --to {form} has --dtype.")
    if numbers != "auto" and form in ("gguf", "adapter"):
        raise UserError(f"--dtype {numbers} goes with --to merged or vllm; a .gguf has --quant, an adapter its own.")
    if not run.file("run.json").is_file():
        raise UserError(f"{run.path}: no run.json there; name a run's folder, or its recipe.")
    with run.lock():
        student = find(run)
        standing = licence.standing(student)
        held = quant or "f16"
        out = out or run.file("exports") / (f"{form}-{held}" if form == "gguf" else form)
        with _appearing(out) as part:
            _check_room(student, part)
            say("The student's own answers, to compare with.")
            said = agreement.original(student)
            say(f"Writing {form}{f' {held}' if form == 'gguf' else ''}.")
            told, knobs = _write(student, form, part, held, numbers)
            say(f"The exported student's answers to the same {len(said.answers)} rows.")
            lossless = form == "adapter" or told.get("dtype") == "float32" or (form == "gguf" and held == "f16")
            checked = agreement.compare(student, said, student.model(**knobs), lossless=lossless)
            shutil.rmtree(part / _READ_BACK, ignore_errors=True)
            files = {
                str(file.relative_to(part)): store.digest(file) for file in sorted(part.rglob("*")) if file.is_file()
            }
            record = {
                "format": _FORMAT,
                "llm_distill": __version__,
                "to": form,
                "quant": held if form == "gguf" else None,
                **told,
                "name": student.plan.name,
                "recipe_digest": student.plan.digest,
                "base": {"reference": student.base, "digest": weights.fingerprint(*student.where)},
                "licence": standing.licence,
                "may_be_published": standing.may_be_published,
                "agreement": checked,
                "files": files,
            }
            cards.write(student, record, standing, part)
            store.write_json(part / RECORD, record)
    return record | {"out": str(out), "notes": standing.notes}


def _write(
    student: Student, form: Form, part: Path, quant: Quant, numbers: Numbers
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the weights; gives what export.json says of them, and the knobs of the plug that reads them back."""
    alone = {"sha256": None, "revision": None, "adapter": None}
    name = student.plan.name
    if form == "adapter":
        return write_adapter(student, part), {"adapter": str(part)}
    if form == "gguf":
        whole = part / "merged"
        told = write_merged(student, whole)
        file = part / f"{name}-{quant}.gguf"
        with full_disk_is_an_oserror(file):
            types = gguf_file.write(whole, file, quant, name)
        shutil.rmtree(whole)
        # Read as anybody would who names the file as a recipe's model, and not into the cache, where it would stay.
        read_back = gguf.converted(file, weights.fingerprint(str(file)), part / _READ_BACK)
        return {"tensors": types, "end_token_id": told["end_token_id"]}, {**alone, "model": str(read_back)}
    told = write_merged(student, part, numbers)
    if form == "vllm":
        script = part / "serve.sh"
        script.write_text(_serve(name), encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    kind = told["dtype"]
    return told, {**alone, "model": str(part), "dtype": kind if kind != "float16" else "float32"}


def _serve(name: str) -> str:
    return f"""#!/bin/sh
# Serves this folder at http://127.0.0.1:${{PORT:-8000}}/v1 as `{name}`; more arguments go to vLLM.
# Sampling is what a request says: the student was measured without chance, so ask with temperature 0.
exec vllm serve "$(dirname "$0")" --host 127.0.0.1 --port "${{PORT:-8000}}" \\
    --served-model-name {name} --generation-config vllm "$@"
"""


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; when the block ends well it takes that name, in place of an earlier export."""
    if not out.name:
        raise UserError(
            f"--out {out}: an export takes the place of a folder; name a folder below, or write its name from above."
        )
    if out.exists() and not (out / RECORD).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: something else is there (no {RECORD}); name a new folder, or an earlier export.")
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in (part, old):  # of a killed process: the run is ours
            shutil.rmtree(stale, ignore_errors=True)
        part.mkdir()
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}: {error.filename}.") from None
    try:
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                file.chmod(file.stat().st_mode | 0o444)  # what safetensors and tempfile write is their writer's alone
                with file.open("rb+") as open_file:
                    os.fsync(open_file.fileno())
        if out.exists():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_room(student: Student, part: Path) -> None:
    """Say before an hour of work, rather than after, that the disk cannot hold it: OSError, as a full disk is."""
    base = sum(file.stat().st_size for file in Path(weights.prepare(*student.where)).glob("*.safetensors"))
    if shutil.disk_usage(part).free < base:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


def read(folder: Path) -> dict[str, Any]:
    """The export.json of a folder."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record
