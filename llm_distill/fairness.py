"""Whether a filter takes more from one part of the rows than from the others: its drop rates by tag, label and length.

A filter that measures quality may still silence a group: a word list that drops every mention of a religion, a language
filter that takes dialects for another language. So each filter's drop rate is compared, part by part, with that of all the
other rows that it saw.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llm_distill.records import Answer
from llm_distill.sieve import Sifted

if TYPE_CHECKING:
    from llm_distill.evals.statistics import Interval

#: Parts with fewer rows say nothing that an interval would not take back.
_FEWEST = 10
#: A tag with more values than this is an identifier, not a slice.
_VALUES = 50
_BY_ID = {"group", "parent"}


def fairness(answers: Sequence[Answer], sifted: Sifted) -> list[dict[str, Any]]:
    """For each filter and each part of the rows it saw: rows, drop rate, and its difference from all other rows.

    `rate` and `difference` are [value, low, high]: Wilson's interval at 95 %, and Newcombe's for a difference of shares
    (1998, method 10) at a level that allows for as many comparisons as the filter has (Bonferroni).
    """
    if len(answers) < 2 * _FEWEST or not any(out for _, out in sifted.steps.values()):
        return []  # and no language is identified for nothing, which takes seconds to start
    rows = {a.prompt.row_id: a for a in answers}
    parts = {name: {row_id: of(a) for row_id, a in rows.items()} for name, of in _parts(answers)}
    found = []
    for name, (seen, out) in sifted.steps.items():
        if not out:
            continue
        compared = []
        for by, values in parts.items():
            counts = Counter(value for row_id in seen if (value := values[row_id]) is not None)
            gone = Counter(value for row_id in out if (value := values[row_id]) is not None)
            known, lost = sum(counts.values()), sum(gone.values())
            if 2 <= len(counts) <= _VALUES:
                compared += [(by, v, n, gone[v], known - n, lost - gone[v]) for v, n in sorted(counts.items())]
        compared = [part for part in compared if part[2] >= _FEWEST and part[4] >= _FEWEST]
        found += [_compared(name, *part, comparisons=len(compared)) for part in compared]
    return found


def _compared(
    name: str, by: str, value: str, n: int, gone: int, others: int, others_gone: int, *, comparisons: int
) -> dict[str, Any]:
    from llm_distill.evals.statistics import difference, proportion

    apart = difference(gone, n, others_gone, others, level=1 - 0.05 / comparisons)
    rate = proportion(gone, n)
    return {
        "filter": name, "by": by, "value": value, "rows": n, "dropped": gone,
        "rate": _rounded(rate), "difference": _rounded(apart), "unfair": apart.low > 0,
    }  # fmt: skip


def _rounded(interval: Interval) -> list[float]:
    return [round(x, 4) for x in interval[:3]]


def unfair(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each part that a filter takes more from than from the rest, beyond chance."""
    for part in found:
        if part["unfair"]:
            value, low, high = part["difference"]
            yield (
                f"{part['filter']} drops {part['rate'][0]:.1%} of the rows with {part['by']} = {part['value']}, "
                f"{100 * value:.1f} points more than of the others ({100 * low:.1f} to {100 * high:.1f}); look at them with "
                "`llm-distill show`"
            )


def _tag(name: str, answer: Answer) -> str | None:
    return answer.prompt.tags.get(name)


def _parts(answers: Sequence[Answer]) -> Iterator[tuple[str, Callable[[Answer], str | None]]]:
    """What rows are parted by: every tag, what the teacher said (classify), how long the prompt is, its language."""
    for tag in sorted({tag for a in answers for tag in a.prompt.tags} - _BY_ID):
        yield tag, partial(_tag, tag)
    if any(a.prediction is not None for a in answers):
        yield "prediction", lambda a: a.prediction
    if find_spec("py3langid"):
        languages = _languages(answers)
        yield "language", lambda a: languages[a.prompt.row_id]
    lengths = sorted(len(a.prompt.text) for a in answers)
    if lengths:
        cuts = [lengths[math.floor(len(lengths) * q)] for q in (0.25, 0.5, 0.75)]
        names = [f"under {cuts[0]}", f"{cuts[0]} to {cuts[1]}", f"{cuts[1]} to {cuts[2]}", f"{cuts[2]} or more"]
        yield "prompt length", lambda a: f"{names[sum(len(a.prompt.text) >= cut for cut in cuts)]} characters"


def _languages(answers: Sequence[Answer]) -> dict[str, str | None]:
    """The language of each prompt, rare ones together: those of short texts are guesses. None where it is too short to tell."""
    from llm_distill.scorers.language import LANGUAGES, language

    found = [name if name in LANGUAGES else None for name in language(answers, only=["en"], of="prompt").why]
    counts = Counter(found)
    rare = {name for name, count in counts.items() if count < max(_FEWEST, len(answers) // 100)}
    return {a.prompt.row_id: "other" if name in rare else name for a, name in zip(answers, found, strict=True)}
