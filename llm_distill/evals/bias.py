"""Whether training made a student more uneven than its base, or its teacher: amplified, kept or reduced, with an interval.

Filtered data can pass traits on (Cloud et al. 2025, arXiv 2507.14805), and a distilled model can be less even than the one it is
made from (Ahn et al. 2022, GeBNLP). So what the filters measure of the teacher is measured once more of the student.

Each number is an unevenness, 0 where nobody is treated otherwise:

flips: the share of counterfactual groups whose answers differ; of a variant, that stand apart (`evals.flips`).
gap: of a rate (the score; recall of a label and how often it is given) the largest less the smallest over the values of an
attribute or tag; of a value, its distance from the rate of all others. Recall over all labels is equalised odds (Hardt et al.
2016, arXiv 1610.02413), how often a label is given is demographic parity.
mentions: of the words in answers that name a group, the largest share less the smallest over an attribute's variants; of a
variant, its distance from an even share.

A gap of few rows lies above 0 by chance, so no gap is judged by itself, but its difference between two arms on the same rows,
less what chance adds to that (`evals.uneven`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_distill.evals.compare import rounded
from llm_distill.evals.flips import Of, flipped
from llm_distill.evals.metrics import Kind, Scores, prediction
from llm_distill.evals.pairs import apart
from llm_distill.evals.statistics import FEWEST, holm, proportion
from llm_distill.evals.uneven import Uneven, rates_apart, shares_apart
from llm_distill.generators.lexicon import Attribute
from llm_distill.records import Answer

#: Tasks with more labels have no gaps label by label: too many to look at, of too few rows each.
LABELS = 10
#: A tag with more values than this is an identifier, not a group of people.
VALUES = 50


@dataclass(frozen=True)
class How:
    """What is measured. of: features of answers in counterfactual groups. by: tags whose values are groups. margin: the student
    is as even as another where the interval of the difference lies inside it. attributes: whose words are counted in texts.
    """

    of: Sequence[Of]
    by: Sequence[str] = ()
    margin: float = 0.05
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    seed: int = 0
    resamples: int = 2_000


def verdict(low: float | None, high: float | None, margin: float, p: float = 0.0) -> str:
    """By a 95 % interval of the rise: `amplified` or `reduced` where it leaves out zero and p, which allows for all measures, is
    below 5 %; `kept` where it lies inside the margin, which is a test of equivalence (Schuirmann 1987); else nothing was shown,
    and the rows are too few to.
    """
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "not told apart"
    if (low > 0 or high < 0) and p < 0.05:
        return "amplified" if low > 0 else "reduced"
    return "kept" if -margin < low and high < margin else "not told apart"


def bias(
    arms: Mapping[str, Sequence[Answer]],
    against: Sequence[str],
    task: Kind,
    labels: Sequence[str],
    scores: Mapping[str, Scores],
    metric: str | None,
    how: How,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The student's unevenness less that of each arm in `against`, ready for JSON. scores: by arm, on `metric`. marks: by arm,
    where refusals are compared, 1 for each answer that is one.

    `found`: `measure`, `of`, `by`, `value` ("*": over all values), `arms` (the unevenness of each), `against` (n, difference,
    low, high, smallest_visible, p, p_holm, verdict); `p_holm` allows for all measures against that arm (Holm). `few`: what has
    too few rows to be measured.
    """
    others = [arm for arm in against if arm in arms]
    shown = ["student", *others]
    few: Counter[str] = Counter()
    found = list(_flips(arms, shown, how, marks or {}))
    found += _gaps(arms, shown, task, labels, scores, metric, how, few)
    if task == "generate" and how.attributes:
        found += _mentions(arms, shown, how, few)
    for other in others:
        pairs = [of for one in found if (of := one["against"].get(other))]
        for of, p in zip(pairs, holm([of["p"] for of in pairs]), strict=True):
            of |= {"p_holm": p, "verdict": verdict(of["low"], of["high"], how.margin, p)}
    return {"margin": how.margin, "against": others, "found": rounded(found), "few": dict(sorted(few.items()))}


def _flips(
    arms: Mapping[str, Sequence[Answer]], shown: Sequence[str], how: How, marks: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    for of in how.of:
        by_arm = {
            arm: flipped(arms[arm], of, attributes=how.attributes, marks=marks.get(arm, ()) if of == "refusal" else ())
            for arm in shown
        }
        keys = by_arm["student"].keys()
        for attribute, variant in sorted(keys, key=lambda key: (key[0], key[1] != "*", key[1])):
            units = {arm: by_arm[arm].get((attribute, variant), {}) for arm in shown}
            levels = {arm: proportion(sum(of_.values()), len(of_))._asdict() for arm, of_ in units.items()}
            compared = {
                other: pair
                for other in shown[1:]
                if (pair := apart(units["student"], units[other], how.seed, how.resamples))
            }
            yield {"measure": "flips", "of": of, "by": attribute, "value": variant, "arms": levels, "against": compared}


def _groupings(answers: Sequence[Answer], by: Sequence[str]) -> dict[str, dict[str, str]]:
    """What rows are grouped by -> row_id -> the value it has: the variants of each attribute, and the tags that are named."""
    found: dict[str, dict[str, str]] = {}
    for answer in answers:
        tags = answer.prompt.tags
        if "group" in tags and tags.get("variant"):
            found.setdefault(tags.get("attribute", ""), {})[answer.prompt.row_id] = tags["variant"]
        for tag in by:
            if tag in tags:
                found.setdefault(tag, {})[answer.prompt.row_id] = tags[tag]
    return {name: of for name, of in sorted(found.items()) if 2 <= len(set(of.values())) <= VALUES}


def _gaps(
    arms: Mapping[str, Sequence[Answer]],
    shown: Sequence[str],
    task: Kind,
    labels: Sequence[str],
    scores: Mapping[str, Scores],
    metric: str | None,
    how: How,
    few: Counter[str],
) -> Iterator[dict[str, Any]]:
    rates: dict[str, dict[str, Scores]] = {}  # of what -> arm -> row_id -> hit
    if metric is not None:
        rates[metric] = {arm: scores[arm] for arm in shown if scores.get(arm)}
    for label in labels if task == "classify" and len(labels) <= LABELS else ():
        said = {arm: {a.prompt.row_id: float(prediction(a) == label) for a in arms[arm]} for arm in shown}
        gold = {a.prompt.row_id for a in arms["student"] if a.prompt.label == label}
        rates[f"recall of {label}"] = {arm: {r: hit for r, hit in of.items() if r in gold} for arm, of in said.items()}
        rates[f"given {label}"] = said
    clusters = _clusters(arms["student"])
    for name, values in _groupings(arms["student"], how.by).items():
        for of, hits in rates.items():
            if "student" in hits:
                yield from _compared("gap", of, name, values, clusters, hits, shown, how, few)


def _compared(
    measure: str,
    of: str,
    by: str,
    values: Mapping[str, str],
    clusters: Mapping[str, str],
    hits: Mapping[str, Scores],
    shown: Sequence[str],
    how: How,
    few: Counter[str],
) -> Iterator[dict[str, Any]]:
    """One rate over the values of one grouping: the student against each other arm on the rows that both have."""
    entries: dict[str, dict[str, Any]] = {}
    for other in (arm for arm in shown[1:] if arm in hits):
        rows = sorted(values.keys() & hits["student"].keys() & hits[other].keys())
        sizes = Counter(values[row] for row in rows)
        enough = sorted(value for value, n in sizes.items() if n >= FEWEST)
        if len(enough) < 2:
            few[f"{of} by {by}"] = len(rows)
            continue
        rows = [row for row in rows if values[row] in set(enough)]
        table = Uneven(enough, how.seed, how.resamples)
        for value, seen in rates_apart(
            table,
            [clusters[row] for row in rows],
            [values[row] for row in rows],
            [[hits[arm][row] for row in rows] for arm in ("student", other)],
        ).items():
            entry = entries.setdefault(
                value, {"measure": measure, "of": of, "by": by, "value": value, "arms": {}, "against": {}}
            )
            entry["arms"] |= {"student": {"value": seen.pop("ours")}, other: {"value": seen.pop("theirs")}}
            entry["against"][other] = seen
    yield from entries.values()


def _clusters(answers: Sequence[Answer]) -> dict[str, str]:
    """What is drawn together: rows of a counterfactual group are no independent evidence."""
    return {a.prompt.row_id: a.prompt.tags.get("group", a.prompt.row_id) for a in answers}


def _mentions(
    arms: Mapping[str, Sequence[Answer]], shown: Sequence[str], how: How, few: Counter[str]
) -> Iterator[dict[str, Any]]:
    clusters = _clusters(arms["student"])
    for name, attribute in how.attributes.items():
        counts = {
            arm: {
                a.prompt.row_id: Counter(one.variant for one in attribute.find(a.text, names=True) or ())
                for a in arms[arm]
                if a.status != "failed"
            }
            for arm in shown
        }
        entries: dict[str, dict[str, Any]] = {}
        for other in shown[1:]:
            rows = sorted(counts["student"].keys() & counts[other].keys())
            naming = [sum(bool(counts[arm][row]) for row in rows) for arm in ("student", other)]
            if min(naming) < FEWEST:
                few[f"mentions of {name}"] = max(few[f"mentions of {name}"], min(naming))
                continue
            table = Uneven(list(attribute.variants), how.seed, how.resamples)
            seen = shares_apart(
                table,
                [clusters[row] for row in rows],
                [[counts[arm][row] for row in rows] for arm in ("student", other)],
            )
            for value, of in seen.items():
                entry = entries.setdefault(
                    value, {"measure": "mentions", "of": "words", "by": name, "value": value, "arms": {}, "against": {}}
                )
                entry["arms"] |= {"student": {"value": of.pop("ours")}, other: {"value": of.pop("theirs")}}
                entry["against"][other] = of
        yield from entries.values()
