"""The tokenizer of a .gguf: llama.cpp's names for what a byte-level tokenizer.json says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError

#: How llama.cpp calls the ways in which text is cut before merging, by what tokenizer.json says of them: the pattern of its
#: `Split`, or none where `ByteLevel` cuts by itself. Patterns as in transformers and llama.cpp (llama-vocab.cpp).
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "llama-bpe"
    ),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
}
#: Token types (llama.h, llama_token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def add_words(writer: Any, key: str, text: str) -> None:
    """A text of `general`."""
    writer.add_string(f"general.{key}", text)


def add_vocabulary(
    writer: Any, folder: Path, tokenizer: Any, size: int, ends: int | Sequence[int], otherwise: str
) -> None:
    """Write tokens, their types, merges, special ids and the chat template.

    size: rows of the embedding, some of which may have no token; ends: the ids that end an answer, the trained one first.
    `otherwise` is what to do where the tokenizer is of a kind that is not written here.
    """
    read = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = read["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"--to gguf: the tokenizer is {model['type']} with byte fallback or no BPE, written is byte-level BPE; "
            f"{otherwise}."
        )
    pre = _pre_tokenizer(read, otherwise)
    added = tokenizer.added_tokens_decoder
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    tokens, types = [], []
    for number in range(size):
        piece = pieces[number] if number < len(pieces) else None
        tokens.append(f"[PAD{number}]" if piece is None else piece)
        if piece is None:
            types.append(_UNUSED)
        elif number in added:
            types.append(_CONTROL if added[number].special else _USER_DEFINED)
        else:
            types.append(_NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    every = [ends] if isinstance(ends, int) else list(ends)
    eos = every[0] if tokenizer.eos_token_id not in every else tokenizer.eos_token_id
    others = [end for end in every if end != eos]
    ids = {
        "bos": tokenizer.bos_token_id, "eos": eos, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id,
        "eot": next(iter(others), None), "eom": next(iter(others[1:]), None),
    }  # fmt: skip
    for kind, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    bare = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and bare[0] == tokenizer.bos_token_id)
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(read: dict[str, Any], otherwise: str) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text; a UserError for a way that is not known here."""
    top = read.get("pre_tokenizer") or {}
    steps = top["pretokenizers"] if top.get("type") == "Sequence" else [top]
    kinds = [step.get("type") for step in steps]
    normal = (read.get("normalizer") or {}).get("type")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex") and normal is None:
        return "gpt-2"
    digits = kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex")
    if digits and normal is None:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        name = _SPLITS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if (name == "qwen2" and normal in (None, "NFC")) or (name == "llama-bpe" and normal is None):
            return name
    raise UserError(f"--to gguf: the tokenizer cuts text by {kinds} in a way that is not known here; {otherwise}.")
