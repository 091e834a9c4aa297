"""What is known of how right a teacher is, and of what it would say whatever the row: asked for, or found among the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from pydantic import Field

from llm_distill.errors import UserError
from llm_distill.near import near_index
from llm_distill.plugs import Group, InputFile
from llm_distill.records import Answer, Message, Prompt
from llm_distill.trainers import TrainingJob

if TYPE_CHECKING:
    from llm_distill.evals.statistics import Floats, Ints
    from llm_distill.recipe import Plan

#: What `evaluate.allow_overlap` calls the rows of `calibrate_on`.
PARTY = "calibration"
#: In place of a row's text (Zhao et al. 2021).
CONTENT_FREE = ("N/A", "", "[MASK]")
#: What tells how right a teacher is, and what at least how steady.
LABELLED = (
    "name a file with 50 or more labelled rows like the recipe's own, neither held out nor learnt from (`calibrate_on: "
    "rows.jsonl`)"
)
LABEL_MORE = (
    f"{LABELLED}, or have each row answered several times (several files of worked examples, answers.samples, or "
    "`orders`)"
)


@dataclass(frozen=True)
class Calibrating(Group):
    """How the teacher's probabilities of labels are mended before they are learnt."""

    # contextual and batch take out what does not depend on the row; temperature makes all of it surer or less sure.
    calibration: Literal["none", "contextual", "batch", "temperature", "auto"] = "auto"
    # Labelled rows, as few as 50, which the teachers are asked about; null: the training rows that have gold, if any.
    calibrate_on: InputFile | None = None
    # Every row once more for each; the labels' probabilities are averaged. It multiplies the bill, so it is off.
    orders: Annotated[int, Field(ge=0, le=20)] = 0

    @property
    def asks(self) -> bool:
        """Whether the teachers may be asked."""
        return bool(self.orders or self.calibrate_on) or self.calibration in ("contextual", "auto")


@dataclass(frozen=True)
class Evidence:
    """What tells how right the teacher is. by: `gold` of labelled answers, `agreement` of a row's own, or nothing."""

    by: Literal["gold", "agreement"] | None
    answers: Sequence[Answer]
    gold: Ints | None = None
    right: Floats | None = None


def label_probs(answer: Answer | None) -> Sequence[float]:
    """The distribution of a row that has one."""
    assert answer is not None
    assert answer.label_probs is not None
    return answer.label_probs


def reordered(job: TrainingJob, rows: Sequence[Answer], orders: int) -> list[Answer]:
    """The rows answered in other orders of worked examples too."""
    found = _ask(job, [a.prompt for a in rows], orders)
    return [new if new.label_probs else old for new, old in zip(found, rows, strict=True)]


def _ask(job: TrainingJob, prompts: Sequence[Prompt], orders: int = 0) -> list[Answer]:
    if job.teach is None:
        raise UserError(
            "train: calibrate_on and orders ask the teachers for logprobs, and here they cannot be asked (answers.attach reads "
            "the recipe's own rows alone); leave them out."
        )
    return job.teach(prompts, orders)


def evidence(job: TrainingJob, rows: Sequence[Answer], how: Calibrating) -> Evidence:
    """What there is: labelled rows, enough of them; else several answers a row; else nothing."""
    import numpy as np

    from llm_distill.evals import calibration as c

    assert job.task is not None
    answers = list(rows)
    if how.calibrate_on:
        answers = _ask(job, labelled(how.calibrate_on, job.task.labels), how.orders)
    fit = [a for a in answers if a.prompt.label in job.task.labels and a.label_probs and a.prediction is not None]
    if len(fit) >= c.ENOUGH:
        gold = np.array([job.task.labels.index(a.prompt.label or "") for a in fit])
        right = np.array([float(a.prediction == a.prompt.label) for a in fit])
        return Evidence("gold", fit, gold, right)
    if how.calibrate_on:
        raise UserError(
            f"train.calibrate_on: the teachers gave distributions over labels for {len(fit)} rows of {how.calibrate_on}; fewer "
            f"than {c.ENOUGH} cannot tell one calibration from another. Label more rows, or leave it out."
        )
    votes = min(len(set(a.requests)) for a in rows)  # a question that is asked again has its answer already
    if votes > 1 and all(a.agreement is not None for a in rows):
        right = c.repeated(np.array([a.agreement for a in rows], np.float64), votes)
        return Evidence("agreement", rows, None, right)
    return Evidence(None, ())


def labelled(path: Path, labels: Sequence[str]) -> list[Prompt]:
    """The rows of `calibrate_on`; UserError for one without a label of the task."""
    from llm_distill.evals.gold import check_labels
    from llm_distill.seeds import numbered, read_rows

    rows = list(numbered(read_rows(path)))
    if bare := [row for row in rows if row.label is None]:
        raise UserError(
            f"train.calibrate_on: {len(bare)} rows of {path} have no `label`, the first: {bare[0].text[:80]!r}."
        )
    check_labels(rows, labels)
    return rows


def check_recipe(plan: Plan) -> None:
    """UserError for knobs of calibration that the recipe's other keys leave nothing to do, or nobody to ask."""
    how = plan.calibrating
    if how is None or plan.trainer is None:
        return
    where = plan.trainer.spec.where
    if plan.task.kind != "classify":
        for name in ("calibration", "calibrate_on", "orders"):
            if name in plan.trainer.spec.knobs:
                raise UserError(
                    f"{where}.{name}: probabilities of labels are calibrated, and this task is {plan.task.kind}; remove it."
                )
        return
    asks = {"orders": how.orders, "calibrate_on": how.calibrate_on, "calibration": how.calibration == "contextual"}
    for asked in (name for name, wanted in asks.items() if wanted and plan.answers.attach):
        raise UserError(
            f"{where}.{asked}: it asks the teachers for logprobs, and answers.attach has them read from the recipe's own rows "
            "alone; leave it out."
        )
    if how.orders and not plan.task.teacher_view.examples:
        raise UserError(
            f"{where}.orders: these are orders of worked examples, and the teacher is shown none; remove it, or name files of "
            "them under task.classify.teacher.examples."
        )


def check_taught(plan: Plan, held_out: Sequence[Prompt]) -> None:
    """UserError for rows of `calibrate_on` that cannot be used, or that are held out or nearly equal a held-out row."""
    how = plan.calibrating
    if how is None or how.calibrate_on is None:
        return
    from llm_distill.evals.calibration import ENOUGH  # brings scipy

    rows = labelled(how.calibrate_on, plan.task.labels)
    allowed = plan.evaluate.allow_overlap if plan.evaluate else ()
    apart = [] if PARTY in allowed else [row for row in held_out if row.row_id not in allowed]
    gists, index = {row.gist for row in apart}, None
    if apart and plan.held_out and plan.held_out.near is not None:
        index = near_index([row.text for row in apart], plan.held_out.near)
    if both := [row for row in rows if row.gist in gists or (index and index.near(row.text))]:
        raise UserError(
            f"train.calibrate_on: {len(both)} of {len(rows)} rows of {how.calibrate_on} are held out or nearly equal held-out "
            f"rows, the first: {both[0].text[:80]!r}. The student would be fitted to its own evaluation; remove them, or "
            f"allow it by name, `evaluate: {{allow_overlap: [{PARTY}]}}`: the report will say so."
        )
    if len(rows) < ENOUGH:
        raise UserError(
            f"train.calibrate_on: {how.calibrate_on} has {len(rows)} rows; fewer than {ENOUGH} cannot tell one calibration from "
            "another. Label more rows, or leave it out."
        )
    plan.teachers.check_rows(rows)


class Priors:
    """What a teacher gives the labels whatever the row, by the roles that answered: each has a bias of its own."""

    def __init__(self, job: TrainingJob, rows: Sequence[Answer], others: Sequence[Answer]) -> None:
        self.job, self.rows = job, rows
        self.carriers = {a.role: a.prompt for a in (*others, *rows)}

    def of(self, answers: Sequence[Answer], kind: str | None) -> dict[str, Floats]:
        """The prior of each answer, (n, L), under its kind; nothing where there is nothing to take out."""
        import numpy as np

        if kind is None or not answers:
            return {}
        known = self.by_role(kind)
        mean = np.mean(list(known.values()), axis=0)
        return {kind: np.array([known.get(a.role, mean) for a in answers])}

    def by_role(self, kind: str) -> dict[str, Floats]:
        """(L,) of each role; UserError where there is none to be had."""
        if kind == "batch":
            return self.batch
        if not self.contextual:
            raise UserError(
                "train.calibration: contextual needs teachers who can be asked for logprobs, and who give some label any "
                "probability when asked about nothing; use `calibration: batch`, or `temperature`."
            )
        return self.contextual

    @cached_property
    def batch(self) -> dict[str, Floats]:
        """The mean over the rows that are taught."""
        roles = {a.role for a in self.rows}
        return {role: _mean([label_probs(a) for a in self.rows if a.role == role]) for role in roles}

    @cached_property
    def contextual(self) -> dict[str, Floats]:
        """The mean over inputs without content, asked in the place of one of a role's rows, whose tags they keep."""
        if self.job.teach is None:
            return {}
        asked = [(role, emptied(row, text)) for role, row in sorted(self.carriers.items()) for text in CONTENT_FREE]
        answers = self.job.teach([row for _, row in asked], 0)
        known: dict[str, list[Sequence[float]]] = {}
        for (role, _), answer in zip(asked, answers, strict=True):
            if answer.label_probs and max(answer.label_probs) > 0:
                known.setdefault(role, []).append(answer.label_probs)
        return {role: _mean(rows) for role, rows in known.items()}

    def told(self, kind: str | None, labels: Sequence[str]) -> dict[str, dict[str, float]] | None:
        """By role and label, for training.json."""
        if kind is None:
            return None
        return {
            role: dict(zip(labels, prior.tolist(), strict=True)) for role, prior in sorted(self.by_role(kind).items())
        }


def _mean(rows: Sequence[Sequence[float]]) -> Floats:
    import numpy as np

    from llm_distill.evals.calibration import mean_distribution

    return mean_distribution(np.array(rows))


def emptied(row: Prompt, text: str) -> Prompt:
    """A row with another text in its user turns, still of the same teachers and tags."""
    turns = [Message(m.role, text) if m.role == "user" else m for m in row.messages]
    return msgspec.structs.replace(row, messages=tuple(turns), label=None, reference=None)
