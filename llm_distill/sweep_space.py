"""Where a sweep looks: the knobs, the values that the trainer takes, and the next setting to try.

What to try next is Optuna's to say, by the tree-structured Parzen estimator (Bergstra et al. 2011; several knobs together, as
in Falkner et al. 2018), at random or along a grid. It is asked anew for every trial, with the trials before it and with a
seed made of the recipe's seed and the trial's number. So the next setting depends on nothing else, no state of a sampler is
to be kept, and a sweep that was killed goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import islice, product
from typing import Any, Literal

from llm_distill.errors import UserError
from llm_distill.plugs import Group, Plug
from llm_distill.recipe import Plan, load, seeded
from llm_distill.recipe_file import override
from llm_distill.recipe_keys import Range
from llm_distill.records import content_id

#: Knobs by their paths in the recipe, and what each is set to.
Setting = Mapping[str, Any]
Sampler = Literal["tpe", "random", "grid"]
#: Trials, where the recipe does not say.
TRIALS = 12
#: Trials at random before the estimator has something to estimate. Optuna's ten would leave it two of twelve; a number that
#: depended on `trials` would make other settings of the first ones when more are wanted.
STARTUP = 5
#: Draws of a setting before an untried one is taken at random: where few are left a good estimator keeps to those it knows.
DRAWS = 8
#: Combinations that are bound before anything runs, beyond every value on its own.
MOST = 128


@dataclass(frozen=True)
class Knob:
    """One knob: the values of a list in its order, or every number (or whole number) of a range."""

    path: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values whose binding says that all others bind: those of a list, the ends of a range."""
        return self.values or (self.number(self.low), self.number(self.high))

    @property
    def points(self) -> Sequence[Any] | None:
        """All its values, None where nobody can list them."""
        return self.values or (range(int(self.low), int(self.high) + 1) if self.whole else None)

    def number(self, drawn: float) -> Any:
        """A drawn number as it is set: three digits say all there is to say, and can be read."""
        return int(drawn) if self.whole else min(max(float(f"{drawn:.3g}"), self.low), self.high)

    @property
    def distribution(self) -> Any:
        """As Optuna has it; values of a list by their places, in order where they are rising numbers."""
        from optuna import distributions

        if not self.values:
            if self.whole:
                return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
            return distributions.FloatDistribution(self.low, self.high, log=self.log)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        if numbers and list(self.values) == sorted(self.values):
            return distributions.IntDistribution(0, len(self.values) - 1)
        return distributions.CategoricalDistribution(tuple(range(len(self.values))))

    def decoded(self, drawn: Any) -> Any:
        """What Optuna drew, as a value of the knob."""
        return self.values[int(drawn)] if self.values else self.number(drawn)

    def encoded(self, value: Any) -> Any:
        """A value as Optuna draws it; None where it lies outside."""
        if self.values:
            return next((i for i, one in enumerate(self.values) if _same(one, value)), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        return value if not self.whole or float(value).is_integer() else None


@dataclass(frozen=True)
class Space:
    """All the knobs of a sweep, each bound at its ends: what lies between can be trained with."""

    knobs: tuple[Knob, ...]
    sampler: Sampler
    seed: int

    @property
    def size(self) -> int | None:
        """How many settings there are, None where nobody can count them."""
        points = [knob.points for knob in self.knobs]
        return None if None in points else math.prod(len(of) for of in points if of is not None)

    def holds(self, setting: Setting) -> bool:
        """Whether a setting is one of them."""
        return all(knob.encoded(setting[knob.path]) is not None for knob in self.knobs)

    def next(self, before: Sequence[tuple[Setting, float]]) -> Setting:
        """The setting to try after others with their scores, all of this space and fewer than there are."""
        tried = [setting for setting, _ in before]
        for draw in range(1 if self.sampler == "grid" else DRAWS):
            setting = self._drawn(before, draw)
            if self.size is None or not any(_same(setting, one) for one in tried):
                return setting  # of numbers, one drawn twice is a rarity, and trained once
        points = (dict(zip(self.paths, point, strict=True)) for point in product(*(k.points or () for k in self.knobs)))
        left = [point for point in points if not any(_same(point, one) for one in tried)]
        return left[self._chance(len(before), DRAWS) % len(left)]

    @property
    def paths(self) -> tuple[str, ...]:
        """The knobs' places in the recipe."""
        return tuple(knob.path for knob in self.knobs)

    def _chance(self, *of: Any) -> int:
        return int(content_id([self.seed, *of])[:8], 16)

    def _drawn(self, before: Sequence[tuple[Setting, float]], draw: int) -> Setting:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        spread = {knob.path: knob.distribution for knob in self.knobs}
        seed = self._chance(len(before), draw)
        study = optuna.create_study(direction="maximize", sampler=self._sampler(seed))
        for setting, score in before:
            drawn = {knob.path: knob.encoded(setting[knob.path]) for knob in self.knobs}
            study.add_trial(optuna.trial.create_trial(params=drawn, distributions=spread, value=score))
        params = study.ask(spread).params
        return {knob.path: knob.decoded(params[knob.path]) for knob in self.knobs}

    def _sampler(self, seed: int) -> Any:
        from optuna import samplers

        if self.sampler == "grid":  # one shuffle for all trials
            return samplers.GridSampler(
                {knob.path: range(len(knob.values)) for knob in self.knobs}, seed=self._chance()
            )
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


def space(plan: Plan) -> Space:
    """The space of a recipe's sweep; UserError where its trainer does not take what would be tried."""
    if plan.sweep is None:
        raise UserError(
            "the recipe has no `sweep`; say which knobs to try: "
            "`sweep: {over: {train.sft.learning_rate: {low: 0.0001, high: 0.001, log: true}}, trials: 12}`."
        )
    if plan.trainer is None:
        raise UserError("sweep: the recipe has no `train`, so there are no trials to make.")
    metrics = ["accuracy" if plan.task.kind == "classify" else "token_f1", "agreement_with_teacher"]
    if plan.sweep.metric not in (None, *metrics):
        raise UserError(
            f"sweep.metric: {plan.sweep.metric} is not of a {plan.task.kind} task; allowed: {', '.join(metrics)}."
        )
    knobs = tuple(_knob(plan, path, values) for path, values in plan.sweep.over.items())
    for setting in islice(_combined(knobs), MOST):
        variant(plan, setting)
    return Space(knobs, plan.sweep.sampler, plan.seed)


def _knob(plan: Plan, path: str, values: list[Any] | Range) -> Knob:
    """A knob, with every value of its list or both ends of its range bound."""
    if isinstance(values, list):
        knob = Knob(path, tuple(values))
    else:
        knob = Knob(path, (), values.low, values.high, values.log)
        whole = values.low.is_integer() and values.high.is_integer()
        if whole and not _takes(plan, path, (middle := (values.low + values.high) / 2) + 0.5 * middle.is_integer()):
            knob = replace(knob, whole=True)  # a whole end is also how one writes 1.0
    for value in knob.ends:
        variant(plan, {path: value})
    return knob


def _takes(plan: Plan, path: str, value: Any) -> bool:
    try:
        variant(plan, {path: value})
    except UserError:
        return False
    return True


def _combined(knobs: Sequence[Knob]) -> Iterator[Setting]:
    for ends in product(*(knob.ends for knob in knobs)):
        yield dict(zip((knob.path for knob in knobs), ends, strict=True))


def trials(plan: Plan, found_in: Space) -> int:
    """How many trials there are to make, beside the recipe's own settings."""
    assert plan.sweep is not None
    wanted, size = plan.sweep.trials or TRIALS, found_in.size
    if size is None:
        return wanted
    if found_in.sampler == "grid":
        return size
    return min(wanted, size - found_in.holds(own(plan, found_in.paths)))  # which are tried already


def overrides(setting: Setting) -> list[str]:
    """A setting as `-s` takes it."""
    return [f"{path}={json.dumps(value)}" for path, value in setting.items()]


def variant(plan: Plan, setting: Setting, seed: int | None = None) -> Plan:
    """The recipe with other knobs of training, as `run -s ...` reads it but without its sweep, on the same account."""
    raw = deepcopy({key: value for key, value in plan.raw.items() if key != "sweep"})
    try:
        for text in overrides(setting):
            override(raw, text)
        if seed is not None:
            raw["train"] = seeded(plan, raw["train"], seed)
        return replace(load(plan.path, raw=raw), account=plan.account, models=plan.models, terms=plan.terms)
    except UserError as error:
        said = str(error)
        tried = " and ".join(text.replace("=", " = ", 1) for text in overrides(setting))
        raise UserError(f"sweep.over: with {tried}: {said.removeprefix('-s ')}") from None


def settled(plug: Plug) -> dict[str, Any]:
    """A trainer's knobs, flat and with their defaults: recipes that say the same in other words are equal in these."""
    found: dict[str, Any] = {}
    for name, value in plug.knobs.items():
        if isinstance(value, Group):
            found |= {field.name: getattr(value, field.name) for field in fields(value)}
        else:
            found[name] = value
    return {name: _plain(value) for name, value in sorted(found.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, Plug):
        return {value.spec.name: value.lasting}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def own(plan: Plan, paths: Sequence[str]) -> Setting:
    """What the recipe itself has at some paths, its defaults too."""
    assert plan.trainer is not None
    knobs = settled(plan.trainer)
    found = {}
    for path in paths:
        steps = path.split(".")
        found[path] = plan.raw["train"] if len(steps) == 1 else knobs.get(steps[-1]) if len(steps) <= 3 else None
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is no True, and 2 is 2.0."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
