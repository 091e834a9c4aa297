"""Scorers that read the words of an answer: how many there are, whether they were cut, and whether they go round in circles."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill.counting import tokens_of
from llm_distill.ngrams import Grams, hashed, portions
from llm_distill.plugs import InputFile
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import Part, texts

if TYPE_CHECKING:
    import numpy as np

#: A text of fewer bytes is mostly the header of its own compression.
_COMPRESSIBLE = 100
#: Stars and signs that Markdown puts before a line and around words. Between words they are words of their own, `3 * 4`.
#: A run of stars is looked at once, from its beginning: a model that repeats itself may write a hundred thousand.
_MARKS = re.compile(r"^[ \t]*[*#>+-]+[ \t]+|(?<!\*)\*++(?=\w)|(?<=[^\s*])\*+", re.MULTILINE)
#: A longer one is read so many bytes at a time: the longer prose is, the better it packs, with no word too many.
_STRETCH = 1_000


def empty(answers: Sequence[Answer]) -> list[float]:
    """1 where the answer has no text but blank space."""
    return [float(not a.text.strip()) for a in answers]


def _counted(tokenizer: Path | None, info: ValidationInfo) -> Path | None:
    if info.data.get("unit") == "tokens":
        tokens_of(tokenizer)  # says what is missing
    elif tokenizer is not None:
        raise ValueError("only `unit: tokens` counts by it; remove it, or set the unit")
    return tokenizer


def length(
    answers: Sequence[Answer],
    *,
    of: Part = "answer",
    unit: Literal["characters", "words", "tokens"] = "characters",
    tokenizer: Annotated[InputFile | None, AfterValidator(_counted)] = None,
) -> list[float]:
    """The length of a text, blank space around it not counted. Words are what stands between blanks.

    tokens: by a model's own `tokenizer.json`, or else by the vocabulary of GPT-4o (tiktoken's o200k_base).
    """
    if unit == "tokens":
        count = tokens_of(tokenizer)
        return [float(count(text.strip())) for text in texts(answers, of)]
    if unit == "words":
        return [float(len(text.split())) for text in texts(answers, of)]
    return [float(len(text.strip())) for text in texts(answers, of)]


def truncated(answers: Sequence[Answer]) -> list[float]:
    """1 where the model stopped because max_tokens was reached (`finish_reason: length`)."""
    return [float(a.status == "truncated") for a in answers]


def exact_duplicate(answers: Sequence[Answer], *, of: Part = "prompt") -> list[float]:
    """1 where the same text, but for case and blank space, stands in an earlier row."""
    seen: set[tuple[str, str]] = set()
    scores = []
    for a in answers:
        key = (
            a.prompt.gist if of != "answer" else "",
            " ".join(a.text.casefold().split()) if of != "prompt" else "",
        )
        scores.append(float(key in seen))
        seen.add(key)
    return scores


def repetition(
    answers: Sequence[Answer],
    *,
    of: Part = "answer",
    by: Literal["loops", "compression"] = "loops",
    n: Annotated[int, Field(ge=1, le=16)] = 5,
) -> Scored:
    """How much of a text says what the text says elsewhere.

    loops: the share of its words that stand in an n-gram which occurs more than once (Rae et al. 2021, arXiv 2112.11446,
    section A1.1, whose limit for web text is 0.15 at n = 5); Markdown's marks count for nothing. 0.3, the bound unless the
    recipe says so, leaves lists and forms alone; of code it drops more, for code repeats itself. NaN for a text of no more
    than n words, which cannot repeat one.
    compression: bytes of the text for each byte that zlib leaves, of a text over 1,000 bytes in the worst of its even
    stretches of no more; prose gives 1.2 to 2, code 2 to 3, and a decoder that loops over 2.4 (Radford et al. 2022, arXiv
    2212.04356, section 4.5, of half a minute's speech). What comes again after more than that, `loops` finds. NaN under
    100 bytes.
    """
    found = texts(answers, of)
    if by == "loops":
        values, short = (
            [score for some in portions(found) for score in _looped(found, some, n)],
            f"no more than {n} words",
        )
    else:
        values, short = list(_compressed(found)), f"under {_COMPRESSIBLE} bytes"
    return Scored(values, [short if math.isnan(value) else None for value in values])


def _compressed(found: Sequence[str]) -> Iterator[float]:
    for text in found:
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw) < _COMPRESSIBLE:
            yield math.nan
            continue
        stretches = -(-len(raw) // _STRETCH)
        bounds = [len(raw) * place // stretches for place in range(stretches + 1)]
        parts = (raw[start:end] for start, end in itertools.pairwise(bounds))
        yield max(len(part) / len(zlib.compress(part)) for part in parts)


def _looped(found: Sequence[str], some: range, n: int) -> list[float]:
    """The share of the words of each text that stand in one of its repeated n-grams."""
    import numpy as np

    grams = hashed([_unmarked(text) for text in found[some.start : some.stop]], n)
    counts = np.diff(grams.offsets)
    rows = np.repeat(np.arange(len(counts)), counts)
    covered = _cover(grams, rows, _repeated(grams, rows), n)
    words = counts + n - 1
    with np.errstate(invalid="ignore"):
        return np.where(counts > 1, covered / words, np.nan).tolist()  # type: ignore[no-any-return]


def _unmarked(text: str) -> str:
    return _MARKS.sub(" ", text) if "*" in text or "#" in text else text


def _repeated(grams: Grams, rows: np.ndarray) -> np.ndarray:
    """Which n-grams occur again in their own text, (grams,) bool."""
    import numpy as np

    own = grams.hashes ^ (
        rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )  # of equal grams, each text has its own
    order = np.argsort(own)
    same = own[order[1:]] == own[order[:-1]]
    found = np.zeros(len(order), dtype=bool)
    found[order[1:]] = same
    found[order[:-1]] |= same
    return found


def _cover(grams: Grams, rows: np.ndarray, repeated: np.ndarray, n: int) -> np.ndarray:
    """How many words of each text the repeated n-grams cover, each word once, (texts,)."""
    import numpy as np

    places = np.arange(len(rows)) + rows * (n - 1)  # of words: a text has n - 1 more of them than n-grams
    edges = np.zeros(len(rows) + (len(grams.offsets) - 1) * (n - 1) + n + 1, dtype=np.int64)
    np.add.at(edges, places[repeated], 1)
    np.add.at(edges, places[repeated] + n, -1)
    covered = np.concatenate(([0], np.cumsum(np.cumsum(edges) > 0)))
    bounds = grams.offsets + np.arange(len(grams.offsets)) * (n - 1)
    return np.diff(covered[bounds])
