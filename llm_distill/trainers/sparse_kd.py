"""Divergences between a teacher's stored distribution and the student's, where of the teacher's only the top k are known.

Both are cut to the same k + 1 buckets, the k tokens that the teacher listed and one for all the rest, so that nothing is
renormalised away: a target of the top k scaled to 1 teaches overconfidence (arXiv 2503.16870). Temperature acts on the
buckets. With k the whole vocabulary this is the dense divergence.

A gradient is taken chunk by chunk while the loss is computed (as Liger's fused losses do), so that logits of more than one
chunk, (positions, vocabulary) in float32, are never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

#: Numbers of logits in one chunk: 128 MB in float32, of which a few are alive at once.
_CHUNK_LOGITS = 2**25

#: The log-probability of an empty bucket: exp of it is 0, and unlike -inf it has differences.
_NOTHING = -1e4

Divergence = Literal["forward_kl", "jsd", "sampled"]


def with_tail(logprobs: Any) -> Any:
    """(n, k + 1) float32: logprobs (n, k; -inf is padding), and the log of what is missing to 1.

    That is known only as well as the logprobs were computed, at best in float32, and stored, an error of eps |log p| in
    each: what this rounding could have made is none. In float16 the whole vocabulary may even sum to a little more than 1.
    """
    import torch

    known, eps = logprobs.double(), torch.finfo(logprobs.dtype).eps
    computed = 4 * min(eps, torch.finfo(torch.float32).eps)
    rounding = computed + eps * (known.exp() * -known.clamp(min=_NOTHING)).sum(-1, keepdim=True)
    rest = 1 - known.exp().sum(-1, keepdim=True)
    return torch.cat([known, torch.where(rest > rounding, rest.clamp(min=1e-300).log(), -torch.inf)], -1).float()


def divergence(
    teacher: Any,
    student: Any,
    *,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    draws: int = 50,
) -> Any:
    """(n,): how far the student is from the teacher, each (n, buckets) log-probabilities, -inf in empty buckets.

    Of both distributions raised to 1 / temperature, times temperature squared (Hinton et al. 2015), so that gradients keep
    their size. forward_kl: KL(teacher || student). jsd: beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta
    teacher + (1 - beta) student (Agarwal et al. 2023, arXiv 2306.13649). sampled: random sampling KD (Anshumann et al. 2025,
    arXiv 2503.16870), the KL from the shares of `draws` draws of the teacher, whose gradient is the forward KL's in
    expectation.
    """
    import torch

    p, q = _tempered(teacher, temperature), _tempered(student, temperature)
    if kind == "jsd":
        mixed = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
        found = beta * _kl(p, mixed) + (1 - beta) * _kl(q, mixed)
    elif kind == "sampled":
        drawn = torch.multinomial(p.exp(), draws, replacement=True)
        shares = torch.zeros_like(p).scatter_add_(-1, drawn, torch.full_like(drawn, 1 / draws, dtype=p.dtype))
        found = _kl(shares.log().clamp(min=_NOTHING), q)
    else:
        found = _kl(p, q)
    return temperature**2 * found


def _tempered(logprobs: Any, temperature: float) -> Any:
    return (logprobs / temperature).log_softmax(-1).clamp(min=_NOTHING)


def _kl(p: Any, q: Any) -> Any:
    return (p.exp() * (p - q)).sum(-1)


def buckets(logits: Any, ids: Any) -> tuple[Any, Any]:
    """Logits (n, vocabulary) as log-probabilities of `ids` (n, k; -1 is padding) and of all the rest: (n, k + 1); with
    the normaliser of each row, (n, 1).

    The rest is summed up itself, not taken from 1, which in float32 loses it where the listed tokens have nearly all.
    """
    import torch

    listed = logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    # Padding points at a column of its own, behind the vocabulary.
    hidden = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
    rest = hidden.scatter(-1, torch.where(ids < 0, logits.shape[-1], ids), -torch.inf).logsumexp(-1, keepdim=True)
    whole = torch.cat([listed, rest], -1)
    normaliser = whole.logsumexp(-1, keepdim=True)
    return whole - normaliser, normaliser


#: (logits (c, vocabulary), the chunk's place) -> the chunk's sum, with its parts (detached).
ChunkLoss = Callable[[Any, slice], tuple[Any, Any]]


@cache
def _function() -> Any:
    import torch

    class Chunked(torch.autograd.Function):  # type: ignore[misc]
        """Sums a loss over chunks of positions, with the gradients of each taken at once."""

        @staticmethod
        def forward(ctx: Any, states: Any, loss: ChunkLoss, head: Any, *weights: Any) -> Any:
            total, seen, found = states.new_zeros((), dtype=torch.float32), None, torch.zeros_like(states)
            own = [torch.zeros_like(w) for w in weights]
            with torch.enable_grad():
                for place in _chunks(len(states), head, states):
                    part = states[place].detach().requires_grad_()
                    value, parts = loss(head(part).float(), place)
                    first, *more = torch.autograd.grad(value, [part, *weights], allow_unused=True)
                    found[place] = first
                    own = [kept if g is None else kept + g for kept, g in zip(own, more, strict=True)]
                    total += value.detach()
                    seen = parts if seen is None else seen + parts
            ctx.save_for_backward(found, *own)
            ctx.mark_non_differentiable(seen)
            return total, seen

        @staticmethod
        def backward(ctx: Any, upstream: Any, _parts: Any) -> Any:
            found, *own = ctx.saved_tensors
            return found * upstream, None, None, *(gradient * upstream for gradient in own)

    return Chunked


def _chunks(count: int, head: Any, states: Any) -> list[slice]:
    width = getattr(head, "out_features", None) or states.shape[-1]
    step = max(1, _CHUNK_LOGITS // int(width))
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]


def chunked(states: Any, head: Any, loss: ChunkLoss) -> tuple[Any, Any]:
    """The sum of `loss` over all positions of (n, width) states, and of its parts; gradients reach the states and what of
    the head is trained.
    """
    import torch

    weights = [p for p in head.parameters() if p.requires_grad]
    if torch.is_grad_enabled():
        return _function().apply(states, loss, head, *weights)  # type: ignore[no-any-return]
    found = [loss(head(states[place]).float(), place) for place in _chunks(len(states), head, states)]
    return sum(value for value, _ in found), sum(parts for _, parts in found)
