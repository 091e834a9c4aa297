"""The section on the data set that a run adds to, from report.json: its version, what came and went, and how it changed.

Like `sections`, pure, and at home with parts that are missing or null.
"""

from __future__ import annotations

from typing import Any

from llm_distill.report.words import Part, part, short, value

MOST = 40  # values of slices


def view(report: Part) -> dict[str, Any]:
    """What the template shows under `data_set`; empty where the run adds to none."""
    found = part(report, "data_set")
    name, version, before = found.get("name"), value(found, "version"), value(found, "before")
    if not name or version is None:
        return {}
    now, old = part(found, "slices"), part(found, "slices_before")
    slices = [
        (tag, of, value(part(old, tag), of), value(part(now, tag), of))
        for tag in dict.fromkeys([*now, *old])
        for of in dict.fromkeys([*part(now, tag), *part(old, tag)])
    ]
    slices.sort(key=lambda one: -abs((one[3] or 0.0) - (one[2] or 0.0)))
    said = part(report, "probe").get("said")
    return {
        **found,
        "version": f"{version:.0f}",
        "new": before != version,
        "diff": f"{short(name)}@v{before:.0f} {short(name)}@v{version:.0f}" if before and before != version else "",
        "shown": slices[:MOST],
        "left_out": len(slices[MOST:]),
        "not_new": list(part(found, "not_new").items()),
        "why": list(part(found, "why").items()),
        "drift": [str(line) for line in said if line] if isinstance(said, list) else [],
        "probed": bool(part(report, "probe")),
    }
