"""A sweep, shown on a student that can be understood: it learns the first words of a list, as many as its knob says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from llm_distill import store
from llm_distill.cli_runs import folder_of
from llm_distill.errors import DiskFull, FellShort, Unreachable, UserError
from llm_distill.evals.selection import adjusted, expected
from llm_distill.models.scripted import ScriptedModel
from llm_distill.recipe import load
from llm_distill.records import Completion, Request
from llm_distill.sweep import sweep
from llm_distill.sweep_space import Knob, Space, space
from llm_distill.sweep_table import markdown
from tests.conftest import Desk, Unwatched

TOY = """
import json, os, re, signal
from collections import Counter
from pathlib import Path

from llm_distill.errors import DiskFull, FellShort, Unreachable, UserError
from llm_distill.models import Model
from llm_distill.prices import FREE
from llm_distill.records import Completion

HERE = Path(__file__).parent


def note(name, line):
    with (HERE / name).open("a") as log:
        log.write(line + "\\n")


def words(job, *, share: float = 0.3, rank: int = 4, stop_at: int = 0):
    note("trained.log", f"{job.seed} {len(job.samples)} {share:g} {rank}")
    trainings = len((HERE / "trained.log").read_text().splitlines())
    if trainings == stop_at:
        how = (HERE / "how").read_text()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill later":
            return note("die", "when asked") or learn(job, share)
        kinds = {"interrupt": KeyboardInterrupt, "short": FellShort, "disk": DiskFull, "nobody": Unreachable}
        raise kinds[how]("stopped by the test")
    if rank > 9:
        raise UserError("train: the loss became nan at step 3.")
    learn(job, share)


def learn(job, share):
    counts = {}
    for sample in job.samples:
        for word in re.findall(r"\\bw\\d\\b", sample.messages[-1].content):
            counts.setdefault(word, Counter())[sample.completion] += 1
    known = [f"w{i}" for i in range(round(10 * share))]
    learnt = {w: of.most_common(1)[0][0] for w, of in sorted(counts.items()) if w in known}
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "adapter_config.json").write_text(json.dumps(learnt))
    (job.out / "adapter_model.safetensors").write_text("large")
    (job.out / "training.json").write_text(json.dumps({"steps": 1}))
    (job.out / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "loss": {1 / s + share}}}\\n' for s in (1, 2)))


class Student(Model):
    prices, concurrency, terms = FREE, 8, "own"

    def __init__(self, *, adapter: str | None = None, model: str = "toy"):
        self.learnt = json.loads((Path(adapter) / "adapter_config.json").read_text()) if adapter else {}
        self.identity = f"toy:{sorted(self.learnt.items())}"

    async def complete(self, request):
        text = request.messages[-1].content
        if (HERE / "die").exists():
            (HERE / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        note("asked.log", text.replace("\\n", " "))
        word = re.findall(r"\\bw\\d\\b", text)[-1]
        return Completion(self.learnt.get(word, "none of these"), "stop", 1, 1)
"""
TRUTH = ["positive" if word % 2 == 0 else "negative" for word in range(10)]
#: Three in five rows decide: a toy needs few to learn from.
DEV = {"share": 0.6}


@pytest.fixture
def toy(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    (desk.folder / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(desk.folder)
    monkeypatch.delitem(sys.modules, "toy", raising=False)  # another test's
    desk.seeds([{"prompt": f"row {i}: w{word}"} for word in range(10) for i in range(12)])
    desk.seeds([{"prompt": f"unseen {i}: w{w}", "label": TRUTH[w]} for w in range(10) for i in range(2)], "held.jsonl")
    return desk


def recipe(desk: Desk, over: Mapping[str, Any] | None = None, **keys: Any) -> Path:
    teacher = {"scripted": {"rules": {r"\bw[02468]\b": "positive"}, "default": "negative"}}
    settings = {key: keys.pop(key) for key in ("trials", "sampler", "metric", "seeds") if key in keys}
    dev = keys.pop("dev", DEV)
    wanted: dict[str, Any] = {
        "models": {"teacher": teacher, "student": "toy:Student"},
        "held_out": {"file": "held.jsonl", "near": None},
        "train": "toy:words",
        "evaluate": {"resamples": 500},
        "sweep": {"over": over or {"train.share": {"low": 0.1, "high": 1}}, "dev": dev, **settings},
    }
    return desk.recipe(**(wanted | keys))


def done(desk: Desk, path: Path, *overrides: str, where: str = "data") -> dict[str, Any]:
    return list(sweep(load(path, overrides), desk.folder / where, Unwatched()))[-1]


def lines(desk: Desk, log: str = "trained.log") -> list[str]:
    path = desk.folder / log
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def settings(found: Mapping[str, Any]) -> list[Any]:
    return [row["parameters"] for row in found["trials"]]


def test_finds_the_best_and_hands_it_on(toy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, complete = [], ScriptedModel.complete

    async def counted(self: ScriptedModel, request: Request) -> Completion:
        asked.append(request)
        return await complete(self, request)

    monkeypatch.setattr(ScriptedModel, "complete", counted)
    path = recipe(toy, {"train.share": {"low": 0.1, "high": 1}, "train.toy:words.rank": [2, 4, 8]}, trials=9)
    found = done(toy, path)
    assert len(asked) == 120  # every row once, whatever the number of trials
    assert not any("unseen" in line for line in lines(toy, "asked.log"))  # no held-out row was looked at
    assert found["complete"]
    own, *others = found["trials"]
    assert own["parameters"] == {"train.share": 0.3, "train.toy:words.rank": 4}
    assert len(others) == 9
    for row in found["trials"]:  # a student agrees on the words that it knows
        assert row["score"]["value"] == pytest.approx(round(10 * row["parameters"]["train.share"]) / 10, abs=0.1)
    best = found["best"]
    assert best["score"]["value"] == max(row["score"]["value"] for row in found["trials"])
    assert best["verdict"] == "gain"
    assert best["change"]["low"] > 0
    assert best["p_adjusted"] < 0.05
    assert best["expected"]["score"]["low"] <= best["score"]["value"]
    assert found["dev"] | {"metric": 0} == {
        "file": None, "share": 0.6, "metric": 0, "rows": 72, "learnt": 48, "aside": 0
    }  # fmt: skip
    assert {line.split()[1] for line in lines(toy)} == {"48"}

    full = folder_of("job", toy.folder / "data")
    assert json.loads(full.file("sweep.json").read_text(encoding="utf-8")) == found
    assert "A measurable gain" in full.file("sweep.md").read_text(encoding="utf-8")
    left = {p.name for p in full.path.glob("sweep/*/student/*")}
    assert left == {"training.json", "metrics.jsonl"}  # weights have had their use
    page = full.file("report/report.html").read_text(encoding="utf-8")
    assert 'id="sweep"' in page
    assert f"-s {best['overrides'][0]}" in page
    shares = [row["parameters"]["train.share"] for row in found["trials"]]
    assert [row["loss"][1] for row in found["trials"]] == [
        {"step": 2, "loss": pytest.approx(0.5 + share, abs=1e-5)} for share in shares
    ]
    assert "Training loss of trials" in page

    before = len(lines(toy))
    assert done(toy, path) == found  # nothing to do
    assert len(lines(toy)) == before
    ran = toy.here(path, *best["overrides"])
    assert ran["asked"] == 3 * 20  # teacher, base and student, for the first time on the held-out rows
    assert lines(toy)[-1].split()[1] == "120"  # on all rows
    report = json.loads((Path(ran["run"]) / "report/report.json").read_text(encoding="utf-8"))
    assert report["sweep"]["best"] == best
    assert not report["sweep"]["stale"]


@pytest.mark.parametrize("how", ["kill", "kill later", "interrupt", "short", "disk", "nobody"])
def test_goes_on_after_a_stop(toy: Desk, how: str) -> None:
    over = {"train.share": {"low": 0.1, "high": 1}, "train.rank": {"low": 1, "high": 9}}
    whole = done(toy, recipe(toy, over, trials=7), where="whole")
    unbroken = lines(toy)
    (toy.folder / "trained.log").unlink()
    (toy.folder / "how").write_text(how, encoding="utf-8")
    path = recipe(toy, over, trials=7, train={"toy:words": {"stop_at": 7}})
    if how.startswith("kill"):
        process = toy.command("sweep", path)
        process.communicate(timeout=120)
        assert process.returncode == -9
    else:
        kinds = {"interrupt": KeyboardInterrupt, "short": FellShort, "disk": DiskFull, "nobody": Unreachable}
        with pytest.raises(kinds[how], match="stopped by the test"):
            done(toy, path)
    assert len(lines(toy)) == 7
    half = json.loads(folder_of("job", toy.folder / "data").file("sweep.json").read_text(encoding="utf-8"))
    assert len(half["trials"]) == 6
    assert not half["complete"]
    assert "5 of 7 trials are made" in markdown(half)
    assert half.get("stopped") == ("stopped by the test" if how == "short" else None)
    found = done(toy, path)
    assert settings(found) == settings(whole)
    assert [row["score"] for row in found["trials"]] == [row["score"] for row in whole["trials"]]
    again = (
        [] if how == "kill later" else [unbroken[6]]
    )  # what was being trained; a student that was being asked is there
    assert lines(toy) == [*unbroken[:7], *again, *unbroken[7:]]


def test_more_trials_go_on_and_seeds_decide(toy: Desk) -> None:
    over = {"train.share": {"low": 0.1, "high": 1}, "train.rank": {"low": 1, "high": 9}}
    few = done(toy, recipe(toy, over, trials=6))
    assert len(lines(toy)) == 7
    more = done(toy, recipe(toy, over, trials=9))
    assert settings(more)[:7] == settings(few)
    assert len(lines(toy)) == 10
    assert len({json.dumps(setting) for setting in settings(more)}) == 10
    other = done(toy, recipe(toy, over, trials=6, seed=3))
    assert settings(other)[1:] != settings(few)[1:]
    at_random = done(toy, recipe(toy, over, trials=6, sampler="random"))
    assert settings(at_random)[1:] != settings(other)[1:]


def test_a_grid_visits_every_point(toy: Desk) -> None:
    over = {"train.share": [0.1, 0.3, 1.0], "train.rank": [2, 4]}
    found = done(toy, recipe(toy, over, sampler="grid"))
    tried = [(row["train.share"], row["train.rank"]) for row in settings(found)]
    assert tried[0] == (0.3, 4)
    assert sorted(tried[1:]) == sorted(product([0.1, 0.3, 1.0], [2, 4]))
    assert len(lines(toy)) == 6  # the recipe's own settings are a point of the grid
    (same,) = [row for row in found["trials"] if row["same_as"] is not None]
    assert (same["same_as"], same["seconds"], same["change"]["difference"]) == (0, 0.0, 0.0)
    assert found["best"]["parameters"]["train.share"] == 1.0
    assert found["best"]["others"] == 5


def test_a_small_space_is_gone_through_once(toy: Desk) -> None:
    found = done(toy, recipe(toy, {"train.share": [0.1, 0.3, 0.5], "train.rank": {"low": 3, "high": 4}}, trials=50))
    tried = {tuple(setting.values()) for setting in settings(found)}
    assert len(found["trials"]) == len(tried) == 6
    assert any("There are 6 settings" in note for note in found["notes"])


def test_what_cannot_be_trained_is_a_trial_that_failed(toy: Desk) -> None:
    path = recipe(toy, {"train.rank": [2, 4, 10]}, sampler="grid")
    found = done(toy, path)
    (failed,) = [row for row in found["trials"] if row["failed"]]
    assert failed["parameters"] == {"train.rank": 10}
    assert "nan at step 3" in failed["failed"]
    assert found["complete"]
    assert found["best"]["verdict"] == "own settings"
    assert found["best"]["overrides"] == []
    trained = len(lines(toy))
    assert done(toy, path) == found
    assert len(lines(toy)) == trained
    assert "cannot be trained: train: the loss became nan" in markdown(found)
    with pytest.raises(UserError, match="nan at step 3"):  # nothing works here: not a matter of settings
        done(toy, path, "train.rank=11")


def test_luck_is_no_gain(toy: Desk) -> None:
    found = done(toy, recipe(toy, {"train.share": [0.3, 0.4]}, sampler="grid", dev={"share": 0.3}))
    best = found["best"]
    assert best["parameters"] == {"train.share": 0.4}
    assert best["verdict"] == "no measurable gain"
    assert best["alike"] == best["others"] == 1
    assert "No measurable gain" in markdown(found)


def test_seeds_are_averaged(toy: Desk) -> None:
    found = done(toy, recipe(toy, {"train.share": [0.1, 0.5]}, sampler="grid", seeds=2, seed=5))
    assert [line.split()[0] for line in lines(toy)] == ["5", "6"] * 3
    assert all(len(row["by_seed"]) == 2 and len(row["students"]) == 2 for row in found["trials"])
    assert any("means over 2 trainings" in note for note in found["notes"])


def test_trainers_can_be_compared(toy: Desk) -> None:
    choices = ["toy:words", {"toy:words": {"share": 0.8}}]
    found = done(toy, recipe(toy, {"train": choices}, sampler="grid"))
    assert found["best"]["overrides"] == ['train={"toy:words": {"share": 0.8}}']
    ran = toy.here(recipe(toy, {"train": choices}, sampler="grid"), *found["best"]["overrides"])
    assert ran["status"] == "done"


def test_a_file_of_labelled_rows(toy: Desk) -> None:
    rows = [{"prompt": f"judged {i}: w{word}", "label": TRUTH[word]} for word in range(10) for i in range(3)]
    toy.seeds([*rows, {"prompt": "ROW 1:  w0", "label": "positive"}], "dev.jsonl")
    found = done(toy, recipe(toy, {"train.share": [0.1, 1.0]}, sampler="grid", dev={"file": "dev.jsonl"}))
    assert found["dev"] == {
        "file": "dev.jsonl", "share": None, "metric": "accuracy", "rows": 31, "learnt": 119, "aside": 1
    }  # fmt: skip
    assert found["best"]["score"]["value"] == 1.0
    assert any("31 labelled rows of dev.jsonl" in note for note in found["notes"])
    assert (
        load(recipe(toy, dev={"file": "dev.jsonl"})).digest
        == load(recipe(toy)).digest
        == load(recipe(toy, sweep=None)).digest
    )


@pytest.mark.parametrize(
    ("rows", "dev", "said"),
    [
        ([{"prompt": "unseen 1: w3", "label": "negative"}], {}, "1 of 7 rows of .* also held out"),
        ([{"prompt": "one two three four five six w7!", "label": "negative"}], {}, "nearly equal held-out rows"),
        ([{"prompt": "unlabelled w1"}], {}, "1 rows of .* have no `label`, the first: 'unlabelled w1'"),
        ([{"prompt": "odd w1", "label": "pos"}], {}, "has the label 'pos'"),
        ([], {"metric": "agreement_with_teacher"}, "no teacher has answered the rows"),
    ],
)
def test_rows_that_must_not_decide(toy: Desk, rows: list[Any], dev: dict[str, Any], said: str) -> None:
    fine = [{"prompt": f"judged w{word}", "label": TRUTH[word]} for word in range(6)]
    held = [*[{"prompt": f"unseen {i}: w3"} for i in range(3)], {"prompt": "one two three four five six w7"}]
    toy.seeds([*fine, *rows], "dev.jsonl")
    toy.seeds([{**row, "label": "negative"} for row in held], "held.jsonl")
    path = recipe(toy, dev={"file": "dev.jsonl"}, held_out={"file": "held.jsonl"}, **dev)
    with pytest.raises(UserError, match=said):
        done(toy, path)
    assert lines(toy) == []


def test_rows_that_belong_together_stay_together(toy: Desk) -> None:
    rows = [
        f"{a} {b} {c} w{i}" for i in range(8) for a, b, c in (("one two three four five", "six seven eight", f"x{i}"),)
    ]
    near = [
        f"the same long text number {i} in other clothes, w{i} and no more{end}"
        for i in range(10)
        for end in ("", "!", "?")
    ]
    toy.seeds([{"prompt": row} for row in [*near, *rows]])
    found = done(toy, recipe(toy, dev={"share": 0.4}, held_out={"file": "held.jsonl"}, trials=1))
    full = folder_of("job", toy.folder / "data")
    learnt = {row["messages"][0]["content"] for row in store.read_table(full.file("sweep/kept.parquet"))}
    assert found["dev"]["rows"] + len(learnt) == 38
    for i in range(10):
        assert len({text in learnt for text in near[3 * i : 3 * i + 3]}) == 1


@pytest.mark.parametrize(
    ("over", "more", "said"),
    [
        ({"train.shar": [0.1, 0.2]}, {}, "with train.shar = 0.1: train.toy:words: no key 'shar'. Did you mean 'share'"),
        ({"train.sft.epochs": [1, 2]}, {}, "with train.sft.epochs = 1: .*no key 'sft'"),
        ({"train.rank": [2, "two"]}, {}, 'with train.rank = "two": .*valid integer'),
        ({"train.rank": {"low": 1, "high": 2.5}}, {}, "with train.rank = 2.5: .*valid integer"),
        ({"answers.temperature": [0, 1]}, {}, "found 'answers.temperature'; trials share every answer"),
        ({"train.seed": [1, 2]}, {}, "a seed is no setting"),
        ({"train": ["a:b", "c:d"], "train.share": [1, 2]}, {}, "train.share lies within train"),
        ({"train.share": 0.5}, {}, r"sweep.over.train.share: found 0.5; list the values"),
        ({"train.share": [0.5]}, {}, "list two or more different values"),
        ({"train.share": [0.5, 0.5]}, {}, "list two or more different values"),
        ({"train.share": {"low": 1, "high": 0}}, {}, "low must be the smaller"),
        ({"train.share": {"low": 0, "high": 1, "log": True}}, {}, "needs it above 0"),
        ({"train.share": {"low": 0}}, {}, "high: required and missing"),
        ({"train.share": {"low": 0, "high": 1}}, {"sampler": "grid"}, "a grid needs a list of values for train.share"),
        ({"train.share": [0, 1]}, {"sampler": "grid", "trials": 3}, "remove `trials`"),
        ({"train.share": [0, 1]}, {"metric": "token_f1"}, "sweep.metric: token_f1 is not of a classify task"),
        ({"train.share": [0, 1]}, {"metric": "accuracy"}, "no kept row has gold to measure accuracy by"),
        ({"train.share": [0, 1]}, {"dev": {"file": "no.jsonl"}}, "sweep.dev.file: no such file"),
        ({"train.share": [0, 1]}, {"prompts": [{"seeds": {"file": "seeds.jsonl", "limit": 5}}]}, "of 5 kept ones"),
        ({"train.share": [0, 1]}, {"train": None, "evaluate": None}, "the recipe has no `train`"),
        ({"train.share": [0, 1]}, {"sweep": None}, "the recipe has no `sweep`"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_trained(toy: Desk, over: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        done(toy, recipe(toy, over, **more))
    assert lines(toy) == []
    if "kept" not in said:
        assert not (toy.folder / "data").exists()


def test_knobs_that_do_not_fit_together_are_found(toy: Desk) -> None:
    code = """
        from dataclasses import dataclass
        from llm_distill.errors import UserError
        from llm_distill.plugs import Group

        @dataclass(frozen=True)
        class Both(Group):
            a: int = 1
            b: int = 1

            def __post_init__(self):
                if self.a > 1 and self.b > 1:
                    raise UserError("a and b exclude each other")

        def both(job, *, knobs: Both): ...
    """
    (toy.folder / "pair.py").write_text(dedent(code), encoding="utf-8")
    over = {"train.a": [1, 2], "train.b": {"low": 1, "high": 5}}
    with pytest.raises(UserError, match=r"with train.a = 2 and train.b = 5: a and b exclude each other"):
        done(toy, recipe(toy, over, train="pair:both"))


def test_free_text(toy: Desk) -> None:
    teacher = {"scripted": {"rules": {r"\bw[0-4]\b": "a long answer"}, "default": "something quite different"}}
    models = {"teacher": teacher, "student": "toy:Student"}
    path = recipe(toy, {"train.share": [0.2, 0.8]}, task="generate", models=models, held_out=None, evaluate=None)
    found = done(toy, path)
    assert found["dev"]["metric"] == "agreement_with_teacher"
    assert found["best"]["parameters"] == {"train.share": 0.8}
    assert found["best"]["verdict"] == "gain"
    with pytest.raises(UserError, match="no kept row has gold to measure token_f1 by"):
        done(toy, recipe(toy, metric="token_f1", task="generate", models=models, held_out=None, evaluate=None))


def test_on_the_command_line(toy: Desk) -> None:
    path = recipe(toy, {"train.share": [0.2, 0.9]}, sampler="grid")
    assert "2 trials over train.share" in toy.llm_distill("check", path)
    said = toy.llm_distill("sweep", path, "-s", "evaluate.resamples=600")
    assert "Best: trial" in said
    assert said.splitlines()[-1] == f"  llm-distill run {path} -s evaluate.resamples=600 -s train.share=0.9"
    found = json.loads(toy.llm_distill("sweep", path, "--json"))
    assert found["best"]["overrides"] == ["train.share=0.9"]
    assert len(lines(toy)) == 3
    assert "Did you mean 'rank'" in toy.llm_distill("sweep", path, "-s", "train.rnk=3", code=2)
    assert "the recipe has no `sweep`" in toy.llm_distill("sweep", recipe(toy, sweep=None), code=2)
    with pytest.raises(FellShort, match="budget"):
        done(
            toy, recipe(toy, {"train.share": [0.2, 0.9]}, answers={"max_tokens": 8, "budget_tokens": 200}), where="poor"
        )


def test_a_real_student(desk: Desk, tmp_path: Path) -> None:
    from tests.models.conftest import byte_level_tokenizer, tiny

    base = tiny("llama", tmp_path / "base", byte_level_tokenizer())
    desk.seeds([{"prompt": f"the film {i} was {'good' if i % 2 else 'bad'}"} for i in range(16)])
    models = {
        "teacher": {"scripted": {"rules": {"good": "positive"}, "default": "negative"}},
        "student": {"transformers": {"model": str(base), "device": "cpu"}},
    }
    over = {"train.sft.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}, "train.sft.lora_rank": [2, 4]}
    path = desk.recipe(
        models=models,
        train={"sft": {"epochs": 1}},
        answers={"max_tokens": 4},
        sweep={"over": over, "trials": 2, "dev": {"share": 0.4}},
        held_out={"share": 0.1, "near": None},
    )
    found = done(desk, path)
    full = folder_of("job", desk.folder / "data")
    for row in found["trials"][1:]:
        (student,) = row["students"]
        told = json.loads((full.path / "sweep" / student / "student/training.json").read_text(encoding="utf-8"))
        assert told["settings"]["learning_rate"] == row["parameters"]["train.sft.learning_rate"]
        assert told["settings"]["lora_rank"] == row["parameters"]["train.sft.lora_rank"]
        assert store.read_answers(full.path / "sweep" / student / "eval/student.parquet")
    assert settings(found)[0] == {"train.sft.learning_rate": None, "train.sft.lora_rank": 16}
    assert not list(full.path.glob("sweep/*/student/*.safetensors"))


def toy_space(*knobs: Knob, sampler: Any = "tpe", seed: int = 0) -> Space:
    return Space(knobs, sampler, seed)


def climb(place: Space, trials: int) -> list[tuple[Any, float]]:
    """A sweep of a function with one peak, at 3e-4."""
    before: list[tuple[Any, float]] = []
    for _ in range(trials):
        setting = place.next(before)
        before.append((setting, -abs(np.log(setting["rate"] / 3e-4))))
    return before


def test_the_estimator_looks_where_it_is_good() -> None:
    knob = Knob("rate", (), 1e-6, 1e-1, log=True)
    ends = [climb(toy_space(knob, seed=seed), 25) for seed in range(4)]
    random = [climb(toy_space(knob, sampler="random", seed=seed), 25) for seed in range(4)]
    late = [np.mean([score for _, score in one[-10:]]) for one in (*ends, *random)]
    assert np.mean(late[:4]) > np.mean(late[4:])
    for setting, _ in ends[0]:
        assert 1e-6 <= setting["rate"] <= 1e-1
        assert setting["rate"] == float(f"{setting['rate']:.3g}")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_countable_space_is_gone_through(sampler: Any) -> None:
    place = toy_space(Knob("a", (True, 1, None, "x")), Knob("b", (), 2, 3, whole=True), sampler=sampler)
    before: list[tuple[Any, float]] = []
    for n in range(8):
        before.append((place.next(before), float(n % 3)))
    assert len({json.dumps(setting) for setting, _ in before}) == place.size == 8
    assert {type(setting["b"]) for setting, _ in before} == {int}
    assert place.holds({"a": 1, "b": 2})
    assert not place.holds({"a": 0, "b": 2})
    assert not place.holds({"a": 1, "b": True})


def test_whole_numbers_are_the_trainers_to_ask_for(toy: Desk) -> None:
    path = recipe(toy, {"train.share": {"low": 0, "high": 1}, "train.rank": {"low": 1, "high": 2}})
    assert {knob.path: knob.whole for knob in space(load(path)).knobs} == {"train.share": False, "train.rank": True}


def test_a_pick_flatters_itself() -> None:
    """Of twenty coins the luckiest seems good, and `expected` says what it is: a coin."""
    rng = np.random.default_rng(0)
    seemed, said, gains = [], [], []
    for _ in range(40):
        coins = (rng.random((60, 20)) < 0.7).astype(float)
        found = expected(coins, 1)
        seemed.append(coins.mean(axis=0).max())
        said.append(found.score.value)
        gains.append(found.gain.low <= 0 <= found.gain.high)
    assert np.mean(seemed) > 0.78
    assert abs(np.mean(said) - 0.7) < 0.02
    assert np.mean(gains) > 0.95
    better = (rng.random((200, 3)) < [0.5, 0.55, 0.9]).astype(float)
    found = expected(better, 1)
    assert found.score.value == pytest.approx(better[:, 2].mean(), abs=0.02)
    assert found.gain.low > 0.2


def test_adjusted() -> None:
    assert adjusted(0.01, 12) == pytest.approx(0.12)
    assert adjusted(0.2, 12) == 1.0
    assert adjusted(0.02, 0) == 0.02
