"""Where prompts come from: `Generator(*, knobs) -> Iterable[Prompt]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from llm_distill.plugs import InputFile
from llm_distill.records import Prompt
from llm_distill.seeds import read_rows

#: Name in a recipe -> where its function is.
GENERATORS = {"seeds": "llm_distill.generators:seeds"}


def seeds(*, file: InputFile, limit: Annotated[int, Field(ge=1)] | None = None) -> Iterator[Prompt]:
    """The rows of a JSONL file, in its order; the first `limit` of them if given."""
    for number, prompt in enumerate(read_rows(file)):
        if limit is not None and number >= limit:
            return
        yield prompt
