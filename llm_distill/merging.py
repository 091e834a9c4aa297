"""Several completions, one answer: what a row's questions brought back, read and merged.

Labels are merged by the mean of their distributions where every completion has logprobs, else by majority; a tie states
no label. Of several texts one is chosen, never mixed. No answer depends on the order of the completions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill import reasoning, structured
from llm_distill.logprobs import Logprobs
from llm_distill.records import MISFIT, Answer, Entry, Prompt, Status
from llm_distill.scorers import Context, Pick
from llm_distill.tasks import Task, label_probs

if TYPE_CHECKING:
    from llm_distill.models.vocabulary import Vocabulary

#: Worst first.
_SEVERITY = ("failed", "filtered", "refused", "truncated", "ok")


@dataclass(frozen=True)
class Candidate:
    """One completion of a row's question, read.

    `keys` and `entries` are those of the question and, where its answer did not fit the schema, of the second one,
    whose answer counts. `unanswered`: none ever came.
    """

    role: str
    keys: tuple[str, ...]
    entries: tuple[Entry, ...]
    text: str
    reasoning: str | None
    status: Status
    reason: str | None
    vocabulary: Vocabulary | None = None  # spells tokens that the model gave as ids alone

    @property
    def misfit(self) -> str | None:
        """What is wrong with an answer that does not fit its schema."""
        given = self.entries[-1].status == "ok" and self.status == "failed"
        return (self.reason or "").removeprefix(MISFIT) if given else None

    @property
    def unanswered(self) -> bool:
        """Whether no answer came, so that a later run asks again."""
        return self.entries[-1].status == "failed"

    @cached_property
    def logprobs(self) -> Logprobs | None:
        """The logprobs of the answer's tokens, without those of its reasoning."""
        entry = self.entries[-1]
        if entry.logprobs is None:
            return None
        whole = Logprobs.unpack(entry.logprobs)
        if self.vocabulary is not None:
            whole = whole.spelled(self.vocabulary)
        apart = entry.reasoning is not None or self.text != entry.text
        return reasoning.answer_part(whole, self.text) if apart else whole


def read(
    role: str,
    keys: Sequence[str],
    entries: Sequence[Entry],
    *,
    schema: str | None = None,
    separate: bool = True,
    vocabulary: Vocabulary | None = None,
) -> Candidate:
    """A completion with its reasoning apart (`separate`: also where its text holds it) and checked against a schema."""
    last = entries[-1]
    thought, text = last.reasoning, last.text
    if separate and thought is None:
        thought, text = reasoning.separate(last.text)
    status, reason = last.status, last.reason
    if status == "ok" and not text.strip() and (thought is not None or text != last.text):
        status, reason = "truncated", "no answer after the reasoning"
    if status == "ok" and schema is not None and (why := structured.fault(text, schema)):
        status, reason = "failed", MISFIT + why
    return Candidate(role, tuple(keys), tuple(entries), text, thought, status, reason, vocabulary)


def merge(task: Task, prompt: Prompt, candidates: Sequence[Candidate], pick: Pick | None = None) -> Answer:
    """The answer of a row from all that was asked for it. `pick` chooses among texts; by default, what agrees most does.

    As long as one question has no answer the row has none: an ensemble is not silently a smaller one.
    """
    members = sorted(candidates, key=lambda c: (c.text, c.role, c.keys))
    if unanswered := [c for c in members if c.unanswered]:
        lost = min(unanswered, key=lambda c: (c.role, c.reason or ""))
        several = len({c.role for c in members}) > 1
        answer = _answer(prompt, members, lost, reason=f"{lost.reason} ({lost.role})" if several else lost.reason)
    elif task.kind == "classify":
        answer = _label(task, prompt, members)
    else:
        answer = _choose(task, prompt, members, pick)
    return msgspec.structs.replace(answer, requests=tuple(key for c in candidates for key in c.keys))


def _label(task: Task, prompt: Prompt, members: Sequence[Candidate]) -> Answer:
    stated = [task.prediction(c.text) for c in members]
    probs = _mean_probs(task, members)
    label = _winner(task.labels, stated, probs)
    standing = [c for c, said in zip(members, stated, strict=True) if said == label] or members
    worst = min(standing, key=lambda c: _SEVERITY.index(c.status))
    return _answer(
        prompt,
        members,
        standing[0],
        status=worst.status,
        reason=worst.reason,
        model=_together(c.entries[-1].served_model for c in members),
        role=_together(c.role for c in members),
        prediction=label,
        label_probs=probs,
        agreement=None if len(members) == 1 else 0.0 if label is None else stated.count(label) / len(members),
    )


def _winner(labels: Sequence[str], stated: Sequence[str | None], probs: Sequence[float] | None) -> str | None:
    if len(stated) == 1:
        return stated[0]
    weights: dict[str | None, float] = {said: stated.count(said) for said in stated}
    if probs and max(probs) > 0:
        weights = dict(zip(labels, probs, strict=True))
    most = max(weights.values())
    first = [label for label, weight in weights.items() if weight == most]
    return first[0] if len(first) == 1 else None


def _mean_probs(task: Task, members: Sequence[Candidate]) -> tuple[float, ...] | None:
    known = [c.logprobs for c in members if c.logprobs is not None]
    if len(known) < len(members):
        return None
    rows = [label_probs(logprobs, task.labels, exact=task.parse == "exact") for logprobs in known]
    return tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))


def _choose(task: Task, prompt: Prompt, members: Sequence[Candidate], pick: Pick | None) -> Answer:
    """The text that stands for all: among whole answers the best by a score, the first in alphabet of equal ones.

    By default the score is the mean similarity to the others: minimum Bayes risk under token F1 (Kumar and Byrne 2004).
    An answer that is not whole is like none.
    """
    best = max(members, key=lambda c: _SEVERITY.index(c.status)).status
    standing = [c for c in members if c.status == best]
    if len(members) == 1:
        return _answer(prompt, members, members[0])
    agreements = [0.0] * len(standing)
    if best == "ok":
        agreements = [total / (len(members) - 1) for total in _similarities(standing)]
    scores = pick.scores([_answer(prompt, [c], c) for c in standing], Context(task)) if pick else agreements
    place = scores.index(max(scores))
    return _answer(prompt, members, standing[place], agreement=agreements[place])


def _similarities(whole: Sequence[Candidate]) -> list[float]:
    """The sum of each answer's token F1 with the others."""
    from llm_distill.evals.tokens import bag, bag_f1

    bags = [bag(_comparable(c.text)) for c in whole]
    table = [[0.0] * len(bags) for _ in bags]
    for i, j in combinations(range(len(bags)), 2):
        table[i][j] = table[j][i] = bag_f1(bags[i], bags[j])
    return [math.fsum(row) for row in table]


def _comparable(text: str) -> str:
    """JSON as words, so that its keys and values are compared and not its blank space; any other text as it is."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.dumps(structured.parsed(text), ensure_ascii=False, sort_keys=True, separators=(" , ", " : "))
    except (ValueError, RecursionError):
        return text


def _answer(prompt: Prompt, members: Sequence[Candidate], chosen: Candidate, **merged: Any) -> Answer:
    """An answer with the chosen one's words, and what all members cost."""
    entries = [entry for c in members for entry in c.entries]
    given = [entry for entry in entries if entry.status != "failed"]
    paid = [entry for entry in entries if entry.status != "failed" or entry.cost_usd is not None]
    values: dict[str, Any] = {
        "text": chosen.text,
        "status": chosen.status,
        "reason": chosen.reason,
        "model": chosen.entries[-1].served_model,
        "role": chosen.role,
        "reasoning": chosen.reasoning,
        "terms": _terms(entries),
        "prompt_tokens": _total(e.prompt_tokens for e in given),
        "completion_tokens": _total(e.completion_tokens for e in given),
        "cost_usd": _total(e.cost_usd for e in paid),
        "attempts": sum(e.attempts for e in entries),
        "seconds": sum(e.seconds for e in entries),
        "mean_logprob": _mean_logprob(chosen),
    }
    return Answer(prompt=prompt, **values | merged)


def _together(names: Iterable[str]) -> str:
    return "+".join(sorted(set(names)))


def _terms(entries: Sequence[Entry]) -> str | None:
    """The terms that bind a row: those of everyone who was asked, `unknown` among them where one states none."""
    named = {e.terms for e in entries}
    return None if named == {None} else _together(name or "unknown" for name in named)


def _total(values: Iterable[Any]) -> Any:
    """The sum, or None where there is nothing or one part is unknown: unknown is never 0."""
    parts = list(values)
    return None if not parts or None in parts else sum(parts)


def _mean_logprob(chosen: Candidate) -> float | None:
    if chosen.logprobs is None or not len(chosen.logprobs.chosen):
        return None
    return float(chosen.logprobs.logprobs.mean())
