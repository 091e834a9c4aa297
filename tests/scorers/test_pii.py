"""Personal data and secrets: each kind with what it should find and what only looks like it."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.records import Answer, Message, make_prompt
from llm_distill.scorers import SCORERS, checksums
from llm_distill.scorers.personal import KINDS, Kind, personal, redacted
from llm_distill.scorers.pii import pii
from llm_distill.scorers.secrets import entropy
from tests.conftest import Desk
from tests.scorers.rows import answer

_RANDOM = "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1z2A"
_JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
#: Joined, so that no scanner takes this file for a leak.
_KEY = (
    "-----BEGIN RSA "
    + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA7dYhQ2xJp9kZ3vT1mWc8\nq5RfLs0NuXbEaGo4\n-----END RSA "
    + "PRIVATE KEY-----"
)

FOUND: list[tuple[Kind, str, str]] = [
    ("email", "Write to anna.k+x@mail.uni-koeln.de.", "Write to [EMAIL]."),
    ("email", "<bob@web.de>", "<[EMAIL]>"),
    ("card", "4111 1111 1111 1111, or 5500-0000-0000-0004", "[CARD], or [CARD]"),
    ("card", "card 378282246310005!", "card [CARD]!"),
    ("card", "4111 1111 1111 1111 12/27 123, order 7 4111-1111-1111-1111", "[CARD] 12/27 123, order 7 [CARD]"),
    ("iban", "To DE89 3704 0044 0532 0130 00 AND soon", "To [IBAN] AND soon"),
    ("iban", "GB82WEST12345698765432", "[IBAN]"),
    ("ip", "from 8.8.8.8 and 2001:4860:4860::8888.", "from [IP] and [IP]."),
    ("phone", "Call +44 20 7946 0958 or (212) 736-5000.", "Call [PHONE] or [PHONE]."),
    ("phone", "+442079460958; 2127365000; 212-736-5000; 1-212-736-5000; 212.736.5000", "; ".join(["[PHONE]"] * 5)),
    ("national_id", "SSN 536-90-4399", "SSN [NATIONAL_ID]"),
    ("national_id", "social security number: 536904399", "social security number: [NATIONAL_ID]"),
    ("national_id", "AB 12 34 56 C", "[NATIONAL_ID]"),
    ("national_id", "DNI 12345678Z, NIE X1234567L", "DNI [NATIONAL_ID], NIE [NATIONAL_ID]"),
    ("national_id", "RSSMRA85T10A562S", "[NATIONAL_ID]"),
    ("national_id", "2 55 08 14 168 025 38", "[NATIONAL_ID]"),
    ("national_id", "CPF 529.982.247-25", "CPF [NATIONAL_ID]"),
    ("national_id", "756.9217.0769.85", "[NATIONAL_ID]"),
    ("national_id", "811218-9876", "[NATIONAL_ID]"),
    ("national_id", "Steuer-ID 86095742719", "Steuer-ID [NATIONAL_ID]"),
    ("national_id", "BSN: 111222333", "BSN: [NATIONAL_ID]"),
    ("national_id", "PESEL 44051401359", "PESEL [NATIONAL_ID]"),
    ("national_id", "my SIN is 046 454 286", "my SIN is [NATIONAL_ID]"),
    ("national_id", "Aadhaar 2341 2341 2346", "Aadhaar [NATIONAL_ID]"),
    ("secret", "AKIA" + "QWERTYUIOPASDF37", "[SECRET]"),
    ("secret", "token ghp_" + _RANDOM + ",", "token [SECRET],"),
    ("secret", "sk-proj-" + _RANDOM, "[SECRET]"),
    ("secret", "sk-ant-api03-" + _RANDOM, "[SECRET]"),
    ("secret", "xoxb-" + "123456789012-aBcDeFgHiJkLmN", "[SECRET]"),
    ("secret", "AIza" + _RANDOM[:35], "[SECRET]"),
    ("secret", "hf_" + _RANDOM, "[SECRET]"),
    ("secret", f"Bearer {_JWT}", "Bearer [SECRET]"),
    ("secret", _KEY, "[SECRET]"),
    ("secret", "postgres://bob:s3cr3tpw@db.host/x", "[SECRET]/x"),
    ("secret", 'password: "hunter2Kq9z"', '[SECRET]"'),
]
NOT_FOUND: list[tuple[Kind, str]] = [
    ("email", "user@example.com, a@b, @handle, x@test, 3@ 4.de, me @ work.org"),
    ("card", "4111 1111 1111 1112; 1234567890123456; 0000 0000 0000 0000; ISBN 9783161484100; 20240102103020123"),
    ("card", "5 5 0 0 0 0 0 0 0 0 0 0 0 0 0 4; 4111 1111-1111 1111; 41 11 11 11 11 11 11 11"),
    ("iban", "DE00 3704 0044 0532 0130 00; DE89 3704 0044 0532 0130; ZZ82WEST12345698765432; AB12CDEF"),
    ("ip", "10.0.0.1, 192.168.1.1, 127.0.0.1, version 8.8.8.8, v1.2.3.4, 1.2.3.4.5, 999.1.1.1, 12:34:56, ::1, std::vector"),
    ("ip", "class A::B, ab::cd(), dead::beef"),
    ("phone", "555-1234, 123456789, 2024-01-02 10:20:30, 12/11/2019 12345, $1,234,567.89, 1 2 3 4 5 6 7 8 9 10"),
    ("national_id", "000-12-3456, 666-12-3456, 900-12-3456, 536-00-4399, 12345678A, BG123456C, 529.982.247-26"),
    ("national_id", "86095742719, 111222333, 44051401359, 046 454 286, 2341 2341 2346"),
    ("national_id", "811318-9876, 756.9217.0769.86, RSSMRA85T10A562T, 2 55 08 14 168 025 39"),
    ("secret", "AKIA" + "IOSFODNN7EXAMPLE and sk-xxxxxxxxxxxxxxxxxxxxxxxx and hf_" + "a" * 34),
    ("secret", "password: required, pass the api_key = os.environ['KEY'], sk-learn, risk-aversion-of-the-average-person"),
    ("secret", "sk-toggleable__content-fitted, sk-learn-linear-model-classifier"),
    ("secret", "eyJub3QiOiJhIHRva2VuIn0.eyJub3QiOiJhIHRva2VuIn0.abcdefghijk and https://user:{password}@host"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "clean"), FOUND)
def test_personal_data_is_found_whole_and_as_its_own_kind(kind: Kind, text: str, clean: str) -> None:
    assert redacted(text, personal(text, [kind], ["US"])) == clean
    found = personal(text, KINDS, ["US"])
    assert {one.kind for one in found} == {kind}
    assert redacted(text, found) == clean


@pytest.mark.parametrize(("kind", "text"), NOT_FOUND)
def test_what_only_looks_like_it_is_left(kind: Kind, text: str) -> None:
    assert [text[one.start : one.end] for one in personal(text, [kind], ["US"])] == []


def test_regions_say_which_national_numbers_count() -> None:
    text = "(212) 736-5000, 030 901820"
    assert [len(personal(text, ["phone"], regions)) for regions in ([], ["US"], ["DE"], ["US", "DE"])] == [0, 1, 1, 2]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.sampled_from(FOUND))
def test_any_text_is_read_and_a_cleaned_one_is_clean(text: str, known: tuple[Kind, str, str]) -> None:
    whole = f"{text}\n{known[1]}"
    found = personal(whole, KINDS, [])
    spans = [(one.start, one.end) for one in found]
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    if known[0] != "phone":
        assert found


@given(st.text("0123456789", min_size=1, max_size=18), st.integers(0, 9))
def test_luhn_s_check_digit_is_one_of_ten(digits: str, wrong: int) -> None:
    right = [last for last in range(10) if checksums.luhn(f"{digits}{last}")]
    assert len(right) == 1
    assert checksums.luhn(f"{digits}{wrong}") == (wrong in right)


@given(st.text("0123456789", min_size=11, max_size=11), st.integers(0, 11), st.integers(1, 9))
def test_verhoeff_finds_every_wrong_digit(digits: str, place: int, off: int) -> None:
    whole = next(f"{digits}{last}" for last in range(10) if checksums.in_aadhaar(f"{digits}{last}"))
    other = str((int(whole[place]) + off) % 10)
    assert not checksums.in_aadhaar(whole[:place] + other + whole[place + 1 :])


def test_entropy_is_in_bits() -> None:
    assert (entropy(""), entropy("aaaa"), entropy("abab"), entropy("abcd")) == (0, 0, 1, 2)


def test_counts_and_kinds_are_told_never_the_data() -> None:
    row = answer("Mail bob@web.de or 8.8.8.8", prompt="I am anna@web.de, call +44 20 7946 0958")
    for of, count in (("prompt", 2), ("answer", 2), ("both", 4)):
        found = pii([row], of=of)  # type: ignore[arg-type]
        assert list(found.values) == [count]
        assert found.prompts == ()
    assert found.why == ["email in the prompt, phone in the prompt, email in the answer, ip in the answer"]
    assert list(pii([answer("fine")]).values) == [0]
    assert pii([]).values == []


def test_redacting_cleans_every_turn_of_the_prompt_and_counts_the_answer_alone() -> None:
    messages = (Message("system", "You serve eve@web.de"), Message("user", "I am bob@web.de, bob@web.de"))
    dirty = Answer(make_prompt(messages, {"domain": "x"}, "label"), "ok", "ok")
    answered = answer("it is bob@web.de", prompt="nothing")
    found = pii([dirty, answered], do="redact_prompt")
    assert list(found.values) == [0, 1]
    clean = found.prompts[0]
    assert clean is not None
    assert [m.content for m in clean.messages] == ["You serve [EMAIL]", "I am [EMAIL], [EMAIL]"]
    assert (clean.row_id, clean.tags, clean.label) == (dirty.prompt.row_id, dirty.prompt.tags, "label")
    assert clean.prompt_id == make_prompt(clean.messages).prompt_id
    assert found.prompts[1] is None
    assert found.why[0] == "email in the prompt (3)"


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "1 " * 100_000, "1-" * 100_000, "@" * 100_000, "a.b@" * 50_000, "DE89 " * 40_000, "f:" * 100_000,
     "-----BEGIN PRIVATE KEY-----" * 2_000, "eyJhbGci." * 20_000, "sk-" * 60_000, "password: " * 20_000, "://:" * 50_000,
     "a+" * 100_000 + "@", "a@" + "b." * 100_000,
     "123-45-6789 " * 20_000, "a@b.co " * 30_000, "1.1.1.1 " * 25_000, "4111 " * 40_000],
)  # fmt: skip
def test_long_texts_of_one_kind_take_no_longer_than_others(text: str) -> None:
    start = time.monotonic()
    personal(text, [kind for kind in KINDS if kind != "phone"], [])
    assert time.monotonic() - start < 10


def test_a_country_that_is_none_is_seen_at_check(desk: Desk) -> None:
    desk.seeds([{"prompt": "x"}])
    said = desk.llm_distill("check", desk.recipe(filter=[{"pii": {"regions": ["USA"]}}]), code=2)
    assert "no country 'USA'" in said


def test_through_the_door_prompts_are_cleaned_for_training_and_leaky_answers_dropped(desk: Desk) -> None:
    desk.seeds([{"prompt": "a good lid, says bob@web.de"}, {"prompt": "an odd lid"}])
    recipe = desk.recipe(
        task="generate",
        models={"teacher": {"scripted": {"rules": {"odd": "ask eve@web.de"}, "default": "nice"}}},
        filter=[{"pii": {"do": "redact_prompt"}}],
    )
    summary = desk.here(recipe)
    (kept,), (dropped,) = desk.rows(summary, "kept"), desk.rows(summary, "dropped")
    assert dropped["dropped_by"] == "pii"
    assert "bob@web.de" not in kept["why.pii"]
    assert kept["why.pii"] == "email in the prompt"


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "phonenumbers", None)
    with pytest.raises(UserError, match=r"llm-distill\[filter\]"):
        personal("+44 20 7946 0958", ["phone"], [])
    assert personal("+44 20 7946 0958", ["email"], []) == []
    reading = Reading(folder=Path(), files=set(), roles=())
    with pytest.raises(UserError, match=r"llm-distill\[filter\]"):
        bind("scorer", Spec("pii", {"regions": []}, "filter[0].pii"), SCORERS, reading)
