"""What is asked and what is held out: the sides of rows, of their groups, children and near neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.near import similarity
from llm_distill.recipe import load
from llm_distill.recipe_keys import HeldOut
from llm_distill.records import Entry, Prompt, Request
from llm_distill.sides import Sides
from llm_distill.splits import gather
from tests.conftest import Desk
from tests.test_mixing import row

WORDS = ["river", "stone", "cloud", "market", "engine", "violin", "pepper", "window", "tunnel", "carpet"]


def sides(rows: list[Prompt], **held_out: Any) -> list[str]:
    split = Sides(HeldOut.model_construct(**{"file": None, "share": 0.4, "near": 0.6} | held_out))
    return [split.of(r) for r in split.numbered(rows)]


texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=5, max_size=8).map(" ".join), max_size=40)


@settings(deadline=None, max_examples=60)
@given(before=texts, after=texts)
def test_no_near_pair_is_parted_and_no_side_changes_when_rows_are_appended(before: list[str], after: list[str]) -> None:
    first = sides([row(t) for t in before])
    both = sides([row(t) for t in before + after])
    assert both[: len(before)] == first
    placed = list(zip(before + after, both, strict=True))
    held = [t for t, side in placed if side == "held_out"]
    for text, side in placed:
        if side == "asked":
            assert all(similarity(text, other) < 0.6 for other in held)


def test_the_share_is_kept_where_rows_are_different() -> None:
    found = sides([row(f"{w} {v} number {i} of {u}") for i, (w, v, u) in enumerate(
        (a, b, c) for a in WORDS for b in WORDS for c in WORDS)], near=None)  # fmt: skip
    assert abs(found.count("held_out") / 1000 - 0.4) < 0.05


def test_groups_and_children_go_with_their_own() -> None:
    parents = [row(f"{w} stands here alone number {i}") for i, w in enumerate(WORDS)]
    children = [row(f"nothing like it {i * i}", parent=p.row_id) for i, p in enumerate(parents)]
    group = [row(f"completely {w}", group="g") for w in WORDS]
    found = sides([*parents, *children, *group], near=None)
    assert found[:10] == found[10:20]
    assert len(set(found[:10])) == 2
    assert len(set(found[20:])) == 1


def test_a_given_file_holds_out_its_rows_and_sets_aside_what_is_near(desk: Desk) -> None:
    held = "the quick brown fox jumps over the lazy dog again and again"
    desk.seeds([{"prompt": held, "label": "positive"}], "held.jsonl")
    desk.seeds([{"prompt": f"{held} today"}, {"prompt": "something else that nobody has written before"}])
    found = gather(load(desk.recipe(held_out={"file": "held.jsonl"})))
    assert ([r.text for r in found.asked], found.aside) == (["something else that nobody has written before"], 1)
    assert [r.text for r in found.held_out] == [held]
    found = gather(load(desk.recipe(held_out={"file": "held.jsonl", "near": None})))
    assert (len(found.asked), found.aside) == (2, 0)
    desk.seeds([{"prompt": held}])
    with pytest.raises(UserError, match="are also prompts"):
        desk.here(desk.recipe(held_out={"file": "held.jsonl"}))


GENERATORS = """
from llm_distill.plugs import Role
from llm_distill.records import Message, Request, Sampling, make_prompt

def harder(context, *, model: Role = "teacher", rows: int = 100):
    parents = list(context.before)[:rows]
    questions = [Request((Message("user", "harder: " + p.text),), Sampling(max_tokens=8)) for p in parents]
    for parent, entry in zip(parents, context.ask(model, questions), strict=True):
        if entry.status == "ok":
            yield make_prompt((Message("user", parent.text + " but " + entry.text),), context.tagged(parent))
"""


def _job(desk: Desk, **keys: Any) -> Path:
    (desk.folder / "gens.py").write_text(GENERATORS)
    desk.seeds([{"prompt": f"{w} {v} is {'good' if w < v else 'bad'}"} for w in WORDS for v in WORDS])
    return desk.recipe(prompts=[{"seeds": {"file": "seeds.jsonl"}}, {"gens:harder": {"rows": 30}}], **keys)


def test_a_generator_asks_through_the_ledger_and_never_sees_held_out_rows(desk: Desk) -> None:
    recipe = _job(desk, held_out={"share": 0.3, "near": None})
    summary = desk.run(recipe, "--until", "prompts", PYTHONPATH=str(desk.folder))
    asked, held = desk.rows(summary, "prompts"), desk.rows(summary, "held_out")
    made = [r for r in asked if dict(r["tags"]).get("generator") == "gens:harder"]
    assert len(made) == 30
    assert all(dict(r["tags"]).get("generator") is None for r in held)
    parents = {dict(r["tags"])["parent"] for r in made}
    assert parents <= {r["row_id"] for r in asked}
    record = json.loads((desk.folder / summary["run"] / "run.json").read_text())
    assert [e["rows"] for e in record["stages"]["prompts"]["made"]] == [100, 30]
    # The questions are in the ledger, so doing the stage again asks nobody and gives the same rows.
    again = desk.run(recipe, "--until", "prompts", "--from", "prompts", PYTHONPATH=str(desk.folder))
    assert desk.rows(again, "prompts") == asked


def test_check_asks_nobody_and_counts_what_may_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(desk.folder))
    plan = load(_job(desk))
    found = gather(plan)
    assert [plug.spec.name for plug, _ in found.at_most] == ["gens:harder"]
    assert len(found.asked) == 100

    def refuse(role: str, questions: Any) -> list[Entry]:
        raise AssertionError(role)

    with pytest.raises(AssertionError, match="teacher"):
        gather(plan, refuse)


def test_a_mix_and_a_balance_hold_in_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(desk.folder))

    def ask(_role: str, questions: Any) -> list[Entry]:
        assert all(isinstance(q, Request) for q in questions)
        return [Entry(str(i), "ok", text=f"answer {i}") for i, _ in enumerate(questions)]

    shares = {"shares": {"seeds": 0.5, "gens:harder": 0.5}}
    rows = gather(load(_job(desk, mix=shares)), ask).asked
    assert len(rows) == 60
    assert sum(r.tags.get("generator") == "gens:harder" for r in rows) == 30
    desk.seeds([{"prompt": f"{w} {v}", "tags": {"l": "a" if w == WORDS[0] else "b"}} for w in WORDS for v in WORDS])
    balance = {"balance": {"tag": "l", "fill": {"gens:harder": {}}}}
    recipe = desk.recipe(mix=balance, prompts=[{"seeds": {"file": "seeds.jsonl"}}])
    rows = gather(load(recipe), ask).asked
    # ten rows of `a` give ten more, and no more: what is missing is left missing
    assert sum(r.tags["l"] == "a" for r in rows) == 20
    assert sum(r.tags["l"] == "b" for r in rows) == 90


def test_an_unknown_role_or_share_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(desk.folder))
    recipe = _job(desk)
    with pytest.raises(UserError, match="no model 'writer' in `models`"):
        load(recipe, ["prompts.gens:harder.model=writer"])
    with pytest.raises(UserError, match=r"mix\.shares: 'gens:harder' has none"):
        gather(load(recipe, ["mix={shares: {seeds: 1.0}}"]), lambda _r, q: [Entry(str(i), "failed") for i in q])


def test_held_out_that_holds_nothing_is_said(desk: Desk) -> None:
    desk.seeds(
        [{"prompt": f"write a long and polite letter of thanks to our neighbours in house {i % 2}"} for i in range(40)]
    )
    with pytest.raises(UserError, match=r"held none out|no rows are left"):
        desk.here(desk.recipe(held_out={"share": 0.1}, evaluate={}))


def test_groups_formed_of_rows_that_stood_already_lie_on_one_side(desk: Desk) -> None:
    pairs = [(f"She likes {w} and {v}.", f"He likes {w} and {v}.") for w in WORDS for v in WORDS if w < v]
    desk.seeds([{"prompt": text} for pair in pairs for text in pair])
    prompts = [{"seeds": {"file": "seeds.jsonl"}}, {"counterfactual": {"attributes": ["gender"]}}]
    found = gather(load(desk.recipe(prompts=prompts, held_out={"share": 0.4, "near": None})))
    held, asked = ({r.tags["group"] for r in rows} for rows in (found.held_out, found.asked))
    assert held
    assert asked
    assert not held & asked
    assert found.aside


def test_an_augmentation_that_asks_nobody_is_made_by_check_too(desk: Desk) -> None:
    desk.seeds([{"prompt": "There is a light that never goes out in this long street."}])
    prompts: list[Any] = [{"seeds": {"file": "seeds.jsonl"}}, {"augment": {"kinds": ["typo"]}}]
    assert len(gather(load(desk.recipe(prompts=prompts))).asked) == 2
    prompts[1] = {"augment": {"kinds": ["typo", "paraphrase"]}}
    found = gather(load(desk.recipe(prompts=prompts)))
    assert (len(found.asked), len(found.at_most)) == (1, 1)
