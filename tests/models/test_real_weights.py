"""The two checkpoints of the quickstart, as they come from the registry. Minutes; the conversion is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from llm_distill.models import gguf, weights
from llm_distill.models.decoding import encode
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from llm_distill.records import Message, Request, Sampling

pytestmark = [pytest.mark.weights, pytest.mark.timeout(600)]
CACHE = Path(__file__).parents[2] / "data" / "quickstart" / "cache"
GEMMA = CACHE / "gemma-3-270m-q4_k_m.gguf"
SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {
    GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    SMOLLM: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
TEXT = "Hello  2024!\n\n\tÇa va très bien. Grüße aus 東京 и Київ, வணக்கம் 👩‍👩‍👧 — don't «x» \x00\x7f"
needs_assets = pytest.mark.skipif(not GEMMA.is_file(), reason="needs data/quickstart/prepare.py")


@needs_assets
@pytest.mark.parametrize("file", SHA256, ids=lambda file: file.stem)
def test_the_converted_folder_says_what_the_gguf_says(file: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights.prepare(str(file), SHA256[file])
    model, tokenizer = weights.load_model(str(file), device="cpu"), weights.load_tokenizer(str(file))
    with gguf._read_once_in_silence():  # or Gemma's vocabulary is parsed four times
        packed = AutoModelForCausalLM.from_pretrained(CACHE, gguf_file=file.name, dtype=torch.float32)
        plain = AutoTokenizer.from_pretrained(CACHE, gguf_file=file.name)
    ids = torch.tensor([tokenizer("The film was not bad at all, and").input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, packed(ids).logits)
    assert tokenizer(TEXT.replace("  2024", " twice")).input_ids == plain(TEXT.replace("  2024", " twice")).input_ids
    assert tokenizer.get_vocab() == plain.get_vocab()
    assert tokenizer.chat_template == plain.chat_template
    vocabulary = Vocabulary.of(tokenizer)
    spelled = [vocabulary.token(token) for token in tokenizer(TEXT, add_special_tokens=False).input_ids]
    assert b"".join(spelled) == TEXT.encode()
    for reference in (str(file), weights.prepare(str(file))):  # read without transformers
        read = read_vocabulary(reference)
        assert all(read.token(number) == vocabulary.token(number) for number in range(len(tokenizer)))
        assert read.special == vocabulary.special


@needs_assets
def test_the_special_tokens_are_where_they_belong() -> None:
    gemma, smollm = weights.load_tokenizer(str(GEMMA)), weights.load_tokenizer(str(SMOLLM))
    assert (gemma.bos_token_id, gemma.eos_token_id, gemma.pad_token_id) == (2, 1, 0)
    assert gemma.chat_template is None
    assert gemma("a").input_ids.count(2) == 1
    assert smollm.convert_tokens_to_ids("<|im_end|>") == smollm.eos_token_id == smollm.pad_token_id == 2
    assert smollm("a").input_ids.count(smollm.bos_token_id) == 0
    assert not [piece for piece in smollm.get_vocab() if sum(letter.isdigit() for letter in piece) > 1]
    assert smollm.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]


@needs_assets
def test_the_teacher_with_its_examples_run_once_answers_as_without() -> None:
    """More than a window of 512 tokens of examples: the sliding layers must not see the padding."""
    import torch

    examples = "".join(f"Text: {text}\nSentiment: {label}\n\n" for text, label in EXAMPLES * 8)
    texts = ["What a waste of money.", "I love it!", "The plot is thin, but the actors save it and I would go again."]
    sampling = Sampling(max_tokens=3, top_logprobs=20, stop=("\n",))
    asked = [Request((Message("user", f"{examples}Text: {text}\nSentiment:"),), sampling) for text in texts]
    model = TransformersModel(model=str(GEMMA), device="cpu")

    async def ask() -> None:
        answers = await asyncio.gather(*map(model.complete, asked))
        engine = model._engine
        assert engine is not None
        for one, answer in zip(asked, answers, strict=True):
            ids = encode(engine.tokenizer, one.messages)
            assert len(ids) > 512
            assert ids.count(2) == 1
            with torch.no_grad():
                expected = engine.model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].log_softmax(-1)
            assert answer.text in {" positive", " negative"}
            assert answer.logprobs is not None
            top = expected.topk(20)
            np.testing.assert_allclose(answer.logprobs.top_logprobs[0], top.values.numpy(), atol=1e-3)
        assert [answer.text for answer in answers] == [" negative", " positive", " positive"]
        await model.close()

    asyncio.run(ask())


EXAMPLES = [
    ("The screen broke on the second day and nobody helps.", "negative"),
    ("A warm and funny film, the best of the year.", "positive"),
    ("Dull from start to end.", "negative"),
    ("Happy with this one, it does all that I need!", "positive"),
]


@needs_assets
def test_the_student_ends_its_turn() -> None:
    asked = Request((Message("user", "Say hello."),), Sampling(max_tokens=40, top_logprobs=2))
    model = TransformersModel(model=str(SMOLLM), device="cpu")
    answer = asyncio.run(model.complete(asked))
    assert answer.finish_reason == "stop"
    assert answer.logprobs is not None
    assert answer.logprobs.tokens[-1] == b"<|im_end|>"
    assert b"".join(answer.logprobs.tokens[:-1]) == answer.text.encode()
