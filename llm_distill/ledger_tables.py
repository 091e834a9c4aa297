"""The ledger's tables, and a connection to them: SQLite made durable, older ledgers brought up to date."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from llm_distill.errors import UserError
from llm_distill.records import Entry

META = sa.MetaData()
REQUESTS = sa.Table(
    "requests",
    META,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),  # the model's identity
    sa.Column("request", sa.LargeBinary, nullable=False),  # messages, sampling, sample index, as JSON
    sa.Column("run", sa.Text, nullable=False),  # the run that paid
    sa.Column("owner", sa.Text),  # who is asking now
    sa.Column("lease_until", sa.Float),  # seconds since the epoch, as are the next two
    sa.Column("asked_at", sa.Float),
    sa.Column("answered_at", sa.Float),
    sa.Column("status", sa.Text),  # null while it is claimed
    sa.Column("nano_usd", sa.BigInteger),  # what was charged to the run's budget
    sa.Column("tokens", sa.BigInteger),
    sa.Column("entry", sa.Text),  # the settled Entry as JSON, without its logprobs
    sa.Column("logprobs", sa.LargeBinary),
)
#: What a budget has left is read off one row: spent, and reserved for requests in flight.
ACCOUNTS = sa.Table(
    "accounts",
    META,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("nano_usd", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)
#: What the accounts hold, by what it was for; each account is the sum of its rows. Money stays here when a request's texts go.
SPENDING = sa.Table(
    "spending",
    META,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # in UTC; empty where it was not noted, as are the next two
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("nano_usd", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),  # settled
    sa.Column(
        "reserved_nano_usd", sa.BigInteger, nullable=False
    ),  # for what is in flight, or was when its process died
    sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
)
#: Batches at a provider and on their way there; see ledger_batches.
BATCHES = sa.Table(
    "batches",
    META,
    sa.Column("id", sa.String(32), primary_key=True),  # ours
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("accounts", sa.Text, nullable=False),  # what its rows are charged to, as JSON
    sa.Column("rows", sa.LargeBinary, nullable=False),  # their keys and reservations, as msgpack
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("file_id", sa.Text),  # the provider's
    sa.Column("batch_id", sa.Text),
    sa.Column("owner", sa.Text),  # who looks after it
    sa.Column("lease_until", sa.Float),
    sa.Column("stray", sa.Text),  # counts of lines that told of none of its rows, as JSON
)
#: Scheduled jobs, since when each is known; and their ticks: see schedule.book. A job is known by its recipe's name.
JOBS = sa.Table(
    "jobs",
    META,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),  # seconds since the epoch
)
TICKS = sa.Table(
    "ticks",
    META,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("due", sa.BigInteger, primary_key=True),  # the scheduled time, seconds since the epoch
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),  # who does it now
    sa.Column("lease_until", sa.Float),
    sa.Column("not_before", sa.Float),  # of a postponed one
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("digest", sa.Text),  # of the recipe as it was done
    sa.Column("run", sa.Text),  # its folder
    sa.Column("notes", sa.Text, nullable=False),  # the reason, the counts, as JSON
)
FORMAT = sa.Table("format", META, sa.Column("version", sa.Integer, primary_key=True))
VERSION = 3
#: SQLite allows 32,766 variables a statement and plans long IN lists well up to about this size.
CHUNK = 500


def connect(url: str | Path) -> sa.Engine:
    """Open a ledger, making its tables where there are none. UserError when it cannot be opened or is too new."""
    address = sa.URL.create("sqlite", database=str(url)) if isinstance(url, Path) else _address(url)
    try:
        if isinstance(url, Path):
            url.parent.mkdir(parents=True, exist_ok=True)
        if address.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(f"{address.get_backend_name()} is not supported; use sqlite or postgresql")
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(address)
        if engine.dialect.name == "sqlite":
            _make_durable(engine)
        with engine.begin() as db:
            if engine.dialect.name == "postgresql":  # making tables is not safe against doing it twice at once
                db.execute(sa.text("SELECT pg_advisory_xact_lock(7307)"))
            version = _version(db)
            if version == 1:
                _from_version_1(db)
            META.create_all(db)
            if version in (1, 2):
                _note_spending(db)
            if version != VERSION and version in (None, 1, 2):
                db.execute(FORMAT.delete())
                db.execute(FORMAT.insert().values(version=VERSION))
    except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UserError(f"ledger: cannot open {_shown(address)}: {why}.") from None
    if version not in (None, 1, 2, VERSION):
        raise UserError(f"ledger: format {version} was made by another llm-distill; this one reads {VERSION}.")
    return engine


def _version(db: sa.Connection) -> int | None:
    if not sa.inspect(db).has_table("format"):
        return None
    found: int | None = db.scalar(sa.select(FORMAT.c.version))
    return found


def _from_version_1(db: sa.Connection) -> None:
    """Version 1 had a column for each field of an entry, and no accounts."""
    names = [n for n in Entry.__struct_fields__ if n not in ("key", "logprobs")]
    db.execute(sa.text("ALTER TABLE requests RENAME TO requests_1"))
    META.create_all(db)
    old = sa.Table("requests_1", sa.MetaData(), autoload_with=db)
    names = [n for n in names if n in old.c]
    encode = msgspec.json.Encoder().encode
    for rows in db.execute(sa.select(old).where(old.c.status.is_not(None))).partitions(500):
        new = []
        for row in rows:
            kept = {n: getattr(row, n) for n in names}
            kept = {n: v for n, v in kept.items() if v is not None or n not in ("charged_usd", "charged_tokens")}
            entry = msgspec.convert({"key": row.key, **kept}, Entry)
            new.append(
                {
                    "key": row.key, "model": row.model, "request": row.request, "run": row.run, "status": row.status,
                    "nano_usd": round((row.charged_usd or 0) * 1e9), "tokens": row.charged_tokens or 0,
                    "entry": encode(entry).decode(), "logprobs": row.logprobs,
                }
            )  # fmt: skip
        db.execute(REQUESTS.insert(), new)
    sums = sa.select(REQUESTS.c.run, sa.func.sum(REQUESTS.c.nano_usd), sa.func.sum(REQUESTS.c.tokens))
    db.execute(ACCOUNTS.insert().from_select(["name", "nano_usd", "tokens"], sums.group_by(REQUESTS.c.run)))
    old.drop(db)


def _note_spending(db: sa.Connection) -> None:
    """Before version 3 nobody noted what was spent on what. A request tells its run, day and model, but not its stage; what
    an account holds beyond its requests (reservations, and tries that were paid for before another answer came) is put on no day.
    """
    spent: dict[tuple[str, str, str], list[int]] = {}
    columns = [REQUESTS.c[name] for name in ("run", "model", "answered_at", "asked_at", "nano_usd", "tokens")]
    for row in db.execute(sa.select(*columns).where(REQUESTS.c.status.is_not(None))):
        when = row.answered_at or row.asked_at
        day = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d") if when else ""
        sums = spent.setdefault((row.run, day, row.model), [0, 0, 0])
        for place, value in enumerate((row.nano_usd or 0, row.tokens or 0, 1)):
            sums[place] += value
    rows: list[dict[str, Any]] = [
        {"run": run, "day": day, "stage": "", "model": model, "nano_usd": usd, "tokens": tokens, "requests": n}
        | {"reserved_nano_usd": 0, "reserved_tokens": 0}
        for (run, day, model), (usd, tokens, n) in spent.items()
    ]
    for account in db.execute(sa.select(ACCOUNTS).where(~ACCOUNTS.c.name.contains("@"))).all():
        own = [row for row in rows if row["run"] == account.name]
        usd = account.nano_usd - sum(row["nano_usd"] for row in own)
        tokens = account.tokens - sum(row["tokens"] for row in own)
        if usd or tokens:
            beyond = {"nano_usd": 0, "tokens": 0, "requests": 0, "reserved_nano_usd": usd, "reserved_tokens": tokens}
            rows.append({"run": account.name, "day": "", "stage": "", "model": "", **beyond})
    if rows:
        db.execute(SPENDING.insert(), rows)


def _make_durable(engine: sa.Engine) -> None:
    """Make SQLite sync each commit, and take its write lock at BEGIN, so that what a claim reads is true when it writes."""

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


def for_many_rows(
    engine: sa.Engine, statement: sa.Executable
) -> Callable[[sa.Connection, Sequence[Mapping[str, Any]]], int]:
    """A statement to be run for many rows at once; gives how many it touched.

    Compiled once: SQLAlchemy's own work on each row takes longer than SQLite's.
    """
    compiled = statement.compile(engine)  # type: ignore[attr-defined]
    sql, names = str(compiled), compiled.positiontup
    placed = itemgetter(*names) if names else dict  # by place, or by name

    def run(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        return db.exec_driver_sql(sql, [placed(row) for row in rows]).rowcount

    return run


def chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Keys in as many as a statement takes."""
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def locked(db: sa.Connection, *which: sa.ColumnElement[bool]) -> Sequence[str]:
    """The keys of these requests, in their order and locked in it: whoever locks rows in key order waits for no circle."""
    return db.scalars(sa.select(REQUESTS.c.key).where(*which).order_by(REQUESTS.c.key).with_for_update()).all()


@contextmanager
def full_disk_is_an_os_error() -> Iterator[None]:
    """SQLite's own words for a full disk, as Python says it."""
    try:
        yield
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            raise OSError(errno.ENOSPC, "no room for the ledger") from None
        raise


def _address(url: str) -> sa.URL:
    """A URL, read. UserError, which repeats nothing of it, where a password may have been taken for something else."""
    try:
        address = sa.make_url(url)
        if "@" not in (address.host or ""):
            return address
    except (sa.exc.ArgumentError, ValueError):
        pass
    raise UserError(
        "ledger: LLM_DISTILL_LEDGER is no URL; write postgresql://user:password@host/name, an @ in the password as %40."
    )


def _shown(address: sa.URL) -> str:
    """An address without its password, which may stand in its query too."""
    if address.get_backend_name() == "sqlite":
        return str(address.database)
    return address.set(drivername=address.get_backend_name(), query={}).render_as_string(hide_password=True)
