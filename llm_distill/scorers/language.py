"""Which language a text is written in."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from llm_distill.errors import UserError, did_you_mean
from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import Part, texts

if TYPE_CHECKING:
    import numpy as np

#: The languages of py3langid 0.4, here so that a recipe is checked without its model.
_CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
    fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko
    ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru
    rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo
    yue zh zu zxx
"""
LANGUAGES = frozenset(_CODES.split())
#: Texts with fewer bytes say too little: two or three words of Latin letters, seven of Chinese.
_SHORT = 20
#: Characters that are read, half from the start and half from the end: models drift into another language as they go on.
_READ = 240
#: Texts at once.
_TEXTS = 2048


def _installed() -> None:
    if find_spec("py3langid") is None:
        raise UserError("language: the package py3langid is not installed: pip install 'llm-distill[filter]'.")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    _installed()
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.nb_ptc = identifier.nb_ptc.astype(np.float32)  # halves are slow to reckon with
    return identifier


def _known(languages: list[str]) -> list[str]:
    _installed()
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(f"no language {language!r}.{did_you_mean(language, LANGUAGES)}")
    return languages


def language(
    answers: Sequence[Answer],
    *,
    only: Annotated[list[str], Field(min_length=1), AfterValidator(_known)],
    of: Part = "answer",
) -> Scored:
    """The probability that a text is in one of these languages (ISO 639 codes), by py3langid; NaN under 20 bytes.

    Naive Bayes over byte n-grams (Lui and Baldwin 2012), trained on 140 languages. Of a long text the first and the last
    120 characters are read. Close relatives (Norwegian and Danish, Croatian and Serbian) are told apart badly: name both.
    """
    import numpy as np

    labels = np.array(_identifier().nb_classes)
    wanted = np.isin(labels, only)
    values: list[float] = []
    why: list[str | None] = []
    found = texts(answers, of)
    for first in range(0, len(found), _TEXTS):
        encoded = [_encoded(text) for text in found[first : first + _TEXTS]]
        chances = probabilities(encoded)
        for text, score, best in zip(encoded, chances[:, wanted].sum(1).tolist(), chances.argmax(1), strict=True):
            short = len(text) < _SHORT
            values.append(math.nan if short else score)
            why.append(f"under {_SHORT} bytes" if short else str(labels[best]))
    return Scored(values, why)


def _encoded(text: str) -> bytes:
    text = text.strip()
    if len(text) > _READ:
        text = f"{text[: _READ // 2]} {text[-_READ // 2 :]}"
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")


def probabilities(encoded: Sequence[bytes]) -> np.ndarray:
    """(texts, classes) float32, what `py3langid` would say of each; it walks its automaton a byte at a time in Python, here
    all texts take each step together.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    identifier = _identifier()
    size = np.array([len(text) for text in encoded])
    rows, features = _features(encoded, size, *_automaton())
    width = len(identifier.nb_ptc)
    pairs, counts = np.unique(rows * width + features, return_counts=True)
    table = csr_matrix(
        (np.log1p(counts).astype(np.float32), (pairs // width, pairs % width)), shape=(len(encoded), width)
    )
    scores = (table @ identifier.nb_ptc + identifier.nb_pc) / np.sqrt(np.maximum(size, 1))[:, None]
    scores[np.diff(table.indptr) == 0] = 0  # nothing was seen: every language is as likely
    chances = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True), dtype=np.float32)


@lru_cache(maxsize=1)
def _automaton() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The state that follows each row of states and byte, each state's row, and the feature that it ends, or -1."""
    import numpy as np

    identifier = _identifier()
    following = np.asarray(identifier.tk_nextmove)
    return following, np.asarray(identifier.tk_row, dtype=np.int64) << 8, np.asarray(identifier.tk_output)


def _features(
    encoded: Sequence[bytes], size: np.ndarray, following: np.ndarray, row_of: np.ndarray, output: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(text, feature) of every byte n-gram that is one, in two arrays."""
    import numpy as np

    order = np.argsort(-size, kind="stable")  # the longest first, so that those still going on are the first ones
    padded = np.zeros((int(size.max(initial=0)), len(encoded)), dtype=np.uint8)
    for column, place in enumerate(order):
        padded[: size[place], column] = np.frombuffer(encoded[place], dtype=np.uint8)
    going = np.searchsorted(-size[order], -np.arange(len(padded)), side="left")
    state = np.zeros(len(encoded), dtype=np.int64)
    rows, features = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for step, count in enumerate(going.tolist()):
        state[:count] = following[row_of[state[:count]] + padded[step, :count]]
        ended = output[state[:count]]
        there = np.flatnonzero(ended >= 0)
        rows.append(order[there])
        features.append(ended[there])
    return np.concatenate(rows), np.concatenate(features).astype(np.int64)
