"""personas: where people come from, and what they ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_distill.errors import UserError
from tests.generators.writing import CLASSIFY, Writer, at_most, bound, numbered, rows, tags, texts

NURSE = "A night nurse in a small hospital who wants to sleep better by day"
BAKER = "A baker who has just taken over a shop and worries about prices"


def answer(question: str) -> str:
    if question.startswith("Think of this person: "):
        person = question.splitlines()[0].removeprefix("Think of this person: ")
        return numbered(f"{person}: what should I do first?", f"{person}, and what on a Sunday?")
    if "something to do with this: " in question:
        return numbered(NURSE, BAKER, NURSE + "!", "x " * 61, "A pilot who cooks")
    assert "<text>\nWhy is bread hard?\n</text>" in question
    return numbered(BAKER)


def test_listed_people_each_ask() -> None:
    writer = Writer(answer)
    people = [NURSE, BAKER, f"  {NURSE}  "]
    found = writer.run("personas", source={"personas": people}, per_persona=2, novelty=None)
    assert len(found) == 4
    assert set(tags(found, "persona")) == {
        "A night nurse in a small hospital who wants to sleep better …",
        "A baker who has just taken over a shop and worries about …",
    }
    assert [len(asked) for asked in writer.rounds] == [2]
    assert writer.said == ["personas: 4 rows from 2 questions as 2 people"]
    assert (
        len(Writer(answer).run("personas", source={"personas": people}, novelty=None)) == 2
    )  # one each, as they were asked


def test_people_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "people.txt").write_text(f"\ufeff{NURSE}\n\n{BAKER}\n", "utf-8")
    (tmp_path / "people.jsonl").write_text(f'{{"persona": "{NURSE}", "id": 3}}\n\n{{"persona": "{BAKER}"}}\n', "utf-8")
    for name in ("people.txt", "people.jsonl"):
        found = Writer(answer).run("personas", source={"file": str(tmp_path / name)}, novelty=None)
        assert len(found) == 2
        assert texts(found)[0].startswith("A night nurse")
        assert len(Writer(answer).run("personas", source={"file": str(tmp_path / name)}, count=1)) == 1


def test_people_of_a_domain_are_asked_for_first() -> None:
    writer = Writer(answer)
    found = writer.run("personas", source={"domain": "sleep"}, count=10, per_question=5)
    assert [len(asked) for asked in writer.rounds] == [2, 3]
    assert [request.sample for request in writer.rounds[0]] == [0, 1]
    assert len(found) == 3
    assert "as 3 people" in writer.said[0]
    assert "5 persona twice, 2 persona too long" in writer.said[0]


def test_people_are_found_for_the_rows_before() -> None:
    writer = Writer(answer)
    (found,) = writer.run("personas", rows("Why is bread hard?"), count=2)
    assert found.tags == {"persona": "A baker who has just taken over a shop and worries about …"}
    assert "Describe 2 such people" in writer.asked[0].messages[0].content
    many = Writer(lambda question: numbered(BAKER))
    many.run("personas", rows(*(f"Why is bread number {n} hard?" for n in range(50))), count=7)
    assert len(many.rounds[0]) == 7
    again = Writer(lambda question: numbered(BAKER))
    again.run("personas", rows(*(f"Why is bread number {n} hard?" for n in range(50))), count=7)
    assert many.asked == again.asked


def test_rows_bound_people_and_prompts() -> None:
    people = [f"{name} who likes tea" for name in ("Baker", "Nurse", "Pilot", "Miner", "Judge")]
    writer = Writer(answer)
    found = writer.run("personas", source={"personas": people}, per_persona=2, rows=3, novelty=None)
    assert len(found) == 3
    assert len(writer.asked) == 2
    assert writer.said == ["personas: 3 of 3 rows from 2 questions as 2 people"]


def test_tags_of_people_who_begin_alike_differ() -> None:
    people = [
        f"A teacher of mathematics at a large comprehensive school in the north who likes {what}"
        for what in ("tea", "ale")
    ]
    found = Writer(answer).run("personas", source={"personas": people}, novelty=None)
    assert len(set(tags(found, "persona"))) == 2


def test_labels_are_told_to_the_writer() -> None:
    writer = Writer(answer)
    writer.run("personas", (), CLASSIFY, source={"personas": [NURSE]})
    assert "positive, negative" in writer.asked[0].messages[0].content


def test_wrong_recipes_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to find people for; put an entry above it, or name a `source`"):
        Writer(answer).run("personas")
    with pytest.raises(UserError, match="write one of `personas`, `file` and `domain`"):
        bound("personas", source={"domain": "tea", "personas": [NURSE]})
    with pytest.raises(UserError, match="no such file"):
        bound("personas", source={"file": "nobody.txt"})
    (tmp_path / "t.md").write_text("{{ count }}")
    with pytest.raises(UserError, match="does not use 'persona'"):
        bound("personas", template=str(tmp_path / "t.md"))
    for name, content, why in (
        ("empty.txt", b"\n \n", "there are no personas"),
        ("odd.txt", b"caf\xe9\n", "not UTF-8 text"),
        ("odd.jsonl", b'{"person": "x"}\n', "missing required field `persona`; each line is one JSON object"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=why):  # at check
            at_most("personas", 0, source={"file": str(tmp_path / name)})


def test_check_says_what_it_may_come_to(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"{NURSE}\n{BAKER}\n")
    assert at_most("personas", 0, source={"file": str(tmp_path / "p.txt")}, per_persona=20)[:2] == (40, 6)
    assert at_most("personas", 0, source={"domain": "tea"})[:2] == (100, 13 + 100)
    assert at_most("personas", 30, rows=50)[:2] == (50, 30 + 50)
