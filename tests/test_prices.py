"""Prices: the table, what a recipe says instead, and what a request costs by them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_distill import prices
from llm_distill.errors import UserError
from llm_distill.ledger import Ledger
from llm_distill.models import wire
from llm_distill.prices import FREE, LongPrompt, Prices, listed
from llm_distill.recipe import load
from tests.conftest import Desk
from tests.mock_api import MockApi

OPENAI = "https://api.openai.com/v1"
TABLE = sorted(prices._table().items())


def test_every_entry_names_its_page_and_the_day_it_was_read() -> None:
    assert len({host for (host, _), _ in TABLE}) >= 8
    assert len(TABLE) > 80
    for (host, model), entry in TABLE:
        assert entry.url.startswith("https://"), (host, model)
        assert len(entry.read) == len(entry.version) == len("2026-11-22"), (host, model)
        assert entry.read <= entry.version, (host, model)
        assert entry.prices.prompt > 0, (host, model)
        assert entry.prices.completion >= entry.prices.prompt * 0.9, (host, model)
        assert (entry.prices.cached_prompt or 0.0) < entry.prices.prompt <= (entry.prices.cache_write or 1e9), model


@pytest.mark.parametrize(
    ("base_url", "model", "dollars"),
    [
        (OPENAI, "gpt-4.1-mini-2025-04-14", (0.4, 1.6)),
        (OPENAI, "gpt-4.1-mini", (0.4, 1.6)),
        (OPENAI, "gpt-4.1", (2.0, 8.0)),
        ("https://api.openai.com:443/v1/", "gpt-4.1", (2.0, 8.0)),
        ("https://API.openai.com/v1", "gpt-4.1", (2.0, 8.0)),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-flash", (0.3, 2.5)),
        ("https://api.deepseek.com", "deepseek-flash", (0.3, 1.2)),
    ],
)
def test_a_listed_model_is_found_by_host_and_name(base_url: str, model: str, dollars: tuple[float, float]) -> None:
    found = listed(base_url, model)
    assert found
    assert (found.prompt, found.completion) == dollars


@pytest.mark.parametrize(
    ("base_url", "model"),
    [
        (OPENAI, "gpt-4.1-mini-2025-04-1"),  # neither a prefix of a name
        (OPENAI, "gpt-4.1-mini-2025-04-14-x"),  # nor a name with more behind it
        (OPENAI, "gpt-4.1-max"),
        (OPENAI, "ft:gpt-4.1-mini-2025-04-14:me::1"),
        (OPENAI, "GPT-4.1"),
        (OPENAI, ""),
        ("https://api.openai.com.evil.example/v1", "gpt-4.1"),
        ("https://eu.api.openai.com/v1", "gpt-4.1"),
        ("https://api.openai.com:8443/v1", "gpt-4.1"),
        ("https://api.openai.com:port/v1", "gpt-4.1"),
        ("http://localhost:8000/v1", "gpt-4.1"),
        ("http://localhost:8000/v1", "openai/gpt-oss-120b"),
        ("https://[", "gpt-4.1"),
        (None, "gpt-4.1"),
    ],
)
def test_nothing_else_has_a_known_price(base_url: str | None, model: str) -> None:
    assert listed(base_url, model) is None


def test_what_a_request_costs() -> None:
    rates = Prices(prompt=10, completion=40, cached_prompt=1, cache_write=12.5, batch_discount=0.5)
    assert rates.cost_usd(1_000_000, 1_000_000) == 50
    assert rates.cost_usd(1_000_000, 0, 1_000_000) == 1
    assert rates.cost_usd(1_000_000, 0, 400_000, cache_write_tokens=100_000) == 0.4 + 1.25 + 5
    assert rates.cost_usd(1_000_000, 1_000_000, batch=True) == 25
    assert Prices(prompt=10, completion=40).cost_usd(1_000_000, 0, 1_000_000) == 10  # no price of their own
    assert FREE.cost_usd(10**9, 10**9, 7) == 0
    with_long = rates.model_copy(update={"long_prompt": LongPrompt(over=200_000, prompt=2, completion=1.5)})
    assert with_long.cost_usd(200_000, 1_000_000) == 2 + 40
    assert with_long.cost_usd(200_001, 1_000_000) == pytest.approx(4.00002 + 60)


def test_in_a_batch_a_cached_token_never_costs_less_than_one_reading_of_the_price_list() -> None:
    """Some providers discount cached tokens in a batch again and some do not; the dearer reading is taken."""
    assert (
        Prices(prompt=2, completion=8, cached_prompt=0.5, batch_discount=0.5).cost_usd(10**6, 0, 10**6, batch=True)
        == 0.5
    )
    assert (
        Prices(prompt=2, completion=8, cached_prompt=1.9, batch_discount=0.5).cost_usd(10**6, 0, 10**6, batch=True) == 1
    )


usd = st.floats(0, 100)
tokens = st.integers(0, 400_000)


@given(usd, usd, usd | st.none(), usd | st.none(), tokens, tokens, tokens, tokens, st.booleans(), st.booleans(), tokens)
def test_a_reservation_covers_whatever_comes(
    prompt: float, completion: float, cached: float | None, write: float | None,
    asked: int, made: int, hit: int, written: int, batch: bool, long: bool, slack: int,
) -> None:  # fmt: skip
    rates = Prices(
        prompt=prompt, completion=completion, cached_prompt=cached, cache_write=write, batch_discount=0.5,
        long_prompt=LongPrompt(over=200_000, prompt=2, completion=1.5) if long else None,
    )  # fmt: skip
    reserved = rates.at_most_usd(asked + slack, made + slack, batch=batch)
    paid = rates.cost_usd(asked, made, hit, cache_write_tokens=written, batch=batch)
    assert 0 <= paid <= reserved * (1 + 1e-12)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": -1}, "prompt"),
        ({"completion": float("nan")}, "completion"),
        ({"completion": float("inf")}, "completion"),
        ({"cached_prompt": -0.1}, "cached_prompt"),
        ({"cache_write": float("inf")}, "cache_write"),
        ({"batch_discount": 1.1}, "batch_discount"),
        ({"batch_discount": float("nan")}, "batch_discount"),
        ({"long_prompt": {"over": 0, "prompt": 1, "completion": 1}}, "long_prompt.over"),
        ({"long_prompt": {"over": 1, "prompt": 0.5, "completion": 1}}, "long_prompt.prompt"),
        ({"promt": 1}, "promt"),
    ],
)
def test_a_wrong_price_names_its_field(desk: Desk, wrong: dict[str, Any], field: str) -> None:
    stated = {"prompt": 1.0, "completion": 1.0} | wrong
    with pytest.raises(ValidationError):
        Prices(**stated)
    desk.seeds([{"prompt": "a"}])
    recipe = desk.recipe(models={"teacher": {"openai_api": {"model": "m", "prices_usd": stated}}})
    with pytest.raises(UserError, match=rf"^models\.teacher\.openai_api\.prices_usd(\.|: no key '){re.escape(field)}"):
        load(recipe)


def test_check_says_who_says_the_price(desk: Desk) -> None:
    desk.seeds([{"prompt": f"row {i}"} for i in range(50)])

    def check(**knobs: Any) -> dict[str, Any]:
        recipe = desk.recipe(models={"teacher": {"openai_api": knobs}}, answers={"max_tokens": 1000})
        found = json.loads(desk.llm_distill("check", recipe, "--json"))
        return found | found["teachers"]["teacher"]  # type: ignore[no-any-return]

    by_table = check(model="gpt-4.1-mini")
    assert by_table["prices"].startswith("prices.yaml 2026-11-22, from https://developers.openai.com/api/docs/pricing")
    assert by_table["cost_usd_at_most"] == pytest.approx(
        (0.4 * by_table["teacher_prompt_tokens"] + 1.6 * 50_000) / 1e6, abs=1e-4
    )
    by_recipe = check(model="gpt-4.1-mini", prices_usd={"prompt": 0, "completion": 2})
    assert (by_recipe["prices"], by_recipe["cost_usd_at_most"]) == ("recipe", 0.1)
    unknown = check(model="gpt-99")
    assert (unknown["prices"], unknown["cost_usd_at_most"]) == (None, None)
    note = check(model="deepseek-v4-pro", base_url="https://api.deepseek.com")["prices"]
    assert note.endswith("; peak hours; half of this at other hours")
    shown = desk.llm_distill("check", desk.recipe(models={"teacher": {"openai_api": {"model": "gpt-4.1-mini"}}}))
    assert "; prices: prices.yaml 2026-11-22, from" in shown


def test_a_dollar_budget_needs_a_price(desk: Desk) -> None:
    desk.seeds([{"prompt": "a"}])
    teacher = {"openai_api": {"model": "gpt-99"}}
    budget = {"budget_usd": 1}
    negative = {"openai_api": {"model": "m", "prices_usd": {"prompt": -0.4, "completion": 1}}}
    said = desk.llm_distill("check", desk.recipe(models={"teacher": negative}), code=2)
    assert "prices_usd.prompt: Input should be greater than or equal to 0; found -0.4" in said
    said = desk.llm_distill("check", desk.recipe(models={"teacher": teacher}, answers=budget), code=2)
    assert "the price of models.teacher (openai_api) is unknown" in said
    assert "prices_usd" in said
    known = desk.recipe(models={"teacher": {"openai_api": {"model": "gpt-4.1-mini"}}}, answers=budget)
    assert "sound" in desk.llm_distill("check", known)


def test_a_run_records_who_said_the_price_and_its_version(desk: Desk, api: MockApi) -> None:
    desk.seeds([{"prompt": "a"}])
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    stated = knobs | {"prices_usd": {"prompt": 1, "completion": 1}}
    recipe = desk.recipe(models={"teacher": {"openai_api": stated}, "writer": {"openai_api": {"model": "gpt-4.1"}}})
    run = desk.folder / desk.run(recipe, "--until", "filter")["run"]
    models = json.loads((run / "run.json").read_text())["models"]
    assert models["teacher"]["prices"] == "recipe"
    assert models["writer"]["prices"].startswith("prices.yaml 2026-11-22")


def _usage(**usage: Any) -> bytes:
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def test_the_wire_says_what_was_cached_and_what_was_thought() -> None:
    details = {"cached_tokens": 64, "cache_write_tokens": 8, "audio_tokens": 0}
    got = wire.completion(
        _usage(prompt_tokens=100, completion_tokens=5, total_tokens=105, prompt_tokens_details=details)
    )
    assert (got.prompt_tokens, got.completion_tokens) == (100, 5)
    assert (got.cached_tokens, got.cache_write_tokens) == (64, 8)
    plain = wire.completion(_usage(prompt_tokens=100, completion_tokens=5, prompt_tokens_details=None))
    assert (plain.completion_tokens, plain.cached_tokens, plain.cache_write_tokens) == (5, None, None)
    # Some servers count hidden reasoning in the total alone; it is paid for like the answer.
    assert wire.completion(_usage(prompt_tokens=100, completion_tokens=5, total_tokens=305)).completion_tokens == 205
    assert wire.completion(_usage(prompt_tokens=100, total_tokens=105)).completion_tokens is None


def test_the_cost_of_an_entry_counts_what_was_cached(desk: Desk, api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    body = api._body

    def cached(*arguments: Any) -> dict[str, Any]:
        usage = {"prompt_tokens": 2000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 1536}}
        return body(*arguments) | {"usage": usage}

    monkeypatch.setattr(api, "_body", cached)
    desk.seeds([{"prompt": "a"}])
    knobs = {"model": "mock-large", "base_url": api.url, "api_key_env": None}
    priced = {"prompt": 100, "completion": 1000, "cached_prompt": 10}
    summary = desk.run(desk.recipe(models={"teacher": {"openai_api": knobs | {"prices_usd": priced}}}))
    expected = (464 * 100 + 1536 * 10 + 10 * 1000) / 1e6
    (row,) = desk.rows(summary, "answers")
    assert row["cost_usd"] == pytest.approx(expected)
    ledger = Ledger(Path(desk.folder) / "data" / "ledger.sqlite")
    (entry,) = ledger.read(row["requests"])
    ledger.close()
    assert entry
    assert entry.cached_tokens == 1536
    assert entry.cost_usd == pytest.approx(expected)
