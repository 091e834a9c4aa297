from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.compare import ARMS, compare
from llm_distill.evals.metrics import Kind
from llm_distill.evals.statistics import sign_test
from llm_distill.records import Answer
from tests.evals.rows import LABELS, answer, arm, prompt, right_on, wrote

Arms = dict[str, list[Answer]]


def quickstart(n: int = 300) -> Arms:
    """The shape of the real thing: teacher 88 %, student 87 %, few-shot 65 %, zero-shot 27 %."""
    return {
        "base_zero_shot": right_on(n, round(0.27 * n)),
        "base_few_shot": right_on(n, round(0.65 * n)),
        "student": right_on(n, round(0.87 * n), first=n // 50),
        "teacher": right_on(n, round(0.88 * n)),
    }


def numbers(arms: dict[str, list[Answer]], **knobs: Any) -> dict[str, Any]:
    return compare(arms, "classify", LABELS, **({"seed": 7, "resamples": 2_000} | knobs))


def test_the_headline_of_a_good_run() -> None:
    found = numbers(quickstart(), resamples=10_000)
    assert re.fullmatch(
        r"The student keeps 98\.9 % \(9\d\.\d to 10\d\.\d %\) of its teacher's accuracy \(87\.0 % against 88\.0 %\), "
        r"is 22\.0 points \(1[67]\.\d to 2[67]\.\d\) above its own few-shot self, "
        r"and closes 95\.7 % \(8\d\.\d to 10\d\.\d %\) of the gap, on 300 held-out rows\.",
        found["headline"],
    ), found["headline"]
    pair = found["paired"]["student_vs_base_few_shot"]
    assert (pair["wins"], pair["losses"], pair["n"]) == (72, 6, 300)
    assert pair["difference"] == pytest.approx((pair["wins"] - pair["losses"]) / 300)
    assert pair["test"] == "exact McNemar"
    assert found["gap_closed"]["value"] == pytest.approx((261 - 195) / (264 - 195), abs=1e-6)
    assert found["kept_share"]["value"] == pytest.approx(261 / 264, abs=1e-6)
    assert found["arms"]["teacher"]["accuracy"]["value"] == 0.88
    assert found["arms"]["student"]["status"] == {"ok": 300}


def test_equal_answers_in_any_order_give_equal_bytes() -> None:
    rng = random.Random(3)
    arms = quickstart(60)
    once = json.dumps(numbers(arms), allow_nan=False)
    shuffled = {name: rng.sample(rows, len(rows)) for name, rows in reversed(arms.items())}
    assert json.dumps(numbers(shuffled), allow_nan=False) == once
    assert json.dumps(numbers(arms, seed=8), allow_nan=False) != once


@pytest.mark.parametrize("present", [names for k in range(5) for names in combinations(ARMS, k)])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_any_arms_and_any_number_of_rows(present: Sequence[str], n: int) -> None:
    arms = {name: rows for name, rows in quickstart(n).items() if name in present}
    found = numbers(arms, resamples=200)
    json.dumps(found, allow_nan=False)
    assert set(found["arms"]) == set(present)
    assert set(found["paired"]) == {
        f"student_vs_{other}" for other in set(present) - {"student"} if "student" in present
    }
    assert found["headline"].endswith(".")
    for key in ("gap_closed", "kept_share"):
        assert (found[key]["value"] is None) == ("reason" in found[key])
    if "student" in present and n == 5:
        assert found["headline"].startswith("Nothing can be concluded from 5 held-out rows; for the record, accuracy: ")
    if "student" not in present and present:
        assert found["headline"].startswith("No student was evaluated; accuracy on the held-out rows: ")


def test_no_rows_at_all() -> None:
    found = numbers({name: [] for name in ARMS})
    assert found["arms"]["student"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["headline"].startswith("Nothing can be said")


def test_everything_unparsed() -> None:
    gold = ["positive"] * 40
    found = numbers({name: arm(gold, [None] * 40) for name in ARMS})
    student = found["arms"]["student"]
    assert student["accuracy"]["value"] == 0
    assert student["unparsed_rate"]["value"] == 1
    assert student["macro_f1"]["value"] == 0
    assert student["agreement_with_teacher"]["n"] == 0
    assert found["kept_share"]["reason"] == "the teacher scores 0"
    assert found["headline"] == (
        "The student's accuracy is 0.0 % (0.0 to 8.8 %), where its teacher gets nothing right, shows no clear "
        "difference from its own few-shot self (0.0 points, -5.0 to 5.0), and no gap between the few-shot base and the "
        "teacher can be seen (0.0 points, -5.0 to 5.0), on 40 held-out rows."
    )


@pytest.mark.parametrize(
    ("changed", "says", "reason"),
    [
        ({"student": 120}, "BELOW its own few-shot self, and closes none of the gap (", None),
        ({"student": 198}, "shows no clear difference from its own few-shot self (1.0 points, ", None),
        (
            {"teacher": 100},
            "above its teacher's (87.0 % against 33.3 %)",
            "the teacher itself is below that",
        ),
        ({"teacher": 198}, "and no gap between the few-shot base", "no gap between the few-shot base and the teacher"),
        ({"base_few_shot": 60}, "above its own zero-shot self", None),
    ],
)
def test_the_headline_says_what_went_wrong(changed: dict[str, int], says: str, reason: str | None) -> None:
    arms = quickstart() | {name: right_on(300, right, first=20) for name, right in changed.items()}
    found = numbers(arms)
    assert says in found["headline"]
    assert ("reason" in found["gap_closed"]) == (reason is not None)
    if reason:
        assert found["gap_closed"]["reason"].startswith(reason)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), *[st.sampled_from([*LABELS, None])] * 2), min_size=1, max_size=30))
def test_laws(rows: list[tuple[str, str | None, str | None]]) -> None:
    gold, said, other = zip(*rows, strict=True)
    found = numbers(
        {"student": arm(gold, said), "teacher": arm(gold, said), "base_few_shot": arm(gold, other)}, resamples=300
    )
    same = found["paired"]["student_vs_teacher"]
    assert (same["difference"], same["p"], same["wins"], same["losses"]) == (0, 1, 0, 0)
    assert same["low"] < 0 < same["high"]
    for name in found["arms"]:
        counts = found["arms"][name]["confusion"]["counts"]
        assert sum(map(sum, counts)) == len(rows)
        assert found["arms"][name]["accuracy"]["value"] == pytest.approx(
            sum(counts[i][i] for i in range(2)) / len(rows), abs=1e-6
        )
    if found["gap_closed"]["value"] is not None:
        assert found["gap_closed"]["value"] == 1


def test_paired_numbers_are_about_shared_rows_only() -> None:
    arms = {"student": right_on(40, 30), "teacher": right_on(40, 30)[:32], "base_few_shot": right_on(40, 10)}
    found = numbers(arms)
    assert found["paired_rows"] == 32
    assert found["paired"]["student_vs_base_few_shot"]["n"] == 32
    assert found["arms"]["student"]["n"] == 40


def test_slices() -> None:
    rows = [prompt(f"row {i}", "positive", **({"domain": "ab"[i % 2]} if i < 8 else {})) for i in range(10)]
    student = [answer(p, "positive" if p.tags.get("domain") == "a" else None) for p in rows]
    found = numbers({"student": student}, slices=["domain"])["arms"]["student"]["slices"]["domain"]
    assert list(found) == ["(none)", "a", "b"]
    assert [found[v]["n"] for v in found] == [2, 4, 4]
    assert [found[v]["accuracy"]["value"] for v in found] == [0, 1, 0]
    with pytest.raises(
        UserError, match=r"evaluate.slices: no held-out row has the tag 'domian'. Did you mean 'domain'"
    ):
        numbers({"student": student}, slices=["domian"])


def test_slices_are_compared_with_holms_correction() -> None:
    sizes = {"a": 30, "b": 20, "c": 3}
    rows = [prompt(f"row {v}{i}", "positive", domain=v, half="xy"[i % 2]) for v, n in sizes.items() for i in range(n)]
    student = [answer(p, "positive" if p.tags["domain"] == "a" else "negative") for p in rows]
    teacher = [answer(p, "positive" if p.tags["domain"] == "b" else "negative") for p in rows]
    found = numbers({"student": student, "teacher": teacher}, slices=["domain", "half"])["paired"]["student_vs_teacher"]
    domains = found["slices"]["domain"]
    assert [domains[v]["n"] for v in "abc"] == [30, 20, 3]
    assert [domains[v]["difference"] for v in "abc"] == [1, -1, 0]
    assert domains["a"]["p"] == pytest.approx(2 / 2**30, rel=1e-4)
    assert domains["a"]["p_holm"] == pytest.approx(4 * 2 / 2**30, rel=1e-4), "four slices have rows enough"
    assert domains["b"]["p_holm"] == pytest.approx(3 * 2 / 2**20, rel=1e-4)
    assert domains["b"]["high"] < 0 < domains["a"]["low"]
    assert domains["c"]["p"] is domains["c"]["p_holm"] is domains["c"]["low"] is None
    assert all(found["slices"]["half"][v]["p_holm"] == pytest.approx(2 * sign_test(15, 10), rel=1e-4) for v in "xy")


def test_every_paired_number_has_its_bca_interval_and_the_rows_it_needs() -> None:
    found = numbers(quickstart())
    pair = found["paired"]["student_vs_teacher"]
    for of, value in ((pair, pair["difference"]), (found["kept_share"], None), (found["gap_closed"], None)):
        assert of["bca"]["low"] < (of["value"] if value is None else value) < of["bca"]["high"]
        assert [of["bca"]["low"], of["bca"]["high"]] == pytest.approx([of["low"], of["high"]], abs=0.03)
    assert abs(pair["difference"]) < pair["smallest_visible"]
    assert pair["rows_needed"] == pytest.approx(300 * (pair["smallest_visible"] / pair["difference"]) ** 2, rel=0.01)


def test_time_and_tokens_count_what_is_known() -> None:
    rows = arm(["positive"] * 5, ["positive"] * 5, prompt_tokens=10)
    times = [1.0, 2.0, 3.0, 4.0]
    rows = [msgspec.structs.replace(r, seconds=s) for r, s in zip(rows, times, strict=False)]
    rows += arm(["positive"] * 5, ["positive"] * 5, status="failed", seconds=60.0)[4:]
    found = numbers({"student": rows})["arms"]["student"]
    assert found["seconds_per_answer"] == {"value": 2.5, "p50": 2.5, "p95": pytest.approx(3.85)}
    assert found["prompt_tokens_per_answer"] == {"value": 10}
    assert found["completion_tokens_per_answer"] == {"value": None}
    assert found["status"] == {"ok": 4, "failed": 1}


def test_examples_are_balanced_and_wins_and_losses_come_first() -> None:
    found = numbers(quickstart())
    kinds = [e["kind"] for e in found["examples"]]
    assert found["examples_versus"] == "teacher"
    assert {kind: kinds.count(kind) for kind in kinds} == {"win": 3, "loss": 6, "both_wrong": 8, "both_right": 3}
    assert kinds == sorted(kinds, key=["win", "loss", "both_wrong", "both_right"].index)
    assert len({e["row_id"] for e in found["examples"]}) == 20
    first = found["examples"][0]
    assert first["answers"]["student"]["prediction"] == first["label"] != first["answers"]["teacher"]["prediction"]
    assert first["text"].startswith("row ")
    assert len(numbers(quickstart(12))["examples"]) == 12
    without = quickstart()
    del without["teacher"]
    kinds = [e["kind"] for e in numbers(without)["examples"]]
    assert (kinds.count("win"), kinds.count("loss"), len(kinds)) == (8, 6, 20)


def test_generate_with_references() -> None:
    references = [f"alpha beta gamma {i}" for i in range(40)]
    arms = {
        "student": wrote(references, [f"Alpha, beta, gamma {i}." for i in range(20)] + ["alpha"] * 20),
        "base_few_shot": wrote(references, ["alpha"] * 40),
        "teacher": wrote(references, references),
    }
    found = compare(arms, "generate", [], seed=7, resamples=1_000)
    student = found["arms"]["student"]
    assert found["metric"] == "token_f1"
    assert student["exact_match"]["value"] == 0.5
    assert student["token_f1"]["value"] == pytest.approx((20 + 20 * 0.4) / 40)
    assert student["agreement_with_teacher"]["value"] == pytest.approx((20 + 20 * 0.4) / 40)
    assert "confusion" not in student
    pair = found["paired"]["student_vs_base_few_shot"]
    assert (pair["test"], pair["wins"], pair["losses"]) == ("sign test", 20, 0)
    assert pair["difference"] == pytest.approx(0.3)
    assert found["headline"].startswith("The student keeps 70.0 % (")
    assert "of its teacher's token F1" in found["headline"]


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_without_gold_only_agreement_is_claimed(kind: Kind) -> None:
    none = [None] * 40

    def says(right: int) -> list[Answer]:
        texts = ["positive"] * right + ["negative"] * (40 - right)
        return wrote(none, texts) if kind == "generate" else arm(none, texts)

    arms = {"student": says(36), "base_few_shot": says(20), "teacher": says(40)}
    found = compare(arms, kind, LABELS, seed=7, resamples=1_000)
    assert found["metric"] == "agreement_with_teacher"
    assert list(found["paired"]) == ["student_vs_base_few_shot"]
    assert found["gap_closed"]["value"] is found["kept_share"]["value"] is None
    assert found["headline"].startswith("Without gold answers: the student's agreement with its teacher is 90.0 % (")
    assert "above its own few-shot self, on 40 held-out rows." in found["headline"]
    gold = (
        arm(["positive"] * 40, ["positive"] * 36 + ["negative"] * 4)
        if kind == "classify"
        else wrote(["a"] * 40, ["b"] * 40)
    )
    teacher = [msgspec.structs.replace(a, role="teacher") for a in gold]
    chosen = compare({"student": gold, "teacher": teacher}, kind, LABELS, seed=7, metric="agreement_with_teacher")
    assert chosen["headline"].startswith("The student's agreement with its teacher is 100.0 % ("), "by the recipe"
    del arms["teacher"]
    assert compare(arms, kind, LABELS, seed=7)["headline"].startswith("Nothing can be said: no held-out row has a gold")


def test_what_only_a_bug_can_pass_is_a_traceback() -> None:
    with pytest.raises(ValueError, match="unknown arms"):
        numbers({"pupil": right_on(2, 1)})
    with pytest.raises(ValueError, match="more than one answer"):
        numbers({"student": right_on(2, 1) * 2})


def test_two_thousand_rows_take_seconds() -> None:
    arms = quickstart(2_000)
    began = time.process_time()
    numbers(arms, resamples=10_000)
    assert time.process_time() - began < 4  # 0.2 s where it was written


def test_an_arm_that_failed_on_every_row_is_said_to_have_failed() -> None:
    gold = ["positive"] * 40
    right, none = arm(gold, ["positive"] * 40), arm(gold, [None] * 40, status="failed")
    of_teacher = compare({"student": right, "teacher": none}, "classify", LABELS, seed=7, resamples=200)["headline"]
    assert "where its teacher failed on every row" in of_teacher
    assert "gets nothing right" not in of_teacher
    of_student = compare({"student": none, "teacher": right}, "classify", LABELS, seed=7, resamples=200)["headline"]
    assert (
        of_student == "The student failed on every one of its 40 held-out rows, so nothing is known of what it can do."
    )
    base = {"base_zero_shot": none, "student": right, "teacher": right}
    of_base = compare(base, "classify", LABELS, seed=7, resamples=200)["headline"]
    assert "its own zero-shot self failed on every row" in of_base
    assert "above its own" not in of_base
