"""What is asked and what is held out: rows are made, put on their side at once, and only then shown to other generators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from llm_distill.coverage import coverage
from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels, check_slices
from llm_distill.generators import AT_MOST, AtMost, Context
from llm_distill.mixing import balanced, mixed
from llm_distill.models import Model
from llm_distill.plugs import Plug, find
from llm_distill.recipe import Plan
from llm_distill.recipe_schedule import drawn
from llm_distill.records import Ask, Prompt
from llm_distill.scorers import instructions
from llm_distill.seeds import read_rows
from llm_distill.sets.novelty import fingerprint
from llm_distill.sides import Earlier, Sides
from llm_distill.trainers import calibration_evidence, logit_kd_checks, sft_checks

#: Generators that work on held-out rows too, each new row on its parent's side: groups are compared in evaluation as well.
_BOTH_SIDES = {"counterfactual"}


@dataclass
class Rows:
    """What a recipe's generators made.

    at_most: of the generators that would ask a model (none was asked), what they may come to, None where they do not say.
    aside: rows that are near held-out ones; forgotten: how many came again.
    made: for each entry of `prompts`, its name and coverage; empty in an estimate.
    """

    asked: list[Prompt] = field(default_factory=list)
    held_out: list[Prompt] = field(default_factory=list)
    aside: int = 0
    forgotten: int = 0
    at_most: list[tuple[Plug, AtMost | None]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)


def gather(
    plan: Plan,
    ask: Ask | None = None,
    say: Callable[[str], None] = lambda _line: None,
    embed: Callable[[Sequence[str]], Any] | None = None,
    model: Callable[[str], Model] | None = None,
    earlier: Earlier | None = None,
    forgotten: Collection[str] = (),
) -> Rows:
    """Every row of a recipe, on its side and mixed. Without `ask` the generators that ask are left out and estimated.

    forgotten: the fingerprints of rows that stay out, wherever they come from.
    """
    found = Rows()

    def lasting(rows: Sequence[Prompt]) -> list[Prompt]:
        stay = [row for row in rows if not forgotten or fingerprint(row) not in forgotten]
        found.forgotten += len(rows) - len(stay)
        return stay

    sides = Sides(plan.held_out, earlier, lasting)
    entries: list[list[Prompt]] = []

    def made_by(generator: Plug, before: Sequence[Prompt]) -> list[Prompt]:
        """A generator's new rows, numbered and tagged."""
        if generator.roles and ask is None:
            most = _at_most(generator, len(before))
            if most is None or most.questions:
                found.at_most.append((generator, most))
                return []
        name = generator.spec.name
        context = Context(
            before, plan.task, ask or _nobody, model or _nobody, say, drawn(plan.seed, plan.tick), plan.seed
        )
        new = iter(generator(context))
        return lasting([row if name == "seeds" else _tagged(row, name) for row in new])

    for generator in plan.generators:
        before = [row for entry in entries for row in entry]
        if generator.spec.name in _BOTH_SIDES:
            before = [*before, *found.held_out]
        new = made_by(generator, before)
        if generator.spec.name != "seeds":
            new = _retagged(new, [*entries, found.held_out])
            found.aside += sides.reunite(entries, found.held_out)
        mine: list[Prompt] = []
        for row in sides.numbered(new):
            side = sides.of(row)
            found.aside += side == "aside"
            if side != "aside":
                (mine if side == "asked" else found.held_out).append(row)
        entries.append(mine)
        if ask is not None:  # an estimate has no use for it
            found.made.append({"generator": generator.spec.name, **coverage(new, embed)})
    if plan.held_out and plan.held_out.file:
        found.held_out = sides.given
    if earlier is not None:  # held-out rows first: where two would be alike, it is the one to be kept
        found.held_out = _held_out(plan, earlier, found.held_out)
        entries = [earlier.new(rows) for rows in entries]
    found.asked = _mix(plan, entries, made_by, sides, say, earlier, mixes=ask is not None or not found.at_most)
    if found.aside:
        say(f"prompts: {found.aside:,} rows nearly equal held-out ones and are set aside, before anybody is asked")
    if found.forgotten:
        say(
            f"prompts: {found.forgotten:,} rows were forgotten (`llm-distill forget`) and stay out; remove them from your files"
        )
    return found


def _held_out(plan: Plan, earlier: Earlier, rows: Sequence[Prompt]) -> list[Prompt]:
    """The rows held out before, and those that are new; of a file all."""
    assert plan.held_out or not rows
    if plan.held_out is None or plan.held_out.file is None:
        return [*earlier.held_out, *earlier.new(rows)]
    _disjoint(
        f"taught already by the data set {plan.data_set and plan.data_set.name}", rows, {r.gist for r in earlier.taught}
    )
    earlier.new(rows)  # nothing like them is asked
    before = {row.gist for row in earlier.held_out}
    return [*earlier.held_out, *(row for row in rows if row.gist not in before)]


def _mix(
    plan: Plan,
    entries: Sequence[Sequence[Prompt]],
    made_by: Callable[[Plug, Sequence[Prompt]], list[Prompt]],
    sides: Sides,
    say: Callable[[str], None],
    earlier: Earlier | None,
    *,
    mixes: bool,
) -> list[Prompt]:
    if not mixes:  # an estimate, in which some entries have no rows yet
        return [row for entry in entries for row in entry]
    balance = plan.mix.balance
    shares = plan.mix.of([generator.spec.name for generator in plan.generators])
    rows = mixed(entries, shares, None if balance else plan.mix.rows)
    if balance is None:
        return rows
    filler = plan.fill

    def fill(of: Sequence[Prompt], count: int) -> Iterator[Prompt]:
        assert filler is not None
        knobs = filler.knobs | ({"rows": count} if "rows" in filler.knobs else {})
        new = made_by(replace(filler, knobs=knobs), of)
        # What is made from rows of one value is of that value, whatever the generator knows of tags.
        value = {balance.tag: of[0].tags[balance.tag]}
        for row in sides.numbered([msgspec.structs.replace(row, tags={**row.tags, **value}) for row in new]):
            if sides.of(row, chance=False) == "asked" and (earlier is None or earlier.new([row])):
                yield row

    return balanced(rows, balance, plan.mix.rows, fill if filler else None, say)


def _nobody(role: str, *_questions: Any) -> Any:
    raise UserError(f"this generator asks models.{role} although it names no role; give it a knob `model: Role`.")


def _at_most(generator: Plug, before: int) -> AtMost | None:
    """What a generator may come to. One of somebody's own says nothing of it."""
    name = generator.spec.name
    if name not in AT_MOST:
        return None
    found: AtMost = find("generator", name, AT_MOST, generator.spec.where)(before, **generator.knobs)
    return found


def _tagged(row: Prompt, generator: str) -> Prompt:
    return msgspec.structs.replace(row, tags={"generator": generator, **row.tags})


def _retagged(new: Sequence[Prompt], known: Sequence[list[Prompt]]) -> list[Prompt]:
    """The rows that are new; one that stands already is given the new tags (a counterfactual group takes it in)."""
    places = {row.prompt_id: (rows, i) for rows in known for i, row in enumerate(rows)}
    fresh = []
    for row in new:
        if row.prompt_id not in places:
            fresh.append(row)
            continue
        rows, i = places[row.prompt_id]
        tags = {tag: value for tag, value in row.tags.items() if tag not in ("generator", "parent")}
        rows[i] = msgspec.structs.replace(rows[i], tags={**rows[i].tags, **tags})
    return fresh


def _check_instructions(plan: Plan, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    for plugs, rows in ((plan.metrics, held_out), ([f.plug for f in plan.filters], prompts)):
        if rows and any(plug.spec.name == "instructions" for plug in plugs):
            instructions.check_rows(rows)


def check_rows(plan: Plan, prompts: Sequence[Prompt], held_out: Sequence[Prompt], *, more: bool = False) -> None:
    """UserError for rows that nothing can be asked for, that their templates cannot show, or that spoil the evaluation.

    `more`: others will be made by asking, so that none may be there yet.
    """
    if not prompts and not more:
        raise UserError("prompts: no rows are left to ask; raise a `limit`, or lower the held-out share.")
    if plan.held_out and plan.held_out.share and not held_out and not more and plan.evaluate:
        raise UserError(
            f"held_out: a share of {plan.held_out.share:g} of {len(prompts):,} rows held none out; rows that nearly equal each "
            f"other (near: {plan.held_out.near}) stay together. Raise the share, set `near: null`, or name a file."
        )
    plan.teachers.check_rows([*prompts, *(held_out if plan.evaluate else ())])
    calibration_evidence.check_taught(plan, held_out)
    _check_instructions(plan, prompts, held_out)
    if not more:
        sft_checks.check_taught(plan, prompts)
        logit_kd_checks.check_taught(plan, prompts)
    allowed = plan.evaluate.allow_overlap if plan.evaluate else ()
    apart = [p for p in held_out if p.row_id not in allowed]
    if "training" not in allowed:
        _disjoint("prompts", apart, {p.gist for p in prompts})
    if plan.task.kind == "classify":
        check_labels(held_out, plan.task.labels)
    if plan.evaluate and held_out and not more:
        check_slices(held_out, plan.evaluate.slices)
        check_slices(held_out, plan.evaluate.bias.by if plan.evaluate.bias else (), "evaluate.bias.by")
    for party, view in (
        ("teacher", plan.task.teacher_view),
        ("few_shot", plan.task.few_shot),
        ("", plan.task.student_view),
    ):
        for file in view.examples if view else ():
            examples = list(read_rows(file))
            if party not in allowed:
                _disjoint(f"worked examples in {file}", apart, {e.gist for e in examples})
            if plan.task.kind == "classify":
                check_labels(examples, plan.task.labels)
        if view:
            for prompt in {
                frozenset(p.tags): p for p in (*prompts, *held_out)
            }.values():  # a tag may be missing in some
                view.questions(prompt, plan.task.labels)


def _disjoint(what: str, held_out: Sequence[Prompt], gists: set[str]) -> None:
    both = [p for p in held_out if p.gist in gists]
    if both:
        raise UserError(
            f"held_out: {len(both)} of {len(held_out)} rows are also {what}, the first: {both[0].text[:80]!r}; "
            "remove them from one side."
        )
