"""Where prompts come from: `Generator([context], *, knobs) -> Iterable[Prompt]`.

A recipe's entries run in their order. One that works on rows (rewords them, makes them harder, swaps a term in them) reads
those which the entries above it made, `context.before`, and gives only what it adds. One that asks a model goes through
`context.ask`, so its questions are budgeted, in the ledger, and never paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_distill.errors import UserError
from llm_distill.records import Ask, Prompt
from llm_distill.tasks import Task

if TYPE_CHECKING:
    from llm_distill.models import Model

#: Name in a recipe -> where its function is.
GENERATORS = {
    "augment": "llm_distill.generators.augment:augment",
    "counterfactual": "llm_distill.generators.counterfactual:counterfactual",
    "evol_instruct": "llm_distill.generators.evolve:evol_instruct",
    "from_documents": "llm_distill.generators.documents:from_documents",
    "magpie": "llm_distill.generators.magpie:magpie",
    "personas": "llm_distill.generators.personas:personas",
    "seeds": "llm_distill.generators.seeds:seeds",
    "self_instruct": "llm_distill.generators.self_instruct:self_instruct",
    "templates": "llm_distill.generators.grid:templates",
    "topic_tree": "llm_distill.generators.topics:topic_tree",
}
#: Of those that ask a model: name -> where `(rows_before, **knobs) -> AtMost` is, for `check`.
AT_MOST = {
    "augment": "llm_distill.generators.augment:at_most",
    "evol_instruct": "llm_distill.generators.evolve:at_most",
    "from_documents": "llm_distill.generators.documents:at_most",
    "magpie": "llm_distill.generators.magpie:at_most",
    "personas": "llm_distill.generators.personas:at_most",
    "self_instruct": "llm_distill.generators.self_instruct:at_most",
    "topic_tree": "llm_distill.generators.topics:at_most",
}


class AtMost(NamedTuple):
    """What an asking generator may come to: rows it gives, questions it asks, tokens of each prompt (about) and answer."""

    rows: int
    questions: int
    prompt_tokens: int
    max_tokens: int


def _nobody(role: str) -> Any:
    raise UserError(f"no models.{role} is at hand here.")


@dataclass(frozen=True)
class Context:
    """What a generator is handed besides its knobs.

    before: the rows of the entries above it. ask: the entries of a model's answers to questions, in their order, failed
    ones too. model: the model of a role, for those that need its chat template. say: one line for whoever watches. seed: the
    recipe's, or its tick's, for `random.Random`; equal seeds must give equal rows. lasting: the recipe's in every tick.
    """

    before: Sequence[Prompt]
    task: Task
    ask: Ask
    model: Callable[[str], Model] = _nobody
    say: Callable[[str], None] = lambda _line: None
    seed: int = 0
    lasting: int = 0

    def tagged(self, parent: Prompt, **tags: str) -> Mapping[str, str]:
        """The tags of a row made from another: its parent's, where it came from, and what is new."""
        return {**parent.tags, "parent": parent.row_id, **tags}
