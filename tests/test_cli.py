"""The command line as one meets it: its help, and what it says where somebody is new to it."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from typing import cast

import pytest
import typer
from typer.core import TyperGroup

from llm_distill import cli, cli_help
from llm_distill.report.words import usd
from tests.conftest import ROOT, Desk
from tests.mock_api import MockApi
from tests.written import read


def commands(group: TyperGroup, above: str = "") -> list[str]:
    """Every command, as it is typed."""
    found = [f"{above} {name}".strip() for name in group.commands]
    inner = [(name, of) for name, of in group.commands.items() if isinstance(of, TyperGroup)]
    return found + [one for name, of in inner for one in commands(of, name)]


ROOT_GROUP = cast(TyperGroup, typer.main.get_command(cli.app))
COMMANDS = commands(ROOT_GROUP)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_the_command_line_takes(desk: Desk, command: str) -> None:
    said = desk.typed(*command.split(), "--help")
    assert "Exit codes: 0 done" in said
    assert "<bool>" not in said  # a flag takes no value
    for example in cli_help.EXAMPLES[command]:
        assert f"llm-distill {example}" in said
        assert example.startswith(command)
        read(shlex.split(example))


def test_help_lists_every_command_under_a_heading(desk: Desk) -> None:
    said = desk.typed("--help")
    shown = [name for names in cli_help.PANELS.values() for name in names]
    assert sorted(shown) == sorted(ROOT_GROUP.commands)
    assert all(f"─ {panel} ─" in said for panel in cli_help.PANELS)
    assert "─ Commands ─" not in said
    assert [said.index(f"│ {name} ") for name in shown] == sorted(said.index(f"│ {name} ") for name in shown)


def test_the_name_of_an_extra_is_no_markup(desk: Desk) -> None:
    assert "Needs llm-distill[schedule]." in desk.typed("jobs", "serve", "--help")
    assert "[NAME=]PLUG:MODEL" in desk.typed("eval", "--help")


def test_help_is_quick() -> None:
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "llm_distill.cli", "--help"], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.5


@pytest.fixture
def tone(desk: Desk) -> Desk:
    """A workspace with the starter's run."""
    desk.typed("new", "tone")
    desk.typed("run", "jobs/tone.yaml")
    return desk


def test_a_recipe_is_found_by_its_name_and_a_run_by_its_recipe(tone: Desk) -> None:
    for near in ("tone", "jobs/tone"):
        assert "Did you mean jobs/tone.yaml?" in tone.typed("check", near, code=2)
    assert "report.html" in tone.typed("report", "jobs/tone.yaml")
    assert "100.0 %" in tone.typed("trend", "jobs/tone.yaml")
    assert "Did you mean 'tone'?" in tone.typed("report", "tome", code=2)


def test_a_key_within_a_key_is_named_with_those_there_are(tone: Desk) -> None:
    said = tone.typed("check", "jobs/tone.yaml", "-s", "answers.budget=3", code=2)
    assert "answers: no key 'budget'. Did you mean 'budget_usd'?" in said
    said = tone.typed("check", "jobs/tone.yaml", "-s", "evaluate.slice=[a]", code=2)
    assert "evaluate: no key 'slice'. Did you mean 'slices'?" in said
    said = tone.typed("check", "jobs/tone.yaml", "-s", "evaluate.speed.row=3", code=2)
    assert "evaluate.speed: no key 'row'. Did you mean 'rows'?" in said


def test_runs_are_listed_by_time_and_stages_by_their_order(tone: Desk) -> None:
    (first,) = json.loads(tone.typed("runs", "--json"))
    assert first["stages"] == ["prompts", "answers", "filter", "evaluate", "report"]
    others = [tone.typed("run", "jobs/tone.yaml", "-s", f"seed={seed}") for seed in (1, 2, 3)]
    os.utime(tone.folder / first["run"] / "run.json")
    listed = [one["run"] for one in json.loads(tone.typed("runs", "--json"))]
    assert listed[:-1] == [next(x for x in said.splitlines() if "Run: " in x).split("Run: ")[1] for said in others]
    assert listed[-1] == first["run"]


def test_rows_that_do_not_fit_are_not_taken_for_none(tone: Desk) -> None:
    assert "1 of 1 rows\n" in tone.typed("show", "tone", "dropped")
    assert "0 of 0 rows that fit --where" in tone.typed("show", "tone", "kept", "--where", "label == 'neither'")
    assert "1 of 11 rows\n" in tone.typed("show", "tone", "kept", "--limit", "1")


def test_refilter_says_how_to_go_on(tone: Desk) -> None:
    said = tone.typed("refilter", "tone", "-s", "filter.confidence.min=0.8")
    (line,) = (line for line in said.splitlines() if line.startswith("Go on with: llm-distill "))
    command = shlex.split(line.removeprefix("Go on with: llm-distill ").replace("RECIPE", "jobs/tone.yaml"))
    run = said.strip().splitlines()[-1].removeprefix("Run: ")
    assert f"Run: {run}" in tone.typed(*command)


def test_a_run_that_its_name_does_not_mean_says_so(tone: Desk) -> None:
    assert "means a later one" not in tone.typed("run", "jobs/tone.yaml")
    other = tone.typed("run", "jobs/tone.yaml", "--until", "filter", "-s", "prompts.seeds.limit=8")
    assert "means a later one" not in other
    later = next(line for line in other.splitlines() if line.startswith("Run: ")).removeprefix("Run: ")
    assert f"`tone` as a run's name means a later one, {later}" in tone.typed("run", "jobs/tone.yaml")


def test_options_of_jobs_are_not_lost_before_a_command(tone: Desk) -> None:
    for options, name in ((["-w", "other"], "--workspace"), (["--json"], "--json"), (["--jobs", "x"], "--jobs")):
        assert f"jobs: {name} goes behind run" in tone.typed("jobs", *options, "run", code=2)
    assert not (tone.folder / "other").exists()


def test_a_wrong_recipe_among_jobs_is_named(tone: Desk) -> None:
    (tone.folder / "jobs" / "odd.yaml").write_text("name: odd\nship: {min_kept_share: 1}\n", encoding="utf-8")
    assert "wrong: jobs/odd.yaml: " in tone.typed("jobs")
    assert "llm-distill: jobs/odd.yaml: " in tone.typed("jobs", "run", code=2)
    assert json.loads(tone.typed("jobs", "--json"))["wrong"][0].startswith("jobs/odd.yaml: ")
    assert "jobs/odd.yaml: jobs/odd.yaml" not in tone.typed("jobs", "check", code=2)


def test_costs_tell_models_apart_and_know_what_eval_spent(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": "a", "label": "positive"}, {"prompt": "b", "label": "negative"}], "rows.jsonl")
    models = {name: {"openai_api": {"model": name, "base_url": api.url, "api_key_env": None}} for name in NAMES}
    (desk.folder / "models.yaml").write_text(json.dumps(models), encoding="utf-8")
    desk.typed("eval", "--model", "models.yaml", "--data", "rows.jsonl", "--labels", "positive,negative")
    said = desk.typed("costs", "--by", "teacher")
    assert all(f":{name} " in said for name in NAMES)
    assert [row["stage"] for row in json.loads(desk.typed("costs", "--by", "stage", "--json"))["rows"]] == ["eval"]


@pytest.mark.parametrize("prices", [None, {"prompt": 0, "completion": 0}])
def test_costs_say_how_many_answers_have_no_known_price(
    desk: Desk, api: MockApi, prices: dict[str, int] | None
) -> None:
    desk.seeds([{"prompt": "a"}, {"prompt": "b"}])
    endpoint = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "prices_usd": prices}
    desk.run(desk.recipe(models={"teacher": {"openai_api": endpoint}}))
    assert ("Not in it: 2 answers" in desk.typed("costs")) == (prices is None)
    assert json.loads(desk.typed("costs", "--since", "2000-01-01", "--json"))["unpriced"] == (0 if prices else 2)
    assert "Not in it" not in desk.typed("costs", "--since", "2999-01-01")


NAMES = ("mock-large", "mock-small")


@pytest.mark.parametrize(
    ("dollars", "said"),
    [
        (0, "$0.00"),
        (12.3456, "$12.35"),
        (0.01, "$0.01"),
        (0.0042, "$0.0042"),
        (8.54e-5, "$0.000085"),
        (None, "unknown"),
    ],
)
def test_dollars_are_written_as_people_write_them(dollars: float | None, said: str) -> None:
    assert usd(dollars) == said
