"""Instructions that a program can verify, such as "at least 400 words", as IFEval has them (Zhou et al. 2023, arXiv 2311.07911).

The checks are those of lm-evaluation-harness, so that scores are its own. A row carries its instructions as its reference, which
is JSON: `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from typing import Annotated, Any, Literal, NamedTuple
from unittest.mock import patch

import msgspec
from pydantic import AfterValidator

from llm_distill.errors import UserError
from llm_distill.records import Answer, Prompt
from llm_distill.scorers import Scored

#: What these count, they count with a tokenizer of sentences and words whose data NLTK fetches apart.
_BY_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
#: Words that the harness takes for patterns as they stand, and `f(x` is none.
_PATTERNS = {"keyword", "keywords", "forbidden_words", "section_spliter", "postscript_marker", "starter"}


class Instructions(msgspec.Struct):
    """A row's instructions by their ids, and what each is told: `{"num_words": 400, "relation": "at least"}`."""

    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]


class Followed(NamedTuple):
    """Which of a row's instructions an answer follows, as it stands, and by the loose reading: without a first or last line, or
    without asterisks.
    """

    strict: list[bool]
    loose: list[bool]


def _installed(how: str) -> str:
    check_installed()
    return how


def check_installed() -> None:
    """UserError where what verifies instructions is missing."""
    if missing := [name for name in ("lm_eval", "langdetect", "immutabledict", "nltk") if find_spec(name) is None]:
        raise UserError(
            f"`instructions` needs {missing[0]}, which is not installed: `pip install 'llm-distill[general]'`."
        )


def instructions(
    answers: Sequence[Answer],
    *,
    how: Annotated[Literal["strict", "loose"], AfterValidator(_installed)] = "strict",
) -> Scored:
    """1 where an answer follows all instructions of its row, else 0, and which it does not follow. NaN where the row has none.

    `how: loose` forgives a first or last line that is not part of the answer, and asterisks.
    """

    def score(answer: Answer) -> tuple[float, str | None]:
        if (due := carried(answer.prompt)) is None:
            return math.nan, "no instructions"
        done = getattr(followed(answer, due), how)
        broken = [name for name, ok in zip(due.instruction_id_list, done, strict=True) if not ok]
        return float(not broken), f"not followed: {', '.join(broken)}" if broken else None

    scores = [score(answer) for answer in answers]
    return Scored([value for value, _ in scores], why=[why for _, why in scores])


def carried(prompt: Prompt) -> Instructions | None:
    """A row's instructions, where its reference is such."""
    if not (prompt.reference or "").lstrip().startswith("{"):
        return None
    try:
        found = msgspec.json.decode(prompt.reference or "", type=Instructions)
    except msgspec.MsgspecError:
        return None
    return found if found.instruction_id_list else None


def followed(answer: Answer, due: Instructions) -> Followed:
    """What the harness says of an answer."""
    checks, found = _harness(), Followed([], [])
    for name, told in zip(due.instruction_id_list, due.kwargs, strict=True):
        asked = checks.InputExample(0, [name], answer.prompt.text, [told])
        try:
            strict = checks.test_instruction_following_strict(asked, answer.text).follow_instruction_list
            loose = checks.test_instruction_following_loose(asked, answer.text).follow_instruction_list
        except RecursionError:  # JSON, nested too deeply to be read
            strict = loose = [False]
        found.strict.extend(strict)
        found.loose.extend(loose)
    return found


def check_rows(rows: Sequence[Prompt]) -> None:
    """UserError for instructions that cannot be verified, naming the row. Where a number or word is left open the harness would
    draw one by chance, and hold the answer against that.
    """
    known = {prompt.row_id: due for prompt in rows if (due := carried(prompt)) is not None}
    if not known:
        raise UserError(
            "`instructions`: no row has any; a row carries `instruction_id_list` and `kwargs`, as IFEval's do, beside its prompt."
        )
    for row, due in known.items():
        if len(due.kwargs) != len(due.instruction_id_list):
            raise UserError(
                f"row {row}: {len(due.instruction_id_list)} instructions and {len(due.kwargs)} kwargs; each has its own."
            )
        for name, told in zip(due.instruction_id_list, due.kwargs, strict=True):
            _check_one(row, name, told)


def _check_one(row: str, name: str, told: Mapping[str, Any]) -> None:
    _harness()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    if name not in INSTRUCTION_DICT:
        raise UserError(f"row {row}: there is no instruction {name!r}; known: {', '.join(sorted(INSTRUCTION_DICT))}.")
    if name in _BY_PUNKT and not _has_punkt():
        raise UserError(
            f"row {row}: {name} needs NLTK's data punkt_tab, which is not on this machine: `python -m nltk.downloader punkt_tab`."
        )
    check = INSTRUCTION_DICT[name](name)
    given = {key: value for key, value in told.items() if value}  # as the harness reads them
    if missing := [key for key in check.get_instruction_args_keys() if key not in given]:
        raise UserError(f"row {row}: the kwargs of {name} lack {missing[0]!r}; found {dict(told)}.")
    try:
        check.build_description(**given)
        for key in _PATTERNS & given.keys():
            for word in [given[key]] if isinstance(given[key], str) else given[key]:
                for pattern in (word, rf"\s?{word}"):
                    re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"row {row}: the kwargs of {name} are {given}, which it does not take: {error}.") from None


@cache
def _harness() -> Any:
    """The harness's checks. Loading them would fetch data from the network without a word, and languages are told by lot."""
    check_installed()
    import langdetect
    import nltk

    with patch.object(nltk, "download", lambda *_args, **_kwargs: False), redirect_stdout(StringIO()):
        from lm_eval.tasks.ifeval import utils
    langdetect.DetectorFactory.seed = 0
    return utils


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True
