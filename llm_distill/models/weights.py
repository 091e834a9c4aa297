"""Weights: from a reference (local folder, .gguf file, hub id) to a tokenizer and a model that are ready to use.

A .gguf becomes an ordinary folder of safetensors under `$LLM_DISTILL_CACHE` (default `~/.cache/llm_distill`) when it is
first used, so that everything downstream (training, PEFT, vLLM) meets one kind of checkpoint. Code that comes with a
checkpoint is never run and pickled weights are never read.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.models import gguf, hub
from llm_distill.plugs import is_run
from llm_distill.records import content_id

#: What decides a folder's answers besides its weights.
DESCRIPTION = ("config.json", "generation_config.json", "tokenizer*", "*_token*.json", "vocab*", "merges*", "chat_*")
#: What says how pictures are read: nothing here reads any, but vLLM starts no family that can without it.
PROCESSOR = "*processor_config.json"


def loadable(reference: str) -> str:
    """The same reference; ValueError where the packages that load weights are not installed. For the types of knobs."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise ValueError(f"{reference} needs torch and transformers: pip install 'llm-distill[train]'")
    return reference


def prepare(
    reference: str,
    sha256: str | None = None,
    revision: str | None = None,
    files: tuple[str, ...] = ("*.safetensors", "*.index.json", PROCESSOR, *DESCRIPTION),
) -> str:
    """The folder that these weights are in: its own, what a .gguf was converted into on its first use, or what the hub sent of
    the `files` that are wanted.
    """
    path = Path(reference).expanduser()
    content = fingerprint(reference, sha256, revision)
    if path.is_dir():
        return str(path)
    if path.suffix == ".gguf":
        with _one_line(reference, *gguf.BROKEN):
            return str(gguf.converted(path, content, cache() / "weights"))
    with _one_line(reference):
        return hub.downloaded(reference, revision, files)


def fingerprint(reference: str, sha256: str | None = None, revision: str | None = None) -> str:
    """What the weights are, by content; a UserError when they are not what was asked for. Loads nothing.

    The sha256 of a .gguf, a digest of a folder's safetensors, or a hub id with its revision: pin that to a commit,
    since a branch can move under a scheduled job.
    """
    if is_run(reference):
        raise UserError(f"{reference}: the student of another recipe, known only where that has been run.")
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        digest = _file_digest(path)
        if sha256 and digest != sha256.lower():
            raise UserError(f"{reference}: sha256 is {digest}, expected {sha256}; fetch it again or correct `sha256`.")
    elif sha256:
        raise UserError(f"{reference}: `sha256` goes with a .gguf file; pin a hub id with `revision`.")
    elif path.is_dir():
        digest = _folder_digest(path, ("*.safetensors",))
        if not (path / "config.json").is_file():
            hint = "name a folder that save_pretrained wrote"
            if (path / "adapter_config.json").is_file():
                hint = "this is an adapter: name its base as `model` and this folder as `adapter`"
            raise UserError(f"{reference}: found no config.json there; {hint}.")
    elif path.is_absolute() or path.suffix == ".gguf" or reference.startswith((".", "~")) or reference.count("/") > 1:
        raise UserError(f"{reference}: no such folder or file; correct `model`.")
    else:
        return f"{reference}@{revision or 'main'}"
    if revision:
        raise UserError(f"{reference}: `revision` goes with a hub id; pin a .gguf file with `sha256`.")
    return digest


def identity(reference: str, sha256: str | None = None, revision: str | None = None, adapter: str | None = None) -> str:
    """What answers depend on: weights, tokenizer, template and adapter, by content and not by place. Loads nothing."""
    parts: list[Any] = [
        fingerprint(reference, sha256, revision),
        gguf.CONVERSION if reference.endswith(".gguf") else None,
    ]
    if (folder := Path(reference).expanduser()).is_dir():
        parts.append(_folder_digest(folder, DESCRIPTION))
    if adapter is not None:
        settings = _adapter_settings(adapter)
        settings.pop("base_model_name_or_path", None)  # a path of the machine it was trained on
        parts += [settings, _folder_digest(Path(adapter), ("*.safetensors",))]
    return f"weights:{content_id(parts)}"


def sign_adapter(adapter: str, reference: str, sha256: str | None = None, revision: str | None = None) -> None:
    """Note in an adapter's folder which weights it was trained on, so that it is never put on others."""
    note = {"reference": Path(reference).name, "digest": fingerprint(reference, sha256, revision)}
    _write(Path(adapter) / "base.json", json.dumps(note, indent=1) + "\n")


def load_tokenizer(reference: str, sha256: str | None = None, revision: str | None = None) -> Any:
    """The tokenizer, with its chat template if it has one. Of a hub id no weights are fetched: a server may have them alone."""
    place = prepare(reference, sha256, revision, DESCRIPTION)
    with _one_line(reference):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def load_model(
    reference: str,
    sha256: str | None = None,
    revision: str | None = None,
    *,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: Any = None,
) -> Any:
    """A causal language model in evaluation mode; a PeftModel where an adapter is given.

    `auto`: the first of cuda, mps and cpu that is there; bfloat16 on cuda, float32 elsewhere (most CPUs compute
    bfloat16 slower than float32). quantization: a quantization config of transformers'.
    """
    place = prepare(reference, sha256, revision)
    more = {} if quantization is None else {"quantization_config": quantization}
    model = _loaded("AutoModelForCausalLM", reference, place, dtype, device, **more)
    if adapter is not None:
        model = _with_adapter(model, adapter, fingerprint(reference, sha256, revision))
    return model.eval()


def with_trainable_adapter(model: Any, adapter: str) -> Any:
    """A loaded base with its LoRA adapter, to be trained further: one that was made here, on this base."""
    from peft import PeftModel

    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return PeftModel.from_pretrained(model, adapter, is_trainable=True, torch_device=str(model.device))


def free() -> None:
    """Give back the memory of models that nobody holds any more; their parts hold each other."""
    gc.collect()
    sys.modules["torch"].cuda.empty_cache()


def load_encoder(reference: str) -> Any:
    """The model without a head, in evaluation mode and float32: for vectors of texts."""
    return _loaded("AutoModel", reference, prepare(reference), "float32", "auto").eval()


def load_classifier(
    reference: str, revision: str | None = None, *, dtype: str = "float32", device: str = "auto"
) -> Any:
    """A sequence classifier in evaluation mode; a checkpoint without a trained head is a UserError. `auto` as `load_model`."""
    place = prepare(reference, None, revision)
    model, loaded = _loaded(
        "AutoModelForSequenceClassification", reference, place, dtype, device, output_loading_info=True
    )
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{reference}: no text classifier: it has no weights for {missing[0]!r}; name one that has.")
    return model.eval()


def _loaded(kind: str, reference: str, place: str, dtype: str, device: str, **more: Any) -> Any:
    """What transformers' class of that name reads out of a folder: safetensors, and no code that comes with them."""
    with _one_line(reference, RuntimeError):  # RuntimeError: weights that do not fit the config, or the device
        import torch
        import transformers

        target = pick_device(device)
        number = dtype if dtype != "auto" else "bfloat16" if target.type == "cuda" else "float32"
        return getattr(transformers, kind).from_pretrained(
            place,
            local_files_only=True,
            dtype=getattr(torch, number),
            device_map={"": target},
            use_safetensors=True,
            trust_remote_code=False,
            **more,
        )


def pick_device(device: str = "auto") -> Any:
    """A torch.device: the one named, or the best one there is."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [name for name, available in there.items() if available]
    if device != "auto" and device.partition(":")[0] not in found:
        raise UserError(f"device: {device!r} is not on this machine; write {' or '.join([*found, 'auto'])}.")
    return torch.device(found[0] if device == "auto" else device)


def check_adapter(adapter: str, base: str) -> None:
    """UserError when an adapter lacks a file, or was trained on other weights than those of fingerprint `base`."""
    _adapter_settings(adapter)
    if (signed := Path(adapter) / "base.json").is_file():
        note = json.loads(signed.read_text("utf-8"))
        if note["digest"] != base:
            raise UserError(
                f"{adapter}: was trained on {note['reference']} ({note['digest']}), found {base}; "
                "name that base as `model`."
            )


def _with_adapter(model: Any, adapter: str, base: str) -> Any:
    """The model with its LoRA adapter; an adapter that was trained on other weights is refused."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    other = UserError(f"{adapter}: this adapter was not trained on these weights; name its own base as `model`.")
    check_adapter(adapter, base)
    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="pt") as file:
        trained = {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 - it is no dict
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # what PEFT still asks transformers for
            model = PeftModel.from_pretrained(model, adapter, is_trainable=False, torch_device=str(model.device))
    except (ValueError, RuntimeError) as error:  # no modules of those names; other shapes
        raise other from error
    # Without embeddings: looking whether those were saved as well asks the hub.
    if trained != {name for name in get_peft_model_state_dict(model, save_embedding_layers=False) if "lora_" in name}:
        raise other
    return model


def _adapter_settings(adapter: str) -> dict[str, Any]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(adapter) / name).is_file():
            raise UserError(f"{adapter}: found no {name} there; name a folder that PEFT wrote as safetensors.")
    settings: dict[str, Any] = json.loads((Path(adapter) / "adapter_config.json").read_text("utf-8"))
    return settings


def cache() -> Path:
    """The folder for what can be made again: converted weights, digests, logs."""
    return Path(os.environ.get("LLM_DISTILL_CACHE") or "~/.cache/llm_distill").expanduser()


def _file_digest(path: Path) -> str:
    """sha256 of a file, remembered while nobody touches it (ctime moves with every change and cannot be set back)."""
    found = path.stat()
    key = content_id([str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns])
    note = cache() / "digests" / key
    with suppress(OSError):
        if len(known := note.read_text("ascii")) == 64:
            return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a cache that cannot be written costs time, not truth
        note.parent.mkdir(parents=True, exist_ok=True)
        _write(note, digest)
    return digest


def _folder_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return content_id([[file.name, _file_digest(file)] for file in files])


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as part:
        part.write(text)
    Path(part.name).replace(path)


@contextmanager
def _one_line(what: str, *wrong: type[Exception]) -> Iterator[None]:
    """Turn what a wrong or absent checkpoint raises into one line, and keep transformers' bars off the terminal."""
    try:
        from safetensors import SafetensorError
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{what}: {error}; local models need `pip install 'llm-distill[train]'`.") from error
    expected: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError, *wrong)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except expected as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what}: cannot be loaded: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
