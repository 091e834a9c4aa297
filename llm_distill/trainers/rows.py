"""Samples as token rows: the prompt exactly as inference sends it, the completion, one end token.

The chat template renders the prompt and nothing else. What follows it is what the student would have to generate: the
teacher's text untouched (templates strip it, or cut reasoning out of it), then the token at which generation stops.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llm_distill.errors import UserError
from llm_distill.records import Message, Sample

#: The label of a token that is read but not learnt (PyTorch's `ignore_index`).
UNTRAINED = -100


@dataclass(frozen=True)
class Row:
    """One tokenised sample. `prompt_tokens` ids are read, the rest are learnt."""

    row_id: str
    input_ids: list[int]
    prompt_tokens: int

    @property
    def labels(self) -> list[int]:
        """`input_ids` with the prompt masked."""
        return [UNTRAINED] * self.prompt_tokens + self.input_ids[self.prompt_tokens :]

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt, the end token among them."""
        return len(self.input_ids) - self.prompt_tokens


def make_rows(
    samples: Sequence[Sample],
    tokenizer: Any,
    stop_ids: Collection[int],
    max_length: int,
    completions: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[Row]:
    """One row per sample, in order. `stop_ids` are the ids at which the student's generation stops; `completions` are those
    known as token ids already, by row_id: a text tokenised again need not be the tokens that were sampled.

    A sample that cannot be learnt whole is a UserError: nothing is ever cut to fit, since the cut loses the end token
    (and, of a reasoned answer, the answer).
    """
    if not samples:
        raise UserError("train: no samples; look at what the filters dropped with `llm-distill show RUN dropped`.")
    blank = [s.row_id for s in samples if not s.completion]
    if blank:
        raise UserError(f"train: {_count(blank, samples)} an empty completion; add `- empty` to the filters.")
    chat = bool(tokenizer.chat_template)
    end = end_token(tokenizer, stop_ids)
    prompts = [render(tokenizer, s.messages) for s in samples]
    # A template writes its own BOS, so the tokenizer must not add another; plain text gets the tokenizer's usual one.
    prompt_ids = tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
    whole_ids = tokenizer(
        [p + s.completion for p, s in zip(prompts, samples, strict=True)], add_special_tokens=not chat
    )["input_ids"]
    specials = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    spelt_out = re.compile("|".join(map(re.escape, sorted(specials))) or "(?!)")
    rows = []
    for sample, prompt, whole in zip(samples, prompt_ids, whole_ids, strict=True):
        if sample.row_id in completions:
            completion = list(completions[sample.row_id])
        elif prompt == whole[: len(prompt)] and not spelt_out.search(sample.completion):
            completion = whole[len(prompt) :]
        else:
            # Either the text merges across the boundary, where generation could never merge, or it spells out a
            # special token, which must be learnt as the text it is.
            completion = tokenizer(sample.completion, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows.append(Row(sample.row_id, [*prompt, *completion, end], len(prompt)))
    long = [r.row_id for r in rows if len(r.input_ids) > max_length]
    if long:
        longest = max(len(r.input_ids) for r in rows)
        raise UserError(
            f"train: {_count(long, samples)} more than max_length = {max_length} tokens (the longest {longest}). "
            f"Set train's max_length to {longest} (memory grows with it), or shorten what the student is shown."
        )
    return rows


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The prompt as text: through the chat template, ready for the answer, or plain where the model has none."""
    if not tokenizer.chat_template:
        return "\n\n".join(m.content for m in messages)
    from jinja2 import TemplateError

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise UserError(f"train: the student's chat template refuses the roles {roles}: {error}") from error


def end_token(tokenizer: Any, stop_ids: Collection[int]) -> int:
    """The id that ends an answer: the template's end of turn where generation stops there, else the EOS."""
    if tokenizer.chat_template:
        answer = "answer"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = text[text.rindex(answer) + len(answer) :]
        for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token in stop_ids:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise UserError("train: the student's tokenizer has no EOS token, so it could never learn to stop.")
    return int(tokenizer.eos_token_id)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The ids at which generation stops: the same sources as `models.decoding`."""
    config = model.config.get_text_config(decoder=True)
    ends = [source.eos_token_id for source in (model.generation_config, config, tokenizer)]
    return {i for end in ends if end is not None for i in (end if isinstance(end, list) else [end])}


def _count(found: Sequence[str], samples: Sequence[Sample]) -> str:
    return f"{len(found)} of {len(samples)} samples (first: row {found[0]}) have"
