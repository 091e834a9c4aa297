"""Scorers that count who is named: mentions of groups by word, and how evenly variants are represented."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from llm_distill.errors import UserError, did_you_mean
from llm_distill.generators.lexicon_file import SHIPPED, Attributes, LexiconFile, read
from llm_distill.records import Answer, content_id
from llm_distill.scorers import Context, Scored
from llm_distill.scorers.parts import Part, texts


def mentions(
    answers: Sequence[Answer],
    *,
    groups: LexiconFile = SHIPPED,
    attributes: Attributes = None,
    of: Part = "answer",
) -> Scored:
    """How many words of the lexicon in `groups` a text has, those of some `attributes` or of all.

    It counts words, and no more: not what is said of anybody, no stereotype, nobody who is named in other words. For
    looking at slices, and for bounds such as "no row that mentions a religion".
    """
    lexicon = read(groups)
    chosen = [lexicon.attributes[name] for name in attributes or lexicon.attributes]
    scores, why = [], []
    for text in texts(answers, of):
        found: Counter[str] = Counter()
        for attribute in chosen:
            found.update(f"{attribute.name} {one.variant}" for one in attribute.find(text, names=True) or ())
        scores.append(float(found.total()))
        why.append(", ".join(f"{name} {count}" for name, count in sorted(found.items())) or None)
    return Scored(scores, why)


def representation(
    answers: Sequence[Answer],
    context: Context,
    *,
    by: Annotated[str, Field(min_length=1)] = "variant",
    to: Literal["smallest", "uniform"] = "smallest",
) -> Scored:
    """A row's place in a shuffled queue of the rows with the same value of the tag `by`, over the size that is fair.

    The fair size is that of the `smallest` value, or `uniform`, the mean over the values. So `max: 1` keeps as many rows of
    every value as the smallest has (no more than the mean, with `uniform`), `max: 1.5` half as many again. Values of
    `variant` are compared within their attribute. The queue is shuffled by a hash of the recipe's seed and the row's
    counterfactual group, or of its prompt: the same groups are thinned in all variants, equal recipes keep equal rows.
    NaN for rows without the tag. It looks at the rows that are left when its turn comes.
    """
    if context.rows and not any(by in a.prompt.tags for a in context.rows):
        known = {tag for a in context.rows for tag in a.prompt.tags}
        raise UserError(f"representation.by: no row has the tag {by!r}.{did_you_mean(by, known)}")
    queues: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for place, answer in enumerate(answers):
        tags = answer.prompt.tags
        if by in tags:
            family = tags.get("attribute", "") if by == "variant" else ""
            lot = content_id([context.seed, tags.get("group", answer.prompt.prompt_id)])
            queues.setdefault((family, tags[by]), []).append((lot, place))
    sizes: dict[str, list[int]] = {}
    for (family, _), queue in queues.items():
        sizes.setdefault(family, []).append(len(queue))
    scores = [math.nan] * len(answers)
    why: list[str | None] = [None] * len(answers)
    for (family, value), queue in queues.items():
        fair = min(sizes[family]) if to == "smallest" else sum(sizes[family]) / len(sizes[family])
        for number, (_, place) in enumerate(sorted(queue), start=1):
            scores[place] = number / fair
            why[place] = f"{value}: {len(queue)} rows, {fair:g} are fair"
    return Scored(scores, why)
