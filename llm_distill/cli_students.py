"""The command line's commands on trained students: take one out of its run, or ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_distill.cli_runs import AsJson, RunArg, Workspace, brief, folder_of
from llm_distill.errors import UserError, did_you_mean


def export(
    run: RunArg,
    to: Annotated[str, typer.Option(help="merged, gguf, adapter or vllm.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; by default under the run's `exports`.", show_default=False)
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="Of a .gguf: f16 (the default), q8_0 or q4_k_m.", show_default=False)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of merged weights: auto (the base's own), float32, bfloat16 or float16.")
    ] = "auto",
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Export a run's student, with a model card and a data card made from what happened in the run.

    The exported model is asked up to 50 held-out rows, as is the student in its run, and how far they agree is printed and
    kept in export.json. The folder appears whole or not at all; an earlier export under its name is replaced, anything else is
    left alone. What the recipe's policy states must be allowed by the terms of every answer.
    """
    from rich.console import Console

    from llm_distill.export.road import export as take_out
    from llm_distill.screen import Screen

    _known("--to", to, ("merged", "gguf", "adapter", "vllm"))
    _known("--quant", quant or "f16", ("f16", "q8_0", "q4_k_m"))
    _known("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    with Screen(Console(stderr=True)) as screen:
        found = take_out(folder_of(run, workspace), to, out, quant=quant, numbers=dtype, say=screen.say)  # type: ignore[arg-type]
    print(json.dumps(found, sort_keys=True) if as_json else "\n".join(_lines(found)))


def serve(
    run: RunArg,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8000,
    workspace: Workspace = Path("data"),
) -> None:
    """Serve a run's student at an OpenAI-compatible endpoint on this machine: chat completions, completions, models.

    What a request leaves open is as the student was evaluated (temperature, max_tokens); a parameter that would change the
    answer and is not known is refused. Ctrl-C answers what is in flight and stops.
    """
    from llm_distill.serving import serve as answer

    answer(folder_of(run, workspace), port, lambda line: print(line, flush=True))


def _known(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option}: found {value!r}.{did_you_mean(value, allowed)}")


def _lines(found: dict[str, Any]) -> list[str]:
    of = found["agreement"]
    rows = "held-out rows" if of["rows"] == "held_out" else "rows of its training, since none were held out"
    lines = [f"{_share(of['same_answer'])} the same answer as the student in its run, on {of['n']} {rows}"]
    if of["same_label"]:
        lines.append(f"{_share(of['same_label'])} the same label, where it gave one ({of['same_label']['n']} rows)")
    lines += [
        f"  row {row['row_id'][:10]}: {brief(row['original'])!r} became {brief(row['exported'])!r}"
        for row in of["differing"][:3]
    ]
    lines += [f"note: {brief(note, 500)}" for note in found["notes"]]
    lines.append(f"licence: {found['licence']}; may be passed on: {found['may_be_published']} (see README.md)")
    return [*lines, f"Export: {found['out']}"]


def _share(of: dict[str, float]) -> str:
    return f"{of['value']:.1%} ({of['low']:.1%} to {of['high']:.1%})"
