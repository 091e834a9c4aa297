"""`data push hf://`: the real client of the Hugging Face hub, against a stand-in for the hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import Desk
from tests.mock_hub import MockHub, Repo, serving
from tests.sets.nights import held_out, night, rows, shelf, taught, text
from tests.sets.test_data_commands import PUBLIC

pytest.importorskip("huggingface_hub")
TOKEN, READER = "hf_planted0123456789abcdefghijklmnop", "hf_reader0123456789abcdefghijklmnopq"
TO = "hf://datasets/acme/tone"
HELD = {"held_out": {"share": 0.3}}


@pytest.fixture
def hub() -> Iterator[MockHub]:
    with serving({TOKEN: {"acme"}, READER: set()}) as running:
        yield running


def _env(desk: Desk, hub: MockHub, **more: str) -> dict[str, str]:
    # Without Xet, whose storage server has a protocol of its own: files go by git LFS, as where hf_xet is not installed.
    return {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(desk.folder / "hf"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
    } | more  # fmt: skip


def _push(desk: Desk, hub: MockHub, *arguments: str, code: int = 0, **env: str) -> str:
    process = desk.command("data", "push", *(arguments or ("tone", TO)), **_env(desk, hub, **env))
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    assert TOKEN not in out + err
    assert READER not in out + err
    return out if code == 0 else err.strip().splitlines()[-1]


def _parquet(repo: Repo) -> set[str]:
    return {path for path in repo.files if path.endswith(".parquet")}


def test_a_set_is_pushed_and_what_is_there_already_is_not_sent_again(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(30)), **HELD, **PUBLIC)
    assert "Sent tone@v1 to" in _push(desk, hub)
    repo = hub.repos["acme/tone"]
    assert repo.private
    assert [message for _, message, _ in repo.commits] == ["initial commit", "tone version 1"]
    first, sent = _parquet(repo), list(hub.uploaded)
    assert len(sent) == len(first) == 2
    night(desk, rows(range(30, 40)), **HELD, **PUBLIC)
    _push(desk, hub)
    assert first < _parquet(repo)
    new = hub.uploaded[len(sent) :]
    assert len(new) == len(_parquet(repo) - first)
    assert not set(new) & set(sent)
    assert json.loads(repo.files["manifest.json"])["version"] == 2
    before = len(hub.uploaded)
    _push(desk, hub)  # nothing has changed: no file and no commit
    assert (len(hub.uploaded), len(repo.commits)) == (before, 3)
    assert not (desk.folder / "hf" / "token").exists()


def test_what_a_version_does_not_name_goes_and_files_of_others_stay(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(6)), **PUBLIC)
    _push(desk, hub)
    repo = hub.repos["acme/tone"]
    repo.commit("by hand", repo.files | {"data/customers.parquet": b"somebody else's", "LICENSE": b"ours"})
    night(desk, rows([0]), filter=["empty", {"length": {"min": 2}}], **PUBLIC)
    night(desk, rows(range(6, 9)), **PUBLIC)
    desk.llm_distill("forget", "--where", f"question == {text(0)!r}", "--yes")
    before = _parquet(repo)
    process = desk.command("data", "push", "tone", TO, **_env(desk, hub))
    assert "gone from acme/tone, not from its history" in " ".join(process.communicate(timeout=240)[1].split())
    found = shelf(desk)
    assert len(_parquet(repo)) == 1 + len(found.manifest(found.latest)["shards"])
    assert before - _parquet(repo)
    assert repo.files["data/customers.parquet"] == b"somebody else's"
    assert repo.files["LICENSE"] == b"ours"


def test_a_push_takes_no_other_sets_place_on_the_hub(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(3)), **PUBLIC)
    night(desk, rows(range(3)), **PUBLIC | {"data_set": "mood"})
    _push(desk, hub)
    repo = hub.repos["acme/tone"]
    commits = len(repo.commits)
    assert "holds the data set 'tone'" in _push(desk, hub, "mood", TO, code=2)
    assert len(repo.commits) == commits
    _push(desk, hub)


def test_the_set_is_loaded_back_from_the_hub_with_its_splits_apart(desk: Desk, hub: MockHub) -> None:
    pytest.importorskip("datasets")
    night(desk, rows(range(30)), **HELD, **PUBLIC)
    _push(desk, hub)
    night(desk, rows(range(30, 45)), **HELD, **PUBLIC)
    _push(desk, hub)
    old = hub.repos["acme/tone"].commits[1][0]
    environment = os.environ | _env(desk, hub)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, old], check=False, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["None"] == {"train": taught(desk), "held_out": held_out(desk)}
    assert found[old] == {"train": taught(desk, 1), "held_out": held_out(desk, 1)}
    assert len(found["None"]["held_out"]) > 3
    assert found["anonymous"] == "RepositoryNotFoundError"  # private


_LOAD = """
import datasets, huggingface_hub, json, sys
found = {}
for revision in (None, sys.argv[1]):
    splits = datasets.load_dataset("acme/tone", revision=revision)
    found[str(revision)] = {name: [row[-1]["content"] for row in split["messages"]] for name, split in splits.items()}
try:
    huggingface_hub.HfApi(token=False).dataset_info("acme/tone")
except Exception as error:
    found["anonymous"] = type(error).__name__
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("env", "target", "words"),
    [
        ({"HF_TOKEN": ""}, TO, "HF_TOKEN is not set; export a token that may write there."),
        ({"HF_TOKEN": "hf_unknown0123456789"}, TO, "the hub answered 401 (Invalid credentials in Authorization header). HF_"),
        ({"HF_TOKEN": READER}, TO, "the hub answered 403 (You don't have the rights"),
        ({}, "hf://datasets/others/tone", "HF_TOKEN may not write to others/tone; give it write access"),
        ({}, "hf://spaces/acme/tone/more", "write hf://datasets/ORG/NAME."),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, TO, "ConnectError"),
    ],
)  # fmt: skip
def test_who_may_not_push_is_told_what_helps(
    desk: Desk, hub: MockHub, env: dict[str, str], target: str, words: str
) -> None:
    night(desk, rows(range(4)), **PUBLIC)
    assert words in _push(desk, hub, "tone", target, code=2, **env)
    assert not hub.uploaded


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (("POST", "/commit/"), 409, "acme/tone was changed meanwhile; push again."),
        (("POST", "/preupload/"), 404, "There is no acme/tone that HF_TOKEN may see"),
        (("POST", "/objects/batch"), 403, "HF_TOKEN may not write to acme/tone"),
        (("PUT", "/storage/"), 403, "the hub answered 403"),
        (("POST", "/validate-yaml"), 500, "the hub answered 500"),
    ],
)
def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(
    desk: Desk, hub: MockHub, fault: tuple[str, str], status: int, words: str
) -> None:
    """The hub repeats the token that it was sent: it is not shown."""
    night(desk, rows(range(4)), **PUBLIC)
    hub.faults = {fault: status}
    assert words in _push(desk, hub, code=2)
    assert len(hub.repos["acme/tone"].commits) == 1
    hub.faults = {}
    _push(desk, hub)
    assert _parquet(hub.repos["acme/tone"])


def test_who_pushed_meanwhile_is_not_overwritten(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(4)), **PUBLIC)
    hub.meanwhile = lambda: hub.repos["acme/tone"].commit("somebody else's", {"README.md": b"theirs"})
    assert "acme/tone was changed meanwhile; push again." in _push(desk, hub, code=2)
    assert hub.repos["acme/tone"].files == {"README.md": b"theirs"}


def test_with_xet_a_storage_that_is_not_there_is_one_message(desk: Desk, hub: MockHub) -> None:
    pytest.importorskip("hf_xet")
    night(desk, rows(range(4)), **PUBLIC)
    message = _push(desk, hub, code=2, HF_HUB_DISABLE_XET="0")
    assert message.startswith(f"llm-distill: {TO}: ")
    assert any("xet-write-token" in asked for asked in hub.asked)


def test_a_repository_that_is_public_stays_so_and_it_is_said(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(4)), **PUBLIC)
    hub.repos["acme/tone"] = Repo(private=False)
    hub.repos["acme/tone"].commit("initial commit", {})
    process = desk.command("data", "push", "tone", TO, **_env(desk, hub))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "note: acme/tone is public" in err


def test_nothing_is_asked_of_the_hub_where_the_recipe_does_not_publish(desk: Desk, hub: MockHub) -> None:
    night(desk, rows(range(4)), models=PUBLIC["models"])
    assert "did not state `policy: {publish: true}`" in _push(desk, hub, code=2)
    assert not hub.asked
