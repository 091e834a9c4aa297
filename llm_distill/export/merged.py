"""Weights that stand on their own: the base with its LoRA merged in float32, or a whole model as it was trained."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_distill.errors import NO_ROOM, UserError
from llm_distill.export.student import Student
from llm_distill.models import weights
from llm_distill.trainers.rows import end_token, stop_ids

#: A file that any file system and upload takes, and that loads without twice the memory.
_SHARD = "4GB"
#: What training leaves beside the weights; some of it quotes rows.
_OF_TRAINING = ("training.json", "metrics.jsonl", "alignment.jsonl", "checkpoints")


def write_merged(student: Student, out: Path, numbers: str = "auto") -> dict[str, Any]:
    """Write a folder that `from_pretrained` reads: safetensors, tokenizer, chat template, generation config.

    The sum of base and adapter is taken in float32 and rounded once, to `numbers` (auto: the base's own dtype). A whole
    model is copied as it was trained. Gives what export.json says of it.
    """
    import torch
    from transformers import GenerationConfig

    where = student.where if student.is_adapter else (str(student.folder), None, None)
    tokenizer = weights.load_tokenizer(*where)
    kind = "float32"
    if student.is_adapter:
        model = weights.load_model(*where, adapter=str(student.folder), dtype="float32", device="cpu")
        model = model.merge_and_unload()
        kind = _own_numbers(weights.prepare(*where)) if numbers == "auto" else numbers
        model = model.to(getattr(torch, kind))
    else:
        if numbers not in ("auto", "float32"):
            raise UserError(f"--dtype {numbers}: a student trained whole is copied as it is, in float32; leave it out.")
        model = weights.load_model(*where, dtype="float32", device="cpu")
    stops = stop_ids(model, tokenizer)
    end = end_token(tokenizer, stops)
    # The trained end first. The base's own sampling (temperature, penalties) is not what the student was measured with.
    own = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(eos_token_id=[end, *sorted(stops - {end})], **own)
    with full_disk_is_an_oserror(out), _quiet():
        if student.is_adapter:
            model.save_pretrained(out, max_shard_size=_SHARD)
        else:
            shutil.copytree(student.folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_OF_TRAINING, ".*"))
            model.generation_config.save_pretrained(out)
        tokenizer.save_pretrained(out)
        for file in Path(weights.prepare(*student.where)).glob(weights.PROCESSOR):
            shutil.copyfile(file, out / file.name)
    _forget_here(out)
    return {"dtype": kind, "merged_in": "float32" if student.is_adapter else None, "end_token_id": end}


def write_adapter(student: Student, out: Path) -> dict[str, Any]:
    """Write the adapter with its tokenizer; its config names the base as others can find it, never as a path of here."""
    if not student.is_adapter:
        raise UserError("--to adapter: this student was trained whole (lora_rank: null); export it --to merged.")
    revision = student.where[2]
    weights.check_adapter(str(student.folder), weights.fingerprint(*student.where))
    with full_disk_is_an_oserror(out):
        shutil.copytree(student.folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_OF_TRAINING, ".*"))
    config = json.loads((out / "adapter_config.json").read_text("utf-8"))
    config |= {"base_model_name_or_path": student.base, "revision": revision}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _forget_here(out)
    base = json.loads((out / "base.json").read_text("utf-8")) | {"reference": student.base, "revision": revision}
    (out / "base.json").write_text(json.dumps(base, indent=1) + "\n", encoding="utf-8")
    return {"base_digest": base["digest"]}


def _forget_here(folder: Path) -> None:
    """Take out of a tokenizer's config how it was loaded here."""
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "name_or_path")}
    text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _own_numbers(folder: str) -> str:
    """The dtype that a checkpoint says it is stored in; float32 where it does not say."""
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    said = config.get("dtype") or config.get("torch_dtype") or "float32"
    return said if said in ("float32", "bfloat16", "float16") else "float32"


@contextmanager
def full_disk_is_an_oserror(path: Path) -> Iterator[None]:
    """What safetensors and numpy raise on a full disk, as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno is None and "written" in str(error):  # numpy's tofile: "9 requested and 3 written"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    except SafetensorError as error:
        for number in NO_ROOM:
            if f"os error {number}" in str(error) or os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars off the terminal."""
    from transformers.utils import logging

    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            logging.enable_progress_bar()
