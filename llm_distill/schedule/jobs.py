"""Which jobs there are: the recipes of a folder that have a schedule; and how each stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_distill.errors import UserError, did_you_mean
from llm_distill.limits import accounts
from llm_distill.recipe import Plan, load
from llm_distill.recipe_file import read_recipe
from llm_distill.recipe_schedule import iso
from llm_distill.schedule.book import Row, TickBook
from llm_distill.schedule.night import due, schedule_of
from llm_distill.schedule.ticks import following


@dataclass(frozen=True)
class Found:
    """A recipe of a folder: its plan, or why it has none."""

    path: Path
    plan: Plan | None
    error: str | None = None


def recipes(folder: Path) -> list[Found]:
    """Every recipe of a folder, in the order of their files."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; name the one that holds your recipes with --jobs.")
    return list(_recipes(sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])))


def _recipes(paths: Sequence[Path]) -> Iterator[Found]:
    by_name = dict[str, Path]()
    for path in paths:
        try:
            plan = load(path)
        except UserError as error:
            yield Found(path, None, str(error))
            continue
        first = by_name.setdefault(plan.name, path)
        if first is not path and plan.schedule:
            error_ = f"{path}: {first} is named {plan.name!r} too, and a job is known by its name; rename one of them."
            yield Found(path, None, error_)
        else:
            yield Found(path, plan)


def named(name: str, folder: Path) -> Plan:
    """A job by its recipe's file or name; UserError where there is none, or it has no schedule."""
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        plan = load(Path(name))
        schedule_of(plan)
        return plan
    found = recipes(folder)
    for one in found:
        if one.plan and one.plan.name == name:
            schedule_of(one.plan)
            return one.plan
    for one in found:  # whose name can be read although all of it cannot
        if one.error and _name(one.path) == name:
            raise UserError(one.error)
    names = [one.plan.name for one in found if one.plan and one.plan.schedule]
    raise UserError(f"no job {name!r} in {folder}.{did_you_mean(name, names)}")


def _name(path: Path) -> Any:
    try:
        return read_recipe(path).get("name")
    except UserError:
        return None


def standing(plan: Plan, book: TickBook, now: float) -> dict[str, Any]:
    """How a job stands: its last tick and its next, what is due, what was spent in each period."""
    schedule, found = schedule_of(plan), due(plan, book, now, record=False)
    ticks = book.ticks(plan.name)
    begun = [tick for tick in ticks if tick.state not in ("skipped", "missed")]
    unfinished = [tick for tick in ticks if tick.state in ("running", "postponed")]
    names = {per: name for per, name in accounts(f"{plan.name}/").items() if per != "run"}
    spent = book.spent([*names.values()])
    return {
        "job": plan.name,
        "file": str(plan.path),
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "next": iso(following(schedule, now)),
        "due": [iso(tick) for tick in found.do],
        "last": _told(begun[-1]) if begun else None,
        "unfinished": [_told(tick) for tick in unfinished],
        "ticks": {state: sum(tick.state == state for tick in ticks) for state in sorted({t.state for t in ticks})},
        "spent_usd": {per: spent.get(name, 0.0) for per, name in names.items()},
        "budget_usd": {b.per: b.usd for b in plan.answers.budgets if b.usd is not None},
    }


def _told(row: Row) -> dict[str, Any]:
    """A tick as it is listed."""
    state = "stopped" if row.state == "running" and not row.alive else row.state
    later = None if row.not_before is None else iso(row.not_before)
    return {
        "tick": iso(row.due),
        "state": state,
        "attempts": row.attempts,
        "not_before": later,
        "run": row.run,
        **row.notes,
    }
