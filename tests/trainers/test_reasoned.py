"""Reasoning before the answer: in the form of the student's own template, and told apart again where it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.reasoning import separate
from llm_distill.records import Answer, Message, Sample, Sampling, make_prompt
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.lint import check_rows
from llm_distill.trainers.reasoned import form_of, reasoned
from llm_distill.trainers.rows import make_rows
from tests.conftest import Desk
from tests.finished import STUDENT, WHOLE, finish
from tests.models.conftest import TEMPLATE, byte_level_tokenizer, fallback_tokenizer, tiny
from tests.trainers.conftest import sft
from tests.trainers.test_sft import curve

MakeJob = Callable[..., TrainingJob]

#: As Qwen3 writes reasoning in a conversation's last turn: a block of its own before the answer.
QWEN = TEMPLATE.replace(
    "{{ m['content'] }}",
    "{% if m['reasoning_content'] is defined %}<think>\n{{ m['reasoning_content'] | trim }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}",
)
#: As DeepSeek-R1's students have it: the prompt opens the block.
OPENING = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
#: With tighter tags than ours.
TIGHT = QWEN.replace("<think>\n", "<think>").replace("\n</think>\n\n", "</think>\n")
TEMPLATES = {"chatml": TEMPLATE, "qwen": QWEN, "opening": OPENING, "tight": TIGHT}
WRITTEN = {
    "chatml": "<think>\nit is dull\n</think>\n\nnegative",
    "qwen": "<think>\nit is dull\n</think>\n\nnegative",
    "opening": "it is dull\n</think>\n\nnegative",
    "tight": "<think>it is dull</think>\nnegative",
}


def thought(reasoning: str | None, text: str = "negative", row_id: str = "r") -> Sample:
    messages = (Message("user", "the film?"),)
    answer = Answer(make_prompt(messages), text, "ok", reasoning=reasoning)
    return Sample(row_id, messages, text, answer=answer)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_it_is_written_as_the_template_writes_it(kind: str) -> None:
    tokenizer = byte_level_tokenizer(TEMPLATES[kind])
    (made,), counts = reasoned([thought(" it is dull\n")], tokenizer, ())
    assert made.completion == WRITTEN[kind]
    assert counts == {"with": 1, "without": 0}
    (row,) = make_rows([made], tokenizer, {2}, 512)
    assert check_rows([row], tokenizer, 2)["trained_tokens"] == row.trained_tokens, "one end, behind the answer"
    said = tokenizer.decode(row.input_ids[row.prompt_tokens : -1])
    assert separate(said) == ("it is dull", "negative")
    if kind == "qwen":
        turns = [
            {"role": "user", "content": "the film?"},
            {"role": "assistant", "content": "negative", "reasoning_content": "it is dull"},
        ]
        whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        assert row.input_ids == whole[: len(row.input_ids)], "token by token what the template makes of it"


@settings(max_examples=80, deadline=None)
@given(reasoning=st.text(max_size=40), answer=st.text(min_size=1, max_size=40), kind=st.sampled_from(sorted(TEMPLATES)))
def test_what_is_written_is_told_apart_again_or_left_out(reasoning: str, answer: str, kind: str) -> None:
    form = form_of(byte_level_tokenizer(TEMPLATES[kind]))
    samples = [thought(reasoning, answer), thought("sure", "yes", "other")]
    made, counts = reasoned(samples, byte_level_tokenizer(TEMPLATES[kind]), ())
    found, text = separate(made[0].completion)
    if counts["with"] == 2:
        assert (found, text.strip()) == (reasoning.strip(), answer.strip())
    else:
        assert made[0].completion == form.written(None, answer)


def test_a_row_without_reasoning_closes_what_the_prompt_has_opened() -> None:
    samples = [thought(None), thought("  "), thought("so\n</think>\nit says"), thought("sure")]
    for kind, alone in (("chatml", "negative"), ("opening", "\n</think>\n\nnegative")):
        made, counts = reasoned(samples, byte_level_tokenizer(TEMPLATES[kind]), ())
        assert [sample.completion for sample in made[:3]] == [alone] * 3
        assert counts == {"with": 1, "without": 3}


def special(template: str) -> Any:
    tokenizer = byte_level_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            byte_level_tokenizer(TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n\n</think>\n\n{%")),
            "closes the reasoning before the answer begins",
        ),
        (
            byte_level_tokenizer(QWEN.replace("think>", "thought>")),
            "'<thought>.n' and '.n</thought>.* evaluation cannot tell",
        ),
        (special(QWEN), "</think> is a special token of the student's"),
    ],
)
def test_a_student_whose_reasoning_could_not_be_read_is_refused(tokenizer: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"train.sft.reasoning: .*{message}.*`reasoning: off`"):
        reasoned([thought("sure")], tokenizer, ())


def test_it_is_refused_before_the_teacher_is_asked(desk: Desk, tmp_path: Path) -> None:
    closed = byte_level_tokenizer(TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n\n</think>\n\n{%"))
    student = {"transformers": {"model": str(tiny("llama", tmp_path / "closed", closed)), "device": "cpu"}}
    desk.seeds([{"prompt": "why"}])
    models = {"teacher": {"scripted": {"default": "so"}}, "student": student}
    with pytest.raises(UserError, match="closes the reasoning before the answer begins"):
        desk.here(desk.recipe(task="generate", models=models, train={"sft": {"reasoning": "on"}}))
    assert not list(desk.folder.rglob("*.parquet"))


def test_a_base_model_writes_the_plain_block() -> None:
    (made,), _ = reasoned([thought("it is dull")], fallback_tokenizer(), ())
    assert made.completion == WRITTEN["chatml"]


def test_what_cannot_be_learnt_is_the_users_to_repair(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match="none of 20 answers has reasoning; name a teacher that shows its own"):
        sft(make_job(20), reasoning="on")
    job = make_job([thought("first\nsecond")], sampling=Sampling(stop=("\n",)))
    with pytest.raises(UserError, match=r"answers.stop has '\\n', which occurs in the reasoning .first: row r."):
        sft(job, reasoning="on")


def test_it_says_what_evaluation_would_cut(make_job: MakeJob) -> None:
    said: list[str] = []
    samples = [thought("it is dull " * (i % 3), row_id=f"r{i}") for i in range(6)]
    sft(make_job(samples, say=said.append, max_tokens=30), reasoning="on", epochs=1)
    assert said[0] == "train: reasoning: 4 with, 2 without"
    longest = max(line["trained_tokens"] for line in curve(make_job(1).out))
    assert said[1].startswith(
        "train: 2 of 6 answers are longer than the 30 tokens that evaluation lets the student write;"
    )
    assert 30 < int(said[1].rstrip(".").rpartition(" ")[2]) < longest


def test_a_student_learns_to_reason(tmp_path: Path) -> None:
    """Through a recipe: the teacher's thoughts are kept apart, learnt, written by the student, and kept apart again."""
    rules = {"good": "<think>\na good thing\n</think>\n\npositive"}
    teacher = {"scripted": {"rules": rules, "default": "<think>\na bad thing\n</think>\n\nnegative"}}
    models: dict[str, Any] = {"teacher": teacher, "student": {"transformers": STUDENT}}
    train = {"sft": WHOLE | {"reasoning": "on", "epochs": 25}}
    run = tmp_path / finish(tmp_path, models=models, filter=["empty"], train=train, answers={"max_tokens": 40})
    story = json.loads((run / "student/training.json").read_text("utf-8"))
    assert story["reasoning"]["without"] == 0 < story["reasoning"]["with"]
    assert "⟦<think>\na " in story["example"]
    import pyarrow.parquet as pq

    rows = pq.read_table(run / "eval/student.parquet").to_pylist()
    assert {row["reasoning"] for row in rows} == {"a good thing", "a bad thing"}
    assert {row["text"] for row in rows} == {"positive", "negative"}
