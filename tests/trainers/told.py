"""Teachers made up for tests: what they said and might have said, written as a run writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill.logprob_writer import writing
from llm_distill.logprobs import Logprobs
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.records import Answer, Message, Prompt, Sample, Status
from llm_distill.trainers.heard import Heard, hear
from llm_distill.trainers.placing import Placed, by_bytes, by_ids
from llm_distill.trainers.rows import Row, end_token, lead, make_rows, render
from llm_distill.trainers.student_tokens import StudentTokens, bridge

MESSAGES = (Message("user", "the film was good\nLabel:"),)


@dataclass(frozen=True)
class Said:
    """A completion: its tokens, each with the other tokens that might have come, and how likely all of them were."""

    tokens: Sequence[Any]
    tops: Sequence[Mapping[Any, float]]

    def stored(self, vocabulary: Vocabulary | None) -> Logprobs:
        width = max((len(top) for top in self.tops), default=0)
        tops = [list(top.items()) for top in self.tops]
        table = np.full((len(tops), width), -np.inf, np.float32)
        ids = np.full((len(tops), width), -1, np.int32)
        for i, top in enumerate(tops):
            table[i, : len(top)] = [math.log(mass) if mass > 0 else -math.inf for _, mass in top]
            if vocabulary:
                ids[i, : len(top)] = [token for token, _ in top]
        chosen = [math.log(top[token]) for token, top in zip(self.tokens, self.tops, strict=True)]
        if vocabulary is None:
            return Logprobs.of_tokens(self.tokens, chosen, [[token for token, _ in top] for top in tops], table)
        return Logprobs.of_ids(self.tokens, chosen, ids, table, vocabulary.token)


def sample(text: str, row_id: str = "r", said: str | None = None, status: Status = "ok", **more: Any) -> Sample:
    answer = Answer(Prompt(row_id, row_id, MESSAGES), text if said is None else said, status, **more)
    return Sample(row_id, MESSAGES, text, answer=answer)


def write(folder: Path, rows: Mapping[str, Sequence[Said]], vocabulary: Vocabulary | None = None) -> Path:
    path = folder / "logprobs.parquet"
    with writing(path) as add:
        for row_id, completions in rows.items():
            for i, one in enumerate(completions):
                add(row_id, f"{row_id}/{i}", "model", one.stored(vocabulary).pack(), None)
    return path


@dataclass
class Case:
    """One completion and the row that a student is trained on for it."""

    folder: Path
    tokenizer: Any
    said: Said
    sample: Sample
    stop: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    most_undefined: float = 1.0
    student: StudentTokens = field(init=False)

    def __post_init__(self) -> None:
        self.student = known(self.tokenizer)

    def heard(self) -> Heard:
        path = write(self.folder, {self.sample.row_id: [self.said]}, self.vocabulary)
        return hear(path, [self.sample], self.stop, {"model": self.vocabulary} if self.vocabulary else {})

    def row(self, completions: Mapping[str, Sequence[int]] | None = None) -> Row:
        ends = {self.tokenizer.eos_token_id}
        (row,) = make_rows([self.sample], self.tokenizer, ends, 100_000, completions or {})
        return row

    def placed(self, *, ids: bool = False) -> Placed:
        heard = self.heard()
        assert not heard.without, heard.without
        ((name, told),) = heard.told.values()
        row = self.row(heard.sampled(self.student, {name}) if ids else None)
        over = bridge(
            set(told.ids.tolist()), heard.spellings[name], self.student, row.input_ids[-1], self.stop, same=ids
        )
        made = (by_ids if ids else by_bytes)(row, told, over, most_undefined=self.most_undefined)
        assert made is not None
        return made

    def shown(self, *, ids: bool = False) -> list[dict[bytes, float] | None]:
        """At each position the mass of each token of the student, its end as `END`; None where there is no target."""
        placed, end = self.placed(ids=ids), end_token(self.tokenizer, {self.tokenizer.eos_token_id})
        return [
            {
                b"END" if i == end else self.student.vocabulary.token(i): round(math.exp(p), 3)
                for i, p in zip(ids_, logprobs, strict=True)
                if i >= 0
            }
            if defined
            else None
            for ids_, logprobs, defined in zip(
                placed.targets.ids.tolist(), placed.targets.logprobs.tolist(), placed.targets.defined, strict=True
            )
        ]


_KNOWN: dict[int, tuple[Any, StudentTokens]] = {}


def known(tokenizer: Any) -> StudentTokens:
    """One for each tokenizer: what it has tokenised once it knows."""
    if id(tokenizer) not in _KNOWN:
        _KNOWN[id(tokenizer)] = (
            tokenizer,
            StudentTokens(tokenizer, lead(tokenizer, render(tokenizer, MESSAGES)).encode()),
        )
    return _KNOWN[id(tokenizer)][1]
