"""Text out of files, a piece at a time: an encoding is never guessed, and what cannot be read is named by line and byte."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, IncrementalNewlineDecoder, TextIOWrapper
from pathlib import Path
from typing import IO, Annotated, cast

from pydantic import AfterValidator

from llm_distill.errors import UserError

#: UTF-8, with or without the mark that some editors write in front.
UTF8 = "utf-8-sig"
_BLOCK = 1 << 16
#: The marks that other encodings begin with, longest first.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
_MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}


def _encoding(name: str) -> str:
    try:
        TextIOWrapper(BytesIO(), encoding=name).close()  # refuses what is no encoding of text
        codecs.getincrementaldecoder(name)
    except LookupError:
        raise ValueError(f"no encoding {name!r}; for example utf-8, utf-16, cp1252, gb18030") from None
    return UTF8 if codecs.lookup(name).name == "utf-8" else name


#: An encoding that a recipe names.
Encoding = Annotated[str, AfterValidator(_encoding)]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, those of a `.gz` unpacked; UserError when it cannot be read, also later on."""
    try:
        with path.open("rb") as file:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    except (OSError, EOFError, zlib.error) as error:  # a torn or wrong archive is an OSError or one of the others
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def lines(path: Path, encoding: str = UTF8, newline: str = "\n") -> Iterator[str]:
    """A file's lines, each with its end. `newline` as in `open`: "" leaves every kind of line end as it is."""
    with opened(path) as file, TextIOWrapper(file, encoding=encoding, newline=newline) as text:
        try:
            yield from text
        except UnicodeError:
            raise _undecodable(path, encoding) from None


def pieces(path: Path, encoding: str = UTF8, size: int = _BLOCK) -> Iterator[str]:
    """A file's text in pieces of about `size` bytes; every line end is a line feed."""
    with opened(path) as file:
        decoder = IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        try:
            while block := file.read(size):
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
        except UnicodeError:
            raise _undecodable(path, encoding) from None


def _undecodable(path: Path, encoding: str) -> UserError:
    """Where a file stops being text, found by reading it once more."""
    name = "UTF-8" if encoding == UTF8 else encoding
    decoder = codecs.getincrementaldecoder(encoding)()
    line, fed, why, block = 1, 0, "it ends within a character", b""
    with opened(path) as file:
        start = file.read(4)
        file.seek(0)
        try:
            while block := file.read(_BLOCK):
                fed += len(block)
                line += decoder.decode(block).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "replace").count("\n")
            fed += error.start - len(error.object)
            why = error.reason
        except UnicodeError as error:  # UTF-16 without its mark
            why, fed = str(error), 0
    marked = next((other for mark, other in _MARKS.items() if start.startswith(mark)), None)
    repair = f"it begins like {marked}" if marked and marked != encoding else "for example cp1252"
    return UserError(
        f"{path}:{line}: not {name} text: {why} at byte {fed}. Save the file as UTF-8, or name its encoding where "
        f"there is a knob `encoding` ({repair})."
    )
