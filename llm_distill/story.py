"""One row's whole story, over all runs and data sets of a workspace: where it came from, who answered, what was decided, who
learnt it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill import ledger_texts, store
from llm_distill.errors import UserError
from llm_distill.sets.novelty import fingerprint
from llm_distill.sets.shelf import SPLITS, forgotten, prompt_of, shelves

if TYPE_CHECKING:
    from llm_distill.ledger import Ledger

#: Ids that a message about an ambiguous one names.
_NAMED = 5
#: How far a row's parents are followed.
_DEEP = 20


def runs(workspace: Path) -> Iterator[store.RunFolder]:
    """The runs of a workspace that this version can read."""
    for path in sorted(workspace.glob("runs/*/*/run.json")):
        with suppress(UserError):
            yield store.RunFolder(path.parent)


def ids_like(workspace: Path, prefix: str) -> set[str]:
    """The row_ids that begin so, in any run or set."""
    if not prefix:
        raise UserError("ROW: write a row_id, or how it begins (`llm-distill show` prints it).")
    found: set[str] = set()
    for run in runs(workspace):
        for table in ("prompts", "held_out"):
            found |= _ids(run.file(f"{table}.parquet"), prefix)
    for shelf in shelves(workspace):
        for file in (shelf.path / "shards").glob("*.parquet"):
            found |= _ids(file, prefix)
        for version in shelf.versions:
            found |= {r["row_id"] for r in shelf.manifest(version)["removed"] if r["row_id"].startswith(prefix)}
    return found


def _ids(path: Path, prefix: str) -> set[str]:
    rows = store.read_table(path, ["row_id"]) if path.exists() else []
    return {row["row_id"] for row in rows if row["row_id"].startswith(prefix)}


def one_id(workspace: Path, prefix: str) -> str:
    """The row that is meant; UserError where none or several are."""
    found = sorted(ids_like(workspace, prefix))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"no row {prefix!r} in any run or data set of {workspace}; `llm-distill show RUN prompts` lists them."
        )
    shown = ", ".join(row_id[:16] for row_id in found[:_NAMED])
    raise UserError(
        f"{len(found)} rows begin with {prefix!r}: {shown}{', ...' if len(found) > _NAMED else ''}; write more of it."
    )


def row_of(path: Path, row_id: str) -> dict[str, Any] | None:
    """A table's row; None where it has none, or there is no table."""
    if not path.exists() or row_id not in _ids(path, row_id):
        return None
    return next(row for row in store.read_table(path) if row["row_id"] == row_id)


def story(workspace: Path, prefix: str, ledger: Ledger) -> dict[str, Any]:
    """Everything that is known of the row whose id begins so."""
    row_id = one_id(workspace, prefix)
    told = [found for run in runs(workspace) if (found := _in_run(run, row_id, ledger))]
    prompt = next((part.pop("prompt") for part in told), None)
    for part in told:
        part.pop("prompt", None)
    sets = [found for shelf in shelves(workspace) if (found := _in_set(shelf, row_id))]
    prompt = prompt or next((part["prompt"] for part in sets if part["prompt"]), None)
    for part in sets:
        del part["prompt"]
    return {
        "row_id": row_id,
        "prompt": prompt,
        "parents": list(_parents(workspace, prompt)),
        "runs": told,
        "sets": sets,
        "students": students(workspace, {row_id}),
    }


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    tags = dict(row["tags"])
    return {
        "messages": row["messages"], "label": row["label"], "reference": row["reference"], "tags": tags,
        "generator": tags.get("generator", "seeds"), "parent": tags.get("parent"),
    }  # fmt: skip


def _in_run(run: store.RunFolder, row_id: str, ledger: Ledger) -> dict[str, Any] | None:
    asked, held_out = (row_of(run.file(f"{table}.parquet"), row_id) for table in ("prompts", "held_out"))
    row = asked or held_out
    if row is None:
        return None
    found: dict[str, Any] = {
        "run": f"{run.path.parent.name}/{run.path.name}",
        "side": "asked" if asked else "held_out",
        "source": _source(run, row),
        "prompt": _prompt(row),
    }
    answer = row_of(run.file("answers.parquet"), row_id)
    if answer:
        found["answer"] = _answer(answer, run, ledger)
    decided = row_of(run.file("kept.parquet"), row_id) or row_of(run.file("dropped.parquet"), row_id)
    if decided:
        found["scores"] = {n.removeprefix("score."): v for n, v in decided.items() if n.startswith("score.")}
        found["why"] = {n.removeprefix("why."): v for n, v in decided.items() if n.startswith("why.") and v is not None}
        found["decision"] = {"dropped_by": decided.get("dropped_by"), "review": decided["review"]}
    arms = [(path.stem, row_of(path, row_id)) for path in sorted(run.path.glob("eval/*.parquet"))]
    found["evaluated"] = {arm: _answer(row, run, ledger) for arm, row in arms if row}
    return found


def _answer(row: Mapping[str, Any], run: store.RunFolder, ledger: Ledger) -> dict[str, Any]:
    """What came back, from whom and under which terms, and the questions behind it."""
    names = ("text", "status", "reason", "prediction", "model", "role", "cost_usd", "attempts", "seconds", "agreement")
    records = run.record.get("terms", {})
    terms = {name: records.get(name) for name in (row["terms"] or "").split("+") if name}
    asked = list(ledger_texts.about(ledger, row["requests"] or ()))
    return {**{name: row[name] for name in names}, "terms": terms, "asked": asked}


def _source(run: store.RunFolder, row: Mapping[str, Any]) -> str:
    """Which entry of the recipe's `prompts` made it, with the file that it names."""
    made_by: str = dict(row["tags"]).get("generator", "seeds")
    try:
        entries = run.words["prompts"]
    except (UserError, KeyError):
        return made_by
    knobs = [entry[made_by] or {} for entry in entries if isinstance(entry, dict) and made_by in entry]
    files = [str(value) for entry in knobs for name, value in entry.items() if name in ("file", "folder", "files")]
    return f"{made_by} ({', '.join(files)})" if files else made_by


def _parents(workspace: Path, prompt: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The rows that a row was made from, the nearest first."""
    wanted, seen = prompt and prompt["parent"], set[str]()
    while wanted and wanted not in seen and len(seen) < _DEEP:
        seen.add(wanted)
        tables = (run.file(f"{table}.parquet") for run in runs(workspace) for table in ("prompts", "held_out"))
        row = next((row for path in tables if (row := row_of(path, wanted))), None)
        if row is None:
            yield {"row_id": wanted, "prompt": None}
            return
        yield {"row_id": wanted, "prompt": _prompt(row)}
        wanted = dict(row["tags"]).get("parent")


def _in_set(shelf: Any, row_id: str) -> dict[str, Any] | None:
    """In which versions of a set a row is, on which side, and where it was taken out."""
    versions: dict[str, list[int]] = {split: [] for split in SPLITS}
    shards: dict[str, dict[str, Any] | None] = {}
    gone, row = [], None
    for version in shelf.versions:
        manifest = shelf.manifest(version)
        gone += [{"version": version, "why": r["why"]} for r in manifest["removed"] if r["row_id"] == row_id]
        for shard in manifest["shards"]:
            if shard["file"] not in shards:
                shards[shard["file"]] = row_of(shelf.shard(shard), row_id)
            if here := shards[shard["file"]]:
                versions[shard["split"]].append(version)
                row = here
    if not gone and row is None:
        return None
    shown = None if row is None else _prompt({**row, "tags": [(tag["key"], tag["value"]) for tag in row["tags"]]})
    return {
        "set": shelf.name,
        "versions": {split: found for split, found in versions.items() if found},
        "brought_by": row and row["run"],
        "removed": gone,
        "forgotten": bool(row) and fingerprint(prompt_of(row or {})) in forgotten(shelf.path.parent.parent),
        "prompt": shown,
    }


def students(workspace: Path, row_ids: set[str]) -> list[dict[str, Any]]:
    """The students that were trained on some of these rows: where they lie, how many rows, what was exported of them."""
    found = []
    for run in runs(workspace):
        stamp = run.stamp("train")
        if not stamp or not run.lessons.exists():
            continue
        rows = {row["row_id"] for row in store.read_table(run.lessons, ["row_id"])} & row_ids
        if rows:
            exports = sorted(str(path.parent) for path in run.path.glob("exports/*/export.json"))
            found.append({"student": str(run.file("student")), "rows": len(rows), "exports": exports})
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The story to read, a line a fact."""
    prompt = found["prompt"]
    yield f"row {found['row_id']}"
    if prompt:
        yield f"  asks      {prompt['messages'][-1]['content']}"
        yield f"  made by   {prompt['generator']}" + (f", from row {prompt['parent'][:10]}" if prompt["parent"] else "")
        yield from (f"  {name:<9} {prompt[name]}" for name in ("label", "reference") if prompt[name])
    for parent in found["parents"]:
        said = parent["prompt"]["messages"][-1]["content"] if parent["prompt"] else "(gone)"
        yield f"  parent    {parent['row_id'][:10]}: {said}"
    for run in found["runs"]:
        yield f"run {run['run']}: {'held out' if run['side'] == 'held_out' else 'asked'}, from {run['source']}"
        if "answer" in run:
            yield from _answer_lines("answered", run["answer"])
        if "decision" in run:
            decided = run["decision"]
            yield f"  scores    {', '.join(f'{k} {v:.4g}' for k, v in run['scores'].items() if v is not None) or 'none'}"
            yield f"  decision  {'dropped by ' + decided['dropped_by'] if decided['dropped_by'] else 'kept'}" + (
                f" (a reviewer said {decided['review']})" if decided["review"] else ""
            )
        for arm, answer in run["evaluated"].items():
            yield f"  {arm}: {answer['text']}"
    for of in found["sets"]:
        for split, versions in of["versions"].items():
            yield f"set {of['set']}: {split} in {_span(versions)}, brought by {of['brought_by']}"
        yield from (f"set {of['set']}: taken out in v{gone['version']}: {gone['why']}" for gone in of["removed"])
    for student in found["students"]:
        yield f"student {student['student']} was trained on it"
        yield from (f"  exported  {path}" for path in student["exports"])
    if not found["students"]:
        yield "no student was trained on it"


def _answer_lines(title: str, answer: Mapping[str, Any]) -> Iterator[str]:
    price = "unknown" if answer["cost_usd"] is None else f"${answer['cost_usd']:.9f}"
    yield f"  {title}  {answer['text']}"
    yield (
        f"  by        {answer['model'] or 'nobody'} ({answer['role']}), {answer['status']}"
        + (f": {answer['reason']}" if answer["reason"] else "")
        + f"; {price}, {answer['attempts']} attempts, {answer['seconds']:.3g} s"
    )
    for name, record in answer["terms"].items():
        yield f"  terms     {name}" + (f" ({record['licence']})" if record else "")
    for asked in answer["asked"]:
        served = ", ".join(filter(None, (asked["served_model"], asked["fingerprint"], asked["answered"])))
        yield f"  request   {asked['request'][:10]} to {asked['model']}, answered as {served}"


def _span(versions: Sequence[int]) -> str:
    return f"v{versions[0]}" if len(versions) == 1 else f"v{versions[0]} to v{versions[-1]}"
