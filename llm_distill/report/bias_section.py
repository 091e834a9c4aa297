"""The section on bias after training: how uneven the student is, and whether that rose or fell against others, from report.json.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from llm_distill.report import words
from llm_distill.report.words import Part, Said, human, interval, part, parts, percent, points, short, value

MOST = 40  # rows of the table
NAMED = 4  # measures that a sentence names
_FIRST = ("amplified", "reduced", "not told apart", "kept")


def view(report: Part) -> list[dict[str, Any]]:
    """What the template shows under `bias`: a line for each measure, those that rose first."""
    return [
        {
            "by": one.get("by"),
            "value": "all together" if one.get("value") == "*" else one.get("value"),
            "whole": one.get("value") == "*",
            "what": _what(one),
            "student": part(part(one, "arms"), "student"),
            "against": [_against(one, other) for other in others(report)],
        }
        for one in sorted(parts(part(report, "bias"), "found"), key=lambda one: _order(report, one))[:MOST]
    ]


def left_out(report: Part) -> int:
    """How many measures are in report.json alone."""
    return max(0, len(parts(part(report, "bias"), "found")) - MOST)


def others(report: Part) -> list[str]:
    """The arms that the student is held against."""
    named = part(report, "bias").get("against")
    return [str(arm) for arm in named] if isinstance(named, list) else []


def _against(one: Part, other: str) -> dict[str, Any]:
    pair = part(part(one, "against"), other)
    seen = value(pair, "smallest_visible")
    open_ = pair.get("verdict") == "not told apart" and seen is not None
    return {
        "level": value(part(part(one, "arms"), other)),
        "rise": value(pair, "difference"),
        "between": interval(pair, "difference"),
        "verdict": pair.get("verdict"),
        "note": f"would show {100 * seen:.1f} or more" if open_ and seen else "",
    }


def _what(one: Part) -> str:
    of = short(one.get("of"), 40)
    said = {"flips": f"groups that flip: {of}", "gap": f"gap in {of}", "mentions": "share of those named in answers"}
    return said.get(str(one.get("measure")), of)


def _order(report: Part, one: Part) -> tuple[int, bool]:
    verdicts = [str(part(part(one, "against"), other).get("verdict")) for other in others(report)]
    places = [_FIRST.index(said) for said in verdicts if said in _FIRST]
    return min(places, default=len(_FIRST)), one.get("value") != "*"


def findings(report: Part) -> Iterator[Said]:
    """For each arm that the student is held against: what rose, else what was shown not to, and what could not be seen."""
    for other in others(report):
        rows = parts(part(report, "bias"), "found")
        pairs = [(one, pair) for one in rows if (pair := part(part(one, "against"), other)).get("verdict")]
        rose = [(one, pair) for one, pair in pairs if pair["verdict"] == "amplified"]
        counts = Counter(str(pair["verdict"]) for _, pair in pairs)
        name = human(other).lower()
        if rose:
            rose.sort(key=lambda found: -(value(found[1], "difference") or 0.0))
            listed = "; ".join(
                f"{_what(one)}, {_who(one)}, {points(value(pair, 'difference'))} points ({interval(pair, 'difference')})"
                for one, pair in rose[:NAMED]
            )
            more = f" and {len(rose) - NAMED} more" if len(rose) > NAMED else ""
            yield Said(
                "look", f"Bias after training, against {name}: amplified. {listed[:1].upper()}{listed[1:]}{more}."
            )
        elif pairs:
            margin = percent(value(part(report, "bias"), "margin"), 0)
            text = (
                f"Bias after training, against {name}: nothing was seen to rise. Of {words.count(len(pairs))} measures "
            )
            text += f"{counts['kept']} were kept (within {margin}) and {counts['reduced']} reduced"
            seen = [value(pair, "smallest_visible") for _, pair in pairs if pair["verdict"] == "not told apart"]
            if seen:
                text += f"; for {len(seen)} there are too few rows to say"
                known = [of for of in seen if of is not None]
                text += f", which would mostly show a rise of {100 * max(known):.1f} points or more" if known else ""
            yield Said("same" if seen else "good", f"{text}.")


def _who(one: Part) -> str:
    by = short(one.get("by"), 30)
    return f"by {by}" if one.get("value") == "*" else f"{by} {short(one.get('value'), 30)}"
