"""A data set leaves the house: to a repository of the Hugging Face hub, or to any address that fsspec writes to.

What terms forbid or the recipes' policy does not state is refused before anything is sent. The hub's token is HF_TOKEN of the
environment, and no login that is stored; keys of buckets are found by the libraries that need them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.scrub import bare
from llm_distill.sets import card
from llm_distill.sets.shelf import SPLITS, Shelf, Split
from llm_distill.terms import Policy, judge

HUB = "hf://"
#: Where folders need not be made, and where making one may make a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_SPLIT: Mapping[Split, str] = {"taught": "train", "held_out": "held_out"}
#: What every card says among its tags.
_CARD = b'- "llm-distill"'
#: How `laid_out` names files of rows; whatever else lies in a folder is not ours to remove.
_OURS = re.compile(rf"(?:{'|'.join(_SPLIT.values())})-\d{{5,}}-[0-9a-f]{{16}}\.parquet")


def push(shelf: Shelf, version: int, target: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Send a version: its Parquet files by split, the manifest and the card. Gives what was sent.

    target: `hf://datasets/ORG/NAME`, a URL of fsspec (`s3://bucket/folder`), or a folder.
    """
    if not target.strip():  # of a variable that is not set: it would be the folder that one stands in
        raise UserError("data push: the target is empty; name a folder, a URL or hf://datasets/ORG/NAME.")
    manifest = shelf.manifest(version)
    for note in allowed(shelf, manifest):
        say(f"note: {note}")
    with tempfile.TemporaryDirectory(dir=shelf.path, prefix=".push.") as home:
        folder = Path(home)
        files = laid_out(shelf, manifest, folder)
        if target.startswith(HUB):
            where = _to_hub(folder, files, target, shelf.name, f"{shelf.name} version {version}", say)
        else:
            where = _to_url(folder, files, target, shelf.name)
    return {"set": f"{shelf.name}@v{version}", "target": where, "files": files, "rows": manifest["rows"]}


def allowed(shelf: Shelf, manifest: Mapping[str, Any]) -> list[str]:
    """UserError where the rows may not leave the house; the notes on what their terms leave open.

    Every recipe whose rows are in the version, held out or not, must have stated `policy: {publish: true}` when it brought
    them.
    """
    runs = sorted({row["run"] for split in SPLITS for row in shelf.rows(manifest["version"], split, ["run"])})
    stated = {made["run"]: made.get("policy") or {} for made in map(shelf.manifest, shelf.versions)}
    accept = True
    for run in runs:
        policy = Policy.model_validate(stated.get(run, {}))
        if not policy.publish:
            raise UserError(
                f"data push: the recipe of {run} did not state `policy: {{publish: true}}`, and its rows are in "
                f"{shelf.name}@v{manifest['version']}; leave them out (`llm-distill forget --where \"run == '{run}'\"`)."
            )
        accept = accept and policy.accepts_unknown
    policy = Policy(train=False, publish=True, accept_unknown=accept)
    return judge(policy, card.records(manifest), card.sources(manifest))


def laid_out(shelf: Shelf, manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """A version as a folder of its own, as the hub and `datasets.load_dataset` read it; gives its files."""
    files: dict[str, list[str]] = {}
    for shard in manifest["shards"]:
        split = shard["split"]
        name = f"data/{_SPLIT[split]}-{len(files.get(split, ())):05}-{shard['file'][:16]}.parquet"
        files.setdefault(split, []).append(name)
        (folder / "data").mkdir(exist_ok=True)
        shutil.copyfile(shelf.shard(shard), folder / name)
    shown = {**manifest, "run": manifest["run"].split("/")[0]}
    (folder / "README.md").write_text(card.written(shelf, shown, files), encoding="utf-8")
    store.write_json(folder / "manifest.json", shown)
    return [*(name for names in files.values() for name in names), "README.md", "manifest.json"]


def _check_place(there: str | bytes, name: str, target: str) -> None:
    """UserError where a manifest that is there already is another set's, whose rows this push would remove."""
    with suppress(ValueError, AttributeError, TypeError):  # somebody else's file of that name says nothing of rows
        found = json.loads(there)
        if "shards" in found and found.get("name") != name:
            raise UserError(
                f"data push: {bare(target)} holds the data set {found.get('name')!r}, whose files {name!r} would take the place "
                "of; name another place, or remove what is there first."
            )


def _to_hub(folder: Path, files: list[str], target: str, name: str, message: str, say: Callable[[str], None]) -> str:
    """One commit, private where the repository is new, of what is not there yet. Gives the commit's address."""
    match = re.fullmatch(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?", target)
    if match is None:
        raise UserError(f"{target}: write hf://datasets/ORG/NAME.")
    try:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise UserError("data push hf://: pip install 'llm-distill[publish]'.") from None
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError(f"{target}: HF_TOKEN is not set; export a token that may write there.")
    if not sys.stderr.isatty():  # its bars would follow the last word
        disable_progress_bars()
    api, repo = HfApi(token=token), match[1]
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        now = api.repo_info(repo, repo_type="dataset")
        if not now.private:
            say(f"note: {repo} is public")
        tree = api.list_repo_tree(repo, repo_type="dataset", revision=now.sha, recursive=True)
        there = {found.path: found.size for found in tree if isinstance(found, RepoFile)}
        if "manifest.json" in there:
            old = api.hf_hub_download(
                repo, "manifest.json", repo_type="dataset", revision=now.sha, local_dir=folder / "there"
            )
            _check_place(Path(old).read_bytes(), name, target)
        gone = [path for path in there if _is_ours(path) and path not in files]
        new = [path for path in files if not _is_ours(path) or there.get(path) != (folder / path).stat().st_size]
        done = api.create_commit(
            repo,
            [
                *(CommitOperationDelete(path) for path in gone),
                *(CommitOperationAdd(path, folder / path) for path in new),
            ],
            commit_message=message,
            repo_type="dataset",
            parent_commit=now.sha,
        )
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  the client's kinds of errors are many: of HTTP, of Xet, of its threads
        raise UserError(f"{target}: {_refusal(error, repo)}") from None
    if gone:
        say(
            f"note: {len(gone):,} files of earlier pushes are gone from {repo}, not from its history: where rows in them were "
            "forgotten, delete them there too (huggingface_hub: permanently_delete_lfs_files)."
        )
    return str(done.commit_url)


def _refusal(error: BaseException, repo: str) -> str:
    """Why the hub does not take it, and what helps."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__  # of a file that was not sent
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or (str(error) if status is None else "")
    why = bare(" ".join(said.split()))[:500].rstrip(".")
    if status is None:
        return f"{type(error).__name__}: {why}. What was sent before is not seen; push again."
    repair = {
        401: "HF_TOKEN is not one that the hub knows, or has expired; export another.",
        403: f"HF_TOKEN may not write to {repo}; give it write access, or push elsewhere.",
        404: f"There is no {repo} that HF_TOKEN may see; check the name and the token's access.",
        409: f"{repo} was changed meanwhile; push again.",
        412: f"{repo} was changed meanwhile; push again.",
    }.get(status, "What was sent before is not seen; push again.")
    return f"the hub answered {status}{f' ({why})' if why else ''}. {repair}"


def _is_ours(path: str) -> bool:
    """Whether a file of a repository is one of rows that a push wrote; it is named by its content."""
    return path.startswith("data/") and _OURS.fullmatch(path.removeprefix("data/")) is not None


def _to_url(folder: Path, files: list[str], target: str, name: str) -> str:
    """Every file, the manifest last: who finds it finds all that it names. Files of earlier pushes that it names no more go."""
    try:
        import fsspec
    except ImportError:
        raise UserError("data push: pip install fsspec, and for s3:// llm-distill[s3].") from None
    try:
        system, path = fsspec.url_to_fs(target)
        if system.exists(f"{path}/manifest.json"):
            _check_place(system.cat_file(f"{path}/manifest.json"), name, target)
        elif system.exists(f"{path}/README.md") and _CARD not in system.cat_file(f"{path}/README.md"):
            raise UserError(
                f"data push: {bare(target)} has a README.md that no push wrote, and the card would take its place; name a folder "
                "of its own, or move that file first."
            )
        if not _BUCKETS & {*([system.protocol] if isinstance(system.protocol, str) else system.protocol)}:
            system.makedirs(f"{path}/data", exist_ok=True)
        for file in files:
            if file.startswith("data/") and _is_there(system, f"{path}/{file}", (folder / file).stat().st_size):
                continue  # named by its content
            system.put_file(str(folder / file), f"{path}/{file}")
        named = {Path(file).name for file in files}
        for old in system.ls(f"{path}/data", detail=False, refresh=True) if system.exists(f"{path}/data") else []:
            if Path(old).name not in named and _OURS.fullmatch(Path(old).name):
                with suppress(FileNotFoundError):
                    system.rm_file(old)
    except (ImportError, ValueError, OSError) as error:
        why = bare(" ".join(str(error).replace(target, bare(target)).split()))
        raise UserError(f"data push {bare(target)}: {type(error).__name__}: {why[:500]}.") from None
    return bare(target)


def _is_there(system: Any, path: str, size: int) -> bool:
    """Whether a file is there, all of it: where files do not appear whole, one that was cut off has its name too."""
    return bool(system.exists(path)) and system.size(path) == size
