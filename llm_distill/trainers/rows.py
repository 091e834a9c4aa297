"""Samples as token rows: the prompt exactly as inference sends it, the completion, one end token.

The chat template renders the prompt and nothing else. What follows it is what the student would have to generate: the
teacher's text untouched (templates strip it, or cut reasoning out of it), then the token at which generation stops.
What the assistant said earlier in the prompt may be learnt too, where the template shows it as it would be generated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from llm_distill.errors import UserError
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Message, Sample

#: The label of a token that is read but not learnt (PyTorch's `ignore_index`).
UNTRAINED = -100
#: Which of the assistant's turns are learnt: the answer, or those before it as well.
Turns = Literal["last", "all"]


@dataclass(frozen=True)
class Row:
    """One tokenised sample. `prompt_tokens` ids are read, the rest are learnt; so are the `turns` of the prompt, each from
    its first token up to behind its end token.
    """

    row_id: str
    input_ids: list[int]
    prompt_tokens: int
    turns: tuple[tuple[int, int], ...] = ()

    @property
    def learnt(self) -> tuple[tuple[int, int], ...]:
        """Where what is learnt begins and ends, turn by turn."""
        return (*self.turns, (self.prompt_tokens, len(self.input_ids)))

    @property
    def labels(self) -> list[int]:
        """`input_ids` with all that is only read masked."""
        labels = [UNTRAINED] * len(self.input_ids)
        for start, stop in self.learnt:
            labels[start:stop] = self.input_ids[start:stop]
        return labels

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt, the end tokens among them."""
        return sum(stop - start for start, stop in self.learnt)


def make_rows(
    samples: Sequence[Sample],
    tokenizer: Any,
    stop_ids: Collection[int],
    max_length: int | None,
    completions: Mapping[str, Sequence[int]] = MappingProxyType({}),
    turns: Turns = "last",
) -> list[Row]:
    """One row per sample, in order. `stop_ids` are the ids at which the student's generation stops; `completions` are those
    known as token ids already, by row_id: a text tokenised again need not be the tokens that were sampled.

    `turns: all` learns what the assistant said earlier in a row's messages as well. A sample that cannot be learnt whole
    is a UserError: nothing is ever cut to fit, since the cut loses the end token (and, of a reasoned answer, the answer). Without
    a `max_length` how long rows may be is for the caller to see, with `too_long`.
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
    # A tokenizer's own blank is what a text that begins with one was read off: two of them nobody wrote.
    own = lead(tokenizer, prompts[0])
    texts = [s.completion.removeprefix(own) or s.completion for s in samples]
    whole_ids = tokenizer([p + t for p, t in zip(prompts, texts, strict=True)], add_special_tokens=not chat)[
        "input_ids"
    ]
    spelt_out = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "(?!)")
    rows = []
    for sample, text, prompt, whole in zip(samples, texts, prompt_ids, whole_ids, strict=True):
        if sample.row_id in completions:
            completion = list(completions[sample.row_id])
        elif prompt == whole[: len(prompt)] and not spelt_out.search(text):
            completion = whole[len(prompt) :]
        else:
            # Either the text merges across the boundary, where generation could never merge, or it spells out a
            # special token, which must be learnt as the text it is.
            completion = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        earlier = earlier_turns(tokenizer, sample, prompt, end) if turns == "all" else ()
        rows.append(Row(sample.row_id, [*prompt, *completion, end], len(prompt), earlier))
    if max_length is not None and (long := too_long(rows, max_length)):
        raise UserError(f"train: {' '.join(long)}")
    return rows


def lead(tokenizer: Any, prompt: str) -> str:
    """What the tokenizer puts before the answer to a prompt: a blank, as Llama 2's and Mistral's do behind a special token, or
    nothing.
    """
    special = {"add_special_tokens": not tokenizer.chat_template}
    ids, whole = tokenizer(prompt, **special)["input_ids"], tokenizer(f"{prompt}x", **special)["input_ids"]
    first = whole[len(ids) :][:1] if whole[: len(ids)] == ids else []
    return " " if any(Vocabulary.of(tokenizer).token(number).startswith(b" ") for number in first) else ""


def too_long(rows: Sequence[Row], max_length: int) -> tuple[str, str] | None:
    """What is wrong with rows of more tokens than that, how many and which, and what repairs it; None where there are none."""
    long = sorted((row for row in rows if len(row.input_ids) > max_length), key=lambda row: -len(row.input_ids))
    if not long:
        return None
    longest = ", ".join(f"{len(row.input_ids):,} of row {row.row_id}" for row in long[:3])
    prompts = sum(row.prompt_tokens > max_length for row in long)
    alone = f", {prompts:,} of them in the prompt alone" if prompts else ""
    return (
        f"{len(long):,} of {len(rows):,} rows ({len(long) / len(rows):.1%}) have more than max_length = {max_length} tokens (the "
        f"longest {longest}){alone}.",
        f"Set train's max_length to {len(long[0].input_ids)} (memory grows with it), or shorten what the student is shown.",
    )


def special_tokens(tokenizer: Any) -> list[str]:
    """What the tokenizer reads as a sign of its own wherever it stands, and leaves out of the text that was generated."""
    return sorted(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)


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


def earlier_turns(tokenizer: Any, sample: Sample, prompt: Sequence[int], end: int) -> tuple[tuple[int, int], ...]:
    """Where in the prompt's ids the assistant's turns stand, each up to behind its end token.

    What is learnt must be what would have been generated there: the prompt up to the turn has to begin the whole, as text and
    as tokens, and the turn to follow it unchanged, with its end token behind. A template that strips reasoning from earlier
    turns, or opens each answer with something that history does not show, is a UserError.
    """
    said = [i for i, message in enumerate(sample.messages) if message.role == "assistant"]
    if said and not tokenizer.chat_template:
        raise UserError(
            f"train: row {sample.row_id} has earlier turns, and the student has no chat template, so nothing would end them; "
            "use `turns: last`, or a student that was tuned on conversations."
        )

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    spans, whole = [], render(tokenizer, sample.messages) if said else ""
    for turn in said:
        before, content = render(tokenizer, sample.messages[:turn]), sample.messages[turn].content
        for text in (content, content.strip()):  # templates may trim what they show
            start, stop = len(ids(before)), len(ids(before + text))
            if (
                whole.startswith(before + text)
                and start < stop < len(prompt)
                and [*ids(before), *prompt[start:stop], end] == [*ids(before + text), end] == list(prompt[: stop + 1])
            ):
                spans.append((start, stop + 1))
                break
        else:
            raise UserError(
                f"train: the student's chat template does not show turn {turn + 1} of row {sample.row_id} as the student would "
                f"generate it: where its prompt ends in {before[-40:]!r}, it has {_following(whole, before)[:40]!r}. "
                "Use `turns: last`."
            )
    return tuple(spans)


def _following(whole: str, before: str) -> str:
    """What a text has behind the beginning that it shares with another."""
    same = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(before))
    return whole[same:]


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
