"""On-policy distillation from a teacher behind a vLLM server, who scores the student's own answers by `prompt_logprobs`.

TRL's ServerDistillationTrainer asks `trl vllm-serve`, holds a distribution of the top k renormalised or a single token's
(for beta > 0), and takes each micro-batch's own mean for the loss. Here a plain vLLM server is asked, through the road that
all models are asked by, and the loss is that of `sparse_kd`: the top k and a bucket for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_distill.errors import Rejected, UserError
from llm_distill.models.openai_api import OpenAIModel
from llm_distill.models.prompt_logprobs import AT_ONCE, Places, prompt_logprobs
from llm_distill.plugs import Role
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.hyper import Count, Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy, Positive, Teaching, learn
from llm_distill.trainers.on_policy_checks import suited
from llm_distill.trainers.sparse_kd import buckets, divergence, with_tail

if TYPE_CHECKING:
    from llm_distill.trainers.course import Desk
    from llm_distill.trainers.rows import Row


def server(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    own: OnPolicy,
    # A vllm model, or an openai_api one at a vLLM server of one's own: it names its `tokenizer`, and prices of 0, since what it
    # scores is in no ledger and no budget. Its tokens are the student's.
    teacher: Role = "teacher",
    # 0: forward KL; towards 1 the generalised JSD as in gkd. Not 1: reverse KL over a top k collapses (verl PR 5041).
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    # Of the loss alone; sampling has `sampling_temperature`.
    temperature: Positive = 1.0,
    # vLLM's own bound (`--max-logprobs`). A place costs the server a row of logits outside its memory profile.
    top_k: Count = 20,
) -> None:
    """Train on the student's own answers against the distributions that a served teacher has at their tokens, after a warm-up
    on its own answers; write the adapter into `job.out`.
    """
    model = suited(job.models, job.student, teacher, "server")()
    knobs = {"beta": beta, "temperature": temperature, "top_k": top_k}
    with contextlib.ExitStack() as end:

        def begin(desk: Desk) -> Served:
            return end.enter_context(_opened(model, desk.rows(), top_k, beta, temperature))

        learn(job, hyper, own, Teaching(model.identity, begin), knobs)


class Served:
    """Scores the student's answers by a server, and compares."""

    #: The share of tokens that the server had a distribution for.
    parts: Sequence[str] = ("scored",)

    def __init__(
        self, model: Any, rows: Sequence[Row], top_k: int, beta: float, temperature: float, runner: asyncio.Runner
    ) -> None:
        self._model, self._rows, self._k, self._runner = model, rows, top_k, runner
        self._beta, self._temperature = beta, temperature

    def loss(
        self, logits: Any, places: Sequence[int], completions: Sequence[Sequence[int]]
    ) -> tuple[Any, Mapping[str, float]]:
        """See `on_policy_loop.Scorer`. Answers that the server cannot score count as tokens without a loss."""
        import torch

        found = self._runner.run(self._scores(places, completions))
        reasons = [score for score in found if isinstance(score, Rejected)]
        if len(reasons) == len(found):
            raise UserError(f"train.server: the server scores none of {len(found)} answers: {reasons[0]}.")
        states, ids, logprobs = [], [], []
        for row, score in enumerate(found):
            if not isinstance(score, Rejected):
                states.append(logits[row, : len(score)])
                for known in score:
                    gap = self._k + 1 - len(known)  # the sampled token is listed as well where it is not in the top k
                    ids.append([*map(int, known), *[-1] * gap])
                    logprobs.append([*known.values(), *[-torch.inf] * gap])
        where = torch.tensor(ids, device=logits.device)
        theirs = with_tail(torch.tensor(logprobs, dtype=torch.float32, device=logits.device))
        ours, _ = buckets(torch.cat(states).float(), where)
        kind = "jsd" if self._beta else "forward_kl"
        apart = divergence(theirs, ours, kind=kind, temperature=self._temperature, beta=self._beta)  # type: ignore[arg-type]
        return apart.sum(), {"scored": float(len(ids))}

    async def _scores(self, places: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Places | Rejected]:
        """At each token of each answer what the server finds likely, or why it does not say."""
        api = self._model if isinstance(self._model, OpenAIModel) else await self._model.ready()
        free = asyncio.Semaphore(AT_ONCE)

        async def one(place: int, answer: Sequence[int]) -> Places | Rejected:
            row = self._rows[place]
            prompt = row.input_ids[: row.prompt_tokens]
            try:
                async with free:
                    return await prompt_logprobs(api, [*prompt, *answer], len(prompt), self._k)
            except Rejected as error:
                return error

        return await asyncio.gather(*map(one, places, completions))


@contextlib.contextmanager
def _opened(model: Any, rows: Sequence[Row], top_k: int, beta: float, temperature: float) -> Iterator[Served]:
    with asyncio.Runner() as runner:
        try:
            yield Served(model, rows, top_k, beta, temperature, runner)
        finally:
            runner.run(model.close())
            model.unload()
