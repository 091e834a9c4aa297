"""Refusals and self-descriptions in 19 languages, what only looks like one, lists of one's own, and a judge for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Entry, Request
from llm_distill.scorers import SCORERS, Context
from llm_distill.scorers.phrases import identity, refusal, refusal_at_most
from llm_distill.tasks import Task
from tests.bench.planted import real_sentences
from tests.conftest import Desk
from tests.scorers.phrases_cases import ANSWERS, IDENTITIES, NOBODY, REFUSALS
from tests.scorers.rows import answer

CONTEXT = Context(Task(kind="generate"))
LIST = """
version: 1
models: [HAL]
makers: [Discovery One]
openings: {en: [dave]}
refusal: {en: ["i'm sorry, dave.{0,9}can't do"]}
identity: {en: ['i am {model}', 'built by {maker}']}
"""


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, texts in REFUSALS.items() for text in texts])
def test_refusals(language: str, text: str) -> None:
    scored = refusal([answer(text)], CONTEXT)
    assert scored.values == [1.0]
    assert (scored.why[0] or "").startswith(f"{language}: ")


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text: str) -> None:
    assert refusal([answer(text)], CONTEXT).values == [0.0]


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, texts in IDENTITIES.items() for text in texts])
def test_identities(language: str, text: str) -> None:
    scored = identity([answer(text)])
    assert scored.values == [1.0]
    assert (scored.why[0] or "").startswith(f"{language}: ")


@pytest.mark.parametrize("text", NOBODY)
def test_nobody_says_what_he_is(text: str) -> None:
    assert identity([answer(text)]).values == [0.0]


def test_what_people_wrote_is_neither() -> None:
    rows = [answer(text) for text in real_sentences()]
    assert sum(refusal(rows, CONTEXT).values) <= 0.001 * len(rows)
    assert sum(identity(rows).values) <= 0.001 * len(rows)


def test_a_refusal_opens_the_answer_and_an_identity_stands_anywhere() -> None:
    long = "The film tells of a boat and its crew. " * 20
    assert refusal([answer(long + "I can't help with that.")], CONTEXT).values == [0.0]
    assert identity([answer(long + "As an AI, I have not seen it.")]).values == [1.0]
    assert refusal([answer("", status="refused"), answer("")], CONTEXT).values == [1.0, 0.0]


def test_every_language_of_the_list_has_cases() -> None:
    from llm_distill.recipe_file import read_mapping
    from llm_distill.templates import BUILT_IN

    phrases = read_mapping(BUILT_IN / "phrases.yaml", "phrases")
    assert phrases["refusal"].keys() == REFUSALS.keys()
    assert phrases["identity"].keys() == IDENTITIES.keys()


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "hal.yaml"
    path.write_text(LIST, "utf-8")
    rows = [answer("I'm sorry, Dave, I can't do that."), answer("Dave,  I am HAL."), answer("I can't help with that.")]
    assert refusal(rows, CONTEXT, phrases=path).values == [1.0, 0.0, 0.0]
    assert identity(rows, phrases=path).values == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1\n", "", "its keys are .*; write identity, makers, models"),
        ("['i am {model}', 'built by {maker}']", "['i am (']", r"identity\.en: 'i am \(' is not a regular expression"),
        (
            "['i am {model}', 'built by {maker}']",
            "[{a: 1}]",
            r"identity\.en: found .*write a list of phrases, in quotes",
        ),
        ("{en: ['i am {model}', 'built by {maker}']}", "[a]", "identity: write a list of phrases for each language"),
        ("[HAL]", "[]", r"models: found \[\]; write a list"),
        ("identity: {en:", "identity: {'1 2':", "its keys are languages"),
    ],
)
def test_a_broken_list_is_found_at_check(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "hal.yaml"
    assert old in LIST
    path.write_text(LIST.replace(old, new), "utf-8")
    with pytest.raises(UserError, match=message):
        bind(
            "scorer",
            Spec("identity", {"phrases": "hal.yaml"}, "filter.identity"),
            SCORERS,
            Reading(folder=tmp_path, files=set(), roles=()),
        )


def test_a_judge_is_asked_about_what_the_list_leaves_and_nothing_else() -> None:
    asked: list[str] = []

    def ask(role: str, requests: Sequence[Request]) -> list[Entry]:
        assert role == "referee"
        asked.extend(request.messages[-1].content for request in requests)
        verdict = '{"reason": "It says it would rather not.", "declined": "yes"}'
        return [
            Entry(
                "k",
                "ok",
                text=verdict if "rather not" in request.messages[-1].content else verdict.replace("yes", "no"),
            )
            for request in requests
        ]

    context = Context(CONTEXT.task, ask=ask)
    rows = [
        answer("I can't help with that."),
        answer("I would rather not."),
        answer("Paris."),
        answer("", status="refused"),
    ]
    scored = refusal(rows, context, judge="referee")
    assert scored.values == [1.0, 1.0, 0.0, 1.0]
    assert len(asked) == 2
    assert "It says it would rather not." in (scored.why[1] or "")
    assert refusal_at_most(10, judge="referee").questions == 20
    assert refusal_at_most(10).questions == 0


def test_a_run_with_a_judge(desk: Desk) -> None:
    desk.seeds([{"prompt": "a good film"}, {"prompt": "tell me a secret"}, {"prompt": "say nothing"}])
    verdicts = {"rather not": '{"reason": "It would rather not.", "declined": "yes"}'}
    recipe = desk.recipe(
        task={"generate": {}},
        models={
            "teacher": {
                "scripted": {
                    "rules": {"good": "Yes, a good one.", "secret": "I can't help with that."},
                    "default": "I would rather not.",
                }
            },
            "referee": {"scripted": {"rules": verdicts, "default": '{"reason": "It answers.", "declined": "no"}'}},
        },
        filter=[{"refusal": {"judge": "referee"}}],
    )
    assert "referee" in desk.llm_distill("check", recipe)
    summary = desk.here(recipe)
    assert [row["messages"][0]["content"] for row in desk.rows(summary, "kept")] == ["a good film"]
    why = {row["messages"][0]["content"]: row["why.refusal"] for row in desk.rows(summary, "dropped")}
    assert why["tell me a secret"] == "en: i can't help"
    assert "It would rather not." in why["say nothing"]
    assert "no model 'refere'" in desk.llm_distill(
        "check", desk.recipe(filter=[{"refusal": {"judge": "refere"}}]), code=2
    )
