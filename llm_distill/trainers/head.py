"""The language-model head where it matters: only at the positions whose next token is learnt.

A labelled sentence of 80 tokens has two that are learnt (label and end), and projecting the other 78 onto 49,152 words
takes more time on a CPU than the rest of the step. TRL's fused head skips them on CUDA only ("compact" in
trl/trainer/utils.py); elsewhere it scores every position. The loss, its shift and its denominator stay TRL's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any


def score_trained_positions(model: Any, input_ids: Any) -> bool:
    """Make TRL's fused head on this causal LM skip untrained positions; False, and no change, where that would differ.

    Some families scale or cap their logits after the head. So the bare head must first reproduce the model's own
    logits on one row, `input_ids` of shape (1, seq); a family that does more keeps TRL's slower, general head.
    """
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    stock = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return stock(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, seq - 1, width): t predicts t + 1
        labels = labels[:, 1:]
        mask = labels != -100
        logits = self.get_output_embeddings()(hidden[mask]).float()  # (trained, vocabulary)
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, labels[mask].unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            entropy = -(log_p.exp() * log_p).sum(-1)
            best = (logits.argmax(-1) == labels[mask]).to(log_p.dtype)

        def spread(values: Any) -> Any:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        log_probs = spread(chosen)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=spread(entropy),
            is_top1=spread(best),
            label_mask=mask,
        )

    with torch.no_grad():
        own = stock(input_ids=input_ids, use_cache=False).logits[0, -1].float()
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0, -1]
        bare = model.get_output_embeddings()(hidden).float()
    if not torch.allclose(own, bare, rtol=1e-3, atol=1e-3):
        return False
    model.forward = MethodType(forward, model)
    return True
