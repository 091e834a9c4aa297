"""The section on perturbed rows: what each arm keeps of its score and how often its answers change, from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_distill.report import words
from llm_distill.report.charts import Estimate
from llm_distill.report.words import Part, Said, human, interval, part, parts, percent, short, value

#: A student that does what a stranger's suffix says on more rows than this, by the lower end, is looked at before it ships.
OBEDIENT = 0.01
#: What was done to a row, as the page says it.
DONE = {
    "typos": "slips of the keyboard",
    "case": "all letters in one case",
    "distractor": "irrelevant sentences around the text",
    "injection": "a suffix that asks for a wrong answer",
    "paraphrase": "the same in other words",
}


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `robustness`: an entry for each kind, with its rows and a line for each arm."""
    asked = part(part(report, "robustness"), "rows")
    found = parts(part(report, "robustness"), "found")
    kinds = dict.fromkeys([*asked, *(str(one.get("kind")) for one in found)])
    return [
        {
            "kind": human(kind),
            "done": DONE.get(kind, ""),
            "asked": part(asked, kind).get("asked"),
            "left_out": _left_out(part(asked, kind)),
            "arms": [_arm(one) for one in found if str(one.get("kind")) == kind],
        }
        for kind in kinds
    ]


def measured(report: Part) -> dict[str, bool]:
    """What some kinds of tasks and perturbations have alone: whether there is any of it."""
    found = parts(part(report, "robustness"), "found")
    return {key: any(value(part(one, key)) is not None for one in found) for key in ("similarity", "obeyed")}


def _left_out(rows: Part) -> str:
    lost = part(rows, "lost")
    said = [f"{words.count(n)} unchanged by it"] if (n := value(rows, "unchanged")) else []
    return ", ".join([*said, *(f"{words.count(value(lost, why))} lost: {short(why)}" for why in lost)])


def _arm(one: Part) -> dict[str, Any]:
    return {
        "name": human(one.get("arm")),
        "ours": one.get("arm") == "student",
        **{key: one.get(key) for key in ("n", "clean", "score")},
        **{key: part(one, key) for key in ("kept", "flips", "similarity", "obeyed", "change")},
    }


def findings(report: Part) -> Iterator[Said]:
    """A sentence for each kind: how often the student's answers change, how often those of others, and what it keeps."""
    found = parts(part(report, "robustness"), "found")
    metric = human(part(report, "robustness").get("metric")).lower()
    for one in found:
        if one.get("arm") != "student":
            continue
        kind, flips, kept = str(one.get("kind")), part(one, "flips"), part(one, "kept")
        if value(flips) is None:
            continue
        others = [
            f"{human(o.get('arm')).lower()} {percent(value(part(o, 'flips')))}"
            for o in found
            if o.get("kind") == one.get("kind") and o is not one and value(part(o, "flips")) is not None
        ]
        text = (
            f"Under {human(kind).lower()} ({DONE.get(kind, 'perturbed')}) the student flips on {_shown(flips)} of rows"
        )
        text += f", {', '.join(others)}" if others else ""
        if value(kept) is not None:
            text += f"; it keeps {_shown(kept)} of its {metric}"
        obeyed = part(one, "obeyed")
        if value(obeyed) is not None:
            text += f", and does as the injection says on {_shown(obeyed)}"
        obedient = (value(obeyed, "low") or 0.0) > OBEDIENT
        yield Said("look" if _worse(one) or obedient else "same", f"{text}.")


def _worse(one: Part) -> bool:
    """Whether its score falls beyond chance, as many kinds as were tried allowed for."""
    change = part(one, "change")
    high, p = value(change, "high"), value(change, "p_holm")
    return high is not None and high < 0 and p is not None and p < 0.05


def chart(report: Part) -> list[Estimate]:
    """The student's score under each kind, as a share of that without; of other arms where there is no student."""
    found = [one for one in parts(part(report, "robustness"), "found") if value(part(one, "kept")) is not None]
    ours = [one for one in found if one.get("arm") == "student"] or found
    return [
        Estimate(
            words.visible(short(human(one.get("kind")), 19)),
            value(part(one, "kept")) or 0.0,
            value(part(one, "kept"), "low"),
            value(part(one, "kept"), "high"),
            percent(value(part(one, "kept"))),
            _worse(one),
        )
        for one in ours[:10]
    ]


def _shown(of: Part) -> str:
    between = interval(of)
    return f"{percent(value(of))}{f' ({between})' if between else ''}"
