"""`make bench`: rows a second of the cheap filters, and what near duplicates are found, beside the usual library's.

Each measurement runs in a process of its own. Speeds are by the clock and by CPU time, since other work may share the cores;
compare within one run, this is no timed test. Memory is what the process grew by while it worked, and that beside the bytes
of the rows' MinHash signatures alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_distill.plugs import Reading, Spec
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.scorers import SCORERS, Context, bind_filters
from llm_distill.tasks import Task
from tests.bench.planted import copies_found, edited, planted, real_sentences

ROWS, THRESHOLD, PERMUTATIONS = 100_000, 0.7, 128
#: The row-local scorers of text, as a recipe with all of them would have it.
CHEAP = [
    Spec("empty"),
    Spec("length", {"min": 1, "unit": "words"}),
    Spec("truncated"),
    Spec("exact_duplicate"),
    Spec("refusal"),
    Spec("identity"),
    Spec("language", {"only": ["en"]}),
    Spec("repetition"),
    Spec("repetition", {"by": "compression"}),
    Spec("format", {"max_lines": 40}),
]
READING = Reading(folder=Path(), files=set(), roles=())
CONTEXT = Context(Task(kind="generate"))


def answers(texts: Sequence[str]) -> list[Answer]:
    """Rows whose prompt and answer are the text."""
    return [Answer(make_prompt((Message("user", text),)), text, "ok") for text in texts]


def _rss_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 2**20)


def measure(what: str, n: int, work: Callable[[], Any]) -> Any:
    """Print one line about some work on n rows; give what it gave."""
    before, start, cpu = _rss_mb(), time.perf_counter(), time.process_time()
    found = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{what:34} {n:7,} rows  {n / seconds:9,.0f} rows/s  {n / cpu:9,.0f} rows/s of CPU  RSS +{_rss_mb() - before:4.0f} MB",
        flush=True,
    )
    return found


def cheap(n: int) -> None:
    """Every cheap scorer over long rows, and all of them over both kinds as the filter stage runs them: slow ones in a
    process for each core.
    """
    from llm_distill.sieve import sieve

    texts, _ = planted(n)
    sentences = real_sentences()
    filters = [replace(filter_, min=None, max=None) for filter_ in bind_filters(CHEAP, SCORERS, READING)]
    for filter_ in filters:
        filter_.scores(answers(sentences[:100]), CONTEXT)  # loads what it loads
    rows = answers(texts)
    for filter_ in filters:
        measure(filter_.name, n, lambda filter_=filter_: filter_.scores(rows, CONTEXT))  # type: ignore[misc]
    for kind, found in (("75 words", rows), ("19 words", answers([sentences[i % len(sentences)] for i in range(n)]))):
        one = f"all {len(filters)}, {kind}"
        measure(one, n, lambda found=found: [filter_.scores(found, CONTEXT) for filter_ in filters])  # type: ignore[misc]
        several = f"{one}, {os.cpu_count()} cores"
        measure(several, n, lambda found=found: sieve(found, filters, {}, CONTEXT, {}))  # type: ignore[misc]


def near(n: int) -> None:
    """The scorer over planted copies, by the bound that they were planted for."""
    from llm_distill.near import near_pairs

    texts, origin = planted(n)
    rows = answers(texts)
    (filter_,) = bind_filters([Spec("near_duplicate", {"max": THRESHOLD})], SCORERS, READING)
    filter_.scores(rows[:100], CONTEXT)
    scores, said = measure("near_duplicate", n, lambda: filter_.scores(rows, CONTEXT))
    print(f"{'':34} signatures alone {n * PERMUTATIONS * 4 / 2**20:.0f} MB (128 values of 32 bits a row)")
    by_id = {row.prompt.row_id: place for place, row in enumerate(rows)}
    pairs = [(i, by_id[w.rpartition(" ")[2]]) for i, w in enumerate(said.why) if w and scores[i] > THRESHOLD]
    _report("near_duplicate", copies_found(origin, pairs))
    _report("near_pairs", copies_found(origin, measure("near_pairs", n, lambda: list(near_pairs(texts, THRESHOLD)))))


def rensa(n: int) -> None:
    """The library as its own examples use it: word 3-grams, 16 bands, estimates only."""
    from rensa import RMinHash, RMinHashLSH

    texts, origin = planted(n)

    def work() -> list[tuple[int, int]]:
        index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16)
        kept: list[Any] = []
        pairs: list[tuple[int, int]] = []
        for row, text in enumerate(texts):
            sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
            sketch.update(_grams(text))
            pairs += [(row, key) for key in index.query(sketch) if sketch.jaccard(kept[key]) >= THRESHOLD]
            index.insert(row, sketch)
            kept.append(sketch)
        return pairs

    _report("rensa alone", copies_found(origin, measure("rensa alone", n, work)))


def datasketch(n: int) -> None:
    """The library most pipelines use, over a tenth of the rows."""
    if find_spec("datasketch") is None:
        print("datasketch                         not installed: pip install datasketch")
        return
    from datasketch import MinHash, MinHashLSH

    texts, origin = planted(n := n // 10)

    def work() -> Iterator[tuple[int, int]]:
        index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
        grams = ([gram.encode() for gram in _grams(text)] for text in texts)
        for row, sketch in enumerate(MinHash.generator(grams, num_perm=PERMUTATIONS)):
            for key in index.query(sketch):
                yield row, key
            index.insert(row, sketch, check_duplication=False)

    _report("datasketch", copies_found(origin, measure("datasketch", n, lambda: list(work()))))


def _grams(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def _report(who: str, found: tuple[float, float, int]) -> None:
    recall, precision, removed = found
    print(f"{'':34} {who}: recall {recall:.4f}  precision {precision:.4f}  removed {removed:,}", flush=True)


def real(_: int) -> None:
    """Real sentences with planted edits: every removed row's similarity with the row it resembles, by brute force."""
    from llm_distill.ngrams import hashed
    from llm_distill.scorers.duplicates import near_duplicate

    rng = random.Random(11)
    sentences = list(dict.fromkeys(text for text in real_sentences() if len(text.split()) >= 8))
    texts = sentences + [edited(rng, rng.choice(sentences), rng.randint(1, 3)) for _ in range(len(sentences) // 4)]
    rng.shuffle(texts)
    for bound, ngram in ((0.7, 3), (0.7, 2), (0.8, 1)):
        said = near_duplicate(answers(texts), replace(CONTEXT, max=bound), ngram=ngram)
        grams = hashed(texts, ngram)
        sets = [grams.of(row) for row in range(len(texts))]
        kept: list[int] = []
        right = removed = missed = 0
        for row, score in enumerate(said.values):
            best = max((len(sets[row] & sets[k]) / len(sets[row] | sets[k]) for k in kept), default=0.0)
            if score > bound:
                removed, right = removed + 1, right + (best > bound)
            else:
                missed += best > bound
                kept.append(row)
        print(
            f"real text, {ngram}-grams over {bound:<14} {len(texts):7,} rows  removed {removed}: precision "
            f"{right / max(1, removed):.4f}  recall {right / max(1, right + missed):.4f} (exact Jaccard of all pairs)",
            flush=True,
        )


CASES: dict[str, Callable[[int], None]] = {
    "near": near,
    "rensa": rensa,
    "datasketch": datasketch,
    "real": real,
    "cheap": cheap,
}


def main() -> None:
    """All cases, or one of them (`--one`)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=CASES)
    parser.add_argument("-n", type=int, default=ROWS)
    arguments = parser.parse_args()
    if arguments.one:
        CASES[arguments.one](arguments.n)
        return
    for case in CASES:
        subprocess.run([sys.executable, "-m", "tests.bench.filters", "--one", case, "-n", str(arguments.n)], check=True)
    print(json.dumps({"load": os.getloadavg()[0], "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
