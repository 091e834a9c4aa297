"""What people decided about rows: kept beside the ledger, honoured by every run of the recipe, and held against the filters.

A decision is about a prompt with its answer, whatever run they come from, so it survives re-runs, other filters and other
seeds. `drop` takes a row out before any filter sees it; `keep` takes it past all of them.
"""

from __future__ import annotations

import fcntl
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.records import Answer, content_id
from llm_distill.sieve import Known, Sifted

#: Who dropped a row, in `dropped_by`, where a reviewer did.
REVIEW = "review"
_Z = 1.959964  # of a 95 % interval


class Decision(msgspec.Struct, frozen=True):
    """What a reviewer said of a prompt with its answer. `random`: the row was drawn by chance, so that rates may count it;
    `stands_for` so many rows of those that it was drawn from, whatever filters say of them since.
    """

    key: str
    decision: Literal["keep", "drop"]
    note: str = ""
    reviewer: str = ""
    random: bool = True
    stands_for: float | None = None


def key(answer: Answer) -> str:
    """What a decision is about: the messages and the answer's text."""
    return content_id([answer.prompt.messages, answer.text])


def place(folder: store.RunFolder) -> Path:
    """The file of a recipe's decisions: <workspace>/reviews/<recipe>.jsonl."""
    home = folder.path.resolve().parent
    return home.parent.parent / "reviews" / f"{home.name}.jsonl"


def decisions(folder: store.RunFolder) -> dict[str, Decision]:
    """The decisions of a run's recipe by key, the latest of each; UserError for a file that is none of ours."""
    path = place(folder)
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            decision = msgspec.json.decode(line, type=Decision)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UserError(f"{path}:{number}: not a decision: {error}. Mend the line, or remove it.") from None
        found[decision.key] = decision
    return found


def digest(folder: store.RunFolder) -> str:
    """Of what the decisions do to rows; notes and names change nothing."""
    return content_id(
        sorted((d.key, d.decision, d.stands_for if d.random else -1.0) for d in decisions(folder).values())
    )


def remember(folder: store.RunFolder, new: Sequence[Decision]) -> dict[str, int]:
    """Add decisions to the recipe's file; how many are new, changed, and as they were."""
    path = place(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two reviewers may hand in at once
        before = decisions(folder)
        fresh = [d for d in new if before.get(d.key) != d]
        earlier = path.read_bytes() if path.exists() else b""
        if earlier and not earlier.endswith(b"\n"):
            earlier += b"\n"
        with store.replacing(path) as temporary:
            temporary.write_bytes(earlier + b"".join(msgspec.json.encode(d) + b"\n" for d in fresh))
    added = sum(d.key not in before for d in fresh)
    return {"new": added, "changed": len(fresh) - added, "unchanged": len(new) - len(fresh)}


def said(answers: Sequence[Answer], folder: store.RunFolder) -> dict[str, Decision]:
    """The decisions on a run's rows, by row_id."""
    known = decisions(folder)
    return {a.prompt.row_id: d for a in answers if (d := known.get(key(a)))} if known else {}


def said_of(folder: store.RunFolder) -> dict[str, Decision]:
    """The decisions on the rows of a finished run, by row_id."""
    return said(store.read_answers(folder.file("answers.parquet")), folder)


def scores_of(answers: Sequence[Answer], sifted: Sifted) -> Known:
    """What a first sifting measured, for a second one."""
    found: dict[str, dict[tuple[str, tuple[str, ...]], tuple[float, str | None]]] = {}
    for name, scores in sifted.scores.items():
        why = sifted.why.get(name, {})
        rows = [(a.prompt.row_id, a.requests) for a in answers if a.prompt.row_id in scores]
        found[name] = {(row_id, requests): (scores[row_id], why.get(row_id)) for row_id, requests in rows}
    return found


def own_verdicts(folder: store.RunFolder) -> dict[str, str | None]:
    """For each row of a run that its filters judged: the filter that dropped it, or None, reviewers aside."""
    found: dict[str, str | None] = {}
    for table in ("kept", "dropped"):
        for row in store.read_table(folder.file(f"{table}.parquet")):
            if row.get("review"):
                found[row["row_id"]] = row["filtered_by"]
            elif table == "kept" or row.get(f"score.{row['dropped_by']}") is not None:
                found[row["row_id"]] = row.get("dropped_by")
    return found


def agreement(verdicts: Mapping[str, str | None], said: Mapping[str, Decision], order: Sequence[str]) -> dict[str, Any]:
    """How far filters and reviewers agree. Rates are [value, low, high] or None where they cannot be known.

    verdicts: row_id -> the filter that drops the row by itself, or None; order: the filters as they stand in the recipe.
    precision: the share of a filter's drops that reviewers would drop too. recall: of the rows that it saw and that
    reviewers would drop, the share that it dropped. Rows are sampled more densely where there are few, so those of each
    filter, and those kept, stand for those that they were drawn from (Hajek's estimator); Wilson's interval is then taken at
    the effective number of rows (Kish 1965). Only rows that were drawn by chance count.
    """
    rows = Counter(verdicts.values())
    fair = {row_id: d for row_id, d in said.items() if d.random and row_id in verdicts}
    seen = Counter(verdicts[row_id] for row_id in fair)
    bad = Counter(verdicts[row_id] for row_id, d in fair.items() if d.decision == "drop")

    def rate(among: Sequence[str | None], counts: Callable[[str], bool], hits: Callable[[str], bool]) -> Any:
        """Of the rows in the strata `among` that count, the share that hits, each judged row standing for many."""
        if any(rows[stratum] and not seen[stratum] for stratum in among):
            return None
        judged = [
            (d.stands_for or rows[verdicts[row_id]] / seen[verdicts[row_id]], hits(row_id))
            for row_id, d in fair.items()
            if verdicts[row_id] in among and counts(row_id)
        ]
        total, squares = sum(w for w, _ in judged), sum(w * w for w, _ in judged)
        return _wilson(sum(w for w, hit in judged if hit) / total, total**2 / squares) if judged else None

    def is_bad(row_id: str) -> bool:
        return fair[row_id].decision == "drop"

    def precision(of: Sequence[str | None]) -> Any:
        return rate(of, lambda _row: True, is_bad)

    def recall(of: Sequence[str], among: Sequence[str | None]) -> Any:
        return rate(among, is_bad, lambda row_id: verdicts[row_id] in of)

    filters = [
        {
            "filter": name, "dropped": rows[name], "reviewed": seen[name], "agreed": bad[name],
            "precision": precision([name]), "recall": recall([name], [*order[i:], None]),
        }
        for i, name in enumerate(order)
    ]  # fmt: skip
    return {
        "decided": len(said),
        "by_chance": len(fair),
        "filters": filters,
        "together": {"precision": precision(order), "recall": recall(order, [*order, None])},
        "kept": {
            "rows": rows[None], "reviewed": seen[None], "agreed": seen[None] - bad[None],
            "clean": rate([None], lambda _row: True, lambda row_id: not is_bad(row_id)),
        },
    }  # fmt: skip


def _wilson(share: float, n: float) -> list[float]:
    """[value, low, high]: Wilson's score interval (1927), for an n that need not be whole."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return [round(x, 4) for x in (share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))]


def agreement_lines(found: Mapping[str, Any]) -> list[str]:
    """The agreement as a table to read."""
    lines = [f"{'filter':<22}{'dropped':>9}{'judged':>8}  {'of its drops, right':<24}{'of bad rows it saw, dropped'}"]
    rows = [
        *((f["filter"], f"{f['dropped']:,}", f["reviewed"], f["precision"], f["recall"]) for f in found["filters"]),
        ("all together", "", "", found["together"]["precision"], found["together"]["recall"]),
    ]
    lines += [f"{name:<22}{n:>9}{judged:>8}  {_percent(p):<24}{_percent(r)}" for name, n, judged, p, r in rows]
    kept = found["kept"]
    return [*lines, f"of the {kept['rows']:,} rows kept, right: {_percent(kept['clean'])} ({kept['reviewed']} judged)"]


def _percent(of: Sequence[float] | None) -> str:
    return "not known yet" if of is None else f"{100 * of[0]:.0f} % ({100 * of[1]:.0f} to {100 * of[2]:.0f})"
