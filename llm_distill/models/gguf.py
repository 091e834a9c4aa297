"""A .gguf, converted once into an ordinary folder of safetensors with its tokenizer, template and EOS ids."""

from __future__ import annotations

import functools
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Part of a converted folder's name and of a model's identity: raise it when what is written below changes.
CONVERSION = 1
#: What reading a broken or unknown file raises.
BROKEN = (OSError, ValueError, KeyError, IndexError, NotImplementedError, struct.error)
#: Vocabularies that split digits one by one (llama.cpp, llama-vocab.cpp). transformers 5.23 does not know them when it
#: reads a .gguf, and "  2024" would become other tokens than those the model was trained on.
SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


def converted(gguf: Path, digest: str, cache: Path) -> Path:
    """The folder a .gguf was converted into. One process converts, others wait; a killed one leaves nothing behind."""
    import fcntl

    folder = cache / f"{digest}-{CONVERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # falls with its process
        if not folder.is_dir():
            model, tokenizer = read(gguf)
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # from a killed process: the lock is ours
            try:
                model.save_pretrained(part, max_shard_size="4GB")
                tokenizer.save_pretrained(part)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def read(gguf: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a .gguf; the weights are dequantised to float32, which is exact."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, TokenizersBackend
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(gguf))
    # A link on its own, so that nothing beside the file is taken for a part of it.
    with tempfile.TemporaryDirectory() as alone, _read_once_in_silence():
        (Path(alone) / gguf.name).symlink_to(gguf.resolve())
        config = AutoConfig.from_pretrained(alone, gguf_file=gguf.name)
        packed = AutoModelForCausalLM.from_pretrained(alone, gguf_file=gguf.name, config=config, dtype=torch.float32)
        tokenizer = TokenizersBackend.from_pretrained(alone, gguf_file=gguf.name)
    # What came from a .gguf counts as quantised and refuses to be saved, so its weights move into a plain model.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    # transformers keeps the first of the ids that end an answer; chat models end a turn with eot.
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    model.generation_config.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None)) or None
    if metadata.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    return model, tokenizer


@contextmanager
def _read_once_in_silence() -> Iterator[None]:
    """Parse a header once where transformers would twice (Gemma's 262k tokens: ten seconds each), without its bar."""
    import gguf
    import transformers.modeling_gguf_pytorch_utils as reader

    parse, bar = gguf.GGUFReader, reader.tqdm
    gguf.GGUFReader = functools.cache(parse)
    reader.tqdm = lambda tensors, **_: tensors  # no setting of transformers turns this one off
    try:
        yield
    finally:
        gguf.GGUFReader, reader.tqdm = parse, bar
