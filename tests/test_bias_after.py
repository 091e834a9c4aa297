"""Bias after training: how uneven student, base and teacher are, and whether training amplified, kept or reduced it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.bias import How, bias, verdict
from llm_distill.evals.flips import flip_rates, flipped
from llm_distill.evals.uneven import Uneven, rates_apart, shares_apart
from llm_distill.generators.lexicon_file import SHIPPED, read
from llm_distill.recipe import load
from llm_distill.records import Answer, Message, make_prompt
from tests.conftest import Desk
from tests.evals.rows import LABELS, answer, prompt
from tests.finished import ROWS, TEACHER, WHOLE, finish
from tests.report.test_brief import check


def twins(flips: int, groups: int = 40) -> list[Answer]:
    """Pairs that differ in a variant, all of them positive; so many of the women among them are called negative."""
    rows = []
    for i in range(groups):
        for variant in ("female", "male"):
            row = prompt(f"{variant} {i}", "positive", group=f"g{i}", attribute="gender", variant=variant)
            rows.append(answer(row, "negative" if variant == "female" and i < flips else "positive"))
    return rows


def measured(arms: dict[str, list[Answer]], **how: Any) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    scores = {
        arm: {a.prompt.row_id: float(a.prediction == a.prompt.label) for a in of} for arm, of in arms.items()
    }  # fmt: skip
    settings = How(**{"of": ["label"], "seed": 7, "resamples": 1000, **how})
    found = bias(arms, ["base_few_shot", "teacher"], "classify", LABELS, scores, "accuracy", settings)
    return {(one["measure"], one["of"], one["by"], one["value"]): one for one in found["found"]}


def test_what_rose_is_amplified_and_what_fell_reduced() -> None:
    found = measured({"base_few_shot": twins(2), "student": twins(20), "teacher": twins(36)})
    whole = found["flips", "label", "gender", "*"]
    assert {arm: of["value"] for arm, of in whole["arms"].items()} == {
        "student": 0.5, "base_few_shot": 0.05, "teacher": 0.9,
    }  # fmt: skip
    rise = whole["against"]["base_few_shot"]
    assert (rise["difference"], rise["n"], rise["verdict"]) == (0.45, 40, "amplified")
    assert 0.25 < rise["low"] < 0.45 < rise["high"] < 0.65
    assert rise["p"] == pytest.approx(2 / 2**18, rel=1e-4)
    assert whole["against"]["teacher"]["verdict"] == "reduced"
    gap = found["gap", "recall of positive", "gender", "*"]
    assert {arm: of["value"] for arm, of in gap["arms"].items()} == whole_values(whole)
    assert gap["against"]["base_few_shot"]["verdict"] == "amplified"
    assert gap["against"]["base_few_shot"]["difference"] == pytest.approx(0.45, abs=0.02)
    assert gap["against"]["teacher"]["verdict"] == "reduced"
    assert found["gap", "accuracy", "gender", "female"]["against"]["base_few_shot"]["verdict"] == "amplified"
    assert ("gap", "recall of negative", "gender", "*") not in found  # no row has it


def whole_values(one: dict[str, Any]) -> dict[str, float]:
    return {arm: of["value"] for arm, of in one["arms"].items()}


def test_nothing_is_called_kept_on_few_groups_or_alike_without_evidence() -> None:
    alike = measured({"base_few_shot": twins(0, 8), "student": twins(0, 8)})
    for one in alike.values():
        assert one["against"]["base_few_shot"]["verdict"] == "not told apart"
        assert one["against"]["base_few_shot"]["difference"] == pytest.approx(0, abs=0.01)
    seen = alike["flips", "label", "gender", "*"]["against"]["base_few_shot"]["smallest_visible"]
    assert seen > 0.5  # eight groups can show next to nothing, and say so
    many = measured({"base_few_shot": twins(5, 400), "student": twins(5, 400)})
    assert {one["against"]["base_few_shot"]["verdict"] for one in many.values()} == {"kept"}
    strict = measured({"base_few_shot": twins(5, 400), "student": twins(5, 400)}, margin=0.001)
    assert {one["against"]["base_few_shot"]["verdict"] for one in strict.values()} == {"not told apart"}


def test_groups_may_be_any_tag_and_small_ones_are_named() -> None:
    rows = [prompt(f"row {i}", "positive", dialect="a" if i < 100 else "b" if i < 200 else "c") for i in range(203)]
    student = [answer(p, "negative" if p.tags["dialect"] == "b" and i % 2 else "positive") for i, p in enumerate(rows)]
    base = [answer(p, "positive") for p in rows]
    found = measured({"student": student, "base_few_shot": base}, by=["dialect"])
    whole = found["gap", "accuracy", "dialect", "*"]
    assert whole["against"]["base_few_shot"]["verdict"] == "amplified"
    assert whole["arms"]["student"]["value"] == 0.5
    assert ("gap", "accuracy", "dialect", "c") not in found  # three rows are no group
    scores = {arm: {a.prompt.row_id: 1.0 for a in of} for arm, of in (("student", student), ("base_few_shot", base))}
    how = How(["label"], ["dialect"], resamples=200)
    only_c = {arm: of[198:] for arm, of in (("student", student), ("base_few_shot", base))}
    assert (
        bias(only_c, ["base_few_shot"], "classify", LABELS, scores, "accuracy", how)["few"]["accuracy by dialect"] == 5
    )


@given(low=st.floats(-1, 1), width=st.floats(0, 1), margin=st.floats(0.001, 0.5))
def test_the_verdict_is_one_of_four_and_mirrors(low: float, width: float, margin: float) -> None:
    said = verdict(low, low + width, margin)
    turned = verdict(-low - width, -low, margin)
    other = {"amplified": "reduced", "reduced": "amplified"}
    assert turned == other.get(said, said)
    assert (said == "amplified") == (low > 0)
    if said == "kept":
        assert max(abs(low), abs(low + width)) < margin
    assert verdict(None, None, margin) == "not told apart"


def test_without_any_bias_few_are_said_to_be_amplified() -> None:
    """A student that is right less often than its teacher is no less fair for it, though its gaps are wider by chance."""
    rng = np.random.default_rng(7)
    values = [str(i % 4) for i in range(200)]
    called = 0
    for seed in range(60):
        hits = [(rng.random(200) < share).astype(float).tolist() for share in (0.8, 0.95)]
        table = Uneven(["0", "1", "2", "3"], seed, 400)
        called += rates_apart(table, [str(i) for i in range(200)], values, hits)["*"]["low"] > 0
    assert called <= 8  # 5 of 100 over 200 draws; nine of 60 would be three standard deviations off


def test_one_measure_of_many_that_leaves_out_zero_by_chance_is_not_called_amplified() -> None:
    """Forty tags of no account: some interval leaves out zero, and with Holm's correction none is amplified."""
    rng = np.random.default_rng(3)
    prompts = [make_prompt((Message("user", f"row {i}"),), {f"tag{t}": str(rng.integers(2)) for t in range(40)}, "positive")
               for i in range(150)]  # fmt: skip
    arms = {
        who: [Answer(p, "", "ok", prediction=LABELS[int(rng.random() < 0.8)]) for p in prompts]
        for who in ("student", "teacher")
    }
    scores = {who: {a.prompt.row_id: float(a.prediction == "positive") for a in of} for who, of in arms.items()}
    how = How([], by=[f"tag{t}" for t in range(40)], seed=7, resamples=500)
    found = bias(arms, ["teacher"], "classify", LABELS, scores, "accuracy", how)["found"]
    pairs = [one["against"]["teacher"] for one in found]
    assert any(pair["low"] > 0 or pair["high"] < 0 for pair in pairs)
    assert not any(pair["verdict"] in ("amplified", "reduced") for pair in pairs)
    assert all(pair["p_holm"] >= pair["p"] for pair in pairs)


def test_rows_of_a_group_are_one_piece_of_evidence() -> None:
    values, hits = ["a", "b"] * 40, [[float(i % 3 > 0) for i in range(80)], [1.0] * 80]
    table = Uneven(["a", "b"], 7, 2000)
    apart = rates_apart(table, [str(i) for i in range(80)], values, hits)["*"]
    grouped = rates_apart(table, [str(i // 20) for i in range(80)], values, hits)["*"]
    assert apart["ours"] == grouped["ours"]
    assert apart["n"] == grouped["n"] == 80
    assert grouped["low"] != apart["low"]


def test_who_is_named_is_held_against_an_even_share() -> None:
    even, men = {"female": 1, "male": 1}, {"female": 0, "male": 1}
    table = Uneven(["female", "male"], 7, 1000)
    found = shares_apart(table, [str(i) for i in range(60)], [[men] * 60, [even] * 60])
    assert (found["*"]["ours"], found["*"]["theirs"]) == (1.0, 0.0)
    assert found["male"]["ours"] == 0.5
    assert found["*"]["low"] > 0.5
    rows = [make_prompt((Message("user", f"A story, {i}."),), {}, reference="x") for i in range(40)]
    his = [Answer(p, "The boy took his father's car.", "ok") for p in rows]
    hers = [Answer(p, "The boy took his sister's car, and she her mother's.", "ok") for p in rows]
    how = How(["sentiment"], attributes={"gender": read(SHIPPED).attributes["gender"]}, resamples=400)
    (whole, *_) = bias({"student": his, "teacher": hers}, ["teacher"], "generate", [], {}, None, how)["found"]
    assert (whole["measure"], whole["by"], whole["value"]) == ("mentions", "gender", "*")
    assert whole["against"]["teacher"]["verdict"] == "amplified"
    silent = [Answer(p, "Nobody came.", "ok") for p in rows]
    assert bias({"student": his, "teacher": silent}, ["teacher"], "generate", [], {}, None, how)["few"] == {
        "mentions of gender": 0
    }


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.sampled_from([*LABELS, None])), max_size=30))
def test_flip_rates_count_what_flipped_says(rows: list[tuple[int, str, str | None]]) -> None:
    answers = [
        answer(prompt(f"{i}", group=f"g{group}", attribute="x", variant=variant), said)
        for i, (group, variant, said) in enumerate(rows)
    ]
    each = flipped(answers)
    for rate in flip_rates(answers):
        units = each[rate.attribute, rate.variant]
        assert (len(units), sum(units.values())) == (rate.groups, rate.flips)


def tagged(i: int, row: dict[str, Any]) -> dict[str, Any]:
    group = {"group": f"g{i // 4}{i % 2}", "attribute": "number", "variant": "first" if i // 2 % 2 else "second"}
    return row | {"tags": {**group, "kind": str(row["label"])}}


def test_a_run_with_groups_says_whether_its_student_is_less_even(desk: Desk) -> None:
    desk.seeds([tagged(i, row) for i, row in enumerate(ROWS)], "tagged.jsonl")
    run = finish(
        desk.folder,
        prompts=[{"seeds": {"file": "tagged.jsonl"}}],
        held_out={"share": 0.5},
        evaluate={
            "resamples": 200,
            "bias": {"by": ["kind"], "of": ["label", "refusal"], "margin": 0.2},
            "robustness": {"kinds": ["injection"], "arms": ["base", "student", "teacher"]},
        },
        train={"sft": WHOLE | {"epochs": 30}},
    )
    report = json.loads((run / "report/report.json").read_text())
    assert check(report) == []
    assert [one["arm"] for one in report["robustness"]["found"]] == ["base_zero_shot", "student", "teacher"]
    found = report["bias"]
    assert found["against"] == ["base_zero_shot", "teacher"]
    assert {(one["measure"], one["of"]) for one in found["found"]} >= {("flips", "label"), ("flips", "refusal")}
    assert {one["by"] for one in found["found"]} >= {"number"}
    verdicts = {of["verdict"] for one in found["found"] for of in one["against"].values()}
    assert verdicts <= {"amplified", "kept", "reduced", "not told apart"}
    page, brief = ((run / f"report/report.{kind}").read_text() for kind in ("html", "md"))
    assert "Bias after training" in page
    assert "ias after training" in brief
    again = desk.here(desk.folder / "job.yaml", first="evaluate")
    assert again["asked"] == 0


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        ({"of": ["label_probs"]}, {}, "add `top_logprobs: 20` to answers"),
        ({"of": ["label"]}, {"task": "generate"}, "needs labels"),
        ({"of": ["tone"]}, {}, r"evaluate\.bias\.of"),
        ({"margin": 0}, {}, r"evaluate\.bias\.margin"),
        ({"groups": "none.yaml"}, {}, "no such file"),
        ({"attributes": ["age of the moon"]}, {}, "no attribute"),
        ({}, {"train": None}, "add `train`"),
    ],
)
def test_what_cannot_be_measured_is_refused(desk: Desk, how: dict[str, Any], more: dict[str, Any], said: str) -> None:
    desk.seeds(ROWS)
    models = {"teacher": TEACHER, "student": {"transformers": {"model": "org/student"}}}
    keys: dict[str, Any] = {"models": models, "held_out": {"share": 0.3}, "train": "sft", "evaluate": {"bias": how}}
    with pytest.raises(UserError, match=said):
        load(desk.recipe(**keys | more))


def test_a_tag_that_no_row_has_is_refused_before_anybody_is_asked(desk: Desk) -> None:
    desk.seeds([tagged(i, row) for i, row in enumerate(ROWS)])
    models = {"teacher": TEACHER, "student": {"transformers": {"model": "org/student"}}}
    recipe = desk.recipe(
        models=models, held_out={"share": 0.3}, train="sft", evaluate={"bias": {"by": ["dialekt"]}}
    )  # fmt: skip
    assert "evaluate.bias.by: no held-out row has the tag 'dialekt'" in desk.llm_distill("check", recipe, code=2)
