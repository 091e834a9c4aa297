"""What the student makes of an answer: equal to transformers' own loss, and lower for sentences than for their shuffled words."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.models.scripted import ScriptedModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.scorers import Context
from llm_distill.scorers import student as module
from llm_distill.scorers.student import ifd, perplexity
from llm_distill.tasks import Task
from tests.conftest import ROOT, Desk
from tests.models.conftest import _one_thread, byte_level_tokenizer, fallback_tokenizer, tiny
from tests.scorers.rows import answer

__all__ = ["_one_thread"]
CACHE = ROOT / "data" / "quickstart" / "cache"
STUDENT = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = [
    ("Is it good?", "the film was good"),
    ("And this?", "a dull day, a lovely day"),
    ("Q", "Ça va 😀"),
    ("Why?", "no"),
]


def context(model: Any) -> Context:
    return Context(Task(kind="generate"), model=lambda role: {"student": model}[role])


def own_loss(reference: str, prompt: str, text: str) -> float:
    """transformers' loss of the answer's tokens, one row alone."""
    import torch

    network, tokenizer = weights.load_model(reference, device="cpu"), weights.load_tokenizer(reference)
    if tokenizer.chat_template:
        start = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
    else:
        start = tokenizer(prompt).input_ids
    ids = [*start, *tokenizer(text, add_special_tokens=False).input_ids]
    labels = [-100] * len(start) + ids[len(start) :]
    with torch.no_grad():
        return float(network(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("llama"), byte_level_tokenizer())


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that caps its logits after the head."""
    return tiny("gemma2", tmp_path_factory.mktemp("gemma"), fallback_tokenizer(), final_logit_softcapping=0.5)


@pytest.mark.parametrize("family", ["llama", "capped"])
@pytest.mark.parametrize("logits", [1 << 25, 800])
def test_perplexity_is_transformers_own_loss(
    family: str, logits: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS", logits)  # also a few at a time
    folder = str(request.getfixturevalue(family))
    rows = [answer(text, prompt=prompt) for prompt, text in ROWS]
    found = perplexity(rows, context(TransformersModel(model=folder, device="cpu")), batch_size=3)
    expected = [math.exp(own_loss(folder, prompt, text)) for prompt, text in ROWS]
    assert list(found.values) == pytest.approx(expected, rel=1e-4)
    assert list(found.why) == [None] * 4


def test_ifd_is_the_ratio_of_both(llama: Path) -> None:
    import torch

    prompt, text = ROWS[1]
    found = ifd([answer(text, prompt=prompt)], context(TransformersModel(model=str(llama), device="cpu")))
    network, tokenizer = weights.load_model(str(llama), device="cpu"), weights.load_tokenizer(str(llama))
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        alone = float(network(input_ids=torch.tensor([ids]), labels=torch.tensor([[-100, *ids[1:]]])).loss)
    assert found.values[0] == pytest.approx(math.exp(own_loss(str(llama), prompt, text) - alone), rel=1e-4)


def test_a_row_does_not_depend_on_its_batch(llama: Path) -> None:
    model = context(TransformersModel(model=str(llama), device="cpu"))
    rows = [answer(text * n, prompt=prompt) for n, (prompt, text) in enumerate(ROWS * 3, start=1)]
    for scorer in (perplexity, ifd):
        one, many = scorer(rows, model, batch_size=1).values, scorer(rows, model, batch_size=5).values
        assert list(one) == pytest.approx(list(many), rel=1e-4)


def test_rows_that_are_long_or_empty(llama: Path) -> None:
    model = context(TransformersModel(model=str(llama), device="cpu"))
    rows = [answer("good " * 300), answer("good " * 10, prompt="bad " * 300), answer(""), answer("good")]
    for scorer in (perplexity, ifd):
        found = scorer(rows, model)
        assert [math.isnan(value) for value in found.values] == [False, True, True, False]
        assert (found.why[0] or "").startswith("measured up to token 256 of ")
        assert "the prompt alone has" in (found.why[1] or "")
        assert found.why[2:] == ["the answer is empty", None]
        assert list(scorer([], model).values) == []


def test_a_student_elsewhere_is_an_error() -> None:
    with pytest.raises(UserError, match=r"models.student: .* write `transformers`"):
        perplexity([answer("a")], context(ScriptedModel(rules={}, default="a")))


@pytest.mark.weights
@pytest.mark.skipif(not STUDENT.is_file(), reason="needs `make setup`'s assets")
def test_sentences_are_likelier_than_their_shuffled_words() -> None:
    lines = (CACHE / "prompts.jsonl").read_text("utf-8").splitlines()
    sentences = [text for line in lines if len((text := json.loads(line)["prompt"]).split()) > 6][:10]
    source = random.Random(0)
    shuffled = [" ".join(source.sample(text.split(), len(text.split()))) for text in sentences]
    model = context(TransformersModel(model=str(STUDENT), device="cpu"))
    ask = "Write a sentence from a review."
    rows = [answer(text, prompt=ask) for text in (*sentences, *shuffled)]
    found = perplexity(rows, model)
    real, noise = found.values[:10], found.values[10:]
    assert sum(a < b for a, b in zip(real, noise, strict=True)) >= 9
    assert found.values[0] == pytest.approx(math.exp(own_loss(str(STUDENT), ask, sentences[0])), rel=1e-3)
    question = [
        answer("Paris is the capital of France.", prompt=p)
        for p in ("What is the capital of France?", "How do I boil an egg?")
    ]
    helps, does_not = ifd(question, model).values
    assert helps < does_not
    assert helps < 1


def test_through_a_recipe(llama: Path, desk: Desk) -> None:
    """The student's weights are the recipe's, and verifiers that need nothing but the reference run beside them."""
    desk.seeds([{"prompt": f"{n} and 1?", "reference": str(n + 1)} for n in range(30)])
    recipe = desk.recipe(
        task={"generate": {}},
        models={
            "teacher": {"scripted": {"rules": {"^1?3 and": "4"}, "default": "It is 11."}},
            "student": {"transformers": {"model": str(llama), "device": "cpu"}},
        },
        filter=[{"perplexity": {"max": 1e30}}, {"ifd": {"max": 1e30}}, "numeric"],
    )
    rows = desk.rows(desk.run(recipe, "--until", "filter"), "dropped")
    assert {row["dropped_by"] for row in rows} == {"numeric"}
    assert all(row["score.perplexity"] > 1 and row["score.ifd"] > 0 for row in rows)
    assert all(row["why.numeric"].endswith(f"due {row['reference']}") for row in rows)
