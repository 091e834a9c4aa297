"""`why`, `forget` and `costs`: who has to answer for a row or a dollar finds what there is to know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill import forget as forgetting
from llm_distill import ledger_texts
from llm_distill.ledger import Ledger
from llm_distill.ledger_spending import costs, total
from llm_distill.ledger_tables import ACCOUNTS
from llm_distill.limits import Charge, accounts, noted
from llm_distill.records import Entry, Message, Request, Sampling
from llm_distill.sets.adding import identity
from llm_distill.store import RunFolder, digest
from tests.conftest import Desk
from tests.mock_api import MockApi
from tests.sets.nights import night, rows, shelf, taught, text

PRICES = {"prompt": 0.15, "completion": 0.6}


def _hosted(api: MockApi) -> dict[str, Any]:
    how = {"model": "mock-large", "base_url": api.url, "api_key_env": None, "prices_usd": PRICES, "terms": "apache-2.0"}
    return {"teacher": {"openai_api": how}}


def _id(desk: Desk, summary: dict[str, Any], n: int) -> str:
    found: str = next(
        row["row_id"] for row in desk.rows(summary, "prompts") if row["messages"][-1]["content"] == text(n)
    )
    return found


def test_why_tells_the_whole_story_of_a_row(desk: Desk, api: MockApi) -> None:
    summary = night(desk, rows(range(6)), models=_hosted(api), filter=["empty", {"length": {"min": 2}}])
    night(desk, rows(range(4, 9)), models=_hosted(api), filter=["empty"])
    row_id = _id(desk, summary, 1)
    found = json.loads(desk.llm_distill("why", row_id[:12], "--json"))
    (run,) = found["runs"]
    assert found["prompt"]["messages"][-1]["content"] == text(1)
    assert (run["side"], run["source"]) == ("asked", "seeds (seeds.jsonl)")
    (asked,) = run["answer"]["asked"]
    assert (asked["served_model"], asked["fingerprint"]) == ("mock-large-2026-01-01", "fp_1")
    assert asked["nano_usd"] == pytest.approx(run["answer"]["cost_usd"] * 1e9, abs=1)
    assert run["answer"]["terms"]["apache-2.0"]["licence"]
    assert run["decision"] == {"dropped_by": None, "review": None}
    assert run["scores"]["length"] == 8
    said = desk.llm_distill("why", row_id)
    assert f"asks      {text(1)}" in said
    assert "request " in said
    assert "no student was trained on it" in said
    kept = json.loads(desk.llm_distill("why", _id(desk, summary, 3), "--json"))
    assert kept["sets"][0]["versions"] == {"taught": [1, 2]}
    assert "no row 'zz'" in desk.llm_distill("why", "zz", code=2)


def test_forget_takes_a_row_out_of_every_version_and_it_never_comes_back(desk: Desk) -> None:
    summary = night(desk, rows(range(6)))
    night(desk, rows(range(4, 9)))
    row_id = _id(desk, summary, 2)
    before = [path.read_bytes() for path in sorted((shelf(desk).path / "shards").iterdir())]
    found = json.loads(desk.llm_distill("forget", "--row", row_id[:10], "--dry-run", "--json"))
    assert (found["rows"], found["sets"]) == ([row_id], {"tone": 1})
    assert "say --yes" in desk.llm_distill("forget", "--row", row_id, code=2)
    assert [path.read_bytes() for path in sorted((shelf(desk).path / "shards").iterdir())] == before
    assert "tone@v3" in desk.llm_distill("forget", "--row", row_id, "--yes")
    assert shelf(desk).versions == [1, 2, 3]
    for version in (1, 2, 3):
        assert text(2) not in taught(desk, version)
    for path in shelf(desk).path.rglob("*.parquet"):
        assert row_id.encode() not in path.read_bytes()
    manifests = [shelf(desk).manifest(version) for version in (1, 2, 3)]
    assert manifests[2]["removed"] == [{"row_id": row_id, "why": "forgotten"}]
    assert [m["parent_id"] for m in manifests[1:]] == [identity(m) for m in manifests[:2]]
    summary = night(desk, rows([2, 20]))
    assert taught(desk)[-1] == text(20)
    run = json.loads((Path(summary["run"]) / "run.json").read_text())
    assert run["stages"]["prompts"]["forgotten"] == 1


def test_a_difference_across_a_forget_says_that_rows_were_forgotten(desk: Desk) -> None:
    summary = night(desk, rows(range(6)))
    night(desk, rows(range(4, 9)))
    for n in (2, 5):
        desk.llm_distill("forget", "--row", _id(desk, summary, n), "--yes")
    for one, other, lost in (("v1", "v2", (2, 2)), ("v1", "v4", (2, 0)), ("v2", "v3", (2, 1)), ("v4", "v1", (0, 2))):
        found = json.loads(desk.llm_distill("data", "diff", f"tone@{one}", f"tone@{other}", "--json"))
        assert (found["forgotten"]["before"], found["forgotten"]["after"]) == lost
        assert found["taught"]["removed"] == [] or one == "v4"
    said = desk.llm_distill("data", "diff", "tone@v1", "tone@v4")
    assert "taught     4 -> 7 rows: 3 added, 0 removed" in said
    assert "forgotten  rows that were taken out of every version: tone@v1 lost 2, tone@v4 0" in said
    row_ids = [arg for r in shelf(desk).rows(4, "taught") for arg in ("--row", r["row_id"])]
    desk.llm_distill("forget", *row_ids, "--yes")  # nothing is left
    assert "taught     0 -> 0 rows" in desk.llm_distill("data", "diff", "tone@v1", "tone")


@pytest.mark.parametrize("data_set", [None, "tone"])
def test_a_forgotten_row_of_a_file_stays_out_and_it_is_said(desk: Desk, api: MockApi, data_set: str | None) -> None:
    """It still stands in the seeds or in the file of held-out rows; the list of the forgotten has no word of it."""
    keys: dict[str, Any] = {"held_out": {"file": "gold.jsonl"}, "models": _hosted(api), "data_set": data_set}
    desk.seeds(rows([100, 101], label="positive"), "gold.jsonl")
    first = night(desk, rows(range(6)), **keys)
    gold = next(r["row_id"] for r in desk.rows(first, "held_out") if r["messages"][-1]["content"] == text(101))
    desk.llm_distill("forget", "--row", _id(desk, first, 3), "--row", gold, "--yes")
    assert text(3)[:8] not in (desk.folder / "data" / "sets" / "forgotten.jsonl").read_text()
    before = api.asked[text(3)]
    for again in (night(desk, rows(range(6)), **keys), night(desk, rows([1, 3, 20]), **keys)):
        asked = [row["messages"][-1]["content"] for row in desk.rows(again, "prompts")]
        held = [row["messages"][-1]["content"] for row in desk.rows(again, "held_out")]
        assert text(3) not in asked
        assert held == [text(100)]
        run = json.loads((Path(again["run"]) / "run.json").read_text())
        assert run["stages"]["prompts"]["forgotten"] == 2
    assert api.asked[text(3)] == before
    _, err = desk.command("run", desk.recipe(name="another", **keys, filter=["empty"])).communicate(timeout=120)
    assert "2 rows were forgotten (`llm-distill forget`) and stay out" in err
    desk.seeds(rows([101], label="positive"), "gold.jsonl")
    assert "every row of" in desk.llm_distill("check", desk.recipe(**keys), code=2)


@pytest.mark.postgres
def test_rows_are_forgotten_with_a_ledger_on_postgresql(
    desk: Desk, api: MockApi, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sa.create_engine(postgres.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.exec_driver_sql("CREATE DATABASE forgetting")
    engine.dispose()
    url = postgres.format("forgetting")
    monkeypatch.setenv("LLM_DISTILL_LEDGER", url)
    desk.seeds(rows(range(6)))
    desk.run(desk.recipe(data_set="tone", filter=["empty"], models=_hosted(api)))
    assert not (desk.folder / "data" / "ledger.sqlite").exists()
    spent = json.loads(desk.llm_distill("costs", "--json"))["total"]
    assert spent["requests"] == 6
    with closing(Ledger(url)) as ledger:  # somebody is still asking one of another run, and one's asker is gone
        ledger.claim("other/a", "m", {"k": Request((Message("user", f"judge this: {text(3)}"),), Sampling())})
    where = f"question == '{text(3)}'"
    done = json.loads(desk.llm_distill("forget", "--where", where, "--everywhere", "--yes", "--json"))
    assert (len(done["rows"]), done["versions"]) == (1, {"tone": 2})
    with closing(Ledger(url)) as ledger, ledger._transaction(reading=True) as db:
        left = [bytes(row.request) for row in db.exec_driver_sql("SELECT request FROM requests")]
        entries = str(db.exec_driver_sql("SELECT entry FROM requests").all())
    assert sum(text(3).encode() in request for request in left) <= 1
    assert len([request for request in left if b"judge this" not in request]) == 5
    assert text(3) not in entries
    assert text(3) not in taught(desk)
    assert json.loads(desk.llm_distill("costs", "--json"))["total"] == spent
    assert json.loads(desk.llm_distill("forget", "--where", where, "--everywhere", "--yes", "--json"))["rows"] == []


def test_forget_everywhere_leaves_no_word_of_a_row_and_keeps_what_it_cost(desk: Desk, api: MockApi) -> None:
    night(desk, rows(range(6)), models=_hosted(api))
    spent = json.loads(desk.llm_distill("costs", "--json"))["total"]
    where = f"question == '{text(3)}'"
    done = json.loads(desk.llm_distill("forget", "--where", where, "--everywhere", "--yes", "--json"))
    assert (len(done["rows"]), done["ledger"]) == (1, 1)
    with closing(Ledger(desk.folder / "data" / "ledger.sqlite")) as ledger, ledger._transaction(reading=True) as db:
        assert db.exec_driver_sql("SELECT count(*) FROM requests").scalar() == 5
    for path in (desk.folder / "data").rglob("*.parquet"):
        assert text(3) not in str(pq.read_table(path).to_pylist())
    for path in (desk.folder / "data").glob("ledger.sqlite*"):
        assert text(3).encode() not in path.read_bytes()
    assert json.loads(desk.llm_distill("costs", "--json"))["total"] == spent
    assert "Columns: " in desk.llm_distill("forget", "--where", "nothing == 1", code=2)


def test_forget_everywhere_reaches_what_a_killed_writer_left(desk: Desk) -> None:
    run = Path(night(desk, rows(range(6)))["run"])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive = (run / f".kept.parquet.{process}.tmp" for process in (dead.pid, os.getppid()))
    for path in (left, alive):
        path.write_bytes((run / "kept.parquet").read_bytes())
    desk.llm_distill("forget", "--where", f"question == '{text(3)}'", "--everywhere", "--yes")
    assert not left.exists()
    assert alive.exists()  # somebody is at it


def test_forget_everywhere_reaches_what_a_run_quotes_beside_its_tables(desk: Desk, api: MockApi) -> None:
    """A judge's reasons, and the row that a training shows. The student goes on to be the one that its stamp vouches for."""
    summary = night(desk, rows(range(6)), models=_hosted(api))
    run, shown = RunFolder(Path(summary["run"])), f"<s>{text(3)}⟦positive</s>⟧"
    finding = {"level": "note", "name": "example", "found": f"The first row: {shown}", "rows": []}
    other = {"level": "note", "name": "bos", "found": "no row has one", "rows": []}
    for path, said in {
        "student/training.json": json.dumps({"steps": 3, "lint": [finding, other], "example": shown}),
        "student/model.safetensors": "weights",
        "eval/judge.jsonl": "".join(
            json.dumps({"row_id": _id(desk, summary, n), "reason": f"{text(n)} is right"}) + "\n" for n in (2, 3)
        ),
    }.items():
        run.file(path).parent.mkdir(exist_ok=True)
        run.file(path).write_text(said)
    run.save("train", {"owed": 0, "inputs": "", "outputs": {"student": digest(run.file("student"))}})
    where = f"question == '{text(3)}'"
    desk.llm_distill("forget", "--where", where, "--everywhere", "--yes")
    for file in run.path.rglob("*.json*"):
        assert text(3) not in file.read_text(), file
    assert text(2) in run.file("eval/judge.jsonl").read_text()
    assert json.loads(run.file("student/training.json").read_text()) == {"steps": 3, "lint": [other]}
    assert RunFolder(run.path).stamp("train")["outputs"]["student"] == digest(run.file("student"))


@pytest.mark.parametrize("cut", ["erase", "_rewrite", "_out_of_set"])
def test_the_same_command_completes_what_a_crash_cut_off(
    desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Cut off in the ledger, before the first table, before the last one, or before the sets."""
    night(desk, rows(range(6)), models=_hosted(api))
    workspace, where = desk.folder / "data", f"question == '{text(3)}'"
    of: Any = ledger_texts if cut == "erase" else forgetting
    calls = [0]
    true = getattr(of, cut)

    def dies(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2 or cut != "_rewrite":
            raise RuntimeError("power loss")
        return true(*given)

    with closing(Ledger(workspace / "ledger.sqlite")) as ledger:
        monkeypatch.setattr(of, cut, dies)
        with pytest.raises(RuntimeError, match="power loss"):
            forgetting.forget(workspace, forgetting.choose(workspace, (), where), ledger)
        monkeypatch.setattr(of, cut, true)
    done = json.loads(desk.llm_distill("forget", "--where", where, "--everywhere", "--yes", "--json"))
    assert len(done["rows"]) == 1
    for path in [p for p in workspace.rglob("*") if p.is_file()]:
        assert text(3).encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert text(3) not in str(pq.read_table(path).to_pylist()), path


def test_a_run_that_cannot_be_read_is_not_passed_over(desk: Desk) -> None:
    summary = night(desk, rows(range(6)))
    record = desk.folder / summary["run"] / "run.json"
    written = record.read_text(encoding="utf-8")
    command = ("forget", "--where", f"question == '{text(3)}'", "--everywhere", "--yes")
    for damaged, why in (("{", "not a run record"), (written.replace('"format": 2', '"format": 1'), "run format 1")):
        record.write_text(damaged, encoding="utf-8")
        said = desk.llm_distill(*command, code=2)
        assert said.startswith("llm-distill: forget --everywhere: ")
        assert why in said
    record.write_text(written, encoding="utf-8")
    desk.llm_distill(*command)
    assert text(3) not in str(desk.rows(summary, "prompts"))


def test_rows_of_a_run_that_goes_on_are_not_forgotten_in_vain(desk: Desk) -> None:
    summary = night(desk, rows(range(6)), answers={"budget_usd": 5})
    folder = RunFolder(Path(summary["run"]))
    assert folder.record["account"] != folder.record["digest"]  # a raised budget goes on with the same account
    command = ("forget", "--where", f"question == '{text(3)}'", "--everywhere", "--yes")
    with folder.lock():
        assert "is going on and would write the rows again" in desk.llm_distill(*command, code=2)
    request = {"k": Request((Message("user", "another row of the same run"),), Sampling())}
    with closing(Ledger(desk.folder / "data" / "ledger.sqlite")) as ledger:
        ledger.claim(f"job/{folder.record['account']}", "m", request)
        assert "is going on and would write the rows again" in desk.llm_distill(*command, code=2)
        assert not (desk.folder / "data" / "sets" / "forgotten.jsonl").exists()
        ledger.release(["k"])
    assert "1 questions of the ledger" in desk.llm_distill(*command)


def test_a_question_whose_asker_died_is_erased_too(tmp_path: Path) -> None:
    asked = {"dead": "kiwi was good and is forgotten", "live": "lime was good and is being asked"}
    with closing(Ledger(tmp_path / "l.sqlite")) as ledger, closing(Ledger(tmp_path / "l.sqlite")) as other:
        for owner, key in ((ledger, "dead"), (other, "live")):
            owner.claim("job/a", "m", {key: Request((Message("user", asked[key]),), Sampling())})
        assert ledger_texts.quoting(ledger, list(asked.values())) == ["dead", "live"]
        assert ledger_texts.erase(ledger, ["dead", "live"]) == 1
        assert ledger_texts.quoting(ledger, list(asked.values())) == ["live"]
    assert asked["dead"].encode() not in (tmp_path / "l.sqlite").read_bytes()


def test_costs_come_to_what_the_endpoint_billed_by_whatever_they_are_added_up(desk: Desk, api: MockApi) -> None:
    night(desk, rows(range(6)), models=_hosted(api))
    night(desk, rows(range(6, 9)), models=_hosted(api), name="other", data_set=None)
    tokens = sum(len(line.split()) for line in api.paid) * 150 + api.paid.total() * 600
    for by in ("day", "teacher", "recipe", "stage"):
        found = json.loads(desk.llm_distill("costs", "--by", by, "--json"))
        assert found["total"]["nano_usd"] == tokens
        assert found["total"]["reserved_nano_usd"] == 0
        assert found["total"]["requests"] == 9
        names = [row[by] for row in found["rows"]]
        assert names == {"recipe": ["job", "other"], "stage": ["answers"]}.get(by, names)
    assert "write a day as" in desk.llm_distill("costs", "--since", "yesterday", code=2)
    assert f"${tokens / 1e9:.9f}" in desk.llm_distill("costs", "--by", "recipe")


ACTS = st.lists(st.tuples(st.sampled_from("crsx"), st.integers(0, 5), st.integers(0, 2000)), max_size=25)


@settings(max_examples=25, deadline=None)
@given(ACTS)
def test_what_is_noted_is_what_the_accounts_hold(tmp_path_factory: pytest.TempPathFactory, acts: Any) -> None:
    """Claims, reservations, answers and releases in any order, of two runs and stages, cut off anywhere."""
    with closing(Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite")) as ledger:
        held: dict[str, tuple[Charge, Any]] = {}
        for act, n, nano in acts:
            run, charge, key = f"job{n % 2}/a", Charge(nano / 1e9, n), f"k{n}"
            names = accounts(run, note=noted(("answers", "filter")[n // 3], "m"))
            if act == "c" and key not in held:
                request = Request((Message("user", key),), Sampling())
                if ledger.claim(run, "m", {key: request}, {key: charge}, names).mine:
                    held[key] = (charge, names)
            elif act == "r" and key in held:
                ledger.reserve(held[key][1], [charge])
                held[key] = (held[key][0] + charge, held[key][1])
            elif act == "s" and key in held:
                reserved, theirs = held.pop(key)
                ledger.settle([Entry(key, "ok", charged_usd=nano / 1e9, charged_tokens=n)], [reserved], theirs)
            elif act == "x" and key in held:
                reserved, theirs = held.pop(key)
                ledger.release([key], [reserved], theirs)
        with ledger._transaction(reading=True) as db:
            there = {row.name: (row.nano_usd, row.tokens) for row in db.execute(sa.select(ACCOUNTS))}
        for run in ("job0", "job1"):
            (noted_,) = [row for row in costs(ledger, "recipe") if row["recipe"] == run] or [total([])]
            both = noted_["nano_usd"] + noted_["reserved_nano_usd"], noted_["tokens"] + noted_["reserved_tokens"]
            assert both == there.get(f"{run}/a", (0, 0))
        sums = [total(costs(ledger, by)) for by in ("day", "teacher", "recipe", "stage")]
        assert all(one == sums[0] for one in sums)


def test_a_ledger_of_the_version_before_is_brought_up_to_date(desk: Desk, api: MockApi) -> None:
    night(desk, rows(range(6)), models=_hosted(api))
    path = desk.folder / "data" / "ledger.sqlite"
    before = json.loads(desk.llm_distill("costs", "--by", "recipe", "--json"))["total"]
    with closing(Ledger(path)) as ledger, ledger._transaction() as db:
        db.exec_driver_sql("DROP TABLE spending")
        db.exec_driver_sql("UPDATE format SET version = 2")
        db.exec_driver_sql("UPDATE accounts SET nano_usd = nano_usd + 7 WHERE name LIKE 'job/%'")  # left by a crash
    found = json.loads(desk.llm_distill("costs", "--by", "recipe", "--json"))["total"]
    assert found == before | {"reserved_nano_usd": 7}
    assert {row["stage"] for row in json.loads(desk.llm_distill("costs", "--by", "stage", "--json"))["rows"]} == {""}
