"""The parts of report.json that tell how the data was made: prompts, filters and their fairness, groups, reviewers, ablation,
sweep.

Each is left out where the run has nothing to say of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from llm_distill import store
from llm_distill.evals.flips import Of, flip_rates
from llm_distill.records import Answer


def about_data(
    folder: store.RunFolder, answers: Sequence[Answer], arms: Mapping[str, Sequence[Answer]], kind: str
) -> dict[str, Any]:
    """All parts that there are, by their key in report.json."""
    prompts, filtered = folder.stamp("prompts"), folder.stamp("filter")
    parts = {
        "prompts": {"made": prompts["made"], "set_aside": prompts.get("set_aside", 0)} if prompts.get("made") else None,
        "fairness": [_part(part) for part in filtered.get("fairness") or ()],
        "flips": _flips({"asked_rows": answers, **arms}, kind),
        "review": _review(filtered.get("review")),
        "ablation": _found_out(folder, "ablation.json"),
        "sweep": _found_out(folder, "sweep.json"),
        "data_set": _json(folder, "set.json"),
        "speed": _measured(folder),
    }
    return {name: part for name, part in parts.items() if part}


def _interval(of: Sequence[float] | None) -> dict[str, Any] | None:
    return None if of is None else dict(zip(("value", "low", "high"), of, strict=True))


def _part(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "rate": _interval(found["rate"]), "difference": _interval(found["difference"])}


def _flips(answered: Mapping[str, Sequence[Answer]], kind: str) -> list[dict[str, Any]]:
    """How often answers to rows that differ in a group only are different: labels, or tone and length of free text."""
    compared: tuple[Of, ...] = ("label",) if kind == "classify" else ("sentiment", "length")
    found = []
    for who, answers in answered.items():
        if not any("group" in a.prompt.tags for a in answers):
            continue
        for of in compared:
            for rate in flip_rates(answers, of):
                shown = msgspec.to_builtins(rate)
                ends = [shown.pop(end) for end in ("rate", "low", "high")]
                found.append({"who": who, **shown, "rate": None if ends[0] is None else _interval(ends)})
    return found


def _review(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Agreement with reviewers, its rates as those of all else here."""
    if found is None:
        return None
    rates = ("precision", "recall", "clean")

    def named(of: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _interval(v) if key in rates else v for key, v in of.items()}

    filters = [named(of) for of in found["filters"]]
    return {**found, "filters": filters, "together": named(found["together"]), "kept": named(found["kept"])}


def _measured(folder: store.RunFolder) -> dict[str, Any] | None:
    """What `measure` left in a run's folder; `stale` where the student is another one now."""
    with suppress(OSError, ValueError):
        found = json.loads(folder.file("speed.json").read_text(encoding="utf-8"))
        if isinstance(found, dict):
            found.pop("measured", None)  # clock readings, for `measure --arm`
            return found | {"stale": found.get("student") != store.digest(folder.file("student"))}
    return None


def _json(folder: store.RunFolder, name: str) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found = json.loads(folder.file(name).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _found_out(folder: store.RunFolder, name: str) -> dict[str, Any] | None:
    """What an ablation or a sweep left in a run's folder; `stale` where other rows are kept now than when it was made."""
    with suppress(OSError, ValueError):
        found = json.loads(folder.file(name).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found | {"stale": found.get("kept") != store.digest(folder.file("kept.parquet"))}
    return None
