"""Questions that a stage has of its own, to the models that write prompts and judge answers: through the same door as all.

They are claimed, paid for and found again in the ledger like a row's, and bounded by the same budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.account import Account
from llm_distill.collect import salt, settle
from llm_distill.errors import UserError, did_you_mean
from llm_distill.limits import Charge
from llm_distill.models import Model
from llm_distill.reasoning import separate
from llm_distill.records import Entry, Request

if TYPE_CHECKING:
    from llm_distill.stages import Run


@dataclass
class Errand:
    """A stage's `ask`. logprobs: whether the entries that it gives have them. owed: its questions without an answer, which a
    later run asks again. entries: of all that it asked, by key, without their texts.
    """

    run: Run
    what: str
    logprobs: bool = False
    owed: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)

    def __call__(self, role: str, questions: Sequence[Request]) -> list[Entry]:
        """The entries of questions to the model of a role, in their order."""
        if role not in self.run.plan.models:
            raise UserError(f"{self.what}: no model {role!r}.{did_you_mean(role, self.run.plan.models)}")
        entries = self.of(self.run.model(role), role, questions)
        self.owed += sum(entry.status == "failed" for entry in entries)
        return entries

    def of(self, model: Model, role: str, questions: Sequence[Request]) -> list[Entry]:
        """The same of a model that no recipe names: a role's with an adapter of its own. Its failures are not owed: asked
        again it would fail again.
        """
        ledger = self.run.ledger
        keys = [question.key(salt(self.run, model)) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        known = dict(zip(asked, ledger.read(asked, logprobs=self.logprobs), strict=True))
        missing = {key: asked[key] for key, entry in known.items() if entry is None or entry.status == "failed"}
        if missing and self.run.may_ask:
            self._announce(model, role, missing)
            settle(self.run, {model.identity: (model, missing.items(), len(missing))})
            known |= zip(missing, ledger.read(missing, logprobs=self.logprobs), strict=True)
        entries = [known[key] or Entry(key, "failed", "not asked yet") for key in keys]
        self.entries |= {e.key: msgspec.structs.replace(e, text="", reasoning=None, logprobs=None) for e in entries}
        return entries if self.run.plan.answers.reasoning == "none" else list(map(_without_reasoning, entries))

    @property
    def spent(self) -> dict[str, Any]:
        """What the answers came to, whichever run paid for them; nothing where nobody was asked."""
        paid = [e for e in self.entries.values() if e.status != "failed" or e.cost_usd is not None]
        costs = [e.cost_usd for e in paid]
        tokens = {n: sum(getattr(e, n) or 0 for e in paid) for n in ("prompt_tokens", "completion_tokens")}
        known = None if None in costs else sum(c for c in costs if c is not None)
        return {"spent": {"answered": len(paid), **tokens, "cost_usd": known}} if self.entries else {}

    def _announce(self, model: Model, role: str, questions: dict[str, Request]) -> None:
        account = Account(model, self.run.id)
        most = sum((account.item(key, question).reserve for key, question in questions.items()), Charge())
        cost = "" if model.prices is None or not most.usd else f", at most ${most.usd:,.4f}"
        self.run.watch.say(f"{self.what}: {len(questions):,} questions to {role}{cost}")


def _without_reasoning(entry: Entry) -> Entry:
    reasoning, answer = separate(entry.text)
    return entry if reasoning is None and answer == entry.text else msgspec.structs.replace(entry, text=answer)
