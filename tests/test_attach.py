"""Logprobs for answers that came without: what an open model finds likely, with the alignment proven."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_distill import stages, store
from llm_distill.attach import Text, as_read
from llm_distill.collect import collect
from llm_distill.errors import UserError
from llm_distill.logprob_table import batches, token_bytes
from llm_distill.models import weights
from llm_distill.models.decoding import encode
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.recipe import load
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.tasks import Task
from tests.conftest import Desk
from tests.models.conftest import blank_before, byte_level_tokenizer, fallback_tokenizer, tiny

TEXTS = [
    "the good day",
    "Ça va très bien 😀",
    "a lovely day, 2024",
    " \n blank",
    "日本語の文。",
    "<|im_end|> spelt out",
]


@pytest.fixture(scope="module", params=["byte_level", "fallback"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, and a base model with pieces: both kinds of tokenizer."""
    home = tmp_path_factory.mktemp("reader")
    if request.param == "byte_level":
        return tiny("llama", home, byte_level_tokenizer())
    return tiny("gemma3_text", home, fallback_tokenizer(), layer_types=["full_attention"] * 2)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("chat"), byte_level_tokenizer())


def job(desk: Desk, **keys: Any) -> Path:
    """A closed teacher that gives free text without logprobs."""
    desk.seeds([{"prompt": f"say {i}: {text[:3]}"} for i, text in enumerate(TEXTS)])
    rules = {f"say {i}:": text for i, text in enumerate(TEXTS)}
    settings: dict[str, Any] = {
        "task": "generate",
        "models": {"teacher": {"scripted": {"rules": rules}}},
        "answers": {"max_tokens": 64},
    }
    return desk.recipe(**settings | keys)


def with_reader(desk: Desk, reader: Path, **keys: Any) -> Path:
    recipe = job(desk)
    teacher = load(recipe).raw["models"]["teacher"]
    local = {"transformers": {"model": str(reader), "device": "cpu"}}
    return job(
        desk, models={"teacher": teacher, "open": local},
        answers={"max_tokens": 64, "attach": {"model": "open", "top_logprobs": 5}}, **keys,
    )  # fmt: skip


def folder(summary: dict[str, Any]) -> store.RunFolder:
    return store.RunFolder(Path(summary["run"]))


def test_every_token_has_the_logprob_of_a_forward_pass(desk: Desk, reader: Path) -> None:
    summary = desk.here(with_reader(desk, reader))
    run = folder(summary)
    answers = {a.prompt.row_id: a for a in store.read_answers(run.file("answers.parquet"))}
    tokenizer, model = weights.load_tokenizer(str(reader)), weights.load_model(str(reader), device="cpu")
    vocabulary, seen = Vocabulary.of(tokenizer), 0
    for batch in batches(run.file("logprobs.parquet")):
        for row, row_id in enumerate(batch.row_ids):
            own = slice(batch.offsets[row], batch.offsets[row + 1])
            ids, logprobs = batch.ids[own].tolist(), batch.logprobs[own]
            prompt = encode(tokenizer, answers[row_id].prompt.messages)
            with torch.no_grad():
                truth = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = truth.gather(-1, torch.tensor(ids)[:, None])[:, 0].numpy()
            np.testing.assert_allclose(logprobs, expected, atol=2e-2)  # float16
            best = truth.topk(5).indices.tolist()
            for place, token in enumerate(range(own.start, own.stop)):
                tops = batch.top_ids[batch.top_offsets[token] : batch.top_offsets[token + 1]].tolist()
                assert set(best[place]) <= set(tops)
                assert len(tops) <= 6
            text = b"".join(vocabulary.token(i) for i in ids if i not in vocabulary.special).decode()
            assert text == answers[row_id].text
            assert answers[row_id].mean_logprob == pytest.approx(float(expected.mean()), abs=1e-3)
            seen += 1
    assert seen == len(TEXTS)
    (spelling,) = token_bytes(run.file("logprobs.parquet")).values()
    assert all(spelling[number] == vocabulary.token(number) for number in spelling)


def test_a_whole_answer_of_a_chat_model_ends_with_its_end_of_turn(desk: Desk, chat: Path) -> None:
    run = folder(desk.here(with_reader(desk, chat)))
    end = weights.load_tokenizer(str(chat)).eos_token_id
    for batch in batches(run.file("logprobs.parquet")):
        assert all(batch.ids[last - 1] == end for last in batch.offsets[1:])


def test_a_row_whose_tokens_do_not_spell_it_is_left_without() -> None:
    tokenizer = fallback_tokenizer()
    vocabulary, task = Vocabulary.of(tokenizer), Task(kind="generate")
    prompt = make_prompt((Message("user", "say"),))

    def read(text: str, status: Any = "ok") -> Text | str:
        return as_read(task, Answer(prompt, text, status), 0, tokenizer, vocabulary, {1})

    assert isinstance(read("good"), Text)
    assert read("a ▁ b") == "its tokens do not spell the answer"  # U+2581 becomes a blank
    assert read("") == "the answer is empty"
    assert read("x", "refused") == "the answer is refused"


def test_a_reader_says_the_blank_that_its_tokenizer_puts_before_an_answer() -> None:
    """Llama 2 and Mistral answer `▁good` behind `[/INST]`, and never `good`."""
    tokenizer = blank_before()
    vocabulary, prompt = Vocabulary.of(tokenizer), make_prompt((Message("user", "the day"),))
    for text in ("good", " good"):
        found = as_read(Task(kind="generate"), Answer(prompt, text, "ok"), 0, tokenizer, vocabulary, {1})
        assert isinstance(found, Text)
        assert tokenizer.convert_ids_to_tokens(found.ids[found.start :]) == ["▁good", "<eos>"]
    spelt = as_read(Task(kind="generate"), Answer(prompt, "<eos> good", "ok"), 0, tokenizer, vocabulary, {1})
    assert isinstance(spelt, Text)
    assert spelt.ids[spelt.start :].count(1) == 1, "spelt out, and no end"


def test_the_labels_probabilities_come_from_the_reader(desk: Desk, chat: Path) -> None:
    desk.seeds([{"prompt": f"item {i} is {'good' if i % 2 else 'bad'}"} for i in range(6)])
    local = {"transformers": {"model": str(chat), "device": "cpu", "terms": "apache-2.0"}}
    teacher = {"scripted": {"rules": {"good": "positive"}, "default": "negative"}}
    recipe = desk.recipe(
        models={"teacher": teacher, "open": local}, answers={"max_tokens": 8, "attach": {"model": "open"}}
    )
    answers = store.read_answers(folder(desk.here(recipe)).file("answers.parquet"))
    assert all(a.label_probs and 0 < sum(a.label_probs) <= 1 + 1e-6 for a in answers)
    assert {a.terms for a in answers} == {"apache-2.0+own"}


def test_what_stands_is_not_read_again(desk: Desk, chat: Path) -> None:
    recipe = with_reader(desk, chat)
    desk.here(recipe)
    again = desk.here(recipe)
    assert not any(stage["ran"] for stage in again["stages"].values())
    run = folder(again)
    before = run.file("logprobs.parquet").read_bytes()
    run.file("logprobs.parquet").unlink()
    third = desk.here(recipe)
    assert third["stages"]["answers"]["ran"]
    assert third["asked"] == 0
    assert run.file("logprobs.parquet").read_bytes() == before


def test_nobody_writes_the_answers_anew_while_another_process_reads_them(
    desk: Desk, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they are read again they have no logprobs, and a filter or a training beside it would go on without."""
    asked = []

    def locked(run: Any, *rest: Any) -> Any:
        with run.folder.file(".lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asked.append(run)
        return collect(run, *rest)

    monkeypatch.setattr(stages, "collect", locked)
    desk.here(with_reader(desk, chat))
    assert len(asked) == 1


@pytest.mark.parametrize("named", [True, False], ids=["role", "path"])
def test_the_command_reads_a_run_that_is_there(desk: Desk, chat: Path, *, named: bool) -> None:
    recipe = job(desk)
    teacher = load(recipe).raw["models"]["teacher"]
    local = {"transformers": {"model": str(chat), "device": "cpu"}}
    recipe = job(desk, models={"teacher": teacher, **({"open": local} if named else {})})
    first = desk.run(recipe)
    out = desk.llm_distill("attach", "job", "--model", "open" if named else chat, "--top-logprobs", "4", "--json")
    found = json.loads(out)
    assert found["rows"] == len(TEXTS)
    assert found["run"] != first["run"]
    overrides = [part for text in found["overrides"] for part in ("-s", text)]
    then = desk.run(recipe, *overrides)
    assert then["run"] == found["run"]
    assert not then["stages"]["prompts"]["ran"]
    assert not then["stages"]["answers"]["ran"]
    assert then["asked"] == 0
    assert desk.rows(then, "kept")[0]["mean_logprob"] is not None
    assert not (desk.folder / first["run"] / "logprobs.parquet").exists()


def test_mistakes_are_found_before_anything_is_read(desk: Desk, chat: Path) -> None:
    recipe = with_reader(desk, chat)
    with pytest.raises(UserError, match=r"answers\.attach\.model: no model 'opne'"):
        load(recipe, ["answers.attach.model=opne"])
    with pytest.raises(UserError, match="is scripted; an answer is read by transformers"):
        load(recipe, ["answers.attach.model=teacher"])
    with pytest.raises(UserError, match="remove one of them"):
        load(recipe, ["answers.top_logprobs=5"])
    served = '{"openai_api": {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": null}}'
    with pytest.raises(UserError, match="sends token ids"):
        load(recipe, [f"models.open={served}"])


def test_a_reader_who_is_nowhere_is_told_who_is_here(desk: Desk, chat: Path) -> None:
    desk.here(job(desk))
    assert "neither a role of the recipe (teacher)" in desk.llm_distill("attach", "job", "--model", "opne", code=2)


@pytest.fixture
def vllm(chat: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a vLLM server says to token ids with prompt_logprobs, from real weights: its traps included."""
    model, lock = weights.load_model(str(chat), device="cpu"), threading.Lock()
    state: dict[str, Any] = {"bodies": [], "busy": 1}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["bodies"].append(body)
            if self.path != "/v1/completions" or state["busy"]:
                state["busy"] -= 1
                self.reply(503, {"message": "busy"})
                return
            ids, k = body["prompt"], body["prompt_logprobs"]
            with lock, torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places: list[Any] = [None]  # of the first token nothing is known
            for place, token in enumerate(ids[1:]):
                known = set(logprobs[place].topk(k).indices.tolist()) | {
                    token
                }  # k + 1 where it is none of the likeliest
                places.append({str(t): {"logprob": float(logprobs[place, t]), "rank": 1} for t in known})
            if state.get("null"):
                places[-1][str(ids[-1])]["logprob"] = None
            self.reply(200, {"choices": [{"text": "x", "prompt_logprobs": places}]})

        def reply(self, status: int, words: dict[str, Any]) -> None:
            data = json.dumps(words).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0.01")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", state
    server.shutdown()
    thread.join(10)
    server.server_close()


def served(desk: Desk, url: str, chat: Path) -> Path:
    knobs = {"model": "served", "base_url": url, "api_key_env": None, "tokenizer": str(chat)}
    teacher = load(job(desk)).raw["models"]["teacher"]
    return job(
        desk, models={"teacher": teacher, "open": {"openai_api": knobs}},
        answers={"max_tokens": 64, "attach": {"model": "open", "top_logprobs": 5}},
    )  # fmt: skip


def test_a_server_reads_as_weights_here_do(desk: Desk, chat: Path, vllm: tuple[str, dict[str, Any]]) -> None:
    url, state = vllm
    (there,) = batches(folder(desk.here(served(desk, url, chat))).file("logprobs.parquet"))
    (here,) = batches(folder(desk.here(with_reader(desk, chat, name="local"))).file("logprobs.parquet"))
    assert there.row_ids == here.row_ids
    assert there.ids.tolist() == here.ids.tolist()
    np.testing.assert_allclose(there.top_logprobs, here.top_logprobs, atol=1e-2)
    assert there.top_ids.tolist() == here.top_ids.tolist()
    assert len(state["bodies"]) == len(TEXTS) + 1, "the busy one is asked again"
    assert {body["max_tokens"] for body in state["bodies"]} == {1}


def test_a_served_model_ends_its_turns_where_its_own_settings_say(
    desk: Desk, chat: Path, vllm: tuple[str, dict[str, Any]]
) -> None:
    """As Gemma and Phi do: the template's end of a turn is one of several ends, and not the tokenizer's EOS."""
    here = shutil.copytree(chat, desk.folder / "chat")
    tokenizer = weights.load_tokenizer(str(here))
    end, tokenizer.eos_token = tokenizer.eos_token_id, "<|endoftext|>"
    tokenizer.save_pretrained(here)
    (here / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, end]}))
    run = folder(desk.here(served(desk, vllm[0], here)))
    for batch in batches(run.file("logprobs.parquet")):
        assert all(batch.ids[last - 1] == end for last in batch.offsets[1:])


def test_a_token_without_a_number_leaves_its_row_without(
    desk: Desk, chat: Path, vllm: tuple[str, dict[str, Any]]
) -> None:
    url, state = vllm
    state["null"] = True
    with pytest.raises(UserError, match="no logprob of the token at place"):
        desk.here(served(desk, url, chat))


def test_numbers_are_natural_logs(desk: Desk, chat: Path) -> None:
    (batch,) = batches(folder(desk.here(with_reader(desk, chat))).file("logprobs.parquet"))
    first = batch.top_logprobs[batch.top_offsets[0] : batch.top_offsets[1]]
    assert sum(math.exp(value) for value in first) < 1 + 1e-3
