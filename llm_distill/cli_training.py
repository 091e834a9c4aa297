"""The command line's commands on a run's training: look at what would be learnt, train in one process or in several."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_distill.cli_runs import AsJson, RunArg, Workspace, brief, folder_of
from llm_distill.errors import FellShort, UserError

if TYPE_CHECKING:
    from llm_distill.store import RunFolder


def lint(run: RunArg, workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """Look at the rows that a run would train on, as its trainer does before the first step. Trains and asks nothing."""
    from rich.console import Console

    from llm_distill.lint_run import lint_run
    from llm_distill.screen import Screen
    from llm_distill.trainers.findings import as_json as listed

    with Screen(Console(stderr=True)) as screen:
        findings = lint_run(folder_of(run, workspace), workspace, screen, os.environ.get("LLM_DISTILL_LEDGER"))
    if as_json:
        print(json.dumps(listed(findings)))
    for finding in () if as_json else findings:
        print(f"{finding.level:<8} {finding.name:<15} {brief(finding.line, 2000)}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise FellShort(f"lint: {errors} error{'s' if errors > 1 else ''}, which training would stop at.")


def train(
    run: RunArg,
    print_launch: Annotated[
        bool, typer.Option("--print-launch", help="Train nothing: print how to launch it on several GPUs.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs of each machine (processes, of a student whose device is cpu); by default those of this one.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, which must share the workspace.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for accelerate's config; by default accelerate.yaml in the run.", show_default=False
        ),
    ] = None,
    workspace: Workspace = Path("data"),
) -> None:
    """Do a run's train stage, in one process or in every one that `accelerate launch` starts. `run` goes on from there.

    --print-launch writes accelerate's config, sharded (FSDP) where the student is too large for each GPU to hold a whole one,
    and prints the command for each machine. batch_size counts what all GPUs read together.
    """
    from rich.console import Console

    from llm_distill.launch import train_run
    from llm_distill.screen import Screen
    from llm_distill.trainers import processes

    folder = folder_of(run, workspace)
    if print_launch:
        _print_launch(folder, workspace, gpus, nodes, out)
        return
    if gpus or out or nodes > 1:
        raise UserError(
            "--gpus, --nodes and --out go with --print-launch, which writes how to launch several processes."
        )
    try:
        with Screen(Console(stderr=True, quiet=not processes.first())) as screen:
            trained = train_run(folder, workspace, screen, os.environ.get("LLM_DISTILL_LEDGER"))
    except UserError as error:
        if processes.count() == 1:
            raise
        # What is wrong may be wrong in one of them alone, which then has to say so.
        raise UserError(f"process {processes.rank() + 1} of {processes.count()}: {error}") from error
    if processes.first():
        print(f"Trained: {folder.file('student')}" if trained else "Nothing to do: the student is trained.")
        print(f"Run: {folder.path}")


def _print_launch(folder: RunFolder, workspace: Path, gpus: int | None, nodes: int, out: Path | None) -> None:
    import torch

    from llm_distill.launch import launch_of

    count = gpus or torch.cuda.device_count()
    if not count:
        raise UserError("--print-launch: there is no GPU here; say how many each machine has with --gpus.")
    config = (out or folder.file("accelerate.yaml")).resolve()
    found = launch_of(folder, workspace, count, nodes, config)
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(found.config, encoding="utf-8")
    print(f"# {config}: {found.spread}")
    print(found.config)
    if len(found.commands) > 1:
        print("# one for each machine; FIRST_MACHINE is the address of the first, and all of them see this workspace")
    print("\n".join(found.commands))
