"""The student behind an endpoint: our own client and OpenAI's, bad requests, many at once, and how it stops."""

from __future__ import annotations

import asyncio
import io
import json
import random
import signal
import socket
import string
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from aiohttp import web

from llm_distill import serving, store
from llm_distill.errors import Rejected, Unavailable, UserError
from llm_distill.export.student import find
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.records import Completion, Message, Request, Sampling
from llm_distill.serving import MOST_BYTES, Service
from llm_distill.serving_wire import Refused, read
from tests.conftest import Desk
from tests.finished import copied, made

NAME = "job"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersModel]:
    """The finished run's student, loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))
        run = store.RunFolder(made(tmp_path_factory.getbasetemp(), "lora"))
        model = find(run).model()
        model.engine()
        yield model


@asynccontextmanager
async def served(model: Any, defaults: Sampling = Sampling(max_tokens=16)) -> AsyncIterator[str]:
    """The base URL of a service on a free port."""
    runner = web.AppRunner(Service(model, NAME, defaults).app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client(url: str, name: str = NAME, **knobs: Any) -> AsyncIterator[OpenAIModel]:
    """Our own plug for such an endpoint."""
    model = OpenAIModel(model=name, base_url=url, api_key_env=None, **knobs)
    try:
        yield model
    finally:
        await model.close()


def asked(count: int = 12, **sampling: Any) -> list[Request]:
    """Questions of several lengths, in two turns and one."""
    drawn = Sampling(**{"max_tokens": 16, "top_logprobs": 5} | sampling)
    before = (Message("user", "item 1 is good"), Message("assistant", "positive"))
    return [
        Request(
            (*(before if i % 3 == 0 else ()), Message("user", f"item {i} is {'good' if i % 2 else 'bad'} " + "x" * i)),
            drawn,
        )
        for i in range(count)
    ]


async def answers(model: Any, requests: list[Request]) -> list[Completion]:
    return list(await asyncio.gather(*map(model.complete, requests)))


def assert_same(own: Completion, found: Completion, *, ids: bool = True) -> None:
    assert found.text == own.text
    assert found.finish_reason == own.finish_reason
    assert (found.prompt_tokens, found.completion_tokens) == (own.prompt_tokens, own.completion_tokens)
    assert found.fingerprint == own.fingerprint
    assert (own.logprobs is None) == (found.logprobs is None)
    if own.logprobs is not None and found.logprobs is not None:
        assert found.logprobs.tokens == own.logprobs.tokens
        assert found.logprobs.top_tokens == own.logprobs.top_tokens
        np.testing.assert_allclose(found.logprobs.logprobs, own.logprobs.logprobs, atol=1e-4)
        np.testing.assert_allclose(found.logprobs.top_logprobs, own.logprobs.top_logprobs, atol=1e-4)
        if ids:
            np.testing.assert_array_equal(found.logprobs.ids, own.logprobs.ids)
            np.testing.assert_array_equal(found.logprobs.top_ids, own.logprobs.top_ids)


@pytest.mark.parametrize(
    "sampling",
    [
        {}, {"top_logprobs": None}, {"top_logprobs": 0}, {"max_tokens": 1}, {"stop": ("tive", "\n")},
        {"temperature": 0.9, "seed": 7, "top_p": 0.9},
    ],
    ids=["greedy", "without logprobs", "only the chosen", "cut", "stop", "sampled"],
)  # fmt: skip
def test_our_own_client_gets_what_the_student_says_in_process(
    student: TransformersModel, sampling: dict[str, Any]
) -> None:
    requests = asked(**sampling)

    async def both() -> None:
        own = await answers(student, requests)
        async with served(student) as url, client(url) as remote:
            await remote.probe()
            for mine, theirs in zip(own, await answers(remote, requests), strict=True):
                assert_same(mine, theirs)

    asyncio.run(both())


def test_raw_text_goes_on_without_the_template(student: TransformersModel) -> None:
    requests = [
        Request((Message("user", f"the film was {w}"),), Sampling(max_tokens=6, top_logprobs=3), 0, True)
        for w in ("good", "bad")
    ]

    async def both() -> None:
        own = await answers(student, requests)
        async with served(student) as url, client(url) as remote:
            for mine, theirs in zip(own, await answers(remote, requests), strict=True):
                assert (mine.text, mine.finish_reason, mine.prompt_tokens) == (
                    theirs.text,
                    theirs.finish_reason,
                    theirs.prompt_tokens,
                )
                assert mine.logprobs is not None
                assert theirs.logprobs is not None
                np.testing.assert_allclose(theirs.logprobs.logprobs, mine.logprobs.logprobs, atol=1e-4)

    asyncio.run(both())


def test_openais_own_client_reads_answers_streams_and_errors(student: TransformersModel) -> None:
    question = Request((Message("user", "item 3 is good"),), Sampling(max_tokens=16))

    async def ask() -> None:
        (own,) = await answers(student, [question])
        async with served(student) as url, openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as remote:
            turns: Any = [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in question.messages]
            assert [m.id async for m in await remote.models.list()] == [NAME]
            assert (await remote.models.retrieve(NAME)).id == NAME
            whole = await remote.chat.completions.create(
                model=NAME, messages=turns, temperature=0, logprobs=True, top_logprobs=2, stop=["zzz"], user="me", n=1,
                presence_penalty=0, response_format={"type": "text"}, max_completion_tokens=16,
            )  # fmt: skip
            assert whole.choices[0].message.content == own.text
            assert whole.usage is not None
            assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
            assert whole.choices[0].logprobs is not None
            said = whole.choices[0].logprobs.content or []
            assert (
                b"".join(bytes(t.bytes or []) for t in said[: len(said) - (own.finish_reason == "stop")]).decode(
                    errors="replace"
                )
                == own.text
            )
            assert all(len(t.top_logprobs) == 2 for t in said)
            stream = await remote.chat.completions.create(
                model=NAME, messages=turns, stream=True, stream_options={"include_usage": True}
            )
            pieces = [piece async for piece in stream]
            assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == own.text
            assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == own.finish_reason
            assert pieces[-1].usage is not None
            assert pieces[-1].usage.completion_tokens == own.completion_tokens
            assert len({p.id for p in pieces}) == 1
            text = await remote.completions.create(
                model=NAME, prompt="the film", max_tokens=3, logprobs=2, temperature=0
            )
            parts = [
                p
                async for p in await remote.completions.create(model=NAME, prompt="the film", max_tokens=3, stream=True)
            ]
            assert "".join(p.choices[0].text for p in parts) == text.choices[0].text
            assert text.choices[0].logprobs is not None
            assert len(text.choices[0].logprobs.tokens or []) == 3
            with pytest.raises(openai.BadRequestError) as error:
                await remote.chat.completions.create(model=NAME, messages=turns, logit_bias={"5": 100})
            assert (error.value.param, error.value.type) == ("logit_bias", "invalid_request_error")
            with pytest.raises(openai.NotFoundError, match="serves 'job'"):
                await remote.chat.completions.create(model="gpt-9", messages=turns)

    asyncio.run(ask())


def test_our_client_turns_its_refusals_into_our_errors(student: TransformersModel) -> None:
    async def ask() -> None:
        async with served(student) as url, client(url) as remote:
            long = Request((Message("user", "x" * 3000),), Sampling(max_tokens=4))
            with pytest.raises(Rejected, match="context_length_exceeded"):
                await remote.complete(long)
            async with client(url, "jab") as other:
                with pytest.raises(UserError, match="Did you mean 'job'"):
                    await other.complete(asked(1)[0])
            async with client(url, extra_body={"guided_regex": "a*"}) as strict:
                with pytest.raises(Rejected, match="guided_regex"):
                    await strict.complete(asked(1, top_logprobs=None)[0])

    asyncio.run(ask())


GOOD: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "item 3 is good"}]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0]"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"top_k": 5}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"prompt": "x"}, "prompt"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_and_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as error:
        read(GOOD | change, NAME, Sampling(), chat=True)
    assert (error.value.status, error.value.param) == (400, param)


def test_what_changes_nothing_is_taken() -> None:
    more = {
        "n": 1, "user": "u", "metadata": {}, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "tools": [],
        "stop": None, "seed": None, "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": False,
    }  # fmt: skip
    found = read(GOOD | more, NAME, Sampling(temperature=0.3, max_tokens=9), chat=True)
    assert found.sampling == Sampling(temperature=0.3, max_tokens=9)
    assert not found.seeded
    assert read(GOOD | {"temperature": 0.5, "seed": 3}, NAME, Sampling(), chat=True).seeded


def test_any_body_is_answered_or_refused_never_a_bug() -> None:
    """Seeded nonsense of JSON's kinds under the protocol's names."""
    draw = random.Random(11)
    names = [
        *GOOD,
        "temperature",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "n",
        "tools",
        "prompt",
        "zz",
    ]

    def value(depth: int = 0) -> Any:
        kind = draw.randrange(9 if depth < 2 else 7)
        if kind == 7:
            return [value(depth + 1) for _ in range(draw.randrange(3))]
        if kind == 8:
            return {
                draw.choice(["role", "content", "type", "text", "a"]): value(depth + 1)
                for _ in range(draw.randrange(3))
            }
        text = "".join(draw.choice(string.printable + "\ud800é") for _ in range(4))
        return [None, True, -1, 1e308, draw.choice(["user", "job", "text"]), text, 3][kind]

    outcomes = set[str | int]()
    for _ in range(3000):
        body = (GOOD if draw.random() < 0.7 else {}) | {draw.choice(names): value() for _ in range(draw.randrange(4))}
        for chat in (True, False):
            try:
                outcomes.add(type(read(body, NAME, Sampling(), chat=chat)).__name__)
            except Refused as error:
                outcomes.add(error.status)
    assert outcomes == {"Asked", 400, 404}


def test_addresses_bodies_and_hosts_that_are_none_of_ours(student: TransformersModel) -> None:
    async def ask() -> None:
        async with served(student) as url, aiohttp.ClientSession() as session:

            async def status(method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
                async with session.request(method, url + path, **more) as response:
                    found = await response.json()
                    assert set(found["error"]) == {"message", "type", "param", "code"}
                    return response.status, found["error"]

            chat, as_json = "/chat/completions", {"Content-Type": "application/json"}
            assert (await status("GET", "/nowhere"))[0] == 404
            assert (await status("GET", chat))[0] == 405
            assert (await status("GET", "/models/other"))[1]["code"] == "model_not_found"
            assert (await status("POST", chat, data=b"{", headers=as_json))[1]["code"] == "invalid_json"
            assert (await status("POST", chat, data=b"[1]", headers=as_json))[0] == 400
            assert (await status("POST", chat, data=b"[" * 100_000, headers=as_json))[0] == 400
            assert (await status("POST", chat, data=b'{"a": "\xff"}', headers=as_json))[0] == 400
            # What a page of elsewhere may send without asking: text/plain, or under a name of its own.
            assert (await status("POST", chat, data=json.dumps(GOOD), headers={"Content-Type": "text/plain"}))[0] == 415
            assert (await status("POST", chat, json=GOOD, headers={"Host": "evil.example"}))[0] == 403
            for host in ("a:b:c", "127.0.0.1:99999", "\udce9"):  # nor one that cannot be read
                assert (await status("POST", chat, json=GOOD, headers={"Host": host}))[1]["code"] == "forbidden_host"
            async with session.post(url + chat, json=GOOD, headers={"Host": "[::1]:8000"}) as response:
                assert response.status == 200  # by a tunnel from there
            assert (await status("POST", chat, data=io.BytesIO(b" " * (MOST_BYTES + 1)), headers=as_json))[0] == 413
            async with session.post(url + chat, json=GOOD) as response:
                assert response.status == 200
                assert "Access-Control-Allow-Origin" not in response.headers

    asyncio.run(ask())


class Slow(TransformersModel):
    """Counts what it is asked at once, and waits to be let go."""

    def __init__(self) -> None:
        self.identity, self.concurrency, self.now, self.most, self.gone = "slow", 4, 0, 0, 0
        self.go: asyncio.Event | None = None
        self.seen: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.go = self.go or asyncio.Event()
        self.seen.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.now -= 1
        return Completion("ok", "stop", 3, 1)

    async def close(self) -> None:
        return None


async def until(ready: Callable[[], bool]) -> None:
    for _ in range(2000):
        if ready():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never became so")


def test_requests_share_batches_and_too_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_WAITING", 40)
    model = Slow()

    async def ask() -> None:
        async with served(model) as url, client(url) as remote:
            waiting = [asyncio.create_task(remote.complete(r)) for r in asked(40)]
            await until(lambda: model.now == 40)
            with pytest.raises(Unavailable, match="429") as error:
                await remote.complete(asked(1)[0])
            assert error.value.retry_after_s == 1
            assert model.go is not None
            model.go.set()
            assert {a.text for a in await asyncio.gather(*waiting)} == {"ok"}
            assert (await remote.complete(asked(1)[0])).text == "ok"

    asyncio.run(ask())
    assert model.most == 40


def test_whoever_goes_away_is_not_answered() -> None:
    model = Slow()

    async def ask() -> None:
        async with served(model) as url, client(url, timeout_s=0.3) as remote:
            with pytest.raises(Unavailable, match="no answer within"):
                await remote.complete(asked(1)[0])
            await until(lambda: model.gone == 1)

    asyncio.run(ask())


def test_chance_without_a_seed_differs_and_with_one_does_not() -> None:
    model = Slow()

    async def ask() -> None:
        async with served(model) as url, aiohttp.ClientSession() as session:
            model.go = asyncio.Event()
            model.go.set()
            for more in (
                {"temperature": 1},
                {"temperature": 1},
                {"temperature": 1, "seed": 4},
                {"temperature": 1, "seed": 4},
                {},
                {},
            ):
                async with session.post(f"{url}/chat/completions", json=GOOD | more) as response:
                    assert response.status == 200

    asyncio.run(ask())
    a, b, c, d, e, f = model.seen
    assert a != b
    assert c == d
    assert e == f


def test_ctrl_c_answers_what_is_in_flight_and_the_port_is_only_here(tmp_path_factory: Any, tmp_path: Path) -> None:
    copied(tmp_path_factory.getbasetemp(), "lora", tmp_path)
    desk = Desk(tmp_path)
    process = desk.command("serve", "job", "--port", "0", LLM_DISTILL_CACHE=str(tmp_path / "cache"))
    assert process.stdout is not None
    said = process.stdout.readline()
    url = said.split(" at ")[1].split(";")[0]
    port = int(url.split(":")[2].split("/")[0])
    taken = desk.llm_distill("serve", "job", "--port", str(port), code=2, LLM_DISTILL_CACHE=str(tmp_path / "cache"))
    assert "choose another one" in taken
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError), socket.create_connection((own, port), timeout=2):  # noqa: PT011
            pass

    async def ask() -> None:
        async with client(url) as remote:
            requests = asked(64, max_tokens=100, temperature=1.0, seed=1)
            waiting = [asyncio.create_task(remote.complete(r)) for r in requests]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)  # the others are in flight then
            process.send_signal(signal.SIGINT)
            found = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(a, Completion) for a in found) > len(done)
        assert all(isinstance(a, Completion | Unavailable) for a in found)

    asyncio.run(ask())
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Stopping when what is in flight is answered" in out
    assert "Traceback" not in err
