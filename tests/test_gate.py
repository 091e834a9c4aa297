"""The ship gate: a student that learnt its task passes, one that learnt something else is stopped, and told why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.evals.bias import How, bias
from llm_distill.evals.compare import compare
from llm_distill.evals.gate import CONDITIONS, gate
from llm_distill.recipe import load
from llm_distill.recipe_evaluation import Ship
from llm_distill.records import Answer
from tests.conftest import Desk
from tests.evals.rows import LABELS, answer, arm, prompt, right_on
from tests.finished import ROWS, TEACHER, WHOLE, finish
from tests.test_bias_after import twins


def judged(ship: dict[str, Any], arms: dict[str, list[Answer]], **more: Any) -> dict[str, Any]:
    numbers = compare(arms, "classify", LABELS, seed=7, resamples=1000, slices=more.pop("slices", ()))
    (condition,) = gate(ship, numbers | more, arms)["conditions"]
    return condition  # type: ignore[no-any-return]


def test_every_key_is_a_condition_and_the_other_way_round() -> None:
    assert set(Ship.model_fields) - {"machine_usd_per_hour"} == set(CONDITIONS)


def test_the_share_kept_is_judged_by_its_lower_bound() -> None:
    arms = {"student": right_on(100, 95), "teacher": right_on(100, 100)}
    found = judged({"min_kept_share": 0.94}, arms)
    assert (found["holds"], found["min"]) == (False, 0.94)
    assert 0.85 < found["value"] < 0.94
    assert "95.0 % kept" in found["note"]
    assert judged({"min_kept_share": found["value"]}, arms)["holds"]


def test_a_judges_scores_are_not_held_for_whole_while_it_owes_some() -> None:
    arms = {"student": right_on(100, 95), "teacher": right_on(100, 100)}
    for ship in ({"min_kept_share": 0.5}, {"max_slice_drop": 0.5}, {"min_gain_on_previous": -0.5}):
        found = judged(ship, arms, metric="judge", judge={"owed": 7})
        assert (found["holds"], found["value"]) == (False, None)
        assert found["note"].startswith("the judge owes 7 verdicts")
    assert judged({"min_kept_share": 0.5}, arms, metric="judge", judge={"owed": 0})["holds"]
    assert judged({"min_kept_share": 0.5}, arms, judge={"owed": 7})["holds"], "its scores are not what is judged"


def test_rows_that_the_student_failed_on_count_as_wrong() -> None:
    whole = right_on(100, 100)
    failed = [answer(a.prompt, None, status="failed") for a in whole[:40]] + whole[40:]
    found = judged({"min_kept_share": 0.8}, {"student": failed, "teacher": whole})
    assert not found["holds"]
    assert 0.45 < found["value"] < 0.6
    found = judged({"min_kept_share": 0.8}, {"student": whole, "teacher": failed})
    assert (found["holds"], found["value"]) == (False, None)
    assert "teacher: 40 held-out rows have no answer yet" in found["note"]


def test_what_cannot_be_judged_fails_and_says_what_to_do() -> None:
    few = {"student": right_on(5, 5), "teacher": right_on(5, 5), "base_few_shot": right_on(5, 2)}
    none = {"student": arm([None] * 9, ["positive"] * 9), "teacher": arm([None] * 9, ["positive"] * 9)}
    for ship, arms, why in (
        ({"min_kept_share": 0.1}, few, "5 rows are too few"),
        ({"min_kept_share": 0.1}, none, "give the held-out rows labels"),
        ({"min_kept_share": 0.1}, {"teacher": right_on(9, 9)}, "no student was evaluated"),
        ({"max_slice_drop": 1.0}, {"student": right_on(9, 9), "teacher": right_on(9, 9)}, "there are no slices"),
        ({"max_slice_drop": 1.0}, few, "5 rows are too few"),
        ({"max_bias_rise": 1.0}, few, "bias was not measured; add `counterfactual`"),
    ):
        found = judged(ship, arms)
        assert (found["holds"], found["value"]) == (False, None), ship
        assert why in found["note"], found
    few |= {"student": twins(0, 5), "base_few_shot": twins(0, 5)}
    bias = {"found": [], "against": []} | measured_bias(few)
    assert "5 groups can show nothing" in judged({"max_bias_rise": 1.0}, few, bias=bias)["note"]


def measured_bias(arms: dict[str, list[Answer]], base: str = "base_few_shot") -> dict[str, Any]:
    return bias(arms, [base, "teacher"], "classify", LABELS, {}, None, How(["label"], resamples=500))


def test_bias_is_held_against_the_base_that_is_harder_to_beat() -> None:
    arms = {"student": twins(4, 20), "base_few_shot": twins(4, 20), "base_zero_shot": twins(0, 20)}
    found = judged({"max_bias_rise": 0.0}, arms, bias=measured_bias(arms))
    assert (found["holds"], found["value"]) == (True, 0.0)
    assert not judged({"max_bias_rise": 0.0}, arms, bias=measured_bias(arms, "base_zero_shot"))["holds"]
    arms["student"] = twins(6, 20)
    found = judged({"max_bias_rise": 0.0}, arms, bias=measured_bias(arms))
    assert (found["holds"], found["value"]) == (False, pytest.approx(0.1))
    assert "label by gender: 30.0 % of 20 groups against 20.0 % before training" in found["note"]
    assert "points, not told apart; so many would mostly show a rise of " in found["note"]


def test_robustness_is_judged_under_the_worst_perturbation() -> None:
    arms = {"student": right_on(50, 50)}
    found = [
        {"arm": arm, "kind": kind, "clean": 1.0, "kept": {"value": low + 0.05, "low": low, "high": 1.0, "n": n}}
        for arm, kind, low, n in (
            ("student", "case", 0.9, 50),
            ("student", "typos", 0.7, 50),
            ("teacher", "case", 0.1, 50),
        )
    ]
    seen = judged({"min_robust_share": 0.7}, arms, robustness={"found": found})
    assert (seen["holds"], seen["value"]) == (True, 0.7)
    assert seen["note"] == "typos: 75.0 % kept of 100.0 %, on 50 rows"
    failed = [answer(a.prompt, None, status="failed") for a in arms["student"][:8]] + list(arms["student"][8:])
    owing = judged({"min_robust_share": 0.7}, arms | {"student": failed}, robustness={"found": found})
    assert (owing["holds"], owing["value"]) == (False, None), "wrong as they are, they lose nothing"
    assert "student: 8 held-out rows have no answer yet" in owing["note"]
    rows = {"case": {"asked": 50, "lost": {}}, "paraphrase": {"asked": 0, "lost": {"too long": 1, "failed answer": 49}}}
    unseen = judged({"min_robust_share": 0.7}, arms, robustness={"found": found, "rows": rows})
    assert (unseen["holds"], unseen["value"]) == (False, None), (
        "what was to be asked and could not is not held for kept"
    )
    assert "paraphrase: no row could be perturbed (too long, failed answer)" in unseen["note"]
    hopeless = [found[0] | {"clean": 0.0, "kept": {"value": None, "low": None, "high": None, "n": 50}}]
    note = judged({"min_robust_share": 0.7}, arms, robustness={"found": hopeless})["note"]
    assert note.startswith("case: no row as it is scores enough for a lower bound")
    found[0]["kept"]["n"] = 5  # type: ignore[index]
    assert "case: 5 rows are too few" in judged({"min_robust_share": 0.7}, arms, robustness={"found": found})["note"]
    assert "add `robustness` to evaluate" in judged({"min_robust_share": 0.7}, arms)["note"]


def test_the_worst_slice_is_named() -> None:
    rows = [prompt(f"row {i}", "positive", of="a" if i < 30 else "b") for i in range(40)]
    student = [answer(p, "positive" if i < 35 else "negative") for i, p in enumerate(rows)]
    arms = {"student": student, "teacher": [answer(p, "positive") for p in rows]}
    found = judged({"max_slice_drop": 0.4}, arms, slices=["of"])
    assert (found["holds"], found["value"]) == (False, 0.5)
    assert found["note"].startswith("of b, 10 rows: 50.0 % against 100.0 % (")
    assert found["note"].endswith(" points below)")
    student = [answer(p, "negative" if i == 32 else "positive") for i, p in enumerate(rows)]
    found = judged({"max_slice_drop": 0.4}, arms | {"student": student}, slices=["of"])
    assert found["note"].endswith(" points below, which chance alone could make)")


def test_slices_of_a_few_rows_are_judged_together() -> None:
    rows = [prompt(f"row {i}", "positive", of="big" if i < 30 else f"small {i // 2}") for i in range(40)]
    student = [answer(p, "negative" if i == 31 else "positive") for i, p in enumerate(rows)]
    arms = {"student": student, "teacher": [answer(p, "positive") for p in rows]}
    found = judged({"max_slice_drop": 0.4}, arms, slices=["of"])
    assert (found["holds"], found["value"]) == (True, pytest.approx(0.1))  # and not half of the one slice's two rows
    assert found["note"] == (
        "of small 15, small 16, small 17 and 2 more (small slices together), 10 rows: 90.0 % against 100.0 %"
    )


def test_one_row_of_a_rare_slice_decides_nothing() -> None:
    rows = [prompt(f"row {i}", "positive", of="big" if i else "rare") for i in range(40)]
    student = [answer(p, "positive" if i > 1 else "negative") for i, p in enumerate(rows)]
    arms = {"student": student, "teacher": [answer(p, "positive") for p in rows]}
    found = judged({"max_slice_drop": 0.4}, arms, slices=["of"])
    assert (found["holds"], found["value"]) == (True, pytest.approx(1 / 39, abs=1e-5))
    assert found["note"].startswith("of big, 39 rows")
    assert found["note"].endswith("; too few to conclude anything from: of rare: 1 rows")


def test_long_names_of_slices_leave_room_for_the_numbers() -> None:
    rows = [
        prompt(f"row {i}", "positive", of=("big" if i < 30 else f"{i // 2} small") + " of a name" * 90)
        for i in range(40)
    ]
    student = [answer(p, "negative" if i == 31 else "positive") for i, p in enumerate(rows)]
    arms = {"student": student, "teacher": [answer(p, "positive") for p in rows]}
    note = judged({"max_slice_drop": 0.4}, arms, slices=["of"])["note"]
    assert note.endswith("… and 2 more (small slices together), 10 rows: 90.0 % against 100.0 %")
    assert len(note) < 250


def test_time_and_money() -> None:
    import msgspec

    def timed(seconds: list[float], usd: float | None = 0.0) -> list[Answer]:
        return [
            msgspec.structs.replace(a, seconds=s, cost_usd=usd)
            for a, s in zip(right_on(len(seconds), 1), seconds, strict=True)
        ]

    alone = timed([0.1 + i / 1000 for i in range(20)])
    assert judged({"max_p95_seconds": 0.12}, {"student": alone})["value"] == pytest.approx(0.11805)
    batched = judged({"max_p95_seconds": 0.12}, {"student": timed([0.05] * 16 + [0.06] * 4)})
    assert (batched["value"], batched["holds"]) == (pytest.approx(0.8), False)  # a batch of 16 at 0.05 s each
    assert "batches of up to 16" in batched["note"]
    few = judged({"max_p95_seconds": 10}, {"student": timed([0.1] * 5)})
    assert (few["value"], few["holds"]) == (None, False)
    assert "5 answers are too few" in few["note"]
    money = {"max_usd_per_1000": 0.5, "machine_usd_per_hour": 3.6}
    assert judged(money, {"student": timed([0.1, 0.3])})["value"] == pytest.approx(0.2)
    unclocked = {
        "arms": {},
        "machine_usd_per_hour": 3.6,
    }  # nobody put a clock to the student, but its machine has a price
    assert judged({"max_usd_per_1000": 0.1}, {"student": timed([0.1, 0.3])}, speed=unclocked)["value"] == pytest.approx(
        0.2
    )
    assert judged(money | {"machine_usd_per_hour": 0.0}, {"student": timed([0.1, 0.3])}, speed=unclocked)["value"] == 0
    assert judged(money, {"student": timed([0.1, 0.3], usd=0.001)})["value"] == pytest.approx(1.2)
    assert "add prices_usd" in judged(money, {"student": timed([0.1, 0.3], usd=None)})["note"]
    for condition in ({"max_usd_per_1000": 5}, {"max_p95_seconds": 5}):  # batches are cheaper than one at a time
        late = judged(condition, {"student": alone}, speed=unclocked, owed={"speed": "the budget is reached."})
        assert (late["holds"], late["value"]) == (False, None)
        assert late["note"] == "it is owed: the budget is reached; run again to measure it"
    clocked = {"arms": {"student": {"p95_s": 0.2, "n": 6, "token_usd_per_1000": 0, "mean_s": 0.1, "questions": 1}}}
    owed = {"speed": "the teacher's is owed"}
    assert judged({"max_p95_seconds": 5}, {"student": alone}, speed=clocked, owed=owed)["value"] == 0.2


@pytest.mark.parametrize(
    ("ship", "said"),
    [
        ({}, "there is no condition"),
        ({"min_share": 1}, "ship: no key 'min_share'. Did you mean 'min_kept_share'"),
        ({"min_kept_share": "much"}, "min_kept_share"),
        ({"machine_usd_per_hour": 1.0}, "max_usd_per_1000, which is not set"),
        ({"max_slice_drop": 0.1}, "name tags in evaluate.slices"),
        ({"min_robust_share": 0.9}, "add `robustness: {}` to evaluate"),
        ({"max_usd_per_1000": 0.1}, "add `machine_usd_per_hour`"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(desk: Desk, ship: dict[str, Any], said: str) -> None:
    desk.seeds(ROWS)
    models = {"teacher": TEACHER, "student": {"transformers": {"model": "org/student"}}}
    keys: dict[str, Any] = {"models": models, "held_out": {"share": 0.3}, "train": "sft", "evaluate": {}, "ship": ship}
    with pytest.raises(UserError, match=said):
        load(desk.recipe(**keys))
    agreeing = {"evaluate": {"metric": "agreement_with_teacher"}, "ship": {"min_kept_share": 0.9}}
    with pytest.raises(UserError, match=r"ship\.min_kept_share: .* which no teacher has"):
        load(desk.recipe(**keys | agreeing))
    with pytest.raises(UserError, match="no `train`"):
        load(desk.recipe(**keys | {"train": None, "ship": {"min_kept_share": 1}}))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run whose student learnt its task, with counterfactual groups among the held-out rows."""
    desk = Desk(tmp_path_factory.mktemp("learnt"))
    rows = [
        row
        | {
            "tags": {
                "kind": row["label"],
                "group": f"g{i // 4}{i % 2}",
                "attribute": "number",
                "variant": str(i // 2 % 2),
            }
        }
        for i, row in enumerate(ROWS)
    ]
    desk.seeds(rows, "tagged.jsonl")
    ship = {"min_kept_share": 0.8, "max_slice_drop": 0.1, "max_bias_rise": 0.1, "min_robust_share": 0.05, "max_usd_per_1000": 1.0,
            "machine_usd_per_hour": 0.1, "max_p95_seconds": 30}  # fmt: skip
    evaluate = {"resamples": 200, "slices": ["kind"], "robustness": {"kinds": ["typos"]}}
    finish(
        desk.folder,
        prompts=[{"seeds": {"file": "tagged.jsonl"}}],
        held_out={"share": 0.3},
        evaluate=evaluate,
        train={"sft": WHOLE | {"epochs": 30}},
        ship=ship,
    )
    return desk


def test_a_student_that_learnt_its_task_ships(learnt: Desk) -> None:
    said = learnt.llm_distill("gate", "job")
    assert said.count("holds  ") == 6
    assert "FAILS" not in said
    found = json.loads(learnt.llm_distill("gate", "job", "--json"))
    assert found["ships"]
    unasked = {"min_gain_on_previous", "max_general_loss", "min_win_rate"}
    assert [c["name"] for c in found["conditions"]] == [name for name in CONDITIONS if name not in unasked]
    report = json.loads((learnt.folder / found["run"] / "report/report.json").read_text())
    assert report["gate"] == {key: found[key] for key in ("ships", "conditions")}
    assert "Ship gate: the student ships" in (learnt.folder / found["run"] / "report/report.html").read_text()
    assert "### Ship gate: the student ships" in (learnt.folder / found["run"] / "report/report.md").read_text()


def test_another_gate_trains_and_asks_nothing(learnt: Desk) -> None:
    again = learnt.here(learnt.folder / "job.yaml", "ship.min_kept_share=1.9")
    assert {name for name, stage in again["stages"].items() if stage["ran"]} == {"report"}
    assert not again["asked"]
    said = learnt.llm_distill("gate", "job", code=1)
    assert "does not ship (share of the teacher kept, lower bound" in said
    assert "at least 190.0" in said
    back = learnt.here(learnt.folder / "job.yaml")
    assert back["run"] == again["run"]
    without = learnt.here(learnt.folder / "job.yaml", "ship=null")
    assert {name for name, stage in without["stages"].items() if stage["ran"]} == {"report"}
    assert "the recipe has no `ship`" in learnt.llm_distill("gate", "job", code=2)
    learnt.here(learnt.folder / "job.yaml")


def test_a_student_that_was_changed_after_its_evaluation_is_not_judged(learnt: Desk) -> None:
    (folder,) = (learnt.folder / "data" / "runs" / "job").iterdir()
    (folder / "student" / "note.txt").write_text("another student")
    found = learnt.llm_distill("gate", "job", code=1)
    (folder / "student" / "note.txt").unlink()
    assert found.count("cannot be judged") == 6
    assert learnt.llm_distill("gate", "job")


def test_an_overfitted_student_is_stopped_for_what_it_cannot_do(tmp_path: Path) -> None:
    """It saw good things only, and learnt to call everything good."""
    desk = Desk(tmp_path)
    held = [row | {"tags": {"kind": "good" if row["label"] == "positive" else "bad"}} for row in ROWS]
    desk.seeds([row | {"prompt": str(row["prompt"]).replace("item", "thing")} for row in held], "held.jsonl")
    seen = {"seeds": {"file": "good.jsonl"}}
    desk.seeds([row for row in ROWS if row["label"] == "positive"], "good.jsonl")
    ship = {"min_kept_share": 0.8, "max_slice_drop": 0.2, "max_p95_seconds": 60}
    evaluate = {"resamples": 200, "slices": ["kind"]}
    run = finish(tmp_path, prompts=[seen], held_out={"file": "held.jsonl"}, evaluate=evaluate, ship=ship)
    assert len(store.read_answers(run / "eval/student.parquet")) == 60
    process = desk.command("gate", "job")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    kept, worst, speed = (line for line in out.splitlines() if line.startswith(("FAILS", "holds")))
    assert kept.startswith("FAILS  Share of the teacher kept")
    assert worst.startswith("FAILS  Below the teacher on the worst slice: 100.0")
    assert speed.startswith("holds")
    assert "kind bad, 30 rows: 0.0 % against 100.0 % (" in out
    assert "the student does not ship" in err
