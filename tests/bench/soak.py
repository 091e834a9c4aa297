"""`python -m tests.bench.soak`: hundreds of nights in a row, with kills, and an account of every row and every dollar.

A teacher on loopback answers, refuses, cuts answers short and fails for some rows; a generator writes new prompts each night.
Each tick is run in a process of its own, and some of these are killed (SIGKILL) at random moments, more than once; whoever comes
next goes on. A kill comes when no answer is on its way: the teacher holds its answers back for a moment before, as a provider
that is cut off in the middle may bill what nobody receives, which no client can undo. At the end, for all runs together:

    asked = kept + filtered + truncated + refused + failed
    what the ledger charged = what the teacher billed, to the nano-dollar
    no question was billed twice
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import sqlalchemy as sa

from llm_distill.ledger import Ledger
from llm_distill.ledger_tables import ACCOUNTS, REQUESTS
from llm_distill.recipe import load
from llm_distill.recipe_schedule import iso, moment
from llm_distill.schedule.book import TickBook
from llm_distill.schedule.night import run_tick
from tests.conftest import Desk, Unwatched
from tests.mock_api import MockApi, label_of, serving

FIRST = moment("2026-01-01T03:00:00Z")
DAY = 86_400
#: Dollars per million tokens: a token is a whole number of nano-dollars, so that sums of both sides are exact.
PRICES = {"prompt": 1.0, "completion": 2.0}
_NANO = (1000, 2000)
#: What a tick imports, so that each process need not read it anew.
_USED = [
    "tests.conftest", "llm_distill.pipeline", "llm_distill.report.build", "llm_distill.embeddings", "aiohttp", "uvloop",
    "matplotlib.figure", "matplotlib.backends.backend_svg", "scipy.stats", "pandas", "pyarrow.compute", "tokenizers",
    "pyarrow.pandas_compat", "safetensors.numpy", "tiktoken", "py3langid.langid", "pydantic.type_adapter",
]  # fmt: skip


@dataclass
class Teacher:
    """What the endpoint does, and its own account."""

    api: MockApi
    written: int = 0
    nano_usd: int = 0
    billed: Counter[str] = field(default_factory=Counter)
    open: bool = True

    def __post_init__(self) -> None:
        self.api.says, self.api.may_answer, self.api.serves_the_gone = self.says, lambda: self.open, False
        made = self.api._body

        def body(request: dict[str, Any], prompt: str, fault: str | None) -> dict[str, Any]:
            whole = made(request, prompt, fault)
            usage = whole["usage"]
            self.nano_usd += _NANO[0] * usage["prompt_tokens"] + _NANO[1] * usage["completion_tokens"]
            # A generator's question is another one in each night, whatever its words; its answers are numbered.
            self.billed[prompt if "ITEMS" not in prompt else f"{prompt} {self.written}"] += 1
            return whole

        self.api._body = body  # type: ignore[method-assign, assignment]

    def says(self, _request: dict[str, Any], prompt: str) -> str | None:
        if "ITEMS" in prompt:
            self.written += 1
            fresh = [f"Message {self.written}-{n} about a parcel that came late" for n in range(6)]
            for text in fresh:
                self._plan(text)
            return "\n".join(f"{n}. {text}" for n, text in enumerate(fresh, 1))
        return "dunno" if hash_of(prompt) % 17 == 0 else label_of(prompt)

    def _plan(self, prompt: str) -> None:
        """What goes wrong with a row: for a while, or for ever."""
        # No resets and no 5xx: after these a provider may have billed, and the ledger keeps the most that it can have been.
        lot = hash_of(prompt) % 20
        faults = {0: ["400"] * 10_000, 1: ["length"] * 10_000, 2: ["refusal"] * 10_000, 3: ["429"], 4: ["429:0", "429"]}
        if lot in faults:
            self.api.faults[prompt] = faults[lot]


def hash_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode(), 7)


def recipe(desk: Desk, teacher: Teacher, rows: int) -> Path:
    seeds = [f"row {i} is here" for i in range(rows)]
    for text in seeds:
        teacher._plan(text)
    desk.seeds([{"prompt": text} for text in seeds])
    (desk.folder / "leaf.md").write_text("ITEMS {{ count }} of {{ topic }}")
    tree = {
        "topic_tree": {"topics": ["parcels"], "depth": 0, "per_leaf": 6, "leaf_template": "leaf.md", "novelty": None}
    }
    knobs = {
        "model": "mock-large",
        "base_url": teacher.api.url,
        "api_key_env": None,
        "concurrency": 8,
        "prices_usd": PRICES,
    }
    return desk.recipe(
        "soak",
        schedule="0 3 * * *",
        models={"teacher": {"openai_api": knobs}},
        prompts=[{"seeds": {"file": "seeds.jsonl"}}, tree],
        answers={"max_tokens": 8, "max_failed": 0.5, "retries": 8},
        filter=["empty", "unparsed"],
    )


def _one(path: Path, tick: str, data: Path) -> None:
    found = run_tick(load(path), tick, data, Unwatched())
    if found["state"] not in ("done", "settled"):
        raise SystemExit(f"{tick}: {found}")


def soak(folder: Path, ticks: int, seed: int = 1, kill_share: float = 0.4, rows: int = 20) -> dict[str, Any]:
    """Run so many ticks, killing some; gives the account."""
    rng, desk, data = random.Random(seed), Desk(folder), folder / "data"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_USED)
    kills, usual_s = Counter[str](), 2.0
    with serving(latency_s=0.01) as api:
        teacher = Teacher(api)
        path = recipe(desk, teacher, rows)
        for number in range(ticks):
            tick, tries = iso(FIRST + number * DAY), 0
            while True:
                process, start = context.Process(target=_one, args=(path, tick, data)), time.monotonic()
                process.start()
                if tries < 4 and rng.random() < kill_share:
                    process.join(rng.uniform(0.0, usual_s))
                    teacher.open = False
                    _settled(data, teacher)
                    process.kill()
                    process.join()
                    teacher.open = True
                    if process.exitcode == -9:
                        tries += 1
                        kills[_reached(data, tick)] += 1
                        continue
                process.join()
                assert process.exitcode == 0, f"{tick}: exit {process.exitcode}"
                usual_s = 0.8 * usual_s + 0.2 * (time.monotonic() - start)
                break
    return account(data, teacher, ticks) | {"kills": kills.total(), "killed in": dict(kills)}


def _settled(data: Path, teacher: Teacher, within_s: float = 60.0) -> None:
    """Wait until all that was billed is on disk: a tenth of a second, on a machine that has time."""
    until = time.monotonic() + within_s
    while True:
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{data / 'ledger.sqlite'}?mode=ro", uri=True)) as db,
        ):
            (count,) = db.execute("SELECT count(*) FROM requests WHERE nano_usd > 0").fetchone()
            if count == teacher.billed.total():
                return
        if not teacher.billed:
            return
        assert time.monotonic() < until, "answers were billed that never reached the disk"
        time.sleep(0.05)


def _reached(data: Path, tick: str) -> str:
    """The stage that a killed run was in, by the stamps that it left."""
    import json

    for record in (data / "runs" / "soak").glob("*/run.json"):
        found = json.loads(record.read_text())
        if found.get("tick") == tick:
            return next(
                (name for name in ("prompts", "answers", "filter", "report") if not found["stages"].get(name)), "end"
            )
    return "start"


def account(data: Path, teacher: Teacher, ticks: int) -> dict[str, Any]:
    """What became of all rows of all runs, and of the money."""
    rows, ends = 0, Counter[str]()
    runs = sorted((data / "runs" / "soak").iterdir())
    for run in runs:
        asked = pq.read_table(run / "prompts.parquet", columns=["row_id"]).column("row_id").to_pylist()
        kept = pq.read_table(run / "kept.parquet", columns=["row_id"]).column("row_id").to_pylist()
        dropped = pq.read_table(run / "dropped.parquet", columns=["row_id", "dropped_by"]).to_pylist()
        assert sorted(asked) == sorted([*kept, *(row["row_id"] for row in dropped)]), run
        rows += len(asked)
        ends["kept"] += len(kept)
        own = ("truncated", "refused", "failed")
        for row in dropped:
            ends[row["dropped_by"] if row["dropped_by"] in own else "filtered"] += 1
    with closing(Ledger(data / "ledger.sqlite")) as ledger:
        states = Counter(row.state for row in TickBook(ledger).ticks("soak", most=100_000))
        with ledger._transaction(reading=True) as db:
            charged = db.scalar(sa.select(sa.func.sum(REQUESTS.c.nano_usd))) or 0
            questions = db.scalar(sa.select(sa.func.count()).where(REQUESTS.c.nano_usd > 0))
            held = db.scalar(sa.select(sa.func.sum(ACCOUNTS.c.nano_usd)).where(ACCOUNTS.c.name.like("soak/%"))) or 0
    return {
        "ticks": ticks,
        "runs": len(runs),
        "states": dict(states),
        "asked": rows,
        **{end: ends[end] for end in ("kept", "filtered", "truncated", "refused", "failed")},
        "questions billed": teacher.billed.total(),
        "questions charged": questions,
        "billed twice": sum(count > 1 for count in teacher.billed.values()),
        "teacher's bill, nano-dollars": teacher.nano_usd,
        "ledger's charges, nano-dollars": charged,
        "still reserved for what kills cut off, nano-dollars": held - charged,
    }


def check(found: dict[str, Any]) -> None:
    """AssertionError where the account does not come out even."""
    assert found["states"] == {"done": found["ticks"]}, found
    assert found["runs"] == found["ticks"], found
    ends = ("kept", "filtered", "truncated", "refused", "failed")
    assert found["asked"] == sum(found[end] for end in ends), found
    assert all(found[end] for end in ends), found
    assert found["billed twice"] == 0, found
    assert found["questions billed"] == found["questions charged"], found
    assert found["teacher's bill, nano-dollars"] == found["ledger's charges, nano-dollars"], found
    assert found["still reserved for what kills cut off, nano-dollars"] >= 0, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        found = soak(Path(folder), options.ticks, options.seed)
        for name, value in found.items():
            print(f"{name:<55} {value:>15,}" if isinstance(value, int) else f"{name:<55} {value}")
        print(f"{'seconds':<55} {time.monotonic() - start:>15,.0f}")
        check(found)
    print("even: every row is accounted for, every dollar is where it was billed, nothing was paid for twice")


if __name__ == "__main__":
    main()
