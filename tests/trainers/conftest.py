"""Training jobs on tiny students."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers import sft as sft_module
from llm_distill.trainers.hyper import Hyperparameters
from tests.models.conftest import byte_level_tokenizer, tiny


def reviews(count: int) -> list[Sample]:
    """Texts of uneven length, answers of uneven length."""
    made = []
    for i in range(count):
        text = f"Positive or negative? the film was {'good' if i % 2 else 'bad'}{' and dull' * (i * 7 % 5)}. Label:"
        answer = "positive" if i % 2 else "negative, a bad day" if i % 3 else "negative"
        made.append(Sample(f"r{i}", (Message("user", text),), answer))
    return made


def sft(job: TrainingJob, **knobs: Any) -> None:
    """Fine-tuning with some knobs, of which the shared ones are hyperparameters."""
    shared = {f.name for f in fields(Hyperparameters)}
    own = {name: knobs.pop(name) for name in set(knobs) - shared}
    sft_module.sft(job, hyper=Hyperparameters(**knobs), **own)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with SmolLM2's kind of tokenizer: eos is pad, bos opens every turn."""
    return tiny("llama", tmp_path_factory.mktemp("student"), byte_level_tokenizer())


@pytest.fixture
def make_job(student: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    def make(samples: int | list[Sample] = 20, out: str = "out", *, model: Path = student, **more: Any) -> TrainingJob:
        rows = reviews(samples) if isinstance(samples, int) else samples
        return TrainingJob(rows, {"model": str(model), "device": "cpu"}, tmp_path / out, seed=7, **more)

    return make


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the test tried to reach over a network, of which there is none."""
    found: list[object] = []

    def refuse(_self: object, address: object) -> None:
        found.append(address)
        raise OSError("no network here")

    for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: refuse(None, a))
    return found
