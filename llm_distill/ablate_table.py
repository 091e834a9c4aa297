"""An ablation in words: its table in Markdown, and what to know before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes(settings: Mapping[str, Any], most: int | None, owed: int) -> list[str]:
    """What the table leaves open. `most`: the rows that each arm trains on at most; owed: rows without an answer yet."""
    said = ["Rows without a whole answer, or without a label where labels are learnt, are out of every arm."]
    if not settings["seeds"]:
        said.append("The recipe does not both train and evaluate, so only rows are counted.")
    elif most is None:
        said.append(
            "Without a filter a student has more rows to learn from: a change is that of the filter and of the number of "
            "rows together. --equal-rows holds the number fixed."
        )
    else:
        said.append(
            f"No arm trains on more than {most:,} rows, picked by hash, so all have equally many to learn from."
        )
    if settings["seeds"] == 1:
        said.append(
            "Each student was trained once. Intervals are over held-out rows; the luck of one training is not in them "
            "(--seeds 3 averages it)."
        )
    elif settings["seeds"]:
        said.append(
            f"Scores are means over {settings['seeds']} trainings, each with a seed of its own. Intervals are over held-out rows."
        )
    if settings["seeds"]:
        said.append("Each interval is 95 % on its own: of twenty filters without effect, one would seem to have some.")
    if owed:
        said.append(f"{owed:,} rows of the full run are still owed; arms asked for them again.")
    return said


def markdown(found: Mapping[str, Any]) -> str:
    """The ablation as a Markdown table with its notes."""
    metric = next((row["metric"] for row in found["arms"] if row.get("metric")), None)
    heads = ["arm", "rows kept", "took", "took alone"]
    heads += [metric.replace("_", " "), "change (points)", "95 % interval", "verdict"] if metric else []
    lines = [[*heads, "time", "share", "cost"]]
    for row in found["arms"]:
        took = [f"{row['took']:,}", f"{row['took_alone']:,}"] if row["without"] else ["", ""]
        lines.append([row["arm"], f"{row['rows_kept']:,}", *took, *(_score(row) if metric else []), *_effort(row)])
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)) + " |" for line in lines]
    rows.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    more = [f"Stopped: {found['stopped']}"] if found.get("stopped") else []
    return "\n".join([*rows, "", *(f"- {note}" for note in (*more, *found["notes"]))]) + "\n"


def _score(row: Mapping[str, Any]) -> list[str]:
    """An arm's score, its change, the interval and the verdict."""
    from llm_distill.evals.headline import percent, points

    said = row.get("verdict") or ""
    if row.get("same_as"):
        said += f" (its student is that of {row['same_as']})"
    if not row.get("score"):
        return ["", "", "", said]
    score, change = percent(row["score"]["value"]), row["change"]
    if change is None or row["verdict"] == "took nothing":
        return [score, "", "", said]
    low, high = ("" if end is None else points(end) for end in (change["low"], change["high"]))
    return [score, points(change["difference"]), f"{low} to {high}", said]


def _effort(row: Mapping[str, Any]) -> list[str]:
    """An arm's seconds, their share of all arms', and its dollars."""
    if "seconds" not in row:
        return ["not run", "", ""]
    share, cost = row["share_of_time"], row["cost_usd"]
    shown = "unknown" if cost is None else f"${cost:,.4f}"
    return [f"{row['seconds']:,.0f} s", "" if share is None else f"{100 * share:.0f} %", shown]
