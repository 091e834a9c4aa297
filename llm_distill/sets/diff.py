"""What changed between two versions of a data set: rows and why, shares of slices, what filters drop, prices, the teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from llm_distill.sets.adding import row_key
from llm_distill.sets.shelf import SPLITS, Shelf, Split

#: How a missing row is explained that no version's manifest names: it was forgotten, or its set is another.
UNSAID = "not said"
#: Slices whose share has moved by less are as they were.
_MOVED = 0.005


def keys(shelf: Shelf, version: int, split: Split) -> dict[str, dict[str, Any]]:
    """The rows of a version by what they are: a prompt with its answer."""
    rows = shelf.rows(version, split, ["row_id", "messages", "text", "run"])
    return {row_key(row): row for row in rows}


def diff(one: tuple[Shelf, int], other: tuple[Shelf, int]) -> dict[str, Any]:
    """What leads from one version to another. Rows are those of their texts: an answer that changed is another row.

    Of rows removed the last reason is given that a version in between states. drop_rates are those of the runs that made
    each version; price is what the versions between came to, null where one is unknown. forgotten: how many rows each of the two
    has lost to `forget`, which takes them out of all versions and so out of sight of any difference.
    """
    (shelf, a), (there, b) = one, other
    before, after = shelf.manifest(a), there.manifest(b)
    between = [there.manifest(v) for v in there.versions if a < v <= b] if shelf.name == there.name else []
    why = {row["row_id"]: row["why"] for manifest in between for row in manifest["removed"]}
    found: dict[str, Any] = {"from": f"{shelf.name}@v{a}", "to": f"{there.name}@v{b}"}
    for split in SPLITS:
        old, new = keys(shelf, a, split), keys(there, b, split)
        gone = [(old[key]["row_id"], why.get(old[key]["row_id"], UNSAID)) for key in old.keys() - new.keys()]
        come = sorted((new[key]["row_id"], new[key]["run"]) for key in new.keys() - old.keys())
        found[split] = {
            "before": len(old),
            "after": len(new),
            "added": [{"row_id": row_id, "run": run} for row_id, run in come],
            "removed": [{"row_id": row_id, "why": reason} for row_id, reason in sorted(gone)],
            "why": dict(sorted(Counter(reason for _, reason in gone).items())),
        }
    return found | {
        "forgotten": {"before": before.get("forgotten", 0), "after": after.get("forgotten", 0)},
        "slices": _slices(before.get("slices", {}), after.get("slices", {})),
        "drop_rates": _drops(before, after),
        "price": {"before": before.get("price"), "after": after.get("price"), "between_usd": _sum(between)},
        "teachers": {"before": _models(before), "after": _models(after)},
        "drift": [m["drift"] | {"version": m["version"]} for m in between if m.get("drift")],
    }


def _slices(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those whose share of the rows moved, the furthest first."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, {}), after.get(name, {})
        for value in sorted({*old, *new}):
            change = new.get(value, 0.0) - old.get(value, 0.0)
            if abs(change) >= _MOVED:
                found.append({"slice": name, "value": value, "before": old.get(value), "after": new.get(value)})
    return sorted(found, key=lambda s: -abs((s["after"] or 0.0) - (s["before"] or 0.0)))


def _drops(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each filter, the share of the rows that it saw and dropped; and of answers that never came to the filters."""
    old, new = (_rates(manifest) for manifest in (before, after))
    return [{"filter": name, "before": old.get(name), "after": new.get(name)} for name in dict.fromkeys([*old, *new])]


def _rates(manifest: Mapping[str, Any]) -> dict[str, float]:
    asked = manifest.get("asked", 0)
    rates = {
        status: round(n / asked, 4) for status, n in manifest.get("status", {}).items() if status != "ok" and asked
    }
    for step in manifest.get("filters", ()):
        if step["rows_in"]:
            rates[step["name"]] = round(step["dropped"] / step["rows_in"], 4)
    return rates


def _sum(between: list[dict[str, Any]]) -> float | None:
    prices = [(manifest.get("price") or {}).get("usd") for manifest in between]
    return None if None in prices else round(sum(price for price in prices if price is not None), 9)


def _models(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Rows by the model that answered them, as it called itself."""
    found: Counter[str] = Counter()
    for teacher in manifest.get("teachers", ()):
        found[teacher["model"]] += teacher["rows"]
    return dict(sorted(found.items()))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same, to read."""
    said = [f"{found['from']} -> {found['to']}"]
    for split in SPLITS:
        part = found[split]
        why = ", ".join(f"{reason} {n:,}" for reason, n in part["why"].items())
        said.append(
            f"  {split:<10} {part['before']:,} -> {part['after']:,} rows: {len(part['added']):,} added, "
            f"{len(part['removed']):,} removed" + (f" ({why})" if why else "")
        )
    before, after = found["forgotten"]["before"], found["forgotten"]["after"]
    if before or after:
        said.append(
            f"  forgotten  rows that were taken out of every version: {found['from']} lost {before:,}, {found['to']} {after:,}"
        )
    said += [
        f"  slice      {moved['slice']}={moved['value']}: {_share(moved['before'])} -> {_share(moved['after'])}"
        for moved in found["slices"]
    ]
    said += [
        f"  dropped    {rate['filter']}: {_share(rate['before'])} -> {_share(rate['after'])}"
        for rate in found["drop_rates"]
    ]
    prices = [(found["price"][side] or {}).get("usd_a_row") for side in ("before", "after")]
    said.append(
        f"  price      a row kept {_usd(prices[0])} -> {_usd(prices[1])}; all in between {_usd(found['price']['between_usd'])}"
    )
    if found["teachers"]["before"].keys() != found["teachers"]["after"].keys():
        said.append(f"  teachers   {', '.join(found['teachers']['before'])} -> {', '.join(found['teachers']['after'])}")
    return [
        *said,
        *(f"  drift      v{d['version']}: {'; '.join(d['said']) or 'no teacher moved'}" for d in found["drift"]),
    ]


def _share(of: float | None) -> str:
    return "none" if of is None else f"{100 * of:.1f} %"


def _usd(of: float | None) -> str:
    return "unknown" if of is None else f"${of:,.6f}"
