"""Why a number is undefined, in words: what is missing, and what would bring it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_distill.evals.metrics import AGREEMENT

_TEACHER = {AGREEMENT, "top1_agreement", "kl_from_teacher"}
_PROBABILITIES = {"brier", "ece", "auroc", "top1_agreement", "kl_from_teacher"}


def undefined(numbers: Mapping[str, Any], *, is_teacher: bool, taught: bool, gold: str) -> dict[str, str]:
    """Metric -> why an arm has no value of it; `gold` is what a row needs to be scored: `label` or `reference`."""
    found = {}
    for name, of in numbers.items():
        if isinstance(of, dict) and "n" in of and "value" in of and not _defined(of["value"]):
            found[name] = _why(name, of, numbers, is_teacher=is_teacher, taught=taught, gold=gold)
    return found


def _defined(value: float | None) -> bool:
    return value is not None and value == value  # noqa: PLR0124  NaN is no value


def _why(
    name: str, of: Mapping[str, Any], numbers: Mapping[str, Any], *, is_teacher: bool, taught: bool, gold: str
) -> str:
    if not numbers["n"]:
        return "there are no rows"
    if name in _TEACHER and (is_teacher or not taught):
        return "it is the teacher" if is_teacher else "there is no teacher's answer to hold it against"
    if name in _PROBABILITIES and numbers["brier"]["n"]:
        return "the teacher has no label probabilities" if name in _TEACHER else "all rows have the same true label"
    if name in _PROBABILITIES:
        return "no answer has label probabilities: they come with answers.top_logprobs, where the model gives any"
    if reasons := of.get("unmeasured"):
        return "; ".join(f"{why} ({rows:,} rows)" for why, rows in list(reasons.items())[:3])
    return "no answer of the teacher counts" if name == AGREEMENT else f"no held-out row has a {gold}"
