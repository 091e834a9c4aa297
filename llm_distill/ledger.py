"""The ledger: what was asked, answered and paid, shared by every run and process of a workspace.

One row a request, keyed by its content. A row is claimed before it is asked and settled when its answer is on disk, so
two processes never pay for the same question and a crash loses at most what was in flight. SQLite in WAL mode by
default (`synchronous=FULL`: a commit survives power loss), any SQLAlchemy URL such as PostgreSQL's otherwise.
"""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llm_distill.errors import UserError
from llm_distill.records import Entry, Request

_META = sa.MetaData()
_REQUESTS = sa.Table(
    "requests",
    _META,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),  # the model's identity
    sa.Column("request", sa.LargeBinary, nullable=False),  # messages, sampling, sample index, as JSON
    sa.Column("run", sa.Text, nullable=False),  # the run that paid
    sa.Column("owner", sa.Text),  # the process that is asking now
    sa.Column("lease_until", sa.Float),  # seconds since the epoch
    sa.Column("status", sa.Text),  # null while it is claimed
    sa.Column("reason", sa.Text),
    sa.Column("text", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("cost_usd", sa.Float),
    sa.Column("attempts", sa.Integer),
    sa.Column("served_model", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("terms", sa.Text),
    sa.Column("seconds", sa.Float),
    sa.Column("charged_usd", sa.Float),
    sa.Column("charged_tokens", sa.Integer),
    sa.Column("logprobs", sa.LargeBinary),
)
_FORMAT = sa.Table("format", _META, sa.Column("version", sa.Integer, primary_key=True))
_VERSION = 1

#: A claim whose owner has not renewed it for this long is free again; long enough for a machine that swaps.
LEASE_S = 30.0
#: SQLite allows 32,766 variables a statement and plans long IN lists well up to about this size.
_CHUNK = 500


_FIELDS = Entry.__struct_fields__
_JSON = msgspec.json.Encoder()


class Claims(msgspec.Struct):
    """What became of a chunk of keys: `mine` to ask, `settled` already answered, `busy` with another live process."""

    mine: list[str]
    settled: list[str]
    busy: list[str]


def _transactional(engine: sa.Engine) -> None:
    """Make SQLite take its write lock at BEGIN, so that what a claim reads is still true when it writes."""

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=60000")
        until = time.monotonic() + 60
        while True:  # the change to WAL is refused at once while another process makes it, whatever the time-out
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


class Ledger:
    """An open ledger. Every method is one transaction; methods may be called from any thread."""

    lease_s = LEASE_S

    def __init__(self, url: str | Path) -> None:
        try:
            if isinstance(url, Path):
                url.parent.mkdir(parents=True, exist_ok=True)
                address = sa.URL.create("sqlite", database=str(url))
            else:
                address = sa.make_url(url)
            self._engine = sa.create_engine(address)
            if self._engine.dialect.name == "sqlite":
                _transactional(self._engine)
            with self._engine.begin() as db:
                _META.create_all(db)
                version = db.scalar(sa.select(_FORMAT.c.version))
                if version is None:
                    db.execute(_FORMAT.insert().values(version=_VERSION))
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
            why = " ".join(str(getattr(error, "orig", None) or error).split())
            raise UserError(f"ledger: cannot open {_shown(url)}: {why}.") from None
        if version not in (None, _VERSION):
            raise UserError(f"ledger: format {version} was made by another llm-distill; this one reads {_VERSION}.")
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        self._insert = insert(_REQUESTS).on_conflict_do_nothing(index_elements=["key"])
        self._retake = _REQUESTS.update().where(_REQUESTS.c.key == sa.bindparam("_key"))
        self._retake = self._retake.values(
            {name: sa.bindparam(name) for name in ("run", "owner", "lease_until")} | {"status": None}
        )
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        unanswered = sa.or_(_REQUESTS.c.status.is_(None), _REQUESTS.c.status == "failed")
        self._settle = (
            _REQUESTS.update()
            .where(_REQUESTS.c.key == sa.bindparam("_key"), unanswered)  # an answer that came first stays
            .values(
                {name: sa.bindparam(name) for name in _FIELDS if name != "key"} | {"owner": None, "lease_until": None}
            )
        )

    @contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[sa.Connection]:
        """A transaction; a full disk is an OSError here too."""
        try:
            with self._engine.execution_options(reading=reading).begin() as db:
                yield db
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
                raise OSError(errno.ENOSPC, "no room for the ledger", str(self._engine.url.database)) from None
            raise

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def claim(self, run: str, model: str, requests: Mapping[str, Request]) -> Claims:
        """Take what nobody has answered or is asking. Failed requests, and those of dead processes, are free again."""
        claims = Claims([], [], [])
        with self._transaction() as db:
            for keys in _chunks(list(requests)):
                held = self._held(db, keys)
                again = []
                for key, row in held.items():
                    if row.status not in (None, "failed"):
                        claims.settled.append(key)
                    elif row.status is None and self._alive(row.owner, row.lease_until):
                        claims.busy.append(key)
                    else:
                        again.append(key)
                mark = {"run": run, "owner": self.owner, "lease_until": time.time() + LEASE_S}
                if again:
                    db.execute(self._retake, [{"_key": key, **mark} for key in again])
                    claims.mine += again
                new = [key for key in keys if key not in held]
                if new:
                    rows = [{"key": k, "model": model, "request": _JSON.encode(requests[k]), **mark} for k in new]
                    db.execute(self._insert, rows)
                    # On PostgreSQL another process may have come first between the look and the insert.
                    ours = {k for k, row in self._held(db, new).items() if row.owner == self.owner}
                    claims.mine += [key for key in new if key in ours]
                    claims.busy += [key for key in new if key not in ours]
        return claims

    def _held(self, db: sa.Connection, keys: Sequence[str]) -> dict[str, Any]:
        columns = (_REQUESTS.c.key, _REQUESTS.c.status, _REQUESTS.c.owner, _REQUESTS.c.lease_until)
        return {
            row.key: row for row in db.execute(sa.select(*columns).where(_REQUESTS.c.key.in_(keys)).with_for_update())
        }

    def _alive(self, owner: str | None, lease_until: float | None) -> bool:
        """Whether a claim still holds: its lease runs, and on this machine its process lives."""
        if owner is None or lease_until is None or lease_until < time.time():
            return False
        host, pid, _ = owner.rsplit(":", 2)
        if owner == self.owner or host != socket.gethostname():
            return owner != self.owner
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def renew(self) -> None:
        """Say that this process is alive and its claims hold."""
        with self._transaction() as db:
            db.execute(
                _REQUESTS.update().where(_REQUESTS.c.owner == self.owner).values(lease_until=time.time() + LEASE_S)
            )

    def settle(self, entries: Sequence[Entry]) -> None:
        """Make answers durable: when this returns they survive a kill and a power loss."""
        if entries:
            with self._transaction() as db:
                db.execute(self._settle, [{"_key": e.key, **{n: getattr(e, n) for n in _FIELDS[1:]}} for e in entries])

    def release(self, keys: Sequence[str]) -> None:
        """Give back claims that were never asked."""
        with self._transaction() as db:
            for chunk in _chunks(keys):
                db.execute(
                    _REQUESTS.delete().where(
                        _REQUESTS.c.key.in_(chunk), _REQUESTS.c.owner == self.owner, _REQUESTS.c.status.is_(None)
                    )
                )

    def read(self, keys: Sequence[str]) -> Iterator[Entry | None]:
        """The entries of keys, in their order; None where nothing is settled."""
        columns = [_REQUESTS.c[name] for name in _FIELDS]
        for chunk in _chunks(keys):
            with self._transaction(reading=True) as db:
                rows = db.execute(
                    sa.select(*columns).where(_REQUESTS.c.key.in_(chunk), _REQUESTS.c.status.is_not(None))
                )
                found = {row.key: Entry(*row) for row in rows}
            for key in chunk:
                yield found.get(key)

    def spent(self, run: str) -> tuple[float, int]:
        """Dollars and tokens that a run has been charged."""
        sums = [sa.func.coalesce(sa.func.sum(_REQUESTS.c[name]), 0) for name in ("charged_usd", "charged_tokens")]
        with self._transaction(reading=True) as db:
            usd, tokens = db.execute(
                sa.select(*sums).where(_REQUESTS.c.run == run, _REQUESTS.c.status.is_not(None))
            ).one()
        return float(usd), int(tokens)


def _shown(url: str | Path) -> str:
    """An address without its password."""
    try:
        return str(url) if isinstance(url, Path) else sa.make_url(url).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return "the given URL"


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]
