"""The ledger: what was asked, answered and paid, shared by every run and process of a workspace.

One row a request, keyed by its content. A row is claimed before it is asked and settled when its answer is on disk, so
two processes never pay for the same question and a crash loses at most what was in flight. Claiming also reserves, on
the accounts of its run and periods, the most that the request may cost; settling puts what it did cost in its place. A
process that dies leaves its reservations where they are: the provider may have billed what nobody could receive.

SQLite in WAL mode by default (`synchronous=FULL`: a commit survives power loss), or any PostgreSQL by SQLAlchemy URL.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llm_distill import ledger_tables as tables
from llm_distill.ledger_spending import Spending, names
from llm_distill.ledger_tables import ACCOUNTS, REQUESTS
from llm_distill.limits import NANO, Budget, Charge, Charged, Per
from llm_distill.records import Entry, Request

_JSON = msgspec.json.Encoder()
_PIDS = Path("/proc/self/ns/pid")
#: Where a process number means this process: containers of one host may share its name, but not its numbers.
_HERE = f"{socket.gethostname()}/{_PIDS.stat().st_ino if _PIDS.exists() else 0}"
_ENTRY = msgspec.json.Decoder(Entry).decode


class Claims(msgspec.Struct):
    """What became of a chunk of keys.

    mine: to be asked by us; settled: already answered; busy: another live process asks; over: what no budget has room
    for now, with the budget that refused the first of them and what its account holds.
    """

    mine: list[str] = []
    settled: list[str] = []
    busy: list[str] = []
    over: list[str] = []
    refused: Budget | None = None
    held: Charge = Charge()


class Ledger:
    """An open ledger. Every method is one transaction; methods may be called from any thread."""

    #: A claim whose owner has not renewed it for this long is free again; long enough for a machine that swaps.
    lease_s = 30.0

    def __init__(self, url: str | Path) -> None:
        self._engine = tables.connect(url)
        self.stage = ""  # of the run that asks, for the note of what it spends
        self._turn = threading.Lock()
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        claim: dict[str, Any] = {name: sa.bindparam(name) for name in ("run", "owner", "lease_until", "asked_at")}
        new = claim | {name: sa.bindparam(name) for name in ("key", "model", "request")}
        add = insert(REQUESTS).values(new).on_conflict_do_nothing(index_elements=["key"])
        self._insert = tables.for_many_rows(self._engine, add)
        self._open_account = insert(ACCOUNTS).on_conflict_do_nothing(index_elements=["name"])
        self._spending = Spending(self._engine)
        self._charge = (
            ACCOUNTS.update()
            .where(ACCOUNTS.c.name == sa.bindparam("_name"))
            .values(
                nano_usd=ACCOUNTS.c.nano_usd + sa.bindparam("_nano_usd"),
                tokens=ACCOUNTS.c.tokens + sa.bindparam("_tokens"),
            )
        )
        self._retake = REQUESTS.update().where(REQUESTS.c.key == sa.bindparam("_key")).values(claim | {"status": None})
        answer = ("status", "entry", "logprobs", "nano_usd", "tokens", "answered_at")
        unanswered = sa.or_(REQUESTS.c.status.is_(None), REQUESTS.c.status == sa.literal_column("'failed'"))
        self._settle = tables.for_many_rows(
            self._engine,
            REQUESTS.update()
            .where(REQUESTS.c.key == sa.bindparam("_key"), unanswered)  # an answer that came first stays
            .values({n: sa.bindparam(n) for n in answer} | {"owner": sa.null(), "lease_until": sa.null()}),
        )
        self.owner = f"{_HERE}:{os.getpid()}:{uuid4().hex[:8]}"

    @contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[sa.Connection]:
        """A transaction; a full disk is an OSError here too.

        Threads of this process take turns here: SQLite itself lets waiting writers poll, and one may starve for long.
        """
        turn = nullcontext() if reading or self._engine.dialect.name != "sqlite" else self._turn
        with turn, tables.full_disk_is_an_os_error(), self._engine.execution_options(reading=reading).begin() as db:
            yield db

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def claim(
        self,
        run: str,
        model: str,
        requests: Mapping[str, Request],
        reserve: Mapping[str, Charge] | None = None,
        accounts: Charged | None = None,
        budgets: Sequence[Budget] = (),
    ) -> Claims:
        """Take what is owed and nobody else is asking, as far as every budget has room for what it may cost.

        reserve: key -> the most that a request may cost. accounts: period -> account to charge (`limits.accounts`).
        """
        reserve, accounts = reserve or {}, accounts or {"run": run}
        claims = Claims()
        with self._transaction() as db:
            held_by = self._accounts(db, accounts)  # first, so that claims of one account wait for each other here
            keys = list(requests)
            known = {row.key: row for chunk in tables.chunks(sorted(keys)) for row in self._known(db, chunk)}
            again: list[str] = []
            new: list[str] = []
            total = Charge()
            for key in keys:
                row = known.get(key)
                if row is not None and row.status not in (None, "failed"):
                    claims.settled.append(key)
                elif row is not None and row.status is None and self._alive(row.owner, row.lease_until):
                    claims.busy.append(key)
                else:
                    cost = reserve.get(key, Charge())
                    refused = None if claims.over else _refusing(budgets, held_by, total + cost)
                    if claims.over or refused:
                        claims.over.append(key)
                        if refused:
                            claims.refused, claims.held = refused, held_by[refused.per] + total
                        continue
                    total += cost
                    (new if row is None else again).append(key)
            now = time.time()
            mark = {"run": run, "owner": self.owner, "lease_until": now + self.lease_s, "asked_at": now}
            if again:
                db.execute(self._retake, [{"_key": key, **mark} for key in sorted(again)])
            if new:
                rows = [{"key": k, "model": model, "request": _JSON.encode(requests[k]), **mark} for k in sorted(new)]
                if self._insert(db, rows) < len(new):
                    # On PostgreSQL another process may have come first between the look and the insert.
                    since = REQUESTS.c.owner == self.owner, REQUESTS.c.asked_at == now
                    ours = {
                        key
                        for chunk in tables.chunks(sorted(new))
                        for key in tables.locked(db, REQUESTS.c.key.in_(chunk), *since)
                    }
                    claims.busy += [key for key in new if key not in ours]
                    new = [key for key in new if key in ours]
            mine = {*again, *new}
            claims.mine = [key for key in keys if key in mine]
            self._add(db, accounts, [reserve.get(key, Charge()) for key in claims.mine])
        return claims

    def _known(self, db: sa.Connection, keys: Sequence[str]) -> Iterable[Any]:
        columns = (REQUESTS.c.key, REQUESTS.c.status, REQUESTS.c.owner, REQUESTS.c.lease_until)
        return db.execute(
            sa.select(*columns).where(REQUESTS.c.key.in_(keys)).order_by(REQUESTS.c.key).with_for_update()
        ).all()

    def _accounts(self, db: sa.Connection, accounts: Charged) -> dict[Per, Charge]:
        """What each account holds, spent and reserved; its row stays locked until the transaction ends."""
        known = names(accounts)
        db.execute(self._open_account, [{"name": name, "nano_usd": 0, "tokens": 0} for name in known])
        there = sa.select(ACCOUNTS).where(ACCOUNTS.c.name.in_(known)).order_by(ACCOUNTS.c.name)
        rows = db.execute(there.with_for_update())
        held = {row.name: Charge(row.nano_usd / NANO, row.tokens) for row in rows}
        return {per: held[name] for per, name in accounts.items() if per != "note"}

    def _add(self, db: Any, accounts: Charged, charges: Sequence[Charge], sign: int = 1, spent: bool = False) -> None:
        usd, tokens = sign * sum(c.nano_usd for c in charges), sign * sum(c.tokens for c in charges)
        if usd or tokens:
            db.execute(self._charge, [{"_name": n, "_nano_usd": usd, "_tokens": tokens} for n in names(accounts)])
        if charges:
            self._spending.note(db, accounts, usd, tokens, len(charges) if spent else None)

    def _alive(self, owner: str | None, lease_until: float | None) -> bool:
        """Whether a claim still holds: its lease runs, and on this machine its process lives."""
        if owner is None or lease_until is None or lease_until < time.time():
            return False
        host, pid, _ = owner.rsplit(":", 2)
        if owner == self.owner or host != _HERE:
            return owner != self.owner
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def reserve(
        self, accounts: Charged, charges: Sequence[Charge], budgets: Sequence[Budget] = ()
    ) -> tuple[int, Budget | None, Charge]:
        """Reserve for tries whose forerunners may have been billed, the first ones first.

        Gives how many there was room for; and, if not for all, the budget that refused the next and what it holds.
        """
        with self._transaction() as db:
            held_by, total = self._accounts(db, accounts), Charge()
            for count, charge in enumerate(charges):
                if refused := _refusing(budgets, held_by, total + charge):
                    self._add(db, accounts, charges[:count])
                    return count, refused, held_by[refused.per] + total
                total += charge
            self._add(db, accounts, charges)
        return len(charges), None, Charge()

    def renew(self) -> set[str]:
        """Say that this process is alive and its claims hold; gives those that nobody else took meanwhile."""
        with self._transaction() as db:
            until = {"lease_until": time.time() + self.lease_s}
            ours = tables.locked(db, REQUESTS.c.owner == self.owner, REQUESTS.c.status.is_(None))
            for chunk in tables.chunks(ours):
                db.execute(REQUESTS.update().where(REQUESTS.c.key.in_(chunk)).values(until))
        return set(ours)

    def settle(
        self,
        entries: Sequence[Entry],
        reserved: Sequence[Charge] = (),
        accounts: Charged | None = None,
    ) -> None:
        """Make answers durable: when this returns they survive a kill and a power loss.

        reserved: what was reserved for them on `accounts`, given back in exchange for what they were charged.
        """
        if not entries:
            return
        now = time.time()
        with self._transaction() as db:
            if accounts:
                self._accounts(db, accounts)
            rows = [
                {
                    "_key": e.key,
                    "status": e.status,
                    "entry": _JSON.encode(msgspec.structs.replace(e, logprobs=None)).decode(),
                    "logprobs": e.logprobs,
                    "nano_usd": Charge(e.charged_usd).nano_usd,
                    "tokens": e.charged_tokens,
                    "answered_at": now,
                }
                for e in sorted(entries, key=lambda e: e.key)
            ]
            self._settle(db, rows)
            if accounts:
                self._add(db, accounts, reserved, -1)
                self._add(db, accounts, [Charge(e.charged_usd, e.charged_tokens) for e in entries], spent=True)

    def release(self, keys: Sequence[str], reserved: Sequence[Charge] = (), accounts: Charged | None = None) -> None:
        """Give back claims that were never asked, and what was reserved for them."""
        with self._transaction() as db:
            if accounts:
                self._accounts(db, accounts)
                self._add(db, accounts, reserved, -1)
            for chunk in tables.chunks(sorted(keys)):
                ours = REQUESTS.c.key.in_(chunk), REQUESTS.c.owner == self.owner, REQUESTS.c.status.is_(None)
                db.execute(REQUESTS.delete().where(REQUESTS.c.key.in_(tables.locked(db, *ours))))

    def read(self, keys: Iterable[str], *, logprobs: bool = True) -> Iterator[Entry | None]:
        """The entries of keys, in their order; None where nothing is settled. Holds few of them at a time."""
        columns = [REQUESTS.c.key, REQUESTS.c.entry, *([REQUESTS.c.logprobs] if logprobs else [])]
        rest = iter(keys)
        while chunk := list(islice(rest, tables.CHUNK)):
            with self._transaction(reading=True) as db:
                rows = db.execute(
                    sa.select(*columns).where(REQUESTS.c.key.in_(chunk), REQUESTS.c.status.is_not(None))
                ).all()
            found = {row.key: _ENTRY(row.entry) for row in rows}
            if logprobs:
                found |= {r.key: msgspec.structs.replace(found[r.key], logprobs=r.logprobs) for r in rows if r.logprobs}
            for key in chunk:
                yield found.get(key)

    def spent(self, account: str) -> Charge:
        """What an account holds: charged, and reserved for what is in flight or was when its process died."""
        with self._transaction(reading=True) as db:
            row = db.execute(sa.select(ACCOUNTS).where(ACCOUNTS.c.name == account)).one_or_none()
        return Charge() if row is None else Charge(row.nano_usd / NANO, row.tokens)


def _refusing(budgets: Sequence[Budget], held: Mapping[Per, Charge], more: Charge) -> Budget | None:
    """The first budget that `more` would exceed."""
    for budget in budgets:
        after = held[budget.per] + more
        over_usd = budget.usd is not None and after.nano_usd > Charge(budget.usd).nano_usd
        if over_usd or (budget.tokens is not None and after.tokens > budget.tokens):
            return budget
    return None
