"""self_instruct, and how it knows what is new."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators.novelty import Novelty, Pool, rouge_l
from llm_distill.records import Entry
from tests.conftest import Desk
from tests.generators.writing import CLASSIFY, Writer, at_most, bound, numbered, rows, texts

SEEDS = rows(*(f"What should I know about {thing} before I buy one?" for thing in ("bicycles", "pianos", "tents")))
WORDS = [f"word{n}" for n in range(4000)]


def endless() -> Callable[[str], str]:
    """Eight other prompts at each question."""
    chance = random.Random(0)
    return lambda _question: numbered(*(" ".join(chance.sample(WORDS, 8)) for _ in range(8)))


def test_the_pool_grows_until_there_are_as_many_rows_as_wanted() -> None:
    writer = Writer(endless())
    found = writer.run("self_instruct", SEEDS, rows=200)
    assert len(found) == len({row.row_id for row in found}) == 200
    assert [len(asked) for asked in writer.rounds] == [8, 9, 8]  # 64 rows, then as many as there are, then the rest
    assert texts(found)[0] not in writer.rounds[0][0].messages[0].content
    shown = [sum(f"- {text}\n" in r.messages[0].content for text in texts(found)) for r in writer.rounds[1]]
    assert shown == [2] * 9  # of those that it wrote itself
    assert {request.sample for request in writer.asked} == set(range(25))
    assert writer.said == ["self_instruct: 200 of 200 rows from 25 questions"]


def test_equal_seeds_give_equal_questions_and_rows() -> None:
    one, two, other = Writer(endless()), Writer(endless()), Writer(endless())
    assert one.run("self_instruct", SEEDS, rows=90) == two.run("self_instruct", SEEDS, rows=90)
    assert one.asked == two.asked
    other.run("self_instruct", SEEDS, rows=90, seed=1)
    assert one.asked[0] != other.asked[0]


def test_what_is_thrown_away_is_counted_by_reason() -> None:
    answer = numbered(
        "What should I know about bicycles before I buy one?",
        "What should I know about boats before I buy one?",
        "Describe this image of a cat.",
        "Buy it?",
        "Rewrite the following sentence in the passive voice:",
        "- dashes begin nothing that makes sense here",
        "How do I get red wine out of a white tablecloth?",
        "why " * 151,
    )
    writer = Writer(lambda _: answer)
    found = writer.run("self_instruct", SEEDS, rows=8, per_question=8)
    assert texts(found) == ["How do I get red wine out of a white tablecloth?"]
    assert writer.said == [
        "self_instruct: 1 of 8 rows from 2 questions, the last of which added nothing; thrown away: 4 known, "
        "2 about pictures, 2 too short, 2 unfinished, 2 beginning with punctuation, 2 too long, 1 not new"
    ]


def test_it_stops_when_a_round_adds_nothing_or_when_its_surplus_is_used_up() -> None:
    dumb = Writer(lambda _: "I would rather not.")
    assert dumb.run("self_instruct", SEEDS, rows=80) == []
    assert dumb.said == [
        "self_instruct: 0 of 80 rows from 8 questions, the last of which added nothing; thrown away: 8 no list"
    ]
    more = endless()
    slow = Writer(lambda question: numbered(more(question).splitlines()[0][3:]))
    found = slow.run("self_instruct", SEEDS, rows=80, surplus=2)
    assert len(found) == len(slow.asked) == 20
    assert "as many as `surplus` allows" in slow.said[0]


def test_cut_and_failed_answers_are_not_read() -> None:
    more = endless()
    entries = iter([Entry("", "truncated", text=more("")), None, more("")])
    writer = Writer(lambda _: next(entries, None))
    assert len(writer.run("self_instruct", SEEDS, rows=24)) == 8
    assert "1 truncated answer" in writer.said[0]


def test_a_file_of_seeds_is_shown_and_not_given(desk: Desk) -> None:
    file = desk.seeds([{"prompt": "How do I repot a cactus?"}, {"prompt": "why " * 200}])
    writer = Writer(endless())
    found = writer.run("self_instruct", SEEDS, rows=8, seeds=str(file))
    question = writer.asked[0].messages[0].content
    assert "- How do I repot a cactus?\n" in question
    assert "bicycles" not in question
    assert "why why" not in question
    assert "How do I repot a cactus?" not in texts(found)


def test_texts_to_classify_are_asked_for_as_such_and_may_be_about_pictures() -> None:
    writer = Writer(lambda _: numbered("The picture is sharp and the colours are fine."))
    found = writer.run("self_instruct", rows("A dull film."), CLASSIFY, rows=1)
    assert texts(found) == ["The picture is sharp and the colours are fine."]
    assert "positive, negative" in writer.asked[0].messages[0].content


def test_wrong_recipes_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to take as examples: put an entry above it, or name `seeds`"):
        Writer(endless()).run("self_instruct", rows=3)
    with pytest.raises(UserError, match="none has up to 2 words; raise `max_words`"):
        Writer(endless()).run("self_instruct", SEEDS, rows=3, max_words=2)
    with pytest.raises(UserError, match=r"write either `rouge_l: 0.7` or `embedding: 0.9`"):
        bound("self_instruct", rows=1, novelty={"rouge_l": 0.7, "embedding": 0.9})
    with pytest.raises(UserError, match="`embedder` goes with `embedding`"):
        bound("self_instruct", rows=1, novelty={"rouge_l": 0.7, "embedder": "wordllama"})
    template = tmp_path / "t.md"
    template.write_text("Write {{ count }} like {{ exmples }}")
    with pytest.raises(UserError, match=r"uses 'exmples', which it is not given. Did you mean 'examples'"):
        bound("self_instruct", rows=1, template=str(template))
    (tmp_path / "u.md").write_text("Write {{ count }} more")
    with pytest.raises(UserError, match="does not use 'examples'; it is given examples, count, labels"):
        bound("self_instruct", rows=1, template=str(tmp_path / "u.md"))
    with pytest.raises(UserError, match="no model 'teecher'"):
        bound("self_instruct", rows=1, model="teecher")


def test_a_template_of_ones_own_is_used(tmp_path: Path) -> None:
    template = tmp_path / "t.md"
    template.write_text("{{ system }}You write.{{ user }}{{ count }} like {{ examples | join('|') }}")
    writer = Writer(endless())
    writer.run("self_instruct", SEEDS[:1], rows=1, per_question=3, template=str(template))
    assert [m.content for m in writer.asked[0].messages] == [
        "You write.",
        "3 like What should I know about bicycles before I buy one?",
    ]


def test_check_says_what_it_may_come_to() -> None:
    most = at_most("self_instruct", 3, rows=200)
    assert (most.rows, most.questions, most.max_tokens) == (200, 100, 2048)
    assert 300 < most.prompt_tokens < 600


#: The f-measures of rougeL that rouge-score 0.1.2 gives, without stemming.
ROUGE_SCORE = [
    ("Write a short poem about the sea.", "Write a long poem about the sea and its ships.", 0.7058823529411764),
    ("What's 3.5 + 4?", "What is 3 5 plus 4?", 0.7272727272727272),
    ("I don't like it - at all!", "I do not like it at all", 0.7142857142857143),
    ("A B C D", "D C B A", 0.25),
    ("the the the cat", "the cat the", 0.5714285714285715),
    ("Name three colours.", "Name three colours.", 1.0),
    ("one two", "three four", 0.0),
    ("under_score and dash-ed words", "underscore and dashed words", 0.4),
    ("...", "words", 0.0),
    ("THE Movie was GREAT", "the movie, was great?", 1.0),
]


@pytest.mark.parametrize(("a", "b", "expected"), ROUGE_SCORE)
def test_rouge_l_is_that_of_rouge_score(a: str, b: str, expected: float) -> None:
    assert rouge_l(a, b) == pytest.approx(expected, abs=1e-12)
    if 0 < expected < 1:
        assert Pool(Novelty(rouge_l=expected + 1e-9), [a]).take([b]) == [True]
        assert Pool(Novelty(rouge_l=expected - 1e-9), [a]).take([b]) == [False]


_TEXTS = st.lists(st.sampled_from(list("abcde")), max_size=8).map(" ".join)


@given(st.lists(_TEXTS, max_size=6), st.lists(_TEXTS, max_size=8), st.floats(0.1, 1))
def test_a_pool_takes_what_is_below_its_bound_against_all_it_holds(
    old: list[str], new: list[str], bound: float
) -> None:
    held, expected = list(old), []
    for text in new:
        expected.append(all(_by_hand(text, other) < bound for other in held))
        if expected[-1]:
            held.append(text)
    assert Pool(Novelty(rouge_l=bound), old).take(new) == expected


def _by_hand(a: str, b: str) -> float:
    """ROUGE-L by the table of the longest common subsequence."""
    first, second = a.split(), b.split()
    row = [0] * (len(second) + 1)
    for one in first:
        above, row = row, [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if one == other else max(above[place + 1], row[-1]))
    return 2 * row[-1] / (len(first) + len(second)) if first and second else 0.0


def test_a_pool_of_ten_thousand_is_quick() -> None:
    chance = random.Random(0)
    pool = Pool(Novelty(rouge_l=0.7), [" ".join(chance.choices(WORDS, k=20)) for _ in range(10_000)])
    new = [" ".join(chance.choices(WORDS, k=20)) for _ in range(100)]
    began = time.perf_counter()
    assert all(pool.take(new))
    assert not any(pool.take(new))
    assert (time.perf_counter() - began) / 200 < 0.05  # measured: 0.001 s each


def test_texts_of_other_scripts_are_compared_too() -> None:
    pool = Pool(Novelty(rouge_l=0.7), ["请写一首关于大海的短诗"])
    assert pool.take(["请写一首关于大海的长诗", "面包为什么总是太硬"]) == [False, True]


def test_meaning_is_compared_where_embeddings_are_asked_for() -> None:
    pytest.importorskip("wordllama")
    pool = Pool(Novelty(embedding=0.8), ["How do I remove red wine from a tablecloth?"])
    new = ["What gets a red wine stain out of the tablecloth?", "Which star is nearest to the sun?"]
    like = Pool(Novelty(embedding=0.99), new[:1])
    assert like.take([*new, new[1]]) == [False, True, False]
    assert pool.take([new[1]]) == [True]
