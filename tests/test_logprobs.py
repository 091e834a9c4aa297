"""Logprobs from the ledger's bytes to the run's table, its readers, and `show`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.logprob_table import Batch, batches, spelling, token_bytes, vocabularies
from llm_distill.logprob_writer import GROUP_TOKENS, writing
from llm_distill.logprobs import Logprobs
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.store import RunFolder
from llm_distill.tables import look, look_logprobs, token_lines
from tests.conftest import Desk
from tests.mock_api import LABELS, MockApi, label_of

TOKEN = st.binary(max_size=3)
LOGPROB = st.one_of(st.floats(-60.0, 0.0, width=32), st.sampled_from([-np.inf, -9999.0, -1e-6]))
PATH = st.lists(st.tuples(TOKEN, LOGPROB, st.lists(st.tuples(TOKEN, LOGPROB), max_size=4)), max_size=4)
Path_ = list[tuple[bytes, float, list[tuple[bytes, float]]]]


def padded(rows: list[list[Any]], padding: Any) -> np.ndarray:
    width = max(map(len, rows), default=0)
    return np.array([row + [padding] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def of(path: Path_) -> Logprobs:
    tops = [[token for token, _ in others] for _, _, others in path]
    table = padded([[p for _, p in others] for _, _, others in path], -np.inf)
    return Logprobs.of_tokens([token for token, _, _ in path], [p for _, p, _ in path], tops, table)


def half(values: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float64).astype(np.float16)


@settings(deadline=None)  # the first call imports
@given(PATH)
def test_packed_strings_come_back(path: Path_) -> None:
    back = Logprobs.unpack(of(path).pack())
    assert back.tokens == [token for token, _, _ in path]
    assert back.top_tokens == [[token for token, _ in others] for _, _, others in path]
    np.testing.assert_array_equal(back.logprobs, np.array([p for _, p, _ in path], np.float32))
    tops = padded([[p for _, p in others] for _, _, others in path], -np.inf)
    np.testing.assert_array_equal(back.top_logprobs, half(tops))
    assert back.ids is back.top_ids is None


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 300_000), max_size=4)), max_size=5))
def test_packed_ids_come_back(path: list[tuple[int, list[int]]]) -> None:
    tops = padded([others for _, others in path], -1).astype(np.int32)
    spell: Callable[[int], bytes] = lambda number: str(number % 7).encode()  # noqa: E731  several ids spelt alike
    one = Logprobs.of_ids([n for n, _ in path], np.zeros(len(path)), tops, np.where(tops < 0, -np.inf, -1.0), spell)
    back = Logprobs.unpack(one.pack())
    assert back.ids is not None
    assert back.ids.tolist() == [n for n, _ in path]
    np.testing.assert_array_equal(back.top_ids, tops)
    assert back.tokens == [spell(n) for n, _ in path]
    assert back.top_tokens == [[spell(n) for n in others] for _, others in path]


#: As they were written before packed bytes had a mark: with strings, the second position ragged, and with ids.
PLAIN = "9692c40520676f6f64c402e282c408000080be000000bf9292c40520676f6f64c4042062616491c402e282c40800b400be00b800fcc0c0"
PLAIN_IDS = (
    "9692c40520676f6f64c40121c408000080be000020c09292c40520676f6f64c4042062616492c40121c4012ec40800b400be00c100b8"
    "c4080500000009000000c41005000000070000000900000003000000"
)


def test_bytes_of_the_format_before_stay_readable() -> None:
    text = Logprobs.unpack(bytes.fromhex(PLAIN))
    assert text.tokens == [b" good", b"\xe2\x82"]
    assert text.top_tokens == [[b" good", b" bad"], [b"\xe2\x82"]]
    assert text.logprobs.tolist() == [-0.25, -0.5]
    assert text.top_logprobs.tolist() == [[-0.25, -1.5], [-0.5, -np.inf]]
    ids = Logprobs.unpack(bytes.fromhex(PLAIN_IDS))
    assert ids.ids is not None
    assert ids.top_ids is not None
    assert (ids.ids.tolist(), ids.top_ids.tolist()) == ([5, 9], [[5, 7], [9, 3]])
    assert ids.top_tokens == [[b" good", b" bad"], [b"!", b"."]]
    assert ids.logprobs.tolist() == [-0.25, -2.5]
    assert Logprobs.unpack(msgspec.msgpack.encode([[], b"", [], b"", None, None])).tokens == []
    later = bytearray(ids.pack())
    later[1] += 1
    with pytest.raises(UserError, match="another llm-distill"):
        Logprobs.unpack(bytes(later))


def natural(rows: int, *, uniform: bool = False, k: int = 20) -> list[Logprobs]:
    """Completions of 60 to 100 tokens as a large vocabulary has them; the sampled token is drawn by probability."""
    rng = np.random.default_rng(7)
    made = []
    for n in rng.integers(60, 101, rows).tolist():
        ids = rng.integers(0, 150_000, (n, k)) if uniform else np.minimum(rng.zipf(1.25, (n, k)), 149_999)
        fall = np.cumsum(rng.exponential(0.66, (n, k)), axis=1)
        top = -rng.exponential(0.4, (n, 1)) - np.hstack([np.zeros((n, 1)), fall[:, :-1]])
        odds = np.exp(top) / np.exp(top).sum(axis=1, keepdims=True)
        pick = (rng.random((n, 1)) > odds.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
        every = np.arange(n)
        made.append(Logprobs.of_ids(ids[every, pick], top[every, pick], ids, top, lambda number: b"%d" % number))
    return made


def write(folder: Path, rows: list[Logprobs], model: str = "m", vocabulary: Vocabulary | None = None) -> Path:
    path = folder / "logprobs.parquet"
    with writing(path) as add:
        for i, row in enumerate(rows):
            add(f"row {i}", f"key {i}", model, row.pack(), vocabulary)
    return path


def split(batch: Batch) -> list[tuple[list[int], list[float], list[list[int]], list[list[float]]]]:
    """Row by row: ids, logprobs, alternatives and their logprobs."""
    cut = batch.top_offsets[1:-1]
    tops, top_logprobs = np.split(batch.top_ids, cut), np.split(batch.top_logprobs, cut)
    return [
        (
            batch.ids[start:end].tolist(),
            batch.logprobs[start:end].tolist(),
            [part.tolist() for part in tops[start:end]],
            [part.tolist() for part in top_logprobs[start:end]],
        )
        for start, end in zip(batch.offsets, batch.offsets[1:], strict=False)
    ]


@pytest.mark.parametrize("uniform", [False, True])
def test_ids_are_exact_at_scale_and_small_on_disk(tmp_path: Path, uniform: bool) -> None:
    rows = natural(1000, uniform=uniform)
    tokens = sum(len(row.chosen) for row in rows)
    assert tokens > GROUP_TOKENS
    path = write(tmp_path, rows)
    read = list(batches(path))
    assert [name for batch in read for name in batch.row_ids] == [f"row {i}" for i in range(len(rows))]
    assert all(len(batch.chosen) < GROUP_TOKENS + 100 for batch in read)
    np.testing.assert_array_equal(np.concatenate([b.ids for b in read]), np.concatenate([r.ids for r in rows]))
    tops = np.concatenate([r.top_ids for r in rows])
    np.testing.assert_array_equal(np.concatenate([b.top_ids for b in read]), tops.ravel())
    kept = np.concatenate([b.top_logprobs for b in read])
    np.testing.assert_array_equal(kept, half(np.concatenate([r.top_logprobs for r in rows]).ravel()))
    assert path.stat().st_size / tokens < (75 if uniform else 55)
    assert vocabularies(path) == ["m"]
    spelt = token_bytes(path)["m"]
    assert spelt == {number: b"%d" % number for number in np.unique(tops).tolist()}


def test_strings_have_one_id_in_all_row_groups(tmp_path: Path) -> None:
    rows = [Logprobs.of_tokens(r.tokens, r.logprobs, r.top_tokens, r.top_logprobs) for r in natural(900, k=5)]
    path = write(tmp_path, rows)
    assert pq.read_metadata(path).num_row_groups > 1
    assert vocabularies(path) == [None]
    spelt = token_bytes(path)[None]
    assert len(set(spelt.values())) == len(spelt) == max(spelt) + 1
    read = [row for batch in batches(path) for row in split(batch)]
    assert [[spelt[number] for number in ids] for ids, *_ in read] == [row.tokens for row in rows]
    assert [[[spelt[n] for n in top] for top in tops] for _, _, tops, _ in read] == [row.top_tokens for row in rows]


@settings(deadline=None)  # the first call imports
@given(st.lists(PATH, min_size=1, max_size=3))
def test_a_chosen_token_is_always_among_its_alternatives(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = write(tmp_path_factory.mktemp("table"), [of(row) for row in rows])
    spelt = token_bytes(path)[None] if vocabularies(path) else {}
    read = [row for batch in batches(path) for row in split(batch)]
    assert len(read) == len(rows)
    for (ids, logprobs, tops, top_logprobs), row in zip(read, rows, strict=True):
        assert [spelt[number] for number in ids] == [token for token, _, _ in row]
        for number, logprob, top, numbers, (token, own, others) in zip(
            ids, logprobs, tops, top_logprobs, row, strict=True
        ):
            added = [] if token in [other for other, _ in others] else [(token, own)]
            assert [spelt[n] for n in top] == [other for other, _ in others + added]
            assert numbers == half([p for _, p in others + added]).tolist()
            assert numbers[top.index(number)] == logprob


def test_vocabularies_and_strings_in_one_run_keep_apart(tmp_path: Path) -> None:
    spell = {7: b"a", 8: b"b", 9: b"c"}.__getitem__
    one, other = (Logprobs.of_ids([7], [-0.5], [[7, n]], [[-0.5, -1.0]], spell) for n in (8, 9))
    text = Logprobs.of_tokens([b"x"], [-0.5], [[b"x", b"y"]], [[-0.5, -1.0]])
    path = tmp_path / "logprobs.parquet"
    with writing(path) as add:
        for i, (model, row) in enumerate([("a", one), ("b", other), ("a", text), ("b", other), ("a", one)]):
            add(str(i), "key", model, row.pack(), None)
    assert vocabularies(path) == ["a", "b", None]
    (batch,) = batches(path)
    assert batch.vocabularies == ["a", "b", None, "b", "a"]
    assert [ids for ids, *_ in split(batch)] == [[7], [7], [0], [7], [7]]
    assert [tops for _, _, tops, _ in split(batch)] == [[[7, 8]], [[7, 9]], [[0, 1]], [[7, 9]], [[7, 8]]]
    assert token_bytes(path)["a"] == {7: b"a", 8: b"b"}
    assert token_bytes(path)["b"] == {7: b"a", 9: b"c"}
    assert token_bytes(path)[None] == {0: b"x", 1: b"y"}


def test_a_vocabulary_spells_what_the_model_did_not(tmp_path: Path) -> None:
    known = {7: b"x", 8: b"", 9: b""}
    bare = Logprobs.of_ids([7, 8], [-0.5, -1.0], [[7, 9], [8, 7]], [[-0.5, -1.0]] * 2, known.__getitem__)
    path = write(tmp_path, [bare])
    assert token_bytes(path)["m"] == {7: b"x"}
    assert pq.read_table(spelling(path))["bytes"].null_count == 2
    path = write(tmp_path, [bare], vocabulary=Vocabulary({7: "x", 8: "y", 9: "z"}.get, {}, set(), None, "org/name"))
    assert token_bytes(path) == {"org/name": {7: b"x", 8: b"y", 9: b"z"}}
    with pytest.raises(UserError, match="spells token 7 b'other'"):
        write(tmp_path, [bare], vocabulary=Vocabulary({7: "other"}.get, {}, set(), None, "org/name"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["logprob_tokens.parquet", "logprobs.parquet"]


def test_without_a_row_nothing_is_left_and_a_failure_leaves_what_was(tmp_path: Path) -> None:
    path = write(tmp_path, natural(3))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), writing(path) as add:  # noqa: PT012
        for i, row in enumerate(natural(1000)):
            add(str(i), "key", "m", row.pack(), None)
        raise RuntimeError
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_a_few_rows_are_read_without_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, natural(900, k=2))
    wanted = ["row 890", "row 3", "none"]
    (early, late) = batches(path, wanted)
    assert (early.row_ids, late.row_ids) == (["row 3"], ["row 890"])
    rows = natural(900, k=2)
    for batch, row in ((early, rows[3]), (late, rows[890])):
        np.testing.assert_array_equal(batch.ids, row.ids)
        np.testing.assert_array_equal(batch.top_ids, row.top_ids.ravel())  # type: ignore[union-attr]
        assert batch.offsets.tolist() == [0, len(row.chosen)]


def test_any_parquet_reader_reads_it(tmp_path: Path) -> None:
    (row,) = read = pq.read_table(write(tmp_path, [of([(b"a", -0.5, [(b"b", -0.25), (b"a", -0.5)])])])).to_pylist()
    assert len(read) == 1
    assert {key: row[key] for key in ("counts", "chosen", "top_ids")} == {
        "counts": [2],
        "chosen": [1],
        "top_ids": [1, 0],
    }
    assert pq.read_schema(tmp_path / "logprobs.parquet").field("top_logprobs").type.value_type == pa.float16()


def scripted(desk: Desk, *prompts: str, **keys: Any) -> Path:
    desk.seeds([{"prompt": prompt, "label": LABELS[0]} for prompt in prompts])
    return desk.recipe(**{"answers": {"max_tokens": 8, "top_logprobs": 5}} | keys)


def test_a_run_keeps_its_logprobs_and_its_stamp_vouches_for_them(desk: Desk) -> None:
    desk.seeds([{"prompt": "good and new", "label": LABELS[0]}], "held_out.jsonl")
    recipe = scripted(desk, "good one", "other", "good two", evaluate={}, held_out={"file": "held_out.jsonl"})
    summary = desk.run(recipe)
    path = desk.folder / summary["run"] / "logprobs.parquet"
    answers = desk.rows(summary, "answers")
    (batch,) = batches(path)
    assert batch.row_ids == [answer["row_id"] for answer in answers]
    assert batch.requests == [answer["requests"][0] for answer in answers]
    spelt = token_bytes(path)[None]
    assert [spelt[ids[0]].decode() for ids, *_ in split(batch)] == [answer["text"] for answer in answers]
    assert np.exp(batch.logprobs) == pytest.approx([0.9] * 3, rel=1e-3)
    (row,) = look_logprobs(RunFolder(path.parent), "eval/teacher/logprobs", "text == 'positive'", 9)
    assert row["tokens"][0]["token"] == "positive"
    assert not any(stage["ran"] for stage in desk.run(recipe)["stages"].values())
    before = path.read_bytes()
    path.unlink()
    again = desk.run(recipe)
    assert (again["stages"]["answers"]["ran"], again["asked"]) == (True, 0)
    assert path.read_bytes() == before


def test_a_run_without_logprobs_says_so(desk: Desk) -> None:
    recipe = scripted(desk, "good", answers={"max_tokens": 8})
    folder = RunFolder(desk.folder / desk.run(recipe)["run"])
    assert not folder.file("logprobs.parquet").exists()
    assert not any(stage["ran"] for stage in desk.run(recipe)["stages"].values())
    with pytest.raises(UserError, match=r"answers\.top_logprobs"):
        look_logprobs(folder, "logprobs", None, 1)


def test_show_prints_an_answer_token_by_token(desk: Desk) -> None:
    steering = "evil \x1b[31m\u202e\u009b2J\n"
    models = {"teacher": {"scripted": {"rules": {"good": "positive", "bad": steering}, "default": "negative"}}}
    folder = RunFolder(
        desk.folder / desk.run(scripted(desk, "good", "bad", "x", models=models, task="generate"))["run"]
    )
    shown = desk.llm_distill("show", "job", "logprobs", "--where", "text == 'positive' or text.str.contains('evil')")
    assert "  0.9000  'positive'" in shown
    assert r"'evil \x1b[31m\u202e\x9b2J\n' 0.0500" in shown
    assert len(shown.splitlines()) == 4
    assert all(character.isprintable() or character == "\n" for character in shown)
    printed = desk.llm_distill("show", "job", "logprobs", "--json", "--limit", "2")
    assert printed.isascii()
    assert len(printed.splitlines()) == 2
    row = json.loads(printed.splitlines()[0])
    (token,) = row["tokens"]
    assert token["bytes"] == list(token["token"].encode())
    assert [other["probability"] for other in token["top"]] == pytest.approx([0.9, 0.05, 0.05], rel=1e-3)
    assert (token["id"], row["vocabulary"]) == (None, None)
    with pytest.raises(UserError, match="Columns:"):
        look_logprobs(folder, "logprobs", "nothing == 1", 1)
    for table in ("logprobs", "logprob_tokens"):
        with pytest.raises(UserError, match="no table"):
            look(folder, table)


@pytest.fixture
def vocabulary(desk: Desk) -> Path:
    """The mock endpoint's: a label is a token."""
    folder = desk.folder / "served"
    folder.mkdir()
    pieces = {label: number for number, label in enumerate(LABELS)}
    model = {"type": "WordLevel", "vocab": pieces, "unk_token": LABELS[0]}
    description: dict[str, object] = {"version": "1.0", "model": model, "added_tokens": [], "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return folder


def vllm(api: MockApi, **knobs: Any) -> dict[str, Any]:
    model = {"base_url": api.url, "model": "mock-large", "api_key_env": None, "token_ids": True, **knobs}
    return {"teacher": {"openai_api": model}}


def test_ids_of_an_endpoint_are_kept_and_spelt(desk: Desk, api: MockApi, vocabulary: Path) -> None:
    prompts = [f"row {i}" for i in range(6)]
    recipe = scripted(desk, *prompts, models=vllm(api, tokenizer="served"), filter=[{"confidence": {"min": 0.5}}])
    summary = desk.run(recipe)
    assert all(body["return_token_ids"] and body["return_tokens_as_token_ids"] for body in api.bodies)
    (batch,) = batches(desk.folder / summary["run"] / "logprobs.parquet")
    assert batch.vocabularies == ["served"] * 6
    assert [LABELS[number] for number in batch.ids.tolist()] == [label_of(prompt) for prompt in prompts]
    assert sorted(batch.top_ids[:2].tolist()) == [0, 1]
    for row in desk.rows(summary, "kept"):
        assert row["label_probs"] == pytest.approx(
            [np.exp(-0.1), np.exp(-2.5)][:: 1 if row["text"] == LABELS[0] else -1], rel=1e-3
        )
    (row,) = look_logprobs(RunFolder(desk.folder / summary["run"]), "logprobs", None, 1)
    assert f"{label_of('row 0')!r}" in "".join(token_lines(row))
    shutil.copytree(vocabulary, desk.folder / "other")
    (desk.folder / "other" / "tokenizer.json").write_text(
        (vocabulary / "tokenizer.json").read_text().replace("tive", "!")
    )
    wrong = desk.recipe(
        models=vllm(api, tokenizer="other"),
        answers={"max_tokens": 8, "top_logprobs": 5},
        filter=[{"confidence": {"min": 0.5}}],
    )
    assert "other spells token" in desk.llm_distill("run", wrong, code=2)
    assert desk.run(scripted(desk, *prompts, models=vllm(api, tokenizer="served")))["asked"] == 0
    assert len(api.bodies) == 6  # what was paid for under a wrong tokenizer is kept


def test_ids_without_bytes_are_enough_for_free_text(desk: Desk, api: MockApi) -> None:
    summary = desk.run(
        scripted(desk, "row 0", models=vllm(api), task="generate", filter=[{"confidence": {"min": 0.5}}])
    )
    path = desk.folder / summary["run"] / "logprobs.parquet"
    assert vocabularies(path) == ["mock-large-2026-01-01"]
    assert list(token_bytes(path).values()) == [{LABELS.index(label_of("row 0")): label_of("row 0").encode()}]
    (row,) = look_logprobs(RunFolder(path.parent), "logprobs", None, 1)
    assert f"token_id:{1 - LABELS.index(label_of('row 0'))} 0.08" in "".join(token_lines(row))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "teacher.openai_api.token_ids: the probabilities of labels are read from the bytes of tokens"),
        ({"answers": {"max_tokens": 8}}, "token_ids: ids come with logprobs, and answers.top_logprobs is not set"),
    ],
)
def test_ids_that_cannot_be_used_are_found_before_anything_is_asked(
    desk: Desk, api: MockApi, keys: dict[str, Any], message: str
) -> None:
    assert message in desk.llm_distill("check", scripted(desk, "x", models=vllm(api), **keys), code=2)
    assert not api.bodies


def test_a_tokenizer_that_is_not_there_stops_before_anything_is_asked(desk: Desk, api: MockApi) -> None:
    (desk.folder / "empty").mkdir()
    recipe = scripted(desk, "x", models=vllm(api, tokenizer="empty"))
    assert "has no tokenizer.json" in desk.llm_distill("run", recipe, code=2)
    assert not api.bodies


def test_an_endpoint_that_gives_no_ids_stops_the_run(desk: Desk, api: MockApi) -> None:
    body = {"return_tokens_as_token_ids": False}  # as if it did not know the word
    recipe = scripted(desk, "x", models=vllm(api, extra_body=body), task="generate")
    assert "without ids; remove `token_ids`" in desk.llm_distill("run", recipe, code=2)
