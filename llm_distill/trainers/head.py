"""The same loss for a fraction of the work, where TRL's fused head has no kernel (on a CPU).

Two things are left out that cannot change it. The head projects only positions whose next token is learnt: of a
labelled sentence's 80 tokens two are (label and end), and 78 vectors times 49,152 words cost as much as the rest of the
step. And the beginning that all prompts of a batch share (system turn, instructions, worked examples) runs once: its
keys and values depend on nothing that follows. The loss itself, its shift and its denominator stay TRL's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

#: A shared beginning shorter than this is not worth a forward pass of its own.
_SHORT = 16
#: More logits than this (half a gigabyte, of which the backward pass needs several) are TRL's, which works in tiles.
_MANY_LOGITS = 2**27


class Scored(NamedTuple):
    """What an objective makes of a batch: a loss that is a sum over its trained positions, and its parts. A tuple, for in one
    FSDP finds the tensor whose gradient it has to wait for.
    """

    loss: Any
    parts: dict[str, float]


def lighten(model: Any, batch: dict[str, Any], *, ours: bool = True, share: bool = True) -> str:
    """Do so for a causal LM that TRL has given its fused head; says what was done, for training.json.

    The model then also takes `objective` with `more` (see `course.Objective`), and gives Scored. Some families scale or cap
    logits after the head, or remember otherwise than by keys and values. So each of the two must first reproduce what the
    model does by itself, on the first `batch`; one that does not is left out. `ours` is False where TRL's head is the better
    one, `share` where activations are checkpointed, which keeps no keys and values, and where rows are packed: a beginning
    that sequences share is the first row's only, and each row behind it has its own.
    """
    import torch
    from transformers import DynamicCache
    from trl.trainer.utils import FusedCausalLMOutput

    stock, sharing, plain = model.forward, [False], [False]

    def behind(self: Any, input_ids: Any, attention_mask: Any, labels: Any, where: dict[str, Any]) -> Any:
        """Last hidden states of the tokens behind the shared beginning: (batch, seq - shared, width)."""
        shared = shared_tokens(input_ids, labels) if sharing[0] else 0
        if shared >= _SHORT:
            begun = DynamicCache(config=self.config)
            self.base_model(input_ids=input_ids[:1, :shared], **where, past_key_values=begun, use_cache=True)
            begun.batch_repeat_interleave(len(input_ids))
            input_ids, where = input_ids[:, shared:], where | {"past_key_values": begun}
        return self.base_model(
            input_ids=input_ids, attention_mask=attention_mask, **where, use_cache=shared >= _SHORT
        ).last_hidden_state

    def scored(
        self: Any, ids: Any, mask: Any, labels: Any, where: dict[str, Any], objective: Any, more: dict[str, Any]
    ) -> Scored:
        learnt = labels[:, 1:] != -100  # position t predicts token t + 1
        if plain[0]:
            states = behind(self, ids, mask, labels, where)[:, :-1]
            parts = states[learnt[:, -states.shape[1] :]], self.get_output_embeddings()
        else:  # a family that does more than its head says: whole logits, of which the trained ones are kept
            logits = stock(input_ids=ids, attention_mask=mask, **where, use_cache=False).logits
            parts = logits[:, :-1][learnt], torch.nn.Identity()
        return Scored(*objective(*parts, labels[:, 1:][learnt], more))

    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, objective: Any = None, more: Any = None, **kwargs: Any
    ) -> Any:
        if objective is not None:
            return scored(self, *_taken(kwargs), objective, more)
        if not (fused_lm_head and ours and plain[0]):
            return stock(*args, fused_lm_head=fused_lm_head, **kwargs) if fused_lm_head else stock(*args, **kwargs)
        if (kwargs["labels"] != -100).sum() * self.config.get_text_config().vocab_size > _MANY_LOGITS:
            return stock(*args, fused_lm_head=True, **kwargs)
        ids, mask, labels, where = _taken(kwargs)
        states = behind(self, ids, mask, labels, where)[:, :-1]
        labels = labels[:, 1:]  # position t predicts token t + 1
        learnt = labels != -100
        wanted = labels[learnt]
        logits = self.get_output_embeddings()(states[learnt[:, -states.shape[1] :]]).float()
        log_p = logits - logits.logsumexp(-1, keepdim=True)  # log_softmax is off by 1e-5 here: it sums 49,152 in a row
        with torch.no_grad():
            entropy = -(log_p.exp() * log_p).sum(-1)
            is_top1 = log_p.argmax(-1) == wanted

        def spread(values: Any) -> Any:  # (trained,) -> (batch, seq - 1), zero elsewhere
            return values.new_zeros(learnt.shape).masked_scatter(learnt, values)

        return FusedCausalLMOutput(
            log_probs=spread(log_p.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)),
            entropy=spread(entropy),
            is_top1=spread(is_top1),
            label_mask=learnt,
        )

    model.eval()
    with torch.no_grad():
        ids = batch["input_ids"][:1, :64]  # one position is compared, and packed rows are thousands
        logits = stock(input_ids=ids, use_cache=False).logits[0, -1]
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # Of equal states, so no more than the head's rounding apart: 10 % would be what Gemma 2 caps of a logit of 16.
        plain[0] = _same(logits, model.get_output_embeddings()(states)[0, -1], model.dtype, half=0.01)
        model.forward = MethodType(forward, model)
        if not plain[0]:
            return "every position"
        if share and shared_tokens(batch["input_ids"], batch["labels"]) >= _SHORT and _can_share(model):
            apart = model(**batch, fused_lm_head=True).log_probs
            sharing[0] = True
            sharing[0] = _same(apart, model(**batch, fused_lm_head=True).log_probs, model.dtype)
    scores = "trained positions" if ours else "TRL's head"
    return f"{scores}, shared beginnings" if sharing[0] else scores


def _taken(kwargs: dict[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Of what a model is called with: tokens, their mask (packed rows have none), labels, and what says where packed rows are."""
    ids, mask, labels = kwargs["input_ids"], kwargs.get("attention_mask"), kwargs["labels"]
    taken = ("input_ids", "attention_mask", "labels", "use_cache")
    return ids, mask, labels, {name: v for name, v in kwargs.items() if v is not None and name not in taken}


def _same(one: Any, other: Any, dtype: Any, half: float = 0.1) -> bool:
    import torch

    tolerance = 1e-3 if dtype == torch.float32 else half  # bfloat16 rounds to 1 part in 256
    return bool(torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance))


def shared_tokens(input_ids: Any, labels: Any) -> int:
    """How many tokens all rows of a batch begin with, short of the one that predicts the first trained token."""
    if len(input_ids) == 1:
        return 0
    common = (input_ids == input_ids[:1]).all(0).long().cumprod(0).sum()
    first_trained = (labels != -100).long().argmax(1).min()
    return max(0, min(int(common), int(first_trained) - 1))


def _can_share(model: Any) -> bool:
    """Whether it remembers by plain keys and values, without dropout, which every row must draw for itself."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    config = model.config.get_text_config(decoder=True)
    plain = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
    layers = DynamicCache(config=config).layers if plain else [None]
    draws = [getattr(config, "attention_dropout", 0.0), *(getattr(m, "p", 0.0) for m in model.modules())]
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) and not any(
        isinstance(p, float) and p > 0 for p in draws
    )
