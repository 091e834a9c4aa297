"""What filters are worth, shown on a student that can be understood: it learns each word's commonest label."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_distill import store
from llm_distill.ablate import FULL, Arm, ablate, arms, derived, verdict
from llm_distill.ablate_table import markdown, notes
from llm_distill.cli_runs import folder_of
from llm_distill.errors import FellShort, UserError
from llm_distill.models.scripted import ScriptedModel
from llm_distill.recipe import load
from llm_distill.records import Completion, Request
from tests.conftest import Desk, Unwatched

TOY = """
import json, re
from collections import Counter
from pathlib import Path

from llm_distill.errors import FellShort
from llm_distill.models import Model
from llm_distill.prices import FREE
from llm_distill.records import Completion

LOG = Path(__file__).with_name("trained.log")


def votes(job, *, most: int = 1000):
    counts = {}
    for sample in job.samples:
        for word in re.findall(r"\\bw\\d\\b", sample.messages[-1].content):
            counts.setdefault(word, Counter())[sample.completion] += 1
    with LOG.open("a") as log:
        log.write(f"{job.seed} {len(job.samples)}\\n")
    if len(job.samples) > most:
        raise FellShort("too many rows")
    job.out.mkdir(parents=True, exist_ok=True)
    learnt = {word: of.most_common(1)[0][0] for word, of in sorted(counts.items())}
    (job.out / "adapter_config.json").write_text(json.dumps(learnt))


class Student(Model):
    prices, concurrency, terms = FREE, 8, "own"

    def __init__(self, *, adapter: str | None = None, model: str = "toy"):
        self.learnt = json.loads((Path(adapter) / "adapter_config.json").read_text()) if adapter else {}
        self.identity = f"toy:{sorted(self.learnt.items())}"

    async def complete(self, request):
        word = re.findall(r"\\bw\\d\\b", request.messages[-1].content)[-1]
        return Completion(self.learnt.get(word, "negative"), "stop", 1, 1)


def noisy(answers):
    return [float("noisy" in a.prompt.text) for a in answers]


def eights(answers):
    return [float("w8" in a.prompt.text) for a in answers]


def spare(answers):
    return [float("spare" in a.prompt.text) for a in answers]
"""
TRUTH = ["positive" if word % 2 == 0 else "negative" for word in range(10)]
FILTERS: list[Any] = [{"toy:noisy": {"max": 0}}, {"toy:eights": {"max": 0}}, {"toy:spare": {"max": 0}}, "empty"]


@pytest.fixture
def recipe(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Path:
    (desk.folder / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(desk.folder)
    monkeypatch.delitem(sys.modules, "toy", raising=False)  # another test's
    rows = [f"w{word} plain {i}" for word in range(10) for i in range(2)]
    rows += [f"w{word} noisy {i}" for word in range(0, 8, 2) for i in range(4)]  # the teacher is wrong on these
    rows += [f"w{word} spare" for word in range(6)]
    desk.seeds([{"prompt": row} for row in rows])
    held = [{"prompt": f"held out {i}: w{word}", "label": TRUTH[word]} for word in range(10) for i in range(8)]
    desk.seeds(held, "held.jsonl")
    return toy_recipe(desk)


def toy_recipe(desk: Desk, **keys: Any) -> Path:
    teacher = {"scripted": {"rules": {r"\bnoisy": "negative", r"\bw[02468]\b": "positive"}, "default": "negative"}}
    wanted: dict[str, Any] = {
        "models": {"teacher": teacher, "student": "toy:Student"},
        "held_out": {"file": "held.jsonl", "near": None},
        "filter": FILTERS,
        "train": "toy:votes",
        "evaluate": {"resamples": 500},
    }
    return desk.recipe(**(wanted | keys))


def done(desk: Desk, recipe: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    return list(ablate(load(recipe, overrides), desk.folder / "data", Unwatched(), **options))[-1]


def trainings(desk: Desk) -> list[str]:
    return (desk.folder / "trained.log").read_text(encoding="utf-8").splitlines()


def by_name(found: Mapping[str, Any]) -> dict[str, Any]:
    return {row["arm"]: row for row in found["arms"]}


def test_tells_filters_apart(desk: Desk, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, complete = [], ScriptedModel.complete

    async def counted(self: ScriptedModel, request: Request) -> Completion:
        asked.append(request)
        return await complete(self, request)

    monkeypatch.setattr(ScriptedModel, "complete", counted)
    found = done(desk, recipe)
    rows = by_name(found)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        FULL: None,
        "without toy:noisy": "gain",
        "without toy:eights": "harmful",
        "without toy:spare": "no measurable gain",
        "without empty": "took nothing",
        "no filters": "gain",
    }
    assert {name: (row["rows_kept"], row["took"], row["took_alone"]) for name, row in rows.items()} == {
        FULL: (18, 0, 0),
        "without toy:noisy": (34, 16, 16),
        "without toy:eights": (20, 2, 2),
        "without toy:spare": (24, 6, 6),
        "without empty": (18, 0, 0),
        "no filters": (42, 24, 24),
    }
    # Without w8 the student is wrong on a tenth of the rows; with noise it knows no even word but w8, which eights took.
    assert rows[FULL]["score"]["value"] == 0.9
    assert rows["without toy:noisy"]["score"]["value"] == 0.5
    assert rows["without toy:noisy"]["change"]["difference"] == -0.4
    bounds = {"low", "high", "bca", "smallest_visible", "rows_needed"}
    change = rows["without toy:eights"]["change"]
    assert {name: number for name, number in change.items() if name not in bounds} == {
        "metric": "accuracy", "test": "exact McNemar", "n": 80, "difference": 0.1, "p": 0.0078125, "wins": 8, "losses": 0,
    }  # fmt: skip
    assert bounds <= change.keys()
    assert rows["without empty"]["same_as"] == FULL
    assert trainings(desk) == ["0 18", "0 34", "0 20", "0 24", "0 42"]
    assert len(asked) == 42 + 80  # each question once, whatever the arm
    assert found["complete"]
    assert sum(row["share_of_time"] for row in rows.values()) == pytest.approx(1, abs=0.01)

    full = folder_of("job", desk.folder / "data")
    assert "arm" not in full.record
    assert full.file("answers.parquet").stat().st_nlink == 6  # one file on disk for all arms
    assert json.loads(full.file("ablation.json").read_text(encoding="utf-8")) == found
    assert "| without toy:eights |" in full.file("ablation.md").read_text(encoding="utf-8")
    report = json.loads(full.file("report/report.json").read_text(encoding="utf-8"))
    assert not report["ablation"]["stale"]
    assert "Harmful: the student is better without it." in full.file("report/report.html").read_text(encoding="utf-8")
    again = done(desk, recipe)
    assert [row["verdict"] for row in again["arms"]] == [row["verdict"] for row in found["arms"]]
    assert len(trainings(desk)) == 5
    assert not any(stage["ran"] for stage in desk.here(recipe)["stages"].values())


def test_goes_on_after_a_stop(desk: Desk, recipe: Path) -> None:
    stopped = ablate(load(recipe), desk.folder / "data", Unwatched())
    next(stopped)
    next(stopped)
    assert isinstance(stopped, Generator)
    stopped.close()
    full = folder_of("job", desk.folder / "data")
    half = json.loads(full.file("ablation.json").read_text(encoding="utf-8"))
    assert not half["complete"]
    assert "not run" in markdown(half)
    assert len(trainings(desk)) == 2
    assert done(desk, recipe)["complete"]
    assert trainings(desk) == ["0 18", "0 34", "0 20", "0 24", "0 42"]


def test_equal_rows_and_seeds(desk: Desk, recipe: Path) -> None:
    found = done(desk, recipe, "seed=5", only=["toy:noisy", "empty"], seeds=2, equal_rows=True)
    rows = by_name(found)
    assert list(rows) == [FULL, "without toy:noisy", "without empty"]
    assert found["rows_each"] == 18
    assert {row["trained_on"] for row in rows.values()} == {18}
    assert trainings(desk) == ["5 18", "6 18", "5 18", "6 18"]
    assert len(rows[FULL]["by_seed"]) == 2
    assert rows["without empty"]["verdict"] == "took nothing"
    table = markdown(found)
    assert "No arm trains on more than 18 rows" in table
    assert "means over 2 trainings" in table
    thinned = [p for p in (desk.folder / "data").glob("runs/job/*") if "sample" in (p / "run.json").read_text()]
    for path in thinned:
        dropped = store.read_table(path / "dropped.parquet", ["dropped_by"])
        assert sum(row["dropped_by"] == "sample" for row in dropped) == 16


def test_filters_are_judged_by_the_metric_of_the_evaluation(desk: Desk, recipe: Path) -> None:
    held = [{"prompt": f"held out {i}: w{word}", "reference": TRUTH[word]} for word in range(10) for i in range(2)]
    desk.seeds(held, "held.jsonl")
    by = {"metrics": [{"json_equal": {}}, "rouge_l"], "metric": "rouge_l", "resamples": 500}
    found = done(desk, toy_recipe(desk, task="generate", evaluate=by), only=["toy:noisy"])
    assert [row["metric"] for row in found["arms"]] == ["rouge_l", "rouge_l"]
    assert by_name(found)["without toy:noisy"]["change"]["difference"] == pytest.approx(-0.4)


def test_a_data_set_would_grow_by_every_variant(desk: Desk, recipe: Path) -> None:
    recipe = toy_recipe(desk, data_set="growing")
    for command in ("ablate", "sweep"):
        said = desk.llm_distill(command, recipe, "-s", 'sweep={"over": {"train.toy:votes.most": [25, 30]}}', code=2)
        assert "compare them without it, `-s data_set=null`" in said
    assert not (desk.folder / "data" / "runs").exists()


def test_what_falls_short_is_kept(desk: Desk, recipe: Path) -> None:
    recipe = toy_recipe(desk, train={"toy:votes": {"most": 25}})
    with pytest.raises(FellShort, match="without toy:noisy: too many rows"):
        done(desk, recipe)
    half = json.loads(folder_of("job", desk.folder / "data").file("ablation.json").read_text(encoding="utf-8"))
    assert "too many rows" in half["stopped"]
    assert [("score" in row) for row in half["arms"]] == [True] + [False] * 5


def test_on_the_command_line(desk: Desk) -> None:
    desk.seeds([{"prompt": f"good thing {i}" if i % 3 else "good hm"} for i in range(8)] + [{"prompt": "bad"}])
    long = {"teacher": {"scripted": {"rules": {"good": "long enough"}, "default": "no"}}}
    recipe = desk.recipe(task="generate", models=long, filter=["exact_duplicate", {"length": {"min": 5}}])
    table = desk.llm_distill("ablate", recipe)
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in table.splitlines() if line.startswith("|")]
    assert cells[2:] == [
        ["all filters", "6", "", ""],
        ["without exact_duplicate", "8", "2", "2"],
        ["without length", "7", "1", "1"],
        ["no filters", "9", "3", "3"],
    ]
    assert "only rows are counted" in table
    assert "--only lenght: the recipe has no such filter. Did you mean 'length'?" in desk.llm_distill(
        "ablate", recipe, "--only", "lenght", code=2
    )
    assert "nothing to take away" in desk.llm_distill("ablate", desk.recipe(filter=[]), code=2)
    short = desk.recipe(filter=["empty"], answers={"max_tokens": 8, "budget_tokens": 200})
    assert "budget" in desk.llm_distill("ablate", short, code=1)


def test_arms() -> None:
    assert arms(["a", "b"]) == [
        Arm(FULL), Arm("without a", ("a",)), Arm("without b", ("b",)), Arm("no filters", ("a", "b"))
    ]  # fmt: skip
    assert arms(["a", "b"], ["b"]) == [Arm(FULL), Arm("without b", ("b",))]
    with pytest.raises(UserError, match="no filters"):
        arms([])


def test_a_derived_plan_lacks_one_filter_and_shares_the_account(desk: Desk) -> None:
    desk.seeds([{"prompt": "x"}])
    plan = load(desk.recipe(filter=[{"length": {"min": 1}}, "empty", {"length": {"max": 9}}]))
    other = derived(plan, ["length.2"], rows=5)
    assert [f.name for f in other.filters] == ["length", "empty", "sample"]
    assert other.filters[0].min == 1
    assert other.account == plan.account
    assert other.digest != plan.digest
    assert derived(plan).digest == plan.digest


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "said"),
    [
        (-0.1, -0.2, -0.05, 0.01, "gain"),
        (0.1, 0.05, 0.2, 0.01, "harmful"),
        (0.1, -0.05, 0.2, 0.2, "no measurable gain"),
        (-0.1, -0.2, -0.01, 0.07, "no measurable gain"),  # the interval and the exact test disagree
        (0.0, -0.1, 0.1, 1.0, "no measurable gain"),
    ],
)
def test_verdict(difference: float, low: float, high: float, p: float, said: str) -> None:
    assert verdict({"difference": difference, "low": low, "high": high, "p": p}) == said


def test_verdict_without_numbers() -> None:
    assert verdict(None) == "not measured"
    assert verdict(None, same=True) == "took nothing"


def test_notes_say_what_was_done() -> None:
    assert any("--equal-rows" in note for note in notes({"seeds": 1}, None, 0))
    assert any("7 rows of the full run are still owed" in note for note in notes({"seeds": 0}, None, 7))
