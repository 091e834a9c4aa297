"""The evaluate stage: base, few-shot base, student, students of other runs and teacher answer the same held-out rows, and are
compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill import attempts, bias_after, speed, store
from llm_distill.collect import Panel, alone, collect, teachers
from llm_distill.errand import Errand
from llm_distill.errors import FellShort, Unreachable, UserError
from llm_distill.general import general
from llm_distill.leaks import check_leaks
from llm_distill.perturbing import robustness
from llm_distill.records import Answer, Prompt
from llm_distill.report.words import PARTS
from llm_distill.stages import Outcome, Run, trained

if TYPE_CHECKING:
    from llm_distill.evals.judged import Judged
    from llm_distill.recipe_evaluation import Speed


#: Of a part that was not begun when the evaluation ended.
_NOT_BEGUN = "the evaluation was stopped before it was asked for"


@dataclass(frozen=True)
class Evaluation:
    """What is measured beyond the comparison may look at: the held-out rows, who answers them and how, and what they
    answered, by arm. ask: questions of its own. numbers: what the comparison says. judged: what the judge said, if there is one.
    """

    run: Run
    prompts: Sequence[Prompt]
    panels: Mapping[str, Panel]
    answers: Mapping[str, Sequence[Answer]]
    ask: Errand
    numbers: Mapping[str, Any]
    judged: Judged | None = None


def evaluate(run: Run) -> Outcome:
    """eval/<arm>.parquet and eval/comparison.json. The stamp notes which student that was."""
    from llm_distill.evals.compare import compare
    from llm_distill.evals.measures import measures
    from llm_distill.judging import judged

    plan = run.plan
    assert plan.evaluate is not None
    prompts = store.read_prompts(run.folder.file("held_out.parquet"))
    if not prompts:
        raise UserError("evaluate: the held-out set is empty; raise held_out.share or name a file.")
    overlap = check_leaks(plan, prompts, run.folder.lessons)
    panels, rivals = arms(run, prompts), plan.rivals.all if plan.rivals else ()
    for table in run.folder.path.glob("eval/*.parquet"):  # of an arm that is none any more
        if table.stem not in panels:
            table.unlink()
            shutil.rmtree(table.with_suffix(""), ignore_errors=True)  # its logprobs
    answers: dict[str, list[Answer]] = {}
    for arm, panel in panels.items():
        run.watch.say(f"evaluate: {arm.replace('_', ' ')}")
        collect(run, prompts, panel, f"eval/{arm}.parquet")
        answers[arm] = store.read_answers(run.folder.file(f"eval/{arm}.parquet"))
    ask = Errand(run, "evaluate")
    opinion = judged(run, prompts, answers, ask)
    numbers = compare(
        answers, plan.task.kind, plan.task.labels, seed=plan.seed, slices=plan.evaluate.slices,
        resamples=plan.evaluate.resamples, teachers=len(plan.teachers.roles), metric=plan.evaluate.metric,
        measures={**measures(plan.metrics, plan.answers.json_schema), **(opinion.measures if opinion else {})},
        rivals=[one.arm for one in rivals],
    )  # fmt: skip
    seen = Evaluation(run, prompts, panels, answers, ask, numbers, opinion)
    others = plan.rivals.described if plan.rivals else {}
    stops = _measure(seen, numbers | others | unasked(seen))
    notes = {"student": store.digest(run.folder.file("student")), "overlap": overlap, **ask.spent}
    owed = ask.owed + sum(a.owed for rows in answers.values() for a in rows)
    owed += len(stops)  # a question of each, at the least
    if opinion and opinion.stopped:
        stops = {"judge": FellShort(opinion.stopped, passes=opinion.passes)} | stops
    if stops:
        notes["short"] = _said(stops)
    return Outcome(len(prompts), len(prompts), owed, notes)


def _measure(seen: Evaluation, known: Mapping[str, Any]) -> dict[str, FellShort]:
    """eval/comparison.json: what is known, and then each part that asks as soon as it is measured, so that whatever ends the
    evaluation takes nothing from the rest. Gives the parts that a budget or somebody's trouble stopped, which are `owed` there.
    """
    run, table, asking = seen.run, seen.run.folder.file("eval/comparison.json"), parts(seen)
    found, stops, owed = dict(known), dict[str, FellShort](), dict.fromkeys(asking, _NOT_BEGUN)
    store.write_json(table, found | ({"owed": owed} if owed else {}))
    for name, measured in asking.items():
        try:
            found[name] = measured(seen)
            del owed[name]
        except (FellShort, Unreachable) as stop:
            run.watch.say(f"evaluate: {PARTS[name]}: owed: {stop}")
            stops[name] = stop if isinstance(stop, FellShort) else FellShort(str(stop), passes="trouble")
            owed[name] = str(stop)
            if name == "speed":  # an arm that was measured whole stands by itself
                found[name] = measured(replace(seen, run=replace(run, may_ask=False)))
        store.write_json(table, found | ({"owed": owed} if owed else {}))
    return stops


def _said(stops: Mapping[str, FellShort]) -> dict[str, str | None]:
    """What the run says of the parts that are owed, and what may have changed when it is run again: for any of them."""
    *most, last = [PARTS[name] for name in stops]
    named = f"{', '.join(most)} and {last} are owed; run again to ask for them" if most else None
    reasons = " ".join(dict.fromkeys(map(str, stops.values())))
    passes = next((stop.passes for stop in stops.values() if stop.passes), None)
    return {"why": f"evaluate: {named or f'{last} is owed; run again to ask for it'}. {reasons}", "passes": passes}


def arms(run: Run, prompts: Sequence[Prompt]) -> dict[str, Panel]:
    """Who answers the held-out rows, and how they are asked, by arm."""
    plan = run.plan
    assert plan.evaluate is not None
    task, taught, drawn = plan.task, plan.answers.sampling, plan.drawn
    found: dict[str, Panel] = {}
    if "student" in plan.models:
        found["base_zero_shot"] = alone("student", run.model("student"), task.student_view, drawn)
        if task.few_shot:
            found["base_few_shot"] = alone("student", run.model("student"), task.few_shot, drawn)
    if plan.trainer:
        student = run.model("student", **trained(run.folder.file("student")))
        found["student"] = alone("student", student, task.student_view, drawn)
    for rival in plan.rivals.all if plan.rivals else ():  # served like the student, whatever it is
        found[rival.arm] = alone("student", run.model("student", **rival.knobs), rival.view, drawn)
    if plan.answers.samples > 1:  # without chance they would all be the same
        chance = plan.evaluate.temperature or taught.temperature
        drawn = msgspec.structs.replace(drawn, temperature=chance, top_p=taught.top_p)
    found["teacher"] = teachers(run, prompts, msgspec.structs.replace(drawn, schema=taught.schema))
    return found


def unasked(seen: Evaluation) -> dict[str, object]:
    """What is measured beyond the comparison without asking anybody more, by its key in report.json."""
    found: dict[str, object] = {}
    if any(plug.spec.name == "instructions" for plug in seen.run.plan.metrics):
        from llm_distill.evals.following import following

        assert seen.run.plan.evaluate is not None
        found["instructions"] = following(seen.answers, seen.run.plan.seed, seen.run.plan.evaluate.resamples)
    if bias_after.wanted(seen):
        found["bias"] = bias_after.bias_after(seen)
    if seen.judged:
        from llm_distill.judging import numbers

        found["judge"] = numbers(seen.run, seen.prompts, seen.judged)
    return found


def parts(seen: Evaluation) -> dict[str, Callable[[Evaluation], object]]:
    """What asks further questions, by its key in report.json; each only where the recipe asks for it."""
    asked = seen.run.plan.evaluate
    assert asked is not None
    found: dict[str, Callable[[Evaluation], object]] = {}
    if asked.robustness:
        found["robustness"] = robustness
    if several := asked.pass_at:
        found["pass_at"] = lambda seen: attempts.pass_at(seen, several)
    if how := asked.general:
        found["general"] = lambda seen: general(seen, how)
    if clocks := asked.speed:
        found["speed"] = lambda seen: _clocked(seen, clocks)
    return found


def _clocked(seen: Evaluation, how: Speed) -> dict[str, Any]:
    found = speed.measure(seen.run, seen.prompts, seen.panels, how, seen.run.folder.file("eval/speed.json"))
    seen.ask.owed += sum(not of["n"] for of in found["arms"].values())  # who answered nothing is asked again
    return found
