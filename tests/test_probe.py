"""The same frozen rows, asked anew by every run: a teacher that has moved behind its name is seen, a quiet one is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import UserError
from llm_distill.estimate import estimate
from llm_distill.forget import remember
from llm_distill.probe import looks
from llm_distill.recipe import load
from llm_distill.records import Message, Prompt
from llm_distill.sets.shelf import forgotten
from llm_distill.store import RunFolder
from tests.conftest import Desk
from tests.mock_api import LABELS, MockApi, label_of
from tests.report.test_brief import check

ROWS = [f"frozen row {i}" for i in range(30)]


def probed(desk: Desk, api: MockApi, seed: int = 0, **keys: Any) -> tuple[Path, dict[str, Any]]:
    """A run of the recipe as it stands, and its last look; another seed makes another run."""
    desk.seeds([{"prompt": f"asked {i}", "label": label_of(f"asked {i}")} for i in range(4)])
    desk.seeds([{"prompt": row, "label": label_of(row)} for row in ROWS], "probe.jsonl")
    teacher = {"openai_api": {"base_url": api.url, "api_key_env": None, "model": "mock-large"}}
    settings: dict[str, Any] = {"models": {"teacher": teacher}, "probe": {"file": "probe.jsonl"}, "seed": seed}
    summary = desk.here(desk.recipe(**settings | keys))
    assert summary["status"] == "done", summary
    return Path(summary["run"]), dict(looks(RunFolder(Path(summary["run"])))[-1].about)


def asks(text: str) -> Prompt:
    """A row that asks this."""
    return Prompt("r", "p", (Message("user", text),))


def turned(api: MockApi, rows: set[int]) -> None:
    """From now on these rows have the other label."""
    lines = {ROWS[i] for i in rows}
    api.says = lambda _body, line: LABELS[1 - LABELS.index(label_of(line))] if line in lines else None


def test_a_quiet_teacher_is_asked_anew_by_every_run_and_nothing_is_said(desk: Desk, api: MockApi) -> None:
    first, said = probed(desk, api)
    assert {api.paid[row] for row in ROWS} == {1}
    assert said["compared"] == []
    assert said["served"] == {"teacher": ["mock-large-2026-01-01"]}
    assert all(body["temperature"] == 0 for body in api.bodies)
    probed(desk, api)
    assert {api.paid[row] for row in ROWS} == {1}, "the same run asks once"
    again, said = probed(desk, api, seed=1)
    assert again != first
    assert {api.paid[row] for row in ROWS} == {2}, "another run asks anew, whatever the ledger holds"
    assert {api.paid[f"asked {i}"] for i in range(4)} == {1}, "and nothing else"
    (one,) = said["compared"]
    assert (one["kind"], one["rows"], one["agreement"]["value"]) == ("previous", 30, 1.0)
    assert one["agreement"]["low"] < 0.9
    assert said["said"] == one["said"] == one["moved"] == []
    report = json.loads((again / "report/report.json").read_text())
    assert report["probe"]["compared"][0]["rows"] == 30
    assert report["cost"]["stages"]["probe"]["answered"] == 30


def test_an_alias_that_moved_is_named_and_so_is_what_has_changed(desk: Desk, api: MockApi) -> None:
    probed(desk, api)
    positive = [i for i, row in enumerate(ROWS) if label_of(row) == "positive"]
    api.version = "2026-06-01"
    turned(api, set(positive[:10]))
    run, about = probed(desk, api, seed=1)
    (one,) = about["compared"]
    assert one["moved"] == ["teacher"]
    assert one["agreement"]["value"] == pytest.approx(20 / 30)
    assert one["labels"] == {
        "negative": [30 - len(positive), 40 - len(positive)],
        "positive": [len(positive), len(positive) - 10],
    }
    labels, accuracy = one["tests"]
    assert labels["p"] == accuracy["p"] == pytest.approx(2 / 2**10), "ten rows, all one way: McNemar's exact test"
    assert accuracy["difference"] == pytest.approx(-1 / 3)
    assert accuracy["high"] < 0
    served, agreed, *changed = about["said"]
    assert "models.teacher is served by mock-large-2026-06-01, and was by mock-large-2026-01-01 since 20" in served
    assert "agree to 66.7 % (48.8 to 80.8) with its own since" in agreed
    assert [line.split(": ")[1].split(" (")[0] for line in changed] == ["how often it gives each label", "its accuracy"]
    report = json.loads((run / "report/report.json").read_text())
    assert report["probe"]["said"] == about["said"]
    assert "Probe: models.teacher is served by mock-large-2026-06-01" in (run / "report/report.md").read_text()
    assert check(report) == []


def test_restlessness_without_a_lean_is_no_change(desk: Desk, api: MockApi) -> None:
    probed(desk, api)
    by = {label: [i for i, row in enumerate(ROWS) if label_of(row) == label] for label in LABELS}
    turned(api, {by["positive"][0], by["negative"][0]})
    _, about = probed(desk, api, seed=1)
    (one,) = about["compared"]
    assert one["agreement"]["value"] == pytest.approx(28 / 30)
    assert one["tests"][0]["p"] == 1.0
    assert about["said"] == []


def test_a_slow_drift_is_seen_against_the_first(desk: Desk, api: MockApi) -> None:
    positive = [i for i, row in enumerate(ROWS) if label_of(row) == "positive"]
    for step in range(5):
        turned(api, set(positive[: 3 * step]))
        _, about = probed(desk, api, seed=step)
    previous, first = about["compared"]
    assert (previous["kind"], first["kind"]) == ("previous", "first")
    assert previous["said"] == []
    assert previous["agreement"]["value"] == pytest.approx(27 / 30)
    assert any("each label" in line for line in first["said"])


def test_other_questions_are_not_compared(desk: Desk, api: MockApi) -> None:
    probed(desk, api)
    _, about = probed(desk, api, answers={"max_tokens": 9})
    assert about["compared"] == []
    _, about = probed(desk, api, answers={"max_tokens": 9}, seed=1)
    assert len(about["compared"]) == 1
    teacher = {"openai_api": {"base_url": api.url, "api_key_env": None, "model": "mock-small"}}
    _, about = probed(desk, api, models={"teacher": teacher})
    assert about["compared"] == [], "another teacher by the recipe's own word is no drift"


def test_what_a_stopped_tick_paid_for_is_not_asked_again(desk: Desk, api: MockApi) -> None:
    api.faults = {ROWS[3]: ["400:gone"] * 9}
    keys: dict[str, Any] = {"answers": {"max_tokens": 8, "max_failed": 0.5}}
    desk.seeds([{"prompt": "asked", "label": "positive"}])
    desk.seeds([{"prompt": row} for row in ROWS], "probe.jsonl")
    teacher = {"openai_api": {"base_url": api.url, "api_key_env": None, "model": "mock-large"}}
    recipe = desk.recipe(models={"teacher": teacher}, probe={"file": "probe.jsonl"}, **keys)
    summary = desk.here(recipe)
    assert summary["owed"] == 1
    assert looks(RunFolder(Path(summary["run"]))) == []
    api.faults = {}
    summary = desk.here(recipe)
    assert summary["owed"] == 0
    (look,) = looks(RunFolder(Path(summary["run"])))
    assert len(look.answers) == 30
    assert {api.paid[row] for row in ROWS} == {1}
    desk.here(recipe, first="probe")
    assert {api.paid[row] for row in ROWS} == {2}, "--from probe asks anew"
    assert len(looks(RunFolder(Path(summary["run"])))) == 2


def test_held_out_rows_are_frozen_by_their_ids_and_counted_by_check(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": f"a row {i}", "label": label_of(f"a row {i}")} for i in range(80)])
    teacher = {
        "openai_api": {
            "base_url": api.url,
            "api_key_env": None,
            "model": "mock-large",
            "prices_usd": {"prompt": 1, "completion": 2},
        }
    }
    keys: dict[str, Any] = {
        "models": {"teacher": teacher},
        "held_out": {"share": 0.5},
        "answers": {"max_tokens": 8, "budget_usd": 9},
    }
    recipe = desk.recipe(probe={"rows": 12}, **keys)
    counted = estimate(load(recipe))
    (probe,) = [one for one in counted["others"] if one["plug"] == "probe"]
    assert (probe["requests"], probe["completion_tokens_at_most"]) == (12, 96)
    assert probe["cost_usd_at_most"] > 0
    without = estimate(load(desk.recipe(name="plain", **keys)))
    assert counted["cost_usd_at_most"] == pytest.approx(
        without["cost_usd_at_most"] + probe["cost_usd_at_most"], abs=1e-4
    )
    summary = desk.here(recipe)
    held = [row["row_id"] for row in desk.rows(summary, "held_out")]
    (look,) = looks(RunFolder(Path(summary["run"])))
    assert {a.prompt.row_id for a in look.answers} == set(sorted(held)[:12])
    assert load(recipe).digest == load(desk.recipe(**keys)).digest, "a probe changes nothing that is made"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"probe": {"rows": 5}}, "probe: there are no held-out rows to ask; add `held_out"),
        ({"probe": {"rows": 5, "file": "seeds.jsonl"}}, "write either `file: rows.jsonl` or `rows: 50`"),
        ({"probe": {"row": 5}}, "probe: no key 'row'. Did you mean 'rows'?"),
        ({"probe": {"file": "none.jsonl"}}, "probe.file: no such file"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(desk: Desk, keys: dict[str, Any], says: str) -> None:
    desk.seeds([{"prompt": "a", "label": "positive"}])
    with pytest.raises(UserError, match=says.split("`", maxsplit=1)[0].replace("?", r"\?")):
        load(desk.recipe(**keys))


def test_a_frozen_row_that_was_forgotten_is_asked_no_more(desk: Desk, api: MockApi) -> None:
    probed(desk, api)
    frozen = ROWS[3]
    remember(desk.folder / "data", [asks(frozen)])
    _, said = probed(desk, api, seed=1)
    assert api.paid[frozen] == 1
    assert {api.paid[row] for row in ROWS if row != frozen} == {2}
    assert said["rows"] == said["compared"][0]["rows"] == 29
    found = estimate(load(desk.folder / "job.yaml"), forgotten=forgotten(desk.folder / "data"))
    assert [one["requests"] for one in found["others"] if one["plug"] == "probe"] == [29]
    remember(desk.folder / "data", [asks(row) for row in ROWS])
    with pytest.raises(UserError, match=r"every row of .*probe\.jsonl was forgotten; name other rows"):
        probed(desk, api, seed=2)
