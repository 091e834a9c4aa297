"""Answers beside their references: equal, unequal, and beyond comparing."""

from __future__ import annotations

import json
import math as maths
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.plugs import Reading, Spec, bind
from llm_distill.scorers import SCORERS, equating
from llm_distill.scorers.numbers import boxed, numbers
from llm_distill.scorers.verifiers import json_equal, math, numeric
from tests.scorers.rows import answer


def figures(text: str, **knobs: Any) -> list[Fraction]:
    return [number.figure for number in numbers(text, **knobs)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", "18"),
        ("The total is 18.", "18"),
        ("#### 72", "72"),
        ("1,234.50", "1234.5"),
        ("$1,234", "1234"),
        ("\\$1{,}234", "1234"),
        ("USD 1,000,000", "1000000"),
        ("12\u202f345", "12345"),
        ("12'345", "12345"),
        ("1_000", "1000"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("-$5", "-5"),
        ("$-5$", "-5"),
        ("x=-3", "-3"),
        ("+5", "5"),
        (".5", "1/2"),
        ("3/4", "3/4"),
        ("1 1/2", "3/2"),
        ("½", "1/2"),
        ("2⅓ cups", "7/3"),
        ("\\frac{3}{4}", "3/4"),
        ("$1\\dfrac{1}{2}$", "3/2"),
        ("1.2e-3", "3/2500"),
        ("2 \u00d7 10^5", "200000"),
        ("2 \\times 10^{-3}", "1/500"),
        ("3·10⁻²", "3/100"),
        ("45 %", "45"),
        ("5km", "5"),
    ],
)
def test_a_number_is_read(text: str, expected: str) -> None:
    assert figures(text) == [Fraction(expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no number", []),
        ("GPT-4 and H2O, v1.2.3", []),
        ("Python 12.5.2 at 192.168.1.1, 1.234.567", []),
        ("1/0", []),
        ("9" * 5000, []),
        ("1e999999999", []),
        ("1,2,3", [1, 2, 3]),
        ("\u7b54\u6848\u662f12,345\u5143\uff0c\u51713.5\u4e2a", [12345, 3.5]),
        ("\u6e29\u5ea6\u4e3a-5", [-5]),
        ("3\u20135 days", [3, 5]),
        ("(2)-3", [2, 3]),
        ("at 10:30", [10, 30]),
        ("in 2019 there were 300", [2019, 300]),
    ],
)
def test_none_or_several(text: str, expected: list[int]) -> None:
    assert figures(text) == expected


def test_a_decimal_comma() -> None:
    assert figures("1.234,5 und 12 000 und -0,25", decimal=",") == [Fraction(2469, 2), 12000, Fraction(-1, 4)]


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_what_python_writes_is_read(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    for text in (f"{units:,}", f"So it is {units:,}.", f"${units:,}$"):
        assert figures(text) == [units]
    assert figures(f"about {units / 10**places:,.{places}f} of them") == [Fraction(f"{units / 10**places:.{places}f}")]
    assert figures(f"{value.numerator}/{value.denominator}") == [value]


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    numbers(text)
    numbers(text, ",")
    boxed(text)


def test_a_long_text_is_read_in_time() -> None:
    for piece in ("1,", "1 ", "1/", "9", "\\frac{", "1 1", "'", "$-", "1.", "1,234"):
        numbers(piece * 20_000)


NUMERIC: list[tuple[str, str, dict[str, Any], float]] = [
    ("She has 3 + 15 = 18 eggs left.", "18", {}, 1),
    ("She sells 18 of 20.", "18", {}, 0),
    ("The answer is 1,080 dollars.", "so 9 * 120 = 1080\n#### 1080", {}, 1),
    ("It grows by 45%.", "45", {}, 1),
    ("It grows by 45%.", "0.45", {}, 1),
    ("It grows by 45%.", "45%", {}, 1),
    ("It grows by 0.45%.", "45%", {}, 0),
    ("\u7ea645\uff05", "0.45", {}, 1),
    ("It is 3/4.", "0.75", {}, 1),
    ("It is 0.333.", "1/3", {}, 0),
    ("It is 0.333.", "1/3", {"tolerance": 0.01}, 1),
    ("-7", "7", {}, 0),
    ("", "7", {}, 0),
    ("0.0000001", "0", {}, 1),
    ("7", "7", {"where": "only"}, 1),
    ("4 + 3 = 7", "7", {"where": "only"}, 0),
    ("First \\boxed{3}, no: \\boxed{\\frac{1}{2}}. That took 9 steps.", "0.5", {"where": "boxed"}, 1),
    ("\\boxed{1, 2}", "2", {"where": "boxed"}, 0),
    ("7", "7", {"where": "boxed"}, 0),
    ("\\boxed{7", "7", {"where": "boxed"}, 0),
    ("Answer: 7 (after 3 steps)", "7", {"where": "after"}, 1),
    ("Answer: 6\nAnswer: 7", "7", {"where": "after"}, 1),
    ("The answer is 7", "7", {"where": "after"}, 0),
    ("Result = 7", "7", {"where": "after", "marker": "="}, 1),
    ("1.234,5", "1234,5", {"decimal": ","}, 1),
]


@pytest.mark.parametrize(("text", "reference", "knobs", "score"), NUMERIC)
def test_numeric(text: str, reference: str, knobs: dict[str, Any], score: float) -> None:
    found = numeric([answer(text, reference)], **knobs)
    assert list(found.values) == [score]
    assert (found.why[0] is None) == (score == 1)


@pytest.mark.parametrize("reference", [None, "", "many", "1 or 2"])
def test_nothing_to_verify_by(reference: str | None) -> None:
    for found in (numeric([answer("7", reference)]), json_equal([answer("7", reference)])):
        assert maths.isnan(found.values[0])
        assert "reference" in (found.why[0] or "")


JSON: list[tuple[str, str, dict[str, Any], str | None]] = [
    ('{"b": [1, 2], "a": null}', '{"a": null, "b": [1.0, 2]}', {}, None),
    ('{"a": 1}', '{"a": 2}', {}, "$.a: 1, due 2"),
    ('{"a": true}', '{"a": 1}', {}, "$.a: True, due 1"),
    ('{"a": "1"}', '{"a": 1}', {}, "$.a: '1', due 1"),
    ("[2, 1]", "[1, 2]", {}, "$[0]: 2, due 1"),
    ("[1]", "[1, 2]", {}, "$: 1 items, due 2"),
    ("{}", '{"a": 1}', {}, "$: 'a' is missing"),
    ('{"a": 1}', "{}", {}, "$: 'a' is not due"),
    ('{"a": {"at": 1, "b": 2}}', '{"a": {"b": 2}, "at": 3}', {"ignore": ["at"]}, None),
    ("0.1", "0.10000000001", {}, None),
    ("0.1", "0.11", {"tolerance": 0.1}, None),
    ("0.1", "0.11", {}, "$: 0.1, due 0.11"),
    ("100000000000000000000001", "100000000000000000000000", {"tolerance": 0}, "$: 1000"),
    ('```json\n{"a": 1}\n```', '{"a": 1}', {}, "not JSON"),
    ('{"a": 1, "a": 1}', '{"a": 1}', {}, "not JSON: the key 'a' stands twice"),
    ('{"a": 1', '{"a": 1}', {}, "not JSON"),
    ("NaN", "1", {}, "not JSON"),
    ("[" * 100_000, "1", {}, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "reference", "knobs", "why"), JSON)
def test_json_equal(text: str, reference: str, knobs: dict[str, Any], why: str | None) -> None:
    found = json_equal([answer(text, reference)], **knobs)
    assert list(found.values) == [float(why is None)]
    assert (found.why[0] or "").startswith(why or "")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES)
def test_json_equals_itself_however_it_is_written(value: Any) -> None:
    texts = json.dumps(value), json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False)
    assert list(json_equal([answer(texts[1], texts[0])]).values) == [1.0]
    assert list(json_equal([answer(json.dumps([value]), texts[0])]).values) == [0.0]


MATH = [
    ("12:00", "12:00", 1.0),
    ("Therefore $\\boxed{0.5}$", "1/2", 1.0),
    ("so 1/3", "\\frac{1}{3}", 1.0),
    ("It is $(x+1)^2$.", "x^2+2x+1", 1.0),
    ("x+1", "1+x", 1.0),
    ("$\\{2,1\\}$", "\\{1,2\\}", 1.0),
    ("$2\\sqrt{2}$", "\\sqrt{8}", 1.0),
    ("$[0,1)$", "[0,1)", 1.0),
    ("$[0,1]$", "[0,1)", 0.0),
    ("The answer is 18 apples", "18", 1.0),
    ("The answer is 19 apples", "18", 0.0),
    ("", "18", 0.0),
    ("nobody knows", "18", 0.0),
    ("__import__('os').system('touch PLACE')", "3", 0.0),
    ("$\\text{__import__('os').system('touch PLACE')}$", "3", 0.0),
    ("(((((((((((((((((((((((", "x", 0.0),
]


def test_math(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    place = tmp_path / "touched"
    rows = [answer(text.replace("PLACE", str(place)), reference) for text, reference, _ in MATH]
    assert list(math(rows).values) == [score for *_, score in MATH]
    assert not place.exists()
    missing = math([answer("5"), answer("5", ""), answer("5", "5")])
    assert [None if maths.isnan(v) else v for v in missing.values] == [None, None, 1.0]
    assert list(math([]).values) == []


def test_math_that_never_ends_is_ended_and_the_next_is_compared() -> None:
    pytest.importorskip("math_verify")
    rows = [answer("$100000!!!!!$", "5"), answer("5", "5"), answer("$\\boxed{9^{9^{9^{9}}}}$", "5"), answer("4", "5")]
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(math(rows, timeout_s=1)))  # signals reach no thread
    thread.start()
    thread.join(120)
    assert [None if maths.isnan(v) else v for v in result[0].values] == [None, 1.0, None, 0.0]
    assert "took too" in (result[0].why[0] or "")


def test_a_process_that_dies_or_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    with equating.Equating(1) as equal:
        assert equal("5", "5") == (1.0, None)
        assert equal._child is not None
        equal._child.kill()
        equal._child.wait()
        value, why = equal("5", "5")
        assert maths.isnan(value)
        assert why is not None
        assert equal("5", "5") == (1.0, None)
        child = equal._child
        monkeypatch.setattr(equal, "_line", lambda *_: None)
        assert equal("5", "5")[1] == "the comparison took too long"
        assert child is not None
        assert child.returncode == -9


def test_math_without_math_verify_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(equating, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-distill\[filter\]'"):
        bind("scorer", Spec("math", {}, "filter[0].math"), SCORERS, Reading(folder=tmp_path, files=set(), roles=()))
