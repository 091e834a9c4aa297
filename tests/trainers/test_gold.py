"""On-policy distillation between two tokenizers, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.gold import Gold, _equal, _spans, digits, gold
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy
from tests.models.conftest import blank_before, byte_level_tokenizer, fallback_tokenizer, lora, tiny
from tests.trainers.conftest import reviews, sft
from tests.trainers.test_gkd import jsd, plug
from tests.trainers.test_sft import curve, learnt

MakeJob = Callable[..., TrainingJob]


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with Gemma's kind of tokenizer."""
    return tiny("llama", tmp_path_factory.mktemp("foreign"), fallback_tokenizer(), initializer_range=0.5)


@pytest.fixture(scope="session")
def trained(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of that model which knows what is positive and what is negative."""
    out = tmp_path_factory.mktemp("trained")
    sft(TrainingJob(reviews(20), {"model": str(foreign), "device": "cpu"}, out, seed=3), epochs=16, learning_rate=1e-2)
    return out


def learn(job: TrainingJob, *, own: Any = None, beta: float = 0.5, temperature: float = 1.0, **hyper: Any) -> None:
    rollouts = OnPolicy(**{"warm_up_epochs": 0, "max_new_tokens": 6, "lam": 0.5} | (own or {}))
    knobs = Hyperparameters(**{"learning_rate": 5e-3, "epochs": 2, **hyper})
    gold(job, hyper=knobs, own=rollouts, beta=beta, temperature=temperature)


def teaching(teacher: Path, theirs: Any, student: Path, samples: list[Sample], beta: float = 0.5) -> Gold:
    own = weights.load_model(str(student), device="cpu")
    desk: Any = SimpleNamespace(model=own, tokenizer=byte_level_tokenizer(), device=torch.device("cpu"))
    return Gold(weights.load_model(str(teacher), device="cpu"), theirs, desk, samples, beta, 1.0)


def test_it_learns_from_another_vocabulary(make_job: MakeJob, foreign: Path, trained: Path) -> None:
    models = {"teacher": plug("transformers", model=str(foreign), adapter=str(trained))}
    job = make_job(20, models=models)
    knobs: dict[str, Any] = {"epochs": 20, "batch_size": 20, "learning_rate": 1e-2}
    learn(job, **knobs)
    lines = curve(job.out)
    read = [line["loss"] for line in lines if not line["on_policy"]]
    assert read[-1] < 0.5 * read[0], "on the rows, which are the same each time"
    assert all(line["aligned"] == 1 for line in lines if not line["on_policy"]), "the teacher's own texts"
    assert all(0 < line["aligned"] <= 1 for line in lines)
    learn(make_job(20, "again", models=models), **knobs)
    assert learnt(make_job(20, "again").out) == learnt(job.out)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_the_same_tokens_it_is_the_dense_divergence(student: Path, tmp_path: Path, beta: float) -> None:
    """Where all is matched, ULD's hybrid loss is the JSD: shifted rightly, to the answer's end."""
    teacher = tiny("llama", tmp_path / "teacher", byte_level_tokenizer(), num_hidden_layers=1)
    samples = reviews(2)
    judge = teaching(teacher, byte_level_tokenizer(), student, samples, beta)
    tokenizer, end = byte_level_tokenizer(), byte_level_tokenizer().eos_token_id
    answers = [[*tokenizer(text)["input_ids"], end] for text in ("a good day", "bad 😀")]
    own, width = weights.load_model(str(student), device="cpu"), max(map(len, answers))
    other = weights.load_model(str(teacher), device="cpu")
    logits, expected = torch.zeros(2, width, len(tokenizer)), 0.0
    for row, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        turns = [{"role": "user", "content": sample.messages[0].content}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            states, theirs = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1] for m in (own, other))
        logits[row, : len(answer)] = states
        text = [i for i in range(len(tokenizer)) if i not in Vocabulary.of(tokenizer).special] + [end]
        p, q = (x.log_softmax(-1)[:, text] for x in (theirs, states))
        expected += float(jsd(p, q, beta).sum()) * len(text) / len(tokenizer)
        rest = [i for i in range(len(tokenizer)) if i not in text]
        p, q = (x.softmax(-1)[:, rest].sort(descending=True).values for x in (theirs, states))
        expected += float((p - q).abs().sum()) * len(rest) / len(tokenizer)
    found, parts = judge.loss(logits, [0, 1], answers)
    assert float(found) == pytest.approx(expected, rel=1e-3)
    assert parts["aligned"] == sum(map(len, answers))


def test_an_answer_is_read_up_to_what_is_no_text(student: Path, foreign: Path) -> None:
    judge = teaching(foreign, fallback_tokenizer(), student, reviews(1))
    tokenizer = byte_level_tokenizer()

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    end, half = tokenizer.eos_token_id, ids("😀")[:1]
    assert len(ids("😀")) > 1
    whole = judge._read([*ids(" good 日本 2024"), end])
    assert whole.ours[-1] == end
    assert whole.theirs[-1] == fallback_tokenizer().eos_token_id
    for spans in (whole.our_spans, whole.their_spans):
        assert spans[-1] == (len(" good 日本 2024".encode()),) * 2
        assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    cut = judge._read([*ids("good"), *half, end])
    assert cut.ours == tuple(ids("good"))
    assert fallback_tokenizer().decode(cut.theirs) == "good"
    assert judge._read([*half, end]).ours == ()
    assert judge._read([*ids("good"), tokenizer.bos_token_id, *ids("bad"), end]).ours == tuple(ids("good"))
    assert judge._read([end]).theirs == (fallback_tokenizer().eos_token_id,), "nothing but an end"
    assert judge._read(ids("good")).ours == tuple(ids("good")), "cut off: no end to compare"


def test_a_blank_that_the_teachers_tokenizer_puts_is_the_answers(student: Path, foreign: Path) -> None:
    tokenizer, theirs = byte_level_tokenizer(), blank_before()
    judge = teaching(foreign, theirs, student, reviews(1))
    for text in (" good", "good"):
        read = judge._read(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert theirs.convert_ids_to_tokens(list(read.theirs)) == ["▁good"]


def test_tokens_are_equal_by_their_bytes() -> None:
    theirs, ours = fallback_tokenizer(), byte_level_tokenizer()
    found = _equal(Vocabulary.of(theirs), len(theirs), Vocabulary.of(ours), len(ours))
    spelt = {theirs.convert_ids_to_tokens(i): ours.convert_ids_to_tokens(j) for i, j in found.items()}
    assert spelt["▁the"] == "Ġthe"
    assert spelt["<0xF0>"] == "ð"
    assert len(set(found.values())) == len(found), "one for one"
    assert not {"<eos>", "<bos>", "<pad>"} & set(spelt)


def test_a_text_that_is_spelt_otherwise_is_not_compared() -> None:
    assert _spans([b"a", b"bc"], b"abc") == [(0, 1), (1, 3)]
    assert _spans([b" a", b"bc"], b"abc") == [(0, 1), (1, 3)], "a blank put in front, as Llama 2 has it"
    assert _spans([b"A", b"bc"], b"abc") is None
    assert _spans([], b"") == []


def test_digits_are_warned_of() -> None:
    numbers = [Sample(str(i), (Message("user", "?"),), f"it is 20{i}") for i in range(10, 30)]
    said = digits(numbers, byte_level_tokenizer(), fallback_tokenizer())
    assert said is not None
    assert "20 of 20 answers hold numbers" in said
    assert "2605.21699" in said
    assert digits(numbers, byte_level_tokenizer(), byte_level_tokenizer()) is None
    assert digits(reviews(20), byte_level_tokenizer(), fallback_tokenizer()) is None


def test_the_students_own_vocabulary_is_gkds(make_job: MakeJob, student: Path, tmp_path: Path) -> None:
    adapter = lora(student, tmp_path / "adapter")
    models = {"teacher": plug("transformers", model=str(student), adapter=str(adapter))}
    with pytest.raises(UserError, match="teacher has the student's own: use gkd"):
        learn(make_job(20, models=models))
    with pytest.raises(UserError, match=r"train.gold needs the teacher's weights, but teacher is vllm"):
        learn(make_job(20, models={"teacher": plug("vllm", model=str(student))}))
