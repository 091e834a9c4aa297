"""Model cards and data cards: what they derive from the run, and what they never let through."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from llm_distill import store
from llm_distill.errors import UserError
from llm_distill.export import cards, licence, road
from llm_distill.export.student import find, shown
from llm_distill.report.markdown import front_matter, plain, table
from llm_distill.report.words import visible
from llm_distill.terms import Record, Source, shipped
from tests.finished import copied, made

RECORDS = shipped()
PIECES = [
    "# title", "<script>alert(1)</script>", "![x](http://evil.example/p.png)", "[a](javascript:x)", "| cell |", "```",
    "**b**", "_i_", "~~s~~", "&lt;b&gt;", "<!-- -->", "https://evil.example", "www.evil.example", "a@b.example", "\\", "`",
    "1. one", "- two", "> q", "---", "===", "\n\n", "\r", "\u202e", "\x00", "\u200b", "$x^2$", "[^1]", "naïve 日本語", "%", "{}",
    "snake_case", "*", "2) x", "+", ":smile:", "\t", "\ud800",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the finished run, with its cards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))
        run = store.RunFolder(made(tmp_path_factory.getbasetemp(), "lora"))
        out = tmp_path_factory.mktemp("exported") / "adapter"
        road.export(run, "adapter", out)
    return out


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return copied(tmp_path_factory.getbasetemp(), "lora", tmp_path / "copy")


def head(card: str) -> dict[str, Any]:
    fence, text, _ = card.split("---\n", 2)
    assert fence == ""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(io.StringIO(text))
    return found


def rendered(text: str) -> list[Any]:
    """The inline tokens of a paragraph or heading, as CommonMark with tables and strikethrough reads it."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    assert [token.type for token in parsed] == ["paragraph_open", "inline", "paragraph_close"], parsed
    return list(parsed[1].children or [])


def test_any_text_reads_as_itself_and_does_nothing() -> None:
    """Seeded mixtures of all that Markdown and HTML act on."""
    draw = random.Random(3)
    for _ in range(2000):
        text = "".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randint(1, 6)))
        expected = " ".join(visible(text.replace("\n", " ")).split())
        if not expected:
            continue
        tokens = rendered(plain(text, 10_000))
        assert {token.type for token in tokens} <= {"text", "text_special"}, text
        assert "".join(token.content for token in tokens) == expected
        assert "://" not in plain(text)
        assert "<" not in plain(text)


def test_a_cell_of_others_stays_a_cell() -> None:
    draw = random.Random(4)
    for _ in range(300):
        cells = ["".join(draw.choice(PIECES) for _ in range(3)) for _ in range(2)]
        parsed = MarkdownIt("commonmark").enable("table").parse(table(["a", "b"], [cells]))
        assert sum(token.type == "td_open" for token in parsed) == 2
        assert sum(token.type == "tr_open" for token in parsed) == 2


def test_front_matter_is_the_same_strings_again() -> None:
    tags = ["- x", "#", "null", "1.0", "é\u2028"]
    values = {"license": 'a": b\n---\nc: d', "tags": tags, "none": None, "empty": []}
    assert head(front_matter(values) + "\n# x") == {
        "license": visible('a": b\n---\nc: d'),
        "tags": [*map(visible, tags)],
    }


def test_the_model_card_says_what_happened(exported: Path) -> None:
    card = (exported / "README.md").read_text("utf-8")
    found = head(card)
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "peft"
    assert "distillation" in found["tags"]
    assert "base_model" not in found  # a folder of this machine is nothing that the hub knows
    for said in (
        "| Student | 16 | 100.0 % (80.6 to 100.0)", "| Rows | 44 |", "| Seed | 0 |", "| Version of trl |", "| epochs | 20.0 |",
        "16 held-out rows", "| Same answer | 100.0 % (80.6 to 100.0) |", "Apache License 2.0", "temperature 0",
        "Not measured:", "Learnt from:", "44 of 44 rows were answered by scripted under apache-2.0",
    ):  # fmt: skip
        assert said in card, said


def test_only_what_was_not_measured_is_called_so(exported: Path, copy: Path) -> None:
    run = store.RunFolder(copy)
    student, record, stands = find(run), road.read(exported), licence.standing(find(run))
    report = json.loads((copy / "report" / "report.json").read_text())
    calibrated, able, fair = "how calibrated", "general ability outside its task", "change with the person in a text"

    def missing(evaluated: bool = True) -> str:
        return cards.model_card(student, record, stands, report, evaluated).partition("Not measured:")[2]

    report["arms"]["student"]["ece"] = None
    report["flips"] = [{"who": "asked_rows", "rate": {"value": 0.1}}]  # of the teacher's answers
    assert all(what in missing() for what in (calibrated, able, fair))
    report["arms"]["student"]["ece"] = {"value": 0.1, "low": 0.0, "high": 0.2}
    report |= {"general": {"tasks": []}, "flips": [{"who": "student", "rate": {"value": 0.1}}]}
    assert not any(what in missing() for what in (calibrated, able, fair))
    assert all(what in missing(evaluated=False) for what in (calibrated, able))  # that was another student


def test_the_data_card_says_how_rows_were_held_out(copy: Path) -> None:
    import dataclasses

    student = find(store.RunFolder(copy))
    report, stands = json.loads((copy / "report" / "report.json").read_text()), licence.standing(student)
    assert "held out for evaluation, by a hash of their content." in cards.data_card(student, stands, report)
    held_out = student.plan.held_out
    assert held_out is not None
    of_file = held_out.model_copy(update={"file": copy / "held_out.jsonl", "share": None})
    student = dataclasses.replace(student, plan=dataclasses.replace(student.plan, held_out=of_file))
    assert "held out for evaluation, from a file of their own." in cards.data_card(student, stands, report)


def test_the_data_card_counts_what_was_dropped(exported: Path) -> None:
    card = (exported / "DATA_CARD.md").read_text("utf-8")
    for said in (
        "44 were asked; 16 were held out", "| empty | max 0 | 44 | 0 | 44 |", "| length | max 500 | 44 | 0 | 44 |",
        "44 rows were kept", "| scripted | teacher | apache-2.0 | 44 |", "| negative | 23 |", "| seeds | 60 |",
    ):  # fmt: skip
        assert said in card, said
    assert "item 1" not in card  # no texts of rows


def test_a_hub_base_and_its_licence_reach_the_front_matter(exported: Path, copy: Path) -> None:
    import dataclasses

    student = dataclasses.replace(find(store.RunFolder(copy)), base="org/Small-1B")
    record = road.read(exported)
    standing = licence.derive("org/Small-1B", "gemma", [Source("1 of 1 rows were answered by t", "mit")], RECORDS)
    report = json.loads((copy / "report" / "report.json").read_text())
    for to, relation in (("merged", "finetune"), ("adapter", "adapter")):
        card = cards.model_card(student, record | {"to": to}, standing, report, True)
        assert head(card) | {"base_model": "org/Small-1B", "base_model_relation": relation, "license": "gemma"} == head(
            card
        )
        assert "Gemma Terms of Use" in card


def test_numbers_of_another_student_are_not_told(copy: Path) -> None:
    run = store.RunFolder(copy)
    assert cards.was_evaluated(find(run))
    path = copy / "eval" / "student.parquet"
    rows = [msgspec.structs.replace(a, requests=("0" * 32,)) for a in store.read_answers(path)]
    store.write_table(path, map(store.answer_row, rows), "answers")
    assert not cards.was_evaluated(find(run))
    out = Path(road.export(run, "adapter")["out"])
    card = (out / "README.md").read_text("utf-8")
    assert "was not evaluated in its run" in card
    assert "| Student |" not in card
    assert "an evaluation of this student" in card


def test_what_servers_and_models_wrote_does_nothing_in_a_card(copy: Path, tmp_path: Path) -> None:
    evil = "</td><img src=x onerror=alert(1)> [x](http://evil.example) | **b** \u202e"
    run = store.RunFolder(copy)
    path = copy / "kept.parquet"
    rows = [
        store.answer_row(msgspec.structs.replace(a, model=evil, prediction=evil))
        | {"score.empty": 0.0, "score.length": 1.0}
        for a in store.read_answers(path)
    ]
    store.write_table(path, rows, "kept", {"empty": "", "length": ""})
    out = Path(road.export(run, "adapter", tmp_path / "out")["out"])
    for name in ("README.md", "DATA_CARD.md"):
        card = (out / name).read_text("utf-8")
        assert "img src" in card
        assert "<" not in card
        assert "\u202e" not in card
        kinds = [
            c.type
            for t in MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
            for c in t.children or []
        ]
        assert "html_inline" not in kinds
        assert "image" not in kinds
        assert kinds.count("link_open") == (1 if name == "README.md" else 0)  # to the data card
    data_card = (out / "DATA_CARD.md").read_text("utf-8")
    assert "evil.example" in data_card


def test_no_path_of_this_machine_is_shown(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert shown(str(tmp_path / "weights")) == "weights"
    assert shown("/data/models/Qwen3-32B/") == "Qwen3-32B"
    assert shown("~/secret/m.gguf") == "m.gguf"
    assert shown("C:\\Users\\me\\model") == "model"
    assert shown("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"


def source(*names: str | None) -> list[Source]:
    return [Source(f"{i} of 9 rows were answered by m{i}", name) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("base", "learnt", "licence_", "name", "may"),
    [
        ("apache-2.0", ["apache-2.0"], "apache-2.0", None, "yes"),
        ("mit", ["apache-2.0", "own"], "mit", None, "yes"),
        ("apache-2.0", ["gemma"], "gemma", None, "yes"),
        ("gemma", ["mit"], "gemma", None, "yes"),
        ("apache-2.0", ["cc-by-sa-4.0"], "cc-by-sa-4.0", None, "yes"),
        ("gemma", ["cc-by-sa-4.0"], "other", "several-terms", "unknown"),
        ("llama-3.1", ["mit"], "other", "llama-3.1-3.2-and-3.3-community-licenses", "yes"),
        ("apache-2.0", ["openai"], "other", "not-settled", "unknown"),
        ("apache-2.0", ["apache-2.0", None], "other", "not-settled", "unknown"),
        ("apache-2.0", ["llama-2", "gemma"], "other", "not-to-be-passed-on", "no"),
        (None, ["apache-2.0"], "other", "that-of-the-base", "unknown"),
        ("nobody-read-these", ["apache-2.0"], "other", "that-of-the-base", "unknown"),
    ],
)
def test_the_licence_is_derived(
    base: str | None, learnt: list[str | None], licence_: str, name: str | None, may: str
) -> None:
    found = licence.derive("b", base, source(*learnt), RECORDS)
    assert (found.licence, found.name, found.may_be_published) == (licence_, name, may)
    assert bool(found.notes) == (may != "yes" and name not in ("several-terms", "that-of-the-base"))
    every = [RECORDS[n] for n in (base, *learnt) if n in RECORDS]
    assert all(any(str(r.attribution) in duty for duty in found.duties) for r in every if r.attribution)


def test_what_forbids_passing_on_stands_on_the_card(exported: Path, copy: Path) -> None:
    standing = licence.derive("b", "apache-2.0", source("llama-2"), RECORDS)
    report = json.loads((copy / "report" / "report.json").read_text())
    card = cards.model_card(find(store.RunFolder(copy)), road.read(exported), standing, report, True)
    assert "not-for-publication" in head(card)["tags"]
    assert head(card)["license"] == "other"
    assert "**Not to be passed on:**" in card


def test_a_policy_that_terms_forbid_stops_the_export(copy: Path, tmp_path: Path) -> None:
    """The rows' own terms are judged, as of the day they were paid for."""
    run, path = store.RunFolder(copy), copy / "kept.parquet"
    rows = [
        store.answer_row(msgspec.structs.replace(a, terms="llama-2")) | {"score.empty": 0.0, "score.length": 1.0}
        for a in store.read_answers(path)
    ]
    store.write_table(path, rows, "kept", {"empty": "", "length": ""})
    with pytest.raises(UserError, match=r"policy: 44 of 44 rows .* do not allow training"):
        road.export(run, "adapter", tmp_path / "out")


def test_what_terms_leave_open_may_stay_in_the_house_but_not_leave_it(copy: Path, tmp_path: Path) -> None:
    run, path = store.RunFolder(copy), copy / "kept.parquet"
    rows = [
        store.answer_row(msgspec.structs.replace(a, terms="openai")) | {"score.empty": 0.0, "score.length": 1.0}
        for a in store.read_answers(path)
    ]
    store.write_table(path, rows, "kept", {"empty": "", "length": ""})
    found = road.export(run, "adapter", tmp_path / "out")
    assert (found["licence"], found["may_be_published"]) == ("other", "unknown")
    assert any("leave open whether they allow passing on" in note for note in found["notes"])
    assert "**Not settled:**" in (tmp_path / "out" / "README.md").read_text("utf-8")
    recipe = json.loads((copy / "recipe.resolved.json").read_text())
    (copy / "recipe.resolved.json").write_text(json.dumps(recipe | {"policy": {"publish": True}}))
    with pytest.raises(UserError, match="leave open whether they allow passing on"):
        road.export(run, "adapter", tmp_path / "out")


def test_records_of_the_recipes_own_are_used() -> None:
    own = {"house": Record(licence="House rules <b>", share_alike="House rules", allows={"publish": "yes"})}
    found = licence.derive("b", "mit", source("house"), {**RECORDS, **own})
    assert (found.licence, found.name) == ("other", "house-rules-b")
