"""A vLLM server of one's own: started when it is first asked, asked like any endpoint, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.models import Model
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.servers import Server, check_port, free_port
from llm_distill.models.vllm_setup import Setup, arguments
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.weights import cache
from llm_distill.plugs import InputFile, Program, Weights
from llm_distill.prices import FREE
from llm_distill.records import Completion, Request, content_id

#: A server that dies while it answers is started again this often; then something is wrong with it.
_RESTARTS = 2
#: What is said once here, or must not be said: who may reach the server, whose code it runs, what its file would say.
_OURS = (
    "model", "served_model_name", "host", "port", "uds", "api_key", "middleware", "config", "trust_remote_code",
    "lora_modules", "dtype", "max_model_len", "max_logprobs", "logprobs_mode", "chat_template", "gpu_memory_utilization",
)  # fmt: skip
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
#: Ours, not those of another interpreter.
_PYTHONS_OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
#: It asks nobody and tells nobody; and an idle connection is ours to close, so that none is lost when it is used again.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
}
#: Where this process keeps the keys of running servers: its own environment, under names that begin so.
_KEY = "LLM_DISTILL_VLLM_KEY_"
_OUTSIDE = Path(__file__).parent / "outside"


class VllmModel(Model):
    """A model behind `python -m vllm.entrypoints.openai.api_server` on 127.0.0.1, which this process starts and stops.

    `python`: the interpreter of the environment that holds vLLM, where that is not this one. `adapter`: a LoRA folder
    for the model. `raw_only`: these weights have no chat template, and are asked in raw text. `port`: 0 takes a free
    one. `extra_args` go to the server, `env` into its environment, `extra_body` into every request. The server is up
    from the first request until `unload`, and goes down with this process, whatever ends it; a key made for each start
    keeps everybody else out. There is no price: it costs no API money.
    """

    prices = FREE
    holds_weights = True
    #: Knobs that no answer depends on: where the server runs and how fast.
    pace_knobs = ("python", "port", "env", "gpu_memory_utilization", "max_logprobs", "startup_timeout_s")

    def __init__(
        self,
        *,
        model: Weights,
        sha256: str | None = None,
        revision: str | None = None,
        adapter: Weights | None = None,
        python: Program | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        max_model_len: Annotated[int | None, Field(ge=1)] = None,
        max_logprobs: Annotated[int, Field(ge=0)] = 20,
        chat_template: InputFile | None = None,
        raw_only: bool = False,
        gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1)] = None,
        port: Annotated[int, Field(ge=0, le=65535)] = 0,
        extra_args: list[str | int | float] | None = None,
        env: dict[str, str | int | float] | None = None,
        extra_body: dict[str, Any] | None = None,
        concurrency: Annotated[int, Field(ge=1)] = 256,
        timeout_s: Annotated[float, Field(gt=0)] = 600.0,
        startup_timeout_s: Annotated[float, Field(gt=0)] = 900.0,
        terms: str | None = None,
    ) -> None:
        given = arguments(extra_args or ())
        for name in given:
            if _SECRET.search(name):
                raise UserError(
                    f"extra_args: --{name} looks like a secret; export it, the server inherits the environment."
                )
            if any(ours.startswith(name) for ours in _OURS):  # argparse takes a name's beginning
                raise UserError(
                    f"extra_args: --{name} is a knob of its own, or is not given so that the server stays ours."
                )
        for name in env or ():
            if _SECRET.search(name):
                raise UserError(f"env: {name} looks like a secret; export it instead, the server inherits it.")
        self._setup = Setup(
            model, sha256, revision, adapter, dtype, max_model_len, chat_template, raw_only, given, extra_body
        )
        self.identity = self._setup.identity
        self.concurrency, self.terms = concurrency, terms
        self._python, self._port, self._arguments = python or sys.executable, port, [*map(str, extra_args or ())]
        self._env = {name: str(value) for name, value in (env or {}).items()}
        self._memory, self._max_logprobs, self._startup_s = gpu_memory_utilization, max_logprobs, startup_timeout_s
        self._asking: dict[str, Any] = {"concurrency": concurrency, "timeout_s": timeout_s, "extra_body": extra_body}
        self._key_env = f"{_KEY}{os.getpid()}_{id(self)}"
        self._server: Server | None = None
        self._starting: asyncio.Task[OpenAIModel] | None = None
        self._api: OpenAIModel | None = None
        self._url = ""
        self._deaths = 0

    @property
    def vocabulary(self) -> Vocabulary:
        """What spells the ids in its logprobs."""
        return self._setup.vocabulary

    @property
    def name(self) -> str:
        """What its server calls the model."""
        return self._setup.name

    def preflight(self) -> None:
        """Check the weights, the interpreter, that vLLM is installed for it, and the port. Starts no server."""
        self._setup.folder()
        _ = self.vocabulary
        self._interpreter()
        if self._port and self._server is None:
            check_port(self._port)

    @property
    def spells_special(self) -> bool:
        """Whether its text holds special tokens, so that one of them may be what it stops at."""
        return (self._asking["extra_body"] or {}).get("skip_special_tokens") is False

    def tokenizer(self) -> Any:
        """What text is to it, with its chat template."""
        return self._setup.tokenizer()

    async def complete(self, request: Request) -> Completion:
        """Ask the server, which is started if it is not there. See Model.complete for the errors."""
        self._setup.check(request, self._max_logprobs)
        return await (await self._ready()).complete(request)

    async def streamed(self, request: Request) -> Completion:
        """The same by a stream."""
        self._setup.check(request, self._max_logprobs)
        return await (await self._ready()).streamed(request)

    def disk_bytes(self) -> int:
        """Of its weights, tokenizer and adapter."""
        return self._setup.disk_bytes()

    async def ready(self) -> OpenAIModel:
        """The running server, started if it is not there, for questions of another kind."""
        return await self._ready()

    async def close(self) -> None:
        """Close the connections. The server stays, and is found again from another event loop."""
        if self._starting is not None:
            self._starting.cancel()
            with suppress(asyncio.CancelledError, UserError):
                await self._starting
            self._starting = None
        if self._api is not None:
            await self._api.close()

    def unload(self) -> None:
        """Stop the server, which frees its memory; the next request starts another."""
        if self._server is not None:
            self._server.stop()
            self._server = self._api = None
            os.environ.pop(self._key_env, None)

    async def _ready(self) -> OpenAIModel:
        if self._api is not None and self._server is not None and self._server.alive:
            return self._api
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)  # one who gives up leaves it to the others

    async def _start(self) -> OpenAIModel:
        """Start the server where there is none, and wait until it answers."""
        if self._server is not None and self._api is not None:  # it answered once, and ended
            self._deaths += 1
            words = self._server.words()
            await self._api.close()
            await asyncio.to_thread(self.unload)
            if self._deaths > _RESTARTS:
                raise UserError(f"vllm: the server ended {self._deaths} times while it answered; at last: {words}")
        try:
            if self._server is None:
                command, env = await asyncio.to_thread(self._command)
                log = cache() / "logs" / f"vllm-{content_id([self.identity])[:8]}-{os.getpid()}-{self._deaths}.log"
                self._server = Server(command, env, log)
            key = os.environ[self._key_env]
            await self._server.ready(f"{self._url}/health", {"Authorization": f"Bearer {key}"}, self._startup_s)
        except UserError as error:
            await asyncio.to_thread(self.unload)
            raise UserError(f"vllm: {error}") from None
        self._api = OpenAIModel(
            model=self._setup.name,
            base_url=f"{self._url}/v1",
            api_key_env=self._key_env,
            token_ids=True,
            **self._asking,
        )
        return self._api

    def _command(self) -> tuple[list[str], dict[str, str]]:
        """The server's command and environment, with a new key in that; UserError where it cannot run."""
        setup, folder, python = self._setup, self._setup.folder(), self._interpreter()
        port = self._port or free_port()
        if self._port:
            check_port(port)
        command = [
            python, "-m", "vllm.entrypoints.openai.api_server",
            "--host=127.0.0.1", f"--port={port}", "--middleware=vllm_key.EveryPath",
            f"--model={folder}", f"--served-model-name={setup.base}", f"--dtype={setup.dtype}",
            f"--max-logprobs={self._max_logprobs}", "--logprobs-mode=raw_logprobs",  # before temperature, as everywhere
            "--generation-config=vllm",  # sampling is what a request says, not what the checkpoint's makers liked
            "--uvicorn-log-level=warning",  # no line a request
        ]  # fmt: skip
        if setup.max_model_len is not None:
            command.append(f"--max-model-len={setup.max_model_len}")
        if setup.chat_template is not None:
            command.append(f"--chat-template={setup.chat_template}")
        if self._memory is not None:
            command.append(f"--gpu-memory-utilization={self._memory}")
        if setup.adapter is not None:
            module = json.dumps({"name": setup.name, "path": str(Path(setup.adapter).resolve())})
            command += ["--enable-lora", f"--max-lora-rank={setup.rank()}", f"--lora-modules={module}"]
        self._url = f"http://127.0.0.1:{port}"
        os.environ[self._key_env] = secrets.token_urlsafe(32)
        return command + self._arguments, self._environment(python)

    def _environment(self, python: str) -> dict[str, str]:
        env = _inherited(python) | _QUIET | self._env
        # An environment's compilers are beside its interpreter.
        paths = {"PYTHONPATH": str(_OUTSIDE), "PATH": str(Path(python).parent)}
        paths = {name: os.pathsep.join(filter(None, (path, env.get(name)))) for name, path in paths.items()}
        return env | paths | {"VLLM_API_KEY": os.environ[self._key_env]}

    def _interpreter(self) -> str:
        """The interpreter's path; UserError when it is not there or has no vLLM. Asked without importing vLLM."""
        python = shutil.which(self._python)
        if python is None:
            raise UserError(
                f"python: {self._python}: no such program; name the bin/python of the environment that holds vLLM."
            )
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(  # noqa: S603 - the interpreter that the recipe names
                [python, "-c", code], env=_inherited(python), cwd="/", capture_output=True, timeout=60, check=True
            )
            return python
        raise UserError(
            f"vllm is not installed for {python}; `pip install vllm` into an environment and name its bin/python as `python`."
        )


def _inherited(python: str) -> dict[str, str]:
    """Our environment, less what is meant for this interpreter alone."""
    own = () if python == sys.executable else _PYTHONS_OWN
    return {k: v for k, v in os.environ.items() if k not in own and not k.startswith(_KEY)}
