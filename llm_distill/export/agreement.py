"""Whether what was exported answers like the student in its run: the same rows, the same greedy questions, both models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from llm_distill.errors import FellShort, Rejected, UserError
from llm_distill.evals.statistics import Interval, proportion
from llm_distill.export.student import Student
from llm_distill.models.transformers_local import TransformersModel
from llm_distill.records import Completion, Prompt, Request
from llm_distill.store import read_prompts

#: Rows asked at most: Wilson's interval around 50 of 50 begins at 0.93.
ROWS = 50
#: Differing rows that are told.
_TOLD = 5


@dataclass(frozen=True)
class Original:
    """The student's own answers to some rows; rows that it cannot be asked (too long) are left out."""

    source: str
    prompts: Sequence[Prompt]
    requests: Sequence[Request]
    answers: Sequence[Completion]
    ids: Sequence[list[int]]


def original(student: Student) -> Original:
    """Ask the student itself about up to `ROWS` held-out rows; of a run without any, about rows it was trained on."""
    source, prompts = "held_out", read_prompts(student.run.file("held_out.parquet"))
    if not prompts:
        source, prompts = "prompts", read_prompts(student.run.file("prompts.parquet"))
    chosen = sorted(prompts, key=lambda prompt: prompt.row_id)[
        :ROWS
    ]  # row_ids are hashes: a sample, the same each time
    requests = [_greedy(student.request(prompt)) for prompt in chosen]
    model = student.model()
    answers, ids = _answers(model, requests)
    known = [i for i, answer in enumerate(answers) if isinstance(answer, Completion)]
    if not known:
        raise UserError(f"{student.run.path}: the student can answer none of its rows ({answers[0]}).")
    return Original(
        source,
        [chosen[i] for i in known],
        [requests[i] for i in known],
        [answer for answer in answers if isinstance(answer, Completion)],
        [ids[i] for i in known],
    )


def compare(student: Student, said: Original, exported: TransformersModel, *, lossless: bool) -> dict[str, Any]:
    """How far the exported model answers like the original, for export.json.

    `same_answer` is the share of rows with the same text, each interval Wilson's 95 %; `same_label` that of rows with the
    same label, among those to which the student gives one. `logprob_difference`: the mean absolute difference, in nats,
    over the tokens that both say up to where they part. UserError when it reads a prompt as other tokens; FellShort when it
    begins another answer for most rows, which no rounding does.
    """
    answers, ids = _answers(exported, said.requests)
    if other := [i for i, (own, found) in enumerate(zip(said.ids, ids, strict=True)) if own != found]:
        prompt = said.prompts[other[0]]
        raise UserError(
            f"the exported tokenizer reads {len(other)} of {len(ids)} prompts as other tokens than the student's own "
            f"(first: row {prompt.row_id}); nothing was written. Export it --to merged."
        )
    pairs = [_pair(own, found) for own, found in zip(said.answers, answers, strict=True)]
    begun = sum(begins for _, begins, _ in pairs)
    differences = np.concatenate([apart for _, _, apart in pairs])
    labels = student.plan.task.labels
    predict = student.plan.task.prediction
    both = [
        (label, predict(_text(found)))
        for own, found in zip(said.answers, answers, strict=True)
        if labels and (label := predict(own.text)) is not None
    ]
    told = [
        {"row_id": prompt.row_id, "original": own.text, "exported": _text(found)}
        for prompt, own, found, (same, _, _) in zip(said.prompts, said.answers, answers, pairs, strict=True)
        if not same
    ]
    n = len(pairs)
    if _numbers(proportion(begun, n))["high"] < 0.5:
        raise FellShort(
            f"the exported model begins another answer for {n - begun} of {n} rows, so nothing was written; "
            + ("this is a fault of the export." if lossless else "choose a --quant with more bits.")
            + (f" Row {told[0]['row_id']}: {told[0]['original']!r} became {told[0]['exported']!r}." if told else "")
        )
    return {
        "rows": said.source,
        "n": n,
        "same_answer": _numbers(proportion(n - len(told), n)),
        "same_first_token": _numbers(proportion(begun, n)),
        "same_label": {**_numbers(proportion(sum(a == b for a, b in both), len(both))), "n": len(both)}
        if both
        else None,
        "logprob_difference": float(differences.mean()) if differences.size else None,
        "differing": told[:_TOLD],
    }


def _greedy(request: Request) -> Request:
    return msgspec.structs.replace(
        request, sampling=msgspec.structs.replace(request.sampling, temperature=0.0, seed=None, top_logprobs=1)
    )


def _numbers(of: Interval) -> dict[str, float]:
    return {"value": of.value, "low": of.low, "high": of.high}


def _answers(
    model: TransformersModel, requests: Sequence[Request]
) -> tuple[list[Completion | Rejected], list[list[int]]]:
    """Each request's answer, and its prompt as token ids; the weights are given back."""
    from llm_distill.models.decoding import encode

    async def ask(request: Request) -> Completion | Rejected:
        try:
            return await model.complete(request)
        except Rejected as error:
            return error

    async def every() -> list[Completion | Rejected]:
        try:
            return list(await asyncio.gather(*map(ask, requests)))
        finally:
            await model.close()

    model.preflight()
    tokenizer = model.tokenizer()
    ids = [encode(tokenizer, request.messages, raw=request.raw) for request in requests]
    try:
        return asyncio.run(every()), ids
    finally:
        model.unload()


def _text(answer: Completion | Rejected) -> str:
    return answer.text if isinstance(answer, Completion) else f"[rejected: {answer}]"


def _pair(own: Completion, found: Completion | Rejected) -> tuple[bool, bool, np.ndarray]:
    """(whether both are the same, whether they begin alike, how far logprobs are apart where tokens are the same)."""
    if isinstance(found, Rejected) or own.logprobs is None or found.logprobs is None:
        return False, False, np.zeros(0)
    ours, theirs = own.logprobs.tokens, found.logprobs.tokens
    alike = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    apart = np.abs(own.logprobs.logprobs[:alike] - found.logprobs.logprobs[:alike])
    return own.text == found.text and own.finish_reason == found.finish_reason, alike > 0, apart.astype(np.float64)
