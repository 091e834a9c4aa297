"""Structured output: a JSON Schema in the recipe, and whether an answer fits it.

Answers are checked, never mended: JSON that was cut would become other, valid JSON. An answer that does not fit is asked
for once more, with what is wrong with it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationInfo

from llm_distill.errors import UserError
from llm_distill.plugs import find, input_file
from llm_distill.recipe_file import read_mapping

_WRITE = "write a JSON Schema, a .json or .yaml file that holds one, or package.module:PydanticModel"
#: A pattern that backtracks for longer than this on an answer will not come to an end.
PATIENCE_S = 1.0
#: What is escaped, and a brace that counts nothing, which `regex` alone would read as a bound on typing errors.
_SIGN = re.compile(r"\\.|\{(?!\d*,?\d*\})", re.DOTALL)
_LONGEST = 300  # characters of a fault: it may quote the answer


def fault(text: str, schema: str) -> str | None:
    """What keeps a text from being JSON that fits a schema, as `<path>: <why>`; None when it fits."""
    from jsonschema.exceptions import best_match

    try:
        error = best_match(_validator(schema).iter_errors(parsed(text)))
    except RecursionError:
        return "$: nested too deeply"
    except ValueError as why:
        return _line(f"$: not JSON: {why}")
    except ArithmeticError as why:  # a number of hundreds of digits
        return _line(f"$: cannot be checked: {why}")
    return None if error is None else _line(f"{error.json_path}: {error.message}")


def repair_turn(why: str) -> str:
    """What is said to a model whose answer does not fit. A part of the second question's id: it stays as it is."""
    return (
        f"That answer does not fit the JSON Schema it has to follow: {why}\n"
        "Write the whole answer again, as one JSON value that fits it, and nothing else."
    )


def parsed(text: str) -> Any:
    """The value of a JSON text, read strictly (RFC 8259): no key twice, no NaN. ValueError says what is wrong."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_refused, parse_float=_finite)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _times),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice in one object")
    return found


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refused(digits[:20])


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:_LONGEST]


@lru_cache(maxsize=8)
def _validator(schema: str) -> Any:
    """A validator that fetches nothing: jsonschema's own would follow a `$ref` into the network."""
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry

    read = json.loads(schema)
    return extend(validator_for(read, default=Draft202012Validator), {"pattern": _pattern})(read, registry=Registry())


def _literal(sign: re.Match[str]) -> str:
    return f"\\{sign[0]}" if sign[0] == "{" else sign[0]


def _pattern(_validator: Any, pattern: str, found: Any, _schema: Any) -> Iterator[Exception]:
    """What jsonschema does, in its words, but a pattern that backtracks without end on an answer is given up."""
    import regex
    from jsonschema.exceptions import ValidationError

    try:
        if isinstance(found, str) and not regex.search(_SIGN.sub(_literal, pattern), found, timeout=PATIENCE_S):
            yield ValidationError(f"{found!r} does not match {pattern!r}")
    except TimeoutError:
        yield ValidationError(f"{pattern} took more than {PATIENCE_S:g} s, and was given up")


def _schema(found: Any, info: ValidationInfo) -> str:
    """The text of a schema, checked. Keys keep their order, for models write an object's keys in the schema's."""
    try:
        return _checked(found, info)
    except UserError as error:  # pydantic puts the knob's place in front
        raise ValueError(str(error).removeprefix(": ")) from None


def _checked(found: Any, info: ValidationInfo) -> str:
    where = ""
    if isinstance(found, str) and found.endswith((".json", ".yaml", ".yml")):
        path = input_file(Path(found), info)
        where, found = str(path), _read(path)
    elif isinstance(found, str) and ":" in found:
        model = find("schema", found, {}, where)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise UserError(f"{where}: {found} is no pydantic model; {_WRITE}.")
        try:
            found = model.model_json_schema()
        except Exception as error:  # noqa: BLE001  a model's fields may refuse in any way
            raise UserError(f"{where}: {model.__name__} has no JSON Schema: {' '.join(str(error).split())}.") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: found {found!r}; {_WRITE}.")
    try:
        text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}.") from None
    _check(text, where)
    return text


def _read(path: Path) -> Any:
    if path.suffix != ".json":
        return read_mapping(path, "a schema")
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}.") from None


def _check(text: str, where: str) -> None:
    """UserError for what is no JSON Schema, or cannot be checked without more than itself."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    read = json.loads(text)
    dialect = read.setdefault("$schema", Draft202012Validator.META_SCHEMA["$id"])
    try:
        known = validator_for(read, default=None) if isinstance(dialect, str) else None
        if known is None:
            raise UserError(f"{where}: no dialect {dialect!r} is known; leave `$schema` out for draft 2020-12.")
        known.check_schema(read)
        resource = Resource.from_contents(read, default_specification=DRAFT202012)
        _resolve(resource, Registry().resolver_with_root(resource))
        list(_validator(text).iter_errors(None))
    except SchemaError as error:
        raise UserError(f"{where}: not a JSON Schema: {_line(f'{error.json_path}: {error.message}')}.") from None
    except Unresolvable as error:
        raise UserError(
            f"{where}: it refers to {error.ref!r}, which is not in it; write that part under `$defs`."
        ) from None
    except ValueError as error:
        raise UserError(f"{where}: not a JSON Schema: {_line(str(error))}.") from None
    except RecursionError:
        raise UserError(f"{where}: it refers to itself without end.") from None


def _resolve(resource: Any, resolver: Any) -> None:
    """Look up every reference of a schema; Unresolvable for one that leads out of it."""
    for key in ("$ref", "$dynamicRef"):
        if isinstance(resource.contents, Mapping) and key in resource.contents:
            resolver.lookup(resource.contents[key])
    for inner in resource.subresources():
        _resolve(inner, resolver.in_subresource(inner))


#: A JSON Schema as a recipe may give it; what comes out is its text.
Schema = Annotated[str, BeforeValidator(_schema)]
