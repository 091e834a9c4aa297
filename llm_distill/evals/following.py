"""How far answers follow verifiable instructions: the four numbers that IFEval states, and each kind of instruction by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from llm_distill.evals.compare import rounded
from llm_distill.evals.statistics import mean, proportion, ratio, unbounded
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
        share = unbounded(counts, lambda means: ratio(means[..., 0], means[..., 1]), seed, resamples)
        numbers[f"instruction_{how}"] = share._asdict()
    numbers["kinds"] = {
        name: mean(np.array(of, np.float64), seed, resamples)._asdict() for name, of in sorted(kinds.items())
    }
    return numbers
