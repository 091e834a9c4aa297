"""Leakage: against held-out rows, files and benchmarks, in the same words and in others; what cannot be had is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Message, make_prompt
from llm_distill.scorers import SCORERS, Context, Scored, bind_filters
from llm_distill.scorers.benchmarks import benchmarks
from llm_distill.scorers.overlap import leakage
from llm_distill.tasks import Task
from tests.scorers.rows import answer

CONTEXT = Context(Task(kind="generate"))
#: In the style of GSM8K, written for this test.
QUESTION = (
    "Mara packs 14 boxes with 6 jars each on Monday and twice as many boxes on Tuesday. "
    "How many jars does she pack on both days together?"
)


def _scored(folder: Path, rows: list[str], **knobs: Any) -> Scored:
    """The scorer as a recipe in a folder would name it."""
    reading = Reading(folder=folder, files=set(), roles=())
    scored: Scored = bind("scorer", Spec("leakage", knobs, "filter.leakage"), SCORERS, reading)(
        [answer("a", prompt=r) for r in rows], CONTEXT
    )
    return scored


def _file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "public.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_file_of_another_benchmark_is_compared_by_thirteen_words(tmp_path: Path) -> None:
    _file(tmp_path, [{"id": 1, "question": "Who wrote it?"}, {"id": 2, "question": QUESTION}])
    rows = [
        QUESTION.upper(),
        f"Solve this. {QUESTION} Think step by step.",
        "Mara packs 14 boxes with 6 jars each. How many jars are there?",  # 12 words in a row at most
        "Who wrote it",  # a short text leaks when it is the same
        "Who wrote it, and when?",
        "",
    ]
    scored = _scored(tmp_path, rows, against=[{"file": "public.jsonl", "columns": ["question"]}])
    assert scored.values[0] == scored.values[3] == 1.0
    assert 0.3 < scored.values[1] < 1.0
    assert scored.values[2] == scored.values[4] == scored.values[5] == 0.0
    assert scored.why[0] == "1.00 of its 13-grams stand in public.jsonl"
    assert _scored(tmp_path, rows, against=[{"file": "public.jsonl", "columns": ["question"]}], n=5).values[2] > 0.2


def test_rows_of_a_seed_file_need_no_columns(tmp_path: Path) -> None:
    _file(tmp_path, [{"prompt": QUESTION, "label": "84"}])
    assert _scored(tmp_path, [QUESTION, "else"], against=["public.jsonl"]).values == [1.0, 0.0]


def test_held_out_rows_count_as_well_and_the_answer_may_be_read() -> None:
    held = make_prompt((Message("user", QUESTION),))
    context = Context(CONTEXT.task, [held])
    rows = [answer(QUESTION, prompt="Repeat the exam question."), answer("252", prompt=QUESTION)]
    assert leakage(rows, context).values == [0.0, 1.0]
    assert leakage(rows, context, of="answer").values == [1.0, 0.0]
    assert leakage(rows, context).why == [None, "1.00 of its 8-grams stand in held-out rows"]
    assert leakage([], context).values == []
    assert leakage(rows, CONTEXT).values == [0.0, 0.0]


def test_a_paraphrase_leaks_by_embedding_alone() -> None:
    context = Context(CONTEXT.task, [make_prompt((Message("user", "How can I change the password of my account?"),))])
    rows = [
        answer("a", prompt="How do I change the password for my account?"),
        answer("a", prompt="When does the train leave?"),
    ]
    assert leakage(rows, context).values == [0.0, 0.0]
    near, far = leakage(rows, context, by="embedding").values
    assert near > 0.9
    assert far < 0.5


def test_bounds_follow_what_is_measured(tmp_path: Path) -> None:
    reading = Reading(folder=tmp_path, files=set(), roles=())
    specs = [Spec("leakage"), Spec("leakage", {"by": "embedding"}), Spec("repetition", {"by": "compression"})]
    assert [filter_.max for filter_ in bind_filters(specs, SCORERS, reading)] == [0.5, 0.9, 2.4]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"against": ["gsm9k"]}, r"no benchmark 'gsm9k'\. Did you mean 'gsm8k'\?"),
        ({"against": ["missing.jsonl"]}, r"no such file: .*missing\.jsonl"),
        ({"against": ["notes.txt"]}, r"rows are read from \.jsonl"),
        ({"against": [{"file": "notes.txt", "column": ["a"]}]}, r"no key 'column'\. Did you mean 'columns'\?"),
        ({"embedder": "wordllama"}, "only `by: embedding` embeds"),
        ({"by": "embedding", "embedder": "./nothing"}, "no such model folder or file"),
    ],
)
def test_a_wrong_recipe_is_found_before_anything_is_read(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    with pytest.raises(UserError, match=message):
        bind(
            "scorer", Spec("leakage", knobs, "filter.leakage"), SCORERS, Reading(folder=tmp_path, files=set(), roles=())
        )


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    _file(tmp_path, [{"question": "q"}])
    with pytest.raises(UserError, match=r"public\.jsonl:1: no column 'questions'\. Did you mean 'question'\?"):
        _scored(tmp_path, ["a"], against=[{"file": "public.jsonl", "columns": ["questions"]}])


def test_a_benchmark_that_is_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("llm_distill.models.hub.answers", lambda endpoint: False)
    with pytest.raises(
        UserError, match=r"gsm8k \(openai/gsm8k\): .* is out of reach; go online, .*, or download its questions"
    ):
        _scored(tmp_path, ["a"], against=["gsm8k"])


def test_a_benchmark_that_nothing_reads_is_found_at_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llm_distill.scorers.benchmarks.find_spec", lambda name: None)
    reading = Reading(folder=tmp_path, files=set(), roles=())
    with pytest.raises(UserError, match=r"gsm8k is read by the package datasets: pip install .*; or download its"):
        bind("scorer", Spec("leakage", {"against": ["gsm8k"]}, "filter.leakage"), SCORERS, reading)


def test_a_benchmark_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the line was cut")

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"cannot be read: the line was cut\. Go online, or download its questions"):
        _scored(tmp_path, ["a"], against=["gsm8k"])


def test_a_benchmark_is_read_by_config_split_and_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's part is a stand-in; the library that reads it is not."""
    import datasets

    opened = []

    def load(name: str, config: str, *, split: str, streaming: bool) -> Any:
        opened.append((name, config, split))
        rows = [{"problem": QUESTION if config == "geometry" else f"Find x in {config}.", "solution": "42"}]
        return datasets.Dataset.from_list(rows).to_iterable_dataset() if streaming else None

    monkeypatch.setattr("llm_distill.models.hub.answers", lambda endpoint: True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert _scored(tmp_path, [QUESTION, "other"], against=["math"]).values == [1.0, 0.0]
    assert opened == [("EleutherAI/hendrycks_math", config, "test") for config in benchmarks()["math"].configs]


def test_the_table_of_benchmarks_is_whole() -> None:
    table = benchmarks()
    assert len(table) >= 12
    assert {
        "gsm8k",
        "mmlu",
        "arc_challenge",
        "hellaswag",
        "truthfulqa",
        "humaneval",
        "mbpp",
        "ifeval",
        "winogrande",
        "boolq",
        "math",
    } <= table.keys()
    for name, found in table.items():
        assert found.hub.count("/") == 1, name
        assert found.configs, name
        assert found.columns, name
        assert found.licence, name
        assert found.read >= "2026-11-25", name
