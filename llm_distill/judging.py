"""Asking a judge about the held-out answers, for the evaluate stage.

The questions are those of the filter `judge`, word for word, so one ruler measures what is learnt from and what is learnt. A
judge that cannot be reached, or for whom a budget has no room, takes nothing from the rest of the evaluation: its part is
owed, and the next run asks for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_distill import store
from llm_distill.errand import Errand
from llm_distill.errors import FellShort, UserError
from llm_distill.evals.judge_numbers import judge_numbers
from llm_distill.evals.judged import Judged
from llm_distill.evals.people import matched
from llm_distill.kinship import kin
from llm_distill.records import Answer, Entry, Prompt, Request
from llm_distill.scorers.verdicts import Case, Item, Verdict, verdict, votes

if TYPE_CHECKING:
    from llm_distill.stages import Run


def judged(run: Run, prompts: Sequence[Prompt], answered: Mapping[str, Sequence[Answer]], ask: Errand) -> Judged | None:
    """Ask the judge for all that the recipe wants of it; None where it wants nothing. Leaves eval/judge.jsonl."""
    plan = run.plan
    how = plan.evaluate.judge if plan.evaluate else None
    if how is None:
        return None
    answers = {arm: {a.prompt.row_id: a for a in rows} for arm, rows in answered.items()}
    base = "base_few_shot" if "base_few_shot" in answers else "base_zero_shot"
    rivals: dict[str, str] = {rival: base if rival == "base" else rival for rival in how.pairwise}
    opinions = matched(how.opinions(how.human), prompts) if how.human else []
    patient = _Patient(run, how.model, ask)
    found = Judged(how, answers, rivals, opinions, {}, {})
    texts, pairs = list(found.to_score()) if how.scores else [], list(found.to_compare())
    scores = {
        (item.prompt.row_id, item.text): of for item, of in zip(texts, patient.about(texts, how.scoring), strict=True)
    }
    compared = {
        (item.prompt.row_id, item.text, item.other or ""): of
        for item, of in zip(pairs, patient.about(pairs, how.comparing), strict=True)
    }
    found = replace(found, scores=scores, pairs=compared, stopped=patient.stopped, passes=patient.passes)
    with store.replacing(run.folder.file("eval/judge.jsonl")) as temporary:
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in found.rows())
        temporary.write_text("".join(lines), encoding="utf-8")
    return found


def numbers(run: Run, prompts: Sequence[Prompt], said: Judged) -> dict[str, Any]:
    """The part `judge` of report.json."""
    plan = run.plan
    assert plan.evaluate is not None
    found = judge_numbers(said, prompts, plan.evaluate.slices, plan.seed, plan.evaluate.resamples)
    related = [str(one) for one in kin(plan) if one.judge == said.how.model]
    return {"role": said.how.model, "model": plan.models[said.how.model].knobs.get("model"), "kin": related, **found}


class _Patient:
    """Asks as far as it goes: once asking ends early, what is known already is all there is. stopped: why."""

    def __init__(self, run: Run, judge: str, errand: Errand) -> None:
        self.run, self.judge, self.errand = run, judge, errand
        self.stopped: str | None = None
        self.passes: str | None = None

    def about(self, items: Sequence[Item], case: Case) -> list[Verdict]:
        """The verdict on each item; none where the reference is missing that it is to be shown with."""
        places = [p for p, item in enumerate(items) if item.other is not None or not case.reference]
        found = [Verdict(None, "", "no reference")] * len(items)
        for place, of in zip(places, votes([items[p] for p in places], self, self.judge, case), strict=True):
            found[place] = verdict(of, pair=case.pair)
        return found

    def __call__(self, role: str, requests: Sequence[Request]) -> list[Entry]:
        errand = self.errand
        if self.stopped is None:
            try:
                return errand(role, requests)
            except (FellShort, UserError) as stop:
                self.stopped = str(stop)
                self.passes = (
                    stop.passes if isinstance(stop, FellShort) else "trouble"
                )  # nobody is there, or lets us in
                self.run.watch.say(f"evaluate: the judge's part is owed: {stop}")
        known = Errand(replace(self.run, may_ask=False), errand.what)
        entries = known(role, requests)
        errand.owed += known.owed
        errand.entries |= known.entries
        return entries
