"""How far answers follow verifiable instructions: the four numbers that IFEval states, and each kind of instruction by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from llm_distill.evals.compare import rounded
from llm_distill.evals.statistics import (
    UNDEFINED,
    Floats,
    Interval,
    mean,
    percentiles,
    proportion,
    ratio,
    resampled_counts,
)
from llm_distill.records import Answer
from llm_distill.scorers.instructions import Followed, carried, followed


def following(arms: Mapping[str, Sequence[Answer]], seed: int, resamples: int) -> dict[str, Any]:
    """report.json's `instructions`: by arm, `prompt_strict` and `prompt_loose` (rows all of whose instructions are followed),
    `instruction_strict` and `instruction_loose` (instructions, of all rows), each with its interval over rows, and `kinds`. A
    failed row follows nothing.
    """
    return {arm: rounded(_arm(answers, seed, resamples)) for arm, answers in arms.items()}


def _arm(answers: Sequence[Answer], seed: int, resamples: int) -> dict[str, Any]:
    rows: list[tuple[list[str], Followed]] = []
    for answer in answers:
        if (due := carried(answer.prompt)) is not None:
            blank = msgspec.structs.replace(answer, text="") if answer.status == "failed" else answer
            rows.append((due.instruction_id_list, followed(blank, due)))
    numbers: dict[str, Any] = {"n": len(rows)}
    kinds: dict[str, list[bool]] = defaultdict(list)
    for names, found in rows:
        for name, ok in zip(names, found.strict, strict=True):
            kinds[name].append(ok)
    for how in ("strict", "loose"):
        done = [getattr(found, how) for _, found in rows]
        whole = sum(map(all, done))
        numbers[f"prompt_{how}"] = proportion(whole, len(done))._asdict()
        counts = np.array([[sum(of), len(of)] for of in done], dtype=np.float64).reshape(-1, 2)
        numbers[f"instruction_{how}"] = _share(counts, seed, resamples)._asdict()
    numbers["kinds"] = {
        name: mean(np.array(of, np.float64), seed, resamples)._asdict() for name, of in sorted(kinds.items())
    }
    return numbers


def _share(counts: Floats, seed: int, resamples: int) -> Interval:
    """Of rows (n, 2) of how many are followed and how many there are: the share of all, by a bootstrap over rows. As everywhere
    two rows are imagined, of as many instructions as a row has on average: one follows none of them, one all.
    """
    n = len(counts)
    if not n:
        return UNDEFINED
    patterns, weights = np.unique(counts, axis=0, return_counts=True)
    each = counts[:, 1].mean()
    whole = np.concatenate([patterns, [[0.0, each], [each, each]]])
    drawn = (of @ whole for of in resampled_counts(np.append(weights, [1, 1]), n, seed, resamples))
    draws = np.concatenate([ratio(sums[:, 0], sums[:, 1]) for sums in drawn])
    return percentiles(float(counts[:, 0].sum() / counts[:, 1].sum()), draws, n)
