"""The data_set stage: what a run kept goes into the set that its recipe names; and what a run knows of that set before it asks.

A run sees the set as it was when the run began, whatever is added meanwhile, so that doing a stage again comes out the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill import store
from llm_distill.errors import FellShort
from llm_distill.records import Prompt, content_id
from llm_distill.sets.adding import Contribution, add, check_split
from llm_distill.sets.facts import of_run
from llm_distill.sets.novelty import Known, Why
from llm_distill.sets.shelf import PROMPT_COLUMNS, Shelf, forgotten, prompt_of, table_row

if TYPE_CHECKING:
    from llm_distill.recipe import Plan
    from llm_distill.stages import Run


def workspace_of(folder: store.RunFolder) -> Path:
    """The workspace that a run lies in: <workspace>/runs/<recipe>/<run>."""
    return folder.path.resolve().parent.parent.parent


def name_of(folder: store.RunFolder) -> str:
    """A run as its rows in a set name it: <recipe>/<folder>."""
    return f"{folder.path.resolve().parent.name}/{folder.path.resolve().name}"


def begin(plan: Plan, folder: store.RunFolder) -> None:
    """Note which version of its set a run sees, once and for all."""
    if plan.data_set is None:
        return
    shelf = Shelf(workspace_of(folder), plan.data_set.name)
    with folder.lock():
        there = store.RunFolder(folder.path).record.get("data_set")
        folder.record["data_set"] = there or {"name": shelf.name, "sees": shelf.latest}
        if there is None:
            folder.save()
    check_split(shelf, int(folder.record["data_set"]["sees"]), split_of(plan))


def split_of(plan: Plan) -> dict[str, Any]:
    """How a recipe holds rows out, as a set's versions keep it."""
    held_out = plan.held_out
    if held_out is None:
        return {"by": None}
    if held_out.file is not None:
        return {"by": "file"}
    return {"by": "share", "share": held_out.share, "near": held_out.near}


def inputs(folder: store.RunFolder, plan: Plan, stage: str) -> list[Any]:
    """What a stage depends on through sets: the version that the run sees and what was forgotten, or the rows to be learnt."""
    out = (
        sorted(forgotten(workspace_of(folder))) if stage == "prompts" else []
    )  # they stay out, whatever was made before
    if plan.data_set is None:
        return [{"forgotten": content_id(out)}] if out else []
    if stage == "prompts":
        there = [plan.data_set.model_dump(exclude={"train_on"}), folder.record["data_set"]]
        return [*there, {"forgotten": content_id(out)}] if out else there
    return [store.digest(folder.file("set.parquet"))] if stage in ("train", "evaluate") else []


@dataclass
class Earlier:
    """The rows that a set had when a run began: they keep their sides, and what is not new to them is not asked."""

    taught: Sequence[Prompt]
    held_out: Sequence[Prompt]
    known: Known
    aside: Counter[str] = field(default_factory=Counter)

    def new(self, rows: Sequence[Prompt]) -> list[Prompt]:
        """Those of the rows that are new, also to each other; the others are counted."""
        why: list[Why | None] = self.known.sift(rows)
        self.aside.update(reason for reason in why if reason)
        return [row for row, reason in zip(rows, why, strict=True) if reason is None]


def earlier(plan: Plan, workspace: Path, version: int | None = None) -> Earlier | None:
    """What a recipe's set has, at a version or the last; None without one."""
    if plan.data_set is None:
        return None
    shelf = Shelf(workspace, plan.data_set.name)
    version = shelf.latest if version is None else version
    check_split(shelf, version, split_of(plan))
    taught = [prompt_of(row) for row in shelf.rows(version, "taught", PROMPT_COLUMNS)]
    held_out = [prompt_of(row) for row in shelf.rows(version, "held_out", PROMPT_COLUMNS)]
    return Earlier(taught, held_out, Known(plan.data_set, [*taught, *held_out], forgotten(workspace)))


def seen(run: Run) -> Earlier | None:
    """What a run's set had when the run began."""
    if run.plan.data_set is None:
        return None
    return earlier(run.plan, workspace_of(run.folder), int(run.folder.record["data_set"]["sees"]))


def grow(run: Run) -> dict[str, Any]:
    """Add what a run kept to its set. Writes set.json, and set.parquet with what a student is to learn. Gives set.json."""
    plan, folder = run.plan, run.folder
    assert plan.data_set is not None
    kept = store.read_table(folder.file("kept.parquet"))
    new = Contribution(
        name_of(folder),
        plan.data_set,
        kept,
        [_unanswered(row) for row in store.read_table(folder.file("held_out.parquet"))],
        {row["row_id"]: row["dropped_by"] for row in store.read_table(folder.file("dropped.parquet"), ["row_id", "dropped_by"])},
        split_of(plan),
        plan.held_out.near if plan.held_out else None,
        {name: record.model_dump() for name, record in plan.terms.items()},
        of_run(folder) | {"drift": _drift(folder), "policy": plan.policy.model_dump() if plan.policy else {}},
    )  # fmt: skip
    workspace = workspace_of(folder)
    shelf = Shelf(workspace, plan.data_set.name)
    manifest = add(shelf, new, forgotten(workspace))
    ours = manifest.get("run") == new.run
    before = max((v for v in shelf.versions if v < manifest["version"]), default=0) if ours else manifest["version"]
    found = {
        "name": shelf.name,
        "version": manifest["version"],
        "rows": manifest.get("rows", {"taught": 0, "held_out": 0}),
        "added": manifest["added"] if ours else {"taught": 0, "held_out": 0},
        "removed": len(manifest["removed"]) if ours else 0,
        "not_new": manifest["not_new"] if ours else {},
        "why": dict(sorted(Counter(one["why"] for one in manifest["removed"]).items())) if ours else {},
        "slices": manifest.get("slices", {}),
        "before": before,
        "slices_before": shelf.manifest(before).get("slices", {}) if before else {},
    }
    store.write_json(folder.file("set.json"), found)
    if plan.trainer:
        rows = (
            table_row(row)
            for row in shelf.rows(manifest["version"], "taught")
            if plan.data_set.train_on == "all" or row["run"] == new.run
        )
        store.write_table(folder.file("set.parquet"), rows, "kept")
    return found


def _drift(folder: store.RunFolder) -> dict[str, Any] | None:
    """What the run's last look at its probe says of its teachers; None without a probe."""
    from llm_distill import probe  # which asks, and so needs the ledger

    tick = probe.latest(folder)
    if tick is None:
        return None
    return {"tick": tick.name, **{name: tick.about.get(name) for name in ("served", "said", "compared")}}


def _unanswered(row: dict[str, Any]) -> dict[str, Any]:
    """A held-out row with the columns that an answered one has."""
    return dict.fromkeys(store.schema("answers").names) | row


def not_new(earlier: Earlier | None, say: Callable[[str], None]) -> dict[str, Any]:
    """How many rows are not asked because the set has them, for the stamp of their stage; nothing without a set."""
    if earlier is None:
        return {}
    if earlier.aside:
        how = ", ".join(f"{why} {n:,}" for why, n in sorted(earlier.aside.items()))
        say(f"prompts: {earlier.aside.total():,} rows are not new to the data set ({how}) and are not asked")
    return {"not_new": dict(sorted(earlier.aside.items()))}


def said(found: Mapping[str, Any]) -> str:
    """What an addition came to, in a line."""
    added, removed = found["added"], found["removed"]
    more = f", {removed:,} taken out" if removed else ""
    return (
        f"data_set: {found['name']}@v{found['version']}: {added['taught']:,} rows and {added['held_out']:,} held-out ones came "
        f"to it{more}; it has {found['rows']['taught']:,} and {found['rows']['held_out']:,}"
    )


def check_lessons(plan: Plan, rows: int) -> None:
    """FellShort where there is nothing to learn, for nothing was new."""
    if plan.data_set and not rows:
        raise FellShort(
            f"train: nothing new came to the data set {plan.data_set.name}, so there is nothing to learn; "
            "`train_on: all` trains on what it has."
        )
