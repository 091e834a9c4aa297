"""Documents, read a piece at a time and cut into chunks: a large one is never in memory as a whole.

Text and Markdown are read as they stand. Of HTML, what a page shows without its navigation; through libxml2's push parser,
which builds no tree. PDF page by page: only its text, and none of pages that are pictures.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_distill.errors import UserError
from llm_distill.text_files import UTF8, opened, pieces

_TEXT, _HTML, _PDF = (".txt", ".md", ".markdown"), (".html", ".htm", ".xhtml"), (".pdf",)
#: Suffixes of the documents that can be read.
SUFFIXES = (*_TEXT, *_HTML, *_PDF)
_INSTALL = "is not installed; pip install 'llm-distill[documents]'."

#: After so many pages of a PDF the objects read so far are let go; fonts are then read once more.
_PAGES_KEPT = 64

#: Elements that are not a page's own words, or that nobody sees.
_UNSEEN = """
    aside button canvas datalist dialog footer head iframe math menu nav noscript object option script select style svg
    template textarea
"""
#: Elements that stand on lines of their own.
_BLOCK = """
    address article blockquote body caption center dd details div dl dt fieldset figcaption figure form h1 h2 h3 h4 h5 h6
    header hgroup hr legend li main ol p pre search section summary table tbody tfoot thead tr ul
"""
_KIND = dict.fromkeys(_UNSEEN.split(), "unseen") | dict.fromkeys(_BLOCK.split(), "block")
_KIND |= {"br": "line", "td": "cell", "th": "cell"}
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
#: As browsers read them, whatever a page calls them (WHATWG Encoding, section 4.2).
_LATIN = {"ascii": "cp1252", "us-ascii": "cp1252", "iso8859-1": "cp1252"}
#: Of a page, where it may say its encoding (HTML, section 13.2.3.2).
_PRESCAN = 1024

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE_END = re.compile(r"[.!?…][\"'”\u2019»)\]]{0,3}\s+|[。\uff01\uff1f][”\u2019」』\uff09]{0,3}\s*")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w")


class Document(NamedTuple):
    """A document, and the name that rows made of it bear."""

    path: Path
    name: str


def text_of(document: Document, encoding: str | None = None) -> Iterator[str]:
    """A document's text, in pieces. encoding: of text and HTML; without it UTF-8, or what an HTML page says of itself.

    Raises UserError for what cannot be read: undecodable text, a broken or locked PDF, a missing library.
    """
    suffix = document.path.suffix.lower()
    if suffix in _PDF:
        return _pdf(document.path)
    if suffix in _HTML:
        return _html(document.path, encoding or _declared(document.path))
    return pieces(document.path, encoding or UTF8)


def chunks(text: Iterable[str], size: int, overlap: int) -> Iterator[str]:
    """A text in chunks of at most `size` characters, each but the first beginning with up to `overlap` of the one before.

    A chunk ends, by the first that its second half has: at the last end of a paragraph, of a sentence (as punctuation
    shows it), at blank space, or at its full size; it begins at the start of a sentence or of a word. Those that
    have no letter or digit of their own are left out. `overlap` is at most half of `size`.
    """
    buffer, known = "", 0  # the first `known` characters stood in the chunk before
    for piece in text:
        buffer += piece
        start = 0
        while len(buffer) - start > size:
            end = start + _cut(buffer[start : start + size])
            if _WORD.search(buffer, start + known, end):
                yield buffer[start:end].strip()
            begin = end - overlap + _begin(buffer[end - overlap : end])
            start, known = begin, end - begin
        buffer = buffer[start:]
    if _WORD.search(buffer, known):
        yield buffer.strip()


def _cut(window: str) -> int:
    half = len(window) // 2
    for end in (_PARAGRAPH_END, _SENTENCE_END, _SPACE):
        if ends := [found.end() for found in end.finditer(window, half)]:
            return ends[-1]
    return len(window)


def _begin(window: str) -> int:
    for end in (_PARAGRAPH_END, _SENTENCE_END, _SPACE):
        if (first := end.search(window)) is not None and first.end() < len(window):
            return first.end()
    return 0 if _SPACE.search(window) is None else len(window)


def _declared(path: Path) -> str:
    """The encoding that a page declares, as browsers take it; UTF-8 where it declares none."""
    with path.open("rb") as file:
        start = file.read(_PRESCAN)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start.startswith(codecs.BOM_UTF8) or (found := _CHARSET.search(start)) is None:
        return UTF8
    label = found[1].decode("ascii")
    try:
        name = codecs.lookup(label).name
        codecs.getincrementaldecoder(name)
    except LookupError:
        raise UserError(
            f"{path}: it declares an encoding {label!r} that is not known; name it, `encoding: ...`."
        ) from None
    # a page whose declaration can be read as ASCII is not in UTF-16 (HTML, section 13.2.3.2)
    return UTF8 if name in ("utf-8", "utf-16", "utf-16-le", "utf-16-be") else _LATIN.get(name, name)


class _Page:
    """What the push parser tells its findings to: text, with blank space as a page would show it."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._hidden: list[str] = []  # open elements, from the first that is not shown
        self._kept = 0  # open elements whose blank space is their own
        self._begun = False  # whether the paragraph has any words yet

    def start(self, tag: str, attributes: Any) -> None:
        kind = _KIND.get(tag)
        if self._hidden or kind == "unseen" or "hidden" in attributes or attributes.get("aria-hidden") == "true":
            self._hidden.append(tag)
        elif kind == "block":
            self._kept += tag == "pre"
            self._paragraph()
        elif kind is not None:
            self.out.append("\n" if kind == "line" else "\t")

    def end(self, tag: str) -> None:
        if self._hidden:
            if self._hidden[-1] == tag:
                self._hidden.pop()
        elif _KIND.get(tag) == "block":
            self._kept -= tag == "pre"
            self._paragraph()

    def data(self, text: str) -> None:
        if self._hidden:
            return
        shown = text if self._kept else _SPACE.sub(" ", text)
        if not self._begun and not self._kept:
            shown = shown.lstrip()
        if shown:
            self._begun = True
            self.out.append(shown)

    def close(self) -> None: ...

    def drained(self) -> str:
        text = "".join(self.out)
        self.out.clear()
        return text

    def _paragraph(self) -> None:
        if self._begun:
            self.out.append("\n\n")
            self._begun = False


def _html(path: Path, encoding: str) -> Iterator[str]:
    try:
        from lxml import etree
    except ImportError:
        raise UserError(f"{path}: lxml {_INSTALL}") from None
    page = _Page()
    parser = etree.HTMLParser(target=page, huge_tree=True, remove_comments=True, remove_pis=True)
    for piece in pieces(path, encoding):
        if piece:
            parser.feed(piece)
            yield page.drained()
    try:
        parser.close()
    except etree.XMLSyntaxError:  # nothing at all in it
        return
    yield page.drained()


def _pdf(path: Path) -> Iterator[str]:
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError:
        raise UserError(f"{path}: pypdf {_INSTALL}") from None
    where, words = str(path), False
    with opened(path) as file:
        try:
            reader = pypdf.PdfReader(file)  # given the open file, it reads what it needs of it
            if reader.is_encrypted and not reader.decrypt(""):
                raise UserError(f"{path}: it is locked by a password; save a copy that is not.")
            for number, page in enumerate(reader.pages, start=1):
                where = f"{path}: page {number}"
                text = page.extract_text()
                words = words or bool(text.strip())
                yield text + "\n"
                if number % _PAGES_KEPT == 0:
                    reader.resolved_objects.clear()
        except (PyPdfError, ImportError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{where}: not a PDF that can be read ({why}); mend it, or leave it out of `files`."
            ) from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply to be read; leave it out of `files`.") from None
    if not words:
        raise UserError(
            f"{path}: no text in it, only pictures perhaps; put it through OCR, or leave it out of `files`."
        )
