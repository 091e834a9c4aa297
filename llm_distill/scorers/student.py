"""Scorers that read an answer with the student's own weights: how surprising it is, and how much the question helps.

Rows are tokenised as training tokenises them: the student's view of the row through its chat template, then the answer.
Only the answer's tokens count, and not the end of turn, which every row has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.plugs import Role
from llm_distill.records import Answer, Sample
from llm_distill.scorers import Context, Scored

if TYPE_CHECKING:
    from llm_distill.models.decoding import Engine

#: Logits made at a time, in numbers (of 4 bytes): a vocabulary of 262,144 words gets 128 tokens.
_LOGITS = 1 << 25
MaxLength = Annotated[int, Field(ge=8)]
Batch = Annotated[int, Field(ge=1)]


class _Piece(msgspec.Struct, frozen=True):
    """Token ids, of which those from `start` on are measured. `cut`: how many there were, where some were left out."""

    ids: list[int]
    start: int
    cut: int | None = None


def perplexity(
    answers: Sequence[Answer],
    context: Context,
    *,
    model: Role = "student",
    max_length: MaxLength = 1024,
    batch_size: Batch = 8,
) -> Scored:
    """The exponential of the mean negative log-likelihood of the answer's tokens given the row, under the untrained student.

    High: text the student would not have written, or noise. Low: what it says anyway, or repetition. A row longer than
    `max_length` tokens is measured up to there, and says so; NaN where the prompt alone is, or the answer is empty.
    """
    engine = _engine(context, model)
    pieces = _pieces(answers, context, engine, max_length)
    scores = _likelihoods(engine, [piece for piece in pieces if isinstance(piece, _Piece)], batch_size)
    values, why = [], []
    for piece in pieces:
        measured = isinstance(piece, _Piece)
        values.append(_exp(-next(scores)) if measured else math.nan)
        why.append(_cut(piece) if isinstance(piece, _Piece) else piece)
    return Scored(values, why=why)


def ifd(
    answers: Sequence[Answer],
    context: Context,
    *,
    model: Role = "student",
    max_length: MaxLength = 1024,
    batch_size: Batch = 8,
) -> Scored:
    """Instruction-following difficulty: the answer's perplexity given the row over its perplexity alone (Li et al. 2024,
    arXiv 2308.12032).

    Below 1 the question helps; near 1 it teaches the student something it does not expect yet; above 1 question and answer
    do not belong together. The answer alone follows the text's usual first token. Long rows are cut as `perplexity` cuts
    them, and both measures are taken of the same tokens. NaN as there.
    """
    engine = _engine(context, model)
    pieces = _pieces(answers, context, engine, max_length)
    known = [piece for piece in pieces if isinstance(piece, _Piece)]
    first = _first_token(engine.tokenizer)
    alone = [_Piece([first, *piece.ids[piece.start :]], 1) for piece in known]
    given, bare = _likelihoods(engine, known, batch_size), _likelihoods(engine, alone, batch_size)
    values, why = [], []
    for piece in pieces:
        measured = isinstance(piece, _Piece)
        values.append(_exp(next(bare) - next(given)) if measured else math.nan)
        why.append(_cut(piece) if isinstance(piece, _Piece) else piece)
    return Scored(values, why=why)


def _engine(context: Context, role: str) -> Engine:
    """The loaded weights of a role; UserError for a model that keeps its own to itself."""
    from llm_distill.models.transformers_local import TransformersModel

    model = context.model(role)
    if not isinstance(model, TransformersModel):
        raise UserError(f"models.{role}: perplexity and ifd read its weights in this process; write `transformers`.")
    return model.engine()


def _pieces(answers: Sequence[Answer], context: Context, engine: Engine, max_length: int) -> list[_Piece | str]:
    """Each answer as it is measured, or why it is not."""
    from llm_distill.trainers.rows import make_rows

    most = min(max_length, engine.context or max_length)
    view, labels = context.task.student_view, context.task.labels
    spoken = [(place, answer) for place, answer in enumerate(answers) if answer.text]
    pieces: list[_Piece | str] = ["the answer is empty"] * len(answers)
    if not spoken:
        return pieces
    samples = [Sample(a.prompt.row_id, view.questions(a.prompt, labels)[0], a.text) for _, a in spoken]
    rows = make_rows(samples, engine.tokenizer, engine.ends, max_length=None)
    for (place, _), row in zip(spoken, rows, strict=True):
        ids = row.input_ids[:-1]  # without the end of turn
        if row.prompt_tokens >= min(most, len(ids)):
            pieces[place] = f"the prompt alone has {row.prompt_tokens} tokens, and {most} are read"
        elif row.prompt_tokens == 0:
            pieces[place] = "the prompt has no tokens"
        else:
            pieces[place] = _Piece(ids[:most], row.prompt_tokens, len(ids) if len(ids) > most else None)
    return pieces


def _likelihoods(engine: Engine, pieces: Sequence[_Piece], batch_size: int) -> Iterator[float]:
    """The mean log-likelihood of each piece's measured tokens, in nats, in order. Computed by length, so little is padding."""
    import torch

    order = sorted(range(len(pieces)), key=lambda place: len(pieces[place].ids))
    means = [0.0] * len(pieces)
    model = engine.model
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size]
            for place, mean in zip(places, _batch(model, [pieces[place] for place in places]), strict=True):
                means[place] = mean
    return iter(means)


def _batch(model: Any, pieces: Sequence[_Piece]) -> list[float]:
    """Right-padded, so that no position moves; the head makes logits of measured positions alone, a few at a time."""
    import torch

    width = max(len(piece.ids) for piece in pieces)
    ids = torch.tensor([piece.ids + [0] * (width - len(piece.ids)) for piece in pieces], device=model.device)
    mask = torch.tensor([[1] * len(p.ids) + [0] * (width - len(p.ids)) for p in pieces], device=model.device)
    means = []
    own_head = _head_is_all(model)
    states = (
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state if own_head else None
    )
    step = max(1, _LOGITS // model.config.get_text_config().vocab_size)
    for row, piece in enumerate(pieces):
        total = 0.0
        for start in range(piece.start, len(piece.ids), step):
            end = min(start + step, len(piece.ids))
            if states is not None:  # position t predicts token t + 1
                logits = model.get_output_embeddings()(states[row, start - 1 : end - 1])
            else:
                logits = model(input_ids=ids[row : row + 1, :end], use_cache=False).logits[0, start - 1 : end - 1]
            logits = logits.float()
            wanted = ids[row, start:end].unsqueeze(-1)
            total += float((logits.gather(-1, wanted).squeeze(-1) - logits.logsumexp(-1)).double().sum())
        means.append(total / (len(piece.ids) - piece.start))
    return means


def _head_is_all(model: Any) -> bool:
    """Whether logits are the head's of the last hidden states and nothing more: some families scale or cap them after it."""
    import torch

    if not hasattr(model, "_llm_distill_plain_head"):
        ids = torch.arange(1, 5, device=model.device)[None]
        whole = model(input_ids=ids, use_cache=False).logits.float()
        apart = model.get_output_embeddings()(
            model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ).float()
        model._llm_distill_plain_head = bool(torch.allclose(whole, apart, rtol=1e-3, atol=1e-3))
    return bool(model._llm_distill_plain_head)


def _first_token(tokenizer: Any) -> int:
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise UserError(
            "ifd: the student's tokenizer has neither a BOS nor an EOS token for the answer alone to follow."
        )
    return int(first)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def _cut(piece: _Piece) -> str | None:
    return None if piece.cut is None else f"measured up to token {len(piece.ids)} of {piece.cut}"
