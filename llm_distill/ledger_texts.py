"""The ledger by its texts: when a question was asked and by whom, which questions quote a row, and erasing them.

Money is not erased: what was spent stays in the accounts and in the table of spending.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from llm_distill.ledger_tables import REQUESTS, chunks
from llm_distill.records import Entry, Request

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: A text shorter than this stands in questions that have nothing to do with it.
_TELLING = 12


def about(ledger: Ledger, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What is known of settled questions besides their texts, in the order of the keys; those that are gone are left out."""
    names = ("key", "model", "run", "asked_at", "answered_at", "status", "nano_usd", "entry")
    found: dict[str, Any] = {}
    for chunk in chunks(list(keys)):
        with ledger._transaction(reading=True) as db:
            known = REQUESTS.c.key.in_(chunk), REQUESTS.c.status.is_not(None)
            found |= {row.key: row for row in db.execute(sa.select(*(REQUESTS.c[n] for n in names)).where(*known))}
    for row in (found[key] for key in keys if key in found):
        entry = msgspec.json.decode(row.entry, type=Entry)
        yield {
            "request": row.key,
            "model": row.model,
            "served_model": entry.served_model,
            "fingerprint": entry.fingerprint,
            "terms": entry.terms,
            "paid_by": row.run,
            "asked": _time(row.asked_at),
            "answered": _time(row.answered_at),
            "status": row.status,
            "attempts": entry.attempts,
            "nano_usd": row.nano_usd,
        }


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def quoting(ledger: Ledger, texts: Sequence[str]) -> list[str]:
    """The keys of questions in which one of these texts stands whole: a judge's about the row, a generator's that shows it."""
    telling = [text for text in texts if len(text) >= _TELLING]
    if not telling:
        return []
    decode, found = msgspec.json.Decoder(Request).decode, []
    with ledger._transaction(reading=True) as db:
        for rows in db.execute(sa.select(REQUESTS.c.key, REQUESTS.c.request)).partitions(2000):
            for key, blob in rows:
                contents = [message.content for message in decode(blob).messages]
                if any(text in content for text in telling for content in contents):
                    found.append(key)
    return found


def asking(ledger: Ledger) -> set[str]:
    """The runs (as the ledger names them) that are asking something now."""
    names = ("run", "owner", "lease_until")
    with ledger._transaction(reading=True) as db:
        claimed = sa.select(*(REQUESTS.c[n] for n in names)).where(REQUESTS.c.status.is_(None)).distinct()
        return {row.run for row in db.execute(claimed) if ledger._alive(row.owner, row.lease_until)}


def erase(ledger: Ledger, keys: Sequence[str]) -> int:
    """Remove questions with their answers, but for those that are being asked now; gives how many. Asked again, they would be
    asked anew. SQLite overwrites what it removes, in its log too.
    """
    gone, names = 0, ("key", "status", "owner", "lease_until")
    sqlite = ledger._engine.dialect.name == "sqlite"
    for chunk in chunks(sorted(set(keys))):
        with ledger._transaction() as db:
            if sqlite:
                db.exec_driver_sql("PRAGMA secure_delete = ON")
            which = sa.select(*(REQUESTS.c[n] for n in names)).where(REQUESTS.c.key.in_(chunk))
            rows = db.execute(which.order_by(REQUESTS.c.key).with_for_update()).all()
            dead = [r.key for r in rows if r.status is not None or not ledger._alive(r.owner, r.lease_until)]
            gone += db.execute(REQUESTS.delete().where(REQUESTS.c.key.in_(dead))).rowcount
    if sqlite:
        with closing(ledger._engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return gone
