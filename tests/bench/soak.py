"""`python -m tests.bench.soak`: hundreds of nights in a row, with kills, and an account of every row and every dollar.

A teacher on loopback answers, refuses, cuts answers short and fails for some rows; a generator writes new prompts each night,
and each night adds to one data set what is new. Each tick goes through the door that a scheduler uses (`run_due`, what
`llm-distill jobs run` calls), at the tick's own time, in a process of its own; some of these are killed (SIGKILL), more than
once, and whoever comes next goes on. There are two kinds of kills: at any moment, and between the bill and the disk, for which
the teacher bills an answer and holds it back until the process is gone. Such a question is paid for and its answer is lost,
which no client can undo; the ledger keeps the reservation of whatever was in flight, as it may be billed. At the end, for all
runs together:

    asked = kept + filtered + truncated + refused + failed
    what the ledger charged + what was billed for lost answers = what the teacher billed, to the nano-dollar
    what the ledger still reserves = the reservations of the questions that kills cut off, to the nano-dollar
    no question was billed again but those whose answer was lost, each once for each loss
    the data set has each kept row once, and no held-out row ever changed its side
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llm_distill.recipe import load
from llm_distill.recipe_schedule import iso, moment
from llm_distill.schedule.night import run_due
from tests.bench.soak_account import PRICES, Losses, Teacher, account, check
from tests.conftest import Desk, Unwatched
from tests.mock_api import serving

FIRST = moment("2026-01-01T03:00:00Z")
DAY = 86_400
#: What a tick imports, so that each process need not read it anew.
_USED = [
    "tests.conftest", "llm_distill.pipeline", "llm_distill.report.build", "llm_distill.embeddings", "aiohttp", "uvloop",
    "matplotlib.figure", "matplotlib.backends.backend_svg", "scipy.stats", "pandas", "pyarrow.compute", "tokenizers",
    "pyarrow.pandas_compat", "llm_distill.sets.adding", "safetensors.numpy", "tiktoken",
    "py3langid.langid", "pydantic.type_adapter",
]  # fmt: skip


def recipe(desk: Desk, teacher: Teacher, rows: int) -> Path:
    seeds = [f"row {i} is here" for i in range(rows)]
    for text in seeds:
        teacher.plan(text)
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
        held_out={"share": 0.1},
        data_set="nights",
    )


def _one(path: Path, now: int, data: Path) -> None:
    """What a scheduler does that looks at a moment."""
    for found in run_due(load(path), data, Unwatched(), clock=lambda: now):
        if found["state"] != "done":
            raise SystemExit(f"{found}")


def soak(folder: Path, ticks: int, seed: int = 1, kill_share: float = 0.4, rows: int = 20) -> dict[str, Any]:
    """Run so many ticks, killing some; gives the account."""
    rng, desk, data = random.Random(seed), Desk(folder), folder / "data"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_USED)
    kinds, kills, usual_s, losses = Counter[str](), Counter[str](), 2.0, Losses()
    with serving(latency_s=0.01) as api:
        teacher = Teacher(api)
        path = recipe(desk, teacher, rows)
        for number in range(ticks):
            due, tries = FIRST + number * DAY, 0
            while True:
                process, start = context.Process(target=_one, args=(path, due + 5, data)), time.monotonic()
                kind = (
                    rng.choice(["any moment", "billed, not on disk"]) if tries < 4 and rng.random() < kill_share else ""
                )
                if kind == "billed, not on disk":
                    teacher.deliveries = rng.randrange(6)
                process.start()
                if kind == "any moment":
                    process.join(rng.uniform(0.0, usual_s))
                while kind == "billed, not on disk" and not api.holding and process.is_alive():
                    process.join(0.01)
                if kind:
                    process.kill()
                process.join()
                teacher.rest()
                if process.exitcode == -9:
                    tries += 1
                    losses.look(path, data / "ledger.sqlite", teacher)
                    kinds[kind] += 1
                    kills[_reached(data, iso(due))] += 1
                    continue
                assert process.exitcode == 0, f"{iso(due)}: exit {process.exitcode}"
                if not kind:
                    usual_s = 0.8 * usual_s + 0.2 * (time.monotonic() - start)
                break
    found = account(data, teacher, losses, ticks)
    return found | {"kills": kills.total(), "killed at": dict(kinds), "killed in": dict(kills)}


def _reached(data: Path, tick: str) -> str:
    """The stage that a killed run was in, by the stamps that it left."""
    for record in (data / "runs" / "soak").glob("*/run.json"):
        found = json.loads(record.read_text())
        if found.get("tick") == tick:
            return next(
                (
                    name
                    for name in ("prompts", "answers", "filter", "data_set", "report")
                    if not found["stages"].get(name)
                ),
                "end",
            )
    return "start"


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
    print("even: every row and dollar is accounted for, and nothing was paid for twice but what was lost on its way")


if __name__ == "__main__":
    main()
