"""Several teachers, several samples: who answers which row, how many answers become one, and what that costs."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.evals.compare import compare
from llm_distill.logprobs import Logprobs
from llm_distill.merging import Candidate, merge, read
from llm_distill.recipe import load
from llm_distill.records import Answer, Entry, Message, Prompt, Status, make_prompt
from llm_distill.tasks import Task
from llm_distill.teachers import Teachers
from tests.conftest import Desk
from tests.mock_api import MockApi, label_of, serving

LABELS = ["positive", "negative"]
CLASSIFY, GENERATE = Task(kind="classify", labels=LABELS), Task(kind="generate")
PROMPT = make_prompt((Message("user", "x"),))


def candidate(
    text: str,
    probs: tuple[float, float] | None = None,
    status: Status = "ok",
    role: str = "teacher",
    key: str = "k",
    **entry: Any,
) -> Candidate:
    """A completion with its cost; the probabilities are those of the labels."""
    logprobs = None
    if probs:
        pairs = sorted(zip(LABELS, probs, strict=True), key=lambda pair: pair[0] != text)
        table = np.log(np.array([[p for _, p in pairs]], dtype=np.float32))
        logprobs = Logprobs.of_tokens(
            [pairs[0][0].encode()], table[:, 0], [[t.encode() for t, _ in pairs]], table
        ).pack()
    known = {} if status == "failed" else {"prompt_tokens": 3, "completion_tokens": 1, "cost_usd": 0.5}
    fields: dict[str, Any] = {"text": text, "attempts": 1, "served_model": f"{role}-1", "logprobs": logprobs} | known
    return read(role, [key], [Entry(key, status, **fields | entry)])


def prompts(n: int, **tags: str) -> list[Prompt]:
    return [make_prompt((Message("user", f"row {i}"),), tags) for i in range(n)]


# Who answers.


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=2), st.integers(0, 2**32))
def test_a_mix_keeps_its_shares_and_its_rows(weights: dict[str, int], seed: int) -> None:
    total = sum(weights.values())
    mix = Teachers.model_validate({"mix": {role: weight / total for role, weight in weights.items()}})
    rows = [make_prompt((Message("user", f"{seed} {i}"),)) for i in range(300)]
    chosen = {p.row_id: mix.of(p) for p in rows}
    counts = Counter(role for roles in chosen.values() for role in roles)
    for role, weight in weights.items():
        share = weight / total
        assert abs(counts[role] - 300 * share) <= 5.5 * math.sqrt(300 * share * (1 - share)) + 1  # far in the tail
    rest = {role: weight for role, weight in weights.items() if role != min(weights)}
    fewer = Teachers.model_validate({"mix": {role: weight / sum(rest.values()) for role, weight in rest.items()}})
    for p in rows:  # nobody who stays loses a row
        assert fewer.of(p) == chosen[p.row_id] or chosen[p.row_id] == (min(weights),)


def test_equal_questions_go_to_one_teacher() -> None:
    mix = Teachers.model_validate({"mix": {"a": 0.5, "b": 0.5}})
    for p in prompts(50):
        assert mix.of(p) == mix.of(make_prompt(p.messages, p.tags, occurrence=1))


def test_a_mix_is_the_same_for_ever() -> None:
    """Rows must not change hands between versions: their answers are paid for."""
    mix = Teachers.model_validate({"mix": {"big": 0.7, "small": 0.3}})
    assert "".join(mix.of(p)[0][0] for p in prompts(40)) == "sbsbbbbbsbbbbbsbbsbsbbbbbbbbbbsssssbbsbb"


def test_routes_follow_the_tag() -> None:
    route = Teachers.model_validate({"route": {"tag": "lang", "to": {"de": "d", "fr": "f"}, "otherwise": "big"}})
    assert route.roles == ("big", "d", "f")
    found = [route.of(make_prompt((Message("user", "x"),), tags)) for tags in ({"lang": "de"}, {"lang": "it"}, {})]
    assert found == [("d",), ("big",), ("big",)]
    assert route.a_row == 1


MODELS = {"big": {"scripted": {"default": "positive"}}, "small": {"scripted": {"default": "negative"}}}
PRICED = {"openai_api": {"model": "m", "prices_usd": {"prompt": 1, "completion": 1}}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "or say which of these models do: `teachers: [role, ...]`"),
    ({"teachers": "big"}, "write a list of roles, `{mix:"),
    ({"teachers": []}, "teachers"),
    ({"teachers": {"mix": {"big": 1}, "route": {}}}, "write a list of roles"),
    ({"teachers": {"blend": {"big": 1}}}, "write a list of roles"),
    ({"teachers": ["big", "bgi"]}, "teachers: no role 'bgi' in models. Did you mean 'big'?"),
    ({"teachers": ["big", "big"]}, "ask one model several times with answers.samples"),
    ({"teachers": {"mix": {"big": 0.7, "small": 0.03}}}, "sum to 0.73"),
    ({"teachers": {"mix": {"big": 1.2, "small": -0.2}}}, "shares are above 0"),
    ({"teachers": {"mix": {"big": "lots"}}}, "teachers.mix.big"),
    ({"teachers": {"route": {"tag": "lang"}}}, "teachers.route.to"),
    ({"teachers": {"route": {"tag": "lang", "to": {"de": "german"}}}}, "no role 'german'"),
    ({"teachers": ["big"], "answers": {"samples": 3}}, "at temperature 0 all 3 would be the same; set `temperature"),
    ({"teachers": ["big"], "answers": {"samples": 0}}, "answers.samples"),
    ({"teachers": ["big"], "filter": [{"agreement": {"min": 0.6}}]}, "add `samples: 5` to answers"),
    ({"teachers": ["big", "small"], "answers": {"best_by": "confidence"}}, "labels are merged, not chosen among"),
    ({"teachers": ["big"], "task": "generate", "answers": {"best_by": "confidence"}}, "nothing to choose from"),
    ({"teachers": ["big", "small"], "task": "generate", "answers": {"best_by": "confidence"}}, "top_logprobs: 20"),
    ({"teachers": ["big", "small"], "task": "generate", "answers": {"best_by": "unparsed"}}, "it reads labels"),
    ({"teachers": ["big", "small"], "task": "generate", "answers": {"best_by": "leakage"}}, "more than one answer"),
    ({"teachers": ["big", "small"], "task": "generate", "answers": {"best_by": "lenght"}}, "Did you mean 'length'?"),
    (
        {"teachers": ["big", "small"], "task": "generate", "answers": {"best_by": {"length": {"prefer": "most"}}}},
        "answers.best_by.length.prefer: found 'most'; write high or low",
    ),
    (
        {"models": {"big": PRICED, "small": {"openai_api": {"model": "m"}}}, "teachers": ["big", "small"],
         "answers": {"budget_usd": 1}},
        "the price of models.small (openai_api) is unknown",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_mistake_is_named(desk: Desk, keys: dict[str, Any], message: str) -> None:
    desk.seeds([{"prompt": "a"}])
    with pytest.raises(UserError) as error:
        load(desk.recipe(**{"models": MODELS} | keys))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# How many answers become one.


def test_several_questions_are_merged_by_their_mean_distribution() -> None:
    given_ = [("positive", (0.55, 0.45)), ("positive", (0.52, 0.48)), ("negative", (0.1, 0.9))]
    answer = merge(
        CLASSIFY, PROMPT, [candidate(text, probs, key=k) for k, (text, probs) in zip("abc", given_, strict=True)]
    )
    assert answer.label_probs == pytest.approx((0.39, 0.61), abs=1e-3)
    assert (answer.prediction, answer.text, answer.agreement) == ("negative", "negative", 1 / 3)
    assert (answer.prompt_tokens, answer.cost_usd, answer.requests) == (9, 1.5, ("a", "b", "c"))


def test_without_logprobs_the_majority_decides_and_a_tie_states_nothing() -> None:
    three = [candidate("positive"), candidate("negative", key="l"), candidate("positive", (0.9, 0.1), key="m")]
    answer = merge(CLASSIFY, PROMPT, three)
    assert (answer.prediction, answer.agreement, answer.label_probs) == ("positive", 2 / 3, None)
    tie = merge(CLASSIFY, PROMPT, three[:2])
    assert (tie.prediction, tie.agreement) == (None, 0.0)
    even = merge(CLASSIFY, PROMPT, [candidate("positive", (0.75, 0.25)), candidate("negative", (0.25, 0.75), key="l")])
    assert even.prediction is None


def test_a_label_is_as_good_as_the_worst_answer_that_states_it() -> None:
    cut = candidate("positive", status="truncated", key="l")
    assert merge(CLASSIFY, PROMPT, [candidate("positive"), cut]).status == "truncated"
    declined = candidate("", status="refused", key="m", reason="no")
    assert merge(CLASSIFY, PROMPT, [candidate("positive"), candidate("positive", key="n"), declined]).status == "ok"


@pytest.mark.parametrize("task", [CLASSIFY, GENERATE], ids=["classify", "generate"])
def test_a_row_with_a_question_unanswered_has_no_answer(task: Task) -> None:
    lost = candidate("", status="failed", role="small", key="l", reason="HTTP 400")
    answer = merge(task, PROMPT, [candidate("positive", role="big"), lost])
    assert (answer.status, answer.reason, answer.owed, answer.prediction) == ("failed", "HTTP 400 (small)", True, None)
    assert (answer.cost_usd, answer.prompt_tokens, answer.requests) == (0.5, 3, ("k", "l"))  # what was paid stays paid
    alone = merge(task, PROMPT, [candidate("", status="failed", reason="HTTP 400")])
    assert (alone.reason, alone.cost_usd) == ("HTTP 400", None)


def test_of_texts_the_one_that_agrees_most_is_chosen() -> None:
    texts = ["the cat sat", "the cat sat down", "a dog ran off", "the cat sat down now"]
    answer = merge(GENERATE, PROMPT, [candidate(text, role=r, key=r) for text, r in zip(texts, "abcd", strict=True)])
    assert (answer.text, answer.role, answer.model) == ("the cat sat down", "b", "b-1")
    assert answer.agreement == pytest.approx((4 / 5 + 6 / 7 + 0) / 3)  # F1 without articles: 2, 3, 3 and 4 words
    assert answer.cost_usd == 2.0


def test_json_is_compared_by_what_it_says() -> None:
    texts = ['{"name":"Bo","age":3}', '{\n  "age": 3,\n  "name": "Bo"\n}', '{"name": "Al", "age": 9}']
    answer = merge(GENERATE, PROMPT, [candidate(text, key=text) for text in texts])
    assert answer.text in texts[:2]
    assert answer.agreement == pytest.approx((1 + 0.5) / 2)


def test_whole_answers_come_before_cut_and_refused_ones() -> None:
    members = [
        candidate("no no no", status="truncated", key="l"),
        candidate("yes"),
        candidate("", status="refused", key="m"),
    ]
    answer = merge(GENERATE, PROMPT, members)
    assert (answer.text, answer.status, answer.agreement) == ("yes", "ok", 0.0)
    assert merge(GENERATE, PROMPT, members[::2]).status == "truncated"


def test_all_terms_bind_a_row() -> None:
    def terms(*names: str | None) -> str | None:
        return merge(GENERATE, PROMPT, [candidate("x", key=str(i), terms=t) for i, t in enumerate(names)]).terms

    assert [terms("openai"), terms(None), terms("mit", "mit"), terms("openai", "mit"), terms("openai", None)] == [
        "openai", None, "mit", "mit+openai", "openai+unknown",
    ]  # fmt: skip


_MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["positive", "negative", "Positive.", "dunno", ""]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["ok", "ok", "ok", "truncated", "refused", "filtered", "failed"]),
        st.one_of(st.none(), st.floats(0.01, 0.97)),
    ),
    min_size=1,
    max_size=7,
)


@settings(deadline=None)
@given(_MEMBERS, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_teachers_does_not_matter(members: list[Any], shuffle: random.Random, labels: bool) -> None:
    given_ = [
        candidate(text, p and (p, 0.98 - p) if labels else None, status, role, key=str(i))
        for i, (text, role, status, p) in enumerate(members)
    ]
    task = CLASSIFY if labels else GENERATE
    answer = merge(task, PROMPT, given_)
    others = shuffle.sample(given_, len(given_))
    again = merge(task, PROMPT, others)
    assert {**_plain(again), "requests": answer.requests} == _plain(answer)
    assert sorted(again.requests) == sorted(answer.requests)
    assert answer.cost_usd == (0.5 * sum(c.status != "failed" for c in given_) or None)
    if answer.label_probs:
        assert sum(answer.label_probs) <= 1 + 1e-6
        assert all(0 <= p <= 1 for p in answer.label_probs)
    assert answer.agreement is None or 0 <= answer.agreement <= 1
    assert answer.text in {c.text for c in given_}
    if labels and answer.prediction and not answer.label_probs:
        said = Counter(CLASSIFY.prediction(c.text) for c in given_)
        assert said[answer.prediction] == max(said.values())


def _plain(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in answer.__struct_fields__}


# From end to end.


def api_model(api: MockApi, **knobs: Any) -> dict[str, Any]:
    return {"openai_api": {"model": "mock-large", "base_url": api.url, "api_key_env": None} | knobs}


ROWS = [{"prompt": f"item {i}", "tags": {"lang": ["de", "fr", "it"][i % 3]}, "label": LABELS[i % 2]} for i in range(30)]


def test_an_ensemble_asks_everyone_once_and_tells_who_answered(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    with serving(answer="positive") as other:
        models = {
            "big": api_model(api, prices_usd={"prompt": 100, "completion": 1000}, terms="openai"),
            "small": api_model(other, prices_usd={"prompt": 1, "completion": 10}, terms="mit"),
        }
        recipe = desk.recipe(models=models, teachers=["small", "big"], filter=[{"agreement": {"min": 0.6}}])
        summary = desk.run(recipe)
        assert (summary["asked"], summary["answered"], summary["owed"]) == (60, 60, 0)
        rows = desk.rows(summary, "answers")
        for row in rows:
            agree = label_of(row["messages"][0]["content"]) == "positive"
            assert (row["prediction"], row["agreement"]) == (("positive", 1.0) if agree else (None, 0.0))
            assert (row["role"], row["terms"]) == ("big+small", "mit+openai")
            assert row["cost_usd"] == pytest.approx((2 * 101 + 1010) / 1e6)
            assert len(row["requests"]) == 2
        assert summary["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in rows))
        assert {row["prediction"] for row in desk.rows(summary, "kept")} == {"positive"}
        assert {row["dropped_by"] for row in desk.rows(summary, "dropped")} == {"agreement"}
        assert set(api.asked.values()) == set(other.asked.values()) == {1}
        again = desk.here(recipe, "teachers=[big, small]")  # said in another order
        assert again["asked"] == 0
        assert [r["text"] for r in desk.rows(again, "answers")] == [r["text"] for r in rows]


def test_what_one_teacher_owes_is_asked_of_that_one_alone(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    with serving() as other:
        other.faults = {"item 3": ["400"], "item 4": ["length"]}
        models = {"big": api_model(api), "small": api_model(other)}
        recipe = desk.recipe(models=models, teachers=["big", "small"])
        summary = desk.here(recipe)
        assert (summary["status"], summary["owed"], summary["asked"]) == ("done", 1, 60)
        (lost,) = [row for row in desk.rows(summary, "answers") if row["status"] == "failed"]
        assert lost["reason"] == "HTTP 400: server_error try again (small)"
        again = desk.here(recipe)
        assert (again["owed"], again["asked"], other.asked["item 3"], api.asked["item 3"]) == (0, 1, 2, 1)
        assert desk.here(recipe)["asked"] == 0
        assert (other.asked["item 4"], api.asked["item 4"]) == (1, 1)


def test_a_teacher_that_always_fails_stops_the_run_and_costs_no_answer(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    with serving() as other:
        other.faults = {str(row["prompt"]): ["400"] for row in ROWS}
        recipe = desk.recipe(models={"big": api_model(api), "small": api_model(other)}, teachers=["big", "small"])
        summary = desk.here(recipe)
        assert summary["status"] == "fell_short"
        assert "30 of 30 rows failed" in summary["reason"]
        assert "HTTP 400: server_error try again (small)" in summary["reason"]
        again = desk.here(recipe)
        assert (again["status"], again["asked"], set(api.asked.values())) == ("done", 30, {1})


def test_teachers_are_asked_side_by_side(desk: Desk) -> None:
    desk.seeds(ROWS)
    with serving(latency_s=0.05) as slow, serving(latency_s=0.005) as fast:
        models = {"slow": api_model(slow, concurrency=2), "fast": api_model(fast, concurrency=2)}
        summary = desk.here(desk.recipe(models=models, teachers=["slow", "fast"]))
        assert (summary["answered"], slow.most_in_flight, fast.most_in_flight) == (60, 2, 2)
        assert slow.times[0] < fast.times[-1] < slow.times[-1]  # neither waits for the other


def test_one_model_is_no_ensemble_and_answers_a_question_once(desk: Desk, api: MockApi) -> None:
    models = {"a": api_model(api), "b": api_model(api, concurrency=3, terms="mit")}
    desk.seeds([{"prompt": "same", "tags": {"lang": lang}} for lang in ("de", "fr")] + [{"prompt": "other"}])
    said = desk.llm_distill("check", desk.recipe(models=models, teachers=["a", "b"]), code=2)
    assert "a and b are the same model" in said
    assert "answers.samples" in said
    with pytest.raises(UserError, match="are the same model"):
        desk.here(desk.recipe(models=models, teachers=["a", "b"]))
    assert not api.asked
    route = {"tag": "lang", "to": {"de": "a"}, "otherwise": "b"}
    summary = desk.here(desk.recipe(models=models, teachers={"route": route}))
    assert sorted(row["role"] for row in desk.rows(summary, "answers")) == ["a", "b", "b"]
    assert api.asked == {"same": 1, "other": 1}


def test_a_mix_shares_the_rows(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    with serving(answer="negative") as other:
        models = {"big": api_model(api, terms="openai"), "small": api_model(other, terms="mit")}
        recipe = desk.recipe(models=models, teachers={"mix": {"big": 0.7, "small": 0.3}})
        found = desk.here(recipe)
        rows = desk.rows(found, "answers")
        counts = Counter(row["role"] for row in rows)
        assert counts.keys() == {"big", "small"}
        assert (len(api.asked), len(other.asked)) == (counts["big"], counts["small"])
        assert {(row["role"], row["terms"]) for row in rows} == {("big", "openai"), ("small", "mit")}
        desk.seeds([{"prompt": "new 1"}, *ROWS, {"prompt": "new 2"}])
        again = desk.here(recipe)
        assert again["asked"] == 2
        before = {row["row_id"]: row["role"] for row in rows}
        after = {row["row_id"]: row["role"] for row in desk.rows(again, "answers")}
        assert before.items() <= after.items()


def test_routes_lead_rows_to_teachers_or_nothing_is_asked(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    models = {"german": api_model(api), "french": api_model(api, model="mock-small")}
    route = {"tag": "lang", "to": {"de": "german", "fr": "french"}}
    recipe = desk.recipe(models=models, teachers={"route": route})
    for command in ("check", "run"):
        message = desk.llm_distill(command, recipe, code=2)
        assert "no teacher for these values of the tag 'lang': it (10 rows); routed are de, fr" in message
        assert "otherwise: role" in message
    assert not api.asked
    summary = desk.here(recipe, "teachers.route.otherwise=french")
    roles = {(row["tags"][0][1], row["role"], row["model"]) for row in desk.rows(summary, "answers")}
    assert roles == {
        ("de", "german", "mock-large-2026-01-01"), ("fr", "french", "mock-small-2026-01-01"),
        ("it", "french", "mock-small-2026-01-01"),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"it \(10 rows\)"):  # also where the rows are those of an earlier run
        desk.here(recipe)


def test_samples_are_questions_of_their_own(desk: Desk, api: MockApi) -> None:
    """Self-consistency: five draws with five seeds, merged; more samples ask only for what is new."""
    api.says = lambda body, _prompt: LABELS[body["seed"] % 3 == 0]
    desk.seeds(ROWS)
    recipe = desk.recipe(
        models={"teacher": api_model(api)},
        answers={"temperature": 0.7, "seed": 0, "samples": 5, "max_tokens": 4},
        filter=[{"agreement": {"min": 0.65}}],
    )
    summary = desk.here(recipe)
    assert (summary["asked"], summary["status"]) == (150, "fell_short")  # 3 of 5 agree everywhere
    assert Counter(body["seed"] for body in api.bodies) == dict.fromkeys(range(5), 30)
    rows = desk.rows(summary, "answers")
    assert {(row["prediction"], row["agreement"]) for row in rows} == {("positive", 0.6)}
    more = desk.here(recipe, "answers.samples=6")
    assert (more["asked"], more["status"]) == (30, "done")
    assert {row["score.agreement"] for row in desk.rows(more, "kept")} == {4 / 6}
    assert all(len(row["requests"]) == 6 for row in desk.rows(more, "answers"))


def test_the_best_is_chosen_by_a_scorer(desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = ["a b c", "a b", "a b c d e", "a b"]
    api.says = lambda body, _prompt: drafts[body["seed"]]
    monkeypatch.syspath_prepend(desk.folder)
    (desk.folder / "drafts.py").write_text(
        "import math\n\ndef words(answers):\n    return [math.nan if len(a.text) > 7 else len(a.text) for a in answers]\n"
    )
    desk.seeds(ROWS[:3])
    answers = {"temperature": 1, "seed": 0, "samples": 4}
    recipe = desk.recipe(task="generate", models={"teacher": api_model(api)}, answers=answers)
    for best_by, text in [
        (None, "a b"), ("length", "a b c d e"), ("{length: {prefer: low, unit: words}}", "a b"), ("drafts:words", "a b c"),
    ]:  # fmt: skip
        summary = desk.here(recipe, *([f"answers.best_by={best_by}"] if best_by else []))
        assert {row["text"] for row in desk.rows(summary, "answers")} == {text}
    assert len(api.bodies) == 12  # a new choice asks for nothing


def test_the_teachers_are_evaluated_as_they_answered(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    rules = {"item [0-9]*[02468]$": "positive"}
    models = {
        "big": api_model(api),
        "small": {"scripted": {"rules": rules, "default": "negative"}},
        "other": {"scripted": {"rules": rules, "default": "negative", "confidence": 0.8}},
        "student": {"scripted": {"default": "positive"}},
    }
    recipe = desk.recipe(
        models=models, teachers=["big", "other", "small"], held_out={"share": 0.5}, evaluate={"resamples": 200},
        answers={"temperature": 0.5, "samples": 2, "max_tokens": 4},
    )  # fmt: skip
    found = desk.here(recipe)
    held = len(desk.rows(found, "held_out"))
    assert found["asked"] == 6 * 30 + held  # and the student, once
    rows = desk.rows(found, "eval/teacher")
    assert {row["role"] for row in rows} == {"big+other+small"}
    assert all(row["prediction"] == row["label"] for row in rows)  # two of three always know
    assert {row["role"] for row in desk.rows(found, "eval/base_zero_shot")} == {"student"}
    assert {body["temperature"] for body in api.bodies} == {0.5}
    report = (Path(found["run"]) / "report" / "report.json").read_text()
    assert '"teachers": 3' in report
    assert '"big+other+small": {' in report


def test_the_headline_speaks_of_as_many_teachers_as_there_are() -> None:
    rows = [make_prompt((Message("user", f"row {i}"),), label=LABELS[i % 2]) for i in range(60)]
    said = [[Answer(p, "", "ok", prediction=LABELS[i % n % 2]) for i, p in enumerate(rows)] for n in (2, 4, 3)]
    arms = dict(zip(("teacher", "student", "base_zero_shot"), said, strict=True))
    one, three = (compare(arms, "classify", LABELS, seed=0, teachers=n, resamples=200)["headline"] for n in (1, 3))
    assert one.startswith("The student keeps 100.0 %")
    assert "of its teacher's accuracy" in one
    assert three == one.replace("its teacher's", "its teachers'")


def test_check_counts_every_teacher_at_its_own_price(desk: Desk) -> None:
    desk.seeds(ROWS)
    prices = [{"prompt": 0, "completion": price} for price in (1000, 10)]
    models = {
        role: {"openai_api": {"model": role, "api_key_env": None, "prices_usd": p}}
        for role, p in zip("ab", prices, strict=True)
    }
    recipe = desk.recipe(
        models=models, teachers={"route": {"tag": "lang", "to": {"de": "a"}, "otherwise": "b"}},
        answers={"max_tokens": 10, "samples": 2, "temperature": 1},
    )  # fmt: skip
    shown = desk.llm_distill("check", recipe)
    assert "by the tag lang (de: a, otherwise: b)" in shown
    assert "a          openai_api, 20 requests" in shown
    assert "b          openai_api, 40 requests" in shown
    assert "at most about $0.20" in shown  # 20 x 10 x $1,000 and 40 x 10 x $10 a million tokens


def test_one_budget_binds_all_teachers(desk: Desk, api: MockApi) -> None:
    desk.seeds(ROWS)
    prices = {"prompt": 1000, "completion": 1000}
    models = {"big": api_model(api, prices_usd=prices), "small": api_model(api, model="mock-small", prices_usd=prices)}
    answers = {"max_tokens": 2, "budget_usd": 0.15}
    recipe = desk.recipe(task="generate", models=models, teachers=["big", "small"], answers=answers)
    summary = desk.here(recipe)
    assert (summary["status"], summary["cost_usd"] <= 0.15) == ("fell_short", True)
    assert sum(api.paid.values()) * 3e-3 == pytest.approx(summary["cost_usd"])
    assert 31 <= sum(api.paid.values()) <= 50  # the second teacher found what the first had left
