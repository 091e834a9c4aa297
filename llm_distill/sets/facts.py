"""What a version's manifest says of its rows, and of the run that brought the latest of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llm_distill import store
from llm_distill.sets.shelf import Shelf

#: Tags that name a row rather than a kind of rows.
_NAMES = {"group", "parent", "document", "source", "id"}
#: Values of a tag that make slices; with more it names rows.
_VALUES = 20


def described(shelf: Shelf, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows taught: `slices`, the share of each value of each tag and of each label; `teachers`, who answered how many
    under which terms.
    """
    counts: dict[str, Counter[str]] = {}
    teachers: Counter[tuple[str, str, str]] = Counter()
    for named in shards:
        if named["split"] != "taught":
            continue
        for row in store.read_table(shelf.shard(named), ["tags", "prediction", "model", "role", "terms"]):
            teachers[row["model"] or "", row["role"] or "", row["terms"] or ""] += 1
            for tag in row["tags"]:
                if tag["key"] not in _NAMES:
                    counts.setdefault(f"tags.{tag['key']}", Counter())[tag["value"]] += 1
            if row["prediction"]:
                counts.setdefault("prediction", Counter())[row["prediction"]] += 1
    total = teachers.total()
    few = {name: values for name, values in sorted(counts.items()) if len(values) <= _VALUES}
    slices = {name: {value: round(n / total, 6) for value, n in sorted(values.items())} for name, values in few.items()}
    served = [
        {"model": model, "role": role, "terms": terms, "rows": rows}
        for (model, role, terms), rows in sorted(teachers.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {"slices": slices, "teachers": served}


def of_run(folder: store.RunFolder) -> dict[str, Any]:
    """Of the run that adds: what became of its rows, what each filter dropped, what it all came to, who was asked."""
    prompts, filtered = folder.stamp("prompts"), folder.stamp("filter")
    rows = store.read_table(folder.file("answers.parquet"), ["status", "cost_usd", "reason"])
    costs = [row["cost_usd"] for row in rows if row["status"] != "failed" or row["cost_usd"] is not None]
    costs += [stamp["spent"]["cost_usd"] for stamp in (prompts, filtered) if stamp.get("spent")]
    known = None if None in costs else round(sum(costs), 9)
    kept = filtered.get("rows_out", 0)
    return {
        "recipe_digest": folder.record.get("digest"),
        "asked": len(rows),
        "kept": kept,
        "status": dict(sorted(Counter(row["status"] for row in rows).items())),
        "filters": [
            {name: step[name] for name in ("name", "bounds", "rows_in", "dropped")}
            for step in filtered.get("filters", [])
        ],
        "set_aside": prompts.get("not_new", {}),
        "price": {"usd": known, "usd_a_row": round(known / kept, 9) if known is not None and kept else None},
    }
