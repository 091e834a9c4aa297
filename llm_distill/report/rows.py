"""The rows behind the numbers, to be searched on the page itself: held-out rows with each arm's answer, rows that were asked
with what became of them; of `llm-distill eval`, the rows with each model's answer.

They go into the page as a JSON data block, which no browser runs, and `rows.js` beside this module shows them, through
`textContent` alone. Where there are more than the page has room for, those with the least hashes of their ids are there: a draw
by chance, the same every time.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b, sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llm_distill import store
from llm_distill.evals.measures import bind_metrics, measures
from llm_distill.evals.metrics import agreement_scores, gold_scores
from llm_distill.plugs import Spec
from llm_distill.records import Answer, Message, Prompt
from llm_distill.report.words import human, visible

MOST = 2000  # rows of each table
ROOM = 3_400_000  # bytes of all of them: the page stays under 5 MB
LENGTHS = (4000, 1500, 600, 250, 120)  # characters of one text, the most that there is room for
VALUES = 60  # different values of a tag that can be chosen; of more, which are as good as ids, a search finds the rows
DEAR = ("code", "embedding")  # metrics that are not taken again for a page: they run programs or load weights


def browsed(
    folder: store.RunFolder, recipe: Mapping[str, Any], metric: str, arms: Mapping[str, Sequence[Answer]]
) -> dict[str, Any]:
    """The tables as the page's data block has them, `held_out` and `asked`, each left out where it has no row.

    metric: that of the verdict, by which an answer is right or wrong.
    """
    held_out, kept = store.read_prompts(folder.file("held_out.parquet")), folder.file("kept.parquet")
    tables = [store.read_table(folder.file(f"{name}.parquet")) for name in ("kept", "dropped")] if kept.exists() else []
    room = [MOST, 0] if len(tables) < 2 else _shared_room(*map(len, tables))
    asked = [
        row for table, most in zip(tables, room, strict=False) for row in _drawn(table, most, lambda r: r["row_id"])
    ]
    shown = _drawn(held_out, MOST, lambda prompt: prompt.row_id) if arms else []
    scores = _scores(recipe, metric, arms)
    counts = [f"{len(table):,} {name}" for table, name in zip(tables, ("kept", "dropped"), strict=False)]
    sizes = {"held_out": (len(held_out), ""), "asked": (sum(map(len, tables)), ", ".join(counts))}
    pair = [["student", human("student")], ["teacher", human("teacher").lower()]]
    return _fitted(shown, asked, sizes, arms, scores, metric) | {"pair": pair}


def of_models(
    rows: Sequence[Prompt],
    metric: str,
    arms: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Mapping[str, float]],
    pair: Sequence[str],
) -> dict[str, Any]:
    """The same of models that have no run: the rows with each model's answer. scores: by model and row. pair: the two models, or
    the one, whose verdicts lead.
    """
    shown = _drawn(rows, MOST, lambda prompt: prompt.row_id)
    data = _fitted(shown, [], {"held_out": (len(rows), "")}, arms, scores, metric)
    return data | {"pair": [[arm, human(arm)] for arm in pair], "alone": True}


def _fitted(
    shown: Sequence[Prompt],
    asked: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, tuple[int, str]],
    arms: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Mapping[str, float]],
    metric: str,
) -> dict[str, Any]:
    """The data block of rows, their texts cut to the room there is. sizes: of each table how many rows it has, and what of."""

    def cut(length: int, step: int = 1) -> dict[str, list[dict[str, Any]]]:
        return {
            "held_out": _held_out(shown[::step], arms, scores, length),
            "asked": [_asked(row, length) for row in asked[::step]],
        }

    # Every eighth row says about how long texts may be; what that misjudges costs rows, drawn by chance again.
    data = cut(next((n for n in LENGTHS[:-1] if 8 * _size(cut(n, 8)) < ROOM), LENGTHS[-1]))
    while (size := _size(data)) > ROOM:
        share = 0.95 * ROOM / size
        data = {name: _drawn(rows, int(share * len(rows)), lambda row: row["id"]) for name, rows in data.items()}
    return {
        "metric": human(metric),
        "graded": any(score not in (0.0, 1.0) for rows in scores.values() for score in rows.values()),
        "arms": [[arm, human(arm)] for arm in arms],
        "tables": {
            name: {"of": sizes[name][0], "said": sizes[name][1], "rows": rows} for name, rows in data.items() if rows
        },
    }


def block(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of it: `json` for the data block, `script` and the `hash` by which alone it may run."""
    if not data.get("tables"):
        return {}
    of = {name: (len(table["rows"]), table["of"], table["said"]) for name, table in data["tables"].items()}
    found = {"json": Markup(_json(data)), "script": Markup(_script()), "hash": _hash()}  # noqa: S704  escaped; ours
    return found | {"of": of, "alone": data.get("alone", False)}


def _json(data: Any) -> str:
    """JSON in which no `<`, `>`, `&` or line separator stands as itself: it can neither end its element nor begin another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _size(data: Any) -> int:
    return len(_json(data).encode())


@cache
def _script() -> str:
    return files("llm_distill.report").joinpath("rows.js").read_text(encoding="utf-8")


@cache
def _hash() -> str:
    return f"sha256-{b64encode(sha256(_script().encode()).digest()).decode()}"


def _shared_room(kept: int, dropped: int) -> list[int]:
    """Rows of each table: half of the room, and what the other leaves."""
    half = MOST // 2
    return [max(half, MOST - dropped), max(half, MOST - kept)]


def _drawn(rows: Sequence[Any], most: int, row_id: Any) -> list[Any]:
    if len(rows) <= most:
        return list(rows)
    ranks = [blake2b(f"page:{row_id(row)}".encode(), digest_size=8).digest() for row in rows]
    last = sorted(ranks)[most - 1]
    return [row for row, rank in zip(rows, ranks, strict=True) if rank <= last][:most]


def _scores(
    recipe: Mapping[str, Any], metric: str, arms: Mapping[str, Sequence[Answer]]
) -> dict[str, Mapping[str, float]]:
    """Per arm the scores of its rows; none where the metric is too dear to be taken again."""
    task, how = Spec.read(recipe.get("task", "generate"), "task"), recipe.get("evaluate") or {}
    named = {Spec.read(of, "").name: of for of in how.get("metrics") or []}
    if metric in named and metric not in DEAR and ":" not in metric:
        schema = (recipe.get("answers") or {}).get("schema")
        schema = schema if isinstance(schema, str) else None
        reading: Any = {"folder": Path(), "files": set(), "roles": []}
        if metric != "schema_valid":  # a schema may be a file that is gone
            of = measures(bind_metrics([named[metric]], None, task.name, schema, reading), schema)[metric]
            return {arm: of(answers)[0] for arm, answers in arms.items()}
    kind: Any = task.name
    found: dict[str, Mapping[str, float]] = {}
    for arm, answers in arms.items():
        if metric == "agreement_with_teacher":
            found[arm] = {} if arm == "teacher" else agreement_scores(answers, arms.get("teacher", ()), kind)
        else:
            found[arm] = gold_scores(answers, kind).get(metric, {})
    return found


def _held_out(
    prompts: Sequence[Prompt],
    arms: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Mapping[str, float]],
    length: int,
) -> list[dict[str, Any]]:
    answers = {arm: {a.prompt.row_id: a for a in of} for arm, of in arms.items()}
    rows = []
    for prompt in prompts:
        said = {}
        for arm, of in answers.items():
            if answer := of.get(prompt.row_id):
                said[arm] = _answer(answer.text, answer.prediction, answer.status, length)
                if (score := scores.get(arm, {}).get(prompt.row_id)) is not None:
                    said[arm]["score"] = round(score, 3)
        rows.append(
            _question(prompt.row_id, prompt.messages, prompt.tags, prompt.label, prompt.reference, length)
            | {"arms": said}
        )
    return rows


def _asked(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    turns = [Message(m["role"], m["content"]) for m in row["messages"]]
    scores = {k.partition(".")[2]: _score(v) for k, v in row.items() if k.startswith("score.") and v is not None}
    why = {k.partition(".")[2]: _clipped(v, 300) for k, v in row.items() if k.startswith("why.") and v}
    found = _question(row["row_id"], turns, dict(row["tags"]), row["label"], row["reference"], length)
    found["teacher"] = _answer(row["text"], row["prediction"], row["status"], length)
    more = {
        "dropped_by": row.get("dropped_by"), "why": why, "scores": scores, "review": row.get("review"),
        "reason": _clipped(row["reason"], 300) if row.get("reason") else None, "by": row.get("role"),
    }  # fmt: skip
    return found | {key: of for key, of in more.items() if of}


def _score(number: float) -> float | str:
    """JSON has neither NaN, which a row that could not be measured has, nor infinities."""
    return "not measured" if math.isnan(number) else round(number, 4) if math.isfinite(number) else str(number)


def _question(
    row_id: str, turns: Sequence[Any], tags: Mapping[str, str], label: str | None, reference: str | None, length: int
) -> dict[str, Any]:
    text = turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
    found: dict[str, Any] = {"id": row_id[:12], "text": _clipped(text, length)}
    if tags:
        found["tags"] = {_clipped(tag, 60): _clipped(of, 120) for tag, of in tags.items()}
    gold = label if label is not None else reference
    return found if gold is None else found | {"gold": _clipped(gold, length)}


def _answer(text: str | None, label: str | None, status: str, length: int) -> dict[str, Any]:
    found: dict[str, Any] = {} if label is None else {"label": _clipped(label, 120)}
    if text and text.strip() != label:
        found["text"] = _clipped(text, length)
    return found if status == "ok" else found | {"status": status}


def _clipped(text: object, length: int) -> str:
    whole = str(text)
    more = f"… ({len(whole) - length:,} more characters)" if len(whole) > length else ""
    return visible(whole[:length]) + more
