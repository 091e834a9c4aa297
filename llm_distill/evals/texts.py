"""How near a text is to its reference: overlap of characters, of words in their order, and of what they say.

Each gives every answer a number in [0, 1], NaN where the row has no reference. Two texts without a word agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Annotated

from pydantic import AfterValidator, Field

from llm_distill.embeddings import Embedder, embedder
from llm_distill.ngrams import apart
from llm_distill.records import Answer
from llm_distill.scorers import Scored

NO_REFERENCE = "no reference"
_WORD = re.compile(r"[^\W_]+")


def _sacrebleu(words: int) -> int:
    if find_spec("sacrebleu") is None:
        raise ValueError("the package sacrebleu is not installed: pip install 'llm-distill[eval]'")
    return words


def chrf(
    answers: Sequence[Answer],
    *,
    word_order: Annotated[int, Field(ge=0, le=2), AfterValidator(_sacrebleu)] = 0,
) -> Scored:
    """The chrF score (Popovic 2015), F2 of character 1- to 6-grams, by sacrebleu, of each row; `word_order: 2` is chrF++."""
    from sacrebleu.metrics.chrf import CHRF

    measure = CHRF(word_order=word_order)
    return _against_reference(answers, lambda text, due: float(measure.sentence_score(text, [due]).score) / 100)


def rouge_l(answers: Sequence[Answer]) -> Scored:
    """ROUGE-L (Lin 2004), F1 of the longest common subsequence of words, case aside: rouge-score's on ASCII, unstemmed.

    Words are Unicode's, where rouge-score would drop all but ASCII, and each character of a script that is written without
    spaces is one. The subsequence is found bit-parallel by rapidfuzz.
    """
    from rapidfuzz.distance import LCSseq

    def score(text: str, due: str) -> float:
        found, wanted = (_WORD.findall(apart(of.lower())) for of in (text, due))
        if not found or not wanted:
            return float(found == wanted)
        return 2 * LCSseq.similarity(found, wanted) / (len(found) + len(wanted))

    return _against_reference(answers, score)


def embedding(answers: Sequence[Answer], *, model: Embedder) -> Scored:
    """The cosine of answer and reference as `model` embeds them, at least 0."""
    embed = embedder(model)
    texts, due = [a.text for a in answers], [a.prompt.reference or "" for a in answers]
    cosines = dict(zip(zip(texts, due, strict=True), (embed(texts) * embed(due)).sum(1).tolist(), strict=True))
    return _against_reference(answers, lambda text, reference: max(0.0, cosines[text, reference]))


def _against_reference(answers: Sequence[Answer], score: Callable[[str, str], float]) -> Scored:
    scores = []
    for answer in answers:
        due = answer.prompt.reference
        if due is None:
            scores.append(math.nan)
        elif not due.strip() and not answer.text.strip():
            scores.append(1.0)
        else:
            scores.append(min(1.0, score(answer.text, due)))
    return Scored(scores, why=[NO_REFERENCE if a.prompt.reference is None else None for a in answers])
