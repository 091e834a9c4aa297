"""Structured output and reasoning: what is sent, what is checked, what is asked twice, and what is an answer at all."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from llm_distill.errors import UserError
from llm_distill.logprobs import Logprobs
from llm_distill.merging import merge, read
from llm_distill.models import wire
from llm_distill.plugs import Reading
from llm_distill.reasoning import answer_part, separate
from llm_distill.recipe import load
from llm_distill.records import Entry, Message, Request, Sampling, make_prompt
from llm_distill.structured import Schema, fault
from llm_distill.tasks import Task
from tests.conftest import ROOT, Desk
from tests.mock_api import MockApi, serving
from tests.test_teachers import api_model

PERSON = {
    "title": "person",
    "type": "object",
    "properties": {"thought": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
TEXT = json.dumps(PERSON, separators=(",", ":"))


class Person(BaseModel):
    thought: str = ""
    age: int


ROWS = [{"prompt": f"person {i}"} for i in range(12)]


def job(desk: Desk, api: MockApi, *, rows: list[dict[str, Any]] = ROWS, **keys: Any) -> Path:
    desk.seeds(rows)
    answers = {"max_tokens": 32, "schema": PERSON} | keys.pop("answers", {})
    models = {"teacher": api_model(api, prices_usd={"prompt": 1000, "completion": 1000})}
    return desk.recipe(**{"task": "generate", "models": models, "answers": answers} | keys)


def is_repair(body: dict[str, Any]) -> bool:
    return [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]


def test_the_passage_in_the_docs_is_sound(desk: Desk) -> None:
    asking = (ROOT / "docs" / "asking.md").read_text(encoding="utf-8")
    passage = asking.partition("## Several teachers")[2].split("```")[1]
    desk.seeds([{"prompt": "hello", "tags": {"lang": "de"}}])
    for line in ("teachers: [", "# teachers: {mix", "# teachers: {route"):
        kept = [
            one for one in passage.removeprefix("yaml").splitlines() if "teachers: " not in one or one.startswith(line)
        ]
        path = desk.folder / "job.yaml"
        text = "\n".join(kept).replace("# teachers", "teachers")
        path.write_text(f"name: job\nprompts: [{{seeds: {{file: seeds.jsonl}}}}]\n{text}", encoding="utf-8")
        plan = load(path)
        assert plan.teachers.roles == ("big", "small")
        assert plan.questions_a_row == (6 if line == "teachers: [" else 3)
        assert plan.pick
        assert plan.pick.low


# The schema in the recipe.


def test_a_schema_may_stand_in_the_recipe_in_a_file_or_in_code(desk: Desk, api: MockApi) -> None:
    (desk.folder / "person.json").write_text(json.dumps(PERSON, indent=3))
    (desk.folder / "person.yaml").write_text(
        "title: person\ntype: object\nproperties:\n  thought: {type: string}\n  age: {type: integer}\n"
        "required: [age]\nadditionalProperties: false\n"
    )
    texts = []
    for schema in (json.dumps(PERSON), "person.json", "person.yaml"):
        recipe = job(desk, api, answers={"schema": "HERE"})
        recipe.write_text(recipe.read_text().replace("HERE", schema))
        texts.append(load(recipe).answers.json_schema)
    assert texts == [TEXT] * 3  # the order of the keys is the writer's: models write in it
    plan = load(job(desk, api, answers={"schema": "tests.test_structured:Person"}))
    (api_body,) = (wire.payload(Request((), plan.answers.sampling), "m", "max_tokens"),)
    assert list(api_body["response_format"]["json_schema"]["schema"]["properties"]) == ["thought", "age"]
    before = plan.digest
    (desk.folder / "person.json").write_text(json.dumps(PERSON | {"required": []}))
    assert load(job(desk, api, answers={"schema": "person.json"})).digest != before


WRONG: list[tuple[Any, str]] = [
    (3, "write a JSON Schema"),
    ("person", "write a JSON Schema, a .json or .yaml file"),
    ("none.json", "no such file"),
    ("cut.json", "not JSON: Expecting"),
    ("twice.json", "the key 'a' stands twice"),
    ("list.yaml", "a schema is a mapping of keys"),
    ("no.such.module:Person", "cannot load"),
    ("json:dumps", "json:dumps is no pydantic model"),
    ({"type": "objekt"}, "not a JSON Schema: $.type: 'objekt' is not valid"),
    ({"properties": {"a": {"pattern": "("}}}, "not a JSON Schema: $.properties.a.pattern"),
    ({"required": "age"}, "not a JSON Schema: $.required"),
    ({"$ref": "#/$defs/nowhere"}, "refers to '/$defs/nowhere', which is not in it"),
    ({"$defs": {"a": {"items": {"$ref": "http://127.0.0.1:9/schema"}}}}, "write that part under `$defs`"),
    ({"$ref": "#"}, "refers to itself without end"),
    ({"$schema": "http://json-schema.org/draft-99/schema#"}, "leave `$schema` out"),
    ({"$schema": 7}, "no dialect 7 is known"),
]


@pytest.mark.parametrize(("schema", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_no_schema_is_found_by_check(desk: Desk, api: MockApi, schema: Any, message: str) -> None:
    (desk.folder / "cut.json").write_text('{"type": ')
    (desk.folder / "twice.json").write_text('{"a": 1, "a": 2}')
    (desk.folder / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError) as error:
        load(job(desk, api, answers={"schema": schema}))
    assert message in str(error.value)
    assert str(error.value).startswith("answers.schema: ")
    assert "\n" not in str(error.value)


def test_a_schema_goes_with_free_text_and_a_conversation_only(desk: Desk, api: MockApi) -> None:
    labels = {"classify": {"labels": ["a", "b"]}}
    said = desk.llm_distill("check", job(desk, api, task=labels), code=2)
    assert "make the task `generate`" in said
    (desk.folder / "t.md").write_text("{{ prompt }}")
    recipe = job(
        desk, api, task={"generate": {"teacher": {"template": "t.md", "raw": True}}}, models={"teacher": "scripted"}
    )
    with pytest.raises(UserError, match=r"remove task\.teacher\.raw"):
        load(recipe)


def test_a_schema_is_a_part_of_the_question_only_where_there_is_one() -> None:
    messages = (Message("user", "x"),)
    plain, held = Request(messages, Sampling()), Request(messages, Sampling(schema=TEXT))
    assert plain.key("m") == "1cb12f9ad4829b87273bcf252239c321"  # as before there were schemas
    assert held.key("m") != plain.key("m")
    assert "response_format" not in wire.payload(plain, "m", "max_tokens")
    sent = wire.payload(held, "m", "max_tokens")["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    nameless = Request(messages, Sampling(schema='{"title":"two words"}'))
    assert wire.payload(nameless, "m", "max_tokens")["response_format"]["json_schema"]["name"] == "answer"


def test_check_counts_a_second_question_for_every_first(desk: Desk, api: MockApi) -> None:
    with_schema = json.loads(desk.llm_distill("check", job(desk, api), "--json"))
    without = json.loads(desk.llm_distill("check", job(desk, api, answers={"schema": None}), "--json"))
    assert with_schema["teacher_requests"] == without["teacher_requests"] == 12
    assert with_schema["teacher_completion_tokens_at_most"] == 2 * without["teacher_completion_tokens_at_most"]
    assert with_schema["cost_usd_at_most"] > 2 * without["cost_usd_at_most"]


_KEYWORDS = [
    "$schema",
    "$id",
    "$ref",
    "$defs",
    "$anchor",
    "$dynamicRef",
    "type",
    "properties",
    "items",
    "anyOf",
    "not",
    "const",
]
_KEYWORDS += [
    "pattern",
    "required",
    "enum",
    "minimum",
    "multipleOf",
    "additionalProperties",
    "patternProperties",
    "format",
]
_VALUES = ["#", "#/$defs/a", "#a", "http://[", "string", "object", "(", "a", 0, 1.5, True, None, [], ["a"], [{}], {}]
_SCHEMAS = st.recursive(
    st.sampled_from(_VALUES),
    lambda inner: st.dictionaries(st.sampled_from([*_KEYWORDS, "a"]), inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYWORDS), _SCHEMAS, max_size=4), _SCHEMAS)
def test_a_schema_is_refused_or_can_be_checked_against(schema: dict[str, Any], answer: Any) -> None:
    reading = Reading(folder=Path.cwd(), files=set(), roles=[])
    with suppress(ValidationError):
        fault(json.dumps(answer), TypeAdapter(Schema).validate_python(schema, context=reading))


# Whether an answer fits.

FITS = ['{"age": 3}', ' \n{"thought": "", "age": -1}\n', '{"age": 1.0}', '{"age": ' + "9" * 400 + "}"]
MISFITS = [
    ('{"age": "3"}', "$.age: '3' is not of type 'integer'"),
    ('{"age": 3, "name": "Bo"}', "$: Additional properties are not allowed"),
    ("{}", "$: 'age' is a required property"),
    ('{"age": 3', "$: not JSON: Expecting ',' delimiter"),
    ('```json\n{"age": 3}\n```', "$: not JSON: Expecting value"),
    ('{"age": 3} {"age": 4}', "$: not JSON: Extra data"),
    ('{"age": 3, "age": 4}', "the key 'age' stands twice"),
    ('{"age": NaN}', "NaN is no number"),
    ('{"age": 1e999}', "1e999 is no number"),
    ("[" * 100_000, "$: nested too deeply"),
    ('{"age": ' + "9" * 10_000 + "}", "$: not JSON: Exceeds the limit"),
    ("", "$: not JSON"),
    ('{"\\ud800\\n": 1, "age": 3}', "$: Additional"),
]


@pytest.mark.parametrize("text", FITS, ids=range(len(FITS)))
def test_what_fits(text: str) -> None:
    assert fault(text, TEXT) is None


@pytest.mark.parametrize(("text", "why"), MISFITS, ids=[why for _, why in MISFITS])
def test_what_does_not_fit_and_why(text: str, why: str) -> None:
    found = fault(text, TEXT)
    assert found is not None
    assert why in found
    assert len(found) <= 300
    assert "\n" not in found
    found.encode()  # it goes into tables


def _name(pattern: str) -> str:
    return json.dumps({"type": "object", "properties": {"name": {"type": "string", "pattern": pattern}}})


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("^[a-z]+$", "ada", True),
        ("^[a-z]{2,3}$", "adam", False),
        (r"^{id}\{x{e}$", "{id}{x{e}", True),
        ("b{e}", "a", False),
    ],
)
def test_a_pattern_is_read_as_jsonschema_reads_it(pattern: str, name: str, fits: bool) -> None:
    said = f"$.name: {name!r} does not match {pattern!r}"
    assert fault(json.dumps({"name": name}), _name(pattern)) == (None if fits else said)


def test_a_pattern_that_never_ends_is_given_up() -> None:
    assert "given up" in str(fault(json.dumps({"name": "a" * 60 + "b"}), _name("^(a|aa)+$")))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(_JSON, st.booleans(), st.integers(0, 3))
def test_all_json_is_json_and_a_cut_object_never_is(value: Any, ascii_only: bool, indent: int) -> None:
    text = json.dumps({"value": value}, ensure_ascii=ascii_only, indent=indent)
    assert fault(text, "{}") is None
    assert fault(text[: len(text) * 2 // 3], "{}") is not None


@settings(deadline=None)
@given(st.text())
def test_any_text_has_a_verdict(text: str) -> None:
    why = fault(text, TEXT)
    assert why is None or why.startswith("$")


# What happens to an answer that does not fit.


def test_an_answer_that_fits_is_asked_for_once_and_kept_as_it_was_written(desk: Desk, api: MockApi) -> None:
    api.says = lambda _body, _prompt: '{"thought":  "hm",\n "age": 3}'
    recipe = job(desk, api)
    summary = desk.here(recipe)
    assert (summary["asked"], summary["owed"], summary["status"]) == (12, 0, "done")
    assert {body["response_format"]["json_schema"]["schema"]["type"] for body in api.bodies} == {"object"}
    assert {row["text"] for row in desk.rows(summary, "kept")} == {'{"thought":  "hm",\n "age": 3}'}


def test_an_answer_that_does_not_fit_is_asked_for_once_more(desk: Desk, api: MockApi) -> None:
    api.says = lambda body, prompt: '{"age": 3}' if is_repair(body) or prompt[-1] in "02468" else '{"age": "three"}'
    recipe = job(desk, api)
    summary = desk.here(recipe)
    assert (summary["asked"], summary["answered"], summary["owed"]) == (18, 18, 0)
    second = [body for body in api.bodies if is_repair(body)]
    assert len(second) == 6
    assert all(body["messages"][1]["content"] == '{"age": "three"}' for body in second)
    assert all("$.age: 'three' is not of type 'integer'" in body["messages"][2]["content"] for body in second)
    assert all(body["response_format"]["json_schema"]["name"] == "person" for body in second)
    rows = desk.rows(summary, "answers")
    assert {(row["text"], row["status"]) for row in rows} == {('{"age": 3}', "ok")}
    assert sorted(len(row["requests"]) for row in rows) == [1] * 6 + [2] * 6
    paid = sum(
        1000 * (len(body["messages"][-1]["content"].rsplit("\n", 1)[-1].split()) + 2) / 1e6 for body in api.bodies
    )
    assert summary["cost_usd"] == pytest.approx(paid)
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(paid)
    assert all(row["attempts"] == len(row["requests"]) for row in rows)
    again = desk.here(recipe, first="answers")
    assert (again["asked"], again["reused"], len(api.bodies)) == (0, 18, 18)
    assert desk.rows(again, "answers") == rows


def test_what_never_fits_has_failed_and_is_not_owed(desk: Desk, api: MockApi) -> None:
    api.says = lambda _body, prompt: '{"age": "x"}' if prompt == "person 4" or "Write" in prompt else '{"age": 3}'
    recipe = job(desk, api, answers={"max_failed": 0.1})
    summary = desk.here(recipe)
    assert (summary["status"], summary["asked"], summary["owed"]) == ("done", 13, 0)
    (lost,) = desk.rows(summary, "dropped")
    assert (lost["status"], lost["dropped_by"], len(lost["requests"])) == ("failed", "failed", 2)
    assert lost["reason"] == "schema: $.age: 'x' is not of type 'integer'"
    assert lost["cost_usd"] > 0
    report = json.loads((Path(summary["run"]) / "report" / "report.json").read_text())
    assert report["cost"]["total_usd"] == pytest.approx(summary["cost_usd"])
    again = desk.here(recipe)
    assert not any(stage["ran"] for stage in again["stages"].values())
    assert desk.here(recipe, first="answers")["asked"] == 0
    strict = desk.here(recipe, "answers.max_failed=0")
    assert (strict["status"], strict["asked"], len(api.bodies)) == ("fell_short", 0, 13)
    assert "1 did not fit answers.schema when asked twice and are not asked again: loosen" in strict["reason"]


def test_what_was_cut_or_refused_is_not_asked_for_again(desk: Desk, api: MockApi) -> None:
    api.says = lambda _body, _prompt: '{"age": 3'
    api.faults = {f"person {i}": [fault_] for i, fault_ in enumerate(["length", "refusal", "content_filter"])}
    summary = desk.here(job(desk, api, rows=ROWS[:3]))
    assert (summary["asked"], summary["owed"]) == (3, 0)
    statuses = {row["messages"][0]["content"]: row["status"] for row in desk.rows(summary, "answers")}
    assert statuses == {"person 0": "truncated", "person 1": "refused", "person 2": "filtered"}


def test_a_second_question_that_got_no_answer_is_owed_and_asked_alone(desk: Desk, api: MockApi) -> None:
    api.says = lambda body, _prompt: '{"age": 3}' if is_repair(body) else "no idea"
    api.faults = {"Write the whole answer again, as one JSON value that fits it, and nothing else.": ["400"]}
    recipe = job(desk, api, rows=ROWS[:2], answers={"max_failed": 0.5})
    summary = desk.here(recipe)
    assert (summary["asked"], summary["owed"]) == (4, 1)
    assert len(api.bodies) == 4
    again = desk.here(recipe)
    assert (again["asked"], again["owed"], again["reused"]) == (1, 0, 3)
    assert [row["status"] for row in desk.rows(again, "answers")] == ["ok", "ok"]


def test_a_budget_that_ends_before_the_second_questions_keeps_what_is_whole(desk: Desk, api: MockApi) -> None:
    api.says = lambda body, prompt: '{"age": 3}' if is_repair(body) or prompt[-1] in "02468" else "no"
    recipe = job(desk, api, answers={"budget_tokens": 360})
    summary = desk.here(recipe)
    assert summary["status"] == "fell_short"
    firsts = sum(not is_repair(body) for body in api.bodies)
    assert firsts == 12
    rows = desk.rows(summary, "answers")
    assert len(rows) == 6 + len(api.bodies) - firsts < 12
    assert {row["status"] for row in rows} == {"ok"}
    done = desk.here(recipe, "answers.budget_tokens=100000")
    assert (done["status"], len(desk.rows(done, "answers")), len(api.bodies)) == ("done", 12, 18)


def test_every_sample_of_every_teacher_has_its_own_second_question(desk: Desk, api: MockApi) -> None:
    api.says = lambda body, _prompt: '{"age": 3}' if is_repair(body) or body["seed"] != 1 else '{"age": "?"}'
    with serving() as other:
        other.says = lambda _body, _prompt: '{"age": 4}'
        models = {"big": api_model(api), "small": api_model(other)}
        answers = {"samples": 3, "temperature": 1, "seed": 0}
        recipe = job(desk, api, rows=ROWS[:2], models=models, teachers=["big", "small"], answers=answers)
        summary = desk.here(recipe)
        assert (summary["asked"], len(api.bodies), len(other.bodies)) == (2 * 6 + 2, 8, 6)
        assert {body["seed"] for body in api.bodies if is_repair(body)} == {1}
        for row in desk.rows(summary, "answers"):
            assert len(row["requests"]) == 7
            assert row["agreement"] == pytest.approx((2 + 3 * 0.5) / 5)  # "age : 4" shares one of two words
        assert desk.here(recipe, first="answers")["asked"] == 0


def test_only_the_teacher_is_held_to_the_schema(desk: Desk, api: MockApi) -> None:
    """A student must fit by itself; its texts are scored as they are."""
    api.says = lambda body, _prompt: '{"age": 3}' if is_repair(body) else "three"
    with serving(answer="three") as other:
        models = {"teacher": api_model(api), "student": api_model(other)}
        rows = [row | {"reference": "3"} for row in ROWS]
        held: dict[str, Any] = {"held_out": {"share": 0.5}, "evaluate": {"resamples": 200}}
        summary = desk.here(job(desk, api, rows=rows, models=models, **held))
        assert summary["status"] == "done"
        assert not any("response_format" in body for body in other.bodies)
        assert {row["text"] for row in desk.rows(summary, "eval/base_zero_shot")} == {"three"}
        assert {(row["text"], row["status"]) for row in desk.rows(summary, "eval/teacher")} == {('{"age": 3}', "ok")}
        assert summary["asked"] == 24 + len(other.bodies)


# Reasoning apart from the answer.

APART = [
    ("<think>\nhm\n</think>\n\npositive", "hm", "positive"),
    ("\n <think>hm</think>positive", "hm", "positive"),
    ("<think>\n\n</think>\n\npositive", None, "positive"),  # Qwen3, told not to think
    ("so it is\ngood\n</think>\n\npositive", "so it is\ngood", "positive"),  # the template had opened the block
    ("hm\n</think> \n\n    def f():\n", "hm", "    def f():\n"),  # indentation is the answer's
    ("<think>never ends", "never ends", ""),
    ("<think>hm</think>", "hm", ""),
    ("</think>\n\npositive", None, "positive"),
    ("<think>a</think> b </think> c", "a", "b </think> c"),
    ("The tag </think> closes a block.", None, "The tag </think> closes a block."),
    ("Write\n<think>\nhm\n</think>\nfirst.", None, "Write\n<think>\nhm\n</think>\nfirst."),
    ("Use `<think>`\nand\n</think>\nto end.", None, "Use `<think>`\nand\n</think>\nto end."),
    ("positive", None, "positive"),
    ("", None, ""),
]


@pytest.mark.parametrize(("text", "thought", "answer"), APART, ids=[repr(text) for text, _, _ in APART])
def test_reasoning_is_told_from_the_answer(text: str, thought: str | None, answer: str) -> None:
    assert separate(text) == (thought, answer)


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_text_without_tags_is_an_answer_and_one_with_them_comes_apart(thought: str, answer: str) -> None:
    if "think>" not in thought + answer:
        assert separate(answer) == (None, answer)
        found, rest = separate(f"<think>{thought}</think>\n\n{answer}")
        assert found == (thought.strip() or None)
        assert answer.endswith(rest)
        assert not answer.removesuffix(rest).strip()


@settings(deadline=None)
@given(st.text(min_size=1), st.text(), st.lists(st.integers(1, 5)), st.sampled_from([b"", b"<|im_end|>"]))
def test_the_tokens_of_an_answer_are_found_by_its_bytes(answer: str, before: str, sizes: list[int], end: bytes) -> None:
    whole = (before + answer).encode()
    tokens: list[bytes] = []
    for size in [*sizes, 1 << 30]:
        tokens, whole = [*tokens, whole[:size]], whole[size:]
    tokens.append(end)
    column = np.arange(len(tokens), dtype=np.float32)
    part = answer_part(Logprobs.of_tokens(tokens, column, [[t] for t in tokens], column[:, None]), answer)
    assert part is not None
    first = len(tokens) - len(part.tokens)
    assert part.tokens == tokens[first:]
    assert part.logprobs.tolist() == part.top_logprobs[:, 0].tolist() == column[first:].tolist()
    assert part.top_tokens == [[token] for token in part.tokens]
    joined = b"".join(part.tokens)
    assert answer.encode() in joined
    assert answer.encode() not in joined[len(part.tokens[0]) :]
    assert answer_part(Logprobs.of_tokens([b"x"], column[:1], [[b"x"]], column[:1, None]), "other") is None


def test_labels_and_confidence_read_the_answers_tokens_only() -> None:
    def entry(tokens: list[tuple[str, float]], text: str, **more: Any) -> Entry:
        chosen = np.log(np.array([p for _, p in tokens], dtype=np.float32))
        names = [token.encode() for token, _ in tokens]
        packed = Logprobs.of_tokens(names, chosen, [[name] for name in names], chosen[:, None]).pack()
        return Entry("k", "ok", text=text, logprobs=packed, **more)

    thinking = [("<think>", 0.5), ("positive", 0.25), ("</think>", 0.5), ("\n\n", 0.5)]
    prompt, labels = make_prompt((Message("user", "x"),)), Task(kind="classify", labels=["positive", "negative"])
    in_text = entry([*thinking, ("negative", 0.75)], "<think>positive</think>\n\nnegative")
    in_field = entry([*thinking, ("negative", 0.75)], "negative", reasoning="positive")
    answer_only = entry([("negative", 0.75)], "negative", reasoning="positive")
    for given_ in (in_text, in_field, answer_only):
        answer = merge(labels, prompt, [read("t", ["k"], [given_])])
        assert (answer.prediction, answer.text, answer.reasoning) == ("negative", "negative", "positive")
        assert answer.label_probs == pytest.approx((0, 0.75), abs=1e-3)
        assert np.exp(answer.mean_logprob or 0) == pytest.approx(0.75, abs=1e-3)
    plain = merge(labels, prompt, [read("t", ["k"], [in_text], separate=False)])
    assert (plain.prediction, plain.reasoning) == (None, None)
    lost = entry([("other", 0.9)], "<think>hm</think>negative")
    assert merge(labels, prompt, [read("t", ["k"], [lost])]).label_probs is None


def test_reasoning_is_kept_apart_from_end_to_end(desk: Desk, api: MockApi) -> None:
    think = "<think>\nIt says good.\n</think>\n\npositive"
    said: dict[str, dict[str, Any]] = {
        "field": {"content": "positive", "reasoning_content": "It says good."},
        "newer": {"content": "positive", "reasoning": "It says good."},
        "text": {"content": think, "tokens": ["<think>\n", "It says good.\n", "</think>\n\n", "positive"]},
        "object": {"content": "positive", "reasoning": {"effort": "low"}},
        "cut": {"content": "<think>\nIt says", "tokens": ["<think>\n", "It says"]},
        "silent": {"content": None, "reasoning_content": "It says good."},
    }
    api.says = lambda _body, prompt: said[prompt]
    api.faults = {"cut": ["length"]}
    desk.seeds([{"prompt": name} for name in said])
    recipe = desk.recipe(models={"teacher": api_model(api)}, answers={"max_tokens": 8, "top_logprobs": 2})
    summary = desk.here(recipe)
    rows = {row["messages"][0]["content"]: row for row in desk.rows(summary, "answers")}
    for name in ("field", "newer", "text"):
        row = rows[name]
        assert (row["text"], row["reasoning"], row["prediction"]) == ("positive", "It says good.", "positive")
    assert rows["text"]["mean_logprob"] == pytest.approx(-0.1)
    assert (rows["object"]["text"], rows["object"]["reasoning"]) == ("positive", None)
    assert [rows["cut"][k] for k in ("text", "reasoning", "status", "reason")] == ["", "It says", "truncated", "length"]
    assert [rows["silent"][k] for k in ("text", "status", "reason")] == [
        "",
        "truncated",
        "no answer after the reasoning",
    ]
    assert {row["messages"][0]["content"] for row in desk.rows(summary, "kept")} == {"field", "newer", "text", "object"}
    assert summary["asked"] == 6  # reasoning without an answer is an answer that came
    plain = desk.here(recipe, "answers.reasoning=none")
    rows = {row["messages"][0]["content"]: row for row in desk.rows(plain, "answers")}
    assert (plain["asked"], rows["text"]["text"], rows["field"]["reasoning"]) == (0, think, "It says good.")


def test_the_second_question_shows_the_answer_without_its_reasoning(desk: Desk, api: MockApi) -> None:
    api.says = lambda body, _prompt: '<think>\nhm\n</think>\n\n{"age": ' + ("3}" if is_repair(body) else '"3"}')
    summary = desk.here(job(desk, api, rows=ROWS[:1]))
    assert api.bodies[1]["messages"][1]["content"] == '{"age": "3"}'
    (row,) = desk.rows(summary, "kept")
    assert (row["text"], row["reasoning"]) == ('{"age": 3}', "hm")
