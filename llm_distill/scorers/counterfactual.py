"""Scorers of counterfactual groups: does the teacher answer alike whoever a prompt is about, and is the group still whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from llm_distill.evals.flips import Of, by_group, features, widest
from llm_distill.generators.lexicon_file import SHIPPED, LexiconFile, read
from llm_distill.plugs import Plug, Spec, bind
from llm_distill.records import Answer
from llm_distill.scorers import SCORERS, Context, Scored, measured


def _scorer(value: Any, info: ValidationInfo) -> Plug | None:
    """The scorer whose numbers are compared; `refusal` where that is what is asked."""
    wanted = info.data.get("of")
    if (value is None) == (wanted == "score"):
        raise ValueError("`of: score` goes with `by`, a scorer; found one without the other")
    spec = "refusal" if wanted == "refusal" else value
    return None if spec is None else bind("scorer", Spec.read(spec, "by"), SCORERS, info.context)  # type: ignore[arg-type]


#: A scorer as a recipe writes it: `name`, or `name: {knobs}`.
Scorer = Annotated[Any, AfterValidator(_scorer)]


def counterfactual_flip(
    answers: Sequence[Answer],
    context: Context,
    *,
    of: Of = "label",
    by: Scorer = None,
    groups: LexiconFile = SHIPPED,
) -> Scored:
    """How far apart the answers of a row's counterfactual group are, at most: the same number for all of its members.

    NaN for rows of no group, and where fewer than two members can be measured. All members count that were answered, those
    too that an earlier filter dropped, so a bound drops whole groups. `of`, with its range and what is compared:

    label: 0 or 1, the labels stated (none is one too). label_probs: [0, 1], total variation of the label distributions.
    text: [0, 1], 1 - token F1, terms of the group's attribute put aside (those of the lexicon in `groups`). sentiment:
    [0, 1], half the difference of word-count polarities, see `prompts/polarity.yaml`. length: [0, 1], 1 - shorter / longer,
    in words. refusal: 0 or 1, whether some are declined and others not. score: the difference of another scorer's numbers,
    named in `by`: `{of: score, by: {toxicity: {model: org/name}}}`.

    It measures consistency and nothing else: a teacher that is equally unfair to everybody scores 0. What differs by
    chance (`answers.temperature` above 0) is not told from what differs by group.
    """
    rows = {a.prompt.row_id: a for a in (*context.rows, *answers)}
    members = [a for found in by_group(rows.values()).values() for a in found]
    marks = measured(by, members, context)[0].tolist() if isinstance(by, Plug) else ()
    values = {
        a.prompt.row_id: value
        for a, value in zip(members, features(members, of, read(groups).attributes, marks), strict=True)
    }
    spread = {
        group: (widest([values[a.prompt.row_id] for a in found], of), found)
        for group, found in by_group(members).items()
    }
    scores, why = [], []
    for answer in answers:
        score, found = spread.get(answer.prompt.tags.get("group", ""), (math.nan, []))
        scores.append(score)
        why.append(_words(found, of) if score > 0 else None)
    return Scored(scores, why)


def _words(members: Sequence[Answer], of: Of) -> str:
    labelled = of in ("label", "label_probs")
    said = [f"{a.prompt.tags.get('variant')}: {a.prediction if labelled else repr(a.text[:40])}" for a in members]
    return f"{members[0].prompt.tags.get('attribute')} ({'; '.join(said)})"


def whole_groups(answers: Sequence[Answer], context: Context) -> Scored:
    """1 where a member of the row's counterfactual group is no longer among the answers; 0 elsewhere, and without a group.

    For the end of a filter list: whatever took one member then takes the rest, so that no variant of an attribute is seen
    more often than another. Filters after it can part groups again.
    """
    left = {a.prompt.row_id for a in answers}
    gone: dict[str, list[str]] = {}
    for row in context.rows:
        if (group := row.prompt.tags.get("group")) and row.prompt.row_id not in left:
            gone.setdefault(group, []).append(row.prompt.tags.get("variant", "?"))
    missing = [gone.get(a.prompt.tags.get("group", ""), []) for a in answers]
    return Scored(
        [float(bool(variants)) for variants in missing],
        [f"gone: {', '.join(sorted(variants))}" if variants else None for variants in missing],
    )
