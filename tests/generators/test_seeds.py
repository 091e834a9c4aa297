"""Seed rows: formats, columns, encodings, and data sets in a local folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.records import Message, Prompt
from llm_distill.seeds import Columns, read_rows
from llm_distill.text_files import pieces
from tests.conftest import Desk

COLUMNS = Columns(prompt="text", label="sentiment", tags=["lang"])
ROWS = [{"id": 1, "text": 'Grüße, "Ana"\nzwei', "sentiment": "pos", "lang": "de"}]
ROWS += [{"id": 2, "text": "fine", "sentiment": "neg", "lang": None}]


def _brief(prompt: Prompt) -> tuple[str, str | None, dict[str, str]]:
    return prompt.text, prompt.label, prompt.tags


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = io.StringIO(newline="")
    if kind == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = [_brief(p) for p in read_rows(_write(tmp_path / name, ROWS), COLUMNS)]
    assert found == [(ROWS[0]["text"], "pos", {"lang": "de"}), ("fine", "neg", {})]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_table_with_a_rows_own_names_needs_no_columns(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [{"prompt": "a", "label": "x", "reference": "r", "tags.lang": "de"}])
    (row,) = read_rows(path)
    assert (*_brief(row), row.reference) == ("a", "x", {"lang": "de"}, "r")
    _write(path, [{"prompt": "a", "lable": "x"}])
    with pytest.raises(UserError, match=r"its columns are 'prompt', 'lable'; .*and no others"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_conversations_and_objects_of_tags(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = _write(tmp_path / name, [{"chat": turns, "tags": {"a": "1", "b": None}, "n": 3}])
    (row,) = read_rows(path, Columns(messages="chat", reference="chat", tags=["tags", "n"]))
    assert (row.messages, row.reference, row.tags) == ((Message("user", "hi"),), "hello", {"a": "1", "n": "3"})
    with pytest.raises(UserError, match="the last message must be a user turn"):
        list(read_rows(path, Columns(messages="chat")))
    with pytest.raises(UserError, match="column 'chat' holds list, no text"):
        list(read_rows(path, Columns(prompt="chat")))


def test_a_map_of_a_parquet_file_is_an_object_of_tags(tmp_path: Path) -> None:
    tags = pa.array([[("lang", "de")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"prompt": ["a"], "tags": tags}), tmp_path / "a.parquet")
    assert [p.tags for p in read_rows(tmp_path / "a.parquet")] == [{"lang": "de"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, ROWS)
    with pytest.raises(UserError, match=r"no column 'txt'. Did you mean 'text'"):
        list(read_rows(path, Columns(prompt="txt")))
    with pytest.raises(UserError, match=r"no column 'language'.*Allowed: id, lang, sentiment, text"):
        list(read_rows(path, Columns(prompt="text", tags=["language"])))
    with pytest.raises(UserError, match="no column 'language'"):
        list(read_rows(path, Columns(prompt="text", tags=["language"]), limit=1))


BAD_TABLES: list[tuple[str, bytes, str]] = [
    ("a.csv", b'text\n"two\nlines"\na,b\n', ":4: 2 fields, but the header has 1"),
    ("a.csv", b"text,lang\na\n", ":2: 1 fields, but the header has 2"),
    ("a.csv", b"text,text\na,b\n", "column 'text' stands there 2 times"),
    ("a.csv", b'text\n"open\nfor ever\n', ":2: malformed row: .*left open"),
    ("a.csv", b"text\n\n,\n", ":3: 2 fields"),
    ("a.csv", b'text\n""\n', ":2: the last message must be a user turn with some text"),
    ("a.csv", b"text\n", "the file holds no rows"),
    ("a.csv", b"", "the file holds no rows|no column 'text'"),
    ("a.jsonl", b"\n \n", "the file holds no rows"),
    ("a.jsonl", b"[1]\n", ":1: malformed row: .*one JSON object a line"),
    ("a.parquet", b"PAR1 not at all", "not a Parquet file"),
    ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "cannot be read: "),
    ("a.xlsx", b"PK", "rows are read from .jsonl, .csv, .tsv"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_TABLES, ids=[m for *_, m in BAD_TABLES])
def test_a_bad_file_is_named_by_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(path, Columns(prompt="text")))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_torn_parquet_file_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" * 40 for n in range(5000)]}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[100:60_000] = b"\xff" * 59_900
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read after row \d+"):
        list(read_rows(path, Columns(prompt="text")))


def test_an_encoding_is_never_guessed(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "grün"}, ensure_ascii=False) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert [p.text for p in read_rows(path)] == ["grün"]
    path.write_bytes(good.encode() * 3 + good.encode("cp1252"))
    with pytest.raises(UserError, match=r"a.jsonl:4: not UTF-8 text: .* at byte 74. Save the file as UTF-8, or name"):
        list(read_rows(path))
    path.write_bytes(good.encode("cp1252"))
    assert [p.text for p in read_rows(path, encoding="cp1252")] == ["grün"]
    path.write_bytes(good.encode("utf-16"))
    with pytest.raises(UserError, match=r":1: not UTF-8 text.*at byte 0.*it begins like utf-16"):
        list(read_rows(path))
    assert [p.text for p in read_rows(path, encoding="utf-16")] == ["grün"]
    path.write_bytes(good.encode() + b"\xc3")
    with pytest.raises(UserError, match=r":2: not UTF-8 text: unexpected end of data at byte 20"):
        list(read_rows(path))


@given(st.binary(max_size=300), st.integers(1, 9))
def test_text_in_pieces_is_the_text(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    """And where Python finds the first byte that is none, so do we."""
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_bytes(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        whole = data.removeprefix(b"\xef\xbb\xbf")
        with pytest.raises(UnicodeDecodeError) as error:
            whole.decode()
        place = error.value.start + len(data) - len(whole)
        with pytest.raises(UserError, match=rf":{data[:place].count(10) + 1}: .* at byte {place}\."):
            list(pieces(path, size=size))
    else:
        assert "".join(pieces(path, size=size)) == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_a_large_file_is_never_in_memory(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [{"text": f"{n} " + "x" * 200} for n in range(30_000)])
    next(read_rows(path, Columns(prompt="text")))  # what is imported on the way
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path, Columns(prompt="text"))) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 2_500_000
    finally:
        tracemalloc.stop()


def _data_set(folder: Path) -> None:
    import datasets

    kind = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"]), lang=datasets.Value("string")
    )
    rows = {"text": ["good", "bad", "odd"], "label": [0, 1, -1], "lang": ["en", "en", "de"]}
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=kind).to_parquet(str(folder / "train-00000-of-00001.parquet"))


def _seeds(desk: Desk, **knobs: Any) -> list[tuple[str, str | None, Mapping[str, str]]]:
    from llm_distill.generators import Context
    from llm_distill.recipe import load

    plan = load(desk.recipe(prompts=[{"seeds": knobs}]))
    said: list[str] = []
    context = Context([], plan.task, lambda _role, _asked: [], say=said.append)
    return [_brief(p) for p in plan.generators[0](context)]


MAPPED = {"prompt": "text", "label": "label", "tags": ["lang"]}
KNOWN = [("good", "pos", {"lang": "en"}), ("bad", "neg", {"lang": "en"}), ("odd", None, {"lang": "de"})]


def test_class_labels_become_their_names(desk: Desk) -> None:
    _data_set(desk.folder / "reviews")
    assert _seeds(desk, dataset={"name": "reviews"}, columns=MAPPED) == KNOWN
    assert _seeds(desk, dataset={"name": "reviews"}, columns=MAPPED, limit=2) == KNOWN[:2]
    files = {"name": "parquet", "data_files": "reviews/*.parquet"}
    assert _seeds(desk, dataset=files, columns=MAPPED) == KNOWN
    assert _seeds(desk, file="reviews/train-00000-of-00001.parquet", columns=MAPPED) == KNOWN


def test_a_data_set_of_json_lines(desk: Desk) -> None:
    desk.seeds([{"q": "a", "lang": "en"}, {"q": "b"}])
    data = {"name": "json", "data_files": "seeds.jsonl"}
    columns = {"prompt": "q", "tags": ["lang"]}
    assert _seeds(desk, dataset=data, columns=columns) == [("a", None, {"lang": "en"}), ("b", None, {})]
    with pytest.raises(UserError, match="json, train has no column 'x'"):
        _seeds(desk, dataset=data, columns={"prompt": "q", "label": "x"})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"file": "seeds.jsonl", "dataset": {"name": "reviews"}, "columns": MAPPED}, "file: write a `file` or a `dataset`"),
    ({}, r"seeds.file: required and missing; write a `file`, or a `dataset`"),
    ({"dataset": {"name": "reviews"}}, "seeds.columns: a data set needs them"),
    ({"dataset": {"name": "./none"}, "columns": MAPPED}, "dataset: no such folder"),
    ({"dataset": {"name": "csv"}, "columns": MAPPED}, "is a format: name its files"),
    ({"dataset": {"name": "csv", "data_files": "x*"}, "columns": MAPPED}, r"no file matches 'x\*'"),
    ({"dataset": {"name": "reviews", "split": "test"}, "columns": MAPPED}, "cannot be opened: .*test"),
    ({"dataset": {"name": "reviews"}, "columns": {"prompt": "txt"}}, "no column 'txt'. Did you mean 'text'"),
    ({"file": "seeds.jsonl", "columns": {}}, "name the column of `prompt`"),
    (
        {"file": "seeds.jsonl", "columns": {"prompt": "a", "promt": "b"}},
        "columns: no key 'promt'. Did you mean 'prompt'?",
    ),
    ({"file": "seeds.jsonl", "encoding": "utf-9"}, "no encoding 'utf-9'"),
    ({"file": "seeds.jsonl", "encoding": "rot13"}, "no encoding 'rot13'"),
    ({"dataset": {"name": "reviews"}, "columns": MAPPED, "encoding": "cp1252"}, "only text files have an encoding"),
]


@pytest.mark.parametrize(("knobs", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_knobs_are_named(desk: Desk, knobs: dict[str, Any], message: str) -> None:
    desk.seeds([{"prompt": "a"}])
    _data_set(desk.folder / "reviews")
    with pytest.raises(UserError, match=message):
        _seeds(desk, **knobs)


def test_a_local_data_sets_files_are_part_of_the_run(desk: Desk) -> None:
    from llm_distill.recipe import load

    _data_set(desk.folder / "reviews")
    recipe = desk.recipe(prompts=[{"seeds": {"dataset": {"name": "reviews"}, "columns": MAPPED}}])
    before = load(recipe).digest
    (desk.folder / "reviews" / "more.parquet").write_bytes(
        (desk.folder / "reviews").glob("*.parquet").__next__().read_bytes()
    )
    assert load(recipe).digest != before


def test_csv_rows_go_all_the_way(desk: Desk) -> None:
    (desk.folder / "rows.csv").write_text('review,lang\n"good, very",en\nawful,de\n', encoding="utf-8")
    (desk.folder / "held.csv").write_text("prompt,label,tags.lang\ngood too,positive,en\n", encoding="utf-8")
    seeds = {"file": "rows.csv", "columns": {"prompt": "review", "tags": ["lang"]}}
    summary = desk.here(desk.recipe(prompts=[{"seeds": seeds}], held_out={"file": "held.csv"}))
    rows = desk.rows(summary, "answers")
    assert [(r["messages"][0]["content"], r["prediction"], dict(r["tags"])) for r in rows] == [
        ("good, very", "positive", {"lang": "en"}),
        ("awful", "negative", {"lang": "de"}),
    ]
    assert [dict(r["tags"]) for r in desk.rows(summary, "held_out")] == [{"lang": "en"}]
