"""Adding a run's rows to a data set: one new version, or none where nothing changed.

The same run adding twice changes nothing. Where its filter stage has decided anew, what it contributed and no longer keeps is
taken out again, with the reason. A row's side is for ever: what was held out is never taught, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.recipe_data_set import DataSet
from llm_distill.records import Message, Prompt, content_id
from llm_distill.sets import card
from llm_distill.sets.facts import described
from llm_distill.sets.novelty import Across, Known, counted
from llm_distill.sets.shelf import FORMAT, PROMPT_COLUMNS, SPLITS, Shelf, prompt_of, shard_row

#: How a removed row is explained whose run gave it another answer.
ANSWERED_ANEW = "answered anew"
#: ... and one that its run no longer has at all.
NO_LONGER_ASKED = "no longer asked"


@dataclass(frozen=True)
class Contribution:
    """What a run brings. kept, held_out: rows of its tables; dropped: of those it does not keep, row_id -> why.

    split: how the recipe holds rows out; near: how alike rows are that stay on one side.
    facts: what a version's manifest says of the run, besides rows.
    """

    run: str
    how: DataSet
    kept: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    dropped: Mapping[str, str]
    split: Mapping[str, Any]
    near: float | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def row_key(row: Mapping[str, Any]) -> str:
    """A prompt with its answer: what a version has or has not."""
    messages = [Message(m["role"], m["content"]) for m in row["messages"]]
    return content_id([messages, row["text"]])


def check_split(shelf: Shelf, version: int, split: Mapping[str, Any]) -> None:
    """UserError for a recipe that holds rows out in another way than the set does since its first version."""
    fixed = shelf.manifest(version).get("split")
    if version and fixed != split:
        raise UserError(
            f"held_out: the data set {shelf.name} holds rows out by {_worded(fixed)} since its first version, and the "
            f"recipe says {_worded(split)}; what was held out must never be taught. Write the former, or name another data set."
        )


def _worded(split: Mapping[str, Any] | None) -> str:
    if not split or split["by"] is None:
        return "nothing (no held_out)"
    return "a file" if split["by"] == "file" else f"a share of {split['share']:g} (near: {split['near']})"


def add(shelf: Shelf, new: Contribution, forgotten: set[str]) -> dict[str, Any]:
    """Put a run's rows in; gives the manifest of the version in which they are, None of a set that is still empty."""
    with shelf.lock():
        before = shelf.manifest(shelf.latest)
        check_split(shelf, shelf.latest, new.split)
        there = {split: list(shelf.rows(shelf.latest, split, [*PROMPT_COLUMNS, "text", "run"])) for split in SPLITS}
        mine = {row["row_id"]: row_key(row) for row in there["taught"] if row["run"] == new.run}
        now = {row["row_id"]: row_key(row) for row in new.kept}
        gone = {row_id: _why_gone(row_id, new) for row_id, key in mine.items() if now.get(row_id) != key}
        others = [prompt_of(row) for split in SPLITS for row in there[split] if row["row_id"] not in gone]
        known = Known(new.how, others, forgotten)
        standing = mine.keys() - gone.keys()
        held = {row["row_id"] for row in there["held_out"]}
        asides: list[Any] = []

        def fresh(
            rows: Sequence[Mapping[str, Any]], have: set[str], others: Sequence[Mapping[str, Any]]
        ) -> list[dict[str, Any]]:
            """New rows of one side; others: those of the other."""
            some = [row for row in rows if row["row_id"] not in have]
            across = Across(new.near, [prompt_of(row) for row in others]) if some else None
            apart = [row for row in some if across and not across.has_like(_prompt(row))]
            asides.extend(["other_side"] * (len(some) - len(apart)))
            why = known.sift([_prompt(row) for row in apart])
            asides.extend(why)
            return [shard_row(row, new.run) for row, reason in zip(apart, why, strict=True) if reason is None]

        taught_there = [row for row in there["taught"] if row["row_id"] not in gone]
        held_rows = fresh(
            new.held_out, held, taught_there
        )  # first: where a row could be on either side, it is held out
        taught_rows = fresh(new.kept, set(standing), [*there["held_out"], *held_rows])
        if not held_rows and not taught_rows and not gone:
            return _of_run(shelf, new.run, before)
        shards = _without(shelf, before["shards"], set(gone))
        shards += shelf.write_shards(taught_rows, "taught") + shelf.write_shards(held_rows, "held_out")
        return _publish(shelf, before, shards, new, taught_rows, held_rows, gone, counted(asides))


def _publish(
    shelf: Shelf,
    before: Mapping[str, Any],
    shards: list[dict[str, Any]],
    new: Contribution,
    taught: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    gone: Mapping[str, str],
    not_new: Mapping[str, int],
) -> dict[str, Any]:
    used = {name for row in taught for name in (row["terms"] or "").split("+")}
    manifest = {
        "format": FORMAT,
        "name": shelf.name,
        "version": before["version"] + 1,
        "parent": before["version"],
        "parent_id": identity(before) if before["version"] else None,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": new.run,
        "split": dict(new.split),
        "near": new.how.near,
        "semantic": new.how.semantic.model_dump() if new.how.semantic else None,
        "shards": shards,
        "rows": {split: sum(s["rows"] for s in shards if s["split"] == split) for split in SPLITS},
        "added": {"taught": len(taught), "held_out": len(held_out)},
        "removed": [{"row_id": row_id, "why": why} for row_id, why in sorted(gone.items())],
        "not_new": not_new,
        "terms": {**before["terms"], **{name: record for name, record in new.terms.items() if name in used}},
        **new.facts,
    }
    manifest |= described(shelf, shards)
    shelf.write_version(manifest, card.written(shelf, manifest))
    shelf.sweep_shards()
    return manifest


def identity(manifest: Mapping[str, Any]) -> str:
    """What a version holds, as an id: its shards and its parent."""
    return content_id([manifest["name"], manifest["version"], manifest["parent_id"], manifest["shards"]])


def _of_run(shelf: Shelf, run: str, latest: Mapping[str, Any]) -> dict[str, Any]:
    """The version that a run made, the last one of them; or the latest there is, which knew all its rows."""
    for version in reversed(shelf.versions):
        manifest = shelf.manifest(version)
        if manifest["run"] == run:
            return manifest
    return dict(latest)


def _why_gone(row_id: str, new: Contribution) -> str:
    if any(row["row_id"] == row_id for row in new.kept):
        return ANSWERED_ANEW
    return new.dropped.get(row_id, NO_LONGER_ASKED)


def _without(shelf: Shelf, shards: Sequence[Mapping[str, Any]], gone: set[str]) -> list[dict[str, Any]]:
    """The same shards, those that hold one of these taught rows written anew without it."""
    found: list[dict[str, Any]] = []
    for named in shards:
        rows = without_rows(shelf, named, gone) if gone and named["split"] == "taught" else None
        found += [dict(named)] if rows is None else shelf.write_shards(rows, named["split"])
    return found


def without_rows(shelf: Shelf, named: Mapping[str, Any], gone: set[str]) -> list[dict[str, Any]] | None:
    """A shard's rows but for some; None where it holds none of those."""
    ids = {row["row_id"] for row in store.read_table(shelf.shard(named), ["row_id"])}
    if not ids & gone:
        return None
    return [row for row in store.read_table(shelf.shard(named)) if row["row_id"] not in gone]


def _prompt(row: Mapping[str, Any]) -> Prompt:
    messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    return Prompt(row["row_id"], row["prompt_id"], messages, dict(row["tags"]), row["label"], row["reference"])
