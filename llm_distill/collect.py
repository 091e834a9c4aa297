"""One table's answers: every row's questions, to whom they go, and what became of them.

An answer that does not fit its schema is asked for a second time, once. The second question is a request with an id of
its own, so it is counted and paid for like any other, and a later run finds its answer in the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from llm_distill import store, structured
from llm_distill.ask import Group, ask_all
from llm_distill.errors import FellShort
from llm_distill.limits import Tally
from llm_distill.logprob_table import beside
from llm_distill.logprob_writer import Add, writing
from llm_distill.merging import Candidate, merge, read
from llm_distill.models import Model
from llm_distill.records import MISFIT, Answer, Entry, Message, Prompt, Request, Sampling
from llm_distill.tasks import View

if TYPE_CHECKING:
    from llm_distill.stages import Run

#: (key, request) pairs, and how many they are.
Sized = tuple[Iterable[tuple[str, Request]], int]


@dataclass(frozen=True)
class Panel:
    """Who answers a table's rows, by role, and how they are asked. `who` gives the roles of one row, sorted. fresh: no answer
    counts but those to questions that were asked under the same word. apart: the table has every sample as a row of its own, in
    their order, where otherwise a row's samples are merged.
    """

    models: Mapping[str, Model]
    who: Callable[[Prompt], Sequence[str]]
    view: View
    sampling: Sampling
    samples: int = 1
    fresh: str | None = None
    apart: bool = False

    def answers(self, parts: Sequence[Sequence[Candidate]]) -> Iterator[list[Candidate]]:
        """What each of a row's answers is merged from, of what every role brought back: the samples of a role in their order."""
        shares = self.samples if self.apart else 1
        for share in range(shares):
            yield [part[i] for part in parts for i in _part(len(part), share, shares)]


def _part(size: int, share: int, shares: int) -> range:
    return range(share * size // shares, (share + 1) * size // shares)


def teachers(run: Run, prompts: Sequence[Prompt], sampling: Sampling) -> Panel:
    """The recipe's teachers, as they share these rows; UserError for rows that none of them answers."""
    plan = run.plan
    plan.teachers.check_rows(prompts)
    models = {role: run.model(role) for role in plan.teachers.roles}
    plan.teachers.check_models({role: model.identity for role, model in models.items()})
    return Panel(models, plan.teachers.of, plan.task.teacher_view, sampling, plan.answers.samples)


def alone(role: str, model: Model, view: View, sampling: Sampling) -> Panel:
    """One model that answers every row once."""
    return Panel({role: model}, lambda _prompt: (role,), view, sampling)


@dataclass
class Counts:
    """What became of a table's rows: `rows` that were settled, `failed` ones by their reason, and those still `owed`."""

    rows: int = 0
    owed: int = 0
    failed: Counter[str | None] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        """Count one row."""
        self.rows += 1
        self.owed += answer.owed
        if answer.status == "failed":
            self.failed[answer.reason] += 1


def collect(run: Run, prompts: Sequence[Prompt], panel: Panel, table: str) -> Counts:
    """Ask a panel for every prompt and write the answers, in prompt order. Written also when cut short."""
    plan, counts = run.plan, Counts()
    who = [panel.who(prompt) for prompt in prompts]
    seats = {
        role: _Seat(run, role, panel, [p for p, roles in zip(prompts, who, strict=True) if role in roles])
        for role in panel.models
    }

    def answers(add: Add) -> Iterator[Answer]:
        found = {role: seat.candidates() for role, seat in seats.items()}
        for prompt, roles in zip(prompts, who, strict=True):
            parts = [next(found[role], None) for role in roles]
            whole = [part for part in parts if part is not None]
            if len(whole) < len(parts):
                continue
            for candidates in panel.answers(whole):
                for c in candidates:
                    if (entry := c.entries[-1]).logprobs is not None:
                        add(prompt.row_id, entry.key, entry.served_model, entry.logprobs, c.vocabulary)
                answer = merge(plan.task, prompt, candidates, plan.pick)
                counts.add(answer)
                yield answer

    try:
        _settle(run, seats.values(), _Seat.firsts)
        if panel.sampling.schema is not None:
            _settle(run, seats.values(), _Seat.seconds)
    finally:
        with writing(run.folder.file(beside(table))) as add:
            store.write_table(run.folder.file(table), map(store.answer_row, answers(add)), "answers")
    _check_failed(counts, plan.answers.max_failed, table)
    return counts


def _settle(run: Run, seats: Iterable[_Seat], asked: Callable[[_Seat], Sized]) -> None:
    """Ask every seat's model for its share. Seats of one model ask together: a question of two of them is asked once."""
    groups: dict[str, Group] = {}
    for seat in seats:
        requests, size = asked(seat)
        model, before, known = groups.get(seat.model.identity, (seat.model, (), 0))
        groups[seat.model.identity] = (model, chain(before, requests), (known or 0) + size)
    settle(run, groups)


def salt(run: Run, model: Model) -> str:
    """What a question's key is made with besides the question: `fresh` runs share no answers with others."""
    return f"{model.identity}#{run.id}" if run.plan.answers.fresh else model.identity


def settle(run: Run, groups: Mapping[str, Group]) -> None:
    """Ask each model (by identity) its questions: all side by side, but weights in this process one after the other."""
    here = [group for group in groups.values() if group[0].holds_weights and group[2]]
    away = [group for group in groups.values() if not group[0].holds_weights and group[2]]
    done, total = Tally(), sum(size or 0 for _, _, size in groups.values())
    for together in filter(None, [[*away, *here[:1]], *([group] for group in here[1:])]):
        run.make_room(next((model for model, _, _ in together if model.holds_weights), None))
        tally = Tally()

        def show(now: Tally, done: Tally = done) -> None:
            nonlocal tally
            tally, upto = replace(now), done + now
            numbers = {
                "failed": upto.failed,
                "tokens": upto.prompt_tokens + upto.completion_tokens,
                "usd": upto.cost_usd,
            }
            run.watch.rows(upto.answered + upto.reused, total, numbers)

        limits = run.plan.answers.limits
        try:
            ask_all(together, run.ledger, run=run.id, limits=limits, on_tally=show, say=run.watch.say)
        finally:
            run.tally += tally
            done += tally


class _Seat:
    """One model's part of a table: its rows, its questions, and the keys under which their answers lie."""

    def __init__(self, run: Run, role: str, panel: Panel, prompts: Sequence[Prompt]) -> None:
        self.run, self.role, self.panel, self.prompts = run, role, panel, prompts
        self.model = panel.models[role]
        self._keys: list[list[str]] = []  # of each row, as far as it was asked for
        self._salt = f"{self.model.identity}#{panel.fresh}" if panel.fresh else salt(run, self.model)

    def _questions(self, prompt: Prompt) -> list[Request]:
        panel = self.panel
        shown = panel.view.questions(prompt, self.run.plan.task.labels)
        return [
            Request(messages, panel.sampling, sample, panel.view.raw)
            for sample in range(panel.samples)
            for messages in shown
        ]

    def firsts(self) -> Sized:
        """The questions of every row."""
        return self._firsts(), len(self.prompts) * self.panel.samples * max(1, len(self.panel.view.examples))

    def _firsts(self) -> Iterator[tuple[str, Request]]:
        for prompt in self.prompts:
            questions = self._questions(prompt)
            self._keys.append([question.key(self._salt) for question in questions])
            yield from zip(self._keys[-1], questions, strict=True)

    def seconds(self) -> Sized:
        """A second question for every answer that does not fit its schema."""
        questions = [
            self._second(prompt, place, candidate)
            for prompt, row in self._rows()
            for place, (key, entry) in enumerate(row)
            if entry is not None and (candidate := self._read([key], [entry])).misfit
        ]
        return questions, len(questions)

    def _second(self, prompt: Prompt, place: int, first: Candidate) -> tuple[str, Request]:
        question = self._questions(prompt)[place]
        turns = Message("assistant", first.text), Message("user", structured.repair_turn(first.misfit or ""))
        request = msgspec.structs.replace(question, messages=(*question.messages, *turns))
        return request.key(self._salt), request

    def candidates(self) -> Iterator[list[Candidate] | None]:
        """What every row's questions brought back; None for a row that is not settled yet."""
        for prompt, row in self._rows():
            found = [self._candidate(prompt, place, key, entry) for place, (key, entry) in enumerate(row)]
            whole = [candidate for candidate in found if candidate is not None]
            yield whole if len(whole) == len(found) else None

    def _candidate(self, prompt: Prompt, place: int, key: str, entry: Entry | None) -> Candidate | None:
        if entry is None:
            return None
        first = self._read([key], [entry])
        if not first.misfit:
            return first
        second, _ = self._second(prompt, place, first)
        (again,) = self.run.ledger.read([second])
        return None if again is None else self._read([key, second], [entry, again])

    def _rows(self) -> Iterator[tuple[Prompt, list[tuple[str, Entry | None]]]]:
        entries = self.run.ledger.read([key for row in self._keys for key in row])
        for prompt, row in zip(self.prompts, self._keys, strict=False):
            yield prompt, [(key, next(entries)) for key in row]

    def _read(self, keys: Sequence[str], entries: Sequence[Entry]) -> Candidate:
        separate = self.run.plan.answers.reasoning == "auto"
        schema, vocabulary = self.panel.sampling.schema, getattr(self.model, "vocabulary", None)
        return read(self.role, keys, entries, schema=schema, separate=separate, vocabulary=vocabulary)


def _check_failed(counts: Counts, most: float, table: str) -> None:
    failed = counts.failed.total()
    if failed <= most * counts.rows:
        return
    misfits = sum(n for reason, n in counts.failed.items() if (reason or "").startswith(MISFIT))
    ((reason, _),) = counts.failed.most_common(1)
    advice = "The others are kept; run again to ask for these."
    if misfits:
        advice = (
            f"The others are kept. {misfits} did not fit answers.schema when asked twice and are not asked again: "
            "loosen the schema, say more in the template, or raise max_failed."
        )
    raise FellShort(
        f"{table}: {failed} of {counts.rows} rows failed, more than max_failed = {most:g} allows; "
        f"most often: {reason}. {advice}",
        passes=None if 2 * misfits > failed else "trouble",
    )
