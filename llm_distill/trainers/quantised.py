"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): a frozen student in 4 bits under LoRA in float32, by bitsandbytes on CUDA.

What is published is the adapter, which evaluation and export put on the whole weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.trainers.hyper import Hyperparameters


def check(hyper: Hyperparameters, device: Any) -> None:
    """UserError for weights of 4 bits where they cannot be."""
    if hyper.load_in is None:
        return
    if device.type != "cuda":
        raise UserError(
            f"train.load_in: weights of 4 bits need CUDA, and training is on {device.type} here; remove it."
        )
    if not find_spec("bitsandbytes"):
        raise UserError(
            "train.load_in: bitsandbytes is not installed; `pip install 'llm-distill[qlora]'`, or remove it."
        )


def load(where: tuple[str, str | None, str | None], dtype: str, device: str) -> Any:
    """The student in NF4, its scales quantised as well, as in the paper. It multiplies in `dtype`."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = weights.load_model(*where, dtype=dtype, device=device, quantization=nf4)
    # Norms and embeddings in float32; whether activations are checkpointed is the trainer's to say.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def keep_exact(model: Any) -> None:
    """Have an adapter on such a student in float32 again: TRL makes it bfloat16, in which a small step is rounded away."""
    for parameter in model.parameters() if getattr(model, "is_loaded_in_4bit", False) else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
