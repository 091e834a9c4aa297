"""The section on what a judge said, from report.json: scores, wins and losses, and how far the judge can be trusted.

Like `sections`, pure, and at home with parts that are missing or null. What judge and arms wrote is text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_distill.report import words
from llm_distill.report.words import Part, Said, human, interval, part, percent, short, value

#: Below it agreement is at best fair, above the other at least substantial (Landis & Koch 1977).
_FAIR, _SUBSTANTIAL = 0.4, 0.6
#: A share of verdicts that change with the order, beyond which it is worth a warning.
_MANY = 0.2


def view(report: Part) -> dict[str, Any]:
    """What the template shows under `judge`; empty where nobody judged."""
    judge = part(report, "judge")
    if not judge:
        return {}
    arms, pairs, people = part(judge, "arms"), part(judge, "pairwise"), part(judge, "people")
    scale = judge.get("scale")
    low, high = scale if isinstance(scale, list) and len(scale) == 2 else (None, None)
    return {
        **judge,
        "scale": f"{low} to {high}",
        "arms": [(arm, part(arms, arm), _between(part(arms, arm)), _lost(part(arms, arm))) for arm in arms],
        "pairs": [(name, part(pairs, name), _lost(part(pairs, name))) for name in pairs],
        "slices": [(name, tag, part(of, tag)) for name in pairs for of in [part(part(pairs, name), "slices")] for tag in of],
        "people": [(name, part(people, name)) for name in ("ratings", "preferences") if part(people, name)],
        "examples": [one for one in judge.get("examples") or [] if isinstance(one, Mapping)],
    }  # fmt: skip


def pair_lines(report: Part) -> list[tuple[str, ...]]:
    """The comparisons as rows of a table: which, win rate, at equal length, wins, ties, losses, changed with the order."""
    found = []
    pairs = part(part(report, "judge"), "pairwise")
    for name in pairs:
        pair = part(pairs, name)
        rates = [_rate(part(pair, key)) for key in ("win_rate", "length_controlled")]
        counts = [words.count(pair.get(key)) for key in ("wins", "ties", "losses")]
        found.append((human(name), *rates, *counts, _rate(part(pair, "changed_with_order"))))
    return found


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it, a sentence each."""
    judge = part(report, "judge")
    if not judge:
        return
    if owed := value(judge, "owed"):
        why = f" {short(judge.get('stopped'), 200)}" if judge.get("stopped") else ""
        yield Said("look", f"The judge still owes {words.count(owed)} verdicts; run again to ask for them.{why}")
    pairs = part(judge, "pairwise")
    for name in pairs:
        yield from _of_pair(name, part(pairs, name))
    for name, of in {**part(judge, "arms"), **pairs}.items():
        faults = part(of, "unjudged") if isinstance(of, Mapping) else {}
        if lost := sum(n for n in faults.values() if isinstance(n, int)):
            why = short(next(iter(faults)), 120)
            rows = "1 row has" if lost == 1 else f"{words.count(lost)} rows have"
            yield Said("look", f"{human(name)}: {rows} no verdict of the judge and do not count; most often: {why}.")
    for one in judge.get("kin") or []:
        yield Said("look", f"{short(one, 300)}.")
    yield from _trust(part(judge, "people"))


def _of_pair(name: str, pair: Part) -> Iterator[Said]:
    """Who wins, whether length does, and whether the order decides."""
    rate, level = part(pair, "win_rate"), part(pair, "length_controlled")
    if value(rate) is None:
        return
    low, high, p = value(rate, "low"), value(rate, "high"), value(pair, "p")
    counts = ", ".join(f"{words.count(pair.get(key))} {key}" for key in ("wins", "ties", "losses"))
    said = f"{human(name)}, by the judge: wins {percent(value(rate))} ({interval(rate)}; {counts})"
    tone, verdict = "same", "No preference can be seen."
    if low is not None and high is not None and p is not None and p < 0.05 and not low <= 0.5 <= high:
        tone, verdict = ("good", "It prefers the student.") if low > 0.5 else ("look", "It prefers the other.")
    if value(level) is not None:
        said += f", at equal length {percent(value(level))} ({interval(level)})"
    elif level.get("reason"):
        said += f", at equal length unknown: {short(level['reason'], 200)}"
    yield Said(tone, f"{said}. {verdict}")
    if (grows := value(part(level, "effect"), "low")) is not None and grows > 0:
        yield Said(
            "look",
            f"{human(name)}: the judge prefers longer answers, whoever wrote them; read the win rate at equal length.",
        )
    changed = part(pair, "changed_with_order")
    if (share := value(changed)) is not None and share > _MANY:
        leaning = value(pair, "leaning_to_first") or 0.0
        to = "" if not leaning else f", mostly to the one shown {'first' if leaning > 0 else 'second'}"
        yield Said(
            "look",
            f"{human(name)}: {percent(share)} ({interval(changed)}) of verdicts change with the order of the answers{to}; they "
            "count as ties.",
        )


def _trust(people: Part) -> Iterator[Said]:
    """How far people agree with it."""
    if not people:
        yield Said(
            "same", "Nobody has held the judge against people: give it a file of ratings (`evaluate.judge.human`)."
        )
        return
    if lost := (value(people, "lines") or 0) - (value(people, "held_out") or 0):
        yield Said(
            "same",
            f"{words.count(lost)} of {words.count(people.get('lines'))} lines by people are about rows that are not held out.",
        )
    for name in ("ratings", "preferences"):
        of = part(people, name)
        kappa, raw = part(of, "kappa"), part(of, "raw")
        if of and value(kappa) is None:
            yield Said(
                "look", f"The judge against people, {name}: no kappa, {short(of.get('reason') or 'too few rows', 200)}."
            )
        elif of and value(kappa, "low") is None:
            rows = words.count(of.get("rows"))
            yield Said("look", f"The judge against people, {name}: {rows} rows are too few to say how far it agrees.")
        elif of:
            number = value(kappa) or 0.0
            between = f" ({words.decimal(value(kappa, 'low'))} to {words.decimal(value(kappa, 'high'))})"
            poor = number < _FAIR
            how = (
                "poor, so do not rest on its verdicts"
                if poor
                else "substantial"
                if number > _SUBSTANTIAL
                else "moderate"
            )
            yield Said(
                "look" if poor else "good" if number > _SUBSTANTIAL else "same",
                f"The judge against people, {name}: kappa {words.decimal(number)}{between}, the same in {percent(value(raw))} of "
                f"{words.count(of.get('n'))}; agreement is {how}.",
            )


def _rate(of: Part) -> str:
    between = interval(of)
    return percent(value(of)) + (f" ({between})" if between else "")


def _between(of: Part) -> str:
    """The interval of a score on the judge's own scale."""
    low, high = value(of, "low"), value(of, "high")
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _lost(of: Part) -> list[tuple[str, Any]]:
    """Why there is no verdict, and how often."""
    return list(part(of, "unjudged").items())
