"""What people said of answers, to hold a judge against: a JSONL file of ratings and preferences.

    {"prompt": "Why is the sky blue?", "rating": 4, "answer": "Air scatters blue light most."}
    {"row_id": "9c1f...", "preference": "student", "against": "teacher", "answers": {"student": "...", "teacher": "..."}}

A row is known by its `row_id` or by its text. `answer` and `answers` are the texts that people saw, which the judge is then
shown too; without them the line is taken to be about this run's own answers (a rating: those of `arm`, the student's unless it
says otherwise). Several people's lines on a row count as one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from llm_distill.errors import UserError
from llm_distill.records import Prompt
from llm_distill.seed_files import json_lines

Rival = Literal["teacher", "base"]
_ARMS = ("base_zero_shot", "base_few_shot", "student", "teacher")


class Opinion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line: one person's rating of an answer, or preference between the student's and another's."""

    row_id: str | None = None
    prompt: str | None = None
    rating: int | None = None
    arm: str = "student"
    answer: str | None = None
    preference: Literal["student", "teacher", "base", "tie"] | None = None
    against: Rival | None = None
    answers: dict[str, str] | None = None

    @property
    def rival(self) -> str:
        """Whose answer the student's is compared with."""
        return self.against or str(self.preference)

    @property
    def choice(self) -> int:
        """What a preference says of the student's answer: 0 lost, 1 tied, 2 won."""
        return {"tie": 1, "student": 2}.get(str(self.preference), 0)


def read_opinions(path: Path, scale: tuple[int, int], rivals: Sequence[str], *, scores: bool) -> list[Opinion]:
    """The lines of a file; UserError, naming the line, for one that this judge could not be held against.

    scores, rivals: whether the judge gives any, and with whom it compares the student.
    """
    found = list(_checked(path, scale, rivals, scores=scores))
    if not found:
        raise UserError(f"evaluate.judge.human: {path} holds no lines.")
    return found


def _checked(path: Path, scale: tuple[int, int], rivals: Sequence[str], *, scores: bool) -> Iterator[Opinion]:
    decoder = msgspec.json.Decoder(Opinion)
    for where, line in json_lines(path):
        try:
            one = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UserError(f"{where}: {error}. {_FORM}") from None
        if why := next(_faults(one, scale, rivals, scores=scores), None):
            raise UserError(f"{where}: {why}. {_FORM}")
        yield one


_FORM = (
    'A line has `row_id` or `prompt`, and either `rating` (and `answer`, the text that was rated) or `preference` ("student", '
    '"teacher", "base" or "tie", with `against`, and `answers`, both texts by whose they are).'
)


def _faults(one: Opinion, scale: tuple[int, int], rivals: Sequence[str], *, scores: bool) -> Iterator[str]:
    """What is wrong with a line, the gravest first."""
    if (one.row_id is None) == (one.prompt is None):
        yield "it names its row both ways, or not at all"
    if (one.rating is None) == (one.preference is None):
        yield "it has a rating and a preference, or neither"
    elif one.rating is not None:
        yield from _of_rating(one, one.rating, scale, scores=scores)
    else:
        yield from _of_preference(one, rivals)


def _of_rating(one: Opinion, rating: int, scale: tuple[int, int], *, scores: bool) -> Iterator[str]:
    if not scores:
        yield "it is a rating, and the judge gives none (`scores: false`)"
    if not scale[0] <= rating <= scale[1]:
        yield f"the rating is {rating}, and the scale {scale[0]} to {scale[1]}"
    if one.arm not in _ARMS:
        yield f"there is no arm {one.arm!r}; it is one of {', '.join(_ARMS)}"
    if one.against or one.answers:
        yield "`against` and `answers` belong to a preference"


def _of_preference(one: Opinion, rivals: Sequence[str]) -> Iterator[str]:
    if one.preference in ("student", "tie") and one.against is None:
        yield "it does not say whose answer the student's was compared with; add `against`"
    elif one.preference not in ("student", "tie", one.rival):
        yield f"it prefers {one.preference}'s answer in a comparison with {one.rival}'s"
    elif one.rival not in rivals:
        yield f"it compares the student with {one.rival}, and `pairwise` is [{', '.join(rivals)}]"
    if one.answers is not None and set(one.answers) != {"student", one.rival}:
        yield f"`answers` needs the texts of student and {one.rival}; found {', '.join(one.answers) or 'none'}"
    if one.answer is not None or one.arm != "student":
        yield "`answer` and `arm` belong to a rating"


def matched(opinions: Sequence[Opinion], prompts: Sequence[Prompt]) -> list[tuple[Opinion, Prompt]]:
    """Each line with its held-out row; lines about other rows are left out."""
    by_id = {prompt.row_id: prompt for prompt in prompts}
    by_text = {_gist(prompt.text): prompt for prompt in reversed(prompts)}
    found = []
    for one in opinions:
        prompt = by_id.get(one.row_id or "") if one.prompt is None else by_text.get(_gist(one.prompt))
        if prompt is not None:
            found.append((one, prompt))
    return found


def _gist(text: str) -> str:
    return " ".join(text.split())
