"""The linter of a batch: what a student is about to learn, looked at before the first step, one finding for each thing that
goes wrong in training without showing in the loss.

An error stops the training; a warning is for somebody to judge; a note says what was found where it is as it should be. All
of them are kept in training.json under `lint`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_distill.records import Message, Sample
from llm_distill.trainers.batch_check import counts, faults, preview
from llm_distill.trainers.findings import Finding, refuse
from llm_distill.trainers.rows import Row, render, too_long

if TYPE_CHECKING:
    from llm_distill.tasks import Task

#: What stands for a turn's words where only the template's own are looked at.
_WORDS = "words 5"
#: A label rarer than this share of its even share is worth a word.
_RARE = 0.2
#: More rows than this whose text merges across the end of the prompt speak of the template, not of a few odd answers.
_MERGED = 0.5
SHOWN_ROWS = 3


@dataclass(frozen=True)
class Shelf:
    """What the rows were made of, and where they are to go. context: how many tokens the model was made for, where it says;
    end: the token that ends an answer.
    """

    samples: Sequence[Sample]
    tokenizer: Any
    end: int
    max_length: int
    context: int | None = None
    task: Task | None = None


def lint(rows: Sequence[Row], shelf: Shelf) -> list[Finding]:
    """All that rows and their samples tell by themselves, without a model."""
    return [
        *malformed(rows, shelf.tokenizer, shelf.end),
        bos_tokens(rows, shelf),
        *template_once(shelf),
        _prefix(shelf),
        _length(rows, shelf),
        *_context(rows, shelf),
        *_duplicates(rows),
        *_labels(shelf),
        _trained(rows),
        *_unknown(rows, shelf),
        Finding(
            "note", "example", f"The first row, what is learnt between ⟦ and ⟧: {preview(rows[0], shelf.tokenizer)}"
        ),
    ]


def check_rows(rows: Sequence[Row], tokenizer: Any, end: int) -> dict[str, Any]:
    """What the rows hold, for training.json. A malformed row is a UserError."""
    refuse(malformed(rows, tokenizer, end))
    return counts(rows, tokenizer, end)


def malformed(rows: Sequence[Row], tokenizer: Any, end: int) -> Iterator[Finding]:
    """One end token, at the end; something to learn before it; something to predict it from; one BOS."""
    found: dict[str, list[tuple[Row, str]]] = {}
    for row in rows:
        for name, fault in faults(row, tokenizer, end):
            found.setdefault(name, []).append((row, fault))
    for name, of in found.items():
        row, fault = of[0]
        many = f"{len(of):,} rows like it, of" if len(of) > 1 else "1 of"
        tail = preview(row, tokenizer)[-200:]
        right = f"The student's tokenizer or chat template is at fault; the row ends in {tail!r}."
        said = f"Row {row.row_id} has {fault} ({many} {len(rows):,})"
        yield Finding("error", name, said, right, _first(r for r, _ in of))
    if "end_token" not in found:
        token = tokenizer.convert_ids_to_tokens(end)
        pad = ", which is the padding too and is learnt all the same" if end == tokenizer.pad_token_id else ""
        yield Finding("note", "end_token", f"Each of {len(rows):,} rows ends in one learnt {token!r}{pad}")
    if "trained_tokens" not in found:
        fewest = min(row.trained_tokens for row in rows)
        yield Finding(
            "note", "trained_tokens", f"No row is without something to learn (the fewest are {fewest} tokens)"
        )


def bos_tokens(rows: Sequence[Row], shelf: Shelf) -> Finding:
    """As many BOS tokens as template and tokenizer write around other words; the row's own words may spell one out."""
    bos, tokenizer = shelf.tokenizer.bos_token_id, shelf.tokenizer
    if bos is None:
        return Finding("note", "bos", "The tokenizer has no BOS token, and no row has one")
    samples, expected = {s.row_id: s for s in shelf.samples}, dict[tuple[str, ...], int]()
    spelt, wrong = list[Row](), list[tuple[Row, int, int]]()
    for row in rows:
        sample = samples[row.row_id]
        roles = tuple(m.role for m in sample.messages)
        if roles not in expected:
            words = render(tokenizer, tuple(Message(m.role, _WORDS) for m in sample.messages))
            ids = tokenizer(words, add_special_tokens=not tokenizer.chat_template)["input_ids"]
            expected[roles] = ids.count(bos)
        found = row.input_ids[: row.prompt_tokens].count(bos)
        if found != expected[roles] and any(tokenizer.bos_token in m.content for m in sample.messages):
            spelt.append(row)
        elif found != expected[roles]:
            wrong.append((row, found, expected[roles]))
    if wrong:
        row, found, right = wrong[0]
        return Finding(
            "error", "bos", f"Row {row.row_id} has {found} BOS tokens {tokenizer.bos_token!r} where {right} is right "
            f"({len(wrong):,} of {len(rows):,} rows)", "The student's tokenizer adds what its template has written.",
            _first(r for r, *_ in wrong),
        )  # fmt: skip
    if spelt:
        return Finding(
            "warning", "bos", f"{len(spelt):,} of {len(rows):,} rows spell out the BOS token {tokenizer.bos_token!r} in "
            "their own words", "The student reads it as the token, in training and later; filter them if that is not meant.",
            _first(spelt),
        )  # fmt: skip
    counts = sorted(set(expected.values()))
    turns = " (it opens every turn)" if counts[-1] > 1 else ""
    return Finding("note", "bos", f"{' or '.join(map(str, counts))} BOS tokens {tokenizer.bos_token!r} a row{turns}")


def template_once(shelf: Shelf) -> Iterator[Finding]:
    """That the chat template is applied once, and is not written out in a row's own words."""
    tokenizer = shelf.tokenizer
    if not tokenizer.chat_template:
        yield Finding("note", "template", "The student has no chat template, so prompts are plain text")
        return
    closings, twice, spelt = dict[tuple[str, ...], str](), list[Sample](), list[Sample]()
    specials = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content]
    for sample in shelf.samples:
        roles = tuple(m.role for m in sample.messages)
        if roles not in closings:
            words = render(tokenizer, tuple(Message(m.role, _WORDS) for m in sample.messages))
            closings[roles] = words.rpartition(_WORDS)[2].strip()
        contents = [m.content for m in sample.messages]
        if closings[roles] and any(closings[roles] in content for content in contents):
            twice.append(sample)
        elif any(special in content for content in contents for special in specials):
            spelt.append(sample)
    if twice:
        closing = closings[tuple(m.role for m in twice[0].messages)]
        yield Finding(
            # Words alone, such as `Assistant:`, may stand in a text with good reason.
            "error" if any(special in closing for special in specials) else "warning", "template",
            f"{len(twice):,} of {len(shelf.samples):,} rows (first: row {twice[0].row_id}) hold what the student's chat template "
            f"writes ({closing!r}) in their own words: it would be applied twice",
            "Give the rows' messages as they are, without a template.", _first(twice),
        )  # fmt: skip
    if spelt:
        yield Finding(
            "warning", "special_tokens", f"{len(spelt):,} of {len(shelf.samples):,} rows (first: row {spelt[0].row_id}) spell "
            "out special tokens in their prompts", "They are read as those tokens, in training and later.", _first(spelt),
        )  # fmt: skip
    if not twice:
        yield Finding("note", "template", f"The chat template is applied once to each of {len(shelf.samples):,} rows")


def _prefix(shelf: Shelf) -> Finding:
    """Whether the tokens of a prompt begin those of prompt and answer together, as a trainer that tokenises both expects."""
    tokenizer, samples = shelf.tokenizer, shelf.samples
    prompts = [render(tokenizer, s.messages) for s in samples]
    special = {"add_special_tokens": not tokenizer.chat_template}
    alone = tokenizer(prompts, **special)["input_ids"]
    both = tokenizer([p + s.completion for p, s in zip(prompts, samples, strict=True)], **special)["input_ids"]
    merged = [s for s, one, whole in zip(samples, alone, both, strict=True) if whole[: len(one)] != one]
    if not merged:
        return Finding("note", "prefix", f"The tokens of all {len(samples):,} prompts begin those of prompt and answer")
    share = len(merged) / len(samples)
    return Finding(
        "warning" if share > _MERGED else "note", "prefix", f"In {len(merged):,} of {len(samples):,} rows ({share:.1%}) the "
        "answer's text would merge with the end of the prompt",
        "They are tokenised apart, as generation has them; where most rows do so, let answers begin otherwise (a blank space).",
        _first(merged),
    )  # fmt: skip


def _length(rows: Sequence[Row], shelf: Shelf) -> Finding:
    said = too_long(rows, shelf.max_length)
    if said:
        found, right = said
        long = (row for row in rows if len(row.input_ids) > shelf.max_length)
        return Finding("error", "length", found.rstrip("."), right, _first(long))
    longest = max(len(row.input_ids) for row in rows)
    return Finding(
        "note", "length", f"Nothing is cut: the longest row has {longest:,} of max_length {shelf.max_length:,} tokens"
    )


def _context(rows: Sequence[Row], shelf: Shelf) -> Iterator[Finding]:
    """Whether rows are longer than what the model was made for."""
    if shelf.context is None:
        return
    long = [row for row in rows if len(row.input_ids) > shelf.context]
    if not long:
        yield Finding("note", "context", f"The model reads {shelf.context:,} tokens, and no row has more")
        return
    prompts = sum(row.prompt_tokens >= shelf.context for row in long)
    yield Finding(
        "error", "context", f"{len(long):,} of {len(rows):,} rows have more than the {shelf.context:,} tokens that the student "
        f"was made to read (`max_position_embeddings`), {prompts:,} of them in the prompt alone",
        "Take a student that reads more, or shorten what it is shown.", _first(long),
    )  # fmt: skip


def _duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    seen, again, answers = set[tuple[int, ...]](), list[Row](), Counter[tuple[int, ...]]()
    for row in rows:
        ids = tuple(row.input_ids)
        if ids in seen:
            again.append(row)
        else:
            answers[ids[: row.prompt_tokens]] += 1
        seen.add(ids)
    if again:
        yield Finding(
            "warning", "duplicates", f"{len(again):,} of {len(rows):,} rows equal an earlier one, token by token",
            "They count so many times more; add `- exact_duplicate` to the filters if that is not meant.", _first(again),
        )  # fmt: skip
    else:
        yield Finding("note", "duplicates", f"No two of {len(rows):,} rows are equal")
    if several := sum(count > 1 for count in answers.values()):
        yield Finding("note", "answers", f"{several:,} prompts have several answers, which are all learnt")


def _labels(shelf: Shelf) -> Iterator[Finding]:
    """How even the labels are that a student of a classify task learns."""
    if shelf.task is None or shelf.task.kind != "classify":
        return
    found, labels = Counter(s.completion for s in shelf.samples), shelf.task.labels
    said = ", ".join(f"{label} {found[label] / len(shelf.samples):.1%}" for label in labels)
    rare = [label for label in labels if found[label] < _RARE * len(shelf.samples) / len(labels)]
    if rare:
        what = "has no row" if not found[rare[0]] else f"has {found[rare[0]]:,} rows"
        yield Finding(
            "warning", "labels", f"The label {rare[0]!r} {what} of {len(shelf.samples):,} ({said})",
            "A student learns to say it as rarely; `mix.balance` fills up values of a tag.",
        )  # fmt: skip
    else:
        yield Finding("note", "labels", f"Labels: {said}")


def _trained(rows: Sequence[Row]) -> Finding:
    trained, tokens = sum(row.trained_tokens for row in rows), sum(len(row.input_ids) for row in rows)
    return Finding("note", "trained_share", f"{trained:,} of {tokens:,} tokens are learnt ({trained / tokens:.1%})")


def _unknown(rows: Sequence[Row], shelf: Shelf) -> Iterator[Finding]:
    """Whether the student would learn to say that it has no word."""
    unknown = shelf.tokenizer.unk_token_id
    if unknown is None or unknown == shelf.end:
        return
    spelt = [row for row in rows if unknown in row.labels]
    if spelt:
        yield Finding(
            "warning", "unknown_tokens", f"{len(spelt):,} of {len(rows):,} rows are learnt with the unknown token "
            f"{shelf.tokenizer.unk_token!r} in the answer", "The student has no tokens for that text; take another student.",
            _first(spelt),
        )  # fmt: skip


def _first(of: Iterable[Row | Sample]) -> tuple[str, ...]:
    names = dict.fromkeys(one.row_id for one in of)
    return tuple(names)[:SHOWN_ROWS]
