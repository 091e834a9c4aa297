"""`make bench`: rows a second and CPU of asking, beside the least that any client must do, in the same run.

The floor asks the same questions over aiohttp on the same event loop, parses with msgspec and appends each body to a file: no
slow start, no time-outs, no retries, no budget, no ledger, nothing to resume from. The clock stops when the last answer is on
disk; that each row has its own is proved after it. Compare ratios within one run; this is no timed test.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import aiohttp
import msgspec
import uvloop

from llm_distill.models.wire import Body
from llm_distill.models.wire_logprobs import Given
from llm_distill.records import Message, Request, Sampling

PORT = 8123
LATENCY_S = 0.25
_WHOSE = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def prompts(n: int) -> Iterator[str]:
    """n distinct questions of about sixty tokens."""
    for i in range(n):
        yield (
            f"Question {i}: explain in about sixty words how topic {i * 7919 % 10007} works for a reader aged {8 + i % 60}, "
            "name one common mistake, give one small worked example, and end with a single sentence of advice."
        )


async def floor(n: int, in_flight: int, top: int, out: Path) -> None:
    """The least: ask, parse, append."""
    decode = msgspec.json.Decoder(Body[Given]).decode
    extra = {"logprobs": True, "top_logprobs": top} if top else {}
    owed = prompts(n)
    with out.open("wb") as file:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                for prompt in owed:
                    payload = msgspec.json.encode({"messages": [{"role": "user", "content": prompt}], **extra})
                    url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
                    async with session.post(url, data=payload) as response:
                        whole = await response.read()
                    text = decode(whole).choices[0].message.content or ""
                    assert text.startswith(f"[{crc32(prompt.encode()):08x}]")
                    file.write(whole + b"\n")

            await asyncio.gather(*(work() for _ in range(in_flight)))


def ours(n: int, in_flight: int, top: int, folder: Path) -> Callable[[], None]:
    """The same through `ask`, with the ledger on disk; gives the proof."""
    from llm_distill.ask import ask
    from llm_distill.ledger import Ledger
    from llm_distill.models.openai_api import OpenAIModel

    model = OpenAIModel(model="fast", base_url=f"http://127.0.0.1:{PORT}/v1", api_key_env=None, concurrency=in_flight)
    sampling = Sampling(max_tokens=128, top_logprobs=top or None)

    def keyed() -> Iterator[tuple[str, Request]]:
        for prompt in prompts(n):
            request = Request((Message("user", prompt),), sampling)
            yield request.key(model.identity), request

    ledger = Ledger(folder / "ledger.sqlite")
    tally = ask(keyed(), model, ledger, run="bench", total=n)
    assert tally.answered == n

    def prove() -> None:
        entries = ledger.read((key for key, _ in keyed()), logprobs=bool(top))
        for prompt, entry in zip(prompts(n), entries, strict=True):
            assert entry
            assert entry.text.startswith(f"[{crc32(prompt.encode()):08x}]")
            assert bool(entry.logprobs) == bool(top)
        ledger.close()

    return prove


def measure(who: str, n: int, in_flight: int, top: int) -> None:
    """One client in a process of its own (`--one`), measured from outside."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.asking",
        "--one",
        who,
        "-n",
        str(n),
        "-c",
        str(in_flight),
        "-k",
        str(top),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    speed, bound = n / row["seconds"], in_flight / LATENCY_S
    print(
        f"{who:6} {n:7,} rows  in flight {in_flight:5}  top-{top:<3} {speed:6.0f} rows/s of {bound:5.0f} = {speed / bound:4.0%}"
        f"   CPU {1000 * row['cpu'] / n:5.2f} s per 1,000   RSS {row['rss_mb']:4.0f} MB",
        flush=True,
    )


def one(who: str, n: int, in_flight: int, top: int) -> None:
    """Run a client here and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        for module in ("llm_distill.ask", "llm_distill.ledger") if who == "ours" else ():
            importlib.import_module(module)  # as the floor's are, before the clock starts
        start, before = time.perf_counter(), _cpu_s()
        if who == "floor":
            uvloop.run(floor(n, in_flight, top, Path(folder) / "bodies.jsonl"))
            seconds, cpu = time.perf_counter() - start, _cpu_s() - before
        else:
            prove = ours(n, in_flight, top, Path(folder))
            seconds, cpu = time.perf_counter() - start, _cpu_s() - before
            prove()
        # At most: what a process that we start counts as its own begins with ours.
        rss = sum(resource.getrusage(whose).ru_maxrss for whose in _WHOSE)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rss_mb": rss / 1024}))


def _cpu_s() -> float:
    """CPU seconds until now, of this process and of those that it has ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _WHOSE))


def main() -> None:
    """All cases, floor and ours in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=["floor", "ours"])
    parser.add_argument("-n", type=int, default=5000)
    parser.add_argument("-c", type=int, default=256)
    parser.add_argument("-k", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.n, arguments.c, arguments.k)
    teacher = [sys.executable, "-m", "tests.bench.fast_teacher", "--port", str(PORT), "--latency", str(LATENCY_S)]
    with subprocess.Popen(teacher, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        server.stdout.readline()
        try:
            for in_flight, top, n in ((256, 0, 5000), (1024, 0, 20_000), (256, 20, 5000)):
                for who in ("floor", "ours"):
                    measure(who, n, in_flight, top)
            measure("ours", 100_000, 1024, 0)  # memory does not grow with the rows
        finally:
            server.terminate()
    return None


if __name__ == "__main__":
    main()
