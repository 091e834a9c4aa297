"""`llm-distill data`: list, show, diff, push."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm_distill.scrub import bare
from tests.conftest import Desk
from tests.mock_api import MockApi
from tests.sets.nights import night, rows, shelf

OPEN = {"terms": "apache-2.0", "rules": {"good": "positive"}, "default": "negative"}
PUBLIC = {"models": {"teacher": {"scripted": OPEN}}, "policy": {"publish": True}}


def test_list_show_and_diff_tell_what_is_there_and_what_changed(desk: Desk) -> None:
    night(desk, rows(range(10)))
    night(desk, [*rows(range(11, 21, 2)), *rows([2])], filter=["empty", {"length": {"max": 9}}])
    assert desk.llm_distill("data", "list").startswith("tone@v2  15 rows, 0 held out; 5 came on")
    shown = desk.llm_distill("data", "show", "tone@v2", "--limit", "1")
    assert "5 rows and 0 held-out ones came, 0 went; not new: exact 1" in shown
    assert "tags.parity 0 33.3 %, 1 66.7 %" in shown
    found = json.loads(desk.llm_distill("data", "diff", "tone@v1", "tone@v2", "--json"))
    assert (len(found["taught"]["added"]), len(found["taught"]["removed"])) == (5, 0)
    parity = next(s for s in found["slices"] if s["slice"] == "tags.parity" and s["value"] == "1")
    assert (parity["before"], parity["after"]) == (0.5, 0.666667)
    assert {"filter": "length", "before": None, "after": 0.0} in found["drop_rates"]
    assert found["price"]["between_usd"] == 0.0
    lines = desk.llm_distill("data", "diff", "tone@v1", "tone")
    assert "taught     10 -> 15 rows: 5 added, 0 removed" in lines
    assert "no data set 'ton' in" in desk.llm_distill("data", "show", "ton", code=2)
    assert "Did you mean 'tone'?" in desk.llm_distill("data", "show", "ton", code=2)
    assert "has no version 7; it has v1, v2" in desk.llm_distill("data", "diff", "tone@v1", "tone@v7", code=2)


def test_a_set_is_pushed_to_a_folder_whole_and_unchanged_files_stay(desk: Desk) -> None:
    datasets = pytest.importorskip("datasets")
    night(desk, rows(range(30)), held_out={"share": 0.3}, **PUBLIC)
    desk.llm_distill("data", "push", "tone", desk.folder / "out")
    first = {file.name for file in (desk.folder / "out" / "data").iterdir()}
    night(desk, rows(range(30, 40)), held_out={"share": 0.3}, **PUBLIC)
    desk.llm_distill("data", "push", "tone", desk.folder / "out")
    assert first < {file.name for file in (desk.folder / "out" / "data").iterdir()}
    loaded = datasets.load_dataset(str(desk.folder / "out"), cache_dir=str(desk.folder / "cache"))  # by its card
    found = shelf(desk)
    assert loaded["train"]["row_id"] == [row["row_id"] for row in found.rows(2, "taught")]
    assert loaded["held_out"]["row_id"] == [row["row_id"] for row in found.rows(2, "held_out")]
    said = (desk.folder / "out" / "README.md").read_text()
    assert 'license: "apache-2.0"' in said
    assert str(desk.folder) not in said
    desk.llm_distill("data", "push", "tone@v1", desk.folder / "out")  # back again: what it does not name is gone
    assert {file.name for file in (desk.folder / "out" / "data").iterdir()} == first


def test_a_push_that_was_cut_off_is_completed_and_files_of_others_stay(desk: Desk) -> None:
    pytest.importorskip("fsspec")
    night(desk, rows(range(6)), **PUBLIC)
    data = desk.folder / "out" / "data"
    data.mkdir(parents=True)
    (data / "customers.parquet").write_bytes(b"somebody else's")
    desk.llm_distill("data", "push", "tone", desk.folder / "out")
    (file,) = data.glob("train-*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    desk.llm_distill("data", "push", "tone", desk.folder / "out")
    assert file.read_bytes() == whole
    night(desk, rows([0]), filter=["empty", {"length": {"min": 2}}], **PUBLIC)
    desk.llm_distill("data", "push", "tone", desk.folder / "out")
    assert (data / "customers.parquet").read_bytes() == b"somebody else's"


def test_a_push_takes_no_other_sets_place(desk: Desk) -> None:
    night(desk, rows(range(3)), **PUBLIC)
    night(desk, rows(range(3)), **PUBLIC | {"data_set": "mood"})
    out = desk.folder / "out"
    desk.llm_distill("data", "push", "tone", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    message = desk.llm_distill("data", "push", "mood", out, code=2)
    assert f"{out} holds the data set 'tone', whose files 'mood' would take the place of" in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "manifest.json").write_text("[]")  # somebody else's
    desk.llm_distill("data", "push", "tone", out)


def test_a_push_takes_no_other_files_place(desk: Desk) -> None:
    """`data push tone .`, or with a variable that is not set, would replace a project's README.md by the card."""
    night(desk, rows(range(3)), **PUBLIC)
    assert "the target is empty" in desk.llm_distill("data", "push", "tone", "", code=2)
    readme = desk.folder / "README.md"
    readme.write_text("# Ours")
    assert "has a README.md that no push wrote" in desk.llm_distill("data", "push", "tone", ".", code=2)
    assert readme.read_text() == "# Ours"
    readme.unlink()
    desk.llm_distill("data", "push", "tone", ".")
    (desk.folder / "manifest.json").unlink()  # cut off before the last file
    desk.llm_distill("data", "push", "tone", ".")


def test_an_error_of_a_push_names_no_password(desk: Desk, api: MockApi) -> None:
    """The endpoint knows no such address, and the client's error quotes it."""
    pytest.importorskip("fsspec")
    night(desk, rows(range(4)), **PUBLIC)
    where = api.url.removeprefix("http://")
    message = desk.llm_distill("data", "push", "tone", f"http://me:hunter2x@{where}/nowhere?sig=planted", code=2)
    assert f"data push http://{where}/nowhere" in message
    assert "hunter2x" not in message
    assert "planted" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://AKIA:pa/ss@bucket/sets", "s3://bucket/sets"),
        ("no https://token@host/a and 'ftp://me:x@h/b'", "no https://host/a and 'ftp://h/b'"),
        ("sftp://me:hun@ter@2@host/a@b", "sftp://host/a@b"),
        ("hdfs://host:8020/sets@v3", "hdfs://host:8020/sets@v3"),
        ("file:///tmp/a@b", "file:///tmp/a@b"),
        ("az://box/x?sig=abc: gone", "az://box/x?***: gone"),
    ],
)
def test_addresses_are_told_without_who_asks(text: str, said: str) -> None:
    assert bare(text) == said.replace("?***: gone", "?*** gone")


def test_rows_held_out_leave_the_house_only_where_their_recipe_says_so(desk: Desk) -> None:
    """The set's first recipe, which may not publish, brought rows of both sides; its taught ones are forgotten."""
    ours = night(desk, rows(range(12)), name="house", models=PUBLIC["models"], held_out={"share": 0.5})
    night(desk, rows(range(12, 24)), name="open", held_out={"share": 0.5}, **PUBLIC)
    desk.llm_distill("forget", "--where", "recipe == 'house' and text == text", "--yes")
    left = {row["recipe"] for row in shelf(desk).rows(shelf(desk).latest, "taught")}
    assert left == {"open"}
    message = desk.llm_distill("data", "push", "tone", desk.folder / "out", code=2)
    assert f"the recipe of house/{Path(ours['run']).name} did not state" in message
    assert not (desk.folder / "out").exists()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"models": PUBLIC["models"]}, "did not state `policy: {publish: true}`"),
        (
            {
                "models": {"teacher": {"scripted": OPEN | {"terms": None}}},
                "policy": {"publish": True, "accept_unknown": True},
            },
            "",
        ),
    ],
)
def test_what_may_not_leave_the_house_does_not(desk: Desk, keys: dict[str, object], why: str) -> None:
    night(desk, rows(range(4)), **keys)
    if why:
        assert why in desk.llm_distill("data", "push", "tone", desk.folder / "out", code=2)
        assert not (desk.folder / "out").exists()
    else:
        desk.llm_distill("data", "push", "tone", desk.folder / "out")
        assert "not-settled" in (desk.folder / "out" / "README.md").read_text()


def test_terms_that_were_changed_after_the_answers_still_hold(desk: Desk) -> None:
    """Rows stand under the terms of the day they came; a policy that was stated later does not help."""
    record = {"name": "closed", "allows": {"train": True, "publish": False}}
    night(desk, rows(range(4)), models={"teacher": {"scripted": OPEN | {"terms": record}}})
    manifest = shelf(desk).folder(1) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"policy": {"publish": True}}))
    message = desk.llm_distill("data", "push", "tone", desk.folder / "out", code=2)
    assert "4 rows were answered by scripted" in message
    assert "do not allow passing on" in message


@contextmanager
def _s3() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.skipif(not (find_spec("moto") and find_spec("s3fs")), reason="needs moto[server] and s3fs")
def test_a_set_is_pushed_to_an_s3_bucket(desk: Desk) -> None:
    night(desk, rows(range(8)), **PUBLIC)
    with _s3() as url:
        env = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "AKIAPLANTED", "AWS_SECRET_ACCESS_KEY": "planted-secret"}
        env |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull}
        make = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
        subprocess.run([sys.executable, "-c", make], env=os.environ | env, check=True)
        for _ in range(2):
            assert "planted" not in desk.llm_distill("data", "push", "tone", "s3://bucket/sets/tone", code=0, **env)
        look = "import fsspec, json; print(json.dumps(fsspec.filesystem('s3').find('bucket')))"
        done = subprocess.run(
            [sys.executable, "-c", look], env=os.environ | env, check=True, capture_output=True, text=True
        )
        names = {Path(name).name for name in json.loads(done.stdout)}
        assert {"README.md", "manifest.json"} < names
        assert sum(name.endswith(".parquet") for name in names) == 1
        message = desk.llm_distill("data", "push", "tone", "s3://nobody/there", code=2, **env)
        assert "NoSuchBucket" in message or "bucket does not exist" in message
        assert "planted" not in message
