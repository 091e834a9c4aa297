"""Which side a row is on: asked, held out, or set aside because it is near both.

A row's side never depends on later rows, so a held-out row stays one whatever is appended. It goes, by the first of these
that knows a side, with its counterfactual group, with the row it was made from, with an earlier row that it nearly equals,
or where a hash of its content puts it. A row that is near both sides is set aside: it would leak from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from llm_distill.errors import UserError
from llm_distill.mixing import unit
from llm_distill.near import NearIndex
from llm_distill.ngrams import portions
from llm_distill.recipe_keys import HeldOut
from llm_distill.records import Prompt, make_prompt
from llm_distill.seeds import numbered, read_rows

Side = Literal["asked", "held_out", "aside"]
#: A row with so many near neighbours is not looked at by later ones, which find those: thousands of rows made from one
#: template would otherwise all be compared with each other.
_CROWD = 8


class Earlier(Protocol):
    """The rows of earlier runs: they keep their sides, and what is not new to them is neither asked nor held out again."""

    @property
    def taught(self) -> Sequence[Prompt]: ...

    @property
    def held_out(self) -> Sequence[Prompt]: ...

    def new(self, rows: Sequence[Prompt], /) -> list[Prompt]:
        """Those that are new, also to each other."""
        ...


class Sides:
    """Who is on which side. lasting: leaves out the rows of a file that were forgotten."""

    def __init__(
        self,
        held_out: HeldOut | None,
        earlier: Earlier | None = None,
        lasting: Callable[[Sequence[Prompt]], list[Prompt]] = list,
    ) -> None:
        self._share = 0.0 if held_out is None or held_out.share is None else held_out.share
        near = held_out.near if held_out else None
        self._index = None if near is None else NearIndex(near)
        self._side: dict[str, Side] = {}  # of units and of row_ids
        self._sides: list[Side] = []  # of what is in the index
        self._seen: dict[str, int] = {}
        self._file = held_out is not None and held_out.file is not None
        self.given = lasting(list(numbered(read_rows(held_out.file)))) if held_out and held_out.file else []
        if held_out and held_out.file and not self.given:
            raise UserError(f"held_out.file: every row of {held_out.file} was forgotten; name others.")
        for row in self.given:
            self._place(row, "held_out")
        for row in earlier.held_out if earlier else ():
            self._place(row, "held_out")
        for row in earlier.taught if earlier else ():
            self._place(row, "asked")
        self._taken = {row.gist for row in self.given}

    def numbered(self, rows: Sequence[Prompt]) -> Iterator[Prompt]:
        """The same rows; those whose words stood there before get row_ids of their own."""
        texts = [row.text for row in rows] if self._index else []
        ahead = {some.start: texts[some.start : some.stop] for some in portions(texts)}
        for place, row in enumerate(rows):
            if self._index and place in ahead:
                self._index.expect(ahead[place])
            n = self._seen.get(row.prompt_id, 0)
            self._seen[row.prompt_id] = n + 1
            yield make_prompt(row.messages, row.tags, row.label, row.reference, occurrence=n) if n else row

    def of(self, row: Prompt, *, chance: bool = True) -> Side:
        """The side of a row that was not seen before. Without `chance` only its neighbours can hold it out."""
        if row.gist in self._taken:  # also a given row, which is the user's to repair
            return "asked"
        known = self._side.get(unit(row)) or self._side.get(row.tags.get("parent", ""))
        near = [] if self._index is None else self._index.near(row.text)
        joins = {*(self._sides[i] for i in near), *([known] if known else [])}
        if not joins:
            chosen = chance and int(unit(row)[:8], 16) / 2**32 < self._share
            joins = {"held_out"} if chosen else {"asked"}
        elif self._file:  # which rows are held out is given, all of them
            joins = joins if joins == {"asked"} else {"aside"}
        side: Side = joins.pop() if len(joins) == 1 else "aside"
        self._place(row, side, crowded=len(near) >= _CROWD)
        return side

    def reunite(self, asked: Sequence[list[Prompt]], held_out: Sequence[Prompt]) -> int:
        """Let groups that were formed of rows which stood already lie on one side: where some members are held out, the
        others are set aside. Gives how many.
        """
        held = {row.tags["group"] for row in held_out if "group" in row.tags}
        aside = 0
        for rows in asked:
            apart = [row for row in rows if row.tags.get("group") in held]
            aside += len(apart)
            rows[:] = [row for row in rows if row.tags.get("group") not in held]
            for row in apart:
                self._side[row.row_id] = "aside"
        still = [row for rows in asked for row in rows]
        self._side |= {unit(row): "asked" for row in still if "group" in row.tags}
        self._side |= {unit(row): "held_out" for row in held_out if "group" in row.tags}
        return aside

    def _place(self, row: Prompt, side: Side, *, crowded: bool = False) -> None:
        self._side[unit(row)] = self._side[row.row_id] = side
        if self._index is not None and side != "aside" and not crowded:
            self._index.add(len(self._sides), row.text)
            self._sides.append(side)
