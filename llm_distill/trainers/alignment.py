"""How much of what a student is trained on has a target from its teacher's stored logprobs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from llm_distill.models import weights
from llm_distill.models.vocabulary import Vocabulary
from llm_distill.models.vocabulary_files import read_vocabulary
from llm_distill.plugs import Plug
from llm_distill.trainers.heard import ABSENT, Heard
from llm_distill.trainers.placing import Placed, Told, Why, before, by_bytes, by_ids, sampled, unknown
from llm_distill.trainers.rows import Row
from llm_distill.trainers.student_tokens import Bridge, Spelling, StudentTokens, bridge
from llm_distill.trainers.targets import Targets

RESPELT = "the student's tokens do not spell its text"
#: What of each row is kept beside training.json.
RECORD = "alignment.jsonl"
#: What is said of a position, by `Why`.
_SAID = {
    Why.INSIDE: "no token of the teacher begins there",
    Why.NO_END: "the teacher did not show its end",
    Why.VAGUE: "too much of the mass is undefined",
    Why.NO_ROW: "nothing is known of the row",
}


@dataclass(frozen=True)
class Alignment:
    """How much of what is trained has a target. rows: how each came by it; without: why rows have none; positions: trained
    tokens, their end tokens among them; masked: why positions have none; undefined: the mean undefined mass of defined ones.

    record: of each row its `row_id`, `way` (ids, bytes or null), `without`, `positions`, how many are `defined`, and `checksum`:
    of the text (BLAKE2b, 64 bits), where both the teacher's tokens and the student's were seen to spell it, byte for byte.
    """

    rows: int
    by_ids: int
    by_bytes: int
    positions: int
    defined: int
    undefined: float
    without: Mapping[str, int] = field(default_factory=dict)
    masked: Mapping[str, int] = field(default_factory=dict)
    record: Sequence[Mapping[str, Any]] = field(default=(), compare=False, repr=False)

    def write(self, path: Path) -> None:
        """The record of every row as JSON lines."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.record), encoding="utf-8")

    @property
    def share(self) -> float:
        """Of the trained positions, how many have a target."""
        return self.defined / self.positions if self.positions else 0.0

    def story(self) -> dict[str, Any]:
        """As it is kept in training.json."""
        found = asdict(self) | {"share": self.share}
        del found["record"]  # see `write`
        return found

    def __str__(self) -> str:
        """As it is printed."""
        lines = [
            f"Targets for {self.share:.1%} of {self.positions:,} trained tokens, in {self.by_ids + self.by_bytes:,} of "
            f"{self.rows:,} rows ({self.by_ids:,} by token ids, {self.by_bytes:,} by bytes); undefined mass "
            f"{self.undefined:.2%} on average"
        ]
        lines += [f"  {count:,} rows without: {why}" for why, count in self.without.items()]
        lines += [f"  {count:,} tokens without: {why}" for why, count in self.masked.items()]
        return "\n".join(lines)


def vocabularies_of(
    models: Mapping[str, Plug], spelt: Mapping[str | None, Mapping[int, bytes]]
) -> dict[str | None, Vocabulary]:
    """The vocabularies that a table of logprobs names, as far as the recipe's models have them at hand. `spelt`: by name, the
    tokens in the table, which a vocabulary has to spell likewise: two folders may have one name.
    """
    found: dict[str | None, Vocabulary] = {}
    for plug in models.values():
        knobs = plug.knobs
        known = [str(knobs[key]) for key in ("model", "adapter", "tokenizer") if knobs.get(key)]
        called = [Path(name).name if Path(name).exists() else name for name in known]
        reference = knobs.get("tokenizer") or knobs.get("model")
        held = plug.spec.name in ("transformers", "vllm", "vllm_offline") or knobs.get("tokenizer")
        for name in {*called, "+".join(called[:2])} & {*spelt} - {*found} if held else ():
            if not (knobs.get("tokenizer") or Path(str(reference)).expanduser().exists()):
                reference = weights.prepare(
                    str(reference), revision=knobs.get("revision")
                )  # a hub id that answered here
            vocabulary = read_vocabulary(str(reference))
            if all(vocabulary.token(number) == token for number, token in spelt[name].items()):
                found[name] = vocabulary
    return found


def teach(
    rows: Sequence[Row],
    heard: Heard,
    student: StudentTokens,
    stop: Sequence[str],
    shared: Collection[str | None] = (),
    *,
    most_undefined: float,
) -> tuple[list[Targets], Alignment]:
    """Targets of token rows, and how much of them there is.

    Rows of a vocabulary in `shared` that were made of `Heard.sampled` go by ids, all others by bytes. A position of which
    more mass than `most_undefined` is undefined is masked.
    """
    bridges: dict[tuple[str | None, bool, int], Bridge] = {}
    met: dict[str | None, set[int]] = {}
    for name, told in heard.told.values():
        met.setdefault(name, set()).update(np.unique(told.ids).tolist())
    made, record = list[Placed](), list[dict[str, Any]]()
    for row in rows:
        name, told_ = heard.told.get(row.row_id, (None, None))
        checksum, placed, way = None, None, None
        if told_ is not None and (checksum := _checksum(row, told_, heard.spellings[name], student)):
            same = name in shared and sampled(told_, student) == row.input_ids[row.prompt_tokens : -1]
            key = name, same, row.input_ids[-1]
            if key not in bridges:
                bridges[key] = bridge(met[name], heard.spellings[name], student, key[2], stop, same=same)
            placed = (by_ids if same else by_bytes)(row, told_, bridges[key], most_undefined=most_undefined)
            way = "ids" if same else "bytes"
        why = None if placed else heard.without.get(row.row_id, ABSENT if told_ is None else RESPELT)
        made.append(placed or unknown(row))
        defined = int(made[-1].targets.defined.sum())
        found = {"way": way, "without": why, "positions": row.trained_tokens, "defined": defined, "checksum": checksum}
        record.append({"row_id": row.row_id} | found)
    return [placed.targets for placed in made], _count(made, record)


def _checksum(row: Row, told: Told, spelling: Spelling, student: StudentTokens) -> str | None:
    """Of a row's text, read off the teacher's tokens and off the student's; None where these are not the same bytes."""
    tokens = [
        spelling.tokens.get(int(told.ids[told.chosen[place]]), b"") if told.ends[place] > told.begins[place] else b""
        for place in range(told.first, told.after)
    ]
    teacher = b"".join(tokens)[-int(told.begins[told.first]) :][: len(told.text)]
    ids = row.input_ids[row.prompt_tokens : -1]
    plain = [number for number in ids if number not in student.vocabulary.special]
    if teacher != told.text or {before(told.text, student.spell(own)) for own in (ids, plain)} == {None}:
        return None
    return blake2b(told.text, digest_size=8).hexdigest()


def _count(made: Sequence[Placed], record: Sequence[Mapping[str, Any]]) -> Alignment:
    why = np.concatenate([placed.why for placed in made] or [np.zeros(0, np.int8)])
    undefined = np.concatenate([placed.undefined for placed in made] or [np.zeros(0)])
    defined = why == Why.DEFINED
    counts, ways = np.bincount(why, minlength=len(Why)), Counter(row["way"] for row in record)
    return Alignment(
        rows=len(made),
        by_ids=ways["ids"],
        by_bytes=ways["bytes"],
        positions=len(why),
        defined=int(defined.sum()),
        undefined=float(undefined[defined].mean()) if defined.any() else 0.0,
        without=dict(Counter(row["without"] for row in record if row["without"]).most_common()),
        masked={said: int(counts[reason]) for reason, said in _SAID.items() if counts[reason]},
        record=record,
    )
