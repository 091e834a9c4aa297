"""Rows for people to judge, as a sheet that goes out and comes back: CSV for spreadsheets, or JSONL.

What models wrote is untrusted: a cell that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, CSV
injection), which is taken off again from what comes back.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from llm_distill import review, store
from llm_distill.errors import UserError
from llm_distill.records import content_id
from llm_distill.report.words import visible
from llm_distill.tables import look
from llm_distill.text_files import UTF8, lines

By = Literal["kept", "dropped", "both"]
#: What a reviewer fills in.
_ANSWERS = ("decision", "note", "reviewer")
_FIRST = ("id", *_ANSWERS, "drawn", "stands_for", "dropped_by", "prompt", "answer", "prediction", "row_id")
#: How a row came onto its sheet: by chance, so that it may stand for others, or by a query.
_DRAW = ("drawn", "stands_for", "dropped_by")
_BY_CHANCE, _BY_QUERY = "by chance", "by a query"
#: A spreadsheet's cell holds 32,767 characters.
_LONGEST = 32_000
_ROWS = re.compile(r"(\d{1,12}(?:\.\d+)?(?:e\+?\d+)?) rows")
_FORMULA = "=+\\-@\t\r\n＝＋－＠"  # noqa: RUF001  spreadsheets take the full-width signs too
_BEGINS = re.compile(f"'*[{_FORMULA}]")
#: Where a spreadsheet that splits at another mark would see a cell begin. A list's "- item" is left alone.
_WITHIN = re.compile(r"([;,\t\n][ \"']*)(?=[=+@＝＋＠]|[-－]\S)")  # noqa: RUF001


def escaped(cell: str) -> str:
    """The cell as text that no spreadsheet takes for a formula."""
    return f"'{cell}" if _BEGINS.match(cell) else cell


def unescaped(cell: str) -> str:
    """What was escaped."""
    return cell[1:] if cell.startswith("'") and _BEGINS.match(cell) else cell


def draw(folder: store.RunFolder, rows: int, by: By, where: str | None) -> list[dict[str, Any]]:
    """The rows of a sheet: kept ones and those of each filter, as equally as there are enough; none that is decided already.

    Picked by a hash, so that the same run gives the same sheet; the order tells nothing of who kept or dropped a row.
    """
    if not folder.file("kept.parquet").exists():
        raise UserError(f"{folder.path} has no kept.parquet yet; run the recipe as far as its filter stage first.")
    keys = {a.prompt.row_id: review.key(a) for a in store.read_answers(folder.file("answers.parquet"))}
    decided, seed = review.decisions(folder), folder.record.get("seed", 0)
    strata: dict[str, dict[str, dict[str, Any]]] = {}
    for table in ("kept", "dropped") if by == "both" else (by,):
        for row in look(folder, table, where):
            found, name = keys.get(row["row_id"]), row.get("dropped_by") or ""
            # What a stage drops by itself has nothing to learn from, so nobody can keep it.
            judged = table == "kept" or row.get(f"score.{name}") is not None
            if judged and found is not None and found not in decided:
                strata.setdefault(name, {}).setdefault(found, row)
    ranked = {
        name: sorted(of.items(), key=lambda item: content_id(["review", seed, item[0]])) for name, of in strata.items()
    }
    dropped = {name: len(of) for name, of in ranked.items() if name}
    sides = _fill({"kept": len(ranked.get("", ())), "dropped": sum(dropped.values())}, rows)
    counts = {"": sides["kept"], **_fill(dropped, sides["dropped"])}
    chosen = [
        (found, row, len(of) / counts[name]) for name, of in ranked.items() for found, row in of[: counts.get(name, 0)]
    ]
    drawn = _BY_CHANCE if where is None else _BY_QUERY
    return [_shown(found, row, drawn, many) for found, row, many in sorted(chosen, key=lambda one: one[0])]


def _fill(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` shared out equally, where one has too few the others take more."""
    counts = dict.fromkeys(sizes, 0)
    while (left := total - sum(counts.values())) > 0:
        open_ = [name for name in sizes if counts[name] < sizes[name]]
        if not open_:
            break
        for name in open_[:left]:
            counts[name] = min(sizes[name], counts[name] + max(1, left // len(open_)))
    return counts


def _shown(found: str, row: Mapping[str, Any], drawn: str, stands_for: float) -> dict[str, Any]:
    turns = row["messages"]
    alone = len(turns) == 1
    shown = {
        "id": f"row-{found}",  # never a number, which a spreadsheet would round
        **dict.fromkeys(_ANSWERS, ""),
        "drawn": drawn,
        "stands_for": f"{stands_for:.6g} rows",
        "dropped_by": row.get("dropped_by") or "",
        "prompt": turns[0]["content"] if alone else "\n\n".join(f"{m['role']}: {m['content']}" for m in turns),
        "answer": row["text"] or "",
        "prediction": row.get("prediction") or "",
        "row_id": f"row_id-{row['row_id']}",
    }
    return shown | {name: value for name, value in row.items() if name.startswith(("score.", "why.", "tags."))}


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A sheet. UserError for a suffix of neither kind, and for a file that is there: it may hold decisions."""
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {path}: a sheet is a .csv or a .jsonl file.")
    if path.exists():
        raise UserError(f"--out {path}: it is there already and may hold decisions; name another file.")
    if not rows:
        raise UserError("review: no row is left to judge: all are decided, or none fits the query.")
    if path.suffix == ".jsonl":
        text = "".join(msgspec.json.encode(row).decode() + "\n" for row in rows)
    else:
        columns = list(dict.fromkeys([*_FIRST, *(name for row in rows for name in row)]))
        sheet = io.StringIO()
        writer = csv.writer(sheet, quoting=csv.QUOTE_ALL)
        writer.writerow(map(escaped, columns))
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
        text = "\ufeff" + sheet.getvalue()  # the mark by which Excel knows UTF-8
    with store.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)  # a number of ours; -1 is one too
    text = visible(value)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST:,} more characters: `llm-distill show`)"
    return escaped(_WITHIN.sub(r"\1'", text))


def read(path: Path, folder: store.RunFolder) -> list[review.Decision]:
    """The decisions on a sheet. Rows without one are not decided yet; UserError, with the line, for all else that is not
    as it went out.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--read {path}: a sheet is a .csv or a .jsonl file.")
    known = {f"row-{review.key(a)}" for a in store.read_answers(folder.file("answers.parquet"))}
    found: dict[str, tuple[str, review.Decision]] = {}
    strata: dict[str, str] = {}  # of each row, by chance drawn, the filter that had dropped it
    for where, row in _csv(path) if path.suffix == ".csv" else _json(path):
        if missing := [name for name in ("id", "decision", *_DRAW) if name not in row]:
            raise UserError(f"{where}: no column {missing[0]!r}; a sheet keeps the columns it went out with.")
        named, decided, note, reviewer = (row.get(name, "").strip() for name in ("id", *_ANSWERS))
        if named not in known:
            raise UserError(
                f"{where}: no row {named[:60]!r} in {folder.path}; is this another run's sheet, or was the id edited?"
            )
        strata[named] = row["dropped_by"]
        if not decided:
            if note:
                raise UserError(f"{where}: a note and no decision; write keep or drop, or remove the note.")
            continue
        if decided.lower() not in ("keep", "drop"):
            raise UserError(f"{where}: decision {decided[:60]!r}; write keep or drop, or leave it empty.")
        if row["drawn"] not in (_BY_CHANCE, _BY_QUERY):
            raise UserError(
                f"{where}: drawn {row['drawn'][:60]!r} was {_BY_CHANCE!r} or {_BY_QUERY!r}; leave it as it was."
            )
        verdict: Any = decided.lower()
        stated = _ROWS.fullmatch(row["stands_for"])
        if stated is None:
            raise UserError(f"{where}: stands_for {row['stands_for'][:60]!r} was a number of rows; leave it as it was.")
        by_chance = row["drawn"] == _BY_CHANCE
        many = float(stated[1]) if by_chance else None
        decision = review.Decision(named.removeprefix("row-"), verdict, note, reviewer, by_chance, many)
        first = found.setdefault(named, (where, decision))
        if first[1].decision != decision.decision:
            raise UserError(
                f"{where}: {named} is decided twice, as {first[1].decision} in {first[0]}; keep one of the two."
            )
    if not found:
        raise UserError(f"{path}: no row has a decision; write keep or drop in the column `decision`.")
    # Rows that were left open: those of their stratum that were judged stand for them too.
    drawn, judged = Counter(strata.values()), Counter(strata[name] for name in found)
    share = {name: drawn[strata[name]] / judged[strata[name]] for name in found}
    return [replace(d, stands_for=d.stands_for * share[name]) if d.stands_for else d for name, (_, d) in found.items()]


def _csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A sheet's rows with their places. Spreadsheets of many languages write semicolons, some tabs."""
    csv.field_size_limit(1 << 24)
    head = next(lines(path, UTF8, newline=""), "")
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(lines(path, UTF8, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        begun = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{begun}: malformed row: {error}. Is a double quote left open?") from None
        if not any(row):
            continue  # spreadsheets leave empty rows at the end
        if not names:
            names = [unescaped(cell.strip()) for cell in row]
            if len(set(names)) < len(names):
                raise UserError(f"{path}:{begun}: a column stands twice; a sheet keeps the columns it went out with.")
            continue
        if len(row) != len(names):
            raise UserError(
                f"{path}:{begun}: {len(row)} cells, but the header has {len(names)}; was the sheet cut off?"
            )
        yield f"{path}:{begun}", {name: unescaped(cell) for name, cell in zip(names, row, strict=True)}


def _json(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UserError(f"{path}:{number}: malformed row: {error}. A row is one JSON object a line.") from None
        wanted = {name: row[name] for name in _FIRST if row.get(name) is not None}
        if odd := [name for name, value in wanted.items() if not isinstance(value, str)]:
            raise UserError(f"{path}:{number}: {odd[0]} is {wanted[odd[0]]!r}; write text.")
        yield (
            f"{path}:{number}",
            wanted | ({} if "decision" in wanted else {"decision": ""} if "decision" in row else {}),
        )
