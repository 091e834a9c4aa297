"""`make bench`: what logprobs cost. CPU on their way from the wire into the ledger, beside parsing alone; bytes a completion
token and tokens a second of a run's table.

Answers have 80 tokens with 20 alternatives each. Ids are drawn from 150,000, `natural` ones as a language uses its words,
`uniform` ones each as often as any other, which nothing can compress. Best of several rounds in turn, since machines are
busy; compare within one run.

    python -m tests.bench.logprobs
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq

from llm_distill.logprob_table import batches
from llm_distill.logprob_writer import parquet, writing
from llm_distill.logprobs import Logprobs
from llm_distill.models.wire import Body, completion
from tests.bench.fast_teacher import body

TOP = 20
TOKENS = 80
VOCABULARY = 150_000


def best(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """The least wall and CPU seconds of each piece of work, done in turn."""
    least = dict.fromkeys(work, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, do in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            do()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            least[name] = min(least[name][0], spent[0]), min(least[name][1], spent[1])
    return least


def _each(stage: Callable[[bytes], object], bodies: Sequence[bytes]) -> None:
    for whole in bodies:
        stage(whole)


def wire(rounds: int = 15) -> None:
    """CPU seconds of 1,000 answers: parsed only; in columns; packed for the ledger."""
    bodies = [b"00000000".join(body(variant, TOP)) for variant in range(64)]
    parse = msgspec.json.Decoder(Body).decode

    def columns(whole: bytes) -> Logprobs:
        logprobs = completion(whole).logprobs
        assert logprobs
        return logprobs

    stages: dict[str, Callable[[bytes], object]] = {
        "parsed": parse,
        "in columns": columns,
        "packed": lambda whole: columns(whole).pack(),
    }
    work = {name: partial(_each, stage, bodies) for name, stage in stages.items()}
    spent = {name: 1000 * cpu / len(bodies) for name, (_, cpu) in best(work, rounds).items()}
    packed = np.mean([len(columns(whole).pack()) for whole in bodies])
    said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in spent.items())
    print(f"wire      CPU of 1,000 answers: {said}, {packed / TOKENS:.0f} bytes a token", flush=True)


def completions(rows: int, *, uniform: bool) -> list[Logprobs]:
    """Completions by id, most of their tokens the first of their alternatives."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        shape = (TOKENS, TOP)
        ids = rng.integers(0, VOCABULARY, shape) if uniform else np.minimum(rng.zipf(1.25, shape), VOCABULARY - 1)
        fall = np.cumsum(rng.exponential(0.66, shape), axis=1)
        top = -rng.exponential(0.4, (TOKENS, 1)) - np.hstack([np.zeros((TOKENS, 1)), fall[:, :-1]])
        odds = np.exp(top) / np.exp(top).sum(axis=1, keepdims=True)
        pick = (rng.random((TOKENS, 1)) > odds.cumsum(axis=1)).sum(axis=1).clip(0, TOP - 1)
        every = np.arange(TOKENS)
        made.append(Logprobs.of_ids(ids[every, pick], top[every, pick], ids, top, lambda _: b""))
    return made


def as_strings(rows: Sequence[Logprobs]) -> list[Logprobs]:
    """The same from an endpoint that gives no ids: a string for each."""
    words = [f" w{number:x}".encode() for number in range(VOCABULARY)]
    made = []
    for row in rows:
        assert row.ids is not None
        assert row.top_ids is not None
        tops = [[words[number] for number in top] for top in row.top_ids.tolist()]
        made.append(Logprobs.of_tokens([words[n] for n in row.ids.tolist()], row.logprobs, tops, row.top_logprobs))
    return made


def table(name: str, rows: Sequence[Logprobs], rounds: int = 5) -> None:
    """One kind of ids: size, and tokens a second written from arrays, made from the ledger's bytes, and read."""
    packed, tokens = [row.pack() for row in rows], len(rows) * TOKENS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logprobs.parquet"

        def make() -> None:
            with writing(path) as add:
                for i, one in enumerate(packed):
                    add(f"{i:032x}", f"{i:032x}", "model", one, None)

        def read() -> list[np.ndarray]:
            return [batch.ids for batch in batches(path)]

        make()
        arrays = pq.read_table(path)

        def write() -> None:
            with ExitStack() as files:
                parquet(files, Path(folder) / "again.parquet").write_table(arrays, row_group_size=len(rows) // 8)

        spent = best({"written": write, "read": read, "made from the ledger": make}, rounds)
        size = path.stat().st_size / tokens
    said = ", ".join(f"{what} {tokens / w / 1e6:.2f} ({tokens / c / 1e6:.2f})" for what, (w, c) in spent.items())
    print(f"{name:9} {size:.1f} bytes a token; million tokens a second (of CPU): {said}", flush=True)


def main() -> None:
    """All of it."""
    wire()
    natural = completions(6000, uniform=False)
    table("natural", natural)
    table("uniform", completions(6000, uniform=True))
    table("strings", as_strings(natural))


if __name__ == "__main__":
    main()
