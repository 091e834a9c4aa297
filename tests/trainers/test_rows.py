"""Rows are what inference would see and should say: PITFALLS 9, 10, 11 and 14."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from llm_distill.errors import UserError
from llm_distill.models.decoding import Engine, encode
from llm_distill.records import Message, Sample
from llm_distill.trainers.batch_check import check_batch, preview
from llm_distill.trainers.lint import check_rows
from llm_distill.trainers.rows import Row, end_token, make_rows, stop_ids
from tests.models.conftest import TEMPLATE, blank_before, byte_level_tokenizer, fallback_tokenizer

#: Writes its own BOS, trims what it is given, refuses a system turn, ends a turn with a token that is not eos.
PARTICULAR = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def particular_tokenizer() -> Any:
    """As Llama 3 has it: the tokenizer adds a BOS, and so does the template; eos differs from the end of a turn."""
    from tokenizers import processors

    made = byte_level_tokenizer(PARTICULAR)
    made.bos_token = made.eos_token = "<|endoftext|>"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.bos_token_id)]
    )
    assert made("x")["input_ids"][0] == made.bos_token_id
    return made


TOKENIZERS = {
    "chat": (byte_level_tokenizer, {2}),
    "template with its own bos": (particular_tokenizer, {0, 2}),
    "base, adds bos": (fallback_tokenizer, {1}),
    "base, no bos": (lambda: byte_level_tokenizer(None), {2}),
}
COMPLETIONS = [
    "positive",
    " positive",
    "\npositive\n",
    "a bad day\n\nnegative ",
    "日本語 😀",
    "x",
    " ",
    "stop <|im_end|> <eos> go",
]


def sample(completion: str = "positive", prompt: str = "the film was good\nLabel:", row_id: str = "r") -> Sample:
    return Sample(row_id, (Message("user", prompt),), completion)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("completion", COMPLETIONS)
@pytest.mark.parametrize("prompt", ["the film was good\nLabel:", "Label: ", "Label:\n"])
def test_a_row_is_the_prompt_of_inference_then_the_text_then_one_end(
    kind: str, completion: str, prompt: str, student: Any
) -> None:
    make, stops = TOKENIZERS[kind]
    tokenizer = make()
    engine = Engine(AutoModelForCausalLM.from_pretrained(student), tokenizer, name="", identity="", batch_size=1)
    one = sample(completion, prompt)
    (row,) = make_rows([one], tokenizer, stops, 1024)
    assert row.input_ids[: row.prompt_tokens] == encode(engine.tokenizer, one.messages)
    said, end = row.input_ids[row.prompt_tokens : -1], row.input_ids[-1]
    assert b"".join(engine.vocabulary.token(i) for i in said).decode() == completion
    assert end in stops
    assert not set(said) & stops, "an end spelt out by the teacher is text"
    findings = check_rows([row], tokenizer, end)
    assert findings["trained_tokens"] == len(said) + 1
    assert row.labels == [-100] * row.prompt_tokens + said + [end]


@pytest.mark.parametrize("text", ["good", " good"])
def test_a_tokenizers_own_blank_is_not_put_before_that_of_a_text(text: str) -> None:
    """Llama 2's and Mistral's: what such a model says begins with the blank, and its student says the same."""
    tokenizer = blank_before()
    (row,) = make_rows([Sample("r", (Message("user", "bad"),), text)], tokenizer, {1}, None)
    assert tokenizer.convert_ids_to_tokens(row.input_ids[row.prompt_tokens :]) == ["▁good", "<eos>"]
    tokenizer.chat_template = None
    (row,) = make_rows([Sample("r", (Message("user", "bad"),), text)], tokenizer, {1}, None)
    assert tokenizer.decode(row.input_ids[:-1], skip_special_tokens=True).strip() == "bad" + text


def test_the_end_is_the_turns_end_where_generation_stops_there() -> None:
    tokenizer = particular_tokenizer()
    assert end_token(tokenizer, {0, 2}) == 2
    assert end_token(tokenizer, {0}) == 0, "generation would not stop at the end of a turn"


def test_generation_stops_where_rows_end(student: Any) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), byte_level_tokenizer()
    model.generation_config.eos_token_id = [2, 0]
    ids = stop_ids(model, tokenizer)
    assert ids == Engine(model, tokenizer, name="", identity="", batch_size=1).ends == {0, 2}


def test_bos_is_never_doubled() -> None:
    tokenizer = particular_tokenizer()
    (row,) = make_rows([sample()], tokenizer, {0, 2}, 1024)
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([sample(), sample("", row_id="blank")], "1 of 2 samples .first: row blank. have an empty completion"),
        (
            [sample(), sample("bad " * 90, row_id="long")],
            r"1 of 2 rows .50.0%. have more than max_length = 64 tokens .the longest 1\d\d of row long\)",
        ),
    ],
)
def test_what_cannot_be_learnt_whole_is_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_rows(samples, byte_level_tokenizer(), {2}, 64)


def test_a_template_that_refuses_a_role_is_the_users_to_repair() -> None:
    turns = (Message("system", "Be brief."), Message("user", "hello"))
    with pytest.raises(UserError, match="refuses the roles system, user: no system role"):
        make_rows([Sample("r", turns, "hi")], particular_tokenizer(), {0, 2}, 64)


@pytest.mark.parametrize(
    ("ids", "prompt_tokens", "fault"),
    [
        ([1, 50, 60, 2, 2], 2, "2 trained end tokens"),
        ([1, 50, 60, 61], 2, "0 trained end tokens"),
        ([1, 50, 2, 60], 2, "1 trained end tokens '<.im_end.>', where one belongs at the very end"),
        ([1, 50, 2], 2, "nothing to learn but the end token"),
        ([50, 2], 0, "no prompt"),
        ([1, 1, 50, 60, 2], 3, "two BOS tokens '<.im_start.>'"),
    ],
)
def test_malformed_rows_are_refused(ids: list[int], prompt_tokens: int, fault: str) -> None:
    with pytest.raises(UserError, match=f"Row bad has {fault}"):
        check_rows([Row("bad", ids, prompt_tokens)], byte_level_tokenizer(), 2)


TALK = (
    Message("user", "the film?"),
    Message("assistant", "a dull day "),
    Message("user", "the phone?"),
    Message("assistant", "日本語 😀"),
    Message("user", "and the day?"),
)


@pytest.mark.parametrize("kind", ["chat", "template with its own bos"])
def test_every_turn_is_learnt_as_it_would_be_generated(kind: str, student: Any) -> None:
    make, stops = TOKENIZERS[kind]
    tokenizer = make()
    engine = Engine(AutoModelForCausalLM.from_pretrained(student), tokenizer, name="", identity="", batch_size=1)
    one = Sample("r", TALK, "lovely")
    (row,) = make_rows([one], tokenizer, stops, 1024, turns="all")
    assert len(row.learnt) == 3
    for (start, stop), turn in zip(row.learnt, (1, 3, 5), strict=True):
        assert row.input_ids[:start] == encode(engine.tokenizer, TALK[:turn]), "what inference would be shown"
        text = b"".join(engine.vocabulary.token(i) for i in row.input_ids[start : stop - 1]).decode()
        said = TALK[turn].content if turn < 5 else "lovely"
        assert text in (said, said.strip()), "templates may trim"
        assert row.input_ids[stop - 1] in stops
        assert row.labels[start:stop] == row.input_ids[start:stop]
    assert sum(label != -100 for label in row.labels) == row.trained_tokens
    assert row.trained_tokens == sum(stop - start for start, stop in row.learnt)
    assert check_rows([row], tokenizer, row.input_ids[-1])["trained_tokens"] == row.trained_tokens
    (last,) = make_rows([one], tokenizer, stops, 1024)
    assert last.input_ids == row.input_ids
    assert last.labels == [-100] * last.prompt_tokens + last.input_ids[last.prompt_tokens :]


def test_a_turn_that_history_shows_otherwise_is_refused() -> None:
    forgetful = TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    turns = (Message("user", "a"), Message("assistant", "<think>b</think>c"), Message("user", "d"))
    with pytest.raises(UserError, match=r"does not show turn 2 of row r as .* it has 'c<.*Use `turns: last`"):
        make_rows([Sample("r", turns, "e")], byte_level_tokenizer(forgetful), {2}, 1024, turns="all")
    opening = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(UserError, match=r"where its prompt ends in .*<think>"):
        make_rows([Sample("r", TALK, "e")], byte_level_tokenizer(opening), {2}, 1024, turns="all")
    with pytest.raises(UserError, match="no chat template, so nothing would end them"):
        make_rows([Sample("r", TALK, "e")], fallback_tokenizer(), {1}, 1024, turns="all")


def test_an_earlier_turn_has_one_end_too() -> None:
    with pytest.raises(UserError, match="Row bad has 2 trained end tokens"):
        check_rows([Row("bad", [1, 50, 60, 2, 2, 50, 61, 2], 6, ((2, 5),))], byte_level_tokenizer(), 2)
    with pytest.raises(UserError, match="Row bad has nothing to learn but the end token"):
        check_rows([Row("bad", [1, 50, 2, 51, 61, 2], 4, ((2, 3),))], byte_level_tokenizer(), 2)


def test_the_preview_marks_what_is_learnt() -> None:
    (row,) = make_rows([sample()], byte_level_tokenizer(), {2}, 64)
    assert preview(row, byte_level_tokenizer()).endswith(
        "Label:<|im_end|>\n<|im_start|>assistant\n⟦positive<|im_end|>⟧"
    )


@pytest.mark.parametrize(
    ("key", "where", "value", "fault"),
    [
        ("input_ids", (0, 1), 9, "given other tokens"),
        ("labels", (0, 0), 9, "given other labels"),
        ("labels", (1, 4), 2, "given other labels"),  # padding that is learnt
        ("labels", (0, 4), -100, "given other labels"),  # an end masked because it is the pad token
        ("attention_mask", (1, 4), 1, "given a wrong attention mask"),
    ],
)
def test_a_batch_that_is_not_its_rows_is_a_bug(key: str, where: tuple[int, int], value: int, fault: str) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [Row("a", [1, 5, 6, 7, 2], 3), Row("b", [1, 5, 6, 2], 2)]
    collate = DataCollatorForLanguageModeling(pad_token_id=2)
    batch = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    check_batch(batch, rows)
    batch[key][where] = torch.tensor(value)
    with pytest.raises(RuntimeError, match=fault):
        check_batch(batch, rows)
    with pytest.raises(RuntimeError, match="has 2 rows; 1 were meant"):
        check_batch(batch, rows[:1])
    with pytest.raises(RuntimeError, match="was cut"):
        check_batch({name: tensor[:, :3] for name, tensor in batch.items()}, rows)
