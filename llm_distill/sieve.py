"""The filters, one after the other, each on what the ones before it left: scores, what was dropped by whom, the funnel.

A row-local score belongs to its row alone. So a slow scorer of that kind is spread over processes, and its numbers are taken
over from an earlier run of the recipe where nothing that they depend on has changed: moving a bound costs nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_distill import __version__, store
from llm_distill.errors import UserError
from llm_distill.records import Answer, Prompt, content_id
from llm_distill.scorers import IN_PROCESSES, Context, Filter, Scored

if TYPE_CHECKING:
    from llm_distill.recipe import Plan

#: Rows that a row-local scorer is timed on, and that a process is handed at once.
_CHUNK = 2000
#: A scorer that would take longer than this is worth the start of other processes.
_PATIENCE_S = 10.0
#: Of each row its score, the scorer's words, and the prompt in place of its own; the latter two may be empty.
_Scores = tuple[np.ndarray, Sequence[str | None], Sequence[Prompt | None]]
#: A row's score and words, by the row's id and the answers it was made from.
Known = Mapping[str, Mapping[tuple[str, tuple[str, ...]], tuple[float, str | None]]]


@dataclass
class Sifted:
    """What the filters found. scores and why: filter -> row_id -> number, words; why has only filters that give words.

    prompts: row_id -> the prompt to train on in place of the row's own. dropped: row_id -> by whom. steps: for each filter
    the row_ids that it saw and those it dropped.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    why: dict[str, dict[str, str | None]] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    funnel: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, tuple[list[str], set[str]]] = field(default_factory=dict)


def sieve(
    answers: Sequence[Answer],
    filters: Sequence[Filter],
    dropped: Mapping[str, str],
    context: Context,
    known: Known,
    keep: Collection[str] = (),
) -> Sifted:
    """Pass answers through filters. `dropped` are out before the first of them, with the reason; none drops those of `keep`."""
    found = Sifted(dropped=dict(dropped))
    with ExitStack() as elsewhere:
        helpers = _Helpers(elsewhere)
        for filter_ in filters:
            left = [a for a in answers if a.prompt.row_id not in found.dropped]
            _pass(filter_, left, _scores(filter_, left, context, known.get(filter_.name, {}), helpers), keep, found)
    return found


def _pass(filter_: Filter, survivors: Sequence[Answer], scored: _Scores, keep: Collection[str], found: Sifted) -> None:
    """Note what one filter measured, and drop what it drops."""
    scores, why, prompts = scored
    ids = [a.prompt.row_id for a in survivors]
    stays = dict(zip(ids, filter_.keeps(scores).tolist(), strict=True))
    out = {row_id for row_id in ids if not stays[row_id] and row_id not in keep}
    found.scores[filter_.name] = dict(zip(ids, scores.tolist(), strict=True))
    if why:
        found.why[filter_.name] = dict(zip(ids, why, strict=True))
    found.prompts |= {row_id: p for row_id, p in zip(ids, prompts, strict=True) if p} if prompts else {}
    found.dropped |= dict.fromkeys((row_id for row_id in ids if row_id in out), filter_.name)
    found.steps[filter_.name] = (ids, out)
    found.funnel.append(
        {
            "name": filter_.name,
            "bounds": {"min": filter_.min, "max": filter_.max},
            "rows_in": len(survivors),
            "dropped": len(out),
            "rows_out": len(survivors) - len(out),
            "unmeasured": int(np.isnan(scores).sum()),
        }
    )


def _scores(
    filter_: Filter,
    answers: Sequence[Answer],
    context: Context,
    known: Mapping[Any, tuple[float, str | None]],
    helpers: _Helpers,
) -> _Scores:
    """(n,) float64, and the scorer's words and prompts."""
    if not filter_.row_local:
        scores, said = filter_.scores(answers, context)
        return scores, said.why, said.prompts
    if not known:
        return _spread(filter_, answers, context, helpers)
    places = [known.get((a.prompt.row_id, a.requests)) for a in answers]
    left = [answer for answer, place in zip(answers, places, strict=True) if place is None]
    new, said_now, own_now = _spread(filter_, left, context, helpers)
    nothing = [None] * len(left)
    fresh = iter(zip(new.tolist(), said_now or nothing, own_now or nothing, strict=True))
    each = [(*place, None) if place else next(fresh) for place in places]
    words, prompts = [why for _, why, _ in each], [prompt for *_, prompt in each]
    scores = np.array([score for score, *_ in each], np.float64)
    return scores, words if any(words) else (), prompts if any(prompts) else ()


class _Helpers:
    """Processes to score in, started when the first scorer turns out to be slow and gone when the filters are done."""

    def __init__(self, until: ExitStack) -> None:
        self._until = until
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        """Started afresh, not forked: a copy of a program with threads may stand still."""
        return self._until.enter_context(ProcessPoolExecutor(self.cores, mp_context=get_context("spawn")))


def _spread(filter_: Filter, answers: Sequence[Answer], context: Context, helpers: _Helpers) -> _Scores:
    """Row-local scores: the first rows here, the rest in as many processes as there are cores if that would take long."""
    if not _can_travel(filter_):
        return _joined([filter_.scores(answers, context)], len(answers))
    context = Context(context.task, seed=context.seed)  # here as elsewhere, or the clock would decide what is seen
    start = time.perf_counter()
    parts = [filter_.scores(answers[:_CHUNK], context)]
    rest = answers[_CHUNK:]
    chunks = [rest[i : i + _CHUNK] for i in range(0, len(rest), _CHUNK)]
    slow = (time.perf_counter() - start) * len(chunks) > _PATIENCE_S
    if slow and helpers.cores > 1:
        parts += helpers.pool.map(_elsewhere, [filter_] * len(chunks), chunks, [context] * len(chunks))
    else:
        parts += [filter_.scores(chunk, context) for chunk in chunks]
    return _joined(parts, len(answers))


def _can_travel(filter_: Filter) -> bool:
    """Whether other processes can score: not with a model, whose weights or connections are here."""
    return not filter_.plug.roles and filter_.plug.spec.name not in IN_PROCESSES


def _elsewhere(filter_: Filter, answers: Sequence[Answer], context: Context) -> tuple[np.ndarray, Scored]:
    return filter_.scores(answers, context)


def _joined(parts: Sequence[tuple[np.ndarray, Scored]], rows: int) -> _Scores:
    """The columns of all parts, one after another; words and prompts where some part has them."""
    scores = np.concatenate([values for values, _ in parts])
    assert len(scores) == rows
    words = [why for values, said in parts for why in said.why or [None] * len(values)]
    prompts = [prompt for values, said in parts for prompt in said.prompts or [None] * len(values)]
    return scores, words if any(words) else (), prompts if any(prompts) else ()


def scorer_identity(filter_: Filter, plan: Plan) -> str:
    """All that a row-local score depends on besides the row's questions: the scorer's words, those that say what is read of
    the answers and what stands beside them, files, the models it uses.
    """
    words = plan.slice(["seed", "task", "prompts", "mix", "teachers", "answers"], filter_.plug.roles)
    if filter_.plug.knobs.get("do") == "redact_prompt":  # its prompts are in no table, so it measures anew
        return ""
    return content_id([__version__, filter_.plug.spec.name, filter_.plug.spec.knobs, words, plan.sources])


def earlier_scores(folder: store.RunFolder, identities: Mapping[str, str]) -> Known:
    """The scores that this folder or another run of the recipe has for these scorers, by filter."""
    wanted = {identity: name for name, identity in identities.items() if identity}
    found: dict[str, dict[tuple[str, tuple[str, ...]], tuple[float, str | None]]] = {name: {} for name in identities}
    for place in (folder, *folder.siblings()):
        for table in ("kept.parquet", "dropped.parquet"):
            with suppress(UserError, OSError):  # a torn one, which its own stage will say
                _read_scores(place.file(table), wanted, found)
    return found


def _read_scores(path: Path, wanted: Mapping[str, str], found: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {error}") from None
    columns = {}
    for column in schema:
        scorer = (column.metadata or {}).get(b"scorer", b"").decode()
        if scorer in wanted:
            columns[column.name] = wanted[scorer]
    if not columns:
        return
    words = {f"why.{name.removeprefix('score.')}": name for name in columns}
    read = ["row_id", "requests", *columns, *(why for why in words if why in schema.names)]
    for row in store.read_table(path, read):
        for column, name in columns.items():
            if row[column] is not None and not math.isnan(row[column]):  # what was not measured is tried again
                why = row.get(f"why.{column.removeprefix('score.')}")
                found[name].setdefault((row["row_id"], tuple(row["requests"])), (row[column], why))
