"""What vLLM is given to load, however it is run: weights, adapter, chat template, and what they are by content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.models.footprint import disk_bytes
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from llm_distill.records import Request, content_id

#: The ranks that vLLM has kernels for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Arguments that say on what, with how much memory and how fast vLLM computes, not what.
_PACE = {
    "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "tensor_parallel_size",
    "pipeline_parallel_size", "data_parallel_size", "tp", "pp", "dp", "distributed_executor_backend",
    "cpu_offload_gb", "swap_space",
    "enable_prefix_caching", "no_enable_prefix_caching", "max_parallel_loading_workers", "load_format",
    "safetensors_load_strategy", "disable_log_stats", "api_server_count",
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Weights for vLLM. `identity` is what answers depend on, and the same for the server and the engine in process.

    `max_model_len` belongs to it: vLLM silently cuts `max_tokens` to what the context leaves, so that a longer context
    gives another answer. Where and with how much memory vLLM runs does not belong to it.
    """

    model: str
    sha256: str | None
    revision: str | None
    adapter: str | None
    dtype: str
    max_model_len: int | None
    chat_template: Path | None
    raw_only: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    extra_body: Mapping[str, Any] | None = None
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        """Find out what the weights are; loads nothing."""
        template = self.chat_template and self.chat_template.read_text("utf-8")
        arguments = {name: value for name, value in self.arguments.items() if name not in _PACE}
        more = [self.max_model_len, template, arguments, self.extra_body]
        content = weights.identity(self.model, self.sha256, self.revision, self.adapter)
        suffix = f":{content_id(more)}" if any(more) else ""
        object.__setattr__(self, "identity", f"vllm:{content}:{self.dtype}{suffix}")

    @property
    def base(self) -> str:
        """The name that the model is served under, without its adapter."""
        return Path(self.model).name if Path(self.model).exists() else self.model

    @property
    def name(self) -> str:
        """The name that answers: the model's, or that of the adapter on it."""
        return f"{self.base}+{Path(self.adapter).name}" if self.adapter else self.base

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What spells the ids of its tokens. UserError where that cannot be read."""
        local = Path(self.model).exists()  # a .gguf is read as it is
        found = read_vocabulary(self.model if local else weights.prepare(self.model, self.sha256, self.revision))
        found.name = self.base
        return found

    def folder(self) -> str:
        """The weights' folder. UserError when they, the adapter on them or the chat template are not as they must be.

        Converts a .gguf and downloads from the hub when that was never done here.
        """
        folder = weights.prepare(self.model, self.sha256, self.revision)
        if self.adapter:
            weights.check_adapter(self.adapter, weights.fingerprint(self.model, self.sha256, self.revision))
        if self.chat_template is None and not self.raw_only and not _has_template(Path(folder)):
            raise UserError(
                f"{self.model}: these weights have no chat template, so no conversation can be put to them; name a file "
                "with one as `chat_template`, or say `raw_only: true` and ask in `raw` text, or use a chat model."
            )
        return folder

    def disk_bytes(self) -> int:
        """Of its weights, tokenizer and adapter."""
        return disk_bytes(self.model, self.sha256, self.revision, self.adapter)

    def tokenizer(self) -> Any:
        """What text is to it, with the chat template that it is served with."""
        found = weights.load_tokenizer(self.folder())
        if self.chat_template:
            found.chat_template = self.chat_template.read_text("utf-8")
        return found

    def check(self, request: Request, max_logprobs: int) -> None:
        """UserError when a request cannot be put to this model, so that nothing is started for it."""
        wanted = request.sampling.top_logprobs
        if wanted is not None and wanted > max_logprobs:
            raise UserError(f"max_logprobs: {max_logprobs} is less than top_logprobs = {wanted}; raise it.")
        if self.raw_only and not request.raw:
            raise UserError(
                "raw_only: a conversation cannot be put to this model; ask in `raw` text, or remove `raw_only`."
            )

    def rank(self) -> int:
        """The least rank that vLLM has kernels for and that holds the adapter."""
        settings = json.loads((Path(self.adapter or "") / "adapter_config.json").read_text("utf-8"))
        rank = max(settings["r"], *(settings.get("rank_pattern") or {}).values(), 0)
        fitting = [known for known in _RANKS if known >= rank]
        if not fitting:
            raise UserError(f"{self.adapter}: its rank is {rank}, vLLM serves up to {_RANKS[-1]}; train a smaller one.")
        return fitting[0]


def arguments(line: Sequence[str | int | float]) -> dict[str, str]:
    """Arguments of a command line by name, as EngineArgs spells it: `["--seed", 3]` and `["--seed=3"]` are {"seed": "3"}."""
    found: dict[str, str] = {}
    name = ""
    for part in map(str, line):
        flag, _, value = part.partition("=")
        if flag.startswith("-") and not flag[1:2].isdigit():
            name = flag.lstrip("-").replace("-", "_")
            found[name] = value
        else:
            found[name] = f"{found.get(name, '')} {part}".strip()
    return found


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", "chat_templates")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text("utf-8")).get("chat_template"))
