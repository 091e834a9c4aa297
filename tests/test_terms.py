"""Terms and policy: what records say, what a recipe may add, and that nobody trains on what is not theirs to train on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.pipeline import STAGES
from llm_distill.recipe import load
from llm_distill.recipe_checks import open_terms
from llm_distill.stages import Run
from llm_distill.store import RunFolder
from llm_distill.terms import Policy, Record, Source, gate, judge, shipped, verdicts
from tests.conftest import Desk
from tests.mock_api import MockApi

MINE = {"name": "my-contract", "url": "https://example.com/contract", "read": "2026-01-01", "allows": {"train": True}}


def api_model(api: MockApi, **knobs: Any) -> dict[str, Any]:
    return {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None} | knobs}


def scripted(**knobs: Any) -> dict[str, Any]:
    return {"scripted": {"rules": {"good": "positive"}, "default": "negative"} | knobs}


@pytest.fixture
def seeded(desk: Desk) -> Desk:
    desk.seeds([{"prompt": f"{word} {i}"} for i in range(6) for word in ("good", "bad")])
    return desk


def notes(desk: Desk, **keys: Any) -> list[str]:
    """What `check` notes of a recipe's terms."""
    return open_terms(load(desk.recipe(**keys)))


def refused(desk: Desk, **keys: Any) -> str:
    """The one line that refuses a recipe."""
    with pytest.raises(UserError) as error:
        load(desk.recipe(**keys))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_shipped_record_is_whole() -> None:
    records = shipped()
    for name in ("openai", "anthropic", "gemini-api", "mistral-api", "deepseek-api", "mit", "apache-2.0", "gemma", "qwen",
                 "llama-2", "llama-3", "llama-3.1", "cc-by-4.0", "cc-by-sa-4.0"):  # fmt: skip
        assert name in records
    for name, record in records.items():
        assert record.clause, name
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", record.read or ""), name
        assert name == "own" or (record.url or "").startswith("https://"), name
        strictest = record.allows
        if strictest.train == "no":  # what may not be trained on may not be trained on to compete either
            assert strictest.train_competing == "no", name
    assert records["openai"].allows.train_competing == "no"
    assert records["anthropic"].allows.train == "unknown"
    assert records["llama-3"].allows.train == "no"
    assert records["deepseek-api"].allows.publish == "yes"
    assert "Built with Llama" in (records["llama-3.1"].attribution or "")
    assert records["cc-by-sa-4.0"].share_alike == "CC-BY-SA-4.0"


def test_intended_use_alone_keeps_working(seeded: Desk) -> None:
    assert notes(seeded, policy={"intended_use": "Our mail."}, models={"teacher": scripted(terms="apache-2.0")}) == []


def test_a_script_is_its_authors_own(seeded: Desk) -> None:
    assert notes(seeded, policy={"publish": True, "competing": True}) == []


@pytest.mark.parametrize(
    ("terms", "policy", "clause"),
    [
        ("openai", {"competing": True}, "3.3(e)"),
        ("anthropic", {"competing": True}, "D.4"),
        ("gemini-api", {"competing": True}, "Use Restrictions"),
        ("llama-3", {}, "1.b.v"),
        ("llama-2", None, "1.b.v"),
        ("tongyi-qianwen", {"intended_use": "x"}, "5.b"),
    ],
)
def test_what_terms_forbid_is_refused_with_their_clause(
    seeded: Desk, terms: str, policy: dict[str, Any] | None, clause: str
) -> None:
    said = refused(seeded, policy=policy, models={"teacher": scripted(terms=terms)})
    assert f"models.teacher (scripted) answers under the terms '{terms}'" in said
    assert clause in said
    assert "do not allow" in said
    assert ", read 2026-11-22)" in said


def test_the_commands_refuse_with_exit_code_2_before_anything_is_asked(seeded: Desk, api: MockApi) -> None:
    recipe = seeded.recipe(policy={"competing": True}, models={"teacher": api_model(api, terms="openai")})
    for command in ("check", "run"):
        said = seeded.llm_distill(command, recipe, code=2)
        assert "models.teacher (mock-large) answers under the terms 'openai' (OpenAI Services Agreement)" in said
    assert not (seeded.folder / "data").exists()
    assert not api.asked
    open_ended = seeded.recipe(models={"teacher": api_model(api, terms="anthropic")})
    assert "  note       models.teacher (mock-large) answers under the terms 'anthropic'" in seeded.llm_distill(
        "check", open_ended
    )
    assert len(json.loads(seeded.llm_distill("check", open_ended, "--json"))["open_terms"]) == 1


@pytest.mark.parametrize(
    ("terms", "policy"),
    [
        ("openai", {}),
        ("openai", {"competing": True, "train": False}),  # competing is about training
        ("deepseek-api", {"competing": True, "publish": True}),
        ("mit", {"competing": True, "publish": True, "accept_unknown": False}),
        ("llama-3.1", {"publish": True}),
        ("llama-3", {"train": False}),
    ],
)
def test_what_terms_allow_passes_without_a_word(seeded: Desk, terms: str, policy: dict[str, Any]) -> None:
    assert notes(seeded, policy=policy, models={"teacher": scripted(terms=terms)}) == []


@pytest.mark.parametrize(
    ("terms", "why"),
    [(None, "terms that nobody named, which leave open whether"), ("anthropic", "prior authorisation")],
)
def test_unknown_is_a_note_in_the_house_and_a_refusal_outside(seeded: Desk, terms: str | None, why: str) -> None:
    models = {"teacher": scripted(terms=terms)}
    (note,) = notes(seeded, models=models)
    assert why in note
    for policy in ({"publish": True}, {"accept_unknown": False}):
        said = refused(seeded, models=models, policy=policy)
        assert why in said
        assert "set policy.accept_unknown: true" in said
    assert len(notes(seeded, models=models, policy={"publish": True, "accept_unknown": True})) == 2


def test_an_unknown_name_is_named_with_what_there_is(seeded: Desk) -> None:
    said = refused(seeded, models={"teacher": scripted(terms="opanai")})
    assert "models.teacher.scripted.terms: no terms 'opanai'. Did you mean 'openai'?" in said
    assert "Allowed: anthropic, apache-2.0" in said
    assert "Or write a record of your own" in said


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"url": "https://example.com"}, "write a name, a file, or a record"),
        (["openai"], "write a name, a file, or a record"),
        (7, "write a name, a file, or a record"),
        ({"name": "mine", "allow": {}}, "no key 'allow'. Did you mean 'allows'?"),
        (
            {"name": "mine", "allows": {"train": "maybe"}},
            "terms.allows.train: Input should be 'yes', 'no' or 'unknown'",
        ),
        ({"name": "mine", "allows": {"trian": "yes"}}, "terms.allows: no key 'trian'"),
        ({"name": "openai"}, "terms.name: 'openai' names another record already"),
        ({"name": "ours+theirs"}, "terms.name: found 'ours+theirs'; rows join names with `+`"),
        ({"name": "unknown"}, "terms.name: found 'unknown'"),
        ("nowhere.yaml", "terms: no such file"),
    ],
)
def test_a_wrong_record_is_named(seeded: Desk, terms: Any, message: str) -> None:
    said = refused(seeded, models={"teacher": scripted(terms=terms)})
    assert "models.teacher.scripted.terms" in said
    assert message in said


def test_two_records_of_one_name_must_agree(seeded: Desk) -> None:
    models = {"teacher": scripted(terms=MINE), "judge": scripted(terms=MINE)}
    assert notes(seeded, models=models) == []
    models["judge"] = scripted(terms=MINE | {"allows": {"train": "no"}})
    assert "names another record already" in refused(seeded, models=models)


def test_a_record_of_ones_own_is_judged_and_travels(seeded: Desk) -> None:
    forbidding = MINE | {"allows": {"train": False}, "clause": "Clause 12 says no."}
    said = refused(seeded, models={"teacher": scripted(terms=forbidding)})
    assert "'my-contract' (my-contract), which do not allow training a model on its answers (policy.train)" in said
    assert "Clause 12 says no. (https://example.com/contract, read 2026-01-01)" in said
    summary = seeded.run(seeded.recipe(models={"teacher": scripted(terms=MINE)}, task="generate"))
    assert {row["terms"] for row in seeded.rows(summary, "answers")} == {"my-contract"}
    report = json.loads((seeded.folder / summary["run"] / "report" / "report.json").read_text())
    (term,) = report["terms"]
    assert (term["name"], term["url"], term["read"]) == ("my-contract", "https://example.com/contract", "2026-01-01")
    assert term["allows"] == {"train": "yes", "train_competing": "unknown", "publish": "unknown"}


def test_a_record_may_stand_in_a_file(seeded: Desk) -> None:
    (seeded.folder / "contract.yaml").write_text(
        "name: filed\nlicence: Our contract\nallows: {train: no}\nclause: Never.\n"
    )
    models = {"teacher": scripted(terms="contract.yaml")}
    assert "'filed' (Our contract)" in refused(seeded, models=models)
    before = load(seeded.recipe(models=models, policy={"train": False})).digest
    (seeded.folder / "contract.yaml").write_text("name: filed\nlicence: Our contract\nallows: {train: yes}\n")
    assert load(seeded.recipe(models=models, policy={"train": False})).digest != before


def test_prompts_stand_under_terms_too(seeded: Desk) -> None:
    prompts = [{"seeds": {"file": "seeds.jsonl", "terms": "cc-by-sa-4.0"}}]
    summary = seeded.run(seeded.recipe(prompts=prompts, filter=["empty"]))
    report = json.loads((seeded.folder / summary["run"] / "report" / "report.json").read_text())
    assert report["duties"]["share_alike"] == ["CC-BY-SA-4.0"]
    assert "Name the author" in report["duties"]["attribution"][0]
    page = (seeded.folder / summary["run"] / "report" / "report.html").read_text()
    assert "Passed on under: <bdi>CC-BY-SA-4.0</bdi>" in page
    closed = MINE | {"allows": {"publish": "no"}}
    said = refused(seeded, policy={"publish": True}, prompts=[{"seeds": {"file": "seeds.jsonl", "terms": closed}}])
    assert "prompts[0] (seeds) stands under the terms 'my-contract'" in said


def test_policy_and_train_must_not_contradict(seeded: Desk) -> None:
    models = {"teacher": scripted(), "student": {"transformers": {"model": "org/name"}}}
    said = refused(seeded, policy={"train": False}, train="sft", models=models)
    assert "policy.train is false, and the recipe has `train`" in said
    assert "policy: no key 'compete'" in refused(seeded, policy={"compete": True})


def test_the_students_base_is_no_source_of_words(seeded: Desk) -> None:
    models = {"teacher": scripted(), "student": {"transformers": {"model": "org/llama", "terms": "llama-3"}}}
    assert notes(seeded, models=models) == []


ROWS: list[dict[str, Any]] = [{"model": "gpt-x", "terms": "openai"}] * 3 + [
    {"model": "", "terms": None},
    {"model": "qwen", "terms": "mit"},
]


def _plan(desk: Desk, **keys: Any) -> Any:
    return load(desk.recipe(**keys))


def test_the_gate_names_the_rows_the_model_and_the_clause(seeded: Desk) -> None:
    notes = gate(_plan(seeded), ROWS)
    assert [note.split(",")[0] for note in notes] == [
        "1 of 5 rows were answered by an unnamed model under terms that nobody named"
    ]
    with pytest.raises(UserError) as refused:
        gate(_plan(seeded, policy={"competing": True}), ROWS)
    said = str(refused.value)
    assert "3 of 5 rows were answered by gpt-x under the terms 'openai' (OpenAI Services Agreement)" in said
    assert "training a model that competes with its provider (policy.competing): Section 3.3(e)" in said
    assert "\n" not in said
    assert "qwen" not in said
    with pytest.raises(UserError, match="nobody named"):
        gate(_plan(seeded, policy={"accept_unknown": False}), ROWS)
    with pytest.raises(UserError, match=r"'gone' .of which no record is at hand."):
        gate(_plan(seeded, policy={"accept_unknown": False}), [{"model": "m", "terms": "gone"}])
    assert gate(_plan(seeded), []) == []


def test_a_row_of_several_teachers_stands_under_the_terms_of_each(seeded: Desk) -> None:
    rows = [{"model": "a+b", "terms": "mit+openai"}] * 2 + [{"model": "a", "terms": "mit+unknown"}]
    (note,) = gate(_plan(seeded), rows)
    assert note.startswith("1 of 3 rows were answered by a under terms that nobody named")
    with pytest.raises(UserError, match=r"2 of 3 rows were answered by a\+b under the terms 'openai'"):
        gate(_plan(seeded, policy={"competing": True}), rows)


def test_every_use_and_every_answer() -> None:
    records = {
        a: Record(licence=a, allows={"train": a, "train_competing": a, "publish": a}) for a in ("yes", "no", "unknown")
    }
    sources = [Source(name, name) for name in records]
    for train in (True, False):
        for competing in (True, False):
            for publish in (True, False):
                policy = Policy(train=train, competing=competing, publish=publish)
                uses = train + (train and competing) + publish
                found = verdicts(policy, records, sources)
                assert (len(found.forbidden), len(found.unknown)) == (uses, uses)
                assert all(said.startswith("no under") for said in found.forbidden)
                if uses:
                    with pytest.raises(UserError, match="no under"):
                        judge(policy, records, sources)
    assert judge(None, records, [Source("mine", "yes")]) == []


def test_rows_are_judged_by_the_terms_they_were_answered_under(seeded: Desk, api: MockApi) -> None:
    """The ledger gives an answer of last week back under last week's terms, whatever the recipe names today."""
    old = MINE | {"name": "old-contract", "allows": {"train": True, "publish": False}, "clause": "Keep it."}
    half = [{"seeds": {"file": "seeds.jsonl", "limit": 6}}]
    seeded.run(seeded.recipe("first", models={"teacher": api_model(api, terms=old)}, prompts=half))
    (seeded.folder / "base").mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (seeded.folder / "base" / file).write_text("{}")  # looked for beforehand, read when training begins
    keys: dict[str, Any] = {
        "models": {
            "teacher": api_model(api, terms="mit"),
            "student": {"transformers": {"model": "./base"}},
            "spare": scripted(terms=old),  # which is how this recipe knows the record
        },
        "train": "sft",
    }
    later = seeded.recipe("later", policy={"accept_unknown": True, "publish": False}, **keys)
    summary = seeded.run(later, "--until", "filter")
    assert set(api.asked.values()) == {1}
    terms = [row["terms"] for row in seeded.rows(summary, "kept")]
    assert sorted(terms) == ["mit"] * 6 + ["old-contract"] * 6
    keys["models"].pop("spare")
    said = seeded.llm_distill("run", seeded.recipe("later", policy={"accept_unknown": False}, **keys), code=2)
    assert "6 of 12 rows were answered by mock-large-2026-01-01 under the terms 'old-contract'" in said
    assert "of which no record is at hand" in said
    assert "'mit'" not in said
    assert not list(seeded.folder.glob("data/runs/later/*/student"))


@pytest.mark.parametrize(
    ("policy", "named"),
    [({"competing": True}, {"gpt-x", "llama-3-70b"}), (None, {"llama-3-70b"}), ({"train": False}, set())],
)
def test_the_train_stage_refuses_a_mix(seeded: Desk, policy: dict[str, Any] | None, named: set[str]) -> None:
    mixed = [("free", "mit")] * 9 + [("gpt-x", "openai")] * 2 + [("llama-3-70b", "llama-3")]
    rows = [
        {"row_id": str(i), "prompt_id": str(i), "messages": [], "tags": [], "model": model, "terms": terms}
        for i, (model, terms) in enumerate(mixed)
    ]
    job = Run(load(seeded.recipe(policy=policy)), RunFolder(seeded.folder), None, None)  # type: ignore[arg-type]
    STAGES["train"].gate(job)  # no rows yet, nothing to refuse
    store.write_table(job.folder.file("kept.parquet"), rows, "kept")
    if not named:
        STAGES["train"].gate(job)
        return
    with pytest.raises(UserError) as refusal:
        STAGES["train"].gate(job)
    said = str(refusal.value)
    assert {model for model, _ in mixed if model in said} == named
    assert "of 12 rows were answered by" in said


def test_the_report_says_what_is_owed_and_what_is_open(seeded: Desk, api: MockApi) -> None:
    models = {"teacher": api_model(api, terms="llama-3.1"), "judge": scripted(terms="anthropic")}
    summary = seeded.run(seeded.recipe(models=models, filter=["empty"], policy={"intended_use": "ours"}))
    run = seeded.folder / summary["run"]
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["answered_under"] == [
        "12 of 12 rows were answered by mock-large-2026-01-01 under the terms 'llama-3.1'"
    ]
    assert report["duties"]["share_alike"] == ["the Llama Community License and its Acceptable Use Policy"]
    assert any("Built with Llama" in said for said in report["duties"]["attribution"])
    assert [term["model"] for term in report["terms"]] == ["judge: scripted", "teacher: mock-large"]
    page = (run / "report" / "report.html").read_text()
    assert "What goes with the answers and the student" in page
    assert "Built with Llama" in page
    record = json.loads((run / "run.json").read_text())
    assert record["terms"]["llama-3.1"]["allows"]["publish"] == "yes"
    nameless = seeded.run(seeded.recipe("nameless", models={"teacher": api_model(api)}, filter=["empty"]))
    report = json.loads((seeded.folder / nameless["run"] / "report" / "report.json").read_text())
    # The answers were given under the first recipe's terms, and say so; the model of this one has none on record.
    assert "llama-3.1" in report["answered_under"][0]
    assert report["terms"][0]["note"].startswith("No terms are on record")


def test_a_change_of_terms_is_in_the_next_report(seeded: Desk) -> None:
    for terms in ("mit", "apache-2.0"):
        summary = seeded.run(
            seeded.recipe(models={"teacher": scripted(), "spare": scripted(terms=terms)}, filter=["empty"])
        )
        report = json.loads((seeded.folder / summary["run"] / "report" / "report.json").read_text())
        assert {term["name"] for term in report["terms"]} == {"own", terms}


def test_a_report_lists_what_is_open(seeded: Desk, api: MockApi) -> None:
    summary = seeded.run(seeded.recipe(models={"teacher": api_model(api)}, filter=["empty"]))
    report = json.loads(Path(seeded.folder, summary["run"], "report", "report.json").read_text())
    assert report["open_terms"] == [
        "12 of 12 rows were answered by mock-large-2026-01-01 under terms that nobody named, which leave open whether they "
        "allow training a model on its answers."
    ]
