"""Whether an answer has the form that it should have. Nothing is mended: text that almost fits does not fit."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import regex as regular
from pydantic import AfterValidator, Field, ValidationInfo

from llm_distill.records import Answer
from llm_distill.scorers import Scored
from llm_distill.scorers.parts import fenced
from llm_distill.structured import PATIENCE_S, Schema, fault, parsed

Language = Literal["python", "json", "yaml", "toml"]
#: How a fence may name each language.
_NAMES = {"python": ("python", "python3", "py"), "json": ("json",), "yaml": ("yaml", "yml"), "toml": ("toml",)}
Lines = Annotated[int, Field(ge=1)]
_KNOBS = {"regex", "json_schema", "labels", "parses", "min_lines"}
#: Of a mapping in YAML that holds others by `<<`: a few lines of those come to more than there is memory for.
_MOST_KEYS = 1000


def _regex(pattern: str) -> str:
    try:
        regular.compile(pattern)
    except regular.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


def _something(max_lines: int | None, info: ValidationInfo) -> int | None:
    if max_lines is None and not any(info.data.get(name) for name in _KNOBS) and info.data.keys() >= _KNOBS:
        raise ValueError(f"say what form: {', '.join(sorted(_KNOBS))} or max_lines")
    least = info.data.get("min_lines")
    if max_lines is not None and least is not None and least > max_lines:
        raise ValueError(f"found {max_lines}, under min_lines: {least}")
    return max_lines


def _unmatched(pattern: str, text: str) -> str | None:
    try:
        return None if regular.fullmatch(pattern, text, timeout=PATIENCE_S) else f"does not match {pattern}"
    except TimeoutError:
        return f"{pattern} took more than {PATIENCE_S:g} s, and was given up"


def format(  # noqa: A001  the name that a recipe writes
    answers: Sequence[Answer],
    *,
    regex: Annotated[str, AfterValidator(_regex)] | None = None,
    json_schema: Schema | None = None,
    labels: Annotated[list[str], Field(min_length=1)] | None = None,
    parses: Language | None = None,
    min_lines: Lines | None = None,
    max_lines: Annotated[Lines | None, AfterValidator(_something)] = None,
) -> Scored:
    """1 where an answer does not have the form, and what is wrong with it; all that is asked for must hold.

    regex: matches the whole answer. json_schema: the answer is JSON that fits it. labels: the answer is one of them, to the
    letter. parses: the answer is a program or a document of that language; of an answer with fenced blocks those of the
    language are read, or those without a name, and each must parse. min_lines, max_lines: lines that are not blank. Blank
    space around an answer does not count.
    """
    checks: list[Callable[[str], str | None]] = []
    if regex is not None:
        checks.append(lambda text: _unmatched(regex, text))
    if json_schema is not None:
        checks.append(lambda text: fault(text, json_schema))
    if labels is not None:
        checks.append(lambda text: None if text in labels else "none of the labels")
    if parses is not None:
        checks.append(lambda text: _unparsed(text, parses))
    if min_lines is not None or max_lines is not None:
        checks.append(lambda text: _lines(text, min_lines or 0, max_lines))
    why = [next((said for check in checks if (said := check(a.text.strip()))), None) for a in answers]
    return Scored([float(said is not None) for said in why], why)


def _lines(text: str, least: int, most: int | None) -> str | None:
    count = sum(bool(line.strip()) for line in text.splitlines())
    if count < least:
        return f"{count} lines, fewer than {least}"
    return f"{count} lines, more than {most}" if most is not None and count > most else None


def _unparsed(text: str, language: Language) -> str | None:
    """Why a text is not of a language, in a line; None where it is."""
    try:
        blocks = fenced(text)
    except ValueError as error:
        return str(error)
    named = [code for name, code in blocks if name.lower() in _NAMES[language]]
    found = named or [code for name, code in blocks if not name]
    if blocks and not found:
        return f"no block of {language}, only {blocks[0][0]}"
    for code in found or [text]:
        try:
            _PARSERS[language](code)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            return f"not {language}: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return None


def _python(text: str) -> None:
    if not text.strip():
        raise ValueError("nothing there")
    with warnings.catch_warnings(action="ignore"):  # of odd escapes; the program is read, not run
        ast.parse(text)


@cache
def _constructor() -> Any:
    """Plain values, and mappings that stay small: each `<<` may hold the one before many times over."""
    from ruamel.yaml.constructor import ConstructorError, SafeConstructor

    class Constructor(SafeConstructor):
        def flatten_mapping(self, node: Any) -> Any:
            super().flatten_mapping(node)
            if node.merge and len(node.value) > _MOST_KEYS:
                raise ConstructorError(None, None, f"`<<` makes a mapping of more than {_MOST_KEYS:,} keys", None)

    return Constructor


def _yaml(text: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _constructor()
    try:
        with warnings.catch_warnings(action="ignore"):  # of an anchor that stands twice
            found = reader.load(text)
    except YAMLError as error:
        raise ValueError(str(getattr(error, "problem", None) or error)) from None
    except (LookupError, TypeError, AttributeError, ArithmeticError):  # what `!!int ''` and `!!bool x` come to
        raise ValueError("a value that is not of the kind it is marked as") from None
    if not isinstance(found, dict | list):
        raise ValueError("a single value, as any text is")


def _toml(text: str) -> None:
    import tomllib

    if not tomllib.loads(text):
        raise ValueError("nothing there")


_PARSERS: dict[str, Callable[[str], Any]] = {"python": _python, "json": parsed, "yaml": _yaml, "toml": _toml}
