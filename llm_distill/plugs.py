"""Plugs: a name in a recipe becomes a checked callable.

A plug is a plain function (or a class, where it owns a connection or weights). Its positional parameters are what the
house hands over; its keyword-only parameters are the recipe's knobs. A pydantic model is built from those, so a wrong
knob is found before anything is spent. Knobs that several plugs share are the fields of a `Group`.
`package.module:function` names a plug of one's own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict, TypeGuard, cast, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, create_model

from llm_distill import own_plugs
from llm_distill.errors import UserError, did_you_mean
from llm_distill.plain import Plain, leaves
from llm_distill.scrub import know


@dataclass(frozen=True)
class Group:
    """Knobs that several plugs share: a keyword-only parameter typed as a subclass takes its fields, flat, as knobs. `passing`
    names those that change nothing of what is made.
    """

    passing: ClassVar[tuple[str, ...]] = ()


class Reading(TypedDict):
    """What validation is told: the folder that relative paths start from, and the recipe's models by role; it notes the
    input files it met.
    """

    folder: Path
    files: set[Path]
    roles: Sequence[str]


def input_file(path: Path, info: ValidationInfo) -> Path:
    """The whole path of a file that a recipe names, noted as one that was read; ValueError when there is none."""
    reading = cast(Reading, info.context)
    try:
        full = (reading["folder"] / path.expanduser()).resolve()
        if not full.is_file():
            raise ValueError(f"no such file: {full}")
    except (OSError, RuntimeError) as error:  # a text stands there, or ~ before nobody's name
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"write the name of a file; found {str(path)[:60]!r}: {why}") from None
    reading["files"].add(full)
    return full


#: How a reference to weights begins that means the student of another recipe (see `lineage`).
RUN = "run:"


def is_run(reference: Any) -> bool:
    """Whether a reference means the student of another recipe."""
    return isinstance(reference, str) and reference.startswith(RUN)


def _weights(reference: str, info: ValidationInfo) -> str:
    if is_run(reference):
        return reference
    try:
        full = cast(Reading, info.context)["folder"] / Path(reference).expanduser()
        found = full.exists()
    except (OSError, RuntimeError) as error:  # too long, or ~ before nobody's name
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"write a model's folder or hub id; found {reference[:60]!r}: {why}") from None
    if found:
        return str(full.resolve())
    if reference.startswith((".", "/", "~")) or reference.endswith(".gguf") or reference.count("/") > 1:
        raise ValueError(f"no such model folder or file: {full}")
    return reference


def _program(path: str, info: ValidationInfo) -> str:
    return str(cast(Reading, info.context)["folder"] / Path(path).expanduser()) if "/" in path else path


#: A file named in a recipe: relative to the recipe's folder, must exist.
InputFile = Annotated[Path, AfterValidator(input_file)]


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be a key, so it is not repeated
        raise ValueError(
            "what stands here is not the name of an environment variable; export the key and write its name"
        )
    return know(name)


#: The name of an environment variable that holds a secret, which from then on is struck out of what this process says.
SecretName = Annotated[str, AfterValidator(_variable)]
#: A program, such as an environment's `bin/python`; a path is relative to the recipe's folder. No link is followed: an
#: environment is known by its own.
Program = Annotated[str, AfterValidator(_program)]
#: Model weights: a local folder, a .gguf file (both relative to the recipe's folder), a hub id such as `org/name`, or
#: `run:NAME`, what the recipe NAME trained last.
Weights = Annotated[str, AfterValidator(_weights)]


def _role(role: str, info: ValidationInfo) -> str:
    roles = cast(Reading, info.context)["roles"]
    if role not in roles:
        raise ValueError(f"no model {role!r} in `models`.{did_you_mean(role, roles)}")
    return role


#: The role of one of the recipe's models, which the plug will ask.
Role = Annotated[str, AfterValidator(_role)]


#: Knobs that change how fast a model answers, not what.
_PACE = ("terms", "prices_usd", "concurrency", "timeout_s", "batch_size", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True)
class Spec:
    """One entry of a recipe: `name` or `name: {knobs}`. `where` is its place in the recipe, for messages."""

    name: str
    knobs: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @classmethod
    def read(cls, value: Any, where: str) -> Spec:
        """Take the two spellings a recipe may use; anything else is a UserError."""
        if isinstance(value, str):
            return cls(value, {}, where)
        if isinstance(value, Mapping) and len(value) == 1:
            name, knobs = next(iter(value.items()))
            if isinstance(name, str) and (knobs is None or isinstance(knobs, Mapping)):
                return cls(name, dict(knobs or {}), f"{where}.{name}")
        raise UserError(f"{where}: found {value!r}; write `name` or `name: {{knob: value}}`, one name each.")


@dataclass(frozen=True)
class Plug:
    """A spec bound to its function, with validated knobs."""

    spec: Spec
    function: Callable[..., Any]
    knobs: dict[str, Any]

    @property
    def lasting(self) -> dict[str, Any]:
        """The knobs as written, but for those that only say where and how fast; a class may name its own `pace_knobs`."""
        passing = (*_PACE, *getattr(self.function, "pace_knobs", ()))
        return {name: value for name, value in self.spec.knobs.items() if name not in passing}

    @property
    def passing(self) -> set[str]:
        """The knobs that change nothing of what is made, by what its groups say."""
        return {name for group in self.knobs.values() if isinstance(group, Group) for name in group.passing}

    @property
    def roles(self) -> tuple[str, ...]:
        """The models that it asks, by role."""
        declared = _declared(self.function).items()
        groups = [vars(group) for group in self.knobs.values() if isinstance(group, Group)]
        knobs = {name: value for part in (self.knobs, *groups) for name, value in part.items()}
        named = {role for name, (hint, _) in declared if _asks(hint) and (role := knobs.get(name))}
        inner = {role for value in self.knobs.values() if isinstance(value, Plug) for role in value.roles}
        return tuple(sorted(named | inner))

    def __call__(self, *house: Any) -> Any:
        """Call the function with as many of the house's arguments as it has positional parameters."""
        parameters = inspect.signature(self.function).parameters.values()
        takes = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        return self.function(*house[:takes], **self.knobs)


def _asks(hint: Any) -> bool:
    """Whether a knob is a role: `Role`, or `Role | None`."""
    return any(_role in map(_function, getattr(part, "__metadata__", ())) for part in (hint, *get_args(hint)))


def _function(annotation: Any) -> Any:
    return getattr(annotation, "func", None)


def find(kind: str, name: str, table: Mapping[str, str], where: str) -> Callable[..., Any]:
    """The function behind a name; tables and recipes both say where it is as `package.module:function`."""
    target = table.get(name, name)
    if ":" not in target:
        raise UserError(f"{where}: no {kind} {name!r}.{did_you_mean(name, table)} Or write package.module:function.")
    return own_plugs.load(target, where)


class _Knobs(Plain):
    #: Defaults are checked too: that of a role may be a model which the recipe does not have.
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)


def knob_model(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of a function's keyword-only parameters; unknown keys are errors."""
    fields: dict[str, Any] = _declared(function)
    return create_model("Knobs", __base__=_Knobs, **fields)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's keyword-only parameters, each with its type."""
    target = function.__init__ if inspect.isclass(function) else function
    knobs = [p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    # Of the knobs alone: what the house hands over may be typed by names that only a type checker imports.
    only = type("Knobs", (), {"__annotations__": {k.name: k.annotation for k in knobs if k.annotation is not k.empty}})
    try:
        hints = get_type_hints(only, getattr(target, "__globals__", {}), include_extras=True)
    except NameError as error:
        raise UserError(
            f"{function.__module__}:{function.__name__}: its annotations cannot be read: {error}."
        ) from None
    return {k.name: hints.get(k.name, Any) for k in knobs}


def _declared(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """A function's knobs, each with its type and its default (`...` where it must be given)."""
    target = function.__init__ if inspect.isclass(function) else function
    parameters = inspect.signature(target).parameters
    declared: dict[str, tuple[Any, Any]] = {}
    for name, hint in _hints(function).items():
        if _is_group(hint):
            types = get_type_hints(hint, include_extras=True)
            declared |= {f.name: (types[f.name], ... if f.default is MISSING else f.default) for f in fields(hint)}
        else:
            default = parameters[name].default
            declared[name] = (hint, ... if default is inspect.Parameter.empty else default)
    return declared


def _is_group(hint: Any) -> TypeGuard[type[Group]]:
    return isinstance(hint, type) and issubclass(hint, Group)


def _as_taken(function: Callable[..., Any], knobs: dict[str, Any]) -> dict[str, Any]:
    """Flat knobs as the function takes them: those of a group in an instance of it."""
    groups = {name: hint for name, hint in _hints(function).items() if _is_group(hint)}
    made = {name: hint(**{f.name: knobs.pop(f.name) for f in fields(hint)}) for name, hint in groups.items()}
    return knobs | made


def bind(kind: str, spec: Spec, table: Mapping[str, str], reading: Reading) -> Plug:
    """Check a spec against its plug: a wrong name, knob or file is a UserError."""
    function = find(kind, spec.name, table, spec.where)
    if spec.name not in table:
        own_plugs.check_callable(kind, function, spec.where)
        if source := own_plugs.source(function, spec.name):  # changed, it is another plug
            reading["files"].add(source)
    model = knob_model(function)
    try:
        checked = model.model_validate(spec.knobs, context=reading)
    except ValidationError as error:
        raise UserError(one_line(error, spec.where, model.model_fields)) from None
    return Plug(spec, function, _as_taken(function, {name: getattr(checked, name) for name in model.model_fields}))


def _keys(fields_: Mapping[str, Any], path: Sequence[str]) -> set[str]:
    """The keys of the object at a path of pydantic's, which also names the members of a union; none where that is unclear."""
    if not path:
        return {getattr(known, "alias", None) or name for name, known in fields_.items()}
    models = [kind for kind in leaves(getattr(fields_.get(path[0]), "annotation", None)) if _is_model(kind)]
    rest = path[1:]
    if rest and (named := [kind for kind in models if kind.__name__ == rest[0]]):
        models, rest = named, rest[1:]
    return set().union(*(_keys(kind.model_fields, rest) for kind in models))


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def one_line(error: ValidationError, where: str, allowed: Mapping[str, Any]) -> str:
    """The first fault of a pydantic error, as `where.key: what was found, what is allowed`."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    place = f"{where}.{path}" if where and path else where or path
    *outer, key = map(str, fault["loc"]) if fault["loc"] else ("",)  # a fault of the whole has no place in it
    if fault["type"] == "extra_forbidden" and (known := _keys(allowed, outer)):
        return f"{place.removesuffix(key).removesuffix('.') or 'recipe'}: no key {key!r}.{did_you_mean(key, known)}"
    if fault["type"] == "missing":
        return f"{place}: required and missing."
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" + ("" if fault["type"] == "value_error" else f"; found {fault['input']!r}.")
