"""Gold beside the teacher: each has its share of a row's weight, whatever batch it falls into."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.records import Message, Sample
from llm_distill.trainers import TrainingJob
from llm_distill.trainers import loop as training_loop
from llm_distill.trainers.hard_labels import Weighed, WeightedText, with_gold
from llm_distill.trainers.packing import pack, units_of
from llm_distill.trainers.rows import Row, make_rows
from tests.finished import LORA, STUDENT, finish
from tests.models.conftest import byte_level_tokenizer
from tests.trainers.conftest import reviews, sft
from tests.trainers.test_packing import update
from tests.trainers.test_sft import curve, learnt

MakeJob = Callable[..., TrainingJob]
GOLD = ["positive", "a dull day, and awful", None, " negative ", ""]


def judged(count: int) -> list[Sample]:
    """Reviews with gold that agrees, differs, or is missing."""
    return [msgspec.structs.replace(s, gold=GOLD[i % len(GOLD)]) for i, s in enumerate(reviews(count))]


def weighed(gold: float) -> tuple[list[Row], Weighed]:
    found = with_gold(judged(8), gold)
    return make_rows(found.samples, byte_level_tokenizer(), {2}, 512), found


def test_rows_are_told_apart_by_what_gold_says() -> None:
    found = with_gold(judged(10), 0.3)
    assert found.counts == {"agree": 1, "differ": 5, "without": 4}
    assert len(found.samples) == 15
    assert [place for group in found.groups for place in group] == list(range(15))
    assert all(len({found.samples[place].row_id for place in group}) == 1 for group in found.groups)
    assert len(found.groups) == 10
    pairs = [i for i, weight in enumerate(found.weights) if weight == 0.3]
    assert all(found.weights[i - 1] == 0.7 and found.samples[i].row_id == found.samples[i - 1].row_id for i in pairs)
    assert {found.samples[i].completion for i in pairs} == {"positive", "a dull day, and awful", " negative "}
    assert sum(found.weights) == pytest.approx(10), "every row counts as one"


def by_hand(folder: Path, gold: float) -> tuple[float, dict[str, torch.Tensor]]:
    """Each text alone, its weight times the sum over its tokens, divided by the weights of all tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows, found = weighed(gold)
    mass = sum(share * row.trained_tokens for row, share in zip(rows, found.weights, strict=True))
    total = torch.zeros(())
    for row, share in zip(rows, found.weights, strict=True):
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        ce = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")
        total = total + share * ce / mass
    total.backward()
    return float(total.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("batch", "accumulation"), [(16, 1), (2, 8), (3, 5)])
@pytest.mark.parametrize("packed", [False, True])
def test_an_update_is_the_weighted_sum(
    student: Path, tmp_path: Path, batch: int, accumulation: int, packed: bool
) -> None:
    rows, found = weighed(0.3)
    objective, units = WeightedText.of(rows, found.weights), units_of(rows, found.groups)
    with training_loop.quiet():
        units = pack(units, 150) if packed else units
    loss, gradients = update(
        student, tmp_path, rows, batch, accumulation, objective=objective, units=units, packed=packed
    )
    expected_loss, expected = by_hand(student, 0.3)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("which", ["agree", "differ"])
def test_a_row_counts_alike_whatever_step_it_falls_into(student: Path, tmp_path: Path, which: str) -> None:
    """A step of rows on which both agree, and one of rows on which they differ: each is its own weighted mean."""
    rows, found = weighed(0.3)
    groups = [g for g in found.groups if (len(g) == 2) == (which == "differ")]
    places = [place for group in groups for place in group]
    units = units_of(rows, groups)
    loss, _ = update(
        student, tmp_path, rows, 2, len(units), objective=WeightedText.of(rows, found.weights), units=units
    )
    model = AutoModelForCausalLM.from_pretrained(student)
    total = mass = 0.0
    for place in places:
        ids = torch.tensor([rows[place].input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        ce = torch.nn.functional.cross_entropy(logits, torch.tensor(rows[place].labels[1:]), reduction="sum")
        total += found.weights[place] * float(ce)
        mass += found.weights[place] * rows[place].trained_tokens
    assert loss == pytest.approx(total / mass, abs=1e-5)


@settings(max_examples=40)
@given(st.floats(0.05, 0.95), st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), st.integers(2, 40))
def test_where_every_token_costs_the_same_every_step_does(gold: float, chosen: list[int], width: int) -> None:
    """Whatever rows a step holds, and whatever share of them is gold: by a head that finds all tokens equally likely."""
    rows, found = weighed(gold)
    objective = WeightedText.of(rows, found.weights)
    places = [place for group in chosen for place in found.groups[group]]
    more = objective.tensors(places)
    states, head = torch.zeros(len(more["weights"]), 1), torch.nn.Linear(1, width, bias=False)
    with torch.no_grad():
        loss, parts = objective.loss(states, head, torch.zeros(len(states), dtype=torch.long), more)
    assert float(loss) / float(objective.mass(more)) == pytest.approx(math.log(width), rel=1e-5)
    assert parts["ce"] / sum(rows[place].trained_tokens for place in places) == pytest.approx(math.log(width), rel=1e-5)


def test_the_student_ends_between_them_where_gold_says(make_job: MakeJob) -> None:
    """One question, a teacher and people who differ: the best student says each as often as it weighs."""
    question = (Message("user", "the film?"),)
    said: list[str] = []
    job = make_job([Sample(f"r{i}", question, "bad", "good") for i in range(4)], say=said.append)
    sft(job, gold=0.25, epochs=200, learning_rate=1e-2, lora_rank=None)
    assert said[0] == "train: gold: 0 agree, 4 differ, 0 without"
    assert json.loads((job.out / "training.json").read_text("utf-8"))["gold"] == {"agree": 0, "differ": 4, "without": 0}
    assert set(curve(job.out)[0]) >= {"loss", "ce"}
    with training_loop.quiet():
        model = weights.load_model(str(job.out), device="cpu")
    bad, good = (
        make_rows([Sample("r", question, said)], byte_level_tokenizer(), {2}, 99)[0] for said in ("bad", "good")
    )
    first = bad.prompt_tokens
    with torch.no_grad():
        shares = model(torch.tensor([bad.input_ids[:first]])).logits[0, -1].softmax(-1)
    assert float(shares[bad.input_ids[first]]) == pytest.approx(0.75, abs=0.02)
    assert float(shares[good.input_ids[first]]) == pytest.approx(0.25, abs=0.02)


def test_at_its_ends_it_is_fine_tuning_on_one_of_them(make_job: MakeJob) -> None:
    samples = judged(20)
    plain = [msgspec.structs.replace(s, gold=None) for s in samples]
    replaced = [
        msgspec.structs.replace(s, completion=s.gold) if s.gold and s.gold.strip() != s.completion else s
        for s in samples
    ]
    for gold, wanted in ((0, plain), (1, replaced)):
        sft(make_job(samples, f"gold{gold}"), gold=float(gold))
        sft(make_job(wanted, f"plain{gold}"))
        assert learnt(make_job(1, f"gold{gold}").out) == learnt(make_job(1, f"plain{gold}").out)
    assert learnt(make_job(1, "gold0").out) != learnt(make_job(1, "gold1").out)


def test_no_gold_at_all_is_the_users_to_repair(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"train.sft.gold: found 0.5, and none of 20 samples has gold.*`gold: 0`"):
        sft(make_job(20), gold=0.5)


def test_gold_repairs_what_a_teacher_gets_wrong(tmp_path: Path) -> None:
    """Through a recipe: a teacher who knows one word only, and rows that say better."""
    models: dict[str, Any] = {"teacher": {"scripted": {"default": "negative"}}, "student": {"transformers": STUDENT}}
    run = finish(tmp_path, models=models, filter=["empty"], train={"sft": LORA | {"gold": 1.0}})
    story = json.loads((tmp_path / run / "student/training.json").read_text("utf-8"))
    assert story["gold"]["differ"] > 10 < story["gold"]["agree"]
    arms = json.loads((tmp_path / run / "eval/comparison.json").read_text("utf-8"))["arms"]
    assert arms["student"]["accuracy"]["value"] > 0.9 > arms["teacher"]["accuracy"]["value"]
