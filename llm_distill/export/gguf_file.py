"""A .gguf as llama.cpp's own converter and quantiser write it, from a folder of safetensors; one tensor in memory at a time.

Names come from the `gguf` package's maps, f16 and q8_0 from its numpy kernels, Q4_K and its kin from libgguf's build of
ggml's reference code. Architectures whose layout is not known here are a UserError that names llama.cpp's tool: a
file that loads and answers wrongly is worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill.errors import UserError
from llm_distill.export.gguf_types import FILE_TYPES, Kinds, kinds
from llm_distill.export.gguf_vocabulary import add_vocabulary, add_words
from llm_distill.models import weights

#: A model type of transformers -> llama.cpp's architecture, and whether its rotary halves are interleaved there.
_ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
_TOOL = "export it --to merged and run llama.cpp's `convert_hf_to_gguf.py` on that folder"


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint's tensors go: llama.cpp's architecture, its names, and how the values are rearranged."""

    architecture: str
    names: dict[str, str]
    turned: Callable[[str, np.ndarray], np.ndarray]


def write(folder: Path, file: Path, quant: str, name: str) -> dict[str, int]:
    """Write a folder that `from_pretrained` reads as one .gguf; gives how many tensors became which type.

    quant: f16, q8_0 or q4_k_m. A UserError for what llama.cpp's converter knows and this one does not.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text("utf-8"))
    layout = _layout(folder, config)
    tokenizer = weights.load_tokenizer(str(folder))
    shapes = {layout.names[key]: shape for key, shape in _shapes(folder)}
    types = kinds(quant, shapes, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(None, layout.architecture)
    writer.add_type("model")
    add_words(writer, "name", name)
    _add_settings(writer, config, layout.architecture)
    writer.add_file_type(FILE_TYPES[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    ends = json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    add_vocabulary(writer, folder, tokenizer, config["vocab_size"], ends, _TOOL)
    for tensor, shape in shapes.items():
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), types.size(tensor, shape), types.raw(tensor))
    try:
        writer.open_output_file(file)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, values in _tensors(folder):
            tensor = layout.names[key]
            writer.write_tensor_data(_encoded(layout.turned(tensor, values), tensor, types))
    finally:
        writer.close()
    return types.counted


def _encoded(values: np.ndarray, tensor: str, types: Kinds) -> np.ndarray:
    encoded = types.encode(tensor, values)
    if encoded.dtype == np.float16 and not np.isfinite(encoded).all():
        raise UserError(f"--to gguf: {tensor} holds values that float16 cannot; choose --quant q8_0.")
    return encoded


def _layout(folder: Path, config: dict[str, Any]) -> Layout:
    """The layout of a checkpoint; a UserError for one that is none of those known here."""
    import gguf

    kind = config["model_type"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ARCHITECTURES:
        raise UserError(
            f"--to gguf: found a {kind} model; written are {', '.join(_ARCHITECTURES)}. For others {_TOOL}."
        )
    if scaling != "default" or (config.get("sliding_window") and config.get("use_sliding_window", kind == "mistral")):
        what = f"rope scaling {scaling!r}" if scaling != "default" else "a sliding window"
        raise UserError(f"--to gguf: this {kind} model has {what}, which is not written here; {_TOOL}.")
    architecture, interleaved = _ARCHITECTURES[kind]
    number = next(n for n, said in gguf.MODEL_ARCH_NAMES.items() if said == architecture)
    known = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    names, unknown = {}, []
    for key, _ in _shapes(folder):
        found = known.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None or (interleaved and key.endswith(".bias")):
            unknown.append(key)
        else:
            names[key] = found
    if unknown:
        raise UserError(f"--to gguf: {kind} with a tensor {unknown[0]} is not written here; {_TOOL}.")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def turned(tensor: str, values: np.ndarray) -> np.ndarray:
        """(rows, columns) as llama.cpp wants it: of its llama, rotary pairs lie side by side, not half a head apart."""
        part = tensor.rpartition(".")[0].rpartition(".")[2]
        if not interleaved or part not in heads:
            return values
        split = values.reshape(heads[part], 2, values.shape[0] // heads[part] // 2, -1)
        return split.swapaxes(1, 2).reshape(values.shape)

    return Layout(architecture, names, turned)


def _add_settings(writer: Any, config: dict[str, Any], architecture: str) -> None:
    heads, rope = config["num_attention_heads"], config.get("rope_parameters") or {}
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if architecture == "llama":
        writer.add_rope_dimension_count(size)
    if config.get("head_dim"):
        writer.add_key_length(size)
        writer.add_value_length(size)


def _files(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("*.safetensors"))


def _shapes(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Each tensor's name and shape, in the order in which `_tensors` gives them."""
    from safetensors import safe_open

    found = []
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            found += [(key, tuple(file.get_slice(key).get_shape())) for key in sorted(file.keys())]
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor as float32, one in memory at a time."""
    from safetensors import safe_open

    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                yield key, file.get_tensor(key).float().numpy()
