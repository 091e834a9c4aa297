"""General ability: a task file's score of the student and of its untrained self, and what a gate makes of it."""

from __future__ import annotations

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_distill.errors import UserError
from llm_distill.estimate import estimate
from llm_distill.evals.gate import gate
from llm_distill.evals.general import Row, held_against_base
from llm_distill.evals.general_tasks import BUILT_IN, find_tasks
from llm_distill.recipe import load
from llm_distill.report.general_section import findings
from tests.conftest import Desk
from tests.finished import ROWS, TEACHER, finish

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs llm-distill[general]")
CHOICE = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "colours.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{thing}} is",
    "doc_to_choice": ["red", "blue"],
    "doc_to_target": "answer",
}
WRITTEN = {
    "task": "echo",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "echo.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Say {{word}}:",
    "doc_to_target": "word",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def tasks(folder: Path, *configs: dict[str, Any]) -> Path:
    """Task files, with six rows each."""
    folder.mkdir(exist_ok=True)
    for config in configs:
        (folder / f"{config['task']}.yaml").write_text(json.dumps(config), encoding="utf-8")  # which YAML reads
    colours = [{"thing": f"item {i}", "answer": i % 2} for i in range(6)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in colours))
    (folder / "echo.jsonl").write_text("".join(json.dumps({"word": f"w{i}"}) + "\n" for i in range(6)))
    return folder


def scored(*scores: float, failed: int = 0) -> list[Row]:
    return [Row(i, "acc", s, "0", "0", "no answer" if i < failed else None) for i, s in enumerate(scores)]


def test_both_sides_answered_the_same_rows_so_the_difference_is_paired() -> None:
    base = {"one": scored(*[1.0] * 40), "two": scored(*[1.0] * 30, *[0.0] * 10)}
    student = {"one": scored(*[1.0] * 30, *[0.0] * 10), "two": scored(*[1.0] * 30, *[0.0] * 10)}
    found = held_against_base(base, student, seed=0, resamples=2000)
    one, two = found["tasks"]
    assert (one["base"]["value"], one["student"]["value"], one["difference"]["difference"]) == (1.0, 0.75, -0.25)
    assert (one["difference"]["wins"], one["difference"]["losses"]) == (0, 10)
    assert one["difference"]["p"] == pytest.approx(2 / 2**10, rel=1e-4)  # McNemar, by hand
    assert one["difference"]["p_holm"] == pytest.approx(2 * 2 / 2**10, rel=1e-4)
    assert two["difference"]["difference"] == 0.0
    everything = found["all"]
    assert (everything["rows"], everything["loss"]["value"]) == (80, 0.125)
    assert everything["loss"]["low"] == -everything["difference"]["high"]
    assert 0.125 < everything["loss"]["high"] < 0.25
    assert everything["difference"]["test"] == "exact McNemar"


def judged(most: float, numbers: dict[str, Any]) -> dict[str, Any]:
    (condition,) = gate({"max_general_loss": most}, numbers, {"student": []})["conditions"]
    return condition  # type: ignore[no-any-return]


def test_the_gate_judges_the_upper_end_of_the_loss_and_fails_what_it_cannot_judge() -> None:
    def general(base: list[Row], student: list[Row]) -> dict[str, Any]:
        return {"general": held_against_base({"t": base}, {"t": student}, seed=0, resamples=2000)}

    kept = general(scored(*[1.0] * 100), scored(*[1.0] * 97, *[0.0] * 3))
    upper = kept["general"]["all"]["loss"]["high"]
    assert 0.03 < upper < 0.1
    assert judged(upper, kept)["holds"]
    found = judged(0.03, kept)  # the point estimate would pass
    assert not found["holds"]
    assert "100.0 % before training, 97.0 % after: 3.0 points lost" in found["note"]
    unknown = judged(1.0, general(scored(*[0.0] * 9, failed=2), scored(*[1.0] * 9)))
    assert (unknown["holds"], unknown["value"]) == (False, None)
    assert "the base student failed on 2 rows" in unknown["note"]
    assert "5 rows are too few" in judged(1.0, general(scored(*[1.0] * 5), scored(*[1.0] * 5)))["note"]
    assert "was not measured" in judged(1.0, {})["note"]


def test_what_ships_is_sound() -> None:
    found = {task.name: task for task in find_tasks([], None, Path())}
    assert {name: (task.rows, task.asked) for name, task in found.items()} == {
        "llm_distill_arithmetic": (60, True),
        "llm_distill_common_knowledge": (60, False),
        "llm_distill_grammar": (60, False),
    }
    read = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in BUILT_IN.glob("*.jsonl")
    }
    for row in read["arithmetic"]:
        _, _, a, sign, b = row["question"].rstrip("?").split()
        assert int(row["answer"]) == {"plus": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}[sign]
    for name in ("common_knowledge", "grammar"):
        rows = read[name]
        assert all(len(set(row["choices"])) == len(row["choices"]) > row["answer"] for row in rows)
        places = [row["answer"] for row in rows]  # no model gains by always naming one place
        assert max(map(places.count, places)) < 0.6 * len(places)
    assert find_tasks(["grammar"], None, Path()) == find_tasks(["llm_distill_grammar"], None, Path())


def test_a_loss_beyond_all_doubt_is_named() -> None:
    """With thousands of rows lost, the exact p is smaller than any number."""
    known = [Row(i, "acc", 1.0, "", "") for i in range(2000)]
    lost = [row._replace(score=0.0) for row in known]
    found = held_against_base({"sums": known, "pairs": known}, {"sums": lost, "pairs": known}, seed=7, resamples=200)
    assert found["tasks"][0]["difference"]["p_holm"] == 0.0
    assert any(text.startswith("Sums: ") for _, text in findings({"general": found}))


def recipe(desk: Desk, general: Any, **keys: Any) -> Path:
    desk.seeds(ROWS)
    student = {"transformers": {"model": "org/student"}}
    settings: dict[str, Any] = {
        "models": {"teacher": TEACHER, "student": student},
        "held_out": {"share": 0.3},
        "train": "sft",
    }
    return desk.recipe(**settings | {"evaluate": {"general": general}} | keys)


@needs_harness
@pytest.mark.parametrize(
    ("general", "said"),
    [
        ({"tasks": ["colour"], "include": "own"}, "no task 'colour' here. Did you mean 'colours'"),
        ({"tasks": ["own/none.yaml"]}, "no such file: .*own/none.yaml"),
        ({"include": "nowhere"}, "no such folder: .*nowhere"),
        ({"tasks": ["own/hub.yaml"]}, "its rows come from 'cais/mmlu'; .* local files"),
        ({"tasks": ["own/lost.yaml"]}, r"no such file: .*gone\.jsonl"),
        ({"tasks": ["own/many.yaml"]}, "many.yaml: a group; name its tasks"),
        ({"tasks": ["own/ppl.yaml"]}, "output_type is 'loglikelihood_rolling', which gives no score for each row"),
        ({"tasks": ["own/split.yaml"]}, "scored on the split 'validation', and its data_files have test"),
        ({"tasks": ["own/loop.yaml"]}, "it includes itself"),
        ({"tasks": ["own/colours.yaml", "own/colours.yaml"]}, "the task colours is named twice"),
        ({"limit": 0}, "evaluate.general.limit: .* greater than or equal to 1"),
        ({"task": ["grammar"]}, "evaluate.general: no key 'task'. Did you mean 'tasks'?"),
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(desk: Desk, general: Any, said: str) -> None:
    hub = CHOICE | {"task": "hub", "dataset_path": "cais/mmlu"}
    lost = CHOICE | {"task": "lost", "dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}
    ppl = CHOICE | {"task": "ppl", "output_type": "loglikelihood_rolling"}
    split = CHOICE | {"task": "split", "test_split": None, "validation_split": "validation"}
    own = tasks(desk.folder / "own", CHOICE, hub, lost, ppl, split)
    (own / "many.yaml").write_text("group: many\ntask: [colours]\n")
    if "own/loop.yaml" in general.get("tasks", ()):
        (own / "loop.yaml").write_text("include: loop.yaml\ntask: loop\n")
    with pytest.raises(UserError, match=said):
        load(recipe(desk, general))


@needs_harness
def test_what_does_not_fit_the_recipe_is_refused(desk: Desk) -> None:
    with pytest.raises(UserError, match="general: it holds the trained student against its base"):
        load(recipe(desk, {}, train=None))
    with pytest.raises(
        UserError, match=r"ship\.max_general_loss: general ability is not measured; add `general: \{\}`"
    ):
        load(recipe(desk, None, ship={"max_general_loss": 0.05}))
    served = {"teacher": TEACHER, "student": {"vllm": {"model": "org/student"}}}
    with pytest.raises(
        UserError, match=r"llm_distill_grammar: how likely .* is vllm; .* `tasks: \[llm_distill_arithmetic\]`"
    ):
        load(recipe(desk, {}, models=served))
    plan = load(recipe(desk, {"tasks": ["arithmetic"], "limit": 10}, models=served))
    (asked,) = (one for one in estimate(plan)["others"] if one["plug"] == "general")
    assert (asked["requests"], asked["completion_tokens_at_most"], asked["cost_usd_at_most"]) == (20, 160, 0.0)


@needs_harness
def test_every_file_that_decides_a_score_is_noted(desk: Desk) -> None:
    own = tasks(desk.folder / "own", CHOICE)
    (own / "utils.py").write_text("def pick(doc):\n    return doc['answer']\n")
    (own / "mine.yaml").write_text("include: colours.yaml\ntask: mine\ndoc_to_target: !function utils.pick\n")
    path = recipe(desk, {"tasks": ["own/mine.yaml"]})
    (task,) = load(path).evaluate.general.found  # type: ignore[union-attr]
    assert {file.name for file in task.files} == {"colours.yaml", "mine.yaml", "utils.py", "colours.jsonl"}
    before = load(path).digest
    for name in ("colours.jsonl", "utils.py", "colours.yaml"):
        with (own / name).open("a") as file:
            file.write("\n")
        assert before != (before := load(path).digest), name


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Path, list[object]]:
    """A run of a tiny student with both kinds of tasks; what it tried to reach."""
    pytest.importorskip("lm_eval")
    desk, reached = Desk(tmp_path_factory.mktemp("general")), list[object]()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.delenv(name, raising=False)
        patch.setattr(socket, "getaddrinfo", lambda *a, **_: reached.append(a))
        tasks(desk.folder / "own", CHOICE, WRITTEN)
        general = {"include": "own"}
        evaluate = {"resamples": 200, "general": general}
        run = finish(desk.folder, evaluate=evaluate, ship={"max_general_loss": 1.0}, train={"sft": {"epochs": 1}})
    return desk, run, reached


def test_the_report_has_what_was_measured(measured: tuple[Desk, Path, list[object]]) -> None:
    import jsonschema

    _, run, reached = measured
    assert not reached
    report = json.loads((run / "report/report.json").read_text())
    schema = json.loads((Path(load.__code__.co_filename).parent / "report/schema.json").read_text())
    jsonschema.validate(report, schema)
    general = report["general"]
    assert [(task["name"], task["rows"], task["metric"]) for task in general["tasks"]] == [
        ("colours", 6, "acc"),
        ("echo", 6, "exact_match"),
    ]
    assert general["all"]["rows"] == 12
    assert not general["shipped"]
    page = (run / "report/report.html").read_text()
    assert 'id="general"' in page
    assert "General ability: " in (run / "report/report.md").read_text()


def test_nothing_is_measured_or_asked_twice(measured: tuple[Desk, Path, list[object]]) -> None:
    desk, run, _ = measured
    kept = run / "eval/general/student.json"
    before, base = kept.read_bytes(), (run / "eval/general/base_zero_shot.json").stat().st_mtime_ns
    kept.unlink()  # as if it had been stopped there
    summary = desk.here(desk.folder / "job.yaml")
    assert summary["stages"]["evaluate"]["ran"]
    assert summary["asked"] == 0  # the answers lie in the ledger
    assert kept.read_bytes() == before
    assert (run / "eval/general/base_zero_shot.json").stat().st_mtime_ns == base


def test_every_row_is_what_the_harness_says_of_the_same_weights(measured: tuple[Desk, Path, list[object]]) -> None:
    """Its own HFLM, its own loading, its own loop; the rows of ours, of the untrained student."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    desk, run, _ = measured
    lm = HFLM(pretrained=str(desk.folder / "base"), dtype="float32", device="cpu", batch_size=1)
    own = desk.folder / "own"
    absolute = [
        config
        | {"dataset_kwargs": {"data_files": {"test": str(own / f"{config['task']}.jsonl")}, "cache_dir": str(own)}}
        for config in (CHOICE, WRITTEN)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)  # which asks pip and git
        theirs = simple_evaluate(
            lm, tasks=absolute, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
        )
    ours = msgspec.json.decode((run / "eval/general/base_zero_shot.json").read_bytes())["tasks"]
    for name, metric in (("colours", "acc"), ("echo", "exact_match")):
        expected = [(one["doc_id"], metric, float(one[metric])) for one in theirs["samples"][name]]
        assert [tuple(row[:3]) for row in ours[name]] == expected
    said = [one["filtered_resps"][0] for one in theirs["samples"]["echo"]]
    assert [row[4] for row in ours["echo"]] == said
    assert any(said)


@needs_harness
def test_a_task_that_no_rows_can_be_read_off_is_the_users_mistake(desk: Desk) -> None:
    pytest.importorskip("lm_eval")
    from llm_distill.evals import harness

    broken = CHOICE | {"task": "broken", "doc_to_text": "{{ thing | nofilter }}"}
    corpus = CHOICE | {
        "task": "corpus",
        "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}],
    }
    own = tasks(desk.folder / "own", broken, corpus)
    served = harness.Served(lambda questions: [], None, None)
    served.loglikelihood = lambda requests: [(-1.0, False)] * len(requests)  # type: ignore[method-assign]
    for name, why in (
        ("broken", "no task can be made of it: .*nofilter"),
        ("corpus", "first metric, f1, gives no number"),
    ):
        with pytest.raises(UserError, match=why):
            harness.measure(find_tasks([name], own, own), served, limit=None, few_shot=None, chat=False)
