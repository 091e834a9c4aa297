"""Logprobs for answers that came without any: an open model reads each, and says what it found likely at each place.

A closed API or a person gives a text; a model whose weights are at hand gives the distributions behind it.
What it is shown is what the teacher was shown (of several worked examples the first ones), and then the answer, token
by token. For every row the bytes of these tokens are held against the answer's: where they differ, the row has no logprobs.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill import store
from llm_distill.errors import Rejected, UserError
from llm_distill.logprob_table import LOGPROBS
from llm_distill.logprob_writer import writing
from llm_distill.logprobs import Logprobs
from llm_distill.models import Model, weights
from llm_distill.models.decoding import encode
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.prompt_logprobs import AT_ONCE, Places, prompt_logprobs
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.models.vllm_server import VllmModel
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Answer
from llm_distill.tasks import Task, label_probs
from llm_distill.trainers.rows import end_token, render

if TYPE_CHECKING:
    from llm_distill.models.decoding import Engine
    from llm_distill.recipe import Plan

#: Logits held at a time, in numbers of 4 bytes.
_LOGITS = 1 << 26
_BATCH = 16


@dataclass(frozen=True)
class Text:
    """An answer as the model reads it: token ids, those from `start` on being the answer's, and the end of a whole one."""

    place: int
    ids: list[int]
    start: int


def attach(
    folder: store.RunFolder,
    plan: Plan,
    model: Model,
    show: Callable[[int, int, Mapping[str, Any]], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write logprobs.parquet beside a run's answers, and into these what follows from it: `mean_logprob`, `label_probs`, and
    the terms that the model's words stand under. Gives how many rows have logprobs, and why others have none.

    Nothing of it is paid for, so nothing is kept of an attempt that was stopped.
    """
    asked = plan.answers.attach
    assert asked is not None
    answers = store.read_answers(folder.file("answers.parquet"))
    tokenizer, ends = _reader(model)
    vocabulary = Vocabulary.of(tokenizer)
    why, texts = Counter[str](), list[Text]()
    for place, answer in enumerate(answers):
        text = as_read(plan.task, answer, place, tokenizer, vocabulary, ends)
        if isinstance(text, Text):
            texts.append(text)
        else:
            why[text] += 1
    found: dict[int, Logprobs] = {}
    for place, logprobs in _read(model, texts, vocabulary, asked.top_logprobs):
        if isinstance(logprobs, str):
            why[logprobs] += 1
        else:
            found[place] = logprobs
        show(len(found) + why.total(), len(answers), {})
    exact = plan.task.parse == "exact"
    rows = [
        _with(answer, found[place], plan.task, model.terms, exact=exact) if place in found else answer
        for place, answer in enumerate(answers)
    ]
    with writing(folder.file(LOGPROBS)) as add:
        for place, logprobs in sorted(found.items()):
            row = answers[place]
            key = row.requests[0] if row.requests else row.prompt.row_id
            add(row.prompt.row_id, key, _name(model), logprobs.pack(), None)
    model.unload()
    store.write_table(folder.file("answers.parquet"), map(store.answer_row, rows), "answers")
    say(f"attach: {len(found):,} of {len(answers):,} answers read{_reasons(why)}")
    if answers and not found:
        raise UserError(f"answers.attach: no answer could be read{_reasons(why)}; name another model.")
    return {"rows": len(found), "model": model.identity, "without": dict(sorted(why.items()))}


def _reasons(why: Counter[str]) -> str:
    return "".join(f"; {count:,} not: {reason}" for reason, count in why.most_common())


def as_read(
    task: Task, answer: Answer, place: int, tokenizer: Any, vocabulary: Vocabulary, ends: set[int]
) -> Text | str:
    """A row's question and answer as token ids, or why they cannot be."""
    if answer.status not in ("ok", "truncated"):
        return f"the answer is {answer.status}"
    if not answer.text:
        return "the answer is empty"
    view = task.teacher_view
    question = view.questions(answer.prompt, task.labels)[0]
    try:
        prompt = encode(tokenizer, question, raw=view.raw)
    except Rejected as error:
        return str(error)
    if not prompt:
        return "the prompt has no tokens"
    chat = tokenizer.chat_template is not None and not view.raw
    ids = _behind(prompt, render(tokenizer, question), answer.text, tokenizer, vocabulary) if chat else None
    if (ids := ids or _spelling(answer.text, tokenizer, vocabulary)) is None:
        return "its tokens do not spell the answer"
    end = [end_token(tokenizer, ends)] if answer.status == "ok" and chat else []
    return Text(place, [*prompt, *ids, *end], len(prompt))


def _behind(prompt: list[int], asked: str, text: str, tokenizer: Any, vocabulary: Vocabulary) -> list[int] | None:
    """The ids of an answer with the blank that some tokenizers put before any text that follows a special token, and which
    their models therefore say; None elsewhere, also where the text begins with it.
    """
    if text.startswith(" "):
        return None
    whole: list[int] = tokenizer(asked + text, add_special_tokens=False)["input_ids"]
    ids = whole[len(prompt) :]
    spelt = b"".join(map(vocabulary.token, ids))
    same = whole[: len(prompt)] == prompt and spelt == b" " + text.encode() and vocabulary.special.isdisjoint(ids)
    return ids if same else None


def _spelling(text: str, tokenizer: Any, vocabulary: Vocabulary) -> list[int] | None:
    """The ids of an answer as generation would have made them: not merged with what stands before, and none of them a special
    token, whatever the text spells. None where their bytes are not the text's.
    """
    wanted = text.encode()
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if b"".join(map(vocabulary.token, ids)) == wanted:
        return ids
    # Some tokenizers put a blank before any text: then it is read after a line break, where they put none.
    before = tokenizer("\n", add_special_tokens=False)["input_ids"]
    both = tokenizer("\n" + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = both[len(before) :]
    same = both[: len(before)] == before and b"".join(map(vocabulary.token, ids)) == wanted
    return ids if same else None


def _with(answer: Answer, logprobs: Logprobs, task: Task, terms: str | None, *, exact: bool) -> Answer:
    both = {*(answer.terms or "unknown").split("+"), *(terms or "unknown").split("+")}
    probs = label_probs(logprobs, task.labels, exact=exact) if task.kind == "classify" else None
    return msgspec.structs.replace(
        answer,
        mean_logprob=float(logprobs.logprobs.mean()),
        label_probs=probs,
        terms=None if both == {"unknown"} else "+".join(sorted(both)),
    )


def _reader(model: Model) -> tuple[Any, set[int]]:
    """The model's tokenizer, and the ids at which it stops."""
    if isinstance(model, TransformersModel):
        engine = model.engine()
        return engine.tokenizer, engine.ends
    tokenizer = model.tokenizer()
    if isinstance(model, OpenAIModel) and model.tokenizer_named:
        tokenizer = weights.load_tokenizer(model.tokenizer_named)
    return tokenizer, _stops(tokenizer)


def _stops(tokenizer: Any) -> set[int]:
    """The ids at which a served model stops, by what lies beside its tokenizer: Gemma's and Phi's turns do not end in its EOS."""
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (file := Path(tokenizer.name_or_path) / name).is_file():
            ends = json.loads(file.read_text("utf-8")).get("eos_token_id")
            found |= {*ends} if isinstance(ends, list) else {ends}
    return found - {None}


def _name(model: Model) -> str:
    """What its ids are of, as its own answers would say."""
    if isinstance(model, TransformersModel):
        return model.engine().name
    return model.name if isinstance(model, OpenAIModel | VllmModel) else model.identity


def _read(model: Model, texts: Sequence[Text], vocabulary: Vocabulary, k: int) -> Iterator[tuple[int, Logprobs | str]]:
    if isinstance(model, TransformersModel):
        yield from _forward(model.engine(), texts, vocabulary, k)
    elif isinstance(model, OpenAIModel | VllmModel):
        yield from asyncio.run(_served(model, texts, vocabulary, k))
    else:
        raise UserError(f"answers.attach: {type(model).__name__} cannot read an answer; see the recipe's check.")


def _forward(
    engine: Engine, texts: Sequence[Text], vocabulary: Vocabulary, k: int
) -> Iterator[tuple[int, Logprobs | str]]:
    """By forward passes, rows of like length together."""
    size = engine.model.get_output_embeddings().weight.shape[0]
    most, batch, width = _BATCH, list[Text](), 0
    for text in sorted(texts, key=lambda text: (len(text.ids) - text.start, len(text.ids))):
        if engine.context and len(text.ids) > engine.context:
            yield text.place, f"it exceeds the context of {engine.context} tokens with its question"
            continue
        low, high = min([text.start, *(t.start for t in batch)]), max(len(text.ids), width)
        if batch and (len(batch) == most or (high - low) * (len(batch) + 1) * size > _LOGITS):
            yield from _batch(engine.model, batch, vocabulary, k)
            batch, high = [], len(text.ids)
        batch.append(text)
        width = high
    if batch:
        yield from _batch(engine.model, batch, vocabulary, k)


def _batch(model: Any, texts: Sequence[Text], vocabulary: Vocabulary, k: int) -> Iterator[tuple[int, Logprobs | str]]:
    """Right-padded, so that no position moves. Logits (batch, span, vocabulary) at the places of answers alone."""
    import torch

    width, low = max(len(text.ids) for text in texts), min(text.start for text in texts)
    ids = torch.tensor([text.ids + [0] * (width - len(text.ids)) for text in texts], device=model.device)
    mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in texts], device=model.device)
    places = torch.arange(low - 1, width - 1, device=model.device)  # position t predicts token t + 1
    spare = {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **spare).logits.float()
        if not spare:
            logits = logits[:, places]
        total = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, ids[:, low:, None]) - total
        top = logits.topk(min(k, logits.shape[-1]))
    columns = [column.cpu().numpy() for column in (chosen[..., 0], top.values - total, top.indices)]
    for row, text in enumerate(texts):
        own = slice(text.start - low, len(text.ids) - low)
        logprobs, top_logprobs, top_ids = (column[row, own] for column in columns)
        yield text.place, Logprobs.of_ids(text.ids[text.start :], logprobs, top_ids, top_logprobs, vocabulary.token)


async def _served(
    model: OpenAIModel | VllmModel, texts: Sequence[Text], vocabulary: Vocabulary, k: int
) -> list[tuple[int, Logprobs | str]]:
    """By a server's prompt_logprobs, few at once: see `prompt_logprobs.AT_ONCE`."""
    api, places = await model.ready() if isinstance(model, VllmModel) else model, asyncio.Semaphore(AT_ONCE)

    async def one(text: Text) -> tuple[int, Logprobs | str]:
        async with places:
            try:
                found = await prompt_logprobs(api, text.ids, text.start, k)
            except Rejected as error:
                return text.place, str(error)
        return text.place, _columns(text.ids[text.start :], found, vocabulary, k)

    try:
        tasks = [asyncio.create_task(one(text)) for text in texts]
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await model.close()


def _columns(ids: Sequence[int], places: Places, vocabulary: Vocabulary, k: int) -> Logprobs:
    """A place may hold k + 1: the token that stands there is added where it is none of the likeliest."""
    import numpy as np

    table = np.full((len(ids), k), -np.inf, dtype=np.float32)
    top_ids = np.full((len(ids), k), -1, dtype=np.int32)
    for row, known in enumerate(places):
        top = sorted(known.items(), key=lambda item: -item[1])[:k]
        top_ids[row, : len(top)], table[row, : len(top)] = zip(*top, strict=True)
    chosen = [known[token] for token, known in zip(ids, places, strict=True)]
    return Logprobs.of_ids(ids, chosen, top_ids, table, vocabulary.token)
