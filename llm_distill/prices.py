"""What tokens cost: prices of the recipe, or public list prices (`prices.yaml`); nothing where neither knows one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

_TABLE = Path(__file__).parent / "prices.yaml"

_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Factor = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class LongPrompt(BaseModel):
    """Factors on the prices of a whole request whose prompt has more than `over` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    over: int = Field(gt=0)
    prompt: _Factor
    completion: _Factor


class Prices(BaseModel):
    """Dollars per million tokens.

    `cached_prompt`: of prompt tokens that came from the provider's cache; `cache_write`: of those it put there.
    `batch_discount`: the share that a batch API takes off, 0.5 for half.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: _Usd
    completion: _Usd
    cached_prompt: _Usd | None = None
    cache_write: _Usd | None = None
    batch_discount: float = Field(0.0, ge=0, le=1)
    long_prompt: LongPrompt | None = None

    def cost_usd(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        *,
        cache_write_tokens: int = 0,
        batch: bool = False,
    ) -> float:
        """Dollars for one request. Cached and written tokens are part of the prompt's.

        Where a provider's words leave two readings the dearer one is taken: cached tokens without a price of their own
        cost what the others cost, and their discount is not taken together with a batch's.
        """
        cached = min(max(cached_tokens, 0), prompt_tokens)
        written = min(max(cache_write_tokens, 0), prompt_tokens - cached)
        kept = 1.0 - self.batch_discount if batch else 1.0
        cached_prompt = self.prompt if self.cached_prompt is None else self.cached_prompt
        cache_write = self.prompt if self.cache_write is None else self.cache_write
        prompt = (
            (prompt_tokens - cached - written) * self.prompt * kept
            + cached * max(cached_prompt * kept, min(cached_prompt, self.prompt * kept))
            + written * cache_write * kept
        )
        completion = completion_tokens * self.completion * kept
        if self.long_prompt and prompt_tokens > self.long_prompt.over:
            prompt, completion = prompt * self.long_prompt.prompt, completion * self.long_prompt.completion
        return (prompt + completion) / 1e6

    def at_most_usd(self, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> float:
        """Dollars that a request of at most so many tokens can cost, whatever of its prompt a cache takes part in."""
        return max(
            self.cost_usd(prompt_tokens, completion_tokens, batch=batch),
            self.cost_usd(prompt_tokens, completion_tokens, prompt_tokens, batch=batch),
            self.cost_usd(prompt_tokens, completion_tokens, cache_write_tokens=prompt_tokens, batch=batch),
        )


#: Of what costs no API money: weights in this process, a script.
FREE = Prices(prompt=0.0, completion=0.0)


class Listing(NamedTuple):
    """Prices out of the table, with the table's version, the page that states them and the day it was read."""

    prices: Prices
    version: str
    url: str
    read: str
    note: str | None

    @property
    def source(self) -> str:
        """In one line, for reports."""
        return f"prices.yaml {self.version}, from {self.url}, read {self.read}" + (
            f"; {self.note}" if self.note else ""
        )


def listed(base_url: str | None, model: str | None) -> Prices | None:
    """The list price of a model at a provider's own host, or None; by exact name or documented alias, never a guess."""
    found = listing(base_url, model)
    return found.prices if found else None


def listing(base_url: str | None, model: str | None) -> Listing | None:
    """`listed`, with where it comes from."""
    if not base_url or not model:
        return None
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return _table().get((host or "", model)) if port in (None, 443) else None


@cache
def _table() -> dict[tuple[str, str], Listing]:
    from ruamel.yaml import YAML

    content: dict[str, Any] = YAML(typ="safe", pure=True).load(_TABLE.read_text(encoding="utf-8"))
    table: dict[tuple[str, str], Listing] = {}
    for provider in content["providers"].values():
        source = str(content["version"]), provider["url"], str(provider["read"])
        for name, entry in provider["models"].items():
            words = dict(entry)
            names, note = {name, words.pop("alias", name)}, words.pop("note", None)
            found = Listing(Prices(**words), *source, note)
            for host in provider["hosts"]:
                for known in names:
                    if (host, known) in table:
                        raise ValueError(f"prices.yaml: {known} stands there twice for {host}")
                    table[host, known] = found
    return table
