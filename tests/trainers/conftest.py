"""Tiny students with real tokenizers, made in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
WORDS = [
    "the film was good",
    "the film was bad",
    "a dull phone",
    "what a lovely day",
    "positive",
    "negative",
    "terrible",
]


def tiny_tokenizer(template: str | None = CHATML, *, adds_bos: bool = False, eos: str = "<|im_end|>") -> Any:
    """A byte-level BPE of a few hundred words; pad == eos, as SmolLM2 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<|eot|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([f"{w} {w}s" for w in WORDS] * 5, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>" if adds_bos or template == LLAMA3 else "<|im_start|>",
        eos_token=eos,
        pad_token=eos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|eot|>"],
        chat_template=template,
    )


def tiny_model(kind: str = "llama", vocabulary: int = 400, **more: Any) -> Any:
    """Two layers of random weights, seeded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        **more,
    )
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ChatML student."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = tiny_tokenizer()
    tiny_model(vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_samples(count: int) -> list[Sample]:
    """Reviews of uneven length, half of them positive."""
    out = []
    for i in range(count):
        good = i % 2 == 0
        text = ("the film was good" if good else "the film was bad") + " and terrible" * (i % 5)
        out.append(Sample(f"r{i}", (Message("user", f"{text}. Label:"),), "positive" if good else "negative"))
    return out


@pytest.fixture
def make_job(student: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    """A training job on the tiny student, into a folder of its own."""

    def make(samples: int | list[Sample] = 20, out: str = "out", **more: Any) -> TrainingJob:
        rows = make_samples(samples) if isinstance(samples, int) else samples
        return TrainingJob(rows, {"model": str(student), "device": "cpu"}, tmp_path / out, seed=7, **more)

    return make
