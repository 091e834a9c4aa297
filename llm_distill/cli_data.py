"""The command line's commands on data sets that grow: `llm-distill data list`, `show`, `diff`, `push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_distill.cli_help import Command, Group
from llm_distill.cli_runs import AsJson, Workspace, brief

app = typer.Typer(
    cls=Group,
    help="Data sets that grow: which there are, what is in a version, what changed, sending one out.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SetArg = Annotated[str, typer.Argument(help="NAME for its last version, or NAME@v3.", show_default=False)]


@app.command("list", cls=Command)
def list_(workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """List the data sets of a workspace with their last versions."""
    from llm_distill.sets.shelf import shelves

    found = []
    for shelf in shelves(workspace):
        manifest = shelf.manifest(shelf.latest)
        found.append({"name": shelf.name, **{k: manifest[k] for k in ("version", "rows", "made", "run", "added")}})
    if as_json:
        print(json.dumps(found))
        return
    for entry in found:
        rows, added = entry["rows"], entry["added"]
        print(
            f"{entry['name']}@v{entry['version']}  {rows['taught']:,} rows, {rows['held_out']:,} held out; "
            f"{added['taught']:,} came on {entry['made'][:10]} from {entry['run']}"
        )
    if not found:
        print(f"No data sets in {workspace / 'sets'}; a recipe's `data_set: NAME` makes one.")


@app.command(cls=Command)
def show(
    data_set: SetArg,
    split: Annotated[str, typer.Option(help="taught or held_out.")] = "taught",
    limit: Annotated[int, typer.Option(min=0, help="Rows to show; 0 shows what the version is alone.")] = 5,
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Show a version: where it came from, what it has, its files, and a few rows."""
    from itertools import islice

    from llm_distill.errors import UserError, did_you_mean
    from llm_distill.sets.shelf import SPLITS, named

    if split not in SPLITS:
        raise UserError(f"--split: found {split!r}.{did_you_mean(split, SPLITS)}")
    shelf, version = named(workspace, data_set)
    manifest = shelf.manifest(version)
    if as_json:
        files = [str(shelf.shard(shard)) for shard in manifest["shards"]]
        print(json.dumps({**manifest, "files": files}, sort_keys=True))
        return
    price = manifest["price"]["usd"]
    print(f"{shelf.name}@v{version}, of {manifest['made']}, by {manifest['run']}")
    print(f"  rows      {manifest['rows']['taught']:,} taught, {manifest['rows']['held_out']:,} held out")
    print(f"  change    {_change(manifest)}")
    print(f"  price     {'unknown' if price is None else f'${price:,.6f}'} for the run that made it")
    for name, values in manifest["slices"].items():
        print(f"  {brief(name):<9} " + ", ".join(f"{brief(v)} {100 * share:.1f} %" for v, share in values.items()))
    for shard in manifest["shards"]:
        print(f"  {shard['split']:<9} {shelf.shard(shard)} ({shard['rows']:,} rows)")
    for row in islice(shelf.rows(version, split), limit):
        print(f"{row['row_id'][:10]}  {brief(row['messages'][-1]['content'], 300)}")
        if row["text"] is not None:
            print(f"    answered  {brief(row['text'], 300)}")


def _change(manifest: dict[str, Any]) -> str:
    added, not_new = manifest["added"], manifest["not_new"]
    said = f"{added['taught']:,} rows and {added['held_out']:,} held-out ones came, {len(manifest['removed']):,} went"
    aside = {**manifest["set_aside"]}
    for why, n in not_new.items():
        aside[why] = aside.get(why, 0) + n
    return said + (f"; not new: {', '.join(f'{why} {n:,}' for why, n in sorted(aside.items()))}" if aside else "")


@app.command(cls=Command)
def diff(one: SetArg, other: SetArg, workspace: Workspace = Path("data"), as_json: AsJson = False) -> None:
    """Say what leads from one version to another: rows added and removed and why, slices, drop rates, prices, teachers."""
    from llm_distill.sets.diff import diff as compare
    from llm_distill.sets.diff import lines
    from llm_distill.sets.shelf import named

    found = compare(named(workspace, one), named(workspace, other))
    print(json.dumps(found, sort_keys=True) if as_json else "\n".join(brief(line, 400) for line in lines(found)))


@app.command(cls=Command)
def push(
    data_set: SetArg,
    target: Annotated[
        str,
        typer.Argument(
            help="hf://datasets/ORG/NAME, a URL of fsspec such as s3://bucket/folder, or a folder.", show_default=False
        ),
    ],
    workspace: Workspace = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Send a version with its card to the Hugging Face hub or to any address that fsspec writes to.

    Every recipe whose rows are in it must state `policy: {publish: true}`, and their terms must allow it. A hub repository
    that is new is made private.
    """
    from rich.console import Console

    from llm_distill.screen import Screen
    from llm_distill.sets.pushing import push as send
    from llm_distill.sets.shelf import named

    shelf, version = named(workspace, data_set)
    with Screen(Console(stderr=True)) as screen:
        found = send(shelf, version, target, screen.say)
    print(json.dumps(found, sort_keys=True) if as_json else f"Sent {found['set']} to {found['target']}")
