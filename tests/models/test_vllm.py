"""The life of a vLLM server, with a stand-in for vLLM: real processes, real signals, real ports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_distill.errors import Unavailable, UserError
from llm_distill.models import servers
from llm_distill.models.outside.vllm_key import EveryPath
from llm_distill.models.vllm_offline import VllmOfflineModel
from llm_distill.models.vllm_server import VllmModel
from llm_distill.models.vllm_setup import arguments
from llm_distill.records import Completion, Message, Request, Sampling
from tests.conftest import Desk, runs

FAKE = Path(__file__).with_name("fake_vllm.py")


def question(text: str = "good", *, raw: bool = False, **sampling: Any) -> Request:
    return Request((Message("user", text),), Sampling(**sampling), raw=raw)


def gone(processes: list[int], within_s: float = 10) -> bool:
    """Whether none of these runs any more."""
    until = time.monotonic() + within_s
    while any(map(runs, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Fake:
    """An environment's interpreter, and what it noted."""

    folder: Path
    weights: Path

    @property
    def python(self) -> Path:
        return self.folder / "python"

    def knobs(self, *faults: str, **more: Any) -> dict[str, Any]:
        env = {"FAKE": " ".join(faults), "FAKE_DIR": str(self.folder)}
        return {"model": str(self.weights), "python": str(self.python)} | more | {"env": env | more.get("env", {})}

    def model(self, *faults: str, **more: Any) -> VllmModel:
        return VllmModel(**self.knobs(*faults, **more))

    def notes(self, name: str) -> list[Any]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def processes(self) -> list[int]:
        """The servers, and the orphans that they made."""
        return [start["pid"] for start in self.notes("starts")] + self.notes("orphans")


def checkpoint(folder: Path, template: str | None = None) -> Path:
    """What a folder of weights looks like from outside."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    vocabulary: dict[str, Any] = {"model": {"vocab": {"a": 0}}, "added_tokens": [], "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder


def lora(folder: Path, **settings: Any) -> Path:
    """What an adapter looks like from outside."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 9} | settings))
    (folder / "adapter_model.safetensors").write_text("{}")
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    folder = tmp_path / "environment"
    folder.mkdir()
    made = Fake(folder, checkpoint(tmp_path / "weights", "{{ messages }}"))
    made.python.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    made.python.chmod(0o755)
    yield made
    assert gone(made.processes), "a server was left behind"


def ask(model: VllmModel, *requests: Request) -> list[Completion]:
    async def together() -> list[Completion]:
        try:
            return await asyncio.gather(*map(model.complete, requests))
        finally:
            await model.close()

    return asyncio.run(together())


def again(model: VllmModel) -> list[Completion]:
    """Ask until it is there, as the door to every model does."""
    while True:
        try:
            return ask(model, question())
        except Unavailable:
            time.sleep(0.05)


def test_one_server_answers_in_one_event_loop_after_another(fake: Fake) -> None:
    model = fake.model(
        "children", dtype="float32", gpu_memory_utilization=0.5, extra_args=["--enforce-eager", "--seed", 3]
    )
    try:
        model.preflight()
        assert fake.notes("starts") == []
        assert [one.text for one in ask(model, question("good"), question("bad"))] == ["positive", "negative"]
        assert ask(model, question("good"))[0].model == fake.weights.name
        (start,) = fake.notes("starts")
        assert start["argv"][:2] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert {f"--model={fake.weights}", "--dtype=float32", "--gpu-memory-utilization=0.5"} <= set(start["argv"])
        assert start["argv"][-3:] == ["--enforce-eager", "--seed", "3"]
        assert len(fake.notes("orphans")) == 2
        assert all(psutil.pid_exists(process) for process in fake.processes)
        model.unload()
        assert gone(fake.processes, within_s=0)
        assert not [name for name in os.environ if name.startswith("LLM_DISTILL_VLLM")]
        ask(model, question("good"))
        assert len(fake.notes("starts")) == 2
    finally:
        model.unload()


def test_the_key_is_new_each_time_and_stands_nowhere(fake: Fake, tmp_path: Path) -> None:
    model = fake.model()
    keys = []
    for _ in range(2):
        ask(model, question())
        start = fake.notes("starts")[-1]
        keys.append(start["env"]["VLLM_API_KEY"])
        assert keys[-1] not in " ".join(start["argv"])
        assert "--host=127.0.0.1" in start["argv"]
        model.unload()
    assert len(set(keys)) == 2
    assert min(map(len, keys)) >= 32
    logs = list((tmp_path / "cache" / "logs").iterdir())
    assert logs
    for log in logs:
        assert log.stat().st_mode & 0o077 == 0
        assert not any(key in log.read_text() for key in keys)


def test_nothing_of_this_interpreter_leaks_into_another_one(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VLLM_API_KEY", "somebody's")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody is: the server is asked without it
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    model = fake.model(env={"OMP_NUM_THREADS": 1})
    ask(model, question())
    model.unload()
    env = fake.notes("starts")[0]["env"]
    assert "/ours" not in env["PYTHONPATH"]
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_API_KEY"] != "somebody's"
    assert env["PATH"].split(os.pathsep)[0] == str(fake.folder)


DRIVER = """
    import asyncio, json, os, sys, time
    from llm_distill.models.vllm_server import VllmModel
    from llm_distill.records import Message, Request, Sampling

    model = VllmModel(**json.loads(sys.argv[1]))

    async def ask():
        print(await model.complete(Request((Message("user", "good"),), Sampling())), flush=True)
        await model.close()

    asyncio.run(ask())
"""
ENDS = {
    "its end": "",
    "an error": "raise KeyError",
    "a signal": "time.sleep(600)",
    "a fork": "os.fork() or time.sleep(600)",
}


@pytest.mark.parametrize(
    ("number", "faults"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGKILL, ()), (signal.SIGKILL, ("mute",))],
)
def test_the_server_dies_with_us(fake: Fake, number: signal.Signals, faults: tuple[str, ...]) -> None:
    with _driver(fake, "time.sleep(600)", *faults) as driver:
        assert driver.stdout is not None
        if not faults:
            driver.stdout.readline()
        wait_for(lambda: len(fake.processes) == 3)
        driver.send_signal(number)
        driver.communicate(timeout=20)
    assert gone(fake.processes)


@pytest.mark.parametrize("end", ["", "raise KeyError", "model.complete = None; del model; time.sleep(1)"])
def test_the_server_ends_with_the_program(fake: Fake, end: str) -> None:
    with _driver(fake, end) as driver:
        driver.communicate(timeout=20)
    assert len(fake.processes) == 3
    assert gone(fake.processes, within_s=0)


def test_a_forked_child_that_lives_on_keeps_no_server(fake: Fake) -> None:
    # It holds our end of the pipe to the server's keeper open.
    with _driver(fake, "print(os.fork() or time.sleep(3), flush=True)") as driver:
        driver.wait(timeout=20)
        assert driver.stdout is not None
        driver.stdout.readline()
        forked = int(driver.stdout.readline())
        assert gone(fake.processes, within_s=0)
        assert psutil.pid_exists(forked)
        os.kill(forked, signal.SIGKILL)


def _driver(fake: Fake, end: str, *faults: str) -> subprocess.Popen[str]:
    knobs = json.dumps(fake.knobs("children", *faults))
    code = textwrap.dedent(DRIVER) + end
    return subprocess.Popen(
        [sys.executable, "-c", code, knobs], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_server_that_does_not_listen_is_killed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "GRACE_S", 0.3)
    model = fake.model("stubborn")
    ask(model, question())
    model.unload()
    assert gone(fake.processes, within_s=0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_shared_memory_of_a_killed_server_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "GRACE_S", 0.3)
    code = """
import multiprocessing.shared_memory as m, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(m.SharedMemory(create=True, size=9).name, flush=True)
os.fork()
time.sleep(600)
"""
    server = servers.Server([sys.executable, "-c", code], dict(os.environ), tmp_path / "a.log")
    wait_for(lambda: "psm_" in server.log.read_text())
    name = server.log.read_text().split()[0]
    assert (Path("/dev/shm") / name).exists()
    server.stop()
    assert not (Path("/dev/shm") / name).exists()


def test_the_server_dies_when_its_keeper_is_killed(fake: Fake) -> None:
    model = fake.model()
    ask(model, question())
    (keeper,) = [p for p in psutil.Process().children() if "keeper.py" in " ".join(p.cmdline())]
    keeper.kill()
    assert gone(fake.processes)
    model.unload()


@pytest.mark.parametrize(
    ("faults", "more", "expected"),
    [
        (("dies",), {}, ("ended while it started", "exit code 1, ValueError: no room for the KV cache", ".log)")),
        (("mute",), {"startup_timeout_s": 0.5}, ("did not answer within 0.5 s", "version 0.32.0")),
        (("unhealthy",), {"startup_timeout_s": 1.0}, ("did not answer within 1 s",)),
    ],
)
def test_a_server_that_does_not_start_is_one_clear_line(
    fake: Fake, faults: tuple[str, ...], more: dict[str, Any], expected: tuple[str, ...]
) -> None:
    model = fake.model(*faults, **more)
    with pytest.raises(UserError) as caught:
        ask(model, question("good"), question("bad"))
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)
    assert len(fake.notes("starts")) == 1
    assert gone(fake.processes, within_s=0)


def test_a_server_that_keeps_dying_is_started_three_times(fake: Fake) -> None:
    model = fake.model()
    assert ask(model, question())[0].text == "positive"
    for deaths in range(1, 4):
        with pytest.raises(Unavailable):
            ask(model, question("die"))
        if deaths < 3:
            assert again(model)[0].text == "positive"
    with pytest.raises(UserError, match=r"ended 3 times .*torch.OutOfMemoryError: CUDA out of memory"):
        again(model)
    assert len(fake.notes("starts")) == 3


def test_one_who_gives_up_does_not_stop_the_others(fake: Fake) -> None:
    model = fake.model()

    async def two() -> str:
        first = asyncio.create_task(model.complete(question()))
        second = asyncio.create_task(model.complete(question()))
        await asyncio.sleep(0.05)
        first.cancel()
        try:
            return (await second).text
        finally:
            await model.close()

    assert asyncio.run(two()) == "positive"
    assert len(fake.notes("starts")) == 1
    model.unload()


def test_a_start_that_was_not_waited_for_goes_on(fake: Fake) -> None:
    model = fake.model()

    async def impatient() -> None:
        task = asyncio.create_task(model.complete(question()))
        while not fake.notes("starts"):
            await asyncio.sleep(0.01)
        task.cancel()
        await model.close()

    asyncio.run(impatient())
    assert ask(model, question())[0].text == "positive"
    assert len(fake.notes("starts")) == 1
    model.unload()


def test_a_taken_port_is_found_before_anything_starts(fake: Fake) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        model = fake.model(port=other.getsockname()[1])
        with pytest.raises(UserError, match=r"port: \d+ cannot be used \(Address already in use\)"):
            model.preflight()
        with pytest.raises(UserError, match="Address already in use"):
            ask(model, question())
    assert fake.notes("starts") == []
    ask(model, question())
    model.unload()
    ask(model, question())  # and again, though connections to it were closed just now
    assert len({part for start in fake.notes("starts") for part in start["argv"] if "--port" in part}) == 1
    model.unload()


def test_what_is_missing_is_said_before_the_start(fake: Fake, tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base"))

    def refused(**more: Any) -> str:
        with pytest.raises(UserError) as caught:
            fake.model(**more).preflight()
        return str(caught.value)

    assert "no such program" in refused(python=str(tmp_path / "none"))
    fake.model().preflight()
    assert "have no chat template" in refused(model=base)
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    fake.model(model=base, chat_template=template).preflight()
    raw = fake.model(model=base, raw_only=True)
    raw.preflight()
    with pytest.raises(UserError, match="ask in `raw` text"):
        ask(raw, question())
    assert [one.text for one in ask(raw, question(raw=True))] == ["raw positive"]
    raw.unload()
    with pytest.raises(UserError, match="max_logprobs: 20 is less than top_logprobs = 21"):
        ask(fake.model(), question(top_logprobs=21))
    fake.python.write_text(fake.python.read_text().replace('"no-vllm" in FAULTS', "1"))
    assert "`pip install vllm` into an environment and name its bin/python" in refused()
    assert len(fake.notes("starts")) == 1


def test_the_engine_in_process_needs_vllm_in_this_process(fake: Fake) -> None:
    model = VllmOfflineModel(model=str(fake.weights))
    if find_spec("vllm"):
        return model.preflight()
    with pytest.raises(UserError, match="vllm is not installed where llm-distill runs"):
        model.preflight()
    with pytest.raises(UserError, match="the engine does not start: ModuleNotFoundError: No module named 'vllm'"):
        asyncio.run(model.complete(question()))
    return None


@pytest.mark.parametrize(
    "line", [["--trust-remote-code"], ["--host=0.0.0.0"], ["--api-k", "x"], ["--served_model_name=x"]]
)
def test_some_arguments_are_not_the_recipes_to_give(fake: Fake, line: list[str]) -> None:
    with pytest.raises(UserError, match="extra_args: --"):
        fake.model(extra_args=line)


def test_a_secret_does_not_stand_in_a_recipe(fake: Fake) -> None:
    with pytest.raises(UserError, match="env: HF_TOKEN looks like a secret"):
        fake.model(env={"HF_TOKEN": "x"})
    with pytest.raises(UserError, match="engine_args: trust_remote_code"):
        VllmOfflineModel(model=str(fake.weights), engine_args={"trust_remote_code": True})


def test_the_identity_is_what_answers_depend_on(fake: Fake, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    plain = fake.model().identity
    same: list[dict[str, Any]] = [
        {"port": 8123}, {"concurrency": 3}, {"python": sys.executable}, {"env": {"A": "1"}}, {"max_logprobs": 50},
        {"gpu_memory_utilization": 0.3}, {"extra_args": ["--enforce-eager", "--tensor-parallel-size", 2]},
    ]  # fmt: skip
    assert {fake.model(**more).identity for more in same} == {plain}
    assert VllmOfflineModel(model=str(fake.weights), engine_args={"tensor_parallel_size": 2}).identity == plain
    adapter = lora(tmp_path / "adapter")
    other: list[dict[str, Any]] = [
        {"dtype": "float32"}, {"max_model_len": 128}, {"chat_template": template}, {"model": str(checkpoint(tmp_path / "base"))},
        {"adapter": str(adapter)}, {"extra_args": ["--quantization=fp8"]}, {"extra_body": {"top_k": 1}},
    ]  # fmt: skip
    different = {fake.model(**more).identity for more in other}
    template.write_text("{{ messages[-1].content }}")
    different.add(fake.model(chat_template=template).identity)
    assert len(different | {plain}) == len(other) + 2
    moved = fake.model(model=str(fake.weights.rename(fake.weights.with_name("moved")))).identity
    (fake.weights.with_name("moved")).rename(fake.weights)
    assert moved == plain


def test_arguments_are_read_as_the_server_reads_them() -> None:
    line: list[str | int | float] = [
        "--seed",
        3,
        "--enforce-eager",
        "--rope_scaling={}",
        "--allowed-origins",
        "a",
        "b",
        "--x",
        -1,
    ]
    assert arguments(line) == {
        "seed": "3",
        "enforce_eager": "",
        "rope_scaling": "{}",
        "allowed_origins": "a b",
        "x": "-1",
    }


def test_an_adapter_is_served_and_asked_by_its_name(fake: Fake, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "student", rank_pattern={"q_proj": 17})
    model = fake.model(adapter=str(adapter))
    (answer,) = ask(model, question())
    model.unload()
    assert answer.model == f"{fake.weights.name}+student"
    argv = fake.notes("starts")[0]["argv"]
    assert {"--enable-lora", "--max-lora-rank=32"} <= set(argv)
    (modules,) = [part.partition("=")[2] for part in argv if part.startswith("--lora-modules=")]
    assert json.loads(modules) == {"name": answer.model, "path": str(adapter)}
    (adapter / "base.json").write_text('{"reference": "other", "digest": "0"}')
    with pytest.raises(UserError, match="was trained on other"):
        fake.model(adapter=str(adapter)).preflight()


LABELLED = [("good", "positive"), ("bad", "negative"), ("lovely", "positive"), ("dull", "negative")]
LOGS = {
    "api_server.py: error: unrecognized arguments: --x": (
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --x\n"
    ),
    "ValueError: too little memory": (
        "(Worker pid=7) ERROR 11-22 10:00:00 [multiproc_executor.py:1] WorkerProc failed to start.\n"
        "(Worker pid=7) ERROR 11-22 10:00:00 [multiproc_executor.py:1] ValueError: too little memory\n"
        "(EngineCore pid=5) ERROR 11-22 10:00:00 [core.py:1] Exception: WorkerProc initialization failed due to an exception\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
        "[rank0]: resource_tracker: There appear to be 1 leaked shared_memory objects\n"
    ),
    "Value error, User-specified max_model_len (9) is too much": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, User-specified max_model_len (9) is too much\n    For further information visit x\n"
    ),
    "Loading weights: 3 of 9": "INFO: warming up\nLoading weights: 3 of 9\n\n",
    "": "",
}


@pytest.mark.parametrize("line", LOGS)
def test_the_line_that_says_what_went_wrong(line: str) -> None:
    assert servers.fault(LOGS[line]) == line


def test_old_logs_go(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.log").write_text("")
        os.utime(tmp_path / f"{i}.log", (i, i))
    server = servers.Server([sys.executable, "-c", "print(1)"], dict(os.environ), tmp_path / "new.log")
    server.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"new.log", *(f"{i}.log" for i in range(10, 30))}


@pytest.mark.parametrize("path", ["/invocations", "/v1/completions", "/health", "/tokenize"])
def test_no_path_of_the_server_is_open(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "right")
    passed: list[str] = []

    async def inner(scope: Any, _receive: Any, _send: Any) -> None:
        passed.append(scope["path"])

    async def receive() -> Any: ...

    def status(scope: dict[str, Any]) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message.get("status", message.get("code")))

        asyncio.run(EveryPath(inner)({"path": path, **scope}, receive, send))
        return sent

    for key in (b"Bearer wrong", b"right", b"Bearer right2", b""):
        assert status({"type": "http", "method": "POST", "headers": [(b"authorization", key)]})[0] == 401
    assert status({"type": "http", "method": "OPTIONS", "headers": []})[0] == 401
    assert status({"type": "websocket", "headers": []}) == [1008]
    assert passed == []
    assert status({"type": "http", "headers": [(b"authorization", b"Bearer right")]}) == []
    assert status({"type": "lifespan"}) == []
    assert passed == [path, path]


def test_the_command_line_starts_it_once_and_not_for_what_is_known(fake: Fake, desk: Desk) -> None:
    desk.seeds([{"prompt": f"{i} is {'good' if i % 2 else 'bad'}"} for i in range(12)])

    def recipe(*faults: str, **more: Any) -> Path:
        return desk.recipe(models={"teacher": {"vllm": fake.knobs(*faults, **more)}})

    summary = desk.run(recipe("children", concurrency=4), "--until", "answers")
    assert summary["asked"] == 12
    assert {row["prediction"] for row in desk.rows(summary, "answers")} == {"positive", "negative"}
    assert len(fake.notes("starts")) == 1
    assert gone(fake.processes, within_s=0)
    elsewhere = {"port": servers.free_port(), "concurrency": 5, "extra_args": ["--tensor-parallel-size=2"]}
    again = desk.run(recipe("dies", **elsewhere), "--until", "answers")
    assert again["run"] != summary["run"]  # the same questions in another run
    assert (again["asked"], again["reused"]) == (0, 12)
    assert len(fake.notes("starts")) == 1
    said = desk.llm_distill("run", recipe("dies", dtype="float32"), code=2)
    assert said.startswith(
        "llm-distill: vllm: the server ended while it started: exit code 1, ValueError: no room for the KV"
    )


def test_the_distilled_student_is_evaluated_on_a_server(fake: Fake, desk: Desk, llama: Path) -> None:
    """Trained from the weights that the recipe names, served with its adapter; the base before it, without."""
    desk.seeds([{"prompt": f"the film was {'good' if i % 2 else 'bad'}, {i}"} for i in range(8)])
    desk.seeds([{"prompt": f"a {word} day", "label": label} for word, label in LABELLED], "held.jsonl")
    recipe = desk.recipe(
        models={
            "teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}},
            "student": {"vllm": {}},
        },
        held_out={"file": "held.jsonl"},
        train={"sft": {"epochs": 1, "lora_rank": 9, "dtype": "float32"}},
        evaluate={"resamples": 100},
    )
    knobs = json.dumps(fake.knobs(model=str(llama)))
    summary = desk.run(recipe, "-s", f"models.student.vllm={knobs}")
    folder = desk.folder / summary["run"]
    base, student = (start["argv"] for start in fake.notes("starts"))
    assert "--enable-lora" not in base
    assert {"--enable-lora", "--max-lora-rank=16"} <= set(student)
    (modules,) = [json.loads(part.partition("=")[2]) for part in student if part.startswith("--lora-modules=")]
    assert modules == {"name": f"{llama.name}+student", "path": str(folder / "student")}
    answers = {arm: desk.rows(summary, f"eval/{arm}") for arm in ("base_zero_shot", "student")}
    assert {arm: {row["model"] for row in rows} for arm, rows in answers.items()} == {
        "base_zero_shot": {llama.name}, "student": {modules["name"]}
    }  # fmt: skip
    assert gone(fake.processes, within_s=0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_no_server(fake: Fake, desk: Desk, number: signal.Signals, code: int) -> None:
    desk.seeds([{"prompt": f"{i} is good"} for i in range(60)])
    knobs = fake.knobs("children", concurrency=2, env={"FAKE_LATENCY": "0.1"})
    process = desk.command("run", desk.recipe(models={"teacher": {"vllm": knobs}}))
    wait_for(lambda: len(fake.notes("asked")) > 4)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert gone(fake.processes)
    assert len(fake.notes("asked")) < 60


def wait_for(condition: Callable[[], bool], within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
