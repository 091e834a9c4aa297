"""A recipe's runs over time: what each of them scored, kept and cost, and whether its teacher has moved meanwhile.

Read from the reports that are there; nobody is asked. Two runs' intervals do not say whether they differ: `compare` holds their
students against each other row by row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import content_id
from llm_distill.report.html import results
from llm_distill.report.words import Part, interval, measure, part, percent, points, short, usd, value


def history(workspace: Path, name: str) -> dict[str, Any]:
    """`name`, `notes`, and `runs`, the earliest first, each with `run`, `date`, `metric`, `score`, `teacher`, `kept_share`,
    `rows` (asked, kept, dropped by each filter as a share of what it saw), `held_out` (an id of those rows), `cost_usd`,
    `seconds`, and `probe` (served, agreement with its first look, said). UserError where there is no run of this name with
    a report.
    """
    home = workspace / "runs" / name
    known = sorted({path.parent.parent.name for path in workspace.glob("runs/*/*/run.json")})
    if name not in known:
        raise UserError(
            f"no runs of {name!r} in {workspace / 'runs'}.{did_you_mean(name, known) if known else ' There are none yet.'}"
        )
    found: list[tuple[str, str, dict[str, Any]]] = []
    unfinished, damaged = 0, []
    for record in sorted(home.glob("*/run.json")):
        folder, file = record.parent, record.parent / "report/report.json"
        try:
            about = json.loads(record.read_text(encoding="utf-8"))
            if about.get("arm"):
                continue  # of an ablation or a sweep
            if not file.exists():
                unfinished += 1
                continue
            run = _run(folder.name, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError):  # JSON, and no object
            damaged.append(folder.name)
            continue
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat()  # of a run that noted no beginning
        found.append((run["date"], str(about.get("started") or written), run | {"held_out": _held_out(folder)}))
    if not found:
        raise UserError(f"no run of {name!r} has a report yet; run the recipe to its end first.")
    runs = [run for _, _, run in sorted(found, key=lambda one: one[:2])]
    return {"name": name, "runs": runs, "notes": list(_notes(runs, unfinished, damaged))}


def _run(name: str, report: Part) -> dict[str, Any]:
    arms, primary, _ = results(report)
    funnel = part(report, "funnel")
    asked, kept = value(funnel, "asked"), value(funnel, "kept")
    dropped = {}
    for step in funnel.get("filters") or []:
        if seen := value(step, "rows_in"):
            dropped[str(step.get("name"))] = (value(step, "dropped") or 0.0) / seen
    seconds = [s for stage in part(report, "seconds") if (s := value(part(report, "seconds"), stage)) is not None]
    return {
        "run": name,
        "date": name[:10],
        "metric": primary if arms else None,
        "score": _of(part(part(arms, "student"), primary)),
        "teacher": _of(part(part(arms, "teacher"), primary)),
        "kept_share": _of(part(report, "kept_share")),
        "rows": {"asked": asked, "kept": kept, "dropped": dropped},
        "cost_usd": value(part(report, "cost"), "total_usd"),
        "seconds": sum(seconds) if seconds else None,
        "probe": _probe(part(report, "probe")),
    }


def _held_out(folder: Path) -> str | None:
    """An id of the held-out rows, whatever their order; None where the run has none, or its table is gone."""
    with suppress(OSError, ValueError):
        rows = store.read_table(folder / "held_out.parquet", ["row_id"])
        return content_id(sorted(row["row_id"] for row in rows)) if rows else None
    return None


def _of(interval_: Part) -> dict[str, Any] | None:
    if value(interval_) is None:
        return None
    return {key: value(interval_, key) for key in ("value", "low", "high")} | {"n": interval_.get("n")}


def _probe(found: Part) -> dict[str, Any] | None:
    """A look held against the first, or the one before where that is the first."""
    if not found:
        return None
    compared = [one for one in found.get("compared") or [] if isinstance(one, Mapping)]
    against = compared[-1] if compared else {}
    return {
        "look": found.get("name"),
        "served": found.get("served"),
        "since": against.get("with"),
        "rows": against.get("rows"),
        "agreement": _of(part(against, "agreement")),
        "said": found.get("said") or [],
    }


def _notes(runs: Sequence[Part], unfinished: int, damaged: Sequence[str]) -> Any:
    if unfinished:
        yield f"of {unfinished} more there is no report yet"
    if damaged:
        yield f"what is there of {', '.join(damaged)} cannot be read; `llm-distill report RUN` writes a report again"
    metrics = list(dict.fromkeys(run["metric"] for run in runs if run["metric"]))
    if len(metrics) > 1:
        yield f"runs are judged by different metrics ({', '.join(metrics)}), whose scores are not comparable"
    scored = [run for run in runs if run["score"]]
    rows = {run["held_out"] for run in scored if run["held_out"]}
    if len(rows) > 1 or len({run["score"]["n"] for run in scored}) > 1:
        yield "runs have different held-out rows; `llm-distill compare RUN RUN` holds students against each other on shared ones"
    if not any(run["probe"] for run in runs):
        yield "no run has a probe, so nothing is known of the teacher; add `probe: {rows: 50}` to the recipe"


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Its header and a row a run, as text."""
    rows = [["Run", "Student", "Teacher", "Share kept", "Rows kept", "Dropped", "Cost", "Teacher then and now"]]
    for run in found["runs"]:
        asked, kept = run["rows"]["asked"], run["rows"]["kept"]
        rows.append([
            run["run"],
            _shown(run["score"], run["metric"]),
            _shown(run["teacher"], run["metric"]),
            _shown(run["kept_share"], "share"),
            "—" if kept is None else f"{kept:,.0f} of {asked or 0:,.0f}",
            percent(1 - kept / asked) if kept is not None and asked else "—",
            usd(run["cost_usd"]),
            drifted(run["probe"]),
        ])  # fmt: skip
    return rows


def drifted(probe: Part | None) -> str:
    """What a run's look says of its teacher, in short."""
    if not probe:
        return "not asked"
    if probe["agreement"] is None:
        return "first look"
    agreed = f"agrees to {percent(probe['agreement']['value'])} ({interval(probe['agreement'])})"
    return f"{agreed}; LOOK: {short('; '.join(probe['said']), 300)}" if probe["said"] else agreed


def _shown(of: Part | None, metric: str | None) -> str:
    if of is None:
        return "—"
    between = interval(of, metric or "")
    return f"{measure(of['value'], metric or '')}{f' ({between})' if between else ''}"


def changes(runs: Sequence[Part]) -> list[str]:
    """The last run against the one before, in sentences."""
    if len(runs) < 2:
        return []
    said, (before, last) = [], runs[-2:]
    if before["score"] and last["score"] and before["metric"] == last["metric"]:
        apart = last["score"]["value"] - before["score"]["value"]
        said.append(f"The last student scores {points(apart)} points against the one before it.")
    for name, share in last["rows"]["dropped"].items():
        earlier = before["rows"]["dropped"].get(name)
        if earlier is not None and abs(share - earlier) >= 0.05:
            said.append(f"{name} drops {percent(share)} of what it sees, and dropped {percent(earlier)}.")
    return said
