"""magpie: the prefix of a template, where a turn ends, and what a real aligned model says by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.generators import Context
from llm_distill.generators.magpie import Turn, opening
from llm_distill.models import Model, weights
from llm_distill.models.decoding import encode
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.openai_batch import OpenAIBatchModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vllm_server import VllmModel
from llm_distill.records import Completion, Entry, Message, Request, Sampling
from tests.generators.writing import GENERATE, Writer, at_most, bound, texts
from tests.models.conftest import TEMPLATE, byte_level_tokenizer, fallback_tokenizer, tiny
from tests.models.test_real_weights import SMOLLM, needs_assets


class Local(Model):
    """A model with a tokenizer and nothing else."""

    identity = "local"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokenizer(self) -> Any:
        return self._tokenizer


def of(template: str, tokenizer: Any = None, **knobs: Any) -> Turn:
    tokenizer = tokenizer or byte_level_tokenizer(None)
    tokenizer.chat_template = template
    return opening(Local(tokenizer), "teacher", knobs.get("prefix"), knobs.get("system"))[0]


def test_the_prefix_is_the_template_up_to_the_users_words() -> None:
    assert of(TEMPLATE) == Turn("<|im_start|>user\n", "<|im_end|>")
    assert of(TEMPLATE, system="You know tax law.") == Turn(
        "<|im_start|>system\nYou know tax law.<|im_end|>\n<|im_start|>user\n", "<|im_end|>"
    )
    plain = (
        "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    assert of(plain) == Turn("USER: ", "ASSISTANT:")
    assert of(TEMPLATE, prefix="<|im_start|>user\nHow") == Turn("<|im_start|>user\nHow", None)


def test_a_bos_that_the_tokenizer_adds_stands_there_once() -> None:
    tokenizer = fallback_tokenizer()
    turn = of("<bos>user: {{ messages[-1]['content'] }}<eos>", tokenizer)
    assert turn == Turn("user: ", "<eos>")
    assert tokenizer(turn.prefix).input_ids.count(tokenizer.bos_token_id) == 1


def test_templates_that_cannot_be_used_are_told_apart() -> None:
    with pytest.raises(UserError, match="refuses these turns: no system here; write a `prefix`"):
        of(
            "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}{{ messages[0]['content'] }}",
            system="x",
        )
    for template in ("always the same", "{{ messages[0]['content'] }}", "<{{ messages[0]['content'] * 2 }}>"):
        with pytest.raises(UserError, match="does not set a user's words off; write a `prefix`"):
            of(template)
    with pytest.raises(UserError, match=r"models\.teacher is a base model"):
        opening(Local(fallback_tokenizer()), "teacher", None, None)


def test_who_takes_conversations_only_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "magpie needs a model whose text can be continued raw: models.teacher"
    for closed in (OpenAIModel(model="gpt-5"), OpenAIBatchModel(model="gpt-5")):
        for prefix in (None, "<|im_start|>user\n"):
            with pytest.raises(UserError, match=f"{refused} takes conversations only"):
                opening(closed, "teacher", prefix, None)
    own = OpenAIModel(model="local", base_url="http://127.0.0.1:8080/v1")
    with pytest.raises(UserError, match=f"{refused} has no chat template here.*or write its `prefix`"):
        opening(own, "teacher", None, None)
    assert opening(own, "teacher", "<|im_start|>user\n", None)[0] == Turn("<|im_start|>user\n", None)
    writer = Writer(lambda _: "")
    with pytest.raises(UserError, match=refused):
        writer.run("magpie", rows=3)
    assert writer.rounds == []
    with pytest.raises(UserError, match="found `prefix` and `system`"):
        writer.run("magpie", rows=3, prefix="x", system="y")
    with pytest.raises(UserError, match="found `prefix` and `system`"):
        at_most("magpie", 0, rows=3, prefix="x", system="y")


def test_a_vllm_server_that_would_run_past_the_users_turn_is_refused(tmp_path: Path) -> None:
    ends = byte_level_tokenizer("{{ bos_token }}user {{ messages[0]['content'] }}<|endoftext|>assistant ")
    folder = tiny("llama", tmp_path / "m", ends)
    with pytest.raises(UserError, match=r"'<\|endoftext\|>' ends the user's turn .*skip_special_tokens: false"):
        opening(VllmModel(model=str(folder)), "teacher", None, None)
    spelt = VllmModel(model=str(folder), extra_body={"skip_special_tokens": False})
    assert opening(spelt, "teacher", None, None)[0].end == "<|endoftext|>"
    usual = tiny("llama", tmp_path / "n", byte_level_tokenizer())
    assert opening(VllmModel(model=str(usual)), "teacher", None, None)[0].end == "<|im_end|>"


def test_a_local_model_ends_at_a_special_token_that_is_named_as_a_stop(tmp_path: Path) -> None:
    """Its text holds no special tokens, and its own end is another one."""
    model = TransformersModel(model=str(tiny("llama", tmp_path / "m", byte_level_tokenizer())), device="cpu")
    turn, special = opening(model, "teacher", None, None)
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    sampling = Sampling(temperature=1.0, max_tokens=60, stop=("<|endoftext|>",), top_logprobs=0)
    asked = [Request(_raw(turn.prefix), sampling, sample=n, raw=True) for n in range(60)]
    answers = asyncio.run(_all(model, asked))
    tokens = [list(answer.logprobs.tokens) for answer in answers if answer.logprobs]
    ended = [answer for answer, said in zip(answers, tokens, strict=True) if b"<|endoftext|>" in said]
    assert ended
    assert all(answer.finish_reason == "stop" for answer in ended)
    assert not any(b"<|endoftext|>" in said[:-1] for said in tokens)


def _raw(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


async def _all(model: Model, asked: Sequence[Request]) -> list[Completion]:
    answers = await asyncio.gather(*map(model.complete, asked))
    await model.close()
    return answers


def test_what_it_says_is_sifted_and_asked_for_again() -> None:
    said: Iterator[str | Entry] = iter([
        "How do I prune an old apple tree?", "how do I prune an OLD apple tree? ", "", "Hi there",
        "Is it 3 pm?<|im_end|>\nassistant", "What is this?\nassistant\nIt is a list.", "Fix this code for me:",
        Entry("", "truncated", text="and on and on"), "Why do cats purr when they sleep?", "Which planet has the most moons?",
    ])  # fmt: skip
    writer = Writer(lambda _: next(said))
    found = writer.run("magpie", rows=3, prefix="<|user|>", one_line=False, surplus=10, stop=["<|end|>"])
    assert texts(found)[:1] == ["How do I prune an old apple tree?"]
    assert [len(asked) for asked in writer.rounds] == [3, 2]
    assert "the last of which added nothing" in writer.said[0]
    request = writer.asked[4]
    assert request.raw
    assert request.sample == 4
    assert request.messages[0].content == "<|user|>"
    assert request.sampling.stop == ("<|end|>",)
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)


def test_every_reason_has_its_count() -> None:
    said = [
        "Is it 3 pm now?<|im_end|>", "What is this here?\nassistant\nIt is a list.", "Hi there", "Fix this code for me:",
        "Why do cats purr when they sleep?", "Why do cats purr while they sleep?",
    ]  # fmt: skip
    each = iter(said)
    writer = Writer(lambda _: next(each))
    found = writer.run("magpie", rows=6, prefix="<|user|>", surplus=1)
    assert len(found) == 1
    assert writer.said == [
        "magpie: 1 of 6 rows from 6 questions, as many as `surplus` allows; thrown away: 2 with tokens of a template, "
        "1 too short, 1 unfinished, 1 not new"
    ]
    assert writer.asked[0].sampling.stop == ("\n",)


def test_check_says_what_it_may_come_to() -> None:
    assert at_most("magpie", 0, rows=10) == (10, 40, 50, 512)
    with pytest.raises(UserError, match="temperature"):
        bound("magpie", rows=1, temperature=0)


@needs_assets
@pytest.mark.weights
@pytest.mark.timeout(1200)
def test_a_real_aligned_model_says_what_users_say() -> None:
    tokenizer = weights.load_tokenizer(str(SMOLLM))
    model = TransformersModel(model=str(SMOLLM), device="cpu")
    turn, _ = opening(model, "teacher", None, None)
    assert turn.prefix.endswith("<|im_end|>\n<|im_start|>user\n")
    assert turn.prefix.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert turn.end == "<|im_end|>"
    ids = encode(tokenizer, _raw(turn.prefix), raw=True)
    whole = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], return_dict=False)
    assert whole[: len(ids)] == ids  # special tokens are special tokens, and none stands twice

    def ask(_role: str, requests: Sequence[Request]) -> list[Entry]:
        return [Entry("", one.status, text=one.text) for one in asyncio.run(_all(model, requests))]

    said: list[str] = []
    plug = bound("magpie", rows=12, max_tokens=64)
    found = list(plug(Context((), GENERATE, ask, lambda _role: model, said.append)))
    assert len(found) >= 10, said
    assert sum("?" in text for text in texts(found)) >= 4
    assert not any("<|" in text or "\n" in text or text.strip() == "assistant" for text in texts(found))
