"""A sweep in words: its table in Markdown, its best trial, and what to know before that is believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_distill.recipe_keys import Sweep


def named(paths: Sequence[str]) -> dict[str, str]:
    """Knobs by their paths, each with its last word, or with its path where two would be called alike."""
    last = [path.rsplit(".", 1)[-1] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}


def shown(value: Any) -> str:
    """A knob's value, as one writes it."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def brief(setting: Mapping[str, Any]) -> str:
    """A setting on one line."""
    names = named(list(setting))
    return ", ".join(f"{names[path]} {shown(value)}" for path, value in setting.items())


def notes(sweep: Sweep, dev: Mapping[str, Any], size: int | None, owed: int) -> list[str]:
    """What the table leaves open. `dev`: the rows that decide; size: of the space, None where it cannot be counted; owed:
    rows without an answer yet.
    """
    what = str(dev["metric"]).replace("_", " ")
    whence = f"the {dev['rows']:,} labelled rows of {dev['file']}"
    if dev["file"] is None:
        whence = f"{dev['rows']:,} of the kept rows, which no trial learns from"
    said = [f"Scores are {what} on {whence}. No held-out row was looked at: what the best is worth, `run` finds out."]
    more = f" {dev['aside']:,} kept rows nearly equal rows of the file and are set aside." if dev["aside"] else ""
    said.append(
        f"Every trial learns from {dev['learnt']:,} rows; `run` with the best settings from all that are kept.{more}"
    )
    if sweep.seeds == 1:
        said.append(
            "Each setting was trained once: the luck of one training is in no interval (`seeds: 3` averages it)."
        )
    else:
        said.append(f"Scores are means over {sweep.seeds} trainings, each with a seed of its own.")
    if sweep.sampler != "grid" and size is not None and size <= (sweep.trials or 0):
        said.append(f"There are {size:,} settings, so there were no more trials to make.")
    if owed:
        said.append(f"{owed:,} rows of the run are still owed an answer; no trial learns from them.")
    return said


def markdown(found: Mapping[str, Any]) -> str:
    """The sweep as a Markdown table, the best first, with what its best trial is worth, and its notes."""
    paths = list(found["trials"][0]["parameters"]) if found["trials"] else []
    heads = ["trial", *named(paths).values(), str(found["dev"]["metric"]).replace("_", " ")]
    lines = [[*heads, "against own (points)", "95 % interval", "time", ""]]
    for row in ranked(found["trials"]):
        settings = [shown(row["parameters"][path]) for path in paths]
        best = found["best"]["trial"] == row["trial"]
        lines.append([_name(row), *settings, *_score(row), f"{row['seconds']:,.0f} s", _remark(row, best=best)])
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)) + " |" for line in lines]
    rows.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    more = [] if found["complete"] else [f"{len(found['trials']) - 1} of {found['wanted']} trials are made."]
    more += [f"Stopped: {found['stopped']}"] if found.get("stopped") else []
    said = [*found["said"], "", *(f"- {note}" for note in (*more, *found["notes"]))]
    return "\n".join([*rows, "", *said]) + "\n"


def ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Trials by their scores, those without one last."""
    return sorted(rows, key=lambda row: -row["score"]["value"] if row.get("score") else 1.0)


def best_said(found: Mapping[str, Any]) -> list[str]:
    """What the best trial is and what it is worth, a sentence each."""
    return list(_best_said(found["best"]))


def _best_said(best: Mapping[str, Any]) -> Iterator[str]:
    from llm_distill.evals.headline import interval, percent, points

    own = best["verdict"] == "own settings"
    which = (
        "The recipe's own settings scored highest"
        if own
        else f"Best: trial {best['trial']}, {brief(best['parameters'])}"
    )
    what = str(best["metric"]).replace("_", " ")
    yield f"{which}: {what} {interval(best['score'])}."
    if change := best.get("change"):
        lead = (
            f"{_signed(change['difference'])} points against the recipe's own settings ({_between(change)}), {_p(best)}"
        )
        if best["verdict"] == "gain":
            yield f"A measurable gain: {lead}."
        else:
            yield f"No measurable gain: {lead}. For all that this sweep can tell, the recipe's own settings are as good."
    if expected := best.get("expected"):
        gain = expected["gain"]
        yield (
            f"What is picked for its score is lucky too: so picked, a setting scores about {percent(expected['score']['value'])} "
            f"on rows that it was not picked by, {_signed(gain['value'])} points against the own settings ({_between(gain)})."
        )
    if second := best.get("runner_up"):
        change = second["change"]
        yield (
            f"The runner-up, trial {second['trial']}, is {points(change['difference'])} points behind ({_between(change)}); of "
            f"{best['others']} others, {best['alike']} cannot be told from the best on these rows."
        )


def _p(best: Mapping[str, Any]) -> str:
    p = best["p_adjusted"]
    shown = f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"
    return f"{shown} corrected for {best['others']} chances to lead"


def _signed(share: float) -> str:
    from llm_distill.evals.headline import points

    return f"{'+' if share > 0 else ''}{points(share)}"


def _between(of: Mapping[str, Any]) -> str:
    low, high = ("unbounded" if of[end] is None else _signed(of[end]) for end in ("low", "high"))
    return f"{low} to {high}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["trial"] or "own")


def _score(row: Mapping[str, Any]) -> list[str]:
    from llm_distill.evals.headline import percent

    if not row.get("score"):
        return ["", "", ""]
    change = row["change"]
    beside = ["", ""] if change is None else [_signed(change["difference"]), _between(change)]
    return [percent(row["score"]["value"]), *beside]


def _remark(row: Mapping[str, Any], *, best: bool) -> str:
    if row["failed"]:
        return f"cannot be trained: {row['failed']}"
    if row["same_as"] is not None:
        return f"same student as {row['same_as'] or 'own'}"
    return "best" if best else ""
