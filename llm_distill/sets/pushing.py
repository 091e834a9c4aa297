"""A data set leaves the house: to a repository of the Hugging Face hub, or to any address that fsspec writes to.

What terms forbid or the recipes' policy does not state is refused before anything is sent. Tokens come from the environment
(HF_TOKEN, AWS_ACCESS_KEY_ID and their like), read by the libraries that need them and never by us.
"""

from __future__ import annotations

import re
import shutil
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
#: How `laid_out` names files of rows; whatever else lies in a folder is not ours to remove.
_OURS = re.compile(rf"(?:{'|'.join(_SPLIT.values())})-\d{{5,}}-[0-9a-f]{{16}}\.parquet")


def push(shelf: Shelf, version: int, target: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Send a version: its Parquet files by split, the manifest and the card. Gives what was sent.

    target: `hf://datasets/ORG/NAME`, a URL of fsspec (`s3://bucket/folder`), or a folder.
    """
    manifest = shelf.manifest(version)
    for note in allowed(shelf, manifest):
        say(f"note: {note}")
    with tempfile.TemporaryDirectory(dir=shelf.path, prefix=".push.") as home:
        folder = Path(home)
        files = laid_out(shelf, manifest, folder)
        where = (
            _to_hub(folder, target, shelf.name, version) if target.startswith(HUB) else _to_url(folder, files, target)
        )
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


def _to_hub(folder: Path, target: str, name: str, version: int) -> str:
    """One commit, private where the repository is new."""
    match = re.fullmatch(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?", target)
    if match is None:
        raise UserError(f"{target}: write hf://datasets/ORG/NAME.")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UserError("data push hf://: pip install huggingface_hub, or install llm-distill[train].") from None
    api = HfApi()
    try:
        api.create_repo(match[1], repo_type="dataset", private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=match[1],
            repo_type="dataset",
            folder_path=folder,
            commit_message=f"{name} version {version}",
            delete_patterns=["data/*"],
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = bare(" ".join(str(error).split()))
        raise UserError(
            f"{target}: {type(error).__name__}: {why[:500]}. Is HF_TOKEN set, and may it write there?"
        ) from None
    return str(done)


def _to_url(folder: Path, files: list[str], target: str) -> str:
    """Every file, the manifest last: who finds it finds all that it names. Files of earlier pushes that it names no more go."""
    try:
        import fsspec
    except ImportError:
        raise UserError("data push: pip install fsspec, and for s3:// llm-distill[s3].") from None
    try:
        system, path = fsspec.url_to_fs(target)
        if not _BUCKETS & {*([system.protocol] if isinstance(system.protocol, str) else system.protocol)}:
            system.makedirs(f"{path}/data", exist_ok=True)
        for name in files:
            if name.startswith("data/") and _is_there(system, f"{path}/{name}", (folder / name).stat().st_size):
                continue  # named by its content
            system.put_file(str(folder / name), f"{path}/{name}")
        named = {Path(name).name for name in files}
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
