"""The exact bytes behind token ids, also where a token holds only a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llm_distill.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd".encode()


class Vocabulary:
    """Token id -> bytes, from the tokenizer's own pieces: decoded text would show a half character as a question mark.

    `piece` gives the piece of an id, if there is one; `added` are the tokens that stand for themselves; `decoder` is
    what turns pieces into text, as tokenizer.json has it. `special` ids (EOS and its kin) carry their spelling as bytes,
    but belong to no text. `name` is for people.
    """

    def __init__(
        self,
        piece: Callable[[int], str | None],
        added: Mapping[int, str],
        special: set[int],
        decoder: Any,
        name: str = "",
    ) -> None:
        said = json.dumps(decoder, ensure_ascii=False)
        self._byte_level = "ByteLevel" in said
        self._fallback = "ByteFallback" in said
        self._underline = "▁" in said or "Metaspace" in said
        self._piece = piece
        self._known = {number: content.encode() for number, content in added.items()}
        self.special, self.name = special, name

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """That of a transformers tokenizer."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        added = tokenizer.added_tokens_decoder
        return cls(
            tokenizer.convert_ids_to_tokens,
            {number: token.content for number, token in added.items()},
            {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids),
            json.loads(backend.decoder.__getstate__()) if backend else None,
        )

    def token(self, number: int) -> bytes:
        """The bytes of one id; none for an id that the tokenizer does not have (padding rows of an embedding)."""
        if number not in self._known:
            self._known[number] = self._spell(self._piece(number) or "")
        return self._known[number]

    def check(self, given: Mapping[int, bytes]) -> None:
        """UserError when the model spells most of these ids otherwise; it spells as nothing what it does not say.

        A server decodes token by token, which may lose a blank in front, shows pieces of characters as U+FFFD, and gives
        all bytes of a character to the token that completes it.
        """
        said = {number: token for number, token in given.items() if token and _REPLACEMENT not in token}
        own = {number: self.token(number).lstrip() for number in said}
        other = [n for n, token in said.items() if not _ends(token.lstrip(), own[n])]
        if 2 * len(other) > len(said):
            number = other[0]
            raise UserError(
                f"tokenizer: {self.name} spells token {number} {self.token(number)!r}, and the endpoint {said[number]!r}; "
                "name the tokenizer of the model that it serves (its answers are kept)."
            )

    def _spell(self, piece: str) -> bytes:
        if self._byte_level and _ALPHABET.keys() >= set(piece):
            return bytes(_ALPHABET[character] for character in piece)
        if self._fallback and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return (piece.replace("▁", " ") if self._underline else piece).encode()


def _ends(given: bytes, own: bytes) -> bool:
    """Whether a token is as it is given, or completes the character that is given."""
    return given == own or (given.endswith(own) and own[:1] > b"\x7f" and own[:1] < b"\xc0")


def _alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level BPE writes it: printable bytes are themselves, others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _alphabet()
