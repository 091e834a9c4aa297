"""The exact bytes behind token ids, also where a token holds only a part of a character."""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """Token id -> bytes, from the tokenizer's own pieces: decoded text would show a half character as a question mark.

    `special` ids (EOS and its kin) carry their spelling as bytes, but belong to no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.dumps(json.loads(backend.decoder.__getstate__()), ensure_ascii=False) if backend else ""
        self._byte_level = "ByteLevel" in decoder
        self._fallback = "ByteFallback" in decoder
        self._underline = "▁" in decoder or "Metaspace" in decoder
        added = tokenizer.added_tokens_decoder
        self._known: dict[int, bytes] = {number: token.content.encode() for number, token in added.items()}
        self.special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)

    def token(self, number: int) -> bytes:
        """The bytes of one id; none for an id that the tokenizer does not have (padding rows of an embedding)."""
        if number not in self._known:
            self._known[number] = self._spell(self._tokenizer.convert_ids_to_tokens(number) or "")
        return self._known[number]

    def _spell(self, piece: str) -> bytes:
        if self._byte_level and _ALPHABET.keys() >= set(piece):
            return bytes(_ALPHABET[character] for character in piece)
        if self._fallback and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return (piece.replace("▁", " ") if self._underline else piece).encode()


def _alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level BPE writes it: printable bytes are themselves, others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _alphabet()
