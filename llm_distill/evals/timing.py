"""From clock readings to the numbers of an arm, and of the student against its teacher with their spread.

One answer at a time gives latency: quantiles over rows, intervals by a bootstrap over rows. Many at a time gives throughput: the
answers that ended between two moments, in blocks as long as there are answers in flight, and the bootstrap draws blocks, because
answers that end together were made together. A ratio of the student to its teacher is drawn from the same rows of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from llm_distill.evals.statistics import FEWEST, Floats, percentiles

RESAMPLES = 4_000
#: More answers a second by less than this is no more: the sweep is over.
GROWS = 1.1
#: What the student is held against its teacher by; the first ones by rows, throughput by blocks, the last as they are.
BY_ROW = ("p50_s", "p95_s", "first_token_s", "prompt_tokens", "completion_tokens")
BY_BLOCK = ("answers_per_s", "tokens_per_s")
FIXED = ("peak_bytes", "disk_bytes", "joules_per_answer")


class Shot(msgspec.Struct, frozen=True):
    """An answer's clock: which row, when it was asked and when it ended, in seconds on one clock, and what came with it."""

    row: str
    began: float
    ended: float
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None


class Level(msgspec.Struct, frozen=True):
    """So many answers in flight: all that were asked, those before the clock started among them."""

    concurrency: int
    shots: list[Shot]


class Measured(msgspec.Struct, frozen=True):
    """What was read of an arm. questions: asked for one answer of it. here: whether it runs on this machine. ended: why no more
    were asked at a time. why: of what was not measured. spent: on all of it, what the clock did not see among it.
    """

    questions: int
    here: bool
    alone: list[Shot]
    streamed: list[Shot]
    levels: list[Level]
    ended: str
    failed: int = 0
    peak_bytes: float | None = None
    peak_of: str | None = None
    disk_bytes: int | None = None
    joules: float | None = None
    joules_by: str | None = None
    why: dict[str, str] = {}
    spent: dict[str, float | None] = {}


class Rate(NamedTuple):
    """Blocks of answers: how many there are in each, their tokens (b,), and how long each took (b,)."""

    answers: Floats
    tokens: Floats
    seconds: Floats

    def draws(self, seed: int) -> tuple[Floats, Floats]:
        """(answers a second, tokens a second), RESAMPLES of each."""
        picked = np.random.default_rng(seed).integers(len(self.seconds), size=(RESAMPLES, len(self.seconds)))
        time = self.seconds[picked].sum(1)
        return self.answers[picked].sum(1) / time, self.tokens[picked].sum(1) / time


def rate(level: Level) -> Rate | None:
    """The answers after as many as were in flight had ended, to the last one; None where no time passed between them."""
    shots = sorted(level.shots, key=lambda shot: shot.ended)
    size = level.concurrency
    cuts = [*range(size - 1, len(shots) - 1, size), len(shots) - 1]
    answers, tokens, seconds = [], [], []
    for start, end in pairwise(cuts):
        block = shots[start + 1 : end + 1]
        answers.append(len(block))
        tokens.append(sum(shot.completion_tokens or 0 for shot in block))
        seconds.append(shots[end].ended - shots[start].ended)
    found = Rate(*(np.array(column, dtype=np.float64) for column in (answers, tokens, seconds)))
    return found if seconds and found.seconds.sum() > 0 else None


def per_second(level: Level) -> float:
    """Answers a second; 0 where nothing could be counted."""
    found = rate(level)
    return 0.0 if found is None else float(found.answers.sum() / found.seconds.sum())


def arm(of: Measured, hourly: float | None) -> dict[str, Any]:
    """The numbers of one arm, each None where it was not measured and then with a reason in `missing`; `spread` has 95 %
    intervals. Seconds, bytes, joules, dollars; tokens and dollars are of whole answers, of `questions` each.

    mean_s, token_usd_per_1000: what prices are made of. usd_per_1000: at saturation; usd_per_1000_alone: one at a time. hourly:
    dollars for this machine.
    """
    missing = dict(of.why)
    columns = _columns(of)
    values: dict[str, Any] = {name: _middle(name, column) for name, column in columns.items()}
    spread = {name: _interval(name, column) for name, column in columns.items() if len(column) > 1}
    if 0 < (few := len(of.alone)) < FEWEST:
        values["p95_s"], missing["p95_s"] = None, f"{few} answers are too few to tell how long the slowest take"
        spread.pop("p95_s", None)
    best = max(of.levels, key=per_second, default=None)
    fastest = rate(best) if best else None
    values |= dict.fromkeys(BY_BLOCK)
    if best is not None and fastest is not None:
        totals = fastest.answers.sum(), fastest.tokens.sum()
        known = all(shot.completion_tokens is not None for shot in best.shots)
        for name, total, draws in zip(BY_BLOCK, totals, fastest.draws(0), strict=True):
            if name == "answers_per_s" or known:
                values[name] = float(total / fastest.seconds.sum())
                if len(fastest.seconds) > 1:
                    spread[name] = _ends(values[name], draws, len(fastest.seconds))
    costs = [shot.usd for shot in of.alone]
    tokens = None if None in costs or not costs else 1000 * of.questions * float(np.mean(costs))  # type: ignore[arg-type]
    alone_s = float(np.mean([shot.ended - shot.began for shot in of.alone])) if of.alone else None
    each = {"usd_per_1000_alone": alone_s, "usd_per_1000": 1 / per_s if (per_s := values["answers_per_s"]) else alone_s}
    for name, seconds in each.items():
        values[name], why = _usd(tokens, seconds, of, hourly)
        missing |= {name: why} if why else {}
    values["token_usd_per_1000"], values["mean_s"] = tokens, alone_s
    values["peak_bytes"], values["disk_bytes"] = of.peak_bytes, of.disk_bytes
    values["joules_per_answer"] = (
        None if of.joules is None or not of.alone else of.questions * of.joules / len(of.alone)
    )
    for name in (*BY_ROW, *BY_BLOCK):
        if values[name] is None:
            missing.setdefault(name, "no answer came" if not of.alone else "it was not stated with the answers")
    return {
        **values,
        "questions": of.questions,
        "n": len(of.alone),
        "rows": len({shot.row for shot in of.alone}),
        "failed": of.failed,
        "here": of.here,
        "peak_of": of.peak_of,
        "joules_by": of.joules_by,
        "saturation": {"concurrency": best.concurrency if best else None, "ended": of.ended},
        "levels": [
            {
                "concurrency": level.concurrency,
                "answers_per_s": per_second(level),
                "p50_s": _p50(level),
                "n": len(level.shots),
            }
            for level in of.levels
        ],
        "spread": spread,
        "missing": {name: why for name, why in missing.items() if values.get(name) is None},
    }


def ratios(student: Measured, teacher: Measured, numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By name, the student's number over its teacher's: {value, low, high, n}, with bounds where there is a spread.

    numbers: those of `arm`, by arm.
    """
    found: dict[str, Any] = {}
    ours, theirs = _paired(student, teacher)
    for name in BY_ROW:
        few = FEWEST if name == "p95_s" else 1
        if len(a := ours.get(name, ())) >= few and len(b := theirs.get(name, ())) >= few:
            found[name] = _ratio_of_rows(name, np.asarray(a), np.asarray(b))
    rates = [max(of.levels, key=per_second, default=None) for of in (student, teacher)]
    blocks = [rate(level) if level else None for level in rates]
    for place, name in enumerate(BY_BLOCK):
        both = [numbers[who].get(name) for who in ("student", "teacher")]
        if blocks[0] is not None and blocks[1] is not None and None not in both and both[1]:
            draws = blocks[0].draws(1)[place] / np.where((low := blocks[1].draws(2)[place]) > 0, low, np.nan)
            alone = min(len(block.seconds) for block in blocks if block) < 2
            found[name] = _ratio(both[0] / both[1], None if alone else draws, sum(len(b.seconds) for b in blocks if b))
    found |= _money(student, teacher, numbers)
    for name in FIXED:
        both = [numbers[who].get(name) for who in ("student", "teacher")]
        if None not in both and both[1]:
            found[name] = _ratio(both[0] / both[1], None, 0)
    return found


def _columns(of: Measured) -> dict[str, Floats]:
    """By row: seconds an answer (as p50_s and p95_s), until its first token, and tokens of whole answers."""
    seconds = [shot.ended - shot.began for shot in of.alone]
    first = [shot for shot in of.streamed if shot.first_token_s is not None] or of.alone
    read: dict[str, list[Any]] = {
        "p50_s": [*seconds],
        "p95_s": [*seconds],
        "first_token_s": [shot.first_token_s for shot in first],
        "prompt_tokens": [shot.prompt_tokens for shot in of.alone],
        "completion_tokens": [shot.completion_tokens for shot in of.alone],
    }
    found = {name: np.array([] if None in column else column, dtype=np.float64) for name, column in read.items()}
    return found | {name: of.questions * found[name] for name in ("prompt_tokens", "completion_tokens")}


def _paired(student: Measured, teacher: Measured) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The columns of both, in the order of the rows that both answered."""
    both = []
    for ours, theirs in ((student, teacher), (teacher, student)):
        kept = {}
        for part in ("alone", "streamed"):
            rows = {shot.row for shot in getattr(theirs, part)}
            kept[part] = sorted((s for s in getattr(ours, part) if s.row in rows), key=lambda s: (s.row, s.began))
        both.append(_columns(msgspec.structs.replace(ours, **kept)))
    return both[0], both[1]


def _middle(name: str, column: Floats) -> float | None:
    return float(_statistic(name, column[None])[0]) if len(column) else None


def _statistic(name: str, columns: Floats) -> Floats:
    """Of columns (m, n), one number each: medians of times, 95th percentiles, means of tokens."""
    if name in ("prompt_tokens", "completion_tokens"):
        return np.asarray(columns.mean(1))
    return np.quantile(columns, 0.95 if name == "p95_s" else 0.5, axis=1)


def _interval(name: str, column: Floats) -> dict[str, Any]:
    picked = np.random.default_rng(0).integers(len(column), size=(RESAMPLES, len(column)))
    return _ends(_middle(name, column) or 0.0, _statistic(name, column[picked]), len(column))


def _ends(value: float, draws: Floats, n: int) -> dict[str, Any]:
    found = percentiles(value, draws, n)
    return {"low": found.low, "high": found.high, "n": n}


def _ratio_of_rows(name: str, ours: Floats, theirs: Floats) -> dict[str, Any]:
    n, rng = min(len(ours), len(theirs)), np.random.default_rng(0)
    together = len(ours) == len(theirs)
    first = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
    second = first if together else rng.integers(len(theirs), size=(RESAMPLES, len(theirs)))
    below = _middle(name, theirs) or np.nan
    draws = _statistic(name, ours[first]) / np.where((low := _statistic(name, theirs[second])) > 0, low, np.nan)
    return _ratio((_middle(name, ours) or 0.0) / below, draws if n > 1 else None, n)


def _ratio(value: float, draws: Floats | None, n: int) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": n} | ({} if draws is None else _ends(value, draws, n))


def _money(student: Measured, teacher: Measured, numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Dollars: the spread is that of tokens, row by row, for a model that runs elsewhere, and of throughput, which the price of
    an hour is divided by, for one that runs here.
    """
    both = [numbers[who].get("usd_per_1000") for who in ("student", "teacher")]
    if None in both or not both[1]:
        return {}
    draws = [_dollars(student, float(both[0]), 0), _dollars(teacher, float(both[1]), 1)]  # type: ignore[arg-type]
    value, n = both[0] / both[1], min(len(student.alone), len(teacher.alone))
    if draws[0] is None or draws[1] is None:
        return {"usd_per_1000": _ratio(value, None, n)}
    return {"usd_per_1000": _ratio(value, draws[0] / np.where(draws[1] > 0, draws[1], np.nan), n)}


def _dollars(of: Measured, usd: float, seed: int) -> Floats | None:
    """RESAMPLES of what a thousand answers cost; None where there is nothing to tell the spread by."""
    if not of.here:
        costs = np.array([shot.usd for shot in of.alone], dtype=np.float64)
        picked = np.random.default_rng(seed).integers(len(costs), size=(RESAMPLES, len(costs)))
        return np.asarray(1000 * of.questions * costs[picked].mean(1))
    level = max(of.levels, key=per_second)
    found = rate(level)
    if found is None or len(found.seconds) < 2:
        return None
    return np.asarray(usd * per_second(level) / found.draws(seed)[0])


def _usd(
    tokens: float | None, seconds: float | None, of: Measured, hourly: float | None
) -> tuple[float | None, str | None]:
    if tokens is None:
        return None, "the price of its tokens is unknown; add prices_usd"
    if not of.here:
        return tokens, None
    if hourly is None:
        return None, "machine_usd_per_hour is not stated"
    if seconds is None:
        return None, "no answer came"
    return tokens + 1000 * of.questions * seconds * hourly / 3600, None


def _p50(level: Level) -> float | None:
    return float(np.median([shot.ended - shot.began for shot in level.shots])) if level.shots else None
