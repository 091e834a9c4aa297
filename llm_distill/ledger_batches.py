"""The ledger's memory of provider batches: which rows each one holds, how far it got, who is looking after it.

A batch is written down before its file is sent, in the transaction that gives it its rows. From then on they belong to it,
not to a process, for as long as a provider keeps results: nobody else claims them, whatever dies. Whoever wants one of them
takes the batch over once its keeper is gone, and goes on from the state that stands here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from llm_distill.errors import FellShort
from llm_distill.ledger_tables import BATCHES, REQUESTS, chunks, locked
from llm_distill.limits import Charge, Charged
from llm_distill.records import Request

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: How long rows wait for their batch: providers keep a batch's files for 30 days.
KEEP_S = 30 * 86_400.0

#: `uploading`: the provider has no batch. `creating`: it may have one. `running`: it has the one named `batch_id`.
State = Literal["uploading", "creating", "running", "ended"]


_NO_ROWS = msgspec.msgpack.encode([])
#: Who holds a row that waits for a batch, before the batch's id; no host has such a name, so no process is taken for it.
_MARK = "!batch:0:"


class Row(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a row besides its request: what is reserved for it, and what earlier tries may have been billed."""

    key: str
    reserved: Charge
    lost: Charge = Charge()
    billed_usd: float | None = None


class Batch(msgspec.Struct, frozen=True):
    """One file of requests on its way. `id` is ours, `batch_id` the provider's; `accounts` are charged for its rows.

    attempt: how often its rows have been in a batch, this one included. size: how many rows. created: seconds since the
    epoch.
    """

    id: str
    model: str
    run: str
    state: State
    attempt: int
    accounts: Charged
    size: int
    created: float
    file_id: str | None = None
    batch_id: str | None = None

    @property
    def holder(self) -> str:
        """Who its rows belong to, in the ledger."""
        return _MARK + self.id


_decode_rows = msgspec.msgpack.Decoder(list[Row]).decode
_decode_request = msgspec.json.Decoder(Request).decode


class BatchBook:
    """The batches of a ledger, seen by one keeper: whoever looks after some of them. Every method is a transaction or a few."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.keeper = f"{ledger.owner.rpartition(':')[0]}:{uuid4().hex[:8]}"  # of this process, and no other in it

    def put(self, model: str, run: str, accounts: Charged, rows: Sequence[Row]) -> list[Batch]:
        """Write down a new batch of rows that this process has claimed; none where it lost all its claims."""
        batch = Batch(uuid4().hex, model, run, "uploading", 1, dict(accounts), len(rows), time.time())
        with self.ledger._transaction() as db:
            return self._insert(db, batch, rows, self.ledger.owner)

    def follow(
        self, batch: Batch, parts: Sequence[Sequence[Row]], attempt: int, stray: Mapping[str, int]
    ) -> list[Batch]:
        """End a batch, and put what is owed of it into new ones. `stray` counts lines that told of none of its rows."""
        begin = {"state": "uploading", "attempt": attempt, "created": time.time(), "file_id": None, "batch_id": None}
        new: list[Batch] = []
        with self.ledger._transaction() as db:
            for part in parts:
                follower = msgspec.structs.replace(batch, id=uuid4().hex, size=len(part), **begin)
                new += self._insert(db, follower, part, batch.holder)
            ended = {"state": "ended", "owner": None, "rows": _NO_ROWS, "stray": msgspec.json.encode(stray).decode()}
            db.execute(BATCHES.update().where(BATCHES.c.id == batch.id).values(ended))
        return new

    def note(self, batch: Batch) -> Batch:
        """Write down how far a batch got."""
        with self.ledger._transaction() as db:
            got = {"state": batch.state, "file_id": batch.file_id, "batch_id": batch.batch_id}
            mine = BATCHES.c.id == batch.id, BATCHES.c.owner == self.keeper
            if not db.execute(BATCHES.update().where(*mine).values(got)).rowcount:
                raise FellShort("this process stood still so long that another one looks after its batch; run again.")
        return batch

    def take(self, name: str) -> Batch | None:
        """Look after a batch from now on; None when it is over, or somebody alive does."""
        with self.ledger._transaction() as db:
            row = db.execute(sa.select(BATCHES).where(BATCHES.c.id == name).with_for_update()).one_or_none()
            if row is None or row.state == "ended" or self.ledger._alive(row.owner, row.lease_until):
                return None
            if row.owner == self.keeper or row.created + KEEP_S < time.time():
                return None
            keeper = {"owner": self.keeper, "lease_until": time.time() + self.ledger.lease_s}
            db.execute(BATCHES.update().where(BATCHES.c.id == name).values(keeper))
        known = {field: getattr(row, field) for field in Batch.__struct_fields__}
        return Batch(**known | {"accounts": msgspec.json.decode(row.accounts)})

    def renew(self) -> None:
        """Say that the keeper is alive."""
        with self.ledger._transaction() as db:
            until = {"lease_until": time.time() + self.ledger.lease_s}
            db.execute(BATCHES.update().where(BATCHES.c.owner == self.keeper).values(until))

    def leave(self) -> int:
        """Look after nothing any more; gives how many batches go on at the provider. What was never sent is given back."""
        mine, unsent = BATCHES.c.owner == self.keeper, BATCHES.c.state == "uploading"
        with self.ledger._transaction(reading=True) as db:
            new = mine, unsent, BATCHES.c.attempt == 1  # those of later tries know what the earlier may have cost
            names = db.scalars(sa.select(BATCHES.c.id).where(*new)).all()
        for name in names:
            self._dissolve(name)
        with self.ledger._transaction() as db:
            db.execute(BATCHES.update().where(mine, unsent).values(owner=None))
            return db.execute(BATCHES.update().where(mine).values(owner=None)).rowcount

    def rows(self, name: str) -> list[Row]:
        """The rows of a batch, in the order of its file."""
        with self.ledger._transaction(reading=True) as db:
            return _decode_rows(db.execute(sa.select(BATCHES.c.rows).where(BATCHES.c.id == name)).scalar_one())

    def held(self, batch: Batch, keys: Sequence[str]) -> dict[str, Request]:
        """Those of a few hundred rows that still wait for the batch, with what they ask."""
        with self.ledger._transaction(reading=True) as db:
            waiting = REQUESTS.c.key.in_(keys), REQUESTS.c.owner == batch.holder, REQUESTS.c.status.is_(None)
            found = db.execute(sa.select(REQUESTS.c.key, REQUESTS.c.request).where(*waiting)).all()
        return {row.key: _decode_request(row.request) for row in found}

    def holders(self, keys: Sequence[str]) -> dict[str, str]:
        """Which batch each row waits for, of those that wait for one."""
        found: dict[str, str] = {}
        with self.ledger._transaction(reading=True) as db:
            for chunk in chunks(keys):
                waiting = REQUESTS.c.key.in_(chunk), REQUESTS.c.owner.startswith(_MARK), REQUESTS.c.status.is_(None)
                for row in db.execute(sa.select(REQUESTS.c.key, REQUESTS.c.owner).where(*waiting)):
                    found[row.key] = row.owner.removeprefix(_MARK)
        return found

    def forsaken(self, keys: Sequence[str]) -> int:
        """How many of the rows wait for a batch that nobody looks after."""
        lone = set(self._alone())
        return sum(name in lone for name in self.holders(keys).values())

    def tidy(self) -> None:
        """End batches that no row waits for: their keeper died between settling the last one and saying so."""
        for name in self._alone():
            if name not in self.holders([row.key for row in self.rows(name)]).values():
                with self.ledger._transaction() as db:
                    db.execute(BATCHES.update().where(BATCHES.c.id == name).values(state="ended", rows=_NO_ROWS))

    def running(self, model: str) -> int:
        """How many batches of a model are at its provider, whoever looks after them."""
        with self.ledger._transaction(reading=True) as db:
            there = BATCHES.c.model == model, BATCHES.c.state == "running", BATCHES.c.created > time.time() - KEEP_S
            return int(db.scalar(sa.select(sa.func.count()).where(*there)) or 0)

    def history(self) -> list[dict[str, Any]]:
        """Every batch there was, the oldest first: its ids, state, attempt, size and stray lines."""
        names = ("id", "model", "run", "state", "attempt", "file_id", "batch_id", "created", "size", "stray")
        with self.ledger._transaction(reading=True) as db:
            found = db.execute(sa.select(*(BATCHES.c[name] for name in names)).order_by(BATCHES.c.created)).mappings()
            return [{**row, "stray": msgspec.json.decode(row["stray"] or "{}")} for row in found]

    def _alone(self) -> list[str]:
        """The batches under way that nobody looks after."""
        columns = BATCHES.c.id, BATCHES.c.owner, BATCHES.c.lease_until
        with self.ledger._transaction(reading=True) as db:
            found = db.execute(sa.select(*columns).where(BATCHES.c.state != "ended")).all()
        return [row.id for row in found if not self.ledger._alive(row.owner, row.lease_until)]

    def _insert(self, db: sa.Connection, batch: Batch, rows: Sequence[Row], giver: str) -> list[Batch]:
        ours = _hand_over(db, [row.key for row in rows], giver, batch.holder, batch.created + KEEP_S)
        rows = [row for row in rows if row.key in ours]
        batch = msgspec.structs.replace(batch, size=len(rows))
        record = msgspec.structs.asdict(batch) | {
            "accounts": msgspec.json.encode(batch.accounts).decode(),
            "owner": self.keeper,
            "lease_until": time.time() + self.ledger.lease_s,
            "rows": msgspec.msgpack.encode(rows),
        }
        if rows:
            db.execute(BATCHES.insert().values(record))
        return [batch] if rows else []

    def _dissolve(self, name: str) -> None:
        with self.ledger._transaction() as db:
            row = db.execute(sa.select(BATCHES).where(BATCHES.c.id == name)).one()
            rows = _decode_rows(row.rows)
            keys = [r.key for r in rows]
            _hand_over(db, keys, _MARK + name, self.ledger.owner, time.time() + self.ledger.lease_s)
            db.execute(BATCHES.delete().where(BATCHES.c.id == name))
        self.ledger.release(keys, [r.reserved for r in rows], msgspec.json.decode(row.accounts))


def _hand_over(db: sa.Connection, keys: Sequence[str], giver: str, taker: str, until: float) -> set[str]:
    """Change who holds unanswered rows; gives those that the giver did hold."""
    handed: set[str] = set()
    for chunk in chunks(sorted(keys)):
        waiting = REQUESTS.c.key.in_(chunk), REQUESTS.c.owner == giver, REQUESTS.c.status.is_(None)
        mine = locked(db, *waiting)
        db.execute(REQUESTS.update().where(REQUESTS.c.key.in_(mine)).values(owner=taker, lease_until=until))
        handed.update(mine)
    return handed
