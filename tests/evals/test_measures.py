"""Metrics of texts that a recipe names: their values, their intervals and pairs, and what they say where they cannot measure."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llm_distill.errors import UserError
from llm_distill.evals.compare import compare
from llm_distill.evals.fields import json_fields, schema_valid
from llm_distill.evals.measures import METRICS, Measured, bind_metrics, measure, measures
from llm_distill.evals.texts import chrf, embedding, rouge_l
from llm_distill.plugs import Plug, Reading
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from tests.conftest import Desk
from tests.evals.rows import prompt, wrote

READING = Reading(folder=Path(), files=set(), roles=["judge"])
SCHEMA = json.dumps({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}})


def bound(*named: Any, first: str | None = None, kind: str = "generate", schema: str | None = None) -> list[Plug]:
    return bind_metrics(named, first, kind, schema, READING)


texts = st.text(alphabet=string.ascii_letters + string.digits + " .,'-", max_size=60)


@settings(max_examples=100, deadline=None)
@given(texts, texts)
def test_rouge_l_is_rouge_scores(text: str, due: str) -> None:
    found = rouge_l(wrote([due], [text])).values[0]
    if any(c.isalnum() for c in text + due):  # of two texts without a word it says 0
        assert found == pytest.approx(RougeScorer(["rougeL"]).score(due, text)["rougeL"].fmeasure)
    else:
        assert found == 1


def test_rouge_l_reads_words_that_are_not_english() -> None:
    found = rouge_l(wrote(["Der Bär läuft über die Straße", "кошка спит", "a"], ["der Bär läuft", "КОШКА спит", "—"]))
    assert list(found.values) == pytest.approx([2 * 3 / 9, 1.0, 0.0])


def test_rouge_l_reads_letters_where_no_blank_divides_words() -> None:
    found = rouge_l(wrote(["\u5317\u4eac\u662f\u9996\u90fd"], ["\u9996\u90fd\u662f\u5317\u4eac\u3002"]))
    assert found.values[0] == pytest.approx(2 / 5)


def test_rouge_l_reads_scripts_that_are_written_without_spaces() -> None:
    found = rouge_l(wrote(["今天天气很好。我们去公园。", "GPT模型"], ["今天天气好", "GPT大模型"]))
    assert list(found.values) == pytest.approx([2 * 5 / 16, 2 * 3 / 7])


def test_chrf() -> None:
    """By hand for "ab" against "ac": 1-grams have 1 of 2 right, 2-grams 0 of 1, longer ones are in neither; F2 of the mean."""
    rows = wrote(["the cat", "ab", "", "x", None], ["the cat", "ac", " ", "", "free"])
    found = chrf(rows)
    assert list(found.values[:4]) == pytest.approx([1.0, 0.25, 1.0, 0.0], abs=1e-6)
    assert found.why[4] == "no reference"
    assert chrf(rows[:1], word_order=2).values[0] == pytest.approx(1.0)


def test_embedding_similarity() -> None:
    due = "The battery died after two days."
    rows = wrote(
        [due, due, due, due, "", None], [due, "After two days the battery was dead.", "Tax law of Peru", "", "", "x"]
    )
    same, near, far, none, both, _ = embedding(rows, model="wordllama").values
    assert same == pytest.approx(1, abs=1e-5)
    assert both == 1
    assert 1 > near > 0.5 > far >= none == 0


@pytest.mark.parametrize(
    ("found", "due", "f1"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1.0}', 1.0),
        ('{"a": 1, "b": "y"}', '{"a": 1, "b": "x"}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": "x", "c": null}', 0.5),  # precision 1, recall 1/3
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": {"b": 1}}', '{"a.b": 1}', 0.0),
        ('{"l": [2, 1, 1]}', '{"l": [1, 2, 1]}', 1.0),
        ('{"l": [1, 2]}', '{"l": [1, 2, 2]}', 0.8),
        ('{"l": [{"n": "p"}, {"n": "q"}]}', '{"l": [{"n": "q"}]}', 2 / 3),
        ("{}", "{}", 1.0),
        ("[]", "{}", 0.0),
        ("3", "3", 1.0),
        ("```json\n{}\n```", "{}", 0.0),
        ('{"a": 1, "a": 1}', '{"a": 1}', 0.0),
        ("[" * 100_000, "{}", 0.0),
    ],
)
def test_field_f1(found: str, due: str, f1: float) -> None:
    assert json_fields(wrote([due], [found])).values[0] == pytest.approx(f1)


def test_schema_validity_needs_no_reference() -> None:
    found = schema_valid(wrote([None] * 3, ['{"name": "x"}', '{"name": 3}', "name: x"]), SCHEMA)
    assert list(found.values) == [1, 0, 0]
    assert found.why[1] == "$.name: 3 is not of type 'string'"


def test_what_cannot_be_measured_is_counted_with_its_reason_and_a_failed_row_is_wrong() -> None:
    rows = wrote(["4", "none", None, "7"], ["4", "5", "6", "7"])
    rows[3] = wrote(["4", "none", None, "7"], ["7"] * 4, status="failed")[3]
    scores, lost = measure(bound("numeric")[0], rows, schema=None)
    assert scores == {rows[0].prompt.row_id: 1.0, rows[3].prompt.row_id: 0.0}
    assert lost == {"no reference": 1, "the reference has 0 numbers, and one is due": 1}
    assert measure(bound("numeric")[0], [], schema=None) == ({}, {})


def odd(answers: list[Answer]) -> list[float]:
    return [2.0 for _ in answers]


def short(answers: list[Answer]) -> Scored:
    return Scored([])


@pytest.mark.parametrize(("name", "says"), [("odd", "it gave 2; a metric gives"), ("short", "0 scores for 1 answers")])
def test_a_metric_of_ones_own_is_held_to_the_scale(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        measure(bound(f"tests.evals.test_measures:{name}")[0], wrote(["a"], ["a"]), schema=None)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_scores_a_right_answer_one_and_a_wrong_one_zero(name: str) -> None:
    knobs = {"embedding": {"model": "wordllama"}}
    right = {"code": ("def f(): return 2", "assert f() == 2"), "schema_valid": ('{"name": "x"}', ""),
             "instructions": ("x", '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}')}  # fmt: skip
    wrong = {"code": "def f(): return 3", "schema_valid": "{}", "instructions": "a, b"}
    (plug,) = bound({name: knobs[name]} if name in knobs else name, schema=SCHEMA)
    text, due = right.get(name, ("12", "12"))
    scores, lost = measure(plug, wrote([due, due, due], [text, wrong.get(name, "no"), ""]), schema=SCHEMA)
    assert list(scores.values()) == pytest.approx([1, 0, 0], abs=0.2 if name == "embedding" else 1e-6)
    assert lost == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"named": ["chrff"]}, "evaluate.metrics[0]: no metric 'chrff'. Did you mean 'chrf'?"),
        ({"named": ["chrf"], "kind": "classify"}, "has all of its own; remove it"),
        ({"named": ["chrf", "chrf"]}, "a metric is named once"),
        ({"named": ["token_f1"]}, "no metric 'token_f1'"),
        ({"named": ["schema_valid"]}, "add `schema:` to answers"),
        ({"named": [{"chrf": {"word_order": 3}}]}, "evaluate.metrics[0].chrf.word_order"),
        ({"named": ["embedding"]}, "evaluate.metrics[0].model: required and missing"),
        ({"named": [{"embedding": {"model": "./nowhere"}}]}, "no such model folder"),
        ({"first": "rouge"}, "evaluate.metric: no metric 'rouge' here."),
        ({"named": ["rouge_l"], "first": "rouge"}, "Did you mean 'rouge_l'?"),
        ({"first": "token_f1", "kind": "classify"}, "no metric 'token_f1' here"),
    ],
)
def test_a_mistake_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        bound(*given.pop("named", ()), **given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_arms_are_compared_on_the_metric_that_is_named() -> None:
    references = [str(i) if i else None for i in range(41)]
    right = [f"So it is {i}." for i in range(41)]
    arms = {"student": wrote(references, right[:31] + ["0"] * 10), "teacher": wrote(references, right)}
    of = measures(bound("numeric", "rouge_l"), None)
    found = compare(arms, "generate", [], seed=7, resamples=500, metric="numeric", measures=of)
    student = found["arms"]["student"]
    assert student["numeric"] == {
        "value": 0.75, "low": pytest.approx(0.598, abs=1e-3), "high": pytest.approx(0.858, abs=1e-3), "n": 40,
        "unmeasured": {"no reference": 1},
    }  # fmt: skip
    assert 0 < student["rouge_l"]["value"] < 0.5
    assert student["length_ratio"]["value"] == pytest.approx((30 * 4 + 10) / 40)
    assert found["without_gold"] == 1
    pair = found["paired"]["student_vs_teacher"]
    assert (found["metric"], pair["metric"], pair["test"]) == ("numeric", "numeric", "exact McNemar")
    assert (pair["n"], pair["wins"], pair["losses"]) == (40, 0, 10)
    assert found["headline"].startswith("The student keeps 75.0 % (")
    assert "of its teacher's numeric accuracy (75.0 % against 100.0 %)" in found["headline"]


def test_a_row_that_cannot_be_measured_of_the_student_alone_is_wrong() -> None:
    """No arm gains by failing: neither with an empty answer, nor with one on which a metric gives up."""
    references = [*map(str, range(40)), ""]

    def length(answers: Sequence[Answer]) -> Measured:
        return {a.prompt.row_id: 1.0 for a in answers if a.text}, {}

    student = wrote(references, ["", *["1"] * 40])
    student[40] = wrote(references, [""] * 41, status="failed")[40]
    arms = {
        "student": student,
        "teacher": wrote(references, ["1"] * 41),
        "base_zero_shot": wrote(references, ["1"] * 41),
    }
    found = compare(arms, "generate", [], seed=7, resamples=200, metric="length", measures={"length": length})
    assert (found["paired_rows"], found["paired"]["student_vs_teacher"]["losses"]) == (41, 2)
    assert found["kept_share"]["value"] == pytest.approx(39 / 41)
    assert measure(bound("chrf")[0], student, schema=None)[0][student[40].prompt.row_id] == 0, "though nothing was due"


def test_a_metric_that_measures_nothing_says_why() -> None:
    arms = {"student": wrote(["many"] * 9, ["3"] * 9)}
    found = compare(arms, "generate", [], seed=7, metric="numeric", measures=measures(bound("numeric"), None))
    why = "the reference has 0 numbers, and one is due (9 rows)"
    assert found["arms"]["student"]["undefined"]["numeric"] == why
    assert found["arms"]["student"]["numeric"]["value"] is None


def test_a_recipe_names_its_metrics(desk: Desk) -> None:
    desk.seeds([{"prompt": f"{i} + {i}?", "reference": f"{2 * i}"} for i in range(20)])
    recipe = desk.recipe(
        task="generate",
        models={"teacher": {"scripted": {"rules": {r"^(\d) ": "it is 4", "10": "it is 20"}, "default": "9"}}},
        held_out={"share": 0.9, "near": None},
        evaluate={"metrics": ["numeric", "chrf", {"embedding": {"model": "wordllama"}}], "metric": "numeric"},
    )
    summary = desk.run(recipe)
    report = json.loads((desk.folder / summary["run"] / "report" / "report.json").read_text(encoding="utf-8"))
    teacher = report["arms"]["teacher"]
    assert report["metric"] == "numeric"
    assert {"numeric", "chrf", "embedding", "token_f1", "exact_match", "length_ratio"} <= teacher.keys()
    held = [row["reference"] for row in desk.rows(summary, "held_out")]
    asked = [row["messages"][-1]["content"] for row in desk.rows(summary, "held_out")]
    says = ["4" if q[1] == " " else "20" if "10" in q else "9" for q in asked]
    assert teacher["numeric"]["value"] == pytest.approx(sum(map(str.__eq__, says, held)) / len(held), abs=1e-6)
    page = (desk.folder / summary["run"] / "report" / "report.html").read_text(encoding="utf-8")
    for said in ("chrF", "Right number", "Embedding similarity", "Length / reference"):
        assert said in page
    again = desk.llm_distill("check", recipe, "-s", "evaluate.metric=numerik", code=2)
    assert "no metric 'numerik' here. Did you mean 'numeric'?" in again


def test_rows_keep_their_prompts() -> None:
    row = Answer(prompt("row", reference="4"), "four", "failed", reason="gone")
    measure(bound("numeric")[0], [row], schema=None)
    assert row.text == "four"
