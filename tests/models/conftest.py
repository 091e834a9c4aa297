"""Tiny models with tokenizers of the two usual kinds (byte-level, and pieces with byte fallback), made in a second."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_distill.models import weights

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
CORPUS = [
    "the film was good and the phone was bad",
    "a dull day, a lovely day, an awful day",
    "positive negative neutral 2024",
    "Ein schöner Tag. 日本語の文。 Ça va très bien 😀",
]


def byte_level_tokenizer(template: str | None = TEMPLATE) -> Any:
    """As SmolLM2 has it: byte-level BPE, `<|im_end|>` is eos and pad, no BOS is added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import TokenizersBackend

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return TokenizersBackend(
        tokenizer_object=bpe,
        chat_template=template,
        **dict(zip(NAMES, ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"), strict=True)),
    )


def fallback_tokenizer() -> Any:
    """As Gemma has it: pieces with `▁` for a space, bytes as `<0xAB>`, BOS added to raw text, no template."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import TokenizersBackend

    words = ["▁▁", "th", "the", "▁the", "in", "go", "goo", "good", "▁good", "ba", "bad", "▁bad"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(c) for c in range(0x21, 0x7F)] + words
    merges = [(w[:i], w[i:]) for w in words for i in range(1, len(w)) if w[:i] in pieces and w[i:] in pieces]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    specials = dict(zip(NAMES, ("<bos>", "<eos>", "<pad>", "<unk>"), strict=True))
    return TokenizersBackend(tokenizer_object=bpe, **specials)


def blank_before() -> Any:
    """As Llama 2 and Mistral have it: a blank before any text, also behind the special token that ends the prompt."""
    from tokenizers import AddedToken, normalizers

    own = fallback_tokenizer()
    own.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.add_tokens([AddedToken("[/INST]", special=True, normalized=False)], special_tokens=True)
    own.chat_template = "<bos>{% for m in messages %}{{ m['content'] }}[/INST]{% endfor %}"
    return own


def tiny(kind: str, folder: Path, tokenizer: Any, **more: Any) -> Path:
    """A folder with random weights, large enough that no two tokens are equally likely."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
    }
    config = AutoConfig.for_model(kind, **settings | more)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lora(base: Path, out: Path) -> Path:
    """A LoRA with an effect, as if it had been trained on `base`."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(5)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        get_peft_model(weights.load_model(str(base)), config).save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full attention, a chat template, byte-level tokens."""
    return tiny("llama", tmp_path_factory.mktemp("llama"), byte_level_tokenizer())


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose first layer sees only 12 tokens back."""
    layers = ["sliding_attention", "full_attention"]
    return tiny(
        "gemma3_text", tmp_path_factory.mktemp("gemma"), fallback_tokenizer(), sliding_window=12, layer_types=layers
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Real weights are converted once for all tests; everything else leaves nothing behind."""
    if not any(request.node.get_closest_marker(real) for real in ("weights", "vllm")):
        monkeypatch.setenv("LLM_DISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
