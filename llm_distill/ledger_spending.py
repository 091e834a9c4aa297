"""What was spent on what: every charge to an account once more, by run, day, stage and model, in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llm_distill.errors import UserError
from llm_distill.ledger_tables import REQUESTS, SPENDING
from llm_distill.limits import NANO, Charged

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

By = Literal["day", "teacher", "recipe", "stage"]
_SUMS = ("nano_usd", "tokens", "requests", "reserved_nano_usd", "reserved_tokens")


def names(accounts: Charged) -> list[str]:
    """The accounts' names, in the order in which they are locked."""
    return sorted(name for per, name in accounts.items() if per != "note")


class Spending:
    """The table of spending, as the ledger writes it."""

    def __init__(self, engine: sa.Engine) -> None:
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        add = insert(SPENDING)
        sums = {name: SPENDING.c[name] + add.excluded[name] for name in _SUMS}
        self._upsert = add.on_conflict_do_update(index_elements=["run", "day", "stage", "model"], set_=sums)

    def note(self, db: sa.Connection, accounts: Charged, nano_usd: int, tokens: int, settled: int | None) -> None:
        """Put what `settled` requests cost, or what is reserved (None), beside the accounts that are charged with it."""
        stage, _, model = accounts.get("note", "").partition("\t")
        day = accounts["day"].rpartition("@")[2] if "day" in accounts else f"{datetime.now(UTC):%Y-%m-%d}"
        row: dict[str, Any] = dict.fromkeys(_SUMS, 0)
        if settled is None:
            row |= {"reserved_nano_usd": nano_usd, "reserved_tokens": tokens}
        else:
            row |= {"nano_usd": nano_usd, "tokens": tokens, "requests": settled}
        db.execute(self._upsert, {"run": accounts["run"], "day": day, "stage": stage, "model": model, **row})


def costs(ledger: Ledger, by: By, since: str | None = None, recipe: str | None = None) -> list[dict[str, Any]]:
    """What was spent, in whole nano-dollars, by day, teacher (whoever answered), recipe or stage; in the order of their names.

    recipe: only what its runs spent. since: a day (YYYY-MM-DD, UTC); what was not noted on any day is then left out.
    reserved_*: for requests in flight, and for those that were when their process died: the provider may have billed them.
    Both together are what the accounts hold.
    """
    rows = _rows(ledger, None if since is None else f"{_day(since):%Y-%m-%d}")
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if recipe is not None and row.run.split("/", maxsplit=1)[0] != recipe:
            continue
        of = {"day": row.day, "teacher": row.model, "recipe": row.run.split("/", maxsplit=1)[0], "stage": row.stage}
        sums = found.setdefault(of[by], {by: of[by], **dict.fromkeys(_SUMS, 0)})
        for name in _SUMS:
            sums[name] += getattr(row, name)
    return [found[name] for name in sorted(found) if any(found[name][what] for what in _SUMS)]


def unpriced(ledger: Ledger, since: str | None = None) -> int:
    """How many answers came from models whose prices nobody knows: the sums hold nothing for them."""
    wanted = sa.select(sa.func.count()).where(
        REQUESTS.c.status != "failed", REQUESTS.c.nano_usd == 0, REQUESTS.c.entry.contains('"cost_usd":null')
    )
    if since is not None:
        wanted = wanted.where(REQUESTS.c.answered_at >= _day(since).timestamp())
    with ledger._transaction(reading=True) as db:
        return int(db.execute(wanted).scalar_one())


def _day(since: str) -> datetime:
    try:
        return datetime.strptime(since, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UserError(f"--since: found {since!r}; write a day as 2026-01-31.") from None


def _rows(ledger: Ledger, since: str | None) -> Sequence[Any]:
    with ledger._transaction(reading=True) as db:
        wanted = sa.select(SPENDING) if since is None else sa.select(SPENDING).where(SPENDING.c.day >= since)
        return db.execute(wanted).all()


def total(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The sums of some rows of costs."""
    return {name: sum(row[name] for row in rows) for name in _SUMS}


def usd(nano: int) -> str:
    """Whole nano-dollars as dollars, to the last digit."""
    sign, whole = "-" if nano < 0 else "", abs(nano)
    return f"{sign}${whole // int(NANO):,}.{whole % int(NANO):09}"
