"""How fast the arms answer, and what that takes: held-out rows asked anew, with a clock, through the one door.

Every question has a key that no other has, so the ledger never answers it; but it is claimed, charged and bounded like any
other. An arm that was measured whole is kept (`eval/speed.json`) for as long as its model and the questions are the same; what
was cut off is measured again, for a clock that stood still says nothing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from os import cpu_count
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import msgspec

from llm_distill.account import Account
from llm_distill.ask import ask
from llm_distill.collect import Panel
from llm_distill.evals import timing
from llm_distill.evals.compare import rounded
from llm_distill.evals.timing import Level, Measured, Shot
from llm_distill.limits import Charge, Tally
from llm_distill.models import Model
from llm_distill.models.footprint import Energy, Found, Memory
from llm_distill.pacing import Pace
from llm_distill.recipe_evaluation import WARM, Speed
from llm_distill.records import Completion, Message, Prompt, Request, content_id
from llm_distill.store import write_json

if TYPE_CHECKING:
    from llm_distill.stages import Run

#: What asking came to, as tables of costs have it.
SPENT = ("answered", "prompt_tokens", "completion_tokens", "cost_usd")


def measure(
    run: Run, prompts: Sequence[Prompt], panels: Mapping[str, Panel], how: Speed, kept: Path | None
) -> dict[str, Any]:
    """report.json's `speed`: `arms`, `ratios` of the student to its teacher, `machine`. kept: where arms that are measured whole
    are written, and found again; None measures all anew.
    """
    found, unmeasured = clocked(run, prompts, panels, how, kept)
    return {"machine": machine(), "unmeasured": unmeasured, **summary(found, how)}


def clocked(
    run: Run, prompts: Sequence[Prompt], panels: Mapping[str, Panel], how: Speed, kept: Path | None
) -> tuple[dict[str, Measured], dict[str, str]]:
    """What was read of each arm that `how` names, as far as there are such; and why of some of them nothing was."""
    found: dict[str, Measured] = {}
    known = read(kept)
    unmeasured = {}
    rows = _in_order(prompts)
    for arm in how.arms:
        if arm not in panels:
            continue
        panel = panels[arm]
        if why := _unaskable(panel):
            unmeasured[arm] = why
            continue
        (model,) = panel.models.values()
        questions = [_first(run, panel, prompt) for prompt in rows]
        key = key_of(run, panel, prompts, how)
        if arm in known and known[arm][0] == key:
            found[arm] = known[arm][1]
            continue
        if not run.may_ask:
            unmeasured[arm] = "it is owed: run again to measure it"
            continue
        run.watch.say(f"speed: {arm.replace('_', ' ')}, {_at_most(run, model, questions, how)}")
        found[arm] = _Bench(run, model, [row.row_id for row in rows], questions, panel, how).measured()
        if not found[arm].alone:
            continue  # who answered nothing is asked again by the next evaluation
        known[arm] = (key, found[arm])
        if kept is not None:
            write_json(
                kept, {name: {"key": of[0], "measured": msgspec.to_builtins(of[1])} for name, of in known.items()}
            )
    return found, unmeasured


def key_of(run: Run, panel: Panel, prompts: Sequence[Prompt], how: Speed) -> str:
    """An id of who is measured, by which questions and how; the same for as long as none of these is another."""
    identities = [model.identity for model in panel.models.values()]
    questions = [_first(run, panel, prompt) for prompt in _in_order(prompts)]
    drawn = msgspec.structs.replace(
        panel.sampling, top_logprobs=None, seed=None
    )  # how long answers may be, and the like
    answer = [drawn, panel.samples, max(1, len(panel.view.examples)), panel.view.raw]
    return content_id([*identities, questions, answer, how.rows, how.most_concurrency, how.most_seconds])


def _in_order(prompts: Sequence[Prompt]) -> list[Prompt]:
    return sorted(prompts, key=lambda prompt: prompt.row_id)  # hashes: a sample, the same for every arm


def summary(found: Mapping[str, Measured], how: Speed, *, alike: bool = True) -> dict[str, Any]:
    """What is said of the arms measured, and of the student against its teacher where both were measured alike."""
    arms = {name: timing.arm(of, how.machine_usd_per_hour) for name, of in found.items()}
    both = alike and "student" in found and "teacher" in found
    ratios = timing.ratios(found["student"], found["teacher"], arms) if both else {}
    said: dict[str, Any] = rounded({"arms": arms, "ratios": ratios})
    spent = {name: _sum([of.spent.get(name) for of in found.values()]) for name in SPENT}
    return said | {"machine_usd_per_hour": how.machine_usd_per_hour, "spent": spent}


def _sum(numbers: Sequence[float | None]) -> float | None:
    return None if None in numbers else sum(number for number in numbers if number is not None)


def machine() -> str:
    """What local models ran on."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{platform.machine()}, {cpu_count()} cores, {platform.system()}"


def _unaskable(panel: Panel) -> str | None:
    """Why an arm has no speed of its own, if so."""
    if len(panel.models) > 1:
        return "several models answer together, each at its own pace; measure one of them as the teacher of a recipe"
    (model,) = panel.models.values()
    return "it is asked by the file, and answers within a day" if model.batches else None


def _first(run: Run, panel: Panel, prompt: Prompt) -> tuple[Message, ...]:
    return panel.view.questions(prompt, run.plan.task.labels)[0]


def _at_most(run: Run, model: Model, questions: Sequence[tuple[Message, ...]], how: Speed) -> str:
    """How many questions, and what they may cost."""
    most, account = how.most(model.concurrency), Account(model, run.id)
    sampling = run.plan.drawn
    each = [account.item("", Request(messages, sampling)).reserve for messages in questions[: how.rows]]
    highest = max(each, key=lambda charge: charge.usd, default=Charge())
    cost = "" if model.prices is None or not highest.usd else f", at most ${most * highest.usd:,.4f}"
    return f"up to {most:,} questions{cost}"


def read(kept: Path | None) -> dict[str, tuple[str, Measured]]:
    """The arms that were measured before; none where that is no such file."""
    if kept is None or not kept.exists():
        return {}
    form = dict[str, dict[str, Any]]
    found = msgspec.json.decode(kept.read_bytes(), type=form)
    return {name: (of["key"], msgspec.convert(of["measured"], Measured)) for name, of in found.items()}


class _Clocked(Model):
    """A model with a clock: the same answers, at most so many at a time, each noted when it ended."""

    def __init__(self, of: Model, concurrency: int, stream: bool, rows: Mapping[int, str]) -> None:
        self._of, self.concurrency, self._stream, self._rows = of, concurrency, stream, rows
        self.identity, self.terms, self.prices, self.count = of.identity, of.terms, of.prices, of.count
        self._pace = Pace(concurrency, ramp=False)
        self.shots: list[Shot] = []
        self.energy: Energy | None = None  # since the clock started
        self.warm = 0

    @property
    def pace(self) -> Pace:
        """Its own where it runs here; a provider's limits hold whoever asks."""
        return self._pace if self._of.holds_weights else self._of.pace

    async def probe(self) -> None:
        """As the model."""
        await self._of.probe()

    async def close(self) -> None:
        """As the model."""
        await self._of.close()

    async def complete(self, request: Request) -> Completion:
        """The model's answer, by a stream where that is wanted."""
        if len(self.shots) == self.warm and self.energy is None:
            self.energy = Energy()
        began = time.perf_counter()
        answer = await (self._of.streamed(request) if self._stream else self._of.complete(request))
        ended = time.perf_counter()
        prices, given, made = self.prices, answer.prompt_tokens, answer.completion_tokens
        usd = None
        if prices is not None and given is not None and made is not None:
            cached, new = answer.cached_tokens or 0, answer.cache_write_tokens or 0
            usd = prices.cost_usd(given, made, cached, cache_write_tokens=new)
        self.shots.append(Shot(self._rows[request.sample], began, ended, answer.first_token_s, given, made, usd))
        return answer


class _Bench:
    """One arm on the bench."""

    def __init__(
        self,
        run: Run,
        model: Model,
        rows: Sequence[str],
        questions: Sequence[tuple[Message, ...]],
        panel: Panel,
        how: Speed,
    ) -> None:
        self.run, self.model, self.rows, self.questions, self.panel, self.how = run, model, rows, questions, panel, how
        self.next, self.failed, self.spent = 0, 0, Tally()

    def measured(self) -> Measured:
        """All that can be had, from weights that are not loaded yet."""
        began, how = time.perf_counter(), self.how
        self.run.make_room()
        with Memory() as memory:
            self.next = -WARM  # so that the rows with a clock are the same for every arm
            alone = self._ask(1, WARM, how.rows)
            shots, energy = alone.shots[WARM:], alone.energy.since() if alone.energy else Found(None, "no answer came")
            streamed, why_not = self._first_tokens(shots)
            levels, ended = [Level(1, alone.shots[WARM - 1 :])], "so many at a time were allowed"
            for concurrency, answers in how.levels(self.model.concurrency):
                if time.perf_counter() - began > how.most_seconds:
                    ended = "it had taken as long as most_seconds allows"
                    break
                level = Level(concurrency, self._ask(concurrency, concurrency, answers).shots)
                grew = timing.per_second(level) >= timing.GROWS * max(map(timing.per_second, levels))
                levels.append(level)
                if not grew:
                    ended = "more at a time were answered no faster"
                    break
        here, disk = self.model.holds_weights, self.model.disk_bytes()
        peak = memory.peak if here else Found(None, "it runs elsewhere")
        energy = energy if here else Found(None, "it runs elsewhere")
        why = {"peak_bytes": peak.of, "joules_per_answer": energy.of, "disk_bytes": "it is not on this machine"}
        self.run.make_room()
        return Measured(
            questions=self.panel.samples * max(1, len(self.panel.view.examples)),
            here=here, alone=shots, streamed=streamed, levels=levels, ended=ended,
            failed=self.failed,
            peak_bytes=None if peak.value is None else float(peak.value),
            peak_of=peak.of if peak.value is not None else None, disk_bytes=disk,
            joules=energy.value, joules_by=energy.of if energy.value is not None else None,
            spent={name: getattr(self.spent, name) for name in SPENT},
            why=why | ({"first_token_s": why_not} if why_not else {}),
        )  # fmt: skip

    def _first_tokens(self, alone: Sequence[Shot]) -> tuple[list[Shot], str | None]:
        """Answers by a stream, where the others do not say when their first token came; or why there is no saying."""
        if alone and all(shot.first_token_s is not None for shot in alone):
            return [], None
        if type(self.model).streamed is Model.streamed:
            return [], "this kind of model answers in one piece"
        self.next = -WARM
        shots = self._ask(1, WARM, self.how.streams, stream=True).shots[WARM:]
        seen = [shot for shot in shots if shot.first_token_s is not None]
        why = "the endpoint answers in one piece" if shots else "every question that asked for a stream failed"
        return seen, None if seen else why

    def _ask(self, concurrency: int, warm: int, answers: int, *, stream: bool = False) -> _Clocked:
        """Ask the next rows, round and round, so many at a time; those before the clock starts are the first."""
        once, sampling = token_hex(8), msgspec.structs.replace(self.panel.sampling, top_logprobs=None)
        places = {i: (self.next + i) % len(self.questions) for i in range(warm + answers)}
        model = _Clocked(self.model, concurrency, stream, {i: self.rows[place] for i, place in places.items()})
        model.warm = warm
        asked = [Request(self.questions[place], sampling, i, self.panel.view.raw) for i, place in places.items()]
        pairs = [(request.key(f"{model.identity}#speed:{once}"), request) for request in asked]
        run, done = self.run, Tally()

        def show(tally: Tally) -> None:
            nonlocal done
            done = tally
            run.watch.rows(tally.answered, len(pairs), {"failed": tally.failed, "usd": tally.cost_usd})

        try:
            ask(pairs, model, run.ledger, run=run.id, limits=run.plan.answers.limits, total=len(pairs), on_tally=show,
                say=run.watch.say)  # fmt: skip
        finally:
            run.tally += done
            self.spent += done
        self.next += warm + answers
        self.failed += len(pairs) - len(model.shots)
        return model
