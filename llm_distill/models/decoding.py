"""From token ids to completions: one batch at a time through a loaded model.

Every prompt of a batch is right-aligned. Their common beginning is run once; its keys and values are then laid behind
each row's own padding, so that a row sees exactly what it would see alone (also through sliding-window layers, where
padding between the beginning and the rest would eat into the window).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_distill.errors import Rejected
from llm_distill.logprobs import Logprobs
from llm_distill.models.batches import by_beginning, common_length
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Completion, Message, Request, Sampling, as_text

#: Beginnings kept between batches: a recipe asks with a few prompt variants at a time, and each costs GPU memory.
_KEPT = 4
#: A beginning shorter than this is not worth a forward pass of its own.
_SHORT = 16
#: A kept beginning is used in place of a slightly longer one that would have to be run first.
_CLOSE = 0.9


@dataclass(eq=False)
class Row:
    """One request on its way: `outcome` is there when it is over. `cancelled` says that nobody waits any more."""

    request: Request
    cancelled: Callable[[], bool] = lambda: False
    ids: list[int] = field(default_factory=list)
    outcome: Completion | Rejected | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of equal sampling that go through the model together, and a beginning that all of them share."""

    rows: list[Row]
    beginning: tuple[int, ...]


class Engine:
    """A loaded model with its tokenizer. Not for several threads at once."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, identity: str, batch_size: int) -> None:
        from transformers import DynamicCache, GenerationConfig
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self.model, self.tokenizer, self.vocabulary = model, tokenizer, Vocabulary.of(tokenizer)
        self.name, self.identity, self.batch_size = name, identity, batch_size
        config = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        ends = [source.eos_token_id for source in (model.generation_config, config, tokenizer)]
        self.ends = {i for end in ends if end is not None for i in (end if isinstance(end, list) else [end])}
        # generate() fills what a caller leaves open from the checkpoint's own settings (temperature, penalties).
        model.generation_config = GenerationConfig()
        # Only plain keys and values can be moved; recurrent states, chunks and shared layers cannot.
        plain = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        layers = DynamicCache(config=config).layers if plain else [None]
        self._movable = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        self._beginnings: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}

    def plan(self, rows: Sequence[Row]) -> list[Batch]:
        """Tokenise and arrange rows; those that do not fit get their outcome here."""
        for row in rows:
            row.outcome = self._encode(row)
        batches = []
        for sampling in dict.fromkeys(row.request.sampling for row in rows):
            alike = [row for row in rows if row.outcome is None and row.request.sampling == sampling]
            for places in by_beginning([row.ids for row in alike]):
                group = sorted((alike[place] for place in places), key=lambda row: -len(row.ids))
                beginning = _common([row.ids for row in group])
                starts = range(0, len(group), self.batch_size)
                batches += [Batch(group[start : start + self.batch_size], beginning) for start in starts]
        return batches

    def answer(self, batch: Batch) -> None:
        """Give every row of the batch its outcome (none where nobody waits for it any more)."""
        import torch

        try:
            self._generate(batch)
        except torch.OutOfMemoryError:
            self._beginnings.clear()
            torch.cuda.empty_cache()
            if len(batch.rows) == 1:
                batch.rows[0].outcome = Rejected(f"{len(batch.rows[0].ids)} prompt tokens do not fit the GPU's memory")
                return
            half = len(batch.rows) // 2
            for rows in (batch.rows[:half], batch.rows[half:]):
                self.answer(Batch(rows, batch.beginning))

    def _encode(self, row: Row) -> Rejected | None:
        try:
            row.ids = encode(self.tokenizer, row.request.messages, raw=row.request.raw)
        except Rejected as error:
            return error
        tokens, most = len(row.ids), row.request.sampling.max_tokens
        if not tokens:
            return Rejected("the prompt has no tokens")
        if self.context and tokens + most > self.context:
            return Rejected(f"{tokens} prompt tokens and max_tokens {most} exceed the context of {self.context}")
        return None

    def _generate(self, batch: Batch) -> None:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        began = time.perf_counter()
        rows, device = batch.rows, self.model.device
        width = max(len(row.ids) for row in rows)
        padding = [width - len(row.ids) for row in rows]
        ids = [[0] * pad + row.ids for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row.ids) for pad, row in zip(padding, rows, strict=True)]
        draw = Draw(self, rows)
        with torch.no_grad():
            self.model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                past_key_values=self._begun(batch, padding),
                generation_config=GenerationConfig(max_new_tokens=rows[0].request.sampling.max_tokens, do_sample=False),
                logits_processor=LogitsProcessorList([draw.choose]),
                stopping_criteria=StoppingCriteriaList([draw.finished]),
            )
        draw.settle((time.perf_counter() - began) / len(rows), draw.first - began)

    def _begun(self, batch: Batch, padding: list[int]) -> Any:
        """A cache that holds the shared beginning of right-aligned rows, or None where there is nothing to share."""
        import torch
        from transformers import DynamicCache

        wanted = batch.beginning[: min(len(row.ids) for row in batch.rows) - 1]  # one token is left to be run
        best = max(self._beginnings, key=lambda known: common_length(known, wanted), default=())
        length = common_length(best, wanted)
        if length < _CLOSE * len(wanted) and len(wanted) >= _SHORT and len(batch.rows) > 1 and self._movable:
            cache = DynamicCache()  # without a config no layer drops what has left its window
            prompt = torch.tensor([wanted], device=self.model.device)
            self.model.base_model(input_ids=prompt, past_key_values=cache, use_cache=True)
            best, length = wanted, len(wanted)
            self._beginnings[best] = [(layer.keys, layer.values) for layer in cache.layers]
        if length < _SHORT:
            return None
        layers = self._beginnings[best] = self._beginnings.pop(best)  # the last used is the last to go
        while len(self._beginnings) > _KEPT:
            del self._beginnings[next(iter(self._beginnings))]
        # Column c of a row that is padded by p is token c - p of the beginning; columns in the padding are masked, and
        # what a short row misses at the end of its beginning is run with the rest of it.
        shift = torch.tensor(padding, device=self.model.device)[:, None]
        place = (torch.arange(length, device=self.model.device) - shift).clamp(min=0)  # (batch, length)
        moved = DynamicCache(config=self.model.config)
        for number, states in enumerate(layers):  # each (1, heads, tokens, size)
            moved.update(*(state[0][:, place].transpose(0, 1) for state in states), number)
        return moved


def encode(tokenizer: Any, messages: Sequence[Message], *, raw: bool = False) -> list[int]:
    """Token ids of a conversation: through the chat template, which writes its own BOS, up to the answer's start.

    `raw`, and for a base model, which has no template: the contents, with a blank line between, as text to go on with.
    """
    from jinja2 import TemplateError

    ids: list[int]
    if raw or tokenizer.chat_template is None:
        ids = tokenizer(as_text(messages))["input_ids"]
        return ids
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    except TemplateError as error:
        raise Rejected(f"the model's chat template refuses these messages: {error}") from error
    return ids


class Draw:
    """Chooses each next token of a batch and keeps what was chosen and how likely it was.

    A row's random numbers come from its own request, so that its answer does not depend on who shares its batch.
    """

    def __init__(self, engine: Engine, rows: list[Row]) -> None:
        self.engine, self.rows = engine, rows
        self.sampling: Sampling = rows[0].request.sampling
        self.stops = [stop.encode() for stop in self.sampling.stop]
        self.random = [random.Random(int(row.request.key(engine.identity), 16)) for row in rows]
        self.ids: list[list[int]] = [[] for _ in rows]
        self.text = [bytearray() for _ in rows]
        self.reasons: list[str | None] = [None] * len(rows)
        self.first = 0.0  # when the first tokens were there
        self.seen: list[list[np.ndarray]] = []  # a step: chosen (batch, 1), top and top ids (batch, k)

    def choose(self, _ids: Any, logits: Any) -> Any:
        """Logits (batch, vocabulary), float32 and raw -> scores that leave one choice a row: a logits processor."""
        import torch

        greedy = self.sampling.temperature == 0
        chosen = logits.argmax(-1, keepdim=True) if greedy else self._sample(logits)
        if self.sampling.top_logprobs is not None:
            total = logits.logsumexp(-1, keepdim=True)
            top = logits.topk(min(self.sampling.top_logprobs, logits.shape[-1]))
            columns = (logits.gather(-1, chosen) - total, top.values - total, top.indices)
            self.seen.append([column.cpu().numpy() for column in columns])
        for row, token in enumerate(chosen[:, 0].tolist()):
            if self.reasons[row] is None:
                self._take(row, token)
        self.first = self.first or time.perf_counter()
        return logits if greedy else torch.full_like(logits, -torch.inf).scatter(-1, chosen, 0.0)

    def _sample(self, logits: Any) -> Any:
        """One draw a row by inverse transform: (batch, 1). A single random number a step, whatever the vocabulary."""
        import torch

        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        shares = torch.softmax(logits / self.sampling.temperature, -1, dtype=precise)
        order = None
        if self.sampling.top_p < 1:
            shares, order = shares.sort(descending=True)
            before = shares.cumsum(-1) - shares
            shares = shares.masked_fill((before >= self.sampling.top_p) & (before > 0), 0)
        upto = shares.cumsum(-1)
        numbers = torch.tensor([[source.random()] for source in self.random], dtype=precise, device=logits.device)
        place = torch.searchsorted(upto, numbers * upto[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        return place if order is None else order.gather(-1, place)

    def _take(self, row: int, token: int) -> None:
        self.ids[row].append(token)
        text, spelling = self.text[row], self.engine.vocabulary.token(token)
        if token in self.engine.ends:
            self.reasons[row] = "stop"
        elif token in self.engine.vocabulary.special:
            if spelling in self.stops:  # it is no text, and may still be what ends it: a user's turn, for one
                self.reasons[row] = "stop"
        else:
            text += spelling
            # Only what the last token can have completed is searched.
            found = [text.find(stop, max(0, len(text) - len(spelling) - len(stop))) for stop in self.stops]
            if cut := [place for place in found if place >= 0]:
                del text[min(cut) :]
                self.reasons[row] = "stop"

    def finished(self, ids: Any, _scores: Any) -> Any:
        """(batch,) bool: a stopping criterion. A row that nobody waits for is finished."""
        import torch

        over = [self.reasons[row] is not None or self.rows[row].cancelled() for row in range(len(self.rows))]
        return torch.tensor(over, device=ids.device)

    def settle(self, seconds: float, first_token_s: float) -> None:
        """Turn what was kept into the rows' outcomes."""
        for place, row in enumerate(self.rows):
            if self.reasons[place] is None and row.cancelled():
                continue
            row.outcome = Completion(
                text=self.text[place].decode("utf-8", errors="replace"),
                finish_reason=self.reasons[place] or "length",
                prompt_tokens=len(row.ids),
                completion_tokens=len(self.ids[place]),
                model=self.engine.name,
                fingerprint=self.engine.identity,
                logprobs=self._logprobs(place) if self.seen else None,
                seconds=seconds,
                first_token_s=first_token_s,
            )

    def _logprobs(self, place: int) -> Logprobs:
        """The tokens of the text, then the EOS or the rest of the stop string that ended it, if one did."""
        ids = self.ids[place]
        logprobs, top, top_ids = (np.stack([step[i][place] for step in self.seen[: len(ids)]]) for i in range(3))
        return Logprobs.of_ids(ids, logprobs[:, 0], top_ids, top, self.engine.vocabulary.token)


def _common(prompts: Sequence[list[int]]) -> tuple[int, ...]:
    first, last = min(prompts), max(prompts)  # of all prompts these two differ earliest
    return tuple(first[: common_length(first, last)])
