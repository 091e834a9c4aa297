"""The nouns: Message, Prompt, Sampling, Request, Completion, Answer, and the ids that tie them together.

Ids are content hashes (BLAKE2b, 128 bits, hex): equal content has an equal id in every run and on every machine,
which is what lets a crash, a rerun or another recipe find an answer that was already paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from llm_distill.logprobs import Logprobs

Role = Literal["system", "user", "assistant"]
Status = Literal["ok", "truncated", "refused", "filtered", "failed"]
#: How the reason of a row begins whose answer does not fit the recipe's schema.
MISFIT = "schema: "


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(msgspec.Struct, frozen=True):
    """A row before anyone has answered it. `label` and `reference` are gold, never shown to a model."""

    row_id: str
    prompt_id: str
    messages: tuple[Message, ...]
    tags: dict[str, str] = {}
    label: str | None = None
    reference: str | None = None

    @property
    def text(self) -> str:
        """The row's own text: what its user turns say."""
        return "\n".join(m.content for m in self.messages if m.role == "user")

    @property
    def gist(self) -> str:
        """All turns, case and blank space aside: rows of equal gist count as the same row."""
        return "\n".join(f"{m.role}: {' '.join(m.content.casefold().split())}" for m in self.messages)


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a completion is drawn. Every field that is set is part of a request's id; unset ones are left out of it, so that
    a field added later leaves the ids of what was paid for before as they are.

    `top_logprobs` is the number of alternatives a token; None asks for no logprobs at all. `schema` is a JSON Schema as
    text, for endpoints that hold an answer to one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    schema: str | None = None


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question to one model: the unit that is paid for. `raw` messages are text to go on with, no conversation."""

    messages: tuple[Message, ...]
    sampling: Sampling
    sample: int = 0
    raw: bool = False

    def key(self, model_identity: str) -> str:
        """The id under which the ledger keeps the answer."""
        return content_id([model_identity, self])


class Completion(msgspec.Struct, frozen=True):
    """What a model gave back for one request.

    finish_reason: `stop`, `length`, `content_filter` or whatever else the server says. `seconds` is the time the
    answer took: latency for a remote model, the answer's share of its batch for a local one. `reasoning` is what the
    server gave apart from the text; what a text itself holds of it is found when it is read (`reasoning.separate`).
    `cached_tokens` of the prompt's came from the provider's prompt cache, `cache_write_tokens` went into it; None where it
    says nothing of them. `packed` are its logprobs in their compact bytes, in place of `logprobs`, where they were read in
    another process. `first_token_s`: when its first token was there, in seconds from the beginning, where that was seen; of a
    batch, the batch's.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    model: str = ""
    fingerprint: str | None = None
    refusal: str | None = None
    logprobs: Logprobs | None = None
    seconds: float = 0.0
    reasoning: str | None = None
    packed: bytes | None = None
    first_token_s: float | None = None

    @property
    def status(self) -> Status:
        """ok, truncated, refused or filtered; a completion that never arrived is `failed`, decided by `ask`."""
        if self.refusal or self.finish_reason == "refusal":  # Anthropic's word
            return "refused"
        if self.finish_reason.casefold().startswith(("content_filter", "safety")):  # Gemini adds what it found
            return "filtered"
        return "truncated" if self.finish_reason in ("length", "max_tokens", "model_length") else "ok"


class Entry(msgspec.Struct, frozen=True):
    """A settled request, as the ledger keeps it. `logprobs` are packed (`Logprobs.pack`).

    `charged_*` is what counts against a budget: the usage that came back, or the upper estimate where none did.
    """

    key: str
    status: Status
    reason: str | None = None
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost_usd: float | None = None
    attempts: int = 0
    served_model: str = ""
    fingerprint: str | None = None
    terms: str | None = None
    seconds: float = 0.0
    charged_usd: float = 0.0
    charged_tokens: int = 0
    logprobs: bytes | None = None
    reasoning: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """A prompt with its answer: one row of `answers.parquet`, and what scorers and metrics read.

    `prediction` is the parsed label (classify) or None; `label_probs` the probability of each label in the task's
    order, from logprobs; the rest of the mass went to answers that are no label. `requests` are ledger keys. `role` and
    `model` say who answered, joined by `+` where several made a label together; `terms` are those of all who were asked,
    joined likewise. `agreement` is how far the row's answers agree, where there are several.
    """

    prompt: Prompt
    text: str
    status: Status
    reason: str | None = None
    prediction: str | None = None
    label_probs: tuple[float, ...] | None = None
    model: str = ""
    terms: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    mean_logprob: float | None = None
    requests: tuple[str, ...] = ()
    role: str = ""
    agreement: float | None = None
    reasoning: str | None = None

    @property
    def owed(self) -> bool:
        """Whether a later run should ask again: no answer ever came. One that does not fit its schema was given and paid."""
        return self.status == "failed" and not (self.reason or "").startswith(MISFIT)


class Sample(msgspec.Struct, frozen=True):
    """One training example: what the student is shown and what it should say.

    `completion` is the teacher's: its text, or its label. `gold` is what people say it should be, where that is known;
    `answer` is what the teacher's answer was read from.
    """

    row_id: str
    messages: tuple[Message, ...]
    completion: str
    gold: str | None = None
    answer: Answer | None = None


#: Asks the model of a role: the entries of its questions, in their order; those without an answer are `failed`.
Ask = Callable[[str, Sequence[Request]], list[Entry]]


def as_text(messages: Sequence[Message]) -> str:
    """What a `raw` request is: the contents, with a blank line between, as one text to go on with."""
    return "\n\n".join(message.content for message in messages)


def content_id(content: Any) -> str:
    """128-bit hex id of any msgspec-encodable content, with sorted keys."""
    return blake2b(msgspec.json.encode(content, order="sorted"), digest_size=16).hexdigest()


def make_prompt(
    messages: tuple[Message, ...],
    tags: Mapping[str, str] | None = None,
    label: str | None = None,
    reference: str | None = None,
    occurrence: int = 0,
) -> Prompt:
    """A prompt with its ids. Equal messages share a prompt_id; `occurrence` keeps their row_ids apart."""
    prompt_id = content_id(messages)
    return Prompt(content_id([prompt_id, occurrence]), prompt_id, messages, dict(tags or {}), label, reference)
