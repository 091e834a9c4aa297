"""The section on the probe: whether the teachers still answer frozen rows as they did, from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_distill.report import words
from llm_distill.report.words import Part, Said, human, interval, part, parts, percent, short, value

_KINDS = {"previous": "the look before", "first": "the first look"}

_TESTS = {"labels": "How often each label", "words": "Words an answer"}


def view(report: Part) -> dict[str, Any]:
    """What the template shows under `probe`; empty where there is none."""
    found = part(report, "probe")
    return {
        **found,
        "served": [(role, ", ".join(map(str, names or []))) for role, names in part(found, "served").items()],
        "compared": [
            {
                **one,
                "against": f"{_KINDS.get(str(one.get('kind')), 'an earlier look')}, {short(str(one.get('with'))[:10])}",
                "tests": list(map(_named, parts(one, "tests"))),
                "labels": [(name, of) for name, of in part(one, "labels").items() if isinstance(of, list) and len(of) == 2],
            }
            for one in parts(found, "compared")
        ],
    } if found else {}  # fmt: skip


def findings(report: Part) -> Iterator[Said]:
    """What a reviewer should know of it: each thing that has moved, or that nothing has."""
    found = part(report, "probe")
    said = [str(line) for line in found.get("said") or [] if line]
    for line in said:
        yield Said("look", f"Probe: {short(line, 400)}.")
    compared = parts(found, "compared")
    if compared and not said:
        one = compared[0]
        rows, agreement = words.count(value(one, "rows")), part(one, "agreement")
        yield Said(
            "good",
            f"Probe: no change of the teacher is seen on {rows} frozen rows; agreement with its earlier answers "
            f"{percent(value(agreement))} ({interval(agreement)}).",
        )


def _named(test: Part) -> dict[str, Any]:
    return {**test, "what": _TESTS.get(str(test.get("name"))) or human(test.get("name"))}
