"""On-policy distillation from a served teacher: a real tiny model behind what a vLLM server says of a text's tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_distill.errors import UserError
from llm_distill.models import MODELS
from llm_distill.plugs import Plug, Spec, bind
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy
from llm_distill.trainers.server import server
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer, lora, tiny
from tests.trainers.test_gkd import jsd, loaded, plug, watch
from tests.trainers.test_sft import curve, learnt

FREE_OF_CHARGE = {"prompt": 0, "completion": 0}
MakeJob = Callable[..., TrainingJob]


class Served:
    """`POST /v1/completions` with `prompt_logprobs`, as vLLM 0.32 answers it: nothing for the first place, then the top k by
    id with the token that stands there. `trouble` may change what is said of a text.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.asked, self.lock = model, 0, threading.Lock()
        self.trouble: Callable[[list[int], list[Any]], tuple[int, Any] | None] = lambda _ids, _places: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/completions"
                status, answer = outer.answer(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """No line a request."""

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Who gives up, gives up."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, k = body["prompt"], body["prompt_logprobs"]
        assert body["max_tokens"] == 1
        with self.lock, torch.no_grad():
            self.asked += 1
            logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places: list[Any] = [None]
        for place in range(1, len(ids)):
            top = logprobs[place - 1].topk(k).indices.tolist()
            listed = top if ids[place] in top else [ids[place], *top]
            places.append({str(i): {"logprob": float(logprobs[place - 1, i]), "rank": 1} for i in listed})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": places}
        return self.trouble(ids, places) or (200, {"choices": [choice], "model": body["model"]})

    def plug(self, **knobs: Any) -> Plug:
        url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        spec = Spec(
            "openai_api",
            {"model": "teacher", "base_url": url, "api_key_env": None, "prices_usd": FREE_OF_CHARGE} | knobs,
        )
        return bind("model", spec, MODELS, {"folder": Path(), "files": set(), "roles": []})


@pytest.fixture(scope="session")
def tuned(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(student, tmp_path_factory.mktemp("served"))


@pytest.fixture
def served(student: Path, tuned: Path) -> Iterator[Served]:
    fake = Served(loaded(student, tuned))
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def learn(
    job: TrainingJob, *, own: Any = None, top_k: int = 20, beta: float = 0.0, temperature: float = 1.0, **hyper: Any
) -> None:
    rollouts = OnPolicy(**{"warm_up_epochs": 0, "max_new_tokens": 6, "lam": 1.0} | (own or {}))
    knobs = Hyperparameters(**{"learning_rate": 5e-3, "epochs": 2, **hyper})
    server(job, hyper=knobs, own=rollouts, top_k=top_k, beta=beta, temperature=temperature)


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.5, 2.0)])
def test_with_the_whole_vocabulary_it_is_the_dense_loss(
    make_job: MakeJob, served: Served, student: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, beta: float,
    temperature: float,
) -> None:  # fmt: skip
    answered: list[list[list[int]]] = []
    prompts = watch(monkeypatch, answered)
    job = make_job(6, models={"teacher": served.plug(tokenizer=str(student))})
    vocabulary = len(byte_level_tokenizer())
    learn(job, top_k=vocabulary, beta=beta, temperature=temperature, epochs=1, batch_size=6)
    teacher, own, total, count = loaded(student, tuned), loaded(student), 0.0, 0
    for prompt, answer in zip(prompts[0], answered[0], strict=True):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = [m(input_ids=ids).logits[0, len(prompt) - 1 : -1] for m in (teacher, own)]
        p, q = ((one / temperature).log_softmax(-1) for one in logits)
        total, count = total + float(jsd(p, q, beta).sum()) * temperature**2, count + len(answer)
    (line,) = curve(job.out)
    assert line["loss"] == pytest.approx(total / count, rel=1e-4)
    assert line["scored"] == 1
    assert served.asked == 6


def test_it_learns_from_twenty_of_them(make_job: MakeJob, served: Served, student: Path) -> None:
    models = {"teacher": served.plug(tokenizer=str(student))}
    knobs: dict[str, Any] = {"epochs": 10, "batch_size": 20, "learning_rate": 1e-2, "own": {"lam": 0.5}}
    job = make_job(20, models=models)
    learn(job, **knobs)
    read = [line["loss"] for line in curve(job.out) if not line["on_policy"]]
    assert read[-1] < 0.6 * read[0], "on the rows, which are the same each time"
    learn(make_job(20, "again", models=models), **knobs)
    assert learnt(make_job(20, "again").out) == learnt(job.out)


def test_an_answer_that_the_server_cannot_score_is_left_out(make_job: MakeJob, served: Served, student: Path) -> None:
    def null(ids: list[int], places: list[Any]) -> None:
        if sum(ids) % 2:
            places[-1][str(ids[-1])]["logprob"] = None  # a NaN, as JSON has it

    served.trouble = null
    job = make_job(20, models={"teacher": served.plug(tokenizer=str(student))})
    learn(job)
    shares = [line["scored"] for line in curve(job.out)]
    assert 0.1 < sum(shares) / len(shares) < 0.9
    assert max(shares) <= 1


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((200, {"choices": [{"index": 0, "text": "x"}]}), "no prompt_logprobs"),
        ((404, {"error": {"message": "no such path"}}), "HTTP 404; scoring texts needs a vLLM server"),
        ((400, {"error": {"message": "at most 20"}}), r"scores none of 8 answers: HTTP 400.*at most 20"),
    ],
)
def test_what_is_no_vllm_server_is_said(
    make_job: MakeJob, served: Served, student: Path, answer: tuple[int, Any], match: str
) -> None:
    served.trouble = lambda _ids, _places: answer
    with pytest.raises(UserError, match=match):
        learn(make_job(20, models={"teacher": served.plug(tokenizer=str(student))}))


def test_teachers_that_cannot_teach_are_refused_first(
    make_job: MakeJob, served: Served, student: Path, tmp_path: Path
) -> None:
    def refused(models: dict[str, Plug], match: str) -> None:
        job = make_job(20, models=models)
        with pytest.raises(UserError, match=match):
            learn(job, own={"warm_up_epochs": 1.0})
        assert not (job.out / "warm_up").exists(), "before anything is trained"

    other = tiny("gemma3_text", tmp_path / "other", fallback_tokenizer(), sliding_window=12)
    refused({}, "no model 'teacher'")
    refused({"teacher": plug("transformers", model=str(student))}, "teacher is transformers: use gkd")
    refused({"teacher": served.plug()}, "name its `tokenizer`")
    for prices in (None, {"prompt": 0, "completion": 1.5}):
        paid = served.plug(tokenizer=str(student), prices_usd=prices)
        refused({"teacher": paid}, r"past the ledger and every budget.*`prices_usd: \{prompt: 0, completion: 0\}`")
    refused({"teacher": served.plug(tokenizer=str(other))}, r"has another vocabulary.*Use logit_kd")
    assert served.asked == 0
