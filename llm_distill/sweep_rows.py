"""The rows that decide a sweep, and those its trials learn from: never the held-out ones, and nothing on both sides.

They are a share of the kept rows, on which a student should agree with its teacher, or a labelled file. Rows that belong
together (a counterfactual group, a row and what was made of it, near duplicates) are on one side, as with held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.gold import check_labels
from llm_distill.evals.metrics import AGREEMENT, PRIMARY, agreement_scores, gold_scores
from llm_distill.evals.statistics import FEWEST
from llm_distill.mixing import unit
from llm_distill.near import joined, near_index, near_pairs
from llm_distill.recipe import Plan
from llm_distill.records import Answer, Prompt, content_id
from llm_distill.seeds import numbered, read_rows

#: How near rows may be where the recipe holds none out by itself.
NEAR = 0.7


@dataclass(frozen=True)
class Dev:
    """The rows that decide: as prompts, with the teacher's answers where it has been asked.

    withheld: of the kept rows, those that no trial learns from; learnt: how many it does. aside: withheld ones that do not
    decide either, being near to rows of a file.
    """

    metric: str
    prompts: Sequence[Prompt]
    taught: Sequence[Answer]
    withheld: frozenset[str]
    learnt: int
    aside: int = 0

    @property
    def digest(self) -> str:
        """Of all that decides a score."""
        said = [(a.prediction, a.text, a.status) for a in self.taught]
        return content_id([self.metric, self.prompts, said])

    def scores(self, answers: Sequence[Answer], kind: Any) -> dict[str, dict[str, float]]:
        """A student's score on each row, under the name of its metric."""
        gold = {PRIMARY[kind]: dict[str, float](), AGREEMENT: dict[str, float]()}
        if self.metric == AGREEMENT:
            return gold | {AGREEMENT: agreement_scores(answers, self.taught, kind)}
        return gold | {self.metric: gold_scores(answers, kind)[self.metric]}


def given(plan: Plan, held_out: Sequence[Prompt]) -> list[Prompt]:
    """The rows of a sweep's own file, if it has one; UserError where the trials would be judged by what must stay unseen."""
    assert plan.sweep is not None
    if plan.sweep.dev.file is None:
        return []
    file, kind = plan.sweep.dev.file, plan.task.kind
    rows = list(numbered(read_rows(file)))
    if plan.sweep.metric == AGREEMENT:
        raise UserError(
            f"sweep.metric: no teacher has answered the rows of {file}; judge them by {PRIMARY[kind]}, or set "
            "`dev: {share: 0.2}`."
        )
    wanted = "label" if kind == "classify" else "reference"
    if bare := [row for row in rows if _gold(row, kind) is None]:
        raise UserError(
            f"sweep.dev.file: {len(bare)} rows of {file} have no `{wanted}`, the first: {bare[0].text[:80]!r}."
        )
    if kind == "classify":
        check_labels(rows, plan.task.labels)
    gists = {row.gist for row in held_out}
    near = _near_to(held_out, plan)
    if both := [row for row in rows if row.gist in gists or near(row)]:
        raise UserError(
            f"sweep.dev.file: {len(both)} of {len(rows)} rows of {file} are also held out or nearly equal held-out rows, the "
            f"first: {both[0].text[:80]!r}. Settings picked on them would be picked on the evaluation; remove them."
        )
    _check_calibration(plan, rows, f"rows of {file}")
    return rows


def _check_calibration(plan: Plan, rows: Sequence[Prompt], what: str) -> None:
    """UserError where the rows that decide have calibrated what trials learn: they would favour those that learn most of it."""
    how = plan.calibrating
    if how is None or how.calibrate_on is None:
        return
    known = list(read_rows(how.calibrate_on))
    gists, near = {row.gist for row in known}, _near_to(known, plan)
    if both := [row for row in rows if row.gist in gists or near(row)]:
        raise UserError(
            f"sweep.dev: {len(both)} of {len(rows)} {what} equal or nearly equal rows of train.calibrate_on "
            f"({how.calibrate_on}), the first: {both[0].text[:80]!r}. What the teacher's probabilities are calibrated on "
            "cannot judge who learnt them; remove them from one side."
        )


def part(plan: Plan, kept: Sequence[Answer], file: Sequence[Prompt]) -> Dev:
    """The two sides of the kept rows, or those of a file with the kept rows that are not near them."""
    assert plan.sweep is not None
    kind, sweep = plan.task.kind, plan.sweep
    if file:
        gists = {row.gist for row in file}
        near = _near_to(file, plan)
        out = frozenset(a.prompt.row_id for a in kept if a.prompt.gist in gists or near(a.prompt))
        found = Dev(PRIMARY[kind], file, (), out, len(kept) - len(out), len(out))
    else:
        metric = sweep.metric or AGREEMENT
        fit = [a for a in kept if metric == AGREEMENT or _gold(a.prompt, kind) is not None]
        if not fit:
            raise UserError(
                f"sweep.metric: no kept row has gold to measure {metric} by; leave it out, or name a `dev.file`."
            )
        decide = _share([a.prompt for a in kept], {a.prompt.row_id for a in fit}, sweep.dev.share, plan)
        taught = [a for a in fit if a.prompt.row_id in decide]
        _check_calibration(plan, [a.prompt for a in taught], "of the kept rows that decide")
        found = Dev(metric, [a.prompt for a in taught], taught, decide, len(kept) - len(decide))
    if len(found.prompts) < FEWEST or not found.learnt:
        raise UserError(
            f"sweep.dev: {len(found.prompts)} rows to decide and {found.learnt} to learn from, of {len(kept)} kept ones; "
            f"fewer than {FEWEST} can decide nothing, and rows that nearly equal each other stay together. Make more rows, set "
            "another share, or name a file."
        )
    return found


def _share(rows: Sequence[Prompt], fit: set[str], share: float, plan: Plan) -> frozenset[str]:
    """Whole clusters of rows in the order of a hash, until a share of all rows is reached; `fit` can be scored."""
    members: dict[str, list[str]] = {}
    for row, cluster in zip(rows, _clusters(rows, plan), strict=True):
        members.setdefault(cluster, []).append(row.row_id)
    chosen: set[str] = set()
    room = max(share * len(rows), FEWEST)
    for cluster in sorted(members, key=lambda cluster: content_id(["sweep", plan.seed, cluster])):
        ids = members[cluster]
        if len(chosen) + len(ids) <= room and fit & set(ids):
            chosen |= set(ids)
    return frozenset(chosen)


def _clusters(rows: Sequence[Prompt], plan: Plan) -> list[str]:
    """Of each row a name that it shares with all rows that it belongs to."""
    pairs = [(row.row_id, unit(row)) for row in rows]
    pairs += [(row.row_id, row.tags["parent"]) for row in rows if "parent" in row.tags]
    if (threshold := _threshold(plan)) is not None:
        near = near_pairs([row.text for row in rows], threshold)
        pairs += [(rows[later].row_id, rows[earlier].row_id) for later, earlier in near]
    of = joined(pairs)
    return [of[row.row_id] for row in rows]


def _threshold(plan: Plan) -> float | None:
    return plan.held_out.near if plan.held_out else NEAR


def _near_to(rows: Sequence[Prompt], plan: Plan) -> Callable[[Prompt], bool]:
    threshold = _threshold(plan)
    if threshold is None:
        return lambda _row: False
    index = near_index([row.text for row in rows], threshold)
    return lambda row: bool(index.near(row.text))


def _gold(row: Prompt, kind: Any) -> str | None:
    return row.label if kind == "classify" else row.reference


def write_without(source: Path, target: Path, ids: Collection[str]) -> None:
    """A table without some rows, in its order, with its columns and what is noted of them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    gone = pa.array(sorted(ids), pa.string())
    with (
        pq.ParquetFile(source) as file,
        store.replacing(target) as temporary,
        pq.ParquetWriter(temporary, file.schema_arrow, compression="zstd") as writer,
    ):
        for group in file.iter_batches(2000):
            writer.write_batch(group.filter(pc.invert(pc.is_in(group["row_id"], gone))))
