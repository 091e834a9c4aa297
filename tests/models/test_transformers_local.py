from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_distill.errors import Rejected, UserError
from llm_distill.models import weights
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.records import Completion, Message, Request, Sampling
from tests.models.conftest import TEMPLATE, byte_level_tokenizer, lora, tiny

EXAMPLES = "a lovely day -> positive\nan awful day -> negative\n" * 2
TEXTS = ["good", "the phone was bad", "a", "Ein schöner Tag, 日本語 😀", "dull dull dull dull", "good good", "the film"]


def question(text: str, sampling: Sampling, sample: int = 0, examples: str = EXAMPLES) -> Request:
    return Request((Message("system", "Be brief."), Message("user", f"{examples}{text} ->")), sampling, sample)


def answers(model: TransformersModel, requests: Sequence[Request]) -> list[Completion]:
    async def ask() -> list[Completion]:
        try:
            return await asyncio.gather(*map(model.complete, requests))
        finally:
            await model.close()

    return asyncio.run(ask())


def ids_of(answer: Completion) -> list[int]:
    assert answer.logprobs is not None
    assert answer.logprobs.ids is not None
    return answer.logprobs.ids.tolist()  # type: ignore[no-any-return]


def prompt_ids(tokenizer: Any, request: Request) -> list[int]:
    """What the model should see, written out once more."""
    if tokenizer.chat_template is None:
        return tokenizer("\n\n".join(m.content for m in request.messages))["input_ids"]  # type: ignore[no-any-return]
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in request.messages)
    return tokenizer(text + "<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def alone(folder: Path, request: Request) -> tuple[list[int], np.ndarray]:
    """Greedy ids and the full log-softmax (n, vocabulary) at each: no cache, no padding, no batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, start = prompt_ids(tokenizer, request), len(prompt_ids(tokenizer, request))
    rows = []
    with torch.no_grad():
        while len(ids) - start < request.sampling.max_tokens and ids[-1:] != [tokenizer.eos_token_id]:
            rows.append(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy())
            ids.append(int(rows[-1].argmax()))
    return ids[start:], np.stack(rows)


@pytest.mark.parametrize("examples", [EXAMPLES, "", "good " * 3])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_batch_answers_as_each_row_would_alone(kind: str, examples: str, request: pytest.FixtureRequest) -> None:
    """Batched, padded and with a shared beginning: ids and log-softmax are those of a plain forward pass."""
    folder = request.getfixturevalue(kind)
    sampling = Sampling(max_tokens=6, top_logprobs=5)
    asked = [question(text, sampling, examples=examples) for text in TEXTS]
    given = answers(TransformersModel(model=str(folder), batch_size=3), asked)
    for one, answer in zip(asked, given, strict=True):
        ids, expected = alone(folder, one)
        assert ids_of(answer) == ids
        assert answer.completion_tokens == len(ids)
        logprobs = answer.logprobs
        assert logprobs is not None
        assert logprobs.top_ids is not None
        np.testing.assert_allclose(logprobs.logprobs, expected.max(-1), atol=1e-4)
        np.testing.assert_array_equal(logprobs.top_ids, (-expected).argsort(-1)[:, :5])
        np.testing.assert_allclose(logprobs.top_logprobs, np.sort(expected, -1)[:, :-6:-1], atol=1e-4)


def test_greedy_is_the_librarys_own_greedy(llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = [question(text, Sampling(max_tokens=12, top_logprobs=0)) for text in TEXTS]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    for one, answer in zip(asked, answers(TransformersModel(model=str(llama)), asked), strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, one)])
        own = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert ids_of(answer) == own[0, ids.shape[1] :].tolist()
        assert answer.text == tokenizer.decode(ids_of(answer), skip_special_tokens=True)
        assert answer.prompt_tokens == ids.shape[1]


def test_the_shared_beginning_is_run_once(gemma: Path) -> None:
    """Tokens that pass through the model: the examples once, what differs of 12 rows, then one a row and step."""
    model = TransformersModel(model=str(gemma), batch_size=4)
    seen: list[int] = []

    async def ask() -> list[Completion]:
        sampling = Sampling(max_tokens=2, top_logprobs=0, stop=("\x00",))
        warm = await model.complete(question("bad", sampling, examples="x"))
        engine = model._engine
        assert engine is not None
        engine.model.get_input_embeddings().register_forward_hook(lambda _m, given, _out: seen.append(given[0].numel()))
        many = await asyncio.gather(*(model.complete(question(f"good {i}", sampling)) for i in range(10, 22)))
        await model.close()
        return [warm, *many]

    prompt = asyncio.run(ask())[1].prompt_tokens
    assert prompt
    assert sum(seen) < 2 * prompt  # all prompts together are 12 * prompt


def test_sampling_depends_on_the_request_alone(llama: Path) -> None:
    """Not on the batch, its order or its size; another sample, seed or weights give another draw."""
    sampling = Sampling(temperature=1.0, top_p=0.95, max_tokens=8, seed=3)
    asked = [question(text, sampling, sample) for text in TEXTS for sample in range(2)]
    together = [a.text for a in answers(TransformersModel(model=str(llama), batch_size=5), asked)]
    backwards = [a.text for a in answers(TransformersModel(model=str(llama), batch_size=16), asked[::-1])]
    one_by_one = [answers(TransformersModel(model=str(llama)), [one])[0].text for one in asked[:3]]
    assert together == backwards[::-1]
    assert together[:3] == one_by_one
    assert len(set(together)) > len(TEXTS)  # the two samples of a text differ
    reseeded = [question(text, Sampling(temperature=1.0, top_p=0.95, max_tokens=8, seed=4)) for text in TEXTS]
    assert [a.text for a in answers(TransformersModel(model=str(llama)), reseeded)] != together[::2]


def test_sampling_draws_from_the_tempered_nucleus(llama: Path) -> None:
    one = question("good", Sampling(max_tokens=1, top_logprobs=0))
    shares = np.exp(alone(llama, one)[1][0].astype(np.float64) / 0.7)
    shares /= shares.sum()
    order = (-shares).argsort()
    kept = order[: int((shares[order].cumsum() < 0.6).sum()) + 1]
    sampling = Sampling(temperature=0.7, top_p=0.6, max_tokens=1, top_logprobs=0)
    draws = answers(
        TransformersModel(model=str(llama), batch_size=64), [question("good", sampling, i) for i in range(512)]
    )
    counts = Counter(ids_of(draw)[0] for draw in draws)
    assert counts.keys() <= set(kept.tolist())
    expected = 512 * shares[kept] / shares[kept].sum()
    got = np.array([counts[token] for token in kept])
    assert (np.abs(got - expected) < 4.5 * np.sqrt(expected) + 1).all()


def test_a_stop_string_ends_the_text_before_itself(llama: Path) -> None:
    """Also one that spans tokens; the row ends there, and others go on."""
    free = answers(TransformersModel(model=str(llama)), [question("good", Sampling(max_tokens=12, top_logprobs=0))])[0]
    assert free.logprobs is not None
    tokens = free.logprobs.tokens
    stop = (tokens[3] + tokens[4][:1]).decode("latin-1")
    if not stop.isascii():
        stop = tokens[3].decode()
    stopping = Sampling(max_tokens=12, top_logprobs=0, stop=("never there", stop))
    cut, other = answers(TransformersModel(model=str(llama)), [question("good", stopping), question("a", stopping)])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens is not None
    assert cut.completion_tokens <= 5
    assert free.finish_reason == "length"
    assert (other.completion_tokens or 0) > 5


def test_the_checkpoints_sampling_is_ignored_and_all_its_ends_are_used(llama: Path, tmp_path: Path) -> None:
    asked = [question(text, Sampling(max_tokens=10, top_logprobs=0)) for text in TEXTS]
    plain = answers(TransformersModel(model=str(llama)), asked)
    common = Counter(token for answer in plain for token in ids_of(answer)[1:]).most_common(1)[0][0]
    folder = tmp_path / "opinionated"
    shutil.copytree(llama, folder)
    opinions: dict[str, Any] = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "repetition_penalty": 1.9,
        "min_new_tokens": 9,
    }
    opinions |= {"max_length": 20, "no_repeat_ngram_size": 1, "eos_token_id": [2, common], "num_beams": 2}
    (folder / "generation_config.json").write_text(json.dumps(opinions))
    ended = answers(TransformersModel(model=str(folder)), asked)
    for before, after in zip(plain, ended, strict=True):
        ids = ids_of(before)
        expected = ids[: ids.index(common) + 1] if common in ids else ids
        assert ids_of(after) == expected
        assert after.finish_reason == ("stop" if expected[-1] in (2, common) else "length")
        assert after.logprobs is not None
        text = b"".join(after.logprobs.tokens[: -1 if after.finish_reason == "stop" else None])
        assert text.decode(errors="replace") == after.text


def test_a_row_that_does_not_fit_fails_alone(llama: Path) -> None:
    sampling = Sampling(max_tokens=8)
    model = TransformersModel(model=str(llama))

    async def ask() -> list[Completion | BaseException]:
        asked = [question("good " * 300, sampling), question("good", sampling)]
        return await asyncio.gather(*map(model.complete, asked), return_exceptions=True)

    long, short = asyncio.run(ask())
    assert isinstance(long, Rejected)
    assert "exceed the context of 256" in str(long)
    assert isinstance(short, Completion)


def test_a_template_that_refuses_a_role_is_that_rows_reason(tmp_path: Path) -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    folder = tiny("llama", tmp_path / "picky", byte_level_tokenizer(picky + TEMPLATE))
    with pytest.raises(Rejected, match="System role not supported"):
        answers(TransformersModel(model=str(folder)), [question("good", Sampling(max_tokens=2))])


def test_early_batches_are_answered_before_late_ones(llama: Path) -> None:
    model = TransformersModel(model=str(llama), batch_size=1)
    order: list[int] = []

    async def ask() -> None:
        async def one(place: int, text: str) -> None:
            await model.complete(question(text, Sampling(max_tokens=2), examples=""))
            order.append(place)

        longest_first = ["good " * n for n in (9, 6, 3)]
        await asyncio.gather(*(one(place, text) for place, text in enumerate(longest_first)))

    asyncio.run(ask())
    assert order == [0, 1, 2]


def test_a_cancelled_question_holds_nobody_up(llama: Path) -> None:
    model = TransformersModel(model=str(llama), batch_size=2)

    async def ask() -> Completion:
        long = asyncio.create_task(model.complete(question("good", Sampling(max_tokens=180), examples="")))
        await asyncio.sleep(0.05)
        long.cancel()
        answer = await model.complete(question("bad", Sampling(max_tokens=2)))
        assert long.cancelled()
        return answer

    assert asyncio.run(ask()).completion_tokens == 2
    assert len(answers(model, [question("bad", Sampling(max_tokens=2))])) == 1  # another loop, as every stage has


def test_closing_lets_go_of_everybody(llama: Path) -> None:
    async def ask() -> None:
        model = TransformersModel(model=str(llama))
        waiting = asyncio.create_task(model.complete(question("good", Sampling(max_tokens=2))))
        await asyncio.sleep(0)
        await model.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(ask())


def test_a_model_that_cannot_be_loaded_is_the_users_to_repair(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    model = TransformersModel(model=str(folder))
    with pytest.raises(UserError, match="torn: cannot be loaded"):
        answers(model, [question("good", Sampling(max_tokens=2))])


def test_a_bug_keeps_its_traceback(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.models.decoding.Draw.settle", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(TransformersModel(model=str(llama)), [question("good", Sampling(max_tokens=2))])


def test_out_of_memory_halves_the_batch(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from llm_distill.models.decoding import Batch, Engine

    generate, sizes = Engine._generate, []

    def tight(self: Engine, batch: Batch) -> None:
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2 or "dull" in batch.rows[0].request.messages[1].content:
            raise torch.OutOfMemoryError
        generate(self, batch)

    monkeypatch.setattr(Engine, "_generate", tight)
    asked = [question(text, Sampling(max_tokens=2)) for text in ("good", "bad", "a", "the film")]
    assert len(answers(TransformersModel(model=str(llama)), asked)) == 4
    assert sizes == [4, 2, 2]
    with pytest.raises(Rejected, match="do not fit the GPU's memory"):
        answers(TransformersModel(model=str(llama)), [question("dull", Sampling(max_tokens=2))])


def test_identity_follows_the_content_and_needs_no_torch(llama: Path, tmp_path: Path) -> None:
    elsewhere, changed = tmp_path / "elsewhere", tmp_path / "changed"
    shutil.copytree(llama, elsewhere)
    shutil.copytree(llama, changed)
    (changed / "chat_template.jinja").write_text("{{ messages }}")
    code = (
        "import sys; from llm_distill.models.transformers_local import TransformersModel as M\n"
        "print(*[M(model=m).identity for m in sys.argv[1:]], M(model=sys.argv[1], dtype='bfloat16').identity)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, *map(str, (llama, elsewhere, changed)), "org/name"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert out[0] == out[1]
    assert len(set(out)) == 4


def test_an_adapter_is_merged_into_its_base(llama: Path, tmp_path: Path) -> None:
    import torch

    adapter = lora(llama, tmp_path / "student")
    one = question("good", Sampling(max_tokens=1, top_logprobs=3))
    answer = answers(TransformersModel(model=str(llama), adapter=str(adapter)), [one])[0]
    ids = prompt_ids(weights.load_tokenizer(str(llama)), one)
    expected = weights.load_model(str(llama), adapter=str(adapter))(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert answer.logprobs is not None
    np.testing.assert_allclose(answer.logprobs.top_logprobs[0], expected.topk(3).values.tolist(), atol=1e-4)
    assert answer.model == f"{llama.name}+student"
