"""The probe: the same frozen rows, asked of the teachers anew each time, so that a model that has moved behind its name is seen.

    <run>/probe/<time>-<chance>.parquet  the answers of one look     <run>/probe/<time>-<chance>.json  what they say

A look's questions have its name in their keys: no earlier answer in the ledger can stand for one of them, and what a killed look
has paid for is found again when it goes on. They are asked greedily, once each, within the run's budgets. A look is compared,
row by row, with the one before it and with the first; rows pair where the very same question went to the very same model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from llm_distill import store
from llm_distill.collect import Panel, collect, teachers
from llm_distill.growing import workspace_of
from llm_distill.probe_rows import frozen, greedy
from llm_distill.recipe import Plan
from llm_distill.records import Answer, content_id
from llm_distill.sets.shelf import forgotten

if TYPE_CHECKING:
    from llm_distill.stages import Run

#: A test of a look warns under this, adjusted for being several: of a hundred quiet looks about one does.
ALARM = 0.01
#: The least share of labels that a teacher repeats, where the recipe names none.
REPEATED = 0.9


@dataclass(frozen=True)
class Look:
    """A finished one: its name (which sorts by time), the run that it is part of, what it says, and where its answers are."""

    name: str
    run: str
    about: Mapping[str, Any]
    table: Path

    @property
    def answers(self) -> list[Answer]:
        """One for each frozen row."""
        return store.read_answers(self.table)


def take(run: Run) -> dict[str, Any]:
    """Ask the frozen rows: go on with the look that was begun, or begin one. What it says, as its file has it; `owed` counts
    rows without an answer, for which a later call asks again, as part of this look.
    """
    plan, folder = greedy(run.plan), run.folder.file("probe")
    assert plan.probe is not None
    held_out = store.read_prompts(run.folder.file("held_out.parquet"))
    prompts = frozen(plan, held_out, forgotten(workspace_of(run.folder)))
    about = _begun(folder) or _begin(folder)
    asking = replace(run, plan=plan)  # shares its models and its tally
    panel = replace(teachers(asking, prompts, plan.answers.sampling), fresh=f"probe {about['name']}")
    table = folder / f"{about['name']}.parquet"
    collect(asking, prompts, panel, str(table.relative_to(run.folder.path)))
    run.tally = asking.tally
    answers = store.read_answers(table)
    owed = len(prompts) - sum(not answer.owed for answer in answers)
    about |= {
        "owed": owed,
        "rows": len(answers),
        "questions": _questions(plan, panel, answers),
        **_served(run, answers),
    }
    about |= {"spent": _spent(answers), "compared": [], "said": []}
    if not owed:
        about |= {"done": True, "compared": _compared(run, about, answers)}
        about["said"] = [line for one in about["compared"] for line in one["said"]]
    store.write_json(folder / f"{about['name']}.json", about)
    for line in about["said"]:
        run.watch.say(f"probe: {line}")
    return about


def looks(folder: store.RunFolder) -> list[Look]:
    """The finished looks of a recipe's runs, the earliest first; arms of an ablation have none."""
    found = []
    for file in folder.path.parent.glob("*/probe/*.json"):
        with suppress(OSError, ValueError):
            about = json.loads(file.read_text(encoding="utf-8"))
            if about.get("done") and file.with_suffix(".parquet").exists():
                found.append(Look(file.stem, file.parent.parent.name, about, file.with_suffix(".parquet")))
    return sorted(found, key=lambda look: look.name)


def latest(folder: store.RunFolder) -> Look | None:
    """The last finished look of one run."""
    own = [look for look in looks(folder) if look.run == folder.path.name]
    return own[-1] if own else None


def compare(
    before: Look, questions: Mapping[str, str], answers: Sequence[Answer], of: Mapping[str, Any], plan: Plan
) -> dict[str, Any] | None:
    """A look's answers held against an earlier one's, on rows whose question is the same; None where there is none of them."""
    from llm_distill.evals.drift import drift, served

    known: dict[str, Answer] = {before.about["questions"].get(a.prompt.row_id, ""): a for a in before.answers}
    both = [(known[key], a) for a in answers if (key := questions[a.prompt.row_id]) in known]
    if not both:
        return None
    found = drift([a for a, _ in both], [b for _, b in both], plan.task.kind, plan.seed)
    found |= {"with": before.name, "run": before.run, "moved": served(before.about["served"], of["served"])}
    return {**found, "said": list(_said(found, before.about["served"], of["served"], plan))}


def _compared(run: Run, about: Mapping[str, Any], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """With the look before it, and with the first of those that asked the same, where that is another."""
    earlier = [look for look in looks(run.folder) if look.name < about["name"]]
    questions = about["questions"]
    alike = [look for look in earlier if set(questions.values()) & set(look.about["questions"].values())]
    chosen = {"previous": alike[-1], "first": alike[0]} if alike else {}
    if len(alike) == 1:
        del chosen["first"]
    if earlier and not alike:
        run.watch.say("probe: nothing earlier to compare with: the teacher, or how it is asked, is another now")
    found = ((kind, compare(look, questions, answers, about, run.plan)) for kind, look in chosen.items())
    return [{"kind": kind, **one} for kind, one in found if one]


def _said(found: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], plan: Plan) -> Any:
    """A sentence for each reason to look."""
    since = f"since {found['with'][:10]}"
    for role in found["moved"]:
        names = " and ".join(new[role]), " and ".join(old[role])
        yield f"models.{role} is served by {names[0]}, and was by {names[1]} {since}"
    assert plan.probe is not None
    least = plan.probe.min_agreement
    least = REPEATED if least is None and plan.task.kind == "classify" else least
    agreement = found["agreement"]
    if least is not None and agreement["high"] is not None and agreement["high"] < least:
        low, high = 100 * agreement["low"], 100 * agreement["high"]
        yield (
            f"the teacher's answers agree to {100 * agreement['value']:.1f} % ({low:.1f} to {high:.1f}) with its own {since}, on "
            f"{found['rows']} rows; at least {100 * least:g} % is expected"
        )
    for test in found["tests"]:
        if test["p_holm"] < ALARM:
            what = {"labels": "how often it gives each label", "words": "how long its answers are"}.get(
                test["name"], f"its {test['name'].replace('_', ' ')}"
            )
            yield f"the teacher has changed {since}: {what} (p = {test['p_holm']:.2g}, {found['rows']} rows)"


def _questions(plan: Plan, panel: Panel, answers: Sequence[Answer]) -> dict[str, str]:
    """Per row an id of what is asked and of whom, in which the look has no part."""
    found = {}
    for a in answers:
        asked = [panel.view.questions(a.prompt, plan.task.labels), panel.sampling]
        found[a.prompt.row_id] = content_id(
            [a.prompt.row_id, asked, [panel.models[role].identity for role in panel.who(a.prompt)]]
        )
    return found


def _served(run: Run, answers: Sequence[Answer]) -> dict[str, Any]:
    """Which models answered each role, by the names and fingerprints that their servers gave."""
    names: dict[str, set[str]] = {}
    prints: dict[str, set[str]] = {}
    for a in answers:
        for entry in run.ledger.read(a.requests, logprobs=False):
            if entry is not None and entry.status != "failed":
                names.setdefault(a.role, set()).add(entry.served_model)
                prints.setdefault(a.role, set()).update([entry.fingerprint] if entry.fingerprint else [])
    return {
        "served": {role: sorted(of) for role, of in sorted(names.items())},
        "fingerprints": {role: sorted(of) for role, of in sorted(prints.items())},
    }


def _spent(answers: Sequence[Answer]) -> dict[str, Any]:
    costs = [a.cost_usd for a in answers if not a.owed]
    tokens = {name: sum(getattr(a, name) or 0 for a in answers) for name in ("prompt_tokens", "completion_tokens")}
    return {
        "answered": len(costs),
        **tokens,
        "cost_usd": None if None in costs else sum(c for c in costs if c is not None),
    }


def _begun(folder: Path) -> dict[str, Any] | None:
    """The look that was begun and not finished."""
    for file in sorted(folder.glob("*.json"), reverse=True):
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not about.get("done"):
            return about
    return None


def _begin(folder: Path) -> dict[str, Any]:
    now = datetime.now(UTC)
    name = f"{now:%Y-%m-%dT%H%M%S.%f}Z-{uuid4().hex[:8]}"
    about = {"name": name, "done": False}
    store.write_json(folder / f"{name}.json", about)
    return about
