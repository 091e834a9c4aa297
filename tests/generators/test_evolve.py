"""evol_instruct: which evolutions are given, which fail and why, and who goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_distill.errors import UserError
from llm_distill.records import Entry, Message, make_prompt
from llm_distill.templates import BUILT_IN
from tests.generators.writing import CLASSIFY, Writer, at_most, bound, rows, tags, texts

PARENT = "How do I get red wine out of a white tablecloth?"
BETTER = "How do I get red wine out of a white tablecloth of linen that is fifty years old, without any bleach?"


def adding() -> Callable[[str], str]:
    """Each time the prompt of the question, with words that are new."""
    count = iter(range(10_000))

    def answer(question: str) -> str:
        found = re.search(r"<prompt>\n(.*?)\n</prompt>", question, re.DOTALL)
        assert found
        n = next(count)
        return f"<prompt>\n{found[1]} And also item{n} with part{n} and side{n}\n</prompt>"

    return answer


def test_every_row_is_evolved_in_every_round_from_what_it_has_become() -> None:
    before = [
        make_prompt((Message("system", "Be brief."), Message("user", PARENT)), {"topic": "stains"}, "gold", "Salt.")
    ]
    writer = Writer(adding())
    found = writer.run("evol_instruct", before, rounds=3)
    assert len(found) == 3
    assert tags(found, "round") == ["1", "2", "3"]
    assert tags(found, "parent") == [before[0].row_id, found[0].row_id, found[1].row_id]
    assert tags(found, "topic") == ["stains"] * 3
    assert set(tags(found, "evolution")) <= {"constrain", "deepen", "concretise", "reason", "broaden"}
    assert texts(found)[2].startswith(texts(found)[1])
    assert all(row.messages[0] == Message("system", "Be brief.") for row in found)
    assert all(row.label is None and row.reference is None for row in found)
    assert writer.said == ["evol_instruct: 3 rows from 3 questions"]


def test_only_the_last_turn_is_rewritten() -> None:
    talk = (Message("user", "Hello there"), Message("assistant", "Hello."), Message("user", PARENT))
    (found,) = Writer(adding()).run("evol_instruct", [make_prompt(talk)], rounds=1)
    assert found.messages[:2] == talk[:2]
    assert found.messages[2].content.startswith(PARENT)


def test_rows_bound_how_many_are_evolved_and_stay_the_same_when_others_join() -> None:
    before = rows(*(f"What is the {n}th prime number, and why?" for n in range(40)))
    found = Writer(adding()).run("evol_instruct", before, rows=10, rounds=2)
    assert len(found) == 10
    assert found == Writer(adding()).run("evol_instruct", before, rows=10, rounds=2)
    parents = {row.tags["parent"] for row in found if row.tags["round"] == "1"}
    more = Writer(adding()).run("evol_instruct", [*before, *rows("Who was Ada Lovelace?")], rows=10, rounds=2)
    assert len(parents & {row.tags["parent"] for row in more if row.tags["round"] == "1"}) >= 4
    assert len(parents) == 5


LINES = (BUILT_IN / "evolve_constrain.md").read_text("utf-8").splitlines()
CASES = [
    (f"<prompt>{BETTER}</prompt>", None),
    (BETTER, None),
    ("Sure, here it is:\n<prompt>" + BETTER + "</prompt>", None),
    ("", "empty"),
    ("<prompt></prompt>", "empty"),
    (PARENT, "without gain"),
    (PARENT.upper() + "!", "without gain"),
    ("How do I get wine out of a tablecloth?", "without gain"),  # shorter is no harder
    ("White tablecloth: red wine out of it, how do I get?", "3 new"),
    ("I'm sorry, but I can't help with that request at all.", "declined"),
    ("I\u2019m sorry, I cannot rewrite this for you today.", "declined"),
    ("Sure! Here is a harder version:\n\n" + BETTER, "with an introduction"),
    (f"**Rewritten prompt** {BETTER}", "about its task"),
    (f"#Given Prompt# {BETTER}", "about its task"),
    (f"{BETTER} Keep the language, and every table, figure, formula or piece of code.", "copied from the template"),
    (f"<prompt>{BETTER}", "malformed"),
    (f"{BETTER} Use this list: [insert list]", "unfinished"),
    (f"{BETTER} Use these products:", "unfinished"),
    (f"{PARENT} {'very ' * 61}", "too long"),
]


@pytest.mark.parametrize(("answer", "why"), CASES)
def test_failed_evolutions_are_eliminated(answer: str, why: str | None) -> None:
    writer = Writer(lambda _: answer)
    found = writer.run("evol_instruct", rows(PARENT), rounds=1, operations=["constrain"])
    if why is None or why == "3 new":
        assert len(found) == 1
    else:
        assert found == []
        assert writer.said == [f"evol_instruct: 0 rows from 1 questions; thrown away: 1 {why}"]


def test_a_parent_that_speaks_of_prompts_may_be_evolved() -> None:
    parent = "What makes a created prompt easy to answer?"
    child = parent + " Name three rules with an example for each."
    assert texts(Writer(lambda _: child).run("evol_instruct", rows(parent), rounds=1)) == [child]


def test_a_parent_survives_a_failure_and_another_operation_is_tried() -> None:
    answers = iter(["", None, "I cannot do that.", f"<prompt>{BETTER}</prompt>"])
    writer = Writer(lambda _: next(answers))
    operations = ["constrain", "deepen", "concretise", "broaden"]
    (found,) = writer.run("evol_instruct", rows(PARENT), rounds=4, operations=operations)
    assert found.tags["round"] == "4"
    assert len({request.messages for request in writer.asked}) == 4
    assert "1 empty" in writer.said[0]
    assert "1 failed answer" in writer.said[0]


def test_a_row_whose_every_operation_failed_is_left_alone() -> None:
    writer = Writer(lambda _: "")
    assert writer.run("evol_instruct", rows(PARENT), rounds=4, operations=["broaden"]) == []
    assert len(writer.asked) == 1


def test_two_rows_that_become_the_same_are_one() -> None:
    writer = Writer(lambda _: BETTER)
    assert len(writer.run("evol_instruct", rows(PARENT, "How do I clean a tablecloth?"), rounds=1)) == 1
    assert "1 known" in writer.said[0]


@pytest.mark.parametrize(
    ("verdict", "kept"),
    [("DIFFERENT", 1), ("**Different**: a limit", 1), ("SAME", 0), ("Samewhat", 0), ("Well, different", 0)],
)
def test_a_judge_says_whether_anything_was_gained(verdict: str, kept: int) -> None:
    writer = Writer(lambda question: verdict if "<first>" in question else BETTER)
    found = writer.run("evol_instruct", rows(PARENT), rounds=1, judge="judge")
    assert len(found) == kept
    assert writer.roles == ["teacher", "judge"]
    (question,) = writer.rounds[1][0].messages
    assert f"<first>\n{PARENT}\n</first>" in question.content
    assert f"<second>\n{BETTER}\n</second>" in question.content
    reason = {"SAME": "the same to the judge", "Samewhat": "without a verdict", "Well, different": "without a verdict"}
    assert kept or reason[verdict] in writer.said[0]


def test_a_judge_that_gives_no_answer_lets_nothing_through() -> None:
    writer = Writer(lambda question: Entry("", "truncated", text="DIFF") if "<first>" in question else BETTER)
    assert writer.run("evol_instruct", rows(PARENT), rounds=1, judge="judge") == []


def test_texts_to_classify_are_made_concrete_or_broad() -> None:
    before = rows(*(f"The film number {n} was dull" for n in range(20)))
    found = Writer(adding()).run("evol_instruct", before, CLASSIFY, rounds=2)
    assert set(tags(found, "evolution")) == {"concretise", "broaden"}


def test_operations_have_templates_of_their_own_which_can_be_replaced(tmp_path: Path) -> None:
    questions = set()
    for operation in ("constrain", "deepen", "concretise", "reason", "broaden"):
        writer = Writer(adding())
        writer.run("evol_instruct", rows(PARENT), rounds=1, operations=[operation])
        questions.add(writer.asked[0].messages[0].content)
    assert len(questions) == 5
    (tmp_path / "mine.md").write_text("Mine: <prompt>\n{{ prompt }}\n</prompt>")
    writer = Writer(adding())
    mine = {"broaden": str(tmp_path / "mine.md")}
    writer.run("evol_instruct", rows(PARENT), rounds=1, operations=["broaden"], templates=mine)
    assert writer.asked[0].messages[0].content.startswith("Mine: ")


def test_wrong_recipes_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to evolve; put an entry above it"):
        Writer(adding()).run("evol_instruct")
    (tmp_path / "t.md").write_text("Nothing")
    with pytest.raises(UserError, match="does not use 'prompt'"):
        bound("evol_instruct", templates={"broaden": str(tmp_path / "t.md")})
    with pytest.raises(UserError, match="operations"):
        bound("evol_instruct", operations=["widen"])
    with pytest.raises(UserError, match="no model 'nobody'"):
        bound("evol_instruct", judge="nobody")


def test_check_says_what_it_may_come_to() -> None:
    assert at_most("evol_instruct", 100)[:2] == (400, 400)
    assert at_most("evol_instruct", 100, rows=50, rounds=2)[:2] == (50, 50)
    assert at_most("evol_instruct", 100, rounds=2, judge="judge")[:2] == (200, 400)
