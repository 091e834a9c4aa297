"""The data card of a version: what is in it, who answered under which terms, what was dropped, what changed.

It is the README.md that the hub shows. Whatever a person, a server or a model wrote is escaped; texts of rows and paths of
this machine are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_distill.report.markdown import front_matter, plain, table
from llm_distill.sets.shelf import Shelf
from llm_distill.terms import UNKNOWN, Policy, Record, Source, shipped, verdicts

#: Records of terms that the hub has an identifier for.
_IDENTIFIERS = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "gemma"}


class Standing(NamedTuple):
    """Under which licence rows may be passed on. forbidden, unknown: why not; duties: what must be said with them."""

    licence: str
    name: str | None
    forbidden: Sequence[str]
    unknown: Sequence[str]
    duties: Sequence[str]


def records(manifest: Mapping[str, Any]) -> dict[str, Record]:
    """The records of terms that a version's rows stand under, as they were when the rows came."""
    return shipped() | {name: Record.model_validate(words) for name, words in manifest["terms"].items()}


def sources(manifest: Mapping[str, Any]) -> list[Source]:
    """Who answered a version's rows, under what."""
    found = []
    for teacher in manifest.get("teachers", ()):
        for name in (teacher["terms"] or UNKNOWN).split("+"):
            who = f"{teacher['rows']:,} rows were answered by {served(teacher['model'])}"
            found.append(Source(who, None if name == UNKNOWN else name))
    return found


def standing(manifest: Mapping[str, Any]) -> Standing:
    """What the terms of a version's rows say of passing them on."""
    known = records(manifest)
    found = verdicts(Policy(train=False, publish=True), known, sources(manifest))
    used = sorted({source.terms for source in sources(manifest) if source.terms in known})
    duties = [f"{known[n].licence}: {known[n].attribution}" for n in used if n and known[n].attribution]
    alike = sorted({known[n].share_alike or "" for n in used if n} - {""})
    duties += [f"To be passed on under {terms}." for terms in alike]
    licence, name = "other", "several-terms"
    if found.forbidden:
        name = "not-to-be-passed-on"
    elif found.unknown or not used:
        name = "not-settled"
    elif len(used) == 1 and used[0]:
        licence, name = _identified(used[0], known)  # type: ignore[assignment]
    return Standing(licence, name, found.forbidden, found.unknown, duties)


def _identified(name: str, known: Mapping[str, Record]) -> tuple[str, str | None]:
    if name in _IDENTIFIERS:
        return name, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", known[name].licence.casefold()).strip("-")[:60]


def served(model: str) -> str:
    """A model's name as others may read it: of a path on this machine the last part alone."""
    local = model.startswith((".", "~", "/")) or Path(model).is_absolute()
    return (model.rstrip("/").rpartition("/")[2] if local else model) or "a model without a name"


def written(shelf: Shelf, manifest: Mapping[str, Any], files: Mapping[str, Sequence[str]] | None = None) -> str:
    """The card. files: by split, where its Parquet files lie from here; by default in the folder of shards."""
    stands = standing(manifest)
    if files is None:
        splits = {
            s["split"]: [f"../shards/{x['file']}" for x in manifest["shards"] if x["split"] == s["split"]]
            for s in manifest["shards"]
        }
    else:
        splits = {split: list(found) for split, found in files.items()}
    head = front_matter(
        {
            "license": stands.licence,
            "license_name": stands.name,
            "tags": ["distillation", "llm-distill", *(["not-for-publication"] if stands.forbidden else [])],
        }
    )
    rows, added, gone = manifest["rows"], manifest["added"], manifest["removed"]
    parts = [
        _with_configs(head, splits) + f"\n# {plain(shelf.name)}, version {manifest['version']}",
        f"{rows['taught']:,} questions with their teachers' answers, and {rows['held_out']:,} questions held out for evaluation, "
        "which no student may be trained on. Grown by llm-distill, a version a run.",
        "## Terms\n\n" + _terms(stands),
        "## Answers\n\n"
        + table(
            ["Model, as served", "Role", "Terms", "Rows"],
            [
                (served(t["model"]), t["role"], t["terms"] or "nobody named any", f"{t['rows']:,}")
                for t in manifest.get("teachers", ())
            ],
        ),
        "## This version\n\n"
        f"{added['taught']:,} rows and {added['held_out']:,} held-out ones came to it, {len(gone):,} were taken out"
        + (f" ({_reasons(gone)})" if gone else "")
        + f". Of the run's {manifest.get('asked', 0):,} rows {manifest.get('kept', 0):,} passed the filters. "
        + _newness(manifest),
        "## Filters\n\n"
        + (
            table(
                ["Filter", "Bounds", "Rows in", "Dropped"],
                [
                    (f["name"], _bounds(f["bounds"]), f"{f['rows_in']:,}", f"{f['dropped']:,}")
                    for f in manifest.get("filters", ())
                ],
            )
            if manifest.get("filters")
            else "None."
        ),
        "## What is in it\n\n" + _slices(manifest["slices"]),
    ]
    return "\n\n".join(parts) + "\n"


def _with_configs(head: str, splits: Mapping[str, Sequence[str]]) -> str:
    """Where the hub, and `datasets.load_dataset` on a folder, find each split's files: train and held_out."""
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for split, files in splits.items():
        lines += [
            f"  - split: {'train' if split == 'taught' else split}",
            "    path:",
            *(f"    - {file}" for file in files),
        ]
    return head.removesuffix("---\n") + "\n".join([*(lines if splits else []), "---", ""])


def _terms(stands: Standing) -> str:
    name = f" ({plain(stands.name)})" if stands.name else ""
    said = [f"Licence: {plain(stands.licence)}{name}."]
    if stands.forbidden:
        said.append("**Not to be passed on:** the terms below forbid it.")
    elif stands.unknown:
        said.append(
            "**Not settled:** nothing on record says that it may be passed on. Find out before it leaves the house."
        )
    notes = [f"- {plain(note, 900)}" for note in (*stands.duties, *stands.forbidden, *stands.unknown)]
    return "\n".join([*said, *(["", *notes] if notes else [])])


def _reasons(gone: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for row in gone:
        counts[row["why"]] = counts.get(row["why"], 0) + 1
    return ", ".join(f"{plain(why)} {n:,}" for why, n in sorted(counts.items()))


def _newness(manifest: Mapping[str, Any]) -> str:
    near, semantic = manifest["near"], manifest["semantic"]
    held = ["equals an earlier one"]
    held += [f"shares {near:g} of its word 3-grams with one (Jaccard)"] if near is not None else []
    held += [f"says the same by {plain(served(semantic['by']))} (cosine above {semantic['max']:g})"] if semantic else []
    return f"A row is not new that {' or '.join(held)}."


def _bounds(bounds: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in (bounds or {}).items() if value is not None) or "—"


def _slices(slices: Mapping[str, Mapping[str, float]]) -> str:
    rows = [(name, value, f"{100 * share:.1f} %") for name, values in slices.items() for value, share in values.items()]
    return table(["Tag", "Value", "Share"], rows) if rows else "No tags."
