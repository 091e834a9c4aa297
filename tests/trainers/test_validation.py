"""Training that looks at rows set aside, ends where they say so, and can be gone on with from anywhere."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import torch

from llm_distill.errors import Interrupted, UserError
from llm_distill.models import weights
from llm_distill.records import Answer, Message, Prompt, Sample
from llm_distill.report import lint_section
from llm_distill.trainers import TrainingJob, checkpoints
from llm_distill.trainers.course import Desk
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.packing import Unit, units_of
from llm_distill.trainers.rows import Row
from llm_distill.trainers.rungs import auto
from llm_distill.trainers.validation import Validation, set_aside
from tests.conftest import ROOT
from tests.conftest import Desk as Folder
from tests.trainers.conftest import sft
from tests.trainers.test_sft import curve, learnt

MakeJob = Callable[..., TrainingJob]
#: Words without anything in common, so that no rows stay together.
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
WATCHED: dict[str, Any] = {"validation_share": 0.25, "epochs": 6, "batch_size": 4, "learning_rate": 1e-2}


def apart(count: int) -> list[Sample]:
    """Rows that are not alike."""
    made = []
    for i in range(count):
        text = " ".join(WORDS[(i * 7 + j * 31) % len(WORDS)] for j in range(4 + i % 3))
        made.append(Sample(f"r{i}", (Message("user", text),), "positive" if i % 2 else "negative, a bad day"))
    return made


def tagged(sample: Sample, **tags: str) -> Sample:
    answer = Answer(Prompt(sample.row_id, sample.row_id, sample.messages, tags), "x", "ok")
    return msgspec.structs.replace(sample, answer=answer)


def story(out: Path) -> dict[str, Any]:
    return json.loads((out / "training.json").read_text("utf-8"))  # type: ignore[no-any-return]


def units(samples: list[Sample], groups: Sequence[tuple[int, ...]] = ()) -> list[Unit]:
    return units_of([Row(s.row_id, [1, 2, 3], 1) for s in samples], groups)


def test_what_is_set_aside_depends_on_content_alone() -> None:
    samples = apart(40)
    chosen = {samples[i].row_id for i in set_aside(samples, units(samples), 0.2)}
    assert len(chosen) == 8
    turned = samples[::-1]
    assert {turned[i].row_id for i in set_aside(turned, units(turned), 0.2)} == chosen
    renamed = [msgspec.structs.replace(s, row_id=f"other{i}") for i, s in enumerate(samples)]
    assert {samples[i].row_id for i in set_aside(renamed, units(renamed), 0.2)} == chosen
    assert set_aside(samples, units(samples), 0.0) == frozenset()


def test_rows_that_belong_together_stay_together() -> None:
    """Near duplicates, equal rows, counterfactual groups, what was made from one row, and the texts of a unit: never on both
    sides.
    """
    base = apart(36)
    near = [
        Sample(f"n{i}", (Message("user", f"{s.messages[0].content} {' '.join(WORDS[:12])} {i % 2}"),), "x")
        for i, s in enumerate(s for s in base[:6] for _ in range(2))
    ]
    equal = [Sample(f"e{s.row_id}", s.messages, "another") for s in base[6:12]]
    grouped = [tagged(s, group=f"g{i // 2}") for i, s in enumerate(base[12:24])]
    made = [tagged(s, parent=base[24 + i % 2].row_id) for i, s in enumerate(base[26:36])]
    samples = [*near, *base[6:12], *equal, *grouped, *base[24:26], *made]
    with_gold = [*samples, *grouped[:4]]  # a second text of some rows
    first = samples.index(grouped[0])
    whole = [(first + i, len(samples) + i) for i in range(4)]
    groups = [*whole, *((i,) for i in range(len(samples)) if i not in {place for place, _ in whole})]
    for share in (0.1, 0.3, 0.5):
        held = set_aside(samples, units(with_gold, groups), share)
        assert held
        side = {i: i in held for i in range(len(with_gold))}
        assert all(side[one] == side[other] for one, other in whole)
        by_id = {s.row_id: side[i] for i, s in enumerate(samples)}
        assert all(by_id[f"n{i}"] == by_id[f"n{i + 1}"] for i in range(0, 12, 2))
        assert all(by_id[s.row_id] == by_id[f"e{s.row_id}"] for s in base[6:12])
        assert all(by_id[a.row_id] == by_id[b.row_id] for a, b in zip(grouped[::2], grouped[1::2], strict=True))
        assert all(by_id[s.row_id] == by_id[base[24 + i % 2].row_id] for i, s in enumerate(made))


def test_a_unit_of_several_rows_is_not_parted() -> None:
    samples = apart(40)
    pairs = [(i, i + 1) for i in range(0, 40, 2)]
    held = set_aside(samples, units(samples, pairs), 0.3)
    assert len(held) == 12
    assert all((one in held) == (other in held) for one, other in pairs)


def test_rows_that_cannot_be_parted_are_said() -> None:
    alike = [Sample(f"r{i}", (Message("user", "the same words for every row of all"),), "x") for i in range(10)]
    with pytest.raises(UserError, match=r"validation_share: found 0.2.*of 10 rows the smallest such group has 10"):
        set_aside(alike, units(alike), 0.2)


def test_when_it_looks_and_when_it_has_seen_enough(tmp_path: Path) -> None:
    watch = Validation([0], 20, 2.0, 2, tmp_path, 0)
    assert [step for step in range(1, 21) if watch.due(step)] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert [watch.saw(step, loss) for step, loss in ((2, 3.0), (4, 2.0), (6, 2.0), (8, 1.9))] == [
        True,
        True,
        False,
        True,
    ]
    enough = [watch.exhausted]
    for step, loss in ((10, 1.95), (12, 2.5)):
        watch.saw(step, loss)
        enough.append(watch.exhausted)
    assert enough == [False, False, True]
    assert watch.best == (8, 1.9)


def test_the_best_weights_are_published(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, student: Path) -> None:
    """Of losses that fall and rise: training ends, and what is published scores what was measured then."""
    from llm_distill.trainers import validation

    measured: list[float] = []
    mean_loss = validation.mean_loss

    def made_up(trainer: Any, rows: Any, seed: int) -> float:
        measured.append(mean_loss(trainer, rows, seed))
        return [3.0, 2.0, 1.0, 1.5, 1.4, 1.3, 1.2][len(measured) - 1]

    monkeypatch.setattr(validation, "mean_loss", made_up)
    said: list[str] = []
    job = make_job(apart(40), say=said.append)
    sft(job, **WATCHED, patience=3)
    lines = curve(job.out)
    looked = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    assert looked == [(2, 3.0), (4, 2.0), (6, 1.0), (8, 1.5), (10, 1.4), (12, 1.3)]
    assert len(lines) == 12
    found = story(job.out)
    assert found["validation"] == {"rows": 10, "looks": 6, "best_step": 6, "best_loss": 1.0, "ended": 12}
    assert (found["steps"], lines[-1]["epoch"]) == (45, 1.6)
    assert said[-1].endswith("lowest after step 6 (1.0000), which is kept; training ended after step 12 of 45.")
    assert not (job.out / "checkpoints").exists()
    model = weights.load_model(str(student), adapter=str(job.out), device="cpu")
    rows = Desk(make_job(apart(40), "other"), Hyperparameters()).rows()
    held = set_aside(job.samples, units_of(rows), 0.25)
    total = count = 0.0
    for place in held:
        ids, labels = torch.tensor([rows[place].input_ids]), torch.tensor([rows[place].labels])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        count += rows[place].trained_tokens
    assert total / count == pytest.approx(measured[2], abs=1e-5)


def test_a_resumed_run_lies_on_the_unbroken_one(make_job: MakeJob) -> None:
    """With validation, early stopping, accumulation and dropout: stopped twice, it is the same curve and the same weights."""
    knobs = {**WATCHED, "gradient_accumulation": 2, "lora_dropout": 0.1, "patience": 2}
    sft(make_job(apart(40), "whole"), **knobs)
    for at in (5, 11):

        def press(step: int, *_: Any, at: int = at) -> None:
            if step == at:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            sft(make_job(apart(40), "broken", on_step=press), **knobs)
    sft(make_job(apart(40), "broken"), **knobs)
    whole, broken = make_job(1, "whole").out, make_job(1, "broken").out
    assert curve(whole) == curve(broken)
    assert learnt(whole) == learnt(broken)
    assert story(whole)["validation"] == story(broken)["validation"]


def test_a_kill_between_a_better_look_and_its_checkpoint_loses_nothing(make_job: MakeJob) -> None:
    """Weights of a step that no checkpoint knows are dropped, those that the checkpoint knows are still there."""
    sft(make_job(apart(40), "whole"), **WATCHED)
    script = """
import os, signal, sys
from pathlib import Path
from llm_distill.trainers import TrainingJob
from tests.trainers.conftest import sft
from tests.trainers.test_validation import WATCHED, apart
import torch
torch.set_num_threads(1)
from llm_distill.trainers import sft_loop
follow = sft_loop.follow
def once(trainer, report, stop, enough):  # one checkpoint alone, after step 5
    def due(step):
        type(trainer).next_save = trainer.next_save = 0 if step == 5 else float("inf")
        return enough(step)
    return follow(trainer, report, stop, due)
sft_loop.follow = once
def on_step(step, _of, numbers):
    if step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
job = TrainingJob(apart(40), {"model": sys.argv[1], "device": "cpu"}, Path(sys.argv[2]), seed=7, on_step=on_step)
sft(job, **WATCHED)
"""
    job = make_job(apart(40), "killed")
    arguments = [sys.executable, "-c", script, job.student["model"], str(job.out)]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    (folder,) = (job.out / "checkpoints").iterdir()
    kept = sorted(checkpoints.step_of(path) for path in folder.glob("best-*"))
    assert kept == [4, 8], "what the checkpoint of step 5 knows, and what is newer"
    seen: list[int] = []
    sft(make_job(apart(40), "killed", on_step=lambda step, *_: seen.append(step)), **WATCHED)
    assert seen[0] == 6
    assert curve(job.out) == curve(make_job(1, "whole").out)
    assert learnt(job.out) == learnt(make_job(1, "whole").out)


def test_packed_rows_are_looked_at_one_by_one(make_job: MakeJob) -> None:
    """Of weights that hardly move, packing changes nothing that a look sees, and no row set aside is in a pack."""
    knobs: dict[str, Any] = {**WATCHED, "epochs": 1, "learning_rate": 1e-12}
    sft(make_job(apart(40), "apart"), **knobs)
    sft(make_job(apart(40), "packed"), **knobs, packing=True, max_length=200)
    alone, packed = (story(make_job(1, out).out) for out in ("apart", "packed"))
    assert packed["validation"]["rows"] == alone["validation"]["rows"] == 10
    assert packed["checks"]["packing"]["rows"] == 30
    assert packed["validation"]["best_loss"] == pytest.approx(alone["validation"]["best_loss"], abs=1e-5)


def test_validation_is_refused_where_it_is_not_heeded(tmp_path: Path) -> None:
    from llm_distill.recipe import load

    desk = Folder(tmp_path)
    desk.seeds(['{"prompt": "good"}'])
    models = {"teacher": {"scripted": {"default": "positive"}}, "student": {"transformers": {"model": "org/name"}}}
    for fine in ("sft", "auto"):
        load(desk.recipe(models=models, train={fine: {"validation_share": 0.1}}))
    recipe = desk.recipe(models=models, train={"dpo": {"validation_share": 0.1}})
    with pytest.raises(UserError, match=r"train.dpo.validation_share: dpo sets no rows aside"):
        load(recipe)


def test_gold_is_looked_at_beside_the_teacher(make_job: MakeJob) -> None:
    """A row and its gold text are set aside together; nothing of either is learnt."""
    samples = [msgspec.structs.replace(s, gold="negative" if i % 2 else "positive") for i, s in enumerate(apart(40))]
    sft(make_job(samples), **{**WATCHED, "epochs": 1}, gold=0.5)
    found = story(make_job(1).out)
    assert found["gold"] == {"agree": 0, "differ": 40, "without": 0}
    assert found["validation"]["rows"] == 2 * 10
    assert found["steps"] == math.ceil(30 / WATCHED["batch_size"])
    lines = curve(make_job(1).out)
    assert any("validation_loss" in line for line in lines)
    assert all(line["ce"] < 2 * math.log(300) for line in lines), "a look adds nothing to the step's own loss"


def test_auto_stays_off_the_students_own_answers_to_set_rows_aside(make_job: MakeJob) -> None:
    job = make_job(apart(40))
    auto(job, hyper=Hyperparameters(**{**WATCHED, "epochs": 1}))
    found = story(job.out)
    assert found["rungs"][0]["why"] == "it sets no rows aside, as `validation_share` asks for"
    assert found["validation"]["rows"] == 10


def test_an_early_end_is_in_the_report() -> None:
    training: dict[str, Any] = {
        "steps": 1045,
        "validation": {"rows": 10, "looks": 6, "best_step": 6, "best_loss": 1.0, "ended": 12},
    }
    whole = json.loads(files("llm_distill.report").joinpath("schema.json").read_text(encoding="utf-8"))
    schema = {"$defs": whole["$defs"], **whole["properties"]["training"]}
    jsonschema.validate(training | {"trainer": "sft", "loss": []}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(training | {"trainer": "sft", "loss": [], "validation": {"rows": 10}}, schema)
    (said,) = lint_section.findings({"training": training})
    assert said.text.startswith(
        "Training ended early, after step 12 of 1,045: rows set aside from it got no better after step 6"
    )
    training["validation"]["ended"] = 1045
    assert not list(lint_section.findings({"training": training}))
