"""Students of several runs on the rows they share: paired, corrected, and refused where nothing is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.statistics import holm
from llm_distill.evals.students import compare_runs, markdown
from llm_distill.records import Answer
from tests.conftest import Desk
from tests.evals.rows import LABELS, right_on, wrote

TASK = {"classify": {"labels": LABELS}}


def run(home: Path, name: str, answers: list[Answer], task: Any = TASK, **evaluate: Any) -> store.RunFolder:
    """The folder of a run whose student gave these answers."""
    folder = store.RunFolder(home / name / "2026-01-01-0123456789")
    folder.path.mkdir(parents=True)
    store.write_json(folder.file("recipe.resolved.json"), {"name": name, "task": task, "evaluate": evaluate})
    store.write_table(folder.file("eval/student.parquet"), map(store.answer_row, answers), "answers")
    stamp = {"outputs": {"eval": store.digest(folder.file("eval"))}, "student": store.digest(folder.file("student"))}
    folder.save("evaluate", {"owed": 0, **stamp})
    return folder


def test_three_students_on_the_rows_they_share(tmp_path: Path) -> None:
    rows = right_on(100, 90)
    failed = [msgspec.structs.replace(a, status="failed", prediction=None) for a in rows[:10]]
    found = compare_runs(
        [run(tmp_path, "a", right_on(80, 40)), run(tmp_path, "b", rows), run(tmp_path, "c", failed + rows[10:])]
    )
    assert (found["metric"], found["rows"]) == ("accuracy", 80)
    assert [s["score"]["value"] for s in found["students"]] == [0.5, 1.0, 0.875]
    assert [(s["held_out"], s["failed"]) for s in found["students"]] == [(80, 0), (100, 0), (100, 10)]
    first = found["pairs"][0]
    assert (first["run"], first["other"], first["difference"]) == ("b", "a", 0.5)
    assert (first["wins"], first["losses"], first["test"]) == (40, 0, "exact McNemar")
    assert first["low"] < 0.5 < first["high"]
    last = found["pairs"][2]
    assert (last["run"], last["other"], last["difference"]) == ("c", "b", -0.125)
    assert last["p"] == pytest.approx(2 / 2**10, rel=1e-4)
    assert last["p_holm"] == pytest.approx(2 / 2**10, rel=1e-4)  # the largest of the three is left as it is
    assert first["p_holm"] == pytest.approx(3 * first["p"], rel=1e-4)
    said = markdown(found)
    assert "80 held-out rows with gold are common to all (held out: a 80, b 100, c 100)." in said
    assert "| b less a | 50.0 |" in said


def test_texts_are_compared_by_their_f1(tmp_path: Path) -> None:
    references = [f"alpha beta {i}" for i in range(20)]
    one, other = wrote(references, ["alpha"] * 20), wrote(references, references)
    found = compare_runs([run(tmp_path, "one", one, "generate"), run(tmp_path, "two", other, "generate")])
    assert found["metric"] == "token_f1"
    assert found["pairs"][0]["difference"] == pytest.approx(0.5)
    assert found["pairs"][0]["test"] == "sign test"


def test_students_are_compared_by_the_metric_that_their_recipes_name(tmp_path: Path) -> None:
    references = [str(i) for i in range(20)]
    one = wrote(references, [f"about {i + 1}" for i in range(20)])
    two = wrote(references, [f"it is {i} ." for i in range(20)])
    by: dict[str, Any] = {"metrics": [{"numeric": {"tolerance": 0.0}}], "metric": "numeric"}
    folders = [run(tmp_path, "one", one, "generate", **by), run(tmp_path, "two", two, "generate", **by)]
    found = compare_runs(folders)
    assert (found["metric"], found["pairs"][0]["difference"], found["pairs"][0]["test"]) == (
        "numeric",
        1.0,
        "exact McNemar",
    )
    assert "| Student of | numeric accuracy |" in markdown(found)
    loose = by | {"metrics": [{"numeric": {"tolerance": 0.1}}]}
    for name, other in (("own", {}), ("loose", loose)):
        with pytest.raises(UserError, match=r"judged by numeric and .* by (token_f1|numeric), or by other settings"):
            compare_runs([folders[0], run(tmp_path, name, two, "generate", **other)])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one, texts = run(tmp_path, "one", right_on(9, 9)), run(tmp_path, "texts", wrote(["a"] * 9, ["a"] * 9), "generate")
    apart = run(tmp_path, "apart", [msgspec.structs.replace(a, prompt=msgspec.structs.replace(a.prompt, row_id=f"x{i}"))
                                    for i, a in enumerate(right_on(9, 9))])  # fmt: skip
    other = run(tmp_path, "other", [msgspec.structs.replace(a, prompt=msgspec.structs.replace(a.prompt, label="negative"))
                                    for a in right_on(9, 9)])  # fmt: skip
    bare = run(tmp_path, "bare", right_on(9, 9))
    bare.file("eval/student.parquet").unlink()
    torn = run(tmp_path, "torn", right_on(9, 9))
    store.write_table(torn.file("eval/student.parquet"), map(store.answer_row, right_on(9, 3)), "answers")
    learnt_since = run(tmp_path, "since", right_on(9, 9))
    learnt_since.file("student").mkdir()
    learnt_since.file("student/model").write_text("another")
    for second, why in (
        (one, "two or more different runs"),
        (texts, "different tasks"),
        (apart, "no held-out row with gold in common"),
        (other, "another label or reference"),
        (bare, "has no evaluated student"),
        (torn, "its answers, changed after the evaluation"),
        (learnt_since, "the student, or its answers, changed"),
    ):
        with pytest.raises(UserError, match=why):
            compare_runs([one, second])


def test_the_command_line_compares(desk: Desk) -> None:
    home = desk.folder / "data" / "runs"
    run(home, "small", right_on(50, 40))
    run(home, "large", right_on(50, 45))
    found = json.loads(desk.llm_distill("compare", "small", "large", "--json"))
    assert found["pairs"][0]["difference"] == pytest.approx(0.1)
    assert "| large less small | 10.0 |" in desk.llm_distill("compare", "small", "large")
    assert "no run 'medium'" in desk.llm_distill("compare", "small", "medium", code=2)


def test_holm_as_published() -> None:
    """The worked example of R's p.adjust documentation and of textbooks: 0.01, 0.04, 0.03, 0.005 by Holm."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= min(1.0, p * len(ps)) + 1e-12 for p, q in zip(ps, found, strict=True))
    assert [q for _, q in sorted(zip(ps, found, strict=True))] == sorted(found)
