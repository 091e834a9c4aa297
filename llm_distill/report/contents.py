"""The page's sections in their order. Each is a template `page/<key>.html.j2`, shown where there is something of it.

A section to add: a line here, its template, and what the template shows in `sections.views` (or in a module of its own that
is named there, as `lint_section`), with its sentences in `sections.findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Section(NamedTuple):
    """key: its anchor and its template. of: names in the view (or in the report) of which one must not be empty.
    usual: the page's foot says where a run lacks it.
    """

    key: str
    title: str
    of: tuple[str, ...]
    usual: bool = True


SECTIONS = (
    Section("gate", "Ship gate", ("gate",), usual=False),
    Section("findings", "What it says", ("findings",), usual=False),
    Section("results", "Arms compared", ("arms",)),
    Section("pass_at", "Right in k attempts", ("pass_at",), usual=False),
    Section("instructions", "Instructions followed", ("report.instructions",), usual=False),
    Section("slices", "Slices", ("slices",)),
    Section("judge", "The judge", ("judge",), usual=False),
    Section("confusion", "Confusion", ("confusions",)),
    Section("certainty", "Certainty", ("certainty",)),
    Section("robustness", "Robustness", ("robustness",)),
    Section("bias", "Bias after training", ("bias",)),
    Section("probe", "The teacher, then and now", ("probe",), usual=False),
    Section("tradeoff", "Cost and quality", ("tradeoff",), usual=False),
    Section("general", "General ability", ("general",)),
    Section("prompts", "Prompts", ("made",)),
    Section("funnel", "Funnel of rows", ("steps",)),
    Section("data_set", "Data set", ("data_set",), usual=False),
    Section("fairness", "Filters and fairness", ("fairness",)),
    Section("flips", "Counterfactual groups", ("flips",)),
    Section("review", "Review", ("review",)),
    Section("calibration", "The teacher\u2019s calibration", ("calibration",)),
    Section("training", "Training", ("report.training",)),
    Section("sweep", "Sweep", ("sweep",)),
    Section("ablation", "Ablation", ("ablation",)),
    Section("cost", "Cost and time", ("stages",)),
    Section("speed", "Speed and price of an answer", ("speed",), usual=False),
    Section("examples", "Side by side", ("report.examples",)),
    Section("rows", "Rows", ("rows",), usual=False),
    Section("terms", "Licences and terms", ("report.terms", "report.policy")),
    Section("provenance", "Provenance", ("report.provenance",)),
)


def listed(view: Mapping[str, Any]) -> tuple[list[Section], list[str]]:
    """The sections that a page has, and the titles of the usual ones that it lacks."""
    there = [section for section in SECTIONS if any(_found(view, name) for name in section.of)]
    return there, [section.title for section in SECTIONS if section.usual and section not in there]


def _found(view: Mapping[str, Any], name: str) -> Any:
    _, inner, key = name.rpartition("report.")
    return view["report"].get(key) if inner else view.get(name)
