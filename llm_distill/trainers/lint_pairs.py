"""What the linter says of a round's pairs before they are learnt: of both answers, and of the one beside the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from llm_distill.records import Sample
from llm_distill.trainers.batch_check import faults
from llm_distill.trainers.findings import Finding, Level
from llm_distill.trainers.lint import SHOWN_ROWS, Shelf, bos_tokens, malformed, template_once
from llm_distill.trainers.preferences import Pair
from llm_distill.trainers.rows import Row

#: More pairs than this that are left out, or that teach nothing, are worth a word.
_MANY = 0.1
#: More rejected answers than this that were cut off teach length before anything else.
_CUT = 0.5


def samples_of(pairs: Sequence[Pair], samples: Sequence[Sample]) -> list[Sample]:
    """Of each pair the sample that was answered, under the pair's own name."""
    known: Mapping[str, Sample] = {sample.row_id: sample for sample in samples}
    names = [pair.chosen.row_id for pair in pairs]
    return [msgspec.structs.replace(known[name.rpartition("#")[0]], row_id=name) for name in names]


def lint_pairs(pairs: Sequence[Pair], too_long: int, shelf: Shelf) -> list[Finding]:
    """All that pairs tell without a model; shelf: of `samples_of` them; too_long: how many were left out."""
    chosen = [pair.chosen for pair in pairs]
    return [
        *malformed(chosen, shelf.tokenizer, shelf.end),
        *_rejected(pairs, shelf),
        bos_tokens(chosen, shelf),
        *template_once(shelf),
        _alike(pairs),
        _length(pairs, too_long, shelf),
    ]


def _rejected(pairs: Sequence[Pair], shelf: Shelf) -> Iterator[Finding]:
    """Whether rejected answers are whole rows; one that was cut off has no end, for none was sampled."""
    found: dict[str, list[tuple[Row, str]]] = {}
    for row in (pair.rejected for pair in pairs):
        cut = shelf.end not in row.input_ids[row.prompt_tokens :]
        for name, fault in faults(row, shelf.tokenizer, shelf.end):
            if not (cut and row.trained_tokens and name in ("end_token", "trained_tokens")):
                found.setdefault(name, []).append((row, fault))
    for name, of in found.items():
        row, fault = of[0]
        yield Finding(
            "error", name, f"The rejected answer of row {row.row_id} has {fault} ({len(of):,} of {len(pairs):,} pairs)",
            "The student's tokenizer or chat template is at fault.", _first([row for row, _ in of]),
        )  # fmt: skip


def _alike(pairs: Sequence[Pair]) -> Finding:
    """Whether both answers are the same to the student: texts that differ may be the same tokens."""
    same = [pair.chosen for pair in pairs if pair.chosen.input_ids == pair.rejected.input_ids]
    if not same:
        return Finding("note", "pairs", f"In none of {len(pairs):,} pairs both answers are the same tokens")
    said = f"In {len(same):,} of {len(pairs):,} pairs (first: row {same[0].row_id}) both answers are the same tokens"
    if len(same) == len(pairs):
        return Finding("error", "pairs", said, "There is nothing to prefer.", _first(same))
    level: Level = "warning" if len(same) > _MANY * len(pairs) else "note"
    return Finding(level, "pairs", said, "They teach no preference.", _first(same))


def _length(pairs: Sequence[Pair], too_long: int, shelf: Shelf) -> Finding:
    """How many pairs did not fit, and how many rejected answers did not come to their end."""
    asked = len(pairs) + too_long
    cut = [pair.rejected for pair in pairs if pair.rejected.input_ids[-1] != shelf.end]
    said = (
        f"{too_long:,} of {asked:,} pairs are left out, being longer than max_length {shelf.max_length:,}; of {len(pairs):,} "
        f"rejected answers {len(cut):,} were cut off"
    )
    if too_long > _MANY * asked:
        return Finding(
            "warning", "length", said, "What is learnt from is short; raise max_length, or lower max_tokens."
        )
    if len(cut) > _CUT * len(pairs):
        right = "Such pairs teach to be short before anything else; raise max_tokens, or warm up longer."
        return Finding("warning", "length", said, right, _first(cut))
    return Finding("note", "length", said)


def _first(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.row_id for row in rows))[:SHOWN_ROWS]
