"""Under which terms an exported student stands: derived from its base, its teachers' answers and its prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_distill.export.student import Student, shown
from llm_distill.store import read_table
from llm_distill.terms import Policy, Record, Source, judge, row_sources, verdicts

May = Literal["yes", "no", "unknown"]
#: Records of terms that the hub has an identifier for, which is not always their name here.
_IDENTIFIERS = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "gemma"}


@dataclass(frozen=True)
class Standing:
    """What may be done with a student.

    licence: the hub's identifier, `other` where none fits; name: what `other` stands for. `why` says how it was found,
    `duties` what must be passed on or said with it; `notes` are what terms forbid or leave open.
    """

    licence: str
    name: str | None
    why: str
    may_be_published: May
    duties: Sequence[str] = ()
    notes: Sequence[str] = ()
    sources: Sequence[Source] = field(default_factory=list)


def standing(student: Student) -> Standing:
    """The standing of a run's student; UserError where terms forbid what the recipe's policy states."""
    plan = student.plan
    rows = read_table(student.run.lessons, ["model", "terms"])
    answered = [
        Source(who, terms) for who, terms in row_sources([{**r, "model": shown(r["model"] or "")} for r in rows])
    ]
    prompts = [
        Source(f"prompts[{i}] ({generator.spec.name}) stands", terms)
        for i, (generator, terms) in enumerate(zip(plan.generators, plan.prompt_terms, strict=True))
        if terms
    ]
    judge(plan.policy, plan.terms, [*prompts, *answered])
    return derive(student.base, student.terms, [*prompts, *answered], plan.terms)


def derive(base: str, base_terms: str | None, sources: Sequence[Source], records: Mapping[str, Record]) -> Standing:
    """The standing of a student of `base` (under `base_terms`) that learnt from `sources`.

    What any of them forbids to pass on, or leaves open, has no licence that could be named; else terms that derived work
    must be passed on under hold, where they are one; else the base's.
    """
    found = verdicts(Policy(train=False, publish=True), records, sources)
    of_base = [name for name in (base_terms or "").split("+") if name in records]
    named = {*of_base, *(source.terms for source in sources if source.terms)}
    used = {name: records[name] for name in sorted(named & records.keys())}
    strict = {record.share_alike: name for name, record in used.items() if record.share_alike}
    duties = [f"{record.licence}: {record.attribution}" for record in used.values() if record.attribution]
    duties += [f"To be passed on under {share_alike}." for share_alike in sorted(strict)]
    if base_terms is None:
        duties.append(f"{base}: the recipe names no terms of the base; its licence holds for what is made of it.")
    open_ = [*found.forbidden, *found.unknown]

    def stands(licence: tuple[str, str | None], may: May, why: str) -> Standing:
        return Standing(*licence, why, may, duties, open_, list(sources))

    if found.forbidden:
        return stands(("other", "not-to-be-passed-on"), "no", "terms of what it learnt from forbid passing it on")
    if found.unknown:
        why = "terms of what it learnt from leave open whether it may be passed on"
        return stands(("other", "not-settled"), "unknown", why)
    if len(strict) > 1:
        why = f"it would have to be passed on under each of: {', '.join(sorted(strict))}"
        return stands(("other", "several-terms"), "unknown", why)
    if strict:
        ((share_alike, name),) = strict.items()
        return stands(_identified(name, records), "yes", f"what is derived must be passed on under {share_alike}")
    if len(of_base) != 1:
        why = f"the recipe names no terms of the base {base} (models.student: terms)"
        return stands(("other", "that-of-the-base"), "unknown", why)
    return stands(_identified(of_base[0], records), "yes", f"it is the base's ({base}); nothing else asks for another")


def _identified(name: str, records: Mapping[str, Record]) -> tuple[str, str | None]:
    if name in _IDENTIFIERS:
        return name, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", records[name].licence.casefold()).strip("-")[:60]
