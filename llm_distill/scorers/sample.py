"""A scorer that knows nothing of quality: which rows are one too many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from llm_distill.records import Answer, content_id


def sample(answers: Sequence[Answer], *, rows: Annotated[int, Field(ge=1)]) -> list[float]:
    """1 for all but `rows` rows: those whose ids have the smallest hashes stay, so that a row that stays among many stays
    among few. As good as a random sample, and the same in every run.
    """
    ids = [answer.prompt.row_id for answer in answers]
    stay = set(sorted(ids, key=lambda row_id: content_id(["sample", row_id]))[:rows])
    return [float(row_id not in stay) for row_id in ids]
