"""`run --log json` and `--metrics`: what a machine reads of a run, and what it must not read."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from llm_distill import store
from llm_distill.metrics import Metrics
from llm_distill.scrub import scrubbed
from llm_distill.watching import JsonLog
from tests.conftest import Desk
from tests.mock_api import MockApi, serving
from tests.sets.nights import rows, text

KEY = "sk-planted-0123456789abcdef"


def _recipe(desk: Desk, api: MockApi, **keys: Any) -> Path:
    prices = {"prompt": 0.15, "completion": 0.6}
    how = {"model": "mock-large", "base_url": api.url, "api_key_env": "MY_API_KEY", "prices_usd": prices}
    return desk.recipe(**{"models": {"teacher": {"openai_api": how}}, "data_set": "tone", "filter": ["empty"]} | keys)


def _run(desk: Desk, *arguments: str | Path) -> tuple[int, str, list[dict[str, Any]]]:
    process = desk.command("run", *arguments, "--log", "json", MY_API_KEY=KEY)
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err, [json.loads(line) for line in err.splitlines()]


def test_a_run_tells_machines_what_it_did(desk: Desk) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    desk.seeds(rows(range(12)))
    file = desk.folder / "llm.prom"
    with serving(key=KEY) as api:
        api.faults = {text(3): ["400"], text(4): [f"500:key {KEY} is odd"]}  # a server that repeats what it was sent
        recipe = _recipe(desk, api, answers={"max_tokens": 8, "max_failed": 0.5})
        code, said, log = _run(desk, recipe, "--metrics", file)
        tokens = sum(len(line.split()) for line in api.paid) * 150 + api.paid.total() * 600
    assert code == 0
    assert [e["stage"] for e in log if e["event"] == "stage" and e["state"] == "done"][:1] == ["prompts"]
    for line in log:
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert (line["level"], line["recipe"]) == ("info", "job")
        assert line["run"] == log[-1]["run"]
        assert line["event"] in ("begin", "stage", "rows", "say", "end")
        assert "stage" in line or line["event"] in ("begin", "end")
    assert log[-1]["event"] == "end"
    assert (log[-1]["status"], log[-1]["asked"], log[-1]["owed"]) == ("done", 12, 1)
    families = {family.name: family for family in parser.text_string_to_metric_families(file.read_text())}

    def value(name: str, **labels: str) -> float:
        return next(
            float(s.value)
            for f in families.values()
            for s in f.samples
            if s.name == name and labels.items() <= s.labels.items()
        )

    _fit_for_the_textfile_collector(file.read_text())
    assert value("llm_distill_rows", status="ok") == 11
    assert value("llm_distill_rows", status="failed") == 1
    assert value("llm_distill_requests", outcome="failed") == 1
    assert value("llm_distill_spent_usd_total", stage="answers") == pytest.approx(tokens / 1e9)
    assert value("llm_distill_answer_seconds_count") == 11
    assert value("llm_distill_run_status", status="done") == 1
    assert value("llm_distill_running") == 0
    assert value("llm_distill_set_rows", set="tone", split="taught") == 11
    spent = next(line for line in file.read_text().splitlines() if line.startswith("llm_distill_spent_usd_total"))
    Metrics("job", file, desk.folder / "data", None).stage("answers", "running")
    assert spent in file.read_text(), "a counter is there while the next run goes on too"
    assert KEY not in said
    assert KEY not in file.read_text()
    assert not list(desk.folder.glob(".llm.prom*"))


def _fit_for_the_textfile_collector(text: str) -> None:
    """Prometheus' text format, version 0.0.4, as node_exporter reads files: it takes none with a time stamp or a family twice."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    helped = list[str]()
    seen = list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.append(line.split(" ", 3)[2])
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == helped[-1]
            assert name not in kinds
            kinds[name] = kind
        else:
            found = re.fullmatch(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (\S+)', line)
            assert found, line
            assert math.isfinite(float(found[3]))
            family = re.sub(r"_(bucket|count|sum)$", "", found[1]) if kinds.get(found[1]) is None else found[1]
            assert family == helped[-1]
            assert line.rpartition(" ")[0] not in seen
            seen.append(line.rpartition(" ")[0])
    assert set(kinds) == set(helped)
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not name.endswith(("_created", "_ms", "_milliseconds")), name
        assert "time" not in name or name.endswith("_seconds"), name


def test_a_line_is_json_also_where_a_loss_is_none_of_its_numbers() -> None:
    """As a browser, jq and a log collector read it: Python's own reader takes NaN."""

    def none(name: str) -> None:
        raise AssertionError(name)

    log = JsonLog("job", stream := StringIO())
    log.rows(1, 8, {"loss": math.nan, "of": [math.inf, {"loss": -math.inf}], "rate": 0.5})
    found = json.loads(stream.getvalue(), parse_constant=none)
    assert (found["loss"], found["of"], found["rate"]) == (None, [None, {"loss": None}], 0.5)


def test_a_bug_is_told_as_json_and_no_run_goes_on_for_ever(desk: Desk) -> None:
    """As a collector reads it: its traceback is a part of a line, and it names no secret. Python's exit code stands."""
    pytest.importorskip("prometheus_client")
    desk.seeds(rows(range(3)))
    (desk.folder / "odd.py").write_text(
        "def odd(answers):\n    raise LookupError('no such key: ' + __import__('os').environ['MY_API_KEY'])\n"
    )
    recipe = desk.recipe(filter=[{"odd:odd": {"max": 1}}])
    code, said, log = _run(desk, recipe, "--metrics", desk.folder / "m.prom")
    assert code == 1, said
    assert (log[-2]["event"], log[-2]["status"], log[-2]["reason"]) == ("end", "failed", "a bug: LookupError")
    assert (log[-1]["event"], log[-1]["code"], log[-1]["level"]) == ("exit", 1, "error")
    assert "in odd\n" in log[-1]["traceback"]
    assert KEY not in said
    written = (desk.folder / "m.prom").read_text()
    assert 'llm_distill_running{recipe="job"} 0.0' in written
    assert 'status="failed"} 1.0' in written


def test_labels_are_escaped(desk: Desk) -> None:
    """Of a filter that the recipe itself names; with a quote, it would end the label, and the collector drop the file."""
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = Metrics('job "a\\b"\n', desk.folder / "m.prom", desk.folder, None)
    metrics.end({"status": "done"})
    text = (desk.folder / "m.prom").read_text()
    _fit_for_the_textfile_collector(text)
    names = {s.labels["recipe"] for family in parser.text_string_to_metric_families(text) for s in family.samples}
    assert names == {'job "a\\b"\n'}


def test_no_secret_is_told_when_everything_goes_wrong(desk: Desk) -> None:
    """The server refuses and repeats the key; the recipe has it where its name belongs."""
    desk.seeds(rows(range(3)))
    with serving(key="another") as api:
        api.says = lambda _body, _prompt: KEY
        code, said, log = _run(desk, _recipe(desk, api), "--metrics", desk.folder / "m.prom")
    assert code == 2
    assert log[-2]["status"] == "failed"
    assert (log[-1]["event"], log[-1]["code"], log[-1]["level"]) == ("exit", 2, "error")
    assert log[-2]["level"] == "error"
    assert KEY not in said + (desk.folder / "m.prom").read_text()
    with serving() as api:
        api.faults = {text(n): [f"400:what is {KEY}?"] for n in range(3)}
        code, said, _ = _run(desk, _recipe(desk, api, name="echo"), "--metrics", desk.folder / "m.prom")
    assert code == 1
    assert KEY not in said + (desk.folder / "m.prom").read_text()
    models = {"teacher": {"openai_api": {"model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": KEY}}}
    code, said, log = _run(desk, desk.recipe(name="named", models=models))
    assert (code, log[-1]["code"]) == (2, 2)
    assert KEY not in said


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "PROXY_AUTH", "MY_CREDS", "SMTP_PASS", "OPS_HOOK", "LLM_DISTILL_LEDGER"]
)
def test_secrets_are_known_by_how_their_variables_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, KEY)
    assert scrubbed(f"what is {KEY}?") == "what is ***?"


def test_a_key_that_a_server_repeats_is_in_no_table_and_on_no_terminal(desk: Desk) -> None:
    """Nor is a part of it, where the server's words are cut."""
    desk.seeds(rows(range(3)))
    with serving(key=KEY) as api:
        api.faults = {text(n): [f"400:{'odd ' * (60 + 3 * n)}{KEY}"] for n in range(3)}
        said = desk.typed("run", _recipe(desk, api), code=1, MY_API_KEY=KEY)
    (table,) = desk.folder.glob("data/runs/job/*/answers.parquet")
    reasons = [row["reason"] for row in store.read_table(table)]
    assert all("odd ***" in reason for reason in reasons)
    ledger = b"".join(path.read_bytes() for path in desk.folder.glob("data/ledger.sqlite*"))
    assert not any(KEY[:8] in words for words in [said, *reasons, ledger.decode("latin-1")])


def test_a_secret_with_a_line_end_is_known_as_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file has it that a container's environment was made of."""
    monkeypatch.setenv("MY_API_KEY", f"{KEY}\n")
    assert scrubbed(f"what is {KEY}?") == "what is ***?"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:not@hunter2@127.0.0.1:1/db", "an @ in the password as %40"),
        ("postgresql://me:not@a:hunter2@127.0.0.1/db", "an @ in the password as %40"),
        ("postgresql://127.0.0.1:1/db?user=me&password=hunter2", "cannot open postgresql://127.0.0.1:1/db: "),
        ("mysql://me:hunter2@127.0.0.1/db", "mysql is not supported"),
    ],
)
def test_a_ledger_s_password_is_not_repeated(desk: Desk, url: str, words: str) -> None:
    if "postgresql" in url:
        pytest.importorskip("psycopg")
    desk.seeds(rows(range(3)))
    said = desk.llm_distill("run", desk.recipe(), code=2, LLM_DISTILL_LEDGER=url)
    assert words in said
    assert "hunter2" not in said


def test_metrics_have_a_place_to_go(desk: Desk) -> None:
    desk.seeds(rows(range(3)))
    assert "there is no folder" in desk.llm_distill("run", desk.recipe(), "--metrics", "no/where.prom", code=2)
