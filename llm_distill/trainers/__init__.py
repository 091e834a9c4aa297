"""How a student learns: `Trainer(job, *, knobs) -> None`, which writes an adapter and metrics.jsonl into `job.out`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_distill.records import Answer, Ask, Entry, Prompt, Request, Sample, Sampling

if TYPE_CHECKING:
    from llm_distill.plugs import Plug
    from llm_distill.tasks import Task


def _quiet(_step: int, _steps: int, _numbers: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class TrainingJob:
    """What a trainer is handed.

    `student` are the student's loading knobs (`model`, `sha256`, `revision`, `dtype`, `device`) as in the recipe's
    `transformers` entry. `on_step(step, steps, numbers)` is called at each logged step, `say` prints one line.

    What the teachers showed beyond their texts: `answers` is the run's folder, in which logprobs.parquet lies;
    `teachers` are the roles that answered, `sampling` how they were asked, `models` the recipe's models by role.
    `ask` asks one of them: the entries of its questions, logprobs among them. `student_answers` asks the student that lies in
    a folder as a trainer wrote it, or (None) as it is before training; both go through the ledger. only_lint: what is about to
    be learnt is looked at and raised as `findings.Linted`, and nothing is trained. max_tokens: how long evaluation lets the
    student's answers be, where there is one. `teach` asks the teachers about other rows as about the recipe's own, also with
    their worked examples in so many other orders. `told` goes into training.json.
    """

    samples: Sequence[Sample]
    student: dict[str, Any]
    out: Path
    seed: int
    on_step: Callable[[int, int, dict[str, float]], None] = _quiet
    say: Callable[[str], None] = field(default=lambda _line: None)
    task: Task | None = None
    answers: Path | None = None
    teachers: Sequence[str] = ()
    sampling: Sampling | None = None
    models: Mapping[str, Plug] = field(default_factory=dict)
    ask: Ask | None = None
    student_answers: Callable[[Path | None, Sequence[Request]], list[Entry]] | None = None
    only_lint: bool = False
    max_tokens: int | None = None
    teach: Callable[[Sequence[Prompt], int], list[Answer]] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


#: Name in a recipe -> where its function is.
TRAINERS = {
    "auto": "llm_distill.trainers.rungs:auto",
    "dpo": "llm_distill.trainers.dpo:dpo",
    "gkd": "llm_distill.trainers.gkd:gkd",
    "gold": "llm_distill.trainers.gold:gold",
    "logit_kd": "llm_distill.trainers.logit_kd:logit_kd",
    "server": "llm_distill.trainers.server:server",
    "sft": "llm_distill.trainers.sft:sft",
}
#: Of those, what takes `course.train`, in which rows may be set aside.
ON_COURSE = ("auto", "logit_kd", "sft")
#: Of those, what several processes can share.
SHARED = ("logit_kd", "sft")
#: Of those that ask a model while they train: name -> where `(rows, **knobs) -> AtMost | None` is, for `check`.
ASKS = {"dpo": "llm_distill.trainers.dpo:at_most"}
#: What is left to do where a trainer needs the teacher's logprobs and there are none.
WITHOUT_LOGPROBS = (
    "add `top_logprobs: 20` to answers where the teachers' endpoints give them, have an open model read the answers "
    "(`attach: {model: ...}`), or train on their words (`train: sft`)."
)
