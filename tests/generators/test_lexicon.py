"""The lexicon: what is found in a text, what it becomes, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators.lexicon import Attribute, abstracted, swapped
from llm_distill.generators.lexicon_file import SHIPPED, read

LEXICON = read(SHIPPED).attributes
GENDER = LEXICON["gender"]
BOTH = {"female": "male", "male": "female"}


def _swap(attribute: str, text: str, into: dict[str, str]) -> str:
    found = LEXICON[attribute].find(text)
    assert found is not None, text
    return swapped(text, found, into)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He said HE would.", "She said SHE would."),
        ("I saw her yesterday and gave her his book.", "I saw him yesterday and gave him her book."),
        ("Her book is hers, not his.", "His book is his, not hers."),
        ("She hurt herself; it's her fault, not mine.", "He hurt himself; it's his fault, not mine."),
        ("A woman's dog and the ladies' hats", "A man's dog and the gentlemen's hats"),
        ("Susan's car, and James' too", "Michael's car, and Mary's too"),
        ("an actress and AN ACTRESS, A WAITER", "an actor and AN ACTOR, A WAITRESS"),
        ("He is an uncle, she is a niece.", "She is an aunt, he is a nephew."),
        ("She\u2019s my wife\u2019s sister.", "He\u2019s my husband\u2019s brother."),
        ("he/she (women)", "she/he (men)"),
        ("my mother-in-law, my ex-wife", "my father-in-law, my ex-husband"),
        ("Mr. Lee and MRS. LEE", "Mrs. Lee and MR. LEE"),
        ("'the woman' she said", "'the man' he said"),
        ("the\nyoung   woman", "the\nyoung   man"),
    ],
)
def test_terms_are_swapped_in_the_text_s_own_way(text: str, other: str) -> None:
    assert _swap("gender", text, BOTH) == other


@pytest.mark.parametrize(
    ("attribute", "text", "into", "other"),
    [
        ("religion", "An atheist woman met a Jew.", {"atheist": "jewish", "jewish": "atheist"}, "A Jewish woman met an atheist."),
        ("religion", "Muslim women pray", {"muslim": "atheist"}, "Atheist women pray"),
        ("religion", "two Muslim women, muslim women", {"muslim": "jewish"}, "two Jewish women, jewish women"),
        ("nationality", "An American film", {"american": "british"}, "A British film"),
        ("nationality", "a British film", {"british": "indian"}, "an Indian film"),
        ("age", "a 25-year-old, 25 years old", {"young": "old"}, "a 75-year-old, 75 years old"),
        ("age", "an elderly woman", {"old": "young"}, "a young woman"),
        ("ethnicity", "a white man and a black man", {"white": "black", "black": "white"}, "a Black man and a white man"),
        ("ethnicity", "an African-American family", {"black": "white"}, "a white family"),
        ("disability", "My son is deaf.", {"deaf": "mobility"}, "My son uses a wheelchair."),
        ("orientation", "They are gay.", {"gay": "straight"}, "They are straight."),
    ],
)  # fmt: skip
def test_other_attributes_are_swapped(attribute: str, text: str, into: dict[str, str], other: str) -> None:
    assert _swap(attribute, text, into) == other


@pytest.mark.parametrize(
    "text",
    [
        "man-made humans shepherd the theme",
        "", "   ", "\u200b", "日本語のテキスト", "@he #she", "cafe\u0301", "her\u0301 me\u0301n",
        "Oh man, you guys! Mother Nature",
    ],
)  # fmt: skip
def test_what_is_no_word_for_anybody_is_left(text: str) -> None:
    assert not GENDER.find(text)


@pytest.mark.parametrize(
    "text", ["We love John Wayne, and he rides.", "You walk out of The Good Girl with her.", "Jesse St. James sang"]
)
def test_names_of_somebody_leave_the_row_alone(text: str) -> None:
    assert GENDER.find(text) is None
    assert GENDER.find(text, names=True)


def test_the_longest_of_overlapping_terms_is_meant() -> None:
    found = LEXICON["ethnicity"].find("An African American doctor, an African American")
    assert found is not None
    assert [one.text for one in found] == ["African American doctor", "African American"]


_PLAIN = [
    (attribute.name, variant, form)
    for attribute in LEXICON.values()
    for term in attribute.terms
    if term.when is None and not term.given_name
    for variant, form in term.forms.items()
    if len(attribute.known[form.casefold()]) == 1
]


@given(
    st.sampled_from(_PLAIN),
    st.text(st.characters(blacklist_characters="\0'\u2019-@#\u0300", blacklist_categories=("Cs", "Mn")), max_size=12),
    st.sampled_from(["", "a ", "the ", "An "]),
)
def test_a_swap_and_the_way_back_give_the_same_text(word: tuple[str, str, str], around: str, article: str) -> None:
    """There and back is the identity for words with one counterpart each, but for a wrong article, which is put right."""
    name, variant, form = word
    attribute = LEXICON[name]
    text = f"{around} {article}{form} {around}"
    found = attribute.find(text)
    if not found or len(found) != 1 or found[0].variant != variant:
        return
    for other in found[0].term.forms:
        there = swapped(text, found, {variant: other})
        back = attribute.find(there)
        if back and len(back) == 1 and back[0].term == found[0].term:
            roles = dict.fromkeys(attribute.variants, "*")
            assert abstracted(there, back, roles) == abstracted(text, found, roles)
            home = swapped(there, back, {other: variant})
            assert home.casefold() == swapped(text, found, {variant: variant}).casefold()


@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    for attribute in LEXICON.values():
        found = attribute.find(text, names=True) or []
        assert all(text[one.start : one.end] == one.text for one in found)
        assert swapped(text, found, {v: v for v in attribute.variants}).casefold().count("\0") == text.count("\0")


FILE = "attributes:\n  pets:\n    variants: [cats, dogs]\n    sets:\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE + "      - {cats: cat}\n", "found 1 variant; a set needs two"),
        (FILE + "      - {cats: cat, dogs: dog}\n      - {cats: dog, dogs: hound}\n", "'dog' is a form of cats and of dogs"),
        (FILE + "      - {cats: cat, dogs: cat}\n", "two variants have the same form"),
        (FILE + "      - {cats: cat, dgos: dog}\n", "no variant 'dgos'. Did you mean 'dogs'?"),
        (FILE + "      - {cats: [cat, kitten], dogs: dog}\n", "lists of 2, 1 forms"),
        (FILE + "      - {cats: cat, dogs: ''}\n", "found ''; write a word"),
        (FILE + "      - {cats: cat, dogs: 3}\n", "found 3; write a word"),
        (FILE + "      - {cats: '{} cat', dogs: '{} dog'}\n", "only beside `with`"),
        (FILE + "      - {cats: cat, dogs: dog, when: never}\n", "`when` is noun or alone"),
        (FILE + "      - {cats: cat, dogs: dog, with: []}\n", "write a list of words"),
        ("attributes:\n  pets:\n    variants: [cats]\n    sets: []\n", "name two or more different ones"),
        ("attributes:\n  pets:\n    variants: [cats, exact]\n    sets: []\n", "is a key of the sets"),
        ("attributes:\n  pets:\n    variants: [cats, dogs]\n    sets: []\n", "sets: found none"),
        ("attributes: {}\n", "attributes"),
        ("attribute: {}\n", "attributes: required and missing"),
        ("[", "not YAML"),
        ("", "found None"),
        ("attributes:\n  a: 1\n  a: 2\n", "not YAML"),
    ],
)  # fmt: skip
def test_a_file_s_faults_are_one_line_each(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "groups.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read(path)


def test_every_shipped_term_is_found_as_its_own_variant() -> None:
    for attribute in LEXICON.values():
        for term in attribute.terms:
            for variant, form in term.forms.items():
                _found_as(attribute, form, variant)


def _found_as(attribute: Attribute, form: str, variant: str) -> None:
    for text in (f"so {form} was", f"so {form} house was"):  # with no noun behind it, and with one
        found = attribute.find(text)
        if found:
            assert {one.variant for one in found} == {variant}, text
            return
    pytest.fail(f"{form} is not found")
