"""The recipe's `mix`: how many rows of each entry of `prompts`, and of each value of a tag, are asked.

    prompts:
      - seeds: {file: rows.jsonl}
      - evol_instruct: {rows: 2000}
    mix:
      rows: 3000
      shares: {seeds: 0.5, evol_instruct: 0.5}
      balance: {tag: topic, fill: {augment: {kinds: [paraphrase]}}}

Rows are picked by a hash of their content, a counterfactual group as one: a row that is picked once is picked again when
others are added to the same entry, and equal recipes pick equal rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Prompt, content_id

#: Shares may sum to 1 within this much.
_ROUNDING = 0.002


def _whole(shares: dict[str, float]) -> dict[str, float]:
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > _ROUNDING:
        raise ValueError(f"shares are above 0 and sum to 1; found {shares}")
    return shares


#: Parts of one whole, by name.
Shares = Annotated[dict[str, float], AfterValidator(_whole)]


class Balance(BaseModel):
    """Equal or given shares for the values of a tag; `fill` is the generator that makes more where one is short."""

    model_config = ConfigDict(extra="forbid")
    tag: str
    shares: Shares | None = None
    fill: str | dict[str, Any] | None = None


class Mix(BaseModel):
    """At most `rows` rows, the share of each entry of `prompts` (a second `seeds` is `seeds.2`), and a balance among them."""

    model_config = ConfigDict(extra="forbid")
    rows: int | None = Field(None, ge=1)
    shares: Shares | None = None
    balance: Balance | None = None

    def of(self, names: Sequence[str]) -> list[float] | None:
        """The share of each entry, by the entries' names; UserError when these are not the names that have one."""
        if self.shares is None:
            return None
        named = [f"{name}.{n + 1}" if (n := names[:i].count(name)) else name for i, name in enumerate(names)]
        if odd := sorted(self.shares.keys() ^ set(named)):
            found = f"no entry of prompts is {odd[0]!r}" if odd[0] in self.shares else f"{odd[0]!r} has none"
            raise UserError(f"mix.shares: {found}; give each of {', '.join(named)} its share.")
        return [self.shares[name] for name in named]


def unit(prompt: Prompt) -> str:
    """The hash of what is picked or held out as one: a counterfactual group, else a row with all of its equals."""
    return content_id(prompt.tags.get("group", prompt.gist))


def pick(rows: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` rows or a few fewer, for units stay whole: those whose units have the smallest hashes, in their own order."""
    if count >= len(rows):
        return list(rows)
    sizes = Counter(map(unit, rows))
    chosen, taken = set(), 0
    for name in sorted(sizes, key=lambda name: content_id(["mix", name])):
        if taken + sizes[name] <= count:
            chosen.add(name)
            taken += sizes[name]
    return [row for row in rows if unit(row) in chosen]


def mixed(entries: Sequence[Sequence[Prompt]], shares: Sequence[float] | None, rows: int | None) -> list[Prompt]:
    """The rows of all entries, in their shares where they have some: as many as the scarcest entry allows, `rows` at most."""
    if shares is not None:
        size = min(rows or math.inf, *(len(entry) / share for entry, share in zip(entries, shares, strict=True)))
        entries = [pick(entry, round(size * share)) for entry, share in zip(entries, shares, strict=True)]
        rows = None
    together = [row for entry in entries for row in entry]
    return together if rows is None else pick(together, rows)


def balanced(
    rows: Sequence[Prompt],
    balance: Balance,
    most: int | None,
    fill: Callable[[Sequence[Prompt], int], Iterable[Prompt]] | None,
    say: Callable[[str], None],
) -> list[Prompt]:
    """Rows in which each value of a tag has its share; rows without the tag stay as they are.

    Without `fill` the scarcest value says how many rows there are. With it, `fill(rows of a value, missing)` makes more of
    every value that is short of the most frequent one's size; what is then still missing is said, and is left missing.
    """
    values = Counter(row.tags[balance.tag] for row in rows if balance.tag in row.tags)
    if not values:
        tags = {tag for row in rows for tag in row.tags}
        raise UserError(f"mix.balance.tag: no row has the tag {balance.tag!r}.{did_you_mean(balance.tag, tags)}")
    shares = balance.shares or dict.fromkeys(sorted(values), 1 / len(values))
    if empty := sorted(shares.keys() - values.keys()):
        raise UserError(
            f"mix.balance.shares: no row has {balance.tag} = {empty[0]!r}.{did_you_mean(empty[0], values)} "
            "Rows of that value are what more of it is made from, so some are needed."
        )
    without = [row for row in rows if balance.tag not in row.tags]
    if most is not None and len(without) >= most:
        raise UserError(
            f"mix.rows: {most:,} rows, and {len(without):,} without the tag {balance.tag!r} stay as they are; raise it, or "
            "take them out of `prompts`."
        )
    per = {value: [row for row in rows if row.tags.get(balance.tag) == value] for value in shares}
    room = (most or math.inf) - len(without)
    size = min(room, (max if fill else min)(len(per[value]) / share for value, share in shares.items()))
    kept = {id(row) for row in without}
    made: list[Prompt] = []
    for value, share in shares.items():
        wanted = round(size * share)
        more = []
        if fill and len(per[value]) < wanted:
            known = {row.prompt_id for row in (*rows, *made)}
            more = [row for row in fill(per[value], wanted - len(per[value])) if row.prompt_id not in known]
        chosen = pick([*per[value], *more], wanted)
        kept.update(map(id, chosen))
        made += more
        if fill and len(chosen) < wanted:
            say(f"balance: {balance.tag} = {value} has {len(chosen):,} of {wanted:,} rows")
    return [row for row in (*rows, *made) if id(row) in kept]
