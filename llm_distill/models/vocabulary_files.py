"""A vocabulary without its model: from tokenizer.json of a folder or of the hub, or from a .gguf's header.

Only plain JSON and a header are read, so this needs neither torch nor transformers, and takes seconds at most.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.models import hub
from llm_distill.models.vocabulary import Vocabulary

#: What turns pieces into text in the kinds of vocabularies that a .gguf may hold (`tokenizer.ggml.model`).
_GGUF_DECODERS = {"gpt2": ["ByteLevel"], "llama": ["▁", "ByteFallback"], "t5": ["▁"]}
_CONTROL, _USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`
#: GGUF's value types (ggml-org/ggml, docs/gguf.md) as struct's letters; 8 is a string and 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_vocabulary(reference: str) -> Vocabulary:
    """The vocabulary of a folder, a .gguf file or a hub id. UserError when there is none that can be read."""
    path = Path(reference).expanduser()
    name = path.name if path.exists() else reference
    try:
        if path.is_file():
            return _of_gguf(path, name)
        folder = path if path.is_dir() else Path(hub.downloaded(reference, None, ("tokenizer.json",)))
        return _of_json(json.loads((folder / "tokenizer.json").read_text("utf-8")), name)
    except ImportError as error:
        raise UserError(f"tokenizer: {reference}: {error}; a hub id needs `pip install huggingface_hub`.") from None
    except FileNotFoundError:
        raise UserError(
            f"tokenizer: {reference} has no tokenizer.json; name a folder that save_pretrained wrote, or a .gguf."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"tokenizer: {reference} cannot be read: {type(error).__name__}: {error}.") from None


def _of_json(description: Mapping[str, Any], name: str) -> Vocabulary:
    """As the `tokenizers` package writes it: pieces by id in a mapping, or in a list with their scores (Unigram)."""
    pieces = description["model"]["vocab"]
    numbered = {number: piece for piece, number in pieces.items()} if isinstance(pieces, dict) else None
    listed = [piece for piece, _ in pieces] if numbered is None else []
    added = {token["id"]: token["content"] for token in description["added_tokens"]}
    special = {token["id"] for token in description["added_tokens"] if token["special"]}
    return Vocabulary((numbered or dict(enumerate(listed))).get, added, special, description["decoder"], name)


def _of_gguf(path: Path, name: str) -> Vocabulary:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it is no .gguf")
        found = _Header(data).read({f"tokenizer.ggml.{key}" for key in ("model", "tokens", "token_type")})
    kind, tokens = found["tokenizer.ggml.model"], found["tokenizer.ggml.tokens"]
    if kind not in _GGUF_DECODERS:
        raise ValueError(f"its vocabulary is of kind {kind!r}, and only {', '.join(_GGUF_DECODERS)} can be spelt")
    types = found.get("tokenizer.ggml.token_type", [])
    added = {i: tokens[i] for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    special = {i for i, kind in enumerate(types) if kind == _CONTROL}
    return Vocabulary(dict(enumerate(tokens)).get, added, special, _GGUF_DECODERS[kind], name)


class _Header:
    """The key-value pairs at the start of a .gguf, read one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place = data, 4
        self._number("I")  # the version: 2 and 3 read alike
        self._number("Q")  # tensors
        self._pairs = self._number("Q")

    def read(self, wanted: set[str]) -> dict[str, Any]:
        """The values of the keys that are wanted and there."""
        found = {}
        for _ in range(self._pairs):
            key, value = self._string(), self._value(self._number("I"))
            if key in wanted:
                found[key] = value
        return found

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._number("I"), self._number("Q")
            if inner in _NUMBERS:
                return self._numbers(f"<{length}{_NUMBERS[inner]}")
            return [self._value(inner) for _ in range(length)]
        return self._number(_NUMBERS[kind])

    def _number(self, letter: str) -> Any:
        return self._numbers(f"<{letter}")[0]

    def _numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._place)
        self._place += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        length = self._number("Q")
        self._place += length
        if self._place > len(self._data):
            raise ValueError("it ends in the middle")
        return self._data[self._place - length : self._place].decode("utf-8", "replace")
