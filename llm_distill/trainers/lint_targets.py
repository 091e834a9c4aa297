"""What the linter says of a teacher's distributions: how many positions they cover, how sharp they are at the temperature of
the loss, and whether divergence and cross-entropy both reach the weights (on the first batch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llm_distill.trainers.findings import Finding

if TYPE_CHECKING:
    from llm_distill.trainers.soft_targets import SoftTargets

#: Below this share of positions with a target most of the loss is cross-entropy after all.
_COVERED = 0.5
#: A mean top probability above this is a hard label.
_SHARP = 0.995
#: Entropy of nearly every bucket alike, as a share of the most that there could be.
_FLAT = 0.95
#: One part of the loss that is so many times the other drowns it.
_DROWNS = 100.0
#: Positions that are looked at: a mean over more does not move.
_POSITIONS = 20_000


def lint_targets(objective: SoftTargets) -> Iterator[Finding]:
    """Alignment rate and effective temperature, from the targets alone."""
    positions = sum(len(target.defined) for target in objective.targets)
    defined = sum(int(target.defined.sum()) for target in objective.targets)
    share = defined / max(1, positions)
    rows = sum(bool(target.defined.any()) for target in objective.targets)
    said = f"{defined:,} of {positions:,} learnt tokens ({share:.1%}) have a distribution of the teacher's, in {rows:,} of "
    said += f"{len(objective.targets):,} rows"
    if not defined:
        yield Finding(
            "error", "alignment", said, "Nothing of the teacher's distributions would be learnt; use train.sft."
        )
        return
    right = "Elsewhere its text alone is learnt." if defined < positions else ""
    yield Finding("warning" if share < _COVERED else "note", "alignment", said, right)
    yield _sharpness(objective)


def _sharpness(objective: SoftTargets) -> Finding:
    """How sure the teacher is at the temperature of the loss, which is another than that of sampling."""
    temperature, buckets = objective.temperature, max(target.ids.shape[1] for target in objective.targets) + 1
    plain, _, _ = _sureness(objective, 1.0)
    top, entropy, most = _sureness(objective, temperature)
    said = (
        f"The loss divides log-probabilities by a temperature of {temperature:g} (and is multiplied by {temperature**2:g}); "
        f"there the teacher gives its likeliest of at most {buckets:,} tokens {top:.1%} on average, at an entropy of "
        f"{entropy:.3f} nats"
    )
    said += f" ({plain:.1%} at 1)" if temperature != 1 else ""
    if top > _SHARP:
        right = "That is a hard label: there is little to learn beside the text; raise `temperature`, or use train.sft."
        return Finding("warning", "temperature", said, right)
    if entropy > _FLAT * most:
        return Finding("warning", "temperature", said, "That is nearly no preference; lower `temperature`.")
    return Finding("note", "temperature", said)


def _sureness(objective: SoftTargets, temperature: float) -> tuple[float, float, float]:
    """Mean top probability, mean entropy in nats and the most it could be, over defined positions, as the loss has them."""
    import torch

    from llm_distill.trainers.sparse_kd import with_tail

    tops = entropies = mosts = 0.0
    count = 0
    for target in objective.targets:
        kept = torch.from_numpy(target.logprobs[target.defined])
        if not len(kept):
            continue
        whole = with_tail(kept)
        p = (whole / temperature).softmax(-1)
        tops += float(p.max(-1).values.sum())
        entropies += float(torch.special.entr(p).sum())
        mosts += float(whole.isfinite().sum(-1).float().log().sum())
        count += len(kept)
        if count >= _POSITIONS:
            break
    return tops / count, entropies / count, mosts / count


def lint_scale(objective: SoftTargets, model: Any, batch: Mapping[str, Any]) -> Iterator[Finding]:
    """Both parts of the loss and their gradients' norms, on one batch of a model that `head.lighten` has been through.

    One that drowns the other (easydistill issue 34), or never reaches the weights (axolotl issue 3660), looks like a normal
    loss.
    """
    import torch

    from llm_distill.trainers.sft_loop import OF_THE_MODEL

    more = dict(batch)
    own = {name: more.pop(name) for name in OF_THE_MODEL if name in batch}
    with torch.no_grad():
        parts = model(**own, objective=objective.loss, more=more).parts
        norms = model(**own, objective=objective.scales, more=more).parts
    count = int((own["labels"] != -100).sum())
    alpha, ce, kd = objective.alpha, norms["ce"], norms["kd"]
    each = {name: value / count for name, value in parts.items()}
    said = (
        f"On the first batch, per token, cross-entropy is {each['ce']:.3g} and the divergence {each['kd']:.3g}; their gradients' "
        f"norms are {ce:.3g} and {kd:.3g}, with alpha {alpha:g}"
    )
    weighted = (1 - alpha) * ce, alpha * kd
    if not all(math.isfinite(number) for number in (*each.values(), ce, kd)):
        right = "A loss that is no number teaches nothing: lower `temperature`, or set dtype: float32."
        yield Finding("error", "scale", said, right)
    elif alpha > 0 and kd == 0:
        right = (
            "The divergence moves nothing: the student says what the teacher says, or it does not reach the weights."
        )
        yield Finding("warning", "scale", said, right)
    elif 0 < alpha < 1 and max(weighted) > _DROWNS * min(weighted):
        drowned, knob = ("cross-entropy", "lower") if weighted[0] < weighted[1] else ("the divergence", "raise")
        yield Finding("warning", "scale", said, f"So {drowned} hardly counts; {knob} alpha.")
    else:
        part = weighted[1] / max(sum(weighted), 1e-30)
        yield Finding("note", "scale", f"{said}: {part:.0%} of the whole is the divergence's")
