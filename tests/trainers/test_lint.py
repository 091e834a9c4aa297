"""What the linter sees before the first step: each trap set on purpose, and nothing said where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_distill.errors import UserError
from llm_distill.records import Answer, Message, Sample, make_prompt
from llm_distill.report.html import render as report_page
from llm_distill.tasks import Task
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.findings import Finding, Linted, refuse
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.lint import Shelf, lint
from llm_distill.trainers.logit_kd import logit_kd
from llm_distill.trainers.rows import Row, make_rows
from llm_distill.trainers.soft_targets import SoftTargets
from llm_distill.trainers.targets import Targets
from tests import finished
from tests.conftest import Desk as Folder
from tests.models.conftest import byte_level_tokenizer, fallback_tokenizer, tiny
from tests.trainers.conftest import sft

MakeJob = Callable[..., TrainingJob]
END = 2


def talk(*turns: str, answer: str = "good", row_id: str = "a") -> Sample:
    roles = ("user", "assistant") * len(turns)
    return Sample(row_id, tuple(Message(r, t) for r, t in zip(roles, turns, strict=False)), answer)  # type: ignore[arg-type]


def found(samples: Sequence[Sample], rows: Sequence[Row] | None = None, **more: Any) -> dict[str, Finding]:
    tokenizer = more.pop("tokenizer", None) or byte_level_tokenizer()
    end = tokenizer.eos_token_id
    shelf = Shelf(samples, tokenizer, end, more.pop("max_length", 256), **more)
    rows = make_rows(samples, tokenizer, {end}, None) if rows is None else rows
    return {finding.name: finding for finding in lint(rows, shelf)}


def levels(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.level for name, finding in findings.items() if finding.level != "note"}


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), fallback_tokenizer()], ids=["template", "plain"])
def test_sound_rows_have_notes_alone(tokenizer: Any) -> None:
    samples = [talk("a good film", row_id="a"), talk("a bad film", "bad", "and this?", row_id="b")]
    seen = found(samples, tokenizer=tokenizer, context=256)
    assert levels(seen) == {}
    assert {"end_token", "bos", "template", "prefix", "length", "context", "duplicates", "trained_share"} <= seen.keys()
    assert seen["example"].found.count("⟦") == 2, "the one that says what it means, and the row's"


@pytest.mark.parametrize("trainer", ["sft", "logit_kd"])
def test_what_is_looked_at_is_what_is_learnt(make_job: MakeJob, trainer: str) -> None:
    """Gold in the teacher's place: a teacher who says one label only is no fault of the rows then."""
    task = Task(kind="classify", labels=["good", "bad"])
    rows = []
    for i in range(8):
        prompt = make_prompt((Message("user", f"film {i}"),))
        teacher = Answer(prompt, "good", "ok", prediction="good", label_probs=(0.8, 0.1), role="teacher")
        rows.append(Sample(f"r{i}", prompt.messages, "good", ("good", "bad")[i % 2], teacher))
    job = make_job(rows, task=task, only_lint=True)
    learn = partial(sft, gold=1) if trainer == "sft" else partial(logit_kd, hyper=Hyperparameters(), hard_labels="gold")
    with pytest.raises(Linted) as linted:
        learn(job)
    assert [f.found for f in linted.value.findings if f.name == "labels"] == ["Labels: good 50.0%, bad 50.0%"]


def test_the_end_is_learnt_once_and_last() -> None:
    ids = make_rows([talk("a good film")], byte_level_tokenizer(), {END}, None)[0]
    prompt = ids.prompt_tokens
    broken = {
        "none": Row("a", ids.input_ids[:-1], prompt),
        "twice": Row("a", [*ids.input_ids, END], prompt),
        "within": Row("a", [*ids.input_ids[:-2], END, ids.input_ids[-2]], prompt),
    }
    for row in broken.values():
        seen = found([talk("a good film")], [row])
        assert seen["end_token"].level == "error"
        assert seen["end_token"].rows == ("a",)
    seen = found([talk("a good film")], [Row("a", [*ids.input_ids[:prompt], END], prompt)])
    assert levels(seen) == {"trained_tokens": "error"}


def test_bos_is_counted_against_what_the_template_writes() -> None:
    tokenizer = fallback_tokenizer()
    (row,) = make_rows([talk("a good film")], tokenizer, {tokenizer.eos_token_id}, None)
    doubled = Row("a", [tokenizer.bos_token_id, *row.input_ids], row.prompt_tokens + 1)
    assert found([talk("a good film")], [doubled], tokenizer=tokenizer)["bos"].level == "error"
    within = [*row.input_ids[:3], tokenizer.bos_token_id, *row.input_ids[3:]]
    seen = found([talk("a good film")], [Row("a", within, row.prompt_tokens + 1)], tokenizer=tokenizer)["bos"]
    assert (seen.level, "2 BOS tokens '<bos>' where 1 is right" in seen.found) == ("error", True)
    assert found([talk("a good <bos> film")], tokenizer=tokenizer)["bos"].level == "warning", "a row's own words"
    assert "3 BOS tokens" not in found([talk("a", "b", "c")])["bos"].found, "two for each turn but the last"
    assert "4 BOS tokens" in found([talk("a", "b", "c")])["bos"].found


def test_a_template_within_a_template() -> None:
    twice = "<|im_start|>user\na good film<|im_end|>\n<|im_start|>assistant\n"
    seen = found([talk(twice), talk("fine", row_id="b")])
    assert seen["template"].level == "error"
    assert seen["template"].rows == ("a",)
    assert "applied twice" in seen["template"].found
    spelt = found([talk("what does <|im_end|> mean?")])
    assert levels(spelt) == {"special_tokens": "warning"}
    plain = byte_level_tokenizer("{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}")
    words = found([talk("Q: a good film\nA:")], tokenizer=plain)
    assert words["template"].level == "warning", "words may be a text's own"


def test_text_that_merges_across_the_boundary() -> None:
    glued = byte_level_tokenizer("{% for m in messages %}{{ m['content'] }} th{% endfor %}")
    samples = [talk("a", answer="e film", row_id="a"), talk("b", answer="bad", row_id="b")]
    seen = found(samples, tokenizer=glued)["prefix"]
    assert (seen.level, seen.rows) == ("note", ("a",))
    assert found(samples[:1], tokenizer=glued)["prefix"].level == "warning", "most rows do"


def test_rows_that_are_too_long() -> None:
    samples = [talk("bad " * n, row_id=f"r{n}") for n in (2, 70, 80, 90, 100)]
    seen = found(samples, max_length=64, context=100)
    assert seen["length"].level == seen["context"].level == "error"
    assert seen["length"].found.startswith("4 of 5 rows (80.0%) have more than max_length = 64 tokens (the longest ")
    assert seen["length"].found.count(" of row ") == 3
    assert "4 of them in the prompt alone" in seen["length"].found
    assert "max_position_embeddings" in seen["context"].found


def test_duplicates_and_several_answers() -> None:
    samples = [talk("a", row_id="a"), talk("a", row_id="b"), talk("a", answer="bad", row_id="c")]
    seen = found(samples)
    assert levels(seen) == {"duplicates": "warning"}
    assert seen["duplicates"].rows == ("b",)
    assert seen["answers"].found.startswith("1 prompts have several answers")


def test_labels_that_are_rare_or_missing() -> None:
    task = Task.model_validate(
        {"kind": "classify", "labels": ["good", "bad"]}, context={"folder": Path(), "files": set()}
    )
    even = [talk(f"{i}", answer=("good", "bad")[i % 2], row_id=f"r{i}") for i in range(20)]
    assert levels(found(even, task=task)) == {}
    assert "has no row" in found(even[::2], task=task)["labels"].found
    assert levels(found([*even[::2], even[1]], task=task)) == {"labels": "warning"}


def test_the_first_error_is_told_with_the_number_of_all() -> None:
    refuse([Finding("note", "a", "fine"), Finding("warning", "b", "odd")])
    with pytest.raises(UserError, match=r"train: wrong. Do this.$"):
        refuse([Finding("warning", "b", "odd"), Finding("error", "c", "wrong", "Do this.")])
    with pytest.raises(UserError, match=r"train: wrong. Do this. This is 1 of 2 errors; `llm-distill lint RUN`"):
        refuse([Finding("error", "c", "wrong", "Do this."), Finding("error", "d", "worse")])


def test_an_error_stops_the_training(make_job: MakeJob, tmp_path: Path) -> None:
    short = tiny("llama", tmp_path / "short", byte_level_tokenizer(), max_position_embeddings=32)
    with pytest.raises(UserError, match="more than the 32 tokens that the student was made to read"):
        sft(make_job(20, model=short))
    with pytest.raises(UserError, match=r"20 of 20 rows .100.0%. have more than max_length = 16 tokens"):
        sft(make_job(20), max_length=16)


def test_findings_are_kept_and_lint_alone_raises_them(make_job: MakeJob) -> None:
    sft(make_job(20), epochs=1)
    out = make_job(20).out
    story = json.loads((out / "training.json").read_text("utf-8"))
    assert {"level", "name", "found", "right", "rows"} == set(story["lint"][0])
    with pytest.raises(Linted) as linted:
        sft(make_job(20, only_lint=True), max_length=16)
    errors = {finding.name for finding in linted.value.findings if finding.level == "error"}
    assert errors == {"length"}, "said with all else, not raised"


def soft(job: TrainingJob, targets: Callable[[Row], Targets], **knobs: Any) -> list[Finding]:
    """What is found of rows with targets."""
    desk = Desk(job, Hyperparameters())
    rows = desk.rows()
    lesson = Lesson(rows, SoftTargets([targets(row) for row in rows], **knobs))
    with pytest.raises(Linted) as linted, stoppable():
        train(desk, lesson)
    return linted.value.findings


def sure(probability: float, *, known: bool = True) -> Callable[[Row], Targets]:
    """A teacher who gives the text's own tokens that probability, and as much as is left to another one."""

    def of(row: Row) -> Targets:
        own = np.array(row.input_ids[row.prompt_tokens :], np.int32)
        ids = np.stack([own, (own + 1) % 300], 1)
        logprobs = np.tile(np.log([[probability, 1 - probability]]), (len(own), 1)).astype(np.float32)
        return Targets(ids, logprobs, np.full(len(own), known))

    return of


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_soft_targets_are_covered_sharp_and_felt(make_job: MakeJob) -> None:
    job = make_job(20, only_lint=True)
    seen = by_name(soft(job, sure(0.9)))
    assert (seen["alignment"].level, seen["temperature"].level, seen["scale"].level) == ("note", "note", "note")
    assert "(100.0%)" in seen["alignment"].found
    assert "90.0% on average" in seen["temperature"].found
    assert "of the whole is the divergence's" in seen["scale"].found
    warm = by_name(soft(job, sure(0.9), temperature=2.0))["temperature"].found
    assert "75.0% on average" in warm, "0.9 ^ (1 / 2) against 0.1 ^ (1 / 2)"
    assert "(90.0% at 1)" in warm
    assert by_name(soft(job, sure(0.999)))["temperature"].level == "warning", "as good as a hard label"
    assert by_name(soft(job, sure(0.5)))["temperature"].level == "warning", "no preference"
    drowned = by_name(soft(job, sure(0.9), alpha=1e-4))["scale"]
    assert (drowned.level, "the divergence hardly counts; raise alpha" in drowned.right) == ("warning", True)


def test_targets_that_teach_nothing_are_an_error(make_job: MakeJob) -> None:
    seen = by_name(soft(make_job(20, only_lint=True), lambda row: sure(0.9, known=row.row_id == "r1")(row)))
    assert seen["alignment"].level == "warning"
    desk = Desk(make_job(20), Hyperparameters())
    rows = desk.rows()
    with pytest.raises(UserError, match="Nothing of the teacher's distributions would be learnt"):
        train(desk, Lesson(rows, SoftTargets([sure(0.9, known=False)(row) for row in rows])))


def test_the_command_lints_a_run_and_the_report_shows_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = finished.copied(tmp_path_factory.getbasetemp(), "lora", tmp_path)
    desk = Folder(tmp_path)
    record = json.loads((run / "run.json").read_text("utf-8"))
    record["recipe_file"] = str(tmp_path / "job.yaml")
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    lines = desk.llm_distill("lint", run).splitlines()
    assert any(line.startswith("note     end_token       Each of ") for line in lines)
    rows = json.loads(desk.llm_distill("lint", run, "--json"))
    assert {row["level"] for row in rows} == {"note"}
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    report = json.loads((run / "report" / "report.json").read_text("utf-8"))
    assert report["training"]["lint"][0]["name"] == "end_token"
    report["training"]["lint"][0] |= {"level": "warning", "found": "<b>Ends</b> are missing", "right": "Look"}
    page = report_page(report)
    assert "Before the first step" in page
    assert "&lt;b&gt;Ends&lt;/b&gt; are missing. Look" in page
    raw = json.loads((run / "recipe.resolved.json").read_text("utf-8"))
    raw["train"] = {"sft": {"max_length": 20}}
    (run / "recipe.resolved.json").write_text(json.dumps(raw), encoding="utf-8")
    assert "1 error, which training would stop at" in desk.llm_distill("lint", run, code=1)
