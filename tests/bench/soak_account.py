"""What `tests.bench.soak` holds against each other: the teacher's own account, what kills cut off, and what is on disk."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import sqlalchemy as sa

from llm_distill.account import Account
from llm_distill.ledger import Ledger
from llm_distill.ledger_tables import ACCOUNTS, REQUESTS
from llm_distill.recipe import load
from llm_distill.records import Request
from llm_distill.schedule.book import TickBook
from llm_distill.sets.shelf import SPLITS, Shelf
from tests.mock_api import MockApi, label_of

#: Dollars per million tokens: a token is a whole number of nano-dollars, so that sums of both sides are exact.
PRICES = {"prompt": 1.0, "completion": 2.0}
_NANO = (1000, 2000)


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode(), 7)


@dataclass
class Teacher:
    """What the endpoint does, and its own account: of each question what it billed, each time that it did."""

    api: MockApi
    written: int = 0
    bills: dict[str, list[int]] = field(default_factory=dict)
    deliveries: int | None = None  # so many more answers are delivered; all where it is None

    def __post_init__(self) -> None:
        self.api.says, self.api.may_deliver, self.api.serves_the_gone = self.says, self.may_deliver, False
        made = self.api._body

        def body(request: dict[str, Any], prompt: str, fault: str | None) -> dict[str, Any]:
            whole = made(request, prompt, fault)
            usage = whole["usage"]
            bill = _NANO[0] * usage["prompt_tokens"] + _NANO[1] * usage["completion_tokens"]
            self.bills.setdefault(prompt, []).append(bill)
            if self.deliveries:
                self.deliveries -= 1
            elif self.deliveries == 0:
                self.deliveries = -1  # this one is held back, and all that follow
            return whole

        self.api._body = body  # type: ignore[method-assign, assignment]

    def may_deliver(self) -> bool:
        return self.deliveries is None or self.deliveries >= 0

    def says(self, _request: dict[str, Any], prompt: str) -> str | None:
        if "ITEMS" in prompt:
            self.written += 1
            fresh = [f"parcel{self.written}x{n} for house{self.written * 7} came {n} days late" for n in range(6)]
            for text in fresh:
                self.plan(text)
            return "\n".join(f"{n}. {text}" for n, text in enumerate(fresh, 1))
        return "dunno" if hash_of(prompt) % 17 == 0 or hash_of(prompt) % 20 == 1 else label_of(prompt)

    def plan(self, prompt: str) -> None:
        """What goes wrong with a row: for a while, or for ever."""
        # No resets and no 5xx: after these a provider may have billed, and the ledger keeps the most that it can have been.
        lot = hash_of(prompt) % 20
        faults = {0: ["400"] * 10_000, 1: ["length"] * 10_000, 2: ["refusal"] * 10_000, 3: ["429"], 4: ["429:0", "429"]}
        if lot in faults:
            self.api.faults[prompt] = faults[lot]

    def rest(self) -> None:
        """Wait until nobody is served any more: what a dead process had sent may still be on its way."""
        self.deliveries, still = None, 0
        while still < 3:
            time.sleep(0.03)
            still = 0 if self.api.in_flight or self.api.holding else still + 1


@dataclass
class Losses:
    """What kills cut off: of each question the bills whose answer never reached the disk, and what was reserved for it."""

    lost: dict[str, list[int]] = field(default_factory=dict)
    cut: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)  # (key, owner) -> question, nano-dollars

    def look(self, path: Path, ledger: Path, teacher: Teacher) -> None:
        """After a kill: hold what the teacher billed against what is on disk."""
        if not ledger.exists():
            return
        plan = load(path)
        plug = plan.models["teacher"]
        account = Account(plug.function(**plug.knobs), "soak/any")
        on_disk = Counter[str]()
        with closing(sqlite3.connect(ledger, timeout=60)) as db:
            if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'requests'").fetchone()[0]:
                return
            rows = db.execute("SELECT key, owner, status, nano_usd, request FROM requests").fetchall()
        for key, owner, status, nano_usd, request in rows:
            asked = msgspec.json.decode(request, type=Request)
            text = teacher.api.last_line(asked.messages[-1].content)
            on_disk[text] += bool(nano_usd)
            if status is None:
                self.cut[key, owner] = text, account.item(key, asked).reserve.nano_usd
        for text, bills in teacher.bills.items():
            lost = self.lost.setdefault(text, [])
            new = len(bills) - on_disk[text] - len(lost)
            lost += bills[len(bills) - new :]


def account(data: Path, teacher: Teacher, losses: Losses, ticks: int) -> dict[str, Any]:
    """What became of all rows of all runs, of the data set, and of the money."""
    rows, ends, all_kept = 0, Counter[str](), Counter[str]()
    runs = sorted((data / "runs" / "soak").iterdir())
    for run in runs:
        asked = pq.read_table(run / "prompts.parquet", columns=["row_id"]).column("row_id").to_pylist()
        kept = pq.read_table(run / "kept.parquet", columns=["row_id"]).column("row_id").to_pylist()
        dropped = pq.read_table(run / "dropped.parquet", columns=["row_id", "dropped_by"]).to_pylist()
        assert sorted(asked) == sorted([*kept, *(row["row_id"] for row in dropped)]), run
        rows += len(asked)
        ends["kept"] += len(kept)
        all_kept.update(kept)
        own = ("truncated", "refused", "failed")
        for row in dropped:
            ends[row["dropped_by"] if row["dropped_by"] in own else "filtered"] += 1
    with closing(Ledger(data / "ledger.sqlite")) as ledger:
        states = Counter(row.state for row in TickBook(ledger).ticks("soak", most=100_000))
        with ledger._transaction(reading=True) as db:
            charged = db.scalar(sa.select(sa.func.sum(REQUESTS.c.nano_usd))) or 0
            questions = db.scalar(sa.select(sa.func.count()).where(REQUESTS.c.nano_usd > 0))
            held = db.scalar(sa.select(sa.func.sum(ACCOUNTS.c.nano_usd)).where(ACCOUNTS.c.name.like("soak/%"))) or 0
    lost = {text: bills for text, bills in losses.lost.items() if bills}
    cut = Counter(text for text, _ in losses.cut.values())
    most = {text: nano for text, nano in losses.cut.values()}  # noqa: C416  of each question the same
    # A generator's question is another one in each night, whatever its words.
    again = {text: len(bills) - 1 for text, bills in teacher.bills.items() if "ITEMS" not in text and len(bills) > 1}
    shelf = Shelf(data, "nights")
    sides = {split: [row["row_id"] for row in shelf.rows(shelf.latest, split, ["row_id"])] for split in SPLITS}
    held_out = [[row["row_id"] for row in shelf.rows(v, "held_out", ["row_id"])] for v in shelf.versions]
    return {
        "ticks": ticks,
        "runs": len(runs),
        "states": dict(states),
        "asked": rows,
        **{end: ends[end] for end in ("kept", "filtered", "truncated", "refused", "failed")},
        "versions of the data set": len(shelf.versions),
        "rows of the data set": len(sides["taught"]),
        "kept rows that it lacks, has twice, or has of no run": (Counter(sides["taught"]) - all_kept).total()
        + (all_kept - Counter(sides["taught"])).total(),
        "held-out rows": len(sides["held_out"]),
        "versions in which a held-out row is gone or taught": sum(
            rows != sides["held_out"][: len(rows)] for rows in held_out
        )
        + len(set(sides["taught"]) & set(sides["held_out"])),
        "questions billed": sum(map(len, teacher.bills.values())),
        "questions charged": questions,
        "billed, and the answer lost": sum(map(len, lost.values())),
        "billed again": sum(again.values()),
        "billed again without a loss": sum(max(0, n - len(lost.get(text, ()))) for text, n in again.items()),
        "lost without having been cut off": sum(max(0, len(bills) - cut[text]) for text, bills in lost.items()),
        "lost for more than was reserved": sum(
            bill > most.get(text, 0) for text, bills in lost.items() for bill in bills
        ),
        "teacher's bill, nano-dollars": sum(map(sum, teacher.bills.values())),
        "ledger's charges, nano-dollars": charged,
        "billed for lost answers, nano-dollars": sum(map(sum, lost.values())),
        "ledger's reservations that stay, nano-dollars": held - charged,
        "reserved for what kills cut off, nano-dollars": sum(nano for _, nano in losses.cut.values()),
    }


def check(found: dict[str, Any]) -> None:
    """AssertionError where the account does not come out even."""
    assert found["states"] == {"done": found["ticks"]}, found
    assert found["runs"] == found["ticks"], found
    ends = ("kept", "filtered", "truncated", "refused", "failed")
    assert found["asked"] == sum(found[end] for end in ends), found
    assert all(found[end] for end in ends), found
    assert found["rows of the data set"] == found["kept"], found
    assert found["held-out rows"], found
    for nothing in (
        "kept rows that it lacks, has twice, or has of no run", "versions in which a held-out row is gone or taught",
        "billed again without a loss", "lost without having been cut off", "lost for more than was reserved",
    ):  # fmt: skip
        assert found[nothing] == 0, found
    lost, paid = found["billed, and the answer lost"], found["billed for lost answers, nano-dollars"]
    assert found["questions billed"] == found["questions charged"] + lost, found
    assert found["teacher's bill, nano-dollars"] == found["ledger's charges, nano-dollars"] + paid, found
    stays = found["ledger's reservations that stay, nano-dollars"]
    assert paid <= stays == found["reserved for what kills cut off, nano-dollars"], found
