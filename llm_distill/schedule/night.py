"""One tick, from its claim to its end; and all that is due of a job.

Whatever happens to it, a tick ends in one of: done; postponed, to go on with the same run; fell short or failed, which is
said; or nothing, where the machine went away, and then whoever looks next goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from llm_distill import pipeline
from llm_distill.errors import NO_ROOM, DistillError, FellShort, Interrupted, Unreachable, UserError
from llm_distill.ledger import Ledger
from llm_distill.recipe import Plan, load
from llm_distill.recipe_schedule import Schedule, iso, moment
from llm_distill.schedule.book import RECENT, Row, TickBook
from llm_distill.schedule.held import Held
from llm_distill.schedule.notify import tell
from llm_distill.schedule.retention import kept_lines, prune
from llm_distill.schedule.ticks import Due, decide, first_look, following
from llm_distill.scrub import scrubbed
from llm_distill.stages import Watch

Each = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
_OVERLAP = "an earlier tick was unfinished when it came due (overlap: skip)"
_MISSED = "nobody was there when it came due (catch_up: {})"
#: No clock that is set says less: this was written later. A machine that has just started may say 1970.
CLOCKS_SINCE = moment("2024-01-01T00:00:00Z")


def schedule_of(plan: Plan) -> Schedule:
    """When a recipe runs; UserError where it says nothing of it."""
    if plan.schedule is None:
        raise UserError(f"{plan.path}: the recipe has no schedule; add one, such as `schedule: '0 3 * * *'`.")
    return plan.schedule


def at(plan: Plan, tick: str) -> Plan:
    """The same recipe for a tick: a run of its own, whose generators draw anew."""
    return load(plan.path, raw=plan.raw | {"tick": tick})


@contextmanager
def opened(workspace: Path, ledger_url: str | None) -> Iterator[TickBook]:
    """The jobs of a workspace's ledger. FellShort where it is locked for a minute, or its server goes away."""
    ledger = Ledger(ledger_url or workspace / "ledger.sqlite")
    try:
        yield TickBook(ledger)
    except OperationalError as error:
        why = " ".join(str(error.orig).split())
        raise FellShort(f"the ledger did not answer: {why}. What was begun goes on with the next call.") from None
    finally:
        ledger.close()


def check_clock(now: float) -> None:
    """FellShort where the clock is not set yet: by it a job would be known since 1970, and have missed decades."""
    if now < CLOCKS_SINCE:
        raise FellShort(
            f"the clock stands at {iso(now)}, so it is not set yet; nothing was done. Call again once it is, or order this after "
            "the clock is set (systemd: After=time-sync.target)."
        )


def due(plan: Plan, book: TickBook, now: float, *, record: bool = True) -> Due:
    """What is to be done of a job now. record: write down what is skipped or missed, and give of these only what nobody had
    written down before. FellShort where the clock is not set.
    """
    check_clock(now)
    schedule = schedule_of(plan)
    known = [row.known for row in book.ticks(plan.name)]
    since = book.since(plan.name, first_look(schedule, now), now, CLOCKS_SINCE)
    read = known[-RECENT].due if len(known) >= RECENT else since  # of what was before, only the unfinished is known
    found = decide(schedule, now, max(since, read), known)
    if not record:
        return found
    skipped = book.pass_over(plan.name, found.skipped, "skipped", _OVERLAP)
    missed = book.pass_over(plan.name, found.missed, "missed", _MISSED.format(schedule.catch_up))
    return replace(found, skipped=tuple(skipped), missed=tuple(missed))


def run_due(
    plan: Plan,
    workspace: Path,
    watch: Watch,
    ledger_url: str | None = None,
    *,
    clock: Callable[[], float] = time.time,
    each: Each = lambda _name, do: do(),
) -> list[dict[str, Any]]:
    """Do all that is due of a job, one tick after the other; the summary of each that was begun, skipped or missed.

    Where another scheduler is at one of its ticks, those that wait for it are done by it: it looks again at the end.
    """
    found: list[dict[str, Any]] = []
    seen = set[int]()
    while True:
        with opened(workspace, ledger_url) as book:
            now = due(plan, book, clock())
        nobody = _MISSED.format(schedule_of(plan).catch_up)
        for state, ticks, why in (("skipped", now.skipped, _OVERLAP), ("missed", now.missed, nobody)):
            told = [_passed_over(plan, tick, state, why) for tick in ticks]
            for summary in told[-1:]:  # of many that were missed, the last is word enough
                _tell(plan, summary, watch)
            found += told
        todo = [tick for tick in now.do if tick not in seen]
        if not todo:
            return found
        seen.add(todo[0])
        found.append(run_tick(plan, iso(todo[0]), workspace, watch, ledger_url, each=each))
        if found[-1]["state"] in ("interrupted", "busy", "elsewhere"):
            return found


def awaited(plans: Sequence[Plan], workspace: Path, ledger_url: str | None = None) -> list[Plan]:
    """The jobs of which a tick is unfinished, postponed or in another process's hands, when it is time to look again."""
    with opened(workspace, ledger_url) as book:
        looks = [(plan, due(plan, book, time.time(), record=False)) for plan in plans]
    found = [(plan, now.later) for plan, now in looks if now.do or now.busy is not None or now.later is not None]
    if found:
        rest = min(2.0 if later is None else later - time.time() for _, later in found)
        time.sleep(min(60.0, max(0.1, rest)))  # not long at a time, for clocks are set
    return [plan for plan, _ in found]


def _passed_over(plan: Plan, tick: int, state: str, why: str) -> dict[str, Any]:
    return {"job": plan.name, "tick": iso(tick), "state": state, "reason": why}


def run_tick(
    plan: Plan,
    tick: str,
    workspace: Path,
    watch: Watch,
    ledger_url: str | None = None,
    *,
    again: bool = False,
    each: Each = lambda _name, do: do(),
) -> dict[str, Any]:
    """Run a job's recipe for one tick, in a run of its own; gives its summary, with the `state` that the tick is left in.

    `state` is done, postponed, fell_short, failed or interrupted; or elsewhere or busy (somebody is at it, or at another tick
    of the job), or settled (it was done before; with `again`, by hand, one that fell short or failed goes on). A bug is recorded
    as `failed` and raised. To be called in the main thread: `max_runtime` stops a run as Ctrl-C does.
    """
    schedule, due_ = schedule_of(plan), moment(tick)
    check_clock(now := time.time())
    run = at(plan, tick)
    with opened(workspace, ledger_url) as book:
        claim = book.claim(plan.name, due_, run.digest, again=again, since=first_look(schedule, now))
        row = book.tick(plan.name, due_)
        if claim != "mine":
            return {"job": plan.name, "tick": tick, "state": claim} | _told(row)
        assert row is not None
        tries = [f"try {row.attempts}"] * (row.attempts > 1) + [f"killed {row.kills} times"] * bool(row.kills)
        watch.say(", ".join([f"{plan.name}: tick {tick}", *tries]))
        with Held(book, plan.name, due_, schedule.max_runtime) as held:
            try:
                if row.kills > schedule.kills:
                    raise UserError(
                        f"its process was killed {row.kills} times in a row without coming to an end (schedule.kills: "
                        f"{schedule.kills}); find out by what (memory?). `llm-distill jobs run` with --tick goes on."
                    )
                summary = pipeline.run(run, workspace, watch, ledger_url=ledger_url, each=each)
                held.leave()
                ending = _ending(summary)
            except KeyboardInterrupt:
                held.leave()
                ending = {"state": "interrupted", "reason": "stopped"}
            except UserError as error:
                passes = "trouble" if isinstance(error, Unreachable) else None
                ending = {"state": "failed", "reason": str(error), "passes": passes}
            except OSError as error:
                if error.errno not in NO_ROOM:
                    _failed(book, plan, due_, error, watch)
                    raise
                ending = {"state": "failed", "reason": f"the disk is full: {error}.", "passes": "trouble"}
            except OperationalError as error:
                why = " ".join(str(error.orig).split())
                ending = {"state": "failed", "reason": f"the ledger did not answer: {why}.", "passes": "trouble"}
            except Exception as error:
                _failed(book, plan, due_, error, watch)
                raise
            ending = _postponed(ending, held, schedule, row, now)
            ending |= {"reason": scrubbed(ending["reason"])} if "reason" in ending else {}  # it may quote a server
            state, later = ending["state"], ending.get("not_before")
            notes = {key: value for key, value in ending.items() if key not in ("state", "run", "stages", "not_before")}
            kept = book.end(
                plan.name, due_, "postponed" if state == "interrupted" else state, notes,
                run=ending.get("run"), not_before=later, counts=state != "interrupted",
            )  # fmt: skip
            if not kept:
                watch.say(f"{plan.name}: this process stood still so long that another one took the tick {tick}")
    found = {"job": plan.name, "tick": tick, **ending}
    if untold := _tell(plan, found, watch):
        with opened(workspace, ledger_url) as book:
            book.note(plan.name, due_, untold=untold)
    if state == "done" and plan.keep:
        gone, stays = prune(plan, workspace, time.time(), found.get("run"))
        for line in (*(f"keep: removed {folder}" for folder in gone), *kept_lines(stays)):
            watch.say(line)
    return found


def _told(row: Row | None) -> dict[str, Any]:
    return {} if row is None else {"run": row.run, "was": row.state, **row.notes}


def _ending(summary: Mapping[str, Any]) -> dict[str, Any]:
    """How a run ended, as a tick's state, with what came of it."""
    kept = {key: value for key, value in summary.items() if key != "status"}
    if filtered := summary["stages"].get("filter"):
        kept["rows_kept"] = filtered["rows_out"]
    return kept | {"state": summary["status"]}


def _postponed(ending: dict[str, Any], held: Held, schedule: Schedule, row: Row, begun: float) -> dict[str, Any]:
    """The same, to go on later where that may help. begun: when this try was."""
    passes, now = ending.pop("passes", None), time.time()
    if ending["state"] == "interrupted" and held.over:
        later = float(following(schedule, now))
        reason = f"it ran for {schedule.max_runtime:g} s, which is max_runtime; it goes on at {iso(later)}"
    elif passes == "trouble":
        later = now + schedule.postpone.wait_s(row.attempts)
        reason = f"{ending['reason']} It goes on at {iso(later)}."
    elif passes:
        later = next_period(
            passes, begun
        )  # where that is past, the rest of a run has taken so long, and a new budget is there
        reason = f"{ending['reason']} It goes on when the {passes} is over, at {iso(later)}."
    else:
        return ending
    if row.attempts > schedule.postpone.times:
        state = "fell_short" if ending["state"] == "interrupted" else ending["state"]
        given_up = f" Given up after {row.attempts} tries; `llm-distill jobs run` with --tick goes on."
        return ending | {"state": state, "reason": f"{ending['reason']}{given_up}"}
    return ending | {"state": "postponed", "reason": reason, "not_before": later}


def next_period(per: str, now: float) -> float:
    """When the next day, week or month begins, in UTC, as budgets count them."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "month":
        return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()
    days = 7 - today.weekday() if per == "week" else 1
    return (today + timedelta(days=days)).timestamp()


def _failed(book: TickBook, plan: Plan, due_: int, error: Exception, watch: Watch) -> None:
    """Write down a bug, whose traceback is for whoever sees it raised."""
    what = type(error).__name__
    reason = scrubbed(f"{what}: {error}") if isinstance(error, DistillError) else f"a bug: {what}"
    book.end(plan.name, due_, "failed", {"reason": reason})
    _tell(plan, {"job": plan.name, "tick": iso(due_), "state": "failed", "reason": reason}, watch)


def _tell(plan: Plan, found: Mapping[str, Any], watch: Watch) -> list[str]:
    """Tell whoever wants to know; gives who could not be told, and why."""
    problems = tell(plan.notify, found)
    for problem in problems:
        watch.say(f"notify: {problem}")
    return problems


def stopped(summaries: list[dict[str, Any]]) -> None:
    """Interrupted, where the last of them was stopped by hand."""
    if summaries and summaries[-1]["state"] == "interrupted":
        raise Interrupted("stopped; everything answered is kept, and the tick goes on when jobs are run again.")
