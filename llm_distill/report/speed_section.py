"""How fast the arms answer and what that costs, from report.json: the section, its sentences, and what the field claims beside
what was measured.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_distill.report.words import Part, Said, count, duration, human, part, percent, short, value

#: Of a distilled model, as surveys, vendors and model cards put it: the share of its teacher that it keeps, how many times as
#: fast and as cheap it is, and in how many seconds it answers.
CLAIMED: dict[str, tuple[float | None, float | None]] = {
    "kept": (0.90, 0.98),
    "faster": (5, 50),
    "cheaper": (10, 50),
    "seconds": (None, 0.1),
}
_SAID = {
    "kept": "Share of the teacher's score kept",
    "faster": "Times as fast as the teacher, p50",
    "cheaper": "Times as cheap as the teacher",
    "seconds": "Time of an answer, p50",
}
_RATIOS = {
    "p50_s": "Time of an answer, p50",
    "p95_s": "Time of an answer, p95",
    "first_token_s": "Time to first token, p50",
    "answers_per_s": "Answers a second",
    "tokens_per_s": "Tokens a second",
    "usd_per_1000": "Dollars for 1,000 answers",
    "prompt_tokens": "Prompt tokens",
    "completion_tokens": "Completion tokens",
    "peak_bytes": "Peak memory",
    "disk_bytes": "Size on disk",
    "joules_per_answer": "Energy of an answer",
}


class Column(NamedTuple):
    """A number of the table of arms: its key in `speed.arms`, its title, and how it is written."""

    key: str
    title: str
    shown: Any


def size(number: object) -> str:
    """Bytes: 1.2 GB, 540 MB."""
    if not isinstance(number, int | float):
        return "—"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g}\u00a0{name}"
    return f"{number:.0f}\u00a0B"


def times(number: object) -> str:
    """A ratio to three digits."""
    return f"{number:.3g}" if isinstance(number, int | float) else "—"


def dollars(number: object) -> str:
    """What a thousand answers cost."""
    return f"${number:.3g}" if isinstance(number, int | float) else "—"


COLUMNS = (
    Column("p50_s", "p50", duration),
    Column("p95_s", "p95", duration),
    Column("first_token_s", "First token", duration),
    Column("answers_per_s", "Answers/s", times),
    Column("tokens_per_s", "Tokens/s", times),
    Column("prompt_tokens", "Prompt tokens", count),
    Column("completion_tokens", "Completion tokens", count),
    Column("peak_bytes", "Peak memory", size),
    Column("disk_bytes", "On disk", size),
    Column("usd_per_1000", "$ per 1,000", dollars),
    Column("joules_per_answer", "J an answer", times),
)


def claims(report: Part) -> list[dict[str, Any]]:
    """Each claim of the field with what was measured: {name, claimed: {min, max}, measured: {value, low, high}, verdict}.

    verdict: `reached`, `not reached`, `within the spread`, `not measured`.
    """
    ratios = part(part(report, "speed"), "ratios")
    student = part(part(part(report, "speed"), "arms"), "student")
    seconds = {"value": student.get("p50_s"), **part(part(student, "spread"), "p50_s")}
    found = {
        "kept": part(report, "kept_share"),
        "faster": _inverse(part(ratios, "p50_s")),
        "cheaper": _inverse(part(ratios, "usd_per_1000")),
        "seconds": seconds,
    }
    return [
        {
            "name": name,
            "claimed": {"min": low, "max": high},
            "measured": (of := {key: value(found[name], key) for key in ("value", "low", "high")}),
            "verdict": _verdict(of, low, high),
        }
        for name, (low, high) in CLAIMED.items()
    ]


def _inverse(of: Part) -> Part:
    """How many times less: a ratio the other way round, its bounds with it."""
    ends = {"value": value(of), "low": value(of, "high"), "high": value(of, "low")}
    return {key: 1 / number if number else None for key, number in ends.items()}


def _verdict(of: Part, least: float | None, most: float | None) -> str:
    """Reached where even the worse end of the interval reaches the claim's easier end."""
    number = value(of)
    if number is None:
        return "not measured"
    low, high = (number if (end := value(of, key)) is None else end for key in ("low", "high"))
    bound, worse, better = (least, low, high) if least is not None else (-(most or 0.0), -high, -low)
    return "reached" if worse >= bound else "within the spread" if better >= bound else "not reached"


def view(report: Part) -> dict[str, Any]:
    """What the template shows under `speed`; empty where nothing was measured."""
    arms = part(part(report, "speed"), "arms")
    if not arms:
        return {}
    columns = [column for column in COLUMNS if any(value(part(arms, arm), column.key) is not None for arm in arms)]
    return {
        "columns": [column.title for column in columns],
        "arms": [(arm, _cells(part(arms, arm), columns), _loaded(part(arms, arm))) for arm in arms],
        "ratios": [(title, _ratio(of)) for key, title in _RATIOS.items() if value(of := _of(report, key)) is not None],
        "claims": _claimed(report),
        "notes": list(_notes(report)),
    }


def table_of(report: Part) -> tuple[list[str], list[list[str]]]:
    """The arms for report.md: the header, and the rows; none where nothing was measured."""
    found = view(report)
    if not found:
        return [], []
    return ["Arm", *found["columns"]], [[human(arm), *(cell for cell, _ in cells)] for arm, cells, _ in found["arms"]]


def claim_rows(report: Part) -> list[tuple[str, str, str, str]]:
    """Claims for report.md: what of, claimed, measured, verdict."""
    return _claimed(report) if part(part(report, "speed"), "arms") else []


def _claimed(report: Part) -> list[tuple[str, str, str, str]]:
    said = []
    units: dict[str, Callable[[object], str]] = {"kept": percent, "seconds": duration}
    for one in claims(report):
        unit: Callable[[object], str] = units.get(one["name"], times)
        low, high = one["claimed"]["min"], one["claimed"]["max"]
        claimed = f"under {unit(high)}" if low is None else f"{unit(low)} to {unit(high)}"
        of = one["measured"]
        spread = f" ({unit(of['low'])} to {unit(of['high'])})" if None not in (of["low"], of["high"]) else ""
        said.append((_SAID[one["name"]], claimed, f"{unit(of['value'])}{spread}", one["verdict"]))
    return said


def _of(report: Part, key: str) -> Part:
    return part(part(part(report, "speed"), "ratios"), key)


def _ratio(of: Part) -> tuple[str, str]:
    low, high = value(of, "low"), value(of, "high")
    return times(value(of)), "" if low is None or high is None else f"{times(low)} to {times(high)}"


def _cells(arm: Part, columns: list[Column]) -> list[tuple[str, str]]:
    """(the number, its interval or why there is none)."""
    cells = []
    for column in columns:
        number, spread = value(arm, column.key), part(part(arm, "spread"), column.key)
        low, high = value(spread, "low"), value(spread, "high")
        if number is None:
            cells.append(("not measured", ""))
        else:
            between = "" if low is None or high is None else f"{column.shown(low)} to {column.shown(high)}"
            cells.append((column.shown(number), between))
    return cells


def _loaded(arm: Part) -> str:
    """How many at a time its throughput is of."""
    at = value(part(arm, "saturation"), "concurrency")
    return "" if at is None else f"{count(at)} at a time"


def _notes(report: Part) -> Iterator[str]:
    speed = part(report, "speed")
    rows = [value(part(part(speed, "arms"), arm), "n") for arm in part(speed, "arms")]
    few = min((n for n in rows if n is not None), default=0)
    where = short(speed.get("machine") or "unknown", 100)
    yield f"Local models ran on: {where}. At least {count(few)} answers of each, one at a time."
    for arm in part(speed, "arms"):
        of = part(part(speed, "arms"), arm)
        missing = part(of, "missing")
        if missing:
            told = "; ".join(f"{_RATIOS.get(key, human(key))}: {short(why, 120)}" for key, why in missing.items())
            yield f"{human(arm)}, not measured: {told}."
        yield f"{human(arm)}: throughput at {_loaded(of) or 'no load'}; {short(part(of, 'saturation').get('ended') or '', 120)}."
    for arm, under in part(speed, "elsewhere").items():
        yield f"{human(arm)} was measured before, and otherwise: {short(under, 200)}."
    for arm, why in part(speed, "unmeasured").items():
        yield f"{human(arm)} was not measured: {short(why, 200)}."


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it, a sentence each."""
    if not part(part(report, "speed"), "arms"):
        return
    if part(report, "speed").get("stale"):
        yield Said("look", "Speed was measured of another student than this one: measure it again.")
    if elsewhere := [human(arm).lower() for arm in part(part(report, "speed"), "elsewhere")]:
        yield Said(
            "look",
            f"Speed of {', '.join(elsewhere)} was measured elsewhere than the rest, or by other numbers of rows: "
            "times are not comparable until `measure` measures all.",
        )
    for name, claimed, found, verdict in _claimed(report):
        if name != _SAID["kept"] and verdict != "not measured":
            tone = {"reached": "good", "within the spread": "same"}.get(verdict, "look")
            yield Said(tone, f"{name}: {found}. The field claims {claimed}: {verdict}.")
    for arm in part(part(report, "speed"), "arms"):
        failed = value(part(part(part(report, "speed"), "arms"), arm), "failed")
        if failed:
            yield Said("look", f"{human(arm)}: {count(failed)} questions of the measurement of speed got no answer.")
