"""A scorer that is a model: what a reward model gives an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.plugs import Weights
from llm_distill.records import Answer
from llm_distill.scorers import Scored


def reward(
    answers: Sequence[Answer],
    *,
    model: Annotated[Weights, AfterValidator(weights.loadable)],
    revision: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    batch_size: Annotated[int, Field(ge=1)] = 8,
    max_length: Annotated[int, Field(ge=8)] = 4096,
) -> Scored:
    """The number that a reward model gives the conversation with its answer; its scale is the model's own.

    `model`: a folder or a hub id (pin `revision`) of a sequence classifier with one output, safetensors only; the
    conversation goes through its chat template. NaN where the row is longer than `max_length` or what the model can read,
    or where the template refuses it: a reward for part of an answer is no reward for it.
    """
    if not answers:
        return Scored([])
    network, tokenizer = _loaded(model, revision, dtype, device)
    most = min(max_length, getattr(network.config.get_text_config(), "max_position_embeddings", None) or max_length)
    why: list[str | None] = [None] * len(answers)
    rows: dict[int, list[int]] = {}
    for place, answer in enumerate(answers):
        ids, fault = _encoded(tokenizer, answer)
        if fault is None and len(ids) > most:
            fault = f"{len(ids)} tokens, and {most} are read"
        why[place] = fault
        if fault is None:
            rows[place] = ids
    values = [math.nan] * len(answers)
    # One that has no padding reads a row's very last token, which no padding may follow.
    batch_size = 1 if network.config.get_text_config().pad_token_id is None else batch_size
    order = sorted(rows, key=lambda place: len(rows[place]))
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        for place, value in zip(places, _rewards(network, [rows[place] for place in places]), strict=True):
            values[place] = value
    del network
    weights.free()
    return Scored(values, why=why)


def _loaded(reference: str, revision: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """The classifier and its tokenizer; UserError for one that has not one output, or no template to show it answers by."""
    tokenizer = weights.load_tokenizer(reference, revision=revision)
    if not tokenizer.chat_template:
        raise UserError(
            f"reward: {reference} has no chat template; name a reward model that was trained on conversations."
        )
    network = weights.load_classifier(reference, revision, dtype=dtype, device=device)
    if network.config.num_labels != 1:
        raise UserError(
            f"reward: {reference} gives {network.config.num_labels} numbers and a reward is one; name a reward model."
        )
    return network, tokenizer


def _encoded(tokenizer: Any, answer: Answer) -> tuple[list[int], str | None]:
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in answer.prompt.messages]
    try:
        ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer.text}], return_dict=False)
    except TemplateError as error:
        return [], f"the chat template refuses it: {error}"
    return list(ids), None


def _rewards(network: Any, rows: Sequence[list[int]]) -> list[float]:
    """One number for each row, (batch,), of rows that are padded on the right."""
    import torch

    width, pad = max(map(len, rows)), network.config.get_text_config().pad_token_id or 0
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=network.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=network.device)
    with torch.inference_mode():
        logits = network(input_ids=ids, attention_mask=mask).logits  # (batch, 1)
    return logits[:, 0].float().tolist()  # type: ignore[no-any-return]
