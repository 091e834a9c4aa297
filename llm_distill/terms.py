"""Whether a teacher's terms allow what the student is meant for: records of terms, the recipe's policy, and the gate.

A record is one of `terms.yaml`, or one that the recipe writes itself or names a file for. Every answer carries the name of
the record it was given under, so a row is judged by the terms of the day it was paid for, whatever the recipe says today.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from llm_distill.errors import UserError, did_you_mean
from llm_distill.plugs import Plug, Reading, Spec, is_run, one_line
from llm_distill.recipe_file import read_recipe

_TABLE = Path(__file__).parent / "terms.yaml"
_WORDS = {True: "yes", False: "no"}
#: What a row of several answers calls terms that nobody named.
UNKNOWN = "unknown"

Permission = Annotated[
    Literal["yes", "no", "unknown"], BeforeValidator(lambda v: _WORDS[v] if isinstance(v, bool) else v)
]
#: A use, the key of `policy` that states it, and how a message says it.
_USES = {
    "train": ("train", "training a model on its answers"),
    "train_competing": ("competing", "training a model that competes with its provider"),
    "publish": ("publish", "passing on its answers or a model made of them"),
}


class Allows(BaseModel):
    """What terms say of each use."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    train: Permission = "unknown"
    train_competing: Permission = "unknown"
    publish: Permission = "unknown"


class Record(BaseModel):
    """Terms as somebody read them: `read` is the day, `clause` a paraphrase of what bears on the uses.

    share_alike: the terms under which what is derived must be passed on. attribution: what must be said with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    licence: str
    url: str | None = None
    read: Annotated[str, BeforeValidator(str)] | None = None
    allows: Allows = Allows()
    share_alike: str | None = None
    attribution: str | None = None
    clause: str = ""

    @property
    def cited(self) -> str:
        """The clause with its source."""
        source = ", ".join(filter(None, (self.url, self.read and f"read {self.read}")))
        return " ".join(filter(None, (self.clause, f"({source})" if source else "")))


class Policy(BaseModel):
    """What the student is meant for, as stated by its makers: the uses that the terms of every answer must allow.

    train: a model is trained on the answers, by this recipe or elsewhere. competing: it competes with the provider who
    gave them. publish: it, or the answers, leave the house. accept_unknown: go on where terms leave a use open, with a
    note. Left out, unknown is accepted while everything stays in the house, for there a student can be thrown away when
    the answer is no, and most teachers are one's own or under a contract that no table knows; what is published
    cannot be called back, so there it must be said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    intended_use: str | None = None
    train: bool = True
    competing: bool = False
    publish: bool = False
    accept_unknown: bool | None = None

    @property
    def uses(self) -> list[str]:
        """The keys of `Allows` that must be granted."""
        wanted = {"train": self.train, "train_competing": self.train and self.competing, "publish": self.publish}
        return [use for use, is_wanted in wanted.items() if is_wanted]

    @property
    def accepts_unknown(self) -> bool:
        """Whether a use that terms leave open is a note rather than a refusal."""
        return not self.publish if self.accept_unknown is None else self.accept_unknown


class Source(NamedTuple):
    """Somebody whose words the student learns from, and the name of the record they stand under."""

    who: str
    terms: str | None


class Verdicts(NamedTuple):
    """A sentence for each use that terms forbid, and for each that they leave open."""

    forbidden: list[str]
    unknown: list[str]


class Governed(Protocol):
    """A recipe's plan, as far as terms go."""

    @property
    def policy(self) -> Policy | None: ...

    @property
    def terms(self) -> Mapping[str, Record]: ...


@cache
def shipped() -> dict[str, Record]:
    """The records of `terms.yaml`."""
    return {name: Record(**entry) for name, entry in read_recipe(_TABLE).items()}


def resolve(value: Any, where: str, own: dict[str, Record], reading: Reading) -> str:
    """The name of the record that `terms: value` means; one that is not shipped is put into `own`.

    `value` is a name, the name of a YAML file with one record (relative to the recipe), or a record: `{name: ..., allows: ...}`.
    """
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        path = (reading["folder"] / Path(value).expanduser()).resolve()
        if not path.is_file():
            raise UserError(f"{where}: no such file: {path}.")
        reading["files"].add(path)
        value, where = read_recipe(path), str(path)
    if isinstance(value, str):
        known = shipped().keys() | own.keys()
        if value not in known:
            raise UserError(
                f"{where}: no terms {value!r}.{did_you_mean(value, known)} "
                "Or write a record of your own: {name: ..., url: ..., read: ..., allows: {train: yes}}."
            )
        return value
    words = dict(value) if isinstance(value, Mapping) else {}
    name = words.pop("name", None)
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{where}: found {value!r}; write a name, a file, or a record `{{name: ..., allows: {{train: yes}}}}`."
        )
    try:
        record = Record.model_validate({"licence": name} | words)
    except ValidationError as error:
        raise UserError(one_line(error, where, Record.model_fields)) from None
    if name == UNKNOWN or "+" in name:
        raise UserError(
            f"{where}.name: found {name!r}; rows join names with `+` and call what nobody named `{UNKNOWN}`."
        )
    if name in shipped() or own.setdefault(name, record) != record:
        raise UserError(f"{where}.name: {name!r} names another record already; give this one a name of its own.")
    return name


def with_name(spec: Spec, own: dict[str, Record], reading: Reading) -> Spec:
    """A recipe's entry with its `terms:` resolved to a name."""
    if spec.knobs.get("terms") is None:
        return spec
    return replace(
        spec, knobs=spec.knobs | {"terms": resolve(spec.knobs["terms"], f"{spec.where}.terms", own, reading)}
    )


def named_sources(
    models: Mapping[str, Plug], generators: Sequence[Plug], prompt_terms: Sequence[str | None]
) -> Iterator[Source]:
    """Whose words a recipe's student learns from, as far as the recipe knows: its models, and prompts that name terms.

    The student's own base is none of them: records speak of answers, and its licence's duties are the report's to say. Nor
    is another recipe's student yet, which stands under its teachers' terms: they are known where it was trained.
    """
    for role, plug in models.items():
        model = plug.knobs.get("model", plug.spec.name)
        if role != "student" and not is_run(model):
            for name in (plug.knobs.get("terms") or UNKNOWN).split("+"):  # several: of a student's teachers
                yield Source(f"models.{role} ({model}) answers", None if name == UNKNOWN else name)
    for i, (generator, terms) in enumerate(zip(generators, prompt_terms, strict=True)):
        if terms:
            yield Source(f"prompts[{i}] ({generator.spec.name}) stands", terms)


def verdicts(policy: Policy, records: Mapping[str, Record], sources: Iterable[Source]) -> Verdicts:
    """What the terms of each source say to the uses that a policy states."""
    found = Verdicts([], [])
    for who, name in sources:
        record = records.get(name or "")
        under = f"{who} under the terms {name!r} ({record.licence if record else 'of which no record is at hand'})"
        under = under if name else f"{who} under terms that nobody named"
        for use in policy.uses:
            key, words = _USES[use]
            permission = getattr(record.allows, use) if record else "unknown"
            cited = f": {record.cited}" if record else "."
            if permission == "no":
                found.forbidden.append(f"{under}, which do not allow {words} (policy.{key}){cited}")
            elif permission == "unknown":
                found.unknown.append(f"{under}, which leave open whether they allow {words}{cited}")
    return found


def judge(policy: Policy | None, records: Mapping[str, Record], sources: Iterable[Source]) -> list[str]:
    """The notes on what terms leave open. UserError, naming source and clause, when they forbid what the policy states."""
    policy = policy or Policy()
    forbidden, unknown = verdicts(policy, records, sources)
    if forbidden:
        raise UserError(
            f"policy: {' '.join(forbidden)} Ask another teacher, leave these rows out, or change `policy`; if a contract of "
            "your own allows it, write its record at `terms:`."
        )
    if unknown and not policy.accepts_unknown:
        raise UserError(
            f"policy: {' '.join(unknown)} Find out and write a record at `terms:`, or set policy.accept_unknown: true."
        )
    return unknown


def gate(plan: Governed, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """`judge` for rows of a table, by the terms that each was answered under (columns `terms` and `model`)."""
    return judge(plan.policy, plan.terms, row_sources(rows))


def row_sources(rows: Iterable[Mapping[str, Any]]) -> Iterator[Source]:
    """Who answered the rows of a table: a source for each model and record, with the number of its rows.

    A row that several teachers were asked for stands under the terms of each (joined by `+`).
    """
    total, counted = 0, Counter[tuple[str, str | None]]()
    for row in rows:
        total += 1
        for name in (row["terms"] or UNKNOWN).split("+"):
            counted[row["model"] or "an unnamed model", None if name == UNKNOWN else name] += 1
    for (model, terms), count in sorted(counted.items(), key=lambda item: (-item[1], str(item[0]))):
        yield Source(f"{count:,} of {total:,} rows were answered by {model}", terms)
