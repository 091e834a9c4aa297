"""The student leaves its run: as an adapter, merged weights, a .gguf, or a folder that vLLM serves, checked and described."""

from __future__ import annotations

from typing import Literal

#: What a student can be exported as.
Form = Literal["adapter", "merged", "gguf", "vllm"]
#: How a .gguf holds its matrices.
Quant = Literal["f16", "q8_0", "q4_k_m"]
#: The numbers of merged weights; auto: those of the base's own checkpoint.
Numbers = Literal["auto", "float32", "bfloat16", "float16"]
