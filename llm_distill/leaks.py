"""Checked once more, before anybody is asked: no held-out row may be among what the student or a prompt has seen.

The split keeps rows apart when they are made. What happens to them later (a redacted prompt, a crowd of near duplicates, a
new file of worked examples) is not its business, and an evaluation that leaks is worth nothing. So it fails, unless the
recipe allows the overlap by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError, did_you_mean
from llm_distill.near import near_index
from llm_distill.ngrams import portions
from llm_distill.recipe import Plan
from llm_distill.records import Prompt
from llm_distill.seeds import read_rows
from llm_distill.trainers.calibration_evidence import PARTY

#: Who has seen rows: the student in training; the few-shot base and the teacher in the worked examples of their prompts; what
#: mends the teacher's probabilities before the student learns them (`calibrate_on`); and students of other runs, each by the
#: name of its arm, in their own training.
PARTIES = ("training", "few_shot", "teacher", PARTY)
#: Overlaps of a party that are looked for at most: with so many nobody reads on, and a crowd of near rows costs its square.
MOST = 1000
#: Rows that a message names.
_NAMED = 10


@dataclass(frozen=True)
class Leak:
    """A held-out row and what it overlaps: who has seen it, the words seen, whether they are the very same."""

    row_id: str
    party: str
    text: str
    exact: bool


def leaks(held_out: Sequence[Prompt], seen: Mapping[str, Sequence[Prompt]], near: float | None) -> Iterator[Leak]:
    """Each held-out row that equals a row seen (case and blank space aside), or is near it by so much; `near` None: equals."""
    look = _finder(held_out, near)
    for party, rows in seen.items():
        yield from look(party, rows)


def _finder(held_out: Sequence[Prompt], near: float | None) -> Callable[[str, Sequence[Prompt]], Iterator[Leak]]:
    """What finds the leaks of one party: the held-out rows are read once for all."""
    same: dict[str, list[int]] = {}
    for place, row in enumerate(held_out):
        same.setdefault(row.gist, []).append(place)
    index = None if near is None else near_index([row.text for row in held_out], near)

    def look(party: str, rows: Sequence[Prompt]) -> Iterator[Leak]:
        texts = [row.text for row in rows]
        for some in portions(texts):
            if index is not None:
                index.expect(texts[some.start : some.stop])
            for i in some:
                equal = same.get(rows[i].gist, [])
                close = [] if index is None else index.near(texts[i])
                for place in dict.fromkeys([*equal, *close]):
                    yield Leak(held_out[place].row_id, party, texts[i], place in equal)

    return look


def check_leaks(plan: Plan, held_out: Sequence[Prompt], kept: Path) -> list[dict[str, Any]]:
    """What overlaps and is allowed to: its party and how many held-out rows, `more` where it was not counted to the end; None
    rows where nobody knows what the party has seen.
    UserError for what is not.

    kept: the table of the rows learnt from, read where a student is trained.
    """
    assert plan.evaluate is not None
    allowed = plan.evaluate.allow_overlap
    ids = {row.row_id for row in held_out}
    parties = [*PARTIES, *(rival.arm for rival in (plan.rivals.all if plan.rivals else ()))]
    for name in allowed:
        if name not in parties and name not in ids:
            raise UserError(
                f"evaluate.allow_overlap: no held-out row has the row_id {name!r}.{did_you_mean(name, parties)}"
            )
    rivals = plan.rivals.all if plan.rivals else ()
    for rival in rivals:
        if rival.kept is None and rival.arm not in allowed:
            raise UserError(
                f"evaluate: what {rival.arm} ({rival.named}) learnt from is not known here, so nobody can say whether it has "
                "seen held-out rows. Name its run, or an export whose run is in the workspace; or allow it, "
                f"`allow_overlap: [{rival.arm}]`: the report will say so."
            )
    permitted: dict[str, set[str]] = {}
    found: dict[str, Leak] = {}
    uncounted: set[str] = set()
    look = _finder(held_out, plan.held_out.near if plan.held_out else None)
    for party, rows in _seen(plan, kept).items():
        for n, leak in enumerate(look(party, rows), 1):
            if party in allowed or leak.row_id in allowed:
                permitted.setdefault(party, set()).add(leak.row_id)
            else:
                found.setdefault(leak.row_id, leak)
            if n >= MOST and (party in allowed or found):  # what is allowed hides nothing that is not
                uncounted.add(party)
                break
    if found:
        raise UserError(_refusal(list(found.values()), len(held_out), parties))
    unknown = [{"with": rival.arm, "rows": None} for rival in rivals if rival.kept is None]
    return [
        {"with": party, "rows": len(ids)} | ({"more": True} if party in uncounted else {})
        for party, ids in permitted.items()
    ] + unknown


def _seen(plan: Plan, kept: Path) -> dict[str, list[Prompt]]:
    """The rows that each party has seen, as far as they are known."""
    shown = {"few_shot": plan.task.few_shot, "teacher": plan.task.teacher_view}
    seen = {party: [row for file in view.examples for row in read_rows(file)] for party, view in shown.items() if view}
    if plan.trainer:
        seen = {"training": store.read_prompts(kept), **seen}
    if (how := plan.calibrating) and how.calibrate_on:
        seen[PARTY] = list(read_rows(how.calibrate_on))
    rivals = plan.rivals.all if plan.rivals else ()
    return seen | {rival.arm: store.read_prompts(rival.kept) for rival in rivals if rival.kept is not None}


def _refusal(found: Sequence[Leak], held_out: int, parties: Sequence[str]) -> str:
    said = {
        "training": "a row learnt from",
        "few_shot": "a worked example of few_shot",
        "teacher": "one of the teacher's",
        PARTY: "a row that the teacher's probabilities are calibrated on",
    }

    def seen(leak: Leak) -> str:
        return said.get(leak.party) or f"a row that {leak.party} learnt from"

    named = [
        f"{leak.row_id} {'is' if leak.exact else 'nearly equals'} {seen(leak)}, {leak.text[:60]!r}"
        for leak in found[:_NAMED]
    ]
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    involved = ", ".join(sorted({leak.party for leak in found}))
    return (
        f"evaluate: {len(found)} of {held_out:,} held-out rows overlap what was seen before ({involved}): "
        f"{'; '.join(named)}{more}. Take them out of one side; or allow them by name, `evaluate: {{allow_overlap: [...]}}`, with "
        "their row_ids or one of "
        f"{', '.join(parties)}: the report will say so."
    )
