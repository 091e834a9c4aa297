"""How far probabilities of labels can be believed, and how a teacher's are mended: pure functions of numbers.

A distribution is a row of (n, L): the probability of each of L labels; what is missing to 1 went to answers that are no label.
Mended ones are over the labels alone and sum to 1. `gold` is (n,), the place of each row's label; `right` is (n,), how far the
likeliest label is right: 0 or 1 by gold, or anything between by how often the teacher repeats itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llm_distill.evals.statistics import Floats, Ints

#: A label that is not among the alternatives has no known probability: a thousandth of a thousandth, so that no row is certain.
FLOOR = 1e-6
#: Temperatures that are looked at. Beyond, a distribution is uniform, or one label, for every purpose.
COLDEST, HOTTEST = 0.05, 20.0
_BOUNDS = float(np.log(COLDEST)), float(np.log(HOTTEST))
#: Of a calibration curve at most, and rows that each has at least.
BINS, IN_A_BIN = 10, 10
FOLDS = 5
#: Fewer labelled rows than this cannot tell one calibration from another: folds of ten.
ENOUGH = 50


class Bin(NamedTuple):
    """Rows of like confidence: how many, their mean confidence, the share that is right."""

    rows: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Reliability:
    """Confidence against what is right. `ece` is the mean distance between them over bins of equal mass (Nixon et al. 2019,
    arXiv 1904.01685); on few rows it is above 0 even where all is well. `brier` lies in [0, 1], halved as is usual with two
    labels; it and `nll` (nats) need gold and are None where there is none.
    """

    rows: int
    confidence: float
    right: float
    ece: float
    bins: tuple[Bin, ...]
    brier: float | None = None
    nll: float | None = None


def over_labels(probs: Floats) -> Floats:
    """Distributions over the labels alone; one that gives nothing to any label is uniform."""
    raised = np.maximum(np.asarray(probs, np.float64), FLOOR)
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def without_prior(probs: Floats, prior: Floats) -> Floats:
    """Divided by a prior, (L,) or (n, L), and normalised, so that what is independent of the row is gone.

    With the mean over content-free inputs this is contextual calibration (Zhao et al. 2021, arXiv 2102.09690, W = diag(prior)^-1,
    b = 0; normalised by the sum and not by their softmax, which has the same likeliest label but bounds its confidence); with
    the mean over the rows themselves, batch calibration (Zhou et al. 2023, arXiv 2309.17249).
    """
    return over_labels(over_labels(probs) / over_labels(prior))


def mean_distribution(probs: Floats) -> Floats:
    """(L,): the mean over rows of what they give the labels, each row counting alike."""
    return np.asarray(over_labels(probs).mean(0))


def tempered(probs: Floats, temperature: float) -> Floats:
    """Raised to 1 / temperature and normalised: above 1 less sure, below 1 surer, the likeliest label the same."""
    logs = np.log(over_labels(probs)) / temperature
    raised = np.exp(logs - logs.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def fit_to_gold(probs: Floats, gold: Ints) -> float:
    """The temperature with the least negative log-likelihood of the labels (Guo et al. 2017, arXiv 1706.04599).

    Targets are Platt's (1999), one imagined row of each label: without them rows that are all right would have none.
    """
    n, labels = probs.shape
    target = np.full(probs.shape, 1 / (n + labels))
    target[np.arange(n), gold] = (n + 1) / (n + labels)
    return _coldest_good(lambda t: float(-(target * np.log(over_labels(tempered(probs, t)))).sum(-1).mean()))


def fit_to_agreement(probs: Floats, right: Floats) -> float:
    """The temperature with which the likeliest label's probability best tells (by log loss) how often it is repeated."""
    n = len(probs)
    target = (right * n + 1) / (n + 2)  # Platt's again

    def loss(temperature: float) -> float:
        sure = np.clip(tempered(probs, temperature).max(-1), FLOOR, 1 - FLOOR)
        return float(-(target * np.log(sure) + (1 - target) * np.log1p(-sure)).mean())

    return _coldest_good(loss)


def _coldest_good(loss: Callable[[float], float]) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=_BOUNDS, method="bounded")
    return float(np.exp(found.x))


def repeated(agreement: Floats, votes: int) -> Floats:
    """How often another vote is the label that won with a share of the votes: without its own vote, which favours it."""
    return np.asarray(np.clip((agreement * votes - 1) / (votes - 1), 0, 1))


def nll(probs: Floats, gold: Ints) -> Floats:
    """(n,): of each row's label, in nats."""
    return np.asarray(-np.log(np.maximum(probs[np.arange(len(gold)), gold], FLOOR)))


def brier(probs: Floats, gold: Ints) -> Floats:
    """(n,): half the squared distance to the label (Brier 1950); answers that are no label count as one more."""
    wanted = np.eye(probs.shape[1])[gold]
    other = np.clip(1 - probs.sum(-1), 0, 1)
    return np.asarray((((probs - wanted) ** 2).sum(-1) + other**2) / 2)


def equal_mass(sure: Floats) -> Ints:
    """(n,): in which bin each row is. Bins have about equally many rows (Nixon et al. 2019, arXiv 1904.01685), no fewer than
    `IN_A_BIN` on average; equally sure rows share one, so that nothing depends on the order of the rows.
    """
    bins = max(1, min(BINS, len(sure) // IN_A_BIN))
    edges = np.unique(np.quantile(sure, np.arange(1, bins) / bins, method="higher"))
    return np.unique(np.searchsorted(edges, sure, side="right"), return_inverse=True)[1]


def reliability(probs: Floats, right: Floats, gold: Ints | None = None) -> Reliability:
    """Confidence is the likeliest label's probability; see `equal_mass` for the bins."""
    sure, n = probs.max(-1), len(probs)
    bin_of = equal_mass(sure)
    rows = np.bincount(bin_of)
    means = zip(rows, np.bincount(bin_of, sure) / rows, np.bincount(bin_of, right) / rows, strict=True)
    found = tuple(Bin(int(size), float(confidence), float(share)) for size, confidence, share in means)
    return Reliability(
        rows=n,
        confidence=float(sure.mean()),
        right=float(np.mean(right)),
        ece=float(sum(b.rows * abs(b.confidence - b.right) for b in found) / n),
        bins=found,
        brier=None if gold is None else float(brier(probs, gold).mean()),
        nll=None if gold is None else float(nll(probs, gold).mean()),
    )


@dataclass(frozen=True)
class Method:
    """A way to calibrate: which prior is taken out (`batch`, `contextual` or none), and whether a temperature is fitted."""

    prior: str | None
    heated: bool

    @property
    def name(self) -> str:
        """As a recipe and a report call it."""
        return "+".join(filter(None, (self.prior, "temperature" if self.heated else None))) or "none"

    def base(self, probs: Floats, priors: dict[str, Floats]) -> Floats:
        """The distributions before any temperature; `none` leaves them as they are."""
        return without_prior(probs, priors[self.prior]) if self.prior else probs


#: The simplest first, and those that ask nothing before those that do.
METHODS = tuple(Method(prior, heated) for prior in (None, "batch", "contextual") for heated in (False, True))


def out_of_fold(base: Floats, gold: Ints, *, heated: bool, seed: int) -> Floats:
    """(n, L): each row as it is calibrated by what the rows of other folds say."""
    if not heated:
        return base
    made = np.empty(base.shape)
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(base)), min(FOLDS, len(base))):
        rest = np.setdiff1d(np.arange(len(base)), fold)
        made[fold] = tempered(base[fold], fit_to_gold(base[rest], gold[rest]))
    return made


def simplest_good(losses: dict[str, Floats]) -> str:
    """Of methods with the loss of each row, in order of simplicity: the first that is within one standard error, of the paired
    difference, of the least mean (the rule of Breiman et al. 1984).
    """
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    for name, loss in losses.items():
        apart = loss - best
        if apart.mean() <= apart.std(ddof=1) / np.sqrt(len(apart)):
            return name
    raise AssertionError("the best is within any distance of itself")
