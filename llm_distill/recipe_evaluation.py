"""The keys of a recipe that say how students are measured, and what one must be to ship."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from llm_distill.recipe_general import General
from llm_distill.recipe_judge import Judge
from llm_distill.recipe_keys import Strict, Usd
from llm_distill.recipe_probes import Bias, PassAt, Robustness

#: Questions before the clock starts, when one is asked at a time: what is loaded, compiled, connected by the first is not speed.
WARM = 2
#: At least so many times as many answers as are asked at a time: the spread of a throughput is that of its blocks.
BLOCKS = 4


#: The arms of every evaluation, of which those are measured that there are.
ARMS = ("base_zero_shot", "base_few_shot", "student", "teacher")


class Speed(Strict):
    """How fast and at what price the arms answer: held-out rows asked anew, never read from the ledger, and paid for within the
    budgets.

    rows: asked one at a time. most_concurrency: then twice as many at a time, and so on, until that answers no more a second, or
    so many are; 1 leaves this out. most_seconds: an arm that has taken so long is not asked by more at a time.
    machine_usd_per_hour: of the machine that local models run on.
    """

    arms: list[str] = Field(["base_zero_shot", "student", "teacher"], min_length=1)
    rows: int = Field(30, ge=6)
    most_concurrency: int = Field(16, ge=1)
    most_seconds: float = Field(300.0, gt=0, allow_inf_nan=False)
    machine_usd_per_hour: Usd | None = None

    def levels(self, concurrency: int) -> list[tuple[int, int]]:
        """(how many at a time, how many answers) beyond one at a time, of a model that takes so many at once."""
        most, found, level = min(self.most_concurrency, concurrency), [], 2
        while level <= most:
            found.append((level, max(self.rows, BLOCKS * level)))
            level *= 2
        return found

    def most(self, concurrency: int) -> int:
        """The most questions that an arm is asked, those before the clock starts among them."""
        return 2 * WARM + self.rows + self.streams + sum(level + answers for level, answers in self.levels(concurrency))

    @property
    def streams(self) -> int:
        """How many questions are asked by a stream, where an endpoint has to be asked like this for its first token."""
        return min(self.rows, 10)


class Evaluate(Strict):
    """How the arms are compared. Sampling defaults to the answers' own, greedy.

    allow_overlap: held-out rows, by row_id, that may overlap what the student or a prompt has seen; or `training`, `few_shot`,
    `teacher`, `calibration`: whatever overlaps the rows learnt from, the worked examples, or the rows of `calibrate_on`.
    metric: the one that the verdict is about; null is the task kind's own. metrics: those of texts that are measured besides.
    students: of other runs, that answer the same rows: recipes' names, run folders, exports, .gguf files. previous: the one that
    this student would follow, likewise; `shipped` is the last one that `gate --ship` recorded.
    general: what else the student could do before it was trained.
    judge: a model's opinion of the answers, whose score is a metric, `judge`.
    """

    metric: str | None = None
    metrics: list[str | dict[str, Any]] = Field([])
    slices: list[str] = Field([])
    allow_overlap: list[str] = Field([])
    students: list[str] = Field([])
    previous: str | None = None
    speed: Speed | None = None
    temperature: float = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    resamples: int = Field(10_000, ge=100)
    robustness: Robustness | None = None
    bias: Bias | None = None
    pass_at: PassAt | None = None
    judge: Judge | None = None

    @property
    def opinions(self) -> list[str]:
        """Metrics that are somebody's opinion."""
        return ["judge"] if self.judge and self.judge.scores else []

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that evaluation asks besides those it compares."""
        rewriter = (self.robustness.model,) if self.robustness and self.robustness.model else ()
        return (*rewriter, *((self.judge.model,) if self.judge else ()))

    general: General | None = None


class Ship(Strict):
    """What a student must be to ship: `llm-distill gate` judges it. It changes nothing that is made or asked.

    min_kept_share: of the teacher's score, by the lower end of its 95 % interval. max_slice_drop: by which the student may be
    below its teacher on any slice. max_bias_rise: by which it may answer more counterfactual groups unevenly than its base.
    min_robust_share: of its own score, under the perturbation of `evaluate.robustness` that costs it most, by the lower end.
    min_gain_on_previous: over the student in evaluate.previous, by the lower end of the interval of the difference: -0.02 lets
    it be worse by two points at most. max_usd_per_1000: answers, at what was paid for tokens and machine_usd_per_hour.
    max_p95_seconds: an answer. min_win_rate: against the teacher, by the judge, by the lower end, at equal length too.
    max_general_loss: in general ability, all rows of evaluate.general together, by the upper end of the 95 % interval.
    """

    min_kept_share: float | None = Field(None, gt=0, le=2)
    max_slice_drop: float | None = Field(None, ge=0, le=1)
    max_bias_rise: float | None = Field(None, ge=0, le=1)
    min_robust_share: float | None = Field(None, gt=0, le=2)
    min_gain_on_previous: float | None = Field(None, ge=-1, le=1)
    max_general_loss: float | None = Field(None, ge=0, le=1)
    max_usd_per_1000: Usd | None = None
    machine_usd_per_hour: Usd | None = None
    max_p95_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    min_win_rate: float | None = Field(None, gt=0, le=1)

    def model_post_init(self, _context: Any) -> None:
        """A gate has conditions."""
        if self.machine_usd_per_hour is not None and self.max_usd_per_1000 is None:
            raise ValueError("machine_usd_per_hour prices answers for max_usd_per_1000, which is not set; add it")
        if not self.model_dump(exclude_none=True):
            raise ValueError("there is no condition; write one, for example `min_kept_share: 0.95`")
