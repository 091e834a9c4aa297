"""Which ggml type each tensor of a .gguf gets, and its bytes: llama.cpp's rules for f16, q8_0 and q4_k_m."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from llm_distill.errors import UserError

#: general.file_type (llama.h, llama_ftype).
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
#: K-quants take 256 numbers at a time; a row that does not divide into them gets the type beside it (llama-quant.cpp).
_BLOCK = 256
_NARROW = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
_BLOCKS = {"Q4_K": 256, "Q6_K": 256, "Q5_0": 32, "Q8_0": 32, "F16": 1, "F32": 1}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.")


@dataclass(frozen=True)
class Kinds:
    """The ggml type of each tensor, by name."""

    of: Mapping[str, str]

    @property
    def counted(self) -> dict[str, int]:
        """How many tensors have which type."""
        return dict(sorted(Counter(self.of.values()).items()))

    def raw(self, tensor: str) -> Any:
        """A tensor's type as the `gguf` package names it."""
        import gguf

        return gguf.GGMLQuantizationType[self.of[tensor]]

    def size(self, tensor: str, shape: tuple[int, ...]) -> int:
        """The bytes that a tensor of this shape takes."""
        import gguf

        block, bytes_ = gguf.GGML_QUANT_SIZES[self.raw(tensor)]
        return int(np.prod(shape)) // int(block) * int(bytes_)

    def encode(self, tensor: str, values: np.ndarray) -> np.ndarray:
        """float32 values as their type's bytes."""
        from gguf.quants import quantize

        kind = self.of[tensor]
        if kind == "F32":
            return values.astype(np.float32)
        if kind == "F16":
            with np.errstate(over="ignore"):  # who asks looks for what is infinite
                return values.astype(np.float16)
        if kind in _NARROW:
            import libgguf

            rows: np.ndarray = libgguf.quantize_rows(np.ascontiguousarray(values), self.raw(tensor).value)
            return rows
        return np.asarray(quantize(values, self.raw(tensor)))


def kinds(quant: str, shapes: Mapping[str, tuple[int, ...]], layers: int) -> Kinds:
    """The type of each tensor, by llama.cpp's names: norms and biases stay float32, matrices are held as `quant` says."""
    if quant == "q4_k_m" and find_spec("libgguf") is None:
        raise UserError(
            "--quant q4_k_m: libgguf, which makes K-quants, is not installed; `pip install 'llm-distill[gguf]'`. Or export "
            "--quant f16 and run llama.cpp's `llama-quantize FILE.gguf OUT.gguf Q4_K_M` on the file."
        )
    tied = "output.weight" not in shapes
    chosen = {name: _kind(quant, name, shape, layers, tied) for name, shape in shapes.items()}
    return Kinds(chosen)


def _kind(quant: str, name: str, shape: tuple[int, ...], layers: int, tied: bool) -> str:
    if len(shape) == 1:
        return "F32"
    if quant == "f16":
        return "F16"
    wanted = "Q8_0" if quant == "q8_0" else _medium(name, layers, tied)
    if shape[-1] % _BLOCKS[wanted]:
        wanted = _NARROW.get(wanted, "F16")
    return wanted if shape[-1] % _BLOCKS[wanted] == 0 else "F16"


def _medium(name: str, layers: int, tied: bool) -> str:
    """The `_M` mix of llama.cpp: what reads the values and what leads out of a layer gets more bits in half of the layers."""
    if name == ("token_embd.weight" if tied else "output.weight"):
        return "Q6_K"
    found = _LAYER.match(name)
    if found and found[2] in ("attn_v", "ffn_down") and _more_bits(int(found[1]), layers):
        return "Q6_K"
    return "Q4_K"


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between (llama-quant.cpp, use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
