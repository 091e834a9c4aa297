"""Rows from documents: a model is asked for questions, answers and the words that hold them; what does not stand there goes."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from llm_distill.errors import UserError
from llm_distill.generators.grounding import grounded, normalised, stands_in
from llm_distill.generators.reading import SUFFIXES, Document, chunks, text_of
from llm_distill.plugs import InputFile, Reading, Role
from llm_distill.records import Entry, Message, Prompt, Request, Sampling, content_id, make_prompt
from llm_distill.structured import fault, parsed
from llm_distill.templates import BUILT_IN, check_with, render_with
from llm_distill.text_files import Encoding

if TYPE_CHECKING:
    from llm_distill.generators import AtMost, Context

#: What a template of the question to the model is given.
_GIVEN = {"passage", "document", "per_chunk"}
#: A row that shows its passage.
_SHOWN = BUILT_IN / "question_on_passage.md"
#: Chunks that are asked about at once: enough to keep many requests in flight, and a few megabytes of text.
_ROUND = 1000
#: With `rows` and no `limit`, chunks for each row wanted: a small teacher's answers mostly do not stand in the text.
_CHUNKS_A_ROW = 4
#: A token is about so many bytes of English.
_BYTES_PER_TOKEN = 4


class Chunk(NamedTuple):
    """A part of a document, the how manieth from 1."""

    document: str
    number: int
    text: str


def _documents(found: Any, info: ValidationInfo) -> tuple[Document, ...]:
    """The documents that a recipe names, in the order of their names, noted as files that are read."""
    patterns = [found] if isinstance(found, str) else found
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(
            f"found {found!r}; write a folder, a file or a pattern such as docs/**/*.md, or a list of these"
        )
    reading = cast(Reading, info.context)
    folder, paths, left_out = reading["folder"].resolve(), set[Path](), set[Path]()
    for pattern in patterns:
        matching = _matching(folder, pattern.removeprefix("!"))
        if not matching:
            raise ValueError(f"no document matches {pattern!r} in {folder}; read are {', '.join(SUFFIXES)}")
        (left_out if pattern.startswith("!") else paths).update(matching)
    paths -= left_out
    if odd := sorted(repr(path) for path in paths if not _nameable(path)):
        raise ValueError(f"the name of {odd[0]} is not printable UTF-8; rename it")
    if other := sorted(path for path in paths if path.suffix.lower() not in SUFFIXES):
        raise ValueError(f"cannot read {other[0]}; a document is one of {', '.join(SUFFIXES)}")
    if not paths:
        raise ValueError("every document is left out again")
    reading["files"].update(paths)
    named = [Document(p, str(p.relative_to(folder)) if p.is_relative_to(folder) else p.name) for p in paths]
    return tuple(sorted(named, key=lambda document: (document.name, document.path)))


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern; of a folder those that are documents, and of these none that is hidden."""
    try:
        start = folder / Path(pattern).expanduser()
        if start.is_file():
            return [start.resolve()]
        if start.is_dir():
            inside = (path for path in start.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            return [p.resolve() for p in inside if not any(part.startswith(".") for part in p.relative_to(start).parts)]
        root = Path(start.anchor)
        return [path.resolve() for path in root.glob(str(start.relative_to(root))) if path.is_file()]
    except (OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{pattern!r} is no pattern of files: {error}") from None


def _nameable(path: Path) -> bool:
    return path.name.isprintable() and path.as_posix().encode("utf-8", "replace") == bytes(path)


def _template(path: Path) -> Path:
    try:
        used = check_with(path, _GIVEN)
    except UserError as error:
        raise ValueError(str(error)) from None
    if "passage" not in used:
        raise ValueError(f"{path} does not use `passage`, so the model would not see it")
    return path


def _half(overlap: int, info: ValidationInfo) -> int:
    if 2 * overlap > info.data.get("chunk_chars", 2 * overlap):
        raise ValueError(f"found {overlap}; at most half of chunk_chars, {info.data['chunk_chars']}")
    return overlap


def _shown(show: str, info: ValidationInfo) -> str:
    if show == "passage":
        cast(Reading, info.context)["files"].add(_SHOWN)
    return show


_Files = Annotated[tuple[Document, ...], BeforeValidator(_documents)]
_Positive = Annotated[int, Field(ge=1)]


def from_documents(
    context: Context,
    *,
    files: _Files,
    model: Role = "teacher",
    template: Annotated[InputFile, AfterValidator(_template)] = BUILT_IN / "from_documents.md",
    per_chunk: Annotated[int, Field(ge=1, le=20)] = 1,
    chunk_chars: Annotated[int, Field(ge=200, le=50_000)] = 2000,  # some 500 tokens: three or four paragraphs
    overlap: Annotated[int, Field(ge=0), AfterValidator(_half)] = 200,  # a sentence or two that a cut parts
    rows: _Positive | None = None,
    limit: _Positive | None = None,
    show: Annotated[Literal["passage", "nothing"], AfterValidator(_shown)] = "nothing",
    min_grounded: Annotated[float, Field(gt=0, le=1)] = 0.75,
    encoding: Encoding | None = None,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
    max_tokens: _Positive = 512,
) -> Iterator[Prompt]:
    """Questions that a model asks about chunks of documents, each with its answer as the reference.

    files: folders, files, patterns; `!pattern` leaves out. per_chunk: questions of each chunk, at most. limit: chunks that
    are asked about, drawn evenly from all of them by the seed. rows: how many rows are enough; of four times as many
    chunks at most, unless `limit` says otherwise. show: whether a row's prompt has the chunk in it. encoding: of text and
    HTML files. min_grounded: see `grounding.grounded`; of phrases out of a neighbouring sentence, taken from 247 licences
    and package descriptions, 3 % have three quarters of their content words in common with it, and 12 % a half.

    An item is kept if its span stands in the chunk (word for word, but for quotes, dashes and blank space) and its answer
    is grounded in the span. Tags: `document` and `chunk`, its number.
    """
    most = _chunks_at_most(rows, per_chunk, limit)
    schema, counts, known, kept = _schema(per_chunk), Counter[str](), {row.gist for row in context.before}, 0
    seed = context.seed if temperature else context.lasting  # or each tick would pay for equal answers
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed, schema=schema)
    found = _all_chunks(files, chunk_chars, overlap, encoding)
    chosen = iter(_drawn(found, most, context.seed)) if most else found
    while block := list(islice(chosen, _ROUND if rows is None else _round(rows - kept, per_chunk))):
        given = [{"passage": c.text, "document": c.document, "per_chunk": per_chunk} for c in block]
        questions = [Request(render_with(template, words), sampling) for words in given]
        counts["chunks"] += len(block)
        for chunk, entry in zip(block, context.ask(model, questions), strict=True):
            for item in _items(entry, schema, chunk.text, min_grounded, counts):
                row = _row(item, chunk, show)
                if row.gist in known:
                    counts["questions that were there before"] += 1
                    continue
                known.add(row.gist)
                yield row
                kept += 1
                if kept == rows:
                    context.say(_account(kept, counts))
                    return
    if not counts["chunks"]:
        raise UserError(
            f"from_documents: no text in {', '.join(d.name for d in files[:3])}; there is nothing to ask about."
        )
    context.say(_account(kept, counts))


def at_most(_before: int, **knobs: Any) -> AtMost:
    """One question a chunk; the chunks are counted by reading the documents, no further than they are asked about."""
    from llm_distill.generators import AtMost

    rows, per_chunk, size = knobs["rows"], knobs["per_chunk"], knobs["chunk_chars"]
    found = _all_chunks(knobs["files"], size, knobs["overlap"], knobs["encoding"])
    most = _chunks_at_most(rows, per_chunk, knobs["limit"])
    number = sum(1 for _ in islice(found, most))
    words = {"passage": "x" * size, "document": knobs["files"][0].name, "per_chunk": per_chunk}
    given = sum(len(message.content.encode()) for message in render_with(knobs["template"], words))
    tokens = (given + len(_schema(per_chunk))) // _BYTES_PER_TOKEN
    return AtMost(min(number * per_chunk, rows or number * per_chunk), number, tokens, knobs["max_tokens"])


def _chunks_at_most(rows: int | None, per_chunk: int, limit: int | None) -> int | None:
    return limit if limit or not rows else _CHUNKS_A_ROW * ceil(rows / per_chunk)


def _round(owed: int, per_chunk: int) -> int:
    """Chunks to ask about next: half as many again as would do if every item were kept."""
    return min(_ROUND, ceil(1.5 * owed / per_chunk))


def _all_chunks(files: Sequence[Document], size: int, overlap: int, encoding: str | None) -> Iterator[Chunk]:
    for document in files:
        for number, text in enumerate(chunks(text_of(document, encoding), size, overlap), start=1):
            yield Chunk(document.name, number, text)


def _drawn(found: Iterable[Chunk], most: int, seed: int) -> list[Chunk]:
    """At most so many chunks, every one as likely: those of the least hash, in its order. A larger draw begins with the
    smaller one, and a document that is added changes only what its own chunks take the place of.
    """
    return heapq.nsmallest(most, found, key=lambda c: (content_id([seed, c.document, c.text]), c.number))


def _schema(per_chunk: int) -> str:
    text = {"type": "string"}  # no lengths: strict endpoints know no such key
    item = {
        "type": "object",
        "properties": {"question": text, "span": text, "answer": text},
        "required": ["question", "span", "answer"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "maxItems": per_chunk}
    whole = {
        "title": "items",
        "type": "object",
        "properties": {"items": items},
        "required": ["items"],
        "additionalProperties": False,
    }
    return json.dumps(whole, separators=(",", ":"))


def _items(
    entry: Entry, schema: str, passage: str, min_grounded: float, counts: Counter[str]
) -> Iterator[Mapping[str, str]]:
    """What of an answer is kept; the rest is counted by why not."""
    if entry.status != "ok":
        counts[f"answers {entry.status}"] += 1
        return
    answer = entry.text
    if fault(answer, schema) or not _encodable(answer):
        counts["answers that are not the JSON asked for"] += 1
        return
    text = normalised(passage)
    for item in parsed(answer)["items"]:
        span = normalised(item["span"])
        if not item["question"].strip():
            counts["questions without words"] += 1
        elif not stands_in(span, text):
            counts["spans that do not stand in their chunk"] += 1
        elif grounded(normalised(item["answer"]), span) < min_grounded:
            counts["answers that are not grounded in their span"] += 1
        else:
            yield item


def _encodable(answer: str) -> bool:
    """Whether a JSON text names only characters that there are: an escape may be half of a pair."""
    try:
        json.dumps(parsed(answer), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(item: Mapping[str, str], chunk: Chunk, show: str) -> Prompt:
    question = item["question"].strip()
    messages: tuple[Message, ...] = (Message("user", question),)
    if show == "passage":
        messages = render_with(_SHOWN, {"passage": chunk.text, "question": question})
    return make_prompt(messages, {"document": chunk.document, "chunk": str(chunk.number)}, None, item["answer"].strip())


def _account(kept: int, counts: Counter[str]) -> str:
    dropped = ", ".join(f"{number} {why}" for why, number in sorted(counts.items()) if why != "chunks")
    return f"from_documents: {counts['chunks']} chunks asked about, {kept} rows; dropped: {dropped or 'nothing'}"
