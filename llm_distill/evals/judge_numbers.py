"""A judge's verdicts as the numbers of report.json: scores by arm, the student's wins and losses, how far the judge can be
trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_distill.evals.compare import rounded
from llm_distill.evals.judged import Judged
from llm_distill.evals.kappa import kappa
from llm_distill.evals.length_control import length_controlled
from llm_distill.evals.pairs import SLICE_RESAMPLES
from llm_distill.evals.slice_tests import Slices, by_slice, places
from llm_distill.evals.statistics import FEWEST, Floats, mean, sign_test
from llm_distill.records import Answer, Prompt
from llm_distill.scorers.verdicts import unformatted

_SHOWN = {"loss": 6, "win": 4}  # rows with the judge's reasons


def judge_numbers(
    judged: Judged, prompts: Sequence[Prompt], slices: Sequence[str], seed: int, resamples: int
) -> dict[str, Any]:
    """The part `judge`: `arms`, `pairwise`, `people`, `examples`, and what is owed or was no verdict.

    Scores are on the judge's own scale, win rates in [0, 1] with a tie as half a win; intervals are over rows.
    """
    how, rows = judged.how, {prompt.row_id: prompt for prompt in prompts}
    numbers: dict[str, Any] = {
        "rubric": how.rubric.name,
        "scale": list(how.scale),
        "runs": how.runs,
        "plain": how.plain,
        "owed": judged.owed,
        "stopped": judged.stopped,
        "arms": _arms(judged, rows, slices, seed, resamples) if how.scores else {},
        "pairwise": {
            f"student_vs_{arm}": _pairwise(judged, arm, rows, slices, seed, resamples) for arm in judged.rivals.values()
        },
        "people": _people(judged, seed, resamples) if how.human else None,
        "examples": [one for arm in list(judged.rivals.values())[:1] for one in _examples(judged, arm)],
    }
    return rounded(numbers)  # type: ignore[no-any-return]


def _arms(judged: Judged, prompts: Mapping[str, Prompt], slices: Sequence[str], seed: int, resamples: int) -> Any:
    """Mean scores, on the rows on which every arm has one."""
    low, high = judged.how.scale
    whole = sorted(judged.whole_rows)
    where = places(whole, prompts, slices)

    def scored(values: Floats, draws: int) -> dict[str, Any]:
        share = mean((values - low) / (high - low), seed, draws)
        ends = {end: low + (high - low) * getattr(share, end) for end in ("value", "low", "high")}
        return ends | {"n": share.n}

    found = {}
    for arm, answers in judged.answers.items():
        values = np.array([judged.score(answers[row]).value for row in whole], dtype=np.float64)
        found[arm] = scored(values, resamples) | {
            "failed": sum(a.status == "failed" for a in answers.values()),
            "unjudged": _faults(judged.score(a) for a in answers.values()),
            "slices": {
                tag: {name: scored(values[at], min(resamples, SLICE_RESAMPLES)) for name, at in groups.items()}
                for tag, groups in where.items()
            },
        }
    return found


def _faults(verdicts: Any) -> dict[str, int]:
    """Why there is no verdict -> how often, the commonest first."""
    faults = Counter(of.fault for of in verdicts if of.value is None)
    return dict(sorted(faults.items(), key=lambda of: (-of[1], of[0])))


def _pairwise(
    judged: Judged, arm: str, prompts: Mapping[str, Prompt], slices: Sequence[str], seed: int, resamples: int
) -> dict[str, Any]:
    """The student against an arm: wins, ties and losses by row, and how much order and length decide."""
    others, students = judged.answers[arm], judged.answers["student"]
    both = [(students[row], others[row]) for row in sorted(others) if row in students]
    said = [judged.pair(a, b) for a, b in both]
    known = [(a, b, of, of.value) for (a, b), of in zip(both, said, strict=True) if of.value is not None]
    values = np.array([value for *_, value in known], dtype=np.float64)
    rate = mean(values, seed, resamples)
    lost = mean(np.array([of.value or 0.0 for of in said]), seed, resamples)  # those without a verdict among them
    asked = [(a, b, of) for a, b, of, _ in known if "failed" not in (a.status, b.status)]
    lengths = np.array([[_length(judged, a), _length(judged, b)] for a, b, _ in asked], dtype=np.float64).reshape(-1, 2)
    preferences = np.array([of.value for *_, of in asked], dtype=np.float64)
    turned = [of for a, b, of in asked if a.text != b.text]
    return {
        "win_rate": rate._asdict(),
        **_counts(values),
        "p": sign_test(int((values > 0.5).sum()), int((values < 0.5).sum())),
        "equal": sum(a.text == b.text for a, b, _ in asked),
        "failed": {"student": _failed(both, 0), arm: _failed(both, 1)},
        "unjudged": _faults(said),
        "low_if_lost": lost.low,
        "length_controlled": length_controlled(preferences, lengths[:, 0], lengths[:, 1], seed, resamples),
        "lengths": {"student": _mean(lengths[:, 0]), arm: _mean(lengths[:, 1])},
        "changed_with_order": mean(np.array([of.changed for of in turned]), seed, resamples)._asdict(),
        "leaning_to_first": _mean(np.array([of.leaning for of in turned])),
        "slices": _by_slice(places([a.prompt.row_id for a, *_ in known], prompts, slices), values, seed, resamples),
    }


def _counts(values: Floats) -> dict[str, int]:
    return {"wins": int((values > 0.5).sum()), "ties": int((values == 0.5).sum()), "losses": int((values < 0.5).sum())}


def _by_slice(where: Slices, values: Floats, seed: int, resamples: int) -> Any:
    """Tag -> value of the tag -> the win rate of its rows, with a p that allows for there being many slices (Holm)."""

    def compared(at: list[int]) -> dict[str, Any]:
        some = values[at]
        counts = _counts(some)
        rate = mean(some, seed, min(resamples, SLICE_RESAMPLES))._asdict()
        p = sign_test(counts["wins"], counts["losses"]) if len(at) >= FEWEST else None
        return {"of": rate | counts | {"p": p}}

    return by_slice(where, compared).get("of", {})


def _failed(both: Sequence[tuple[Answer, Answer]], side: int) -> int:
    return sum(pair[side].status == "failed" for pair in both)


def _length(judged: Judged, answer: Answer) -> int:
    """Characters of an answer as the judge sees it."""
    return len(unformatted(answer.text) if judged.how.plain else answer.text)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _people(judged: Judged, seed: int, resamples: int) -> dict[str, Any]:
    """How far the judge agrees with people: on scores, with quadratic weights, and on who is better."""
    assert judged.how.human is not None
    low, high = judged.how.scale
    ratings: dict[str, list[tuple[int, float]]] = {}
    choices: dict[str, list[tuple[int, float]]] = {}
    unjudged = 0
    for one, prompt in judged.opinions:
        row = prompt.row_id
        said = judged.rated(one, row) if one.rating is not None else judged.compared(one, row)
        if said is None or said.value is None:
            unjudged += 1
        elif one.rating is not None:
            ratings.setdefault(row, []).append((one.rating - low, said.value - low))
        else:
            choices.setdefault(row, []).append((one.choice, int(np.sign(said.value - 0.5)) + 1))
    found: dict[str, Any] = {
        "lines": len(judged.how.opinions(judged.how.human)),
        "held_out": len(judged.opinions),
        "unjudged": unjudged,
    }
    if any(one.rating is not None for one, _ in judged.opinions):
        found["ratings"] = kappa(ratings, high - low + 1, ordered=True, seed=seed, resamples=resamples)
    if any(one.preference is not None for one, _ in judged.opinions):
        found["preferences"] = kappa(choices, 3, ordered=False, seed=seed, resamples=resamples)
    return found


def _examples(judged: Judged, arm: str) -> list[dict[str, Any]]:
    """Rows that the student lost and won, with the judge's reasons."""
    left, found = dict(_SHOWN), []
    for row, other in sorted(judged.answers[arm].items()):
        student = judged.answers["student"].get(row)
        if student is None or "failed" in (student.status, other.status):
            continue
        said = judged.pair(student, other)
        outcome = "loss" if said.value == 0 else "win" if said.value == 1 else ""
        if left.get(outcome):
            left[outcome] -= 1
            texts = {"student": student.text, arm: other.text}
            about = {"row_id": row, "text": student.prompt.text, "outcome": outcome}
            found.append(about | {"against": arm, "answers": texts, "reason": said.reason})
    return sorted(found, key=lambda one: one["outcome"])
