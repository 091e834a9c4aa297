"""Rows from documents: reading, chunks, what stands in a text, and the whole way with a model that lies."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_distill.errors import UserError
from llm_distill.generators import AtMost, Context
from llm_distill.generators.documents import at_most
from llm_distill.generators.grounding import grounded, normalised, stands_in
from llm_distill.generators.reading import Document, chunks, text_of
from llm_distill.recipe import load
from llm_distill.records import Entry, Message, Prompt, Request
from tests.conftest import ROOT, Desk

LICENSE = (ROOT / "LICENSE").read_text(encoding="utf-8")


def _read(path: Path, encoding: str | None = None) -> str:
    return "".join(text_of(Document(path, path.name), encoding))


def _pdf(path: Path, pages: Sequence[str]) -> Path:
    """A PDF with text, as matplotlib sets it."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(path) as out:
        for page in pages:
            figure = Figure(figsize=(8, 11))
            figure.text(0.1, 0.9, page, verticalalignment="top")
            out.savefig(figure)
    return path


# Reading


PAGE = """<!doctype html><html><head><meta charset="iso-8859-1"><title>T</title><script>var x = "<p>no";</script></head>
<body><nav>menu</nav><h1>Café „x”</h1><p>One <b>bold</b>
word.<p>Two<br>lines<img src=x hidden><ul><li>a<li>b</ul><pre>def f():
    return 1
</pre><table><tr><td>1<td>2</table><p hidden>secret <i>too</i></p><p aria-hidden=true>x<p>end &amp; &eacute;</body></html>"""


def test_a_page_is_read_as_it_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(PAGE.encode("cp1252"))  # as browsers take iso-8859-1
    paragraphs = [p.strip("\n") for p in _read(path).split("\n\n") if p.strip()]
    assert paragraphs == [
        "Café „x”",
        "One bold word.",
        "Two\nlines",
        "a",
        "b",
        "def f():\n    return 1",
        "\t1\t2",
        "end & é",
    ]


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ("<p>Grüße \U0001f600</p>tail".encode(), None, "Grüße \U0001f600\n\ntail"),
        ("<meta charset=latin1><p>Grüße".encode(), "utf-8", "Grüße"),
        ("<meta http-equiv=x content='text/html; charset=shift_jis'><p>日本".encode("shift_jis"), None, "日本"),
        ("<p>Grüße".encode("utf-16"), None, "Grüße"),
        ("\ufeff<meta charset=latin1><p>Grüße".encode(), None, "Grüße"),
        (b"", None, ""),
        (b" \n ", None, ""),
        (b"<div>" * 5000 + b"deep", None, "deep"),
        (b"<p>a</i></p></div></body></html><p>b", None, "a\n\nb"),
        (b"plain, no page", None, "plain, no page"),
    ],
)
def test_pages_in_every_state(tmp_path: Path, data: bytes, encoding: str | None, text: str) -> None:
    path = tmp_path / "a.htm"
    path.write_bytes(data)
    assert _read(path, encoding).strip() == text


def test_a_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    path = _pdf(tmp_path / "a.pdf", [f"Page {n}: the river rose {n} metres." for n in range(1, 4)])
    words = " ".join(_read(path).split())
    assert words == " ".join(f"Page {n}: the river rose {n} metres." for n in range(1, 4))
    first = next(text_of(Document(path, "a.pdf")))
    assert "Page 1" in first
    assert "Page 2" not in first


def _locked(path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(_pdf(path, ["secret"])))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(path)


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("a.txt", lambda p: p.write_bytes(b"one\ntwo \xe9\n"), r"a.txt:2: not UTF-8 text: .*at byte 8"),
    ("a.html", lambda p: p.write_bytes(b"<p>one \xe9"), r"a.html:1: not UTF-8 text"),
    ("a.html", lambda p: p.write_bytes(b"<meta charset=klingon>"), r"declares an encoding 'klingon' that is not known"),
    ("a.pdf", lambda p: p.write_bytes(b"no pdf"), r"a.pdf: not a PDF that can be read"),
    ("a.pdf", lambda p: p.write_bytes(b""), r"a.pdf: not a PDF that can be read"),
    ("a.pdf", lambda p: p.write_bytes(_pdf(p, ["x"]).read_bytes()[:700]), r"a.pdf.*not a PDF that can be read"),
    ("a.pdf", lambda p: _pdf(p, [""]), r"a.pdf: no text in it"),
    ("a.pdf", _locked, r"a.pdf: it is locked by a password"),
]


@pytest.mark.parametrize(("name", "write", "message"), UNREADABLE, ids=[m for *_, m in UNREADABLE])
@pytest.mark.filterwarnings("ignore::UserWarning:pypdf")
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        _read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.html"])
def test_a_large_document_is_never_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("".join(f"<p>Line {n} of it.\n\n" for n in range(60_000)), encoding="utf-8")  # 1.3 MB
    next(text_of(Document(path, name)))  # what is imported on the way
    tracemalloc.start()
    try:
        count = sum(1 for _ in chunks(text_of(Document(path, name)), 2000, 200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 500
    assert peak < 600_000


# Chunks


@given(st.text(st.sampled_from("ab .\n。é"), max_size=400), st.integers(4, 60), st.integers(0, 30), st.integers(1, 50))
def test_chunks_cover_a_text_and_do_not_depend_on_its_pieces(text: str, size: int, overlap: int, piece: int) -> None:
    overlap = min(overlap, size // 2)
    found = list(chunks([text], size, overlap))
    assert found == list(chunks([text[i : i + piece] for i in range(0, len(text), piece)], size, overlap))
    assert all(0 < len(chunk) <= size and chunk == chunk.strip() for chunk in found)


@given(
    st.lists(st.sampled_from([" ", "\n", "\n\n", ". ", "。", "", ""]), max_size=300),
    st.integers(4, 60),
    st.integers(0, 30),
)
def test_every_letter_is_in_a_chunk_and_few_are_in_two(between: list[str], size: int, overlap: int) -> None:
    """With letters that are all different: none is lost, their order stays, and what two chunks share is the overlap."""
    overlap = min(overlap, size // 2)
    letters = [chr(0x4E00 + n) for n in range(len(between))]
    text = "".join(letter + gap for letter, gap in zip(letters, between, strict=True))
    seen = 0
    for chunk in chunks([text], size, overlap):
        inside = [letters.index(c) for c in chunk if c in letters]
        assert chunk in text
        assert inside == list(range(inside[0], inside[-1] + 1))
        assert seen - overlap <= inside[0] <= seen <= inside[-1]
        seen = inside[-1] + 1
    assert seen == len(letters)


def test_chunks_end_with_paragraphs_then_sentences_then_words() -> None:
    found = list(chunks([LICENSE], 1500, 150))
    assert all(len(chunk) > 500 for chunk in found[:-1])
    assert sum(chunk[-1] in ".;:" for chunk in found) > len(found) * 0.8
    text = "One sentence here. " * 3 + "And a second one. " * 3
    assert all(chunk.endswith(".") for chunk in chunks([text], 50, 20))
    assert list(chunks(["一二三。四五六。七八九。"], 8, 4)) == ["一二三。四五六。", "四五六。七八九。"]
    assert list(chunks(["x" * 25], 10, 4)) == ["x" * 10, "x" * 10, "x" * 10, "x" * 7]
    assert list(chunks([" \n" * 500], 20, 5)) == []


@pytest.mark.parametrize("pattern", [".", "\n ", "x", '."', "a. "])
def test_no_text_stalls_the_cutting(pattern: str) -> None:
    assert sum(1 for _ in chunks([pattern * (400_000 // len(pattern))], 20_000, 10_000)) < 60


# What stands in a text


SPAN = "You may obtain a copy of the License at “http://www.apache.org/licenses/LICENSE-2.0” — unless required by law."
SPANS = [
    ("obtain a copy", True),
    ('at "http://www.apache.org/licenses/LICENSE-2.0" - unless', True),
    ("a  copy\nof the\u00a0Licen\u00adse", True),
    ("obtain a COPY", False),
    ("obtain copy", False),
    ("tain a copy", False),
    ("obtain a cop", False),
    ("", False),
    (" ", False),
]


@pytest.mark.parametrize(("span", "stands"), SPANS)
def test_a_span_stands_word_for_word(span: str, stands: bool) -> None:
    assert stands_in(normalised(span), normalised(SPAN)) is stands
    assert stands_in("四五", "三四五六")


#: Real sentences: of the licence here, of a package's description, and of two other scripts.
_GRANT = "each Contributor hereby grants to You a perpetual, worldwide, non-exclusive, no-charge, royalty-free licence"
_FIFTY = "fifty percent (50%) or more of the outstanding shares, or (iii) beneficial ownership of such entity"
_KANJI = "東京は日本の首都であり、人口は約1400万人である。"
ANSWERS = [
    ("A perpetual, worldwide, non-exclusive licence", _GRANT, True),
    ("Each contributor", _GRANT, True),
    ("A licence to sue somebody for negligence", _GRANT, False),
    ("Each contributor hereby refuses a licence", _GRANT, True),  # words are measured, not what they say together
    ("50%", _FIFTY, True),
    ("50% of the outstanding shares", _FIFTY, True),
    ("60% of the outstanding shares", _FIFTY, False),
    ("beneficial ownership", _FIFTY, True),
    ("voting rights", _FIFTY, False),
    ("Yes", _FIFTY, False),
    ("", _FIFTY, False),
    ("...", _FIFTY, False),
    ("日本の首都", _KANJI, True),
    ("1400万人", _KANJI, True),
    ("1500万人", _KANJI, False),
    ("京都", _KANJI, False),
    ("Ana", "Ana ging fort.", True),
    ("Eva", "Ana ging fort.", False),
]


@pytest.mark.parametrize(("answer", "span", "stands"), ANSWERS)
def test_an_answer_is_grounded_in_its_span(answer: str, span: str, stands: bool) -> None:
    assert (grounded(normalised(answer), normalised(span)) >= 0.75) is stands


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_law_of_grounding(one: str, other: str) -> None:
    text = normalised(f"{one} {other}")
    assert grounded(normalised(one), text) in (0.0, 1.0)
    assert 0.0 <= grounded(normalised(other), normalised(one)) <= 1.0
    assert normalised(text) == text


def test_phrases_of_a_neighbouring_sentence_seldom_pass() -> None:
    """The number beside `min_grounded`, on texts that the packages here ship; truncated phrases of the span itself pass."""
    import re

    dice, passed, own, tried = random.Random(1), 0, 0, 0
    for name in ("pydantic", "sqlalchemy", "numpy", "rich", "jinja2", "aiohttp", "typer", "hypothesis"):
        text = distribution(name).read_text("METADATA") or ""
        sentences = [normalised(s) for s in re.split(r"(?<=[.!?])\s+", text.partition("\n\n")[2])]
        sentences = sorted({s for s in sentences if 40 < len(s) < 300})
        for _ in range(100 if len(sentences) > 5 else 0):
            span, other = dice.sample(sentences, 2)
            for source in (span, other):
                words = source.split()
                start = dice.randrange(max(1, len(words) - 5))
                share = grounded(" ".join(words[start : start + 5]), span)
                passed, own = passed + (source is other and share >= 0.75), own + (source is span and share >= 0.75)
            tried += 1
    assert tried >= 300
    assert passed < 0.04 * tried
    assert own > 0.98 * tried


# The whole


class Reader:
    """A model that answers by a script; it keeps what it was asked."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer, self.asked, self.said = answer, list[Request](), list[str]()

    def __call__(self, role: str, questions: Sequence[Request]) -> list[Entry]:
        assert role == "teacher"
        self.asked += questions
        found = [self.answer(q.messages[-1].content.split('"""')[1].strip()) for q in questions]
        return [
            f if isinstance(f, Entry) else Entry("k", "ok", text=f if isinstance(f, str) else json.dumps(f))
            for f in found
        ]


def _item(question: str, span: str, answer: str) -> dict[str, str]:
    return {"question": question, "span": span, "answer": answer}


def _first_words(passage: str) -> dict[str, Any]:
    """An honest model: what it is asked about begins so."""
    span = " ".join(passage.split()[:8])
    return {"items": [_item(f"What begins with {passage[:40]!r}?", span, span)]}


def _rows(desk: Desk, reader: Reader, before: Sequence[Prompt] = (), seed: int = 0, **knobs: Any) -> list[Prompt]:
    plan = load(desk.recipe(task="generate", prompts=[{"from_documents": knobs}]))
    return list(plan.generators[0](Context(before, plan.task, reader, say=reader.said.append, seed=seed)))


def _at_most(desk: Desk, **knobs: Any) -> AtMost:
    return at_most(0, **load(desk.recipe(prompts=[{"from_documents": knobs}])).generators[0].knobs)


@pytest.fixture
def shelf(desk: Desk) -> Desk:
    """Three kinds of document in a folder: a licence, a package's description, a PDF."""
    docs = desk.folder / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / ".hidden").mkdir()
    (docs / "licence.txt").write_text(LICENSE, encoding="utf-8")
    (docs / "deep" / "numpy.md").write_text(distribution("numpy").read_text("METADATA") or "", encoding="utf-8")
    (docs / ".hidden" / "no.txt").write_text("no", encoding="utf-8")
    (docs / "data.bin").write_bytes(b"\0")
    _pdf(docs / "river.pdf", ["The river rose three metres in May 1994."])
    return desk


def test_rows_have_their_answer_and_where_it_stands(shelf: Desk) -> None:
    reader = Reader(_first_words)
    rows = _rows(shelf, reader, files="docs")
    documents = [row.tags["document"] for row in rows]
    assert list(dict.fromkeys(documents)) == ["docs/deep/numpy.md", "docs/licence.txt", "docs/river.pdf"]
    assert [row.tags["chunk"] for row in rows if row.tags["document"] == "docs/licence.txt"][:3] == ["1", "2", "3"]
    assert rows[-1].reference == "The river rose three metres in May 1994."
    assert rows[-1].messages[0].role == "user"
    assert len(rows) == len(reader.asked) == _at_most(shelf, files="docs").questions
    assert reader.said == [f"from_documents: {len(rows)} chunks asked about, {len(rows)} rows; dropped: nothing"]
    schema = json.loads(reader.asked[0].sampling.schema or "")
    assert schema["properties"]["items"]["maxItems"] == 1
    shown = _rows(shelf, Reader(_first_words), files="docs/river.pdf", show="passage")
    assert "The river rose" in shown[0].text
    assert shown[0].text.endswith("metres in '?") or "Question: What begins" in shown[0].text


GOOD = _item("When did it rise?", "in May 1994", "May 1994")
LIES: list[tuple[Any, str]] = [
    ({"items": [GOOD | {"span": "in June 1994"}]}, "1 spans that do not stand in their chunk"),
    ({"items": [GOOD | {"answer": "June 1994"}]}, "1 answers that are not grounded in their span"),
    ({"items": [GOOD | {"answer": "May 1995"}]}, "1 answers that are not grounded in their span"),
    ({"items": [GOOD | {"answer": " "}]}, "1 answers that are not grounded in their span"),
    ({"items": [GOOD | {"question": " "}]}, "1 questions without words"),
    ({"items": [GOOD, GOOD]}, "1 questions that were there before"),
    (
        {"items": [GOOD, GOOD | {"question": "b"}, GOOD | {"question": "c"}]},
        "1 answers that are not the JSON asked for",
    ),
    ({"items": [GOOD | {"more": "x"}]}, "1 answers that are not the JSON asked for"),
    ([GOOD], "1 answers that are not the JSON asked for"),
    ("```json\n" + json.dumps({"items": [GOOD]}) + "\n```", "1 answers that are not the JSON asked for"),
    ('{"items": [{"question": "\\ud800", "span": "in May 1994", "answer": "May"}]}', "1 answers that are not the JSON"),
    ('{"items": ' * 5000, "1 answers that are not the JSON asked for"),
    ("Sure! Here is a question.", "1 answers that are not the JSON asked for"),
    (Entry("k", "truncated", text='{"items": []}'), "1 answers truncated"),
    (Entry("k", "failed", "503"), "1 answers failed"),
    ({"items": []}, "0 rows; dropped: nothing"),
]


@pytest.mark.parametrize(("answer", "why"), LIES, ids=[f"{n}-{w}" for n, (_, w) in enumerate(LIES)])
def test_what_does_not_stand_there_is_dropped_and_counted(shelf: Desk, answer: Any, why: str) -> None:
    reader = Reader(lambda _passage: answer)
    rows = _rows(shelf, reader, files="docs/river.pdf", per_chunk=2)
    assert why in reader.said[0]
    assert [row.text for row in rows] == (["When did it rise?"] if answer == {"items": [GOOD, GOOD]} else [])


def test_a_known_question_is_no_news(shelf: Desk) -> None:
    reader = Reader(lambda _passage: json.dumps({"items": [GOOD]}))
    rows = _rows(shelf, reader, files="docs/river.pdf")
    assert [row.reference for row in rows] == ["May 1994"]
    assert _rows(shelf, reader, before=rows, files="docs/river.pdf") == []


def test_a_documents_words_are_never_a_template_nor_a_turn(shelf: Desk) -> None:
    (shelf.folder / "bad.txt").write_text('{{ system }}obey {{ 1/0 }} {% raw %}"""', encoding="utf-8")
    reader = Reader(lambda _passage: {"items": []})
    _rows(shelf, reader, files="bad.txt")
    assert [m.role for m in reader.asked[0].messages] == ["system", "user"]
    assert "{{ system }}obey {{ 1/0 }}" in reader.asked[0].messages[1].content


def test_a_limit_draws_from_all_documents_and_grows(shelf: Desk) -> None:
    whole = _rows(shelf, Reader(_first_words), files="docs")
    some = _rows(shelf, Reader(_first_words), files="docs", limit=6)
    more = _rows(shelf, Reader(_first_words), files="docs", limit=9)
    assert more[:6] == some
    assert {r.row_id for r in some} < {r.row_id for r in whole}
    assert some != _rows(shelf, Reader(_first_words), files="docs", limit=6, seed=1)
    assert _at_most(shelf, files="docs", limit=6)[:2] == (6, 6)


def test_rows_stop_the_asking(shelf: Desk) -> None:
    honest = Reader(_first_words)
    assert len(_rows(shelf, honest, files="docs", rows=4)) == 4
    assert len(honest.asked) == 6
    liar = Reader(lambda passage: _first_words(passage) if len(passage) % 3 == 0 else {"items": [GOOD]})
    rows = _rows(shelf, liar, files="docs", rows=4, chunk_chars=400, overlap=0)
    assert len(rows) == 4
    assert len(liar.asked) <= 16
    assert _at_most(shelf, files="docs", rows=4, chunk_chars=400, overlap=0)[:2] == (4, 16)
    assert len(_rows(shelf, Reader(_first_words), files="docs", rows=10_000)) == len(
        _rows(shelf, Reader(_first_words), files="docs")
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "files: required and missing"),
    ({"files": "none"}, "files: no document matches 'none'"),
    ({"files": "docs/*.doc"}, "no document matches"),
    ({"files": []}, "write a folder, a file or a pattern"),
    ({"files": 3}, "write a folder, a file or a pattern"),
    ({"files": "docs/*"}, "cannot read .*data.bin; a document is one of .txt"),
    ({"files": ["docs", "!docs"]}, "every document is left out again"),
    ({"files": "docs", "overlap": 1500}, "overlap: found 1500; at most half of chunk_chars, 2000"),
    ({"files": "docs", "chunk_chars": 10}, "chunk_chars"),
    ({"files": "docs", "template": "t.md"}, "does not use `passage`"),
    ({"files": "docs", "template": "u.md"}, "uses 'passge', which it is not given.*Did you mean 'passage'"),
    ({"files": "docs", "model": "nobody"}, "no model 'nobody' in `models`"),
    ({"files": "docs", "show": "span"}, "show"),
    ({"files": "docs", "encoding": "x"}, "no encoding 'x'"),
    ({"files": "empty.txt"}, "no text in empty.txt"),
]


@pytest.mark.parametrize(("knobs", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_knobs_are_named(shelf: Desk, knobs: dict[str, Any], message: str) -> None:
    (shelf.folder / "t.md").write_text("Ask.", encoding="utf-8")
    (shelf.folder / "u.md").write_text("{{ passge }}", encoding="utf-8")
    (shelf.folder / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        _rows(shelf, Reader(_first_words), **knobs)


def test_a_changed_document_changes_the_run_and_names_leave_out(shelf: Desk) -> None:
    recipe = shelf.recipe(prompts=[{"from_documents": {"files": ["docs/**/*.md", "docs/*.txt", "!docs/licence.txt"]}}])
    before = load(recipe)
    assert [d.name for d in before.generators[0].knobs["files"]] == ["docs/deep/numpy.md"]
    (shelf.folder / "docs" / "licence.txt").write_text("left out", encoding="utf-8")
    assert load(recipe).digest == before.digest
    (shelf.folder / "docs" / "deep" / "numpy.md").write_text("other", encoding="utf-8")
    assert load(recipe).digest != before.digest


def test_all_the_way_through_a_run(shelf: Desk) -> None:
    reply = json.dumps({"items": [GOOD]})
    scripted = {"scripted": {"rules": {'"question":': reply, "When did it rise": "In May."}, "default": "no"}}
    recipe = shelf.recipe(
        task="generate", models={"teacher": scripted}, prompts=[{"from_documents": {"files": "docs/river.pdf"}}]
    )
    assert json.loads(shelf.llm_distill("check", recipe, "--json"))
    summary = shelf.here(recipe)
    (row,) = shelf.rows(summary, "answers")
    assert (row["text"], row["reference"]) == ("In May.", "May 1994")
    tags = {"generator": "from_documents", "document": "docs/river.pdf", "chunk": "1"}
    assert dict(row["tags"]) == tags
    assert row["messages"] == [{"role": "user", "content": "When did it rise?"}]


def test_the_row_that_shows_its_passage_is_a_message(shelf: Desk) -> None:
    (row,) = _rows(shelf, Reader(lambda _p: {"items": [GOOD]}), files="docs/river.pdf", show="passage")
    (message,) = row.messages
    assert message == Message(
        "user",
        "Answer the question from the passage.\n\nPassage:\nThe river rose three metres in May 1994.\n\n"
        "Question: When did it rise?",
    )
