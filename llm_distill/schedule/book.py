"""The ledger's memory of jobs and their ticks: which were done, who is at one, when a postponed one goes on.

A tick is claimed with a lease, in the transaction in which its job's row is locked, so that of any number of schedulers, on
any number of machines that share the ledger, one does it, and no two ticks of a job are done at once. A claim lasts while its
process lives and says so; then the tick is anybody's, who goes on with the same run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llm_distill.ledger_tables import ACCOUNTS, JOBS, TICKS, chunks
from llm_distill.limits import NANO
from llm_distill.schedule.ticks import UNFINISHED, Known, State

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: What became of a claim: ours; somebody else is at it, or at another tick of the job; it is settled.
Claim = Literal["mine", "elsewhere", "busy", "settled"]
#: How many ticks of a job are read; all of a year of nights, or of a week at one every quarter of an hour.
RECENT = 1000
_JSON = msgspec.json.Encoder()


@dataclass(frozen=True)
class Row:
    """A tick as it stands in the ledger."""

    due: int
    state: State
    attempts: int
    alive: bool
    not_before: float | None
    started: float | None
    ended: float | None
    digest: str | None
    run: str | None
    notes: Mapping[str, Any]

    @property
    def known(self) -> Known:
        """What a decision needs of it."""
        by_hand = bool(self.notes.get("by_hand"))
        return Known(self.due, self.state, self.alive, self.started, self.ended, self.not_before, by_hand)

    @property
    def kills(self) -> int:
        """How often its process went away since it last came to an end."""
        return int(self.notes.get("kills", 0))


class TickBook:
    """The jobs of a ledger, seen by one scheduler. Every method is one transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.keeper = f"{ledger.owner.rpartition(':')[0]}:{uuid4().hex[:8]}"  # of this process, and no other in it
        self._insert = postgresql.insert if ledger._engine.dialect.name == "postgresql" else sqlite.insert

    def since(self, job: str, start: float, now: float, first: float = 0.0) -> float:
        """Since when a job counts: since it was first heard of, when `start` was said. Never in the future nor before `first`."""
        with self.ledger._transaction() as db:
            found = self._locked(db, job, start)
            wrong = not first <= found <= now  # a clock that was ahead then, or not set
            if wrong:
                db.execute(JOBS.update().where(JOBS.c.name == job).values(since=start))
        return start if wrong else found

    def _locked(self, db: sa.Connection, job: str, start: float) -> float:
        """Since when a job is known. Its row stays locked until the transaction ends."""
        new = self._insert(JOBS).values(name=job, since=start)
        db.execute(new.on_conflict_do_nothing(index_elements=["name"]))
        found: float = db.execute(sa.select(JOBS.c.since).where(JOBS.c.name == job).with_for_update()).scalar_one()
        return found

    def ticks(self, job: str, most: int = RECENT) -> list[Row]:
        """A job's latest ticks and all its unfinished ones, in their order."""
        of = sa.select(TICKS).where(TICKS.c.job == job)
        with self.ledger._transaction(reading=True) as db:
            rows = {row.due: row for row in db.execute(of.order_by(TICKS.c.due.desc()).limit(most))}
            rows |= {row.due: row for row in db.execute(of.where(TICKS.c.state.in_(UNFINISHED)))}
        return [self._row(rows[due]) for due in sorted(rows)]

    def tick(self, job: str, due: int) -> Row | None:
        """One tick."""
        with self.ledger._transaction(reading=True) as db:
            row = db.execute(sa.select(TICKS).where(TICKS.c.job == job, TICKS.c.due == due)).one_or_none()
        return None if row is None else self._row(row)

    def _row(self, row: Any) -> Row:
        alive = row.state == "running" and self.ledger._alive(row.owner, row.lease_until)
        ended = row.ended
        if row.state == "running" and not alive:  # last heard of a lease ago, or at once where its process is gone
            ended = max(row.started, row.lease_until - self.ledger.lease_s)
        notes = msgspec.json.decode(row.notes)
        return Row(
            row.due, row.state, row.attempts, alive, row.not_before, row.started, ended, row.digest, row.run, notes
        )

    def claim(self, job: str, due: int, digest: str, *, again: bool = False, since: float | None = None) -> Claim:
        """Take a tick, if nobody is at it or at another one of its job. again: by hand, also one that fell short or failed.

        A tick whose process was killed goes on with the same try; how often that was is counted in its notes (`kills`), until it
        comes to an end. One that was begun by hand says nothing of those before it (`by_hand`). since: of a job that is new.
        """
        now = time.time()
        mine = {
            "state": "running", "owner": self.keeper, "lease_until": now + self.ledger.lease_s, "not_before": None,
            "digest": digest,
        }  # fmt: skip
        of = TICKS.c.job == job
        with self.ledger._transaction() as db:
            self._locked(db, job, now if since is None else since)
            for other in db.execute(sa.select(TICKS).where(of, TICKS.c.state == "running")):
                if self.ledger._alive(other.owner, other.lease_until):
                    return "elsewhere" if other.due == due else "busy"
            row = db.execute(sa.select(TICKS).where(of, TICKS.c.due == due)).one_or_none()
            if row is None:
                notes = _JSON.encode({"by_hand": True} if again else {}).decode()
                new = {"job": job, "due": due, "attempts": 1, "started": now, "notes": notes, **mine}
                db.execute(TICKS.insert().values(new))
                return "mine"
            open_ = row.state in (*UNFINISHED, "missed") or (again and row.state != "done")
            if not open_:
                return "settled"
            started, killed = now if row.started is None else row.started, row.state == "running"
            notes = msgspec.json.decode(row.notes)
            notes |= {"kills": notes.get("kills", 0) + 1} if killed else {}
            notes |= {"by_hand": True} if again and row.started is None else {}
            values = mine | {"attempts": row.attempts + (not killed), "started": started}
            values |= {"notes": _JSON.encode(notes).decode()}
            db.execute(TICKS.update().where(of, TICKS.c.due == due).values(values))
        return "mine"

    def renew(self, job: str, due: int) -> bool:
        """Say that we are at a tick; False if another has taken it, who thought that we were gone."""
        with self.ledger._transaction() as db:
            ours = TICKS.c.job == job, TICKS.c.due == due, TICKS.c.owner == self.keeper
            until = {"lease_until": time.time() + self.ledger.lease_s}
            return bool(db.execute(TICKS.update().where(*ours).values(until)).rowcount)

    def end(
        self,
        job: str,
        due: int,
        state: State,
        notes: Mapping[str, Any],
        *,
        run: str | None = None,
        not_before: float | None = None,
        counts: bool = True,
    ) -> bool:
        """Write down how a tick ended; False if another has taken it meanwhile. counts: whether it was a try."""
        values: dict[str, Any] = {
            "state": state, "owner": None, "lease_until": None, "ended": time.time(), "not_before": not_before,
        }  # fmt: skip
        values |= {} if run is None else {"run": run}
        values |= {} if counts else {"attempts": TICKS.c.attempts - 1}
        with self.ledger._transaction() as db:
            ours = TICKS.c.job == job, TICKS.c.due == due, TICKS.c.owner == self.keeper
            before = db.scalar(sa.select(TICKS.c.notes).where(*ours))
            stays = {k: v for k, v in msgspec.json.decode(before or "{}").items() if k == "by_hand"}
            values |= {"notes": _JSON.encode({**notes, **stays}).decode()}
            return bool(db.execute(TICKS.update().where(*ours).values(values)).rowcount)

    def note(self, job: str, due: int, **more: Any) -> None:
        """Write something beside what is noted of a tick."""
        which = TICKS.c.job == job, TICKS.c.due == due
        with self.ledger._transaction() as db:
            notes = msgspec.json.decode(db.execute(sa.select(TICKS.c.notes).where(*which)).scalar_one())
            db.execute(TICKS.update().where(*which).values(notes=_JSON.encode(notes | more).decode()))

    def pass_over(self, job: str, dues: Sequence[int], state: Literal["skipped", "missed"], why: str) -> list[int]:
        """Write down ticks that are not done; gives those that were not written down before."""
        if not dues:
            return []
        notes = _JSON.encode({"reason": why}).decode()
        new: list[dict[str, Any]] = []
        with self.ledger._transaction() as db:
            self._locked(db, job, time.time())
            of = TICKS.c.job == job, TICKS.c.due >= dues[0], TICKS.c.due <= dues[-1]
            there = {row.due: row.state for row in db.execute(sa.select(TICKS.c.due, TICKS.c.state).where(*of))}
            for due in dues:
                if due not in there:
                    new.append({"job": job, "due": due, "state": state, "attempts": 0, "notes": notes})
                elif there[due] == "missed" != state:
                    db.execute(TICKS.update().where(TICKS.c.job == job, TICKS.c.due == due).values(state=state))
            if new:
                db.execute(TICKS.insert(), new)
        return [row["due"] for row in new]

    def spent(self, names: Sequence[str]) -> dict[str, float]:
        """What accounts hold, in dollars."""
        found: dict[str, float] = {}
        with self.ledger._transaction(reading=True) as db:
            for chunk in chunks(names):
                rows = db.execute(sa.select(ACCOUNTS.c.name, ACCOUNTS.c.nano_usd).where(ACCOUNTS.c.name.in_(chunk)))
                found |= {row.name: row.nano_usd / NANO for row in rows}
        return found
