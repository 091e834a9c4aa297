"""The knobs that all trainers share, each default a vetted number with its reason beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from llm_distill.errors import UserError
from llm_distill.plugs import Group

Count = Annotated[int, Field(ge=1)]
#: From 0 up to but without 1.
Share = Annotated[float, Field(ge=0, lt=1)]
_PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}


def _installed(tracker: str) -> str:
    package = find_spec(_PACKAGES[tracker])
    if (
        package is None or package.origin is None
    ):  # no origin: a folder of that name, such as wandb itself leaves behind
        name = _PACKAGES[tracker]
        raise ValueError(f"{name} is not installed: pip install 'llm-distill[{tracker}]', or remove `tracker`.")
    return tracker


#: What draws the curve beside metrics.jsonl: see `trackers`.
Tracker = Annotated[Literal["tensorboard", "trackio", "wandb"], AfterValidator(_installed)]


@dataclass(frozen=True)
class Hyperparameters(Group):
    """How long, how fast and how much of the student is trained, and what it may cost in memory."""

    passing: ClassVar[tuple[str, ...]] = ("checkpoint_every_s", "tracker")

    # 16 on all linear layers holds far more than a task's labels or tone; null trains every weight instead.
    lora_rank: Count | None = 16
    # Fixed, not tied to the rank: then the best learning rate hardly moves with it ("LoRA Without Regret", 2025).
    lora_alpha: Count = 32
    # Two passes over thousands of answers leave little to overfit; dropout costs time and blurs the loss.
    lora_dropout: Share = 0.0
    # null: 5e-4 with LoRA, which likes ten times what full training does; else 2e-5. On the quickstart (120 teacher
    # labels, 240 rows to judge by) 2e-4, 5e-4 and 1e-3 give 88.3, 88.8 and 89.6 %: within noise of one another.
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    # On the quickstart 1, 2 and 3 passes give 88.8 % each; the second is for tasks that are harder than two labels.
    epochs: Annotated[float, Field(gt=0)] = 2.0
    # Few rows should still be many steps (16 did as well on the quickstart); a GPU with 10,000 rows wants more.
    batch_size: Count = 8
    # For a GPU too small for the batch: 4 with batch_size 2 takes the same steps as 1 with 8.
    gradient_accumulation: Count = 1
    # TRL's own; longer rows are an error here, never cut.
    max_length: Count = 1024
    # Adam's second moments are guesses in the first steps.
    warmup_ratio: Share = 0.05
    # Linear to zero leaves no noise of the last batches in the weights (arXiv 2502.15938).
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    # LoRA's rank already limits it, and decay would pull towards the base model, not towards simplicity.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # auto: bfloat16 on a GPU that has it; float32 on a CPU, where few have fast bfloat16 and results should be exact.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # null: on a GPU, where memory runs out first (20 % slower); off on a CPU, where time does.
    activation_checkpointing: bool | None = None
    # Weights of 4 bits under LoRA (QLoRA, arXiv 2305.14314), on CUDA: for a student that would not fit otherwise.
    load_in: Literal["4bit"] | None = None
    # Rows that are read only to see when to stop, so a share of them is not learnt: for many passes over few rows. Never those
    # of the evaluation, which would then be no test.
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    # Looks at them, four in each pass, that may bring nothing better: a whole pass of none. The best one's weights are kept.
    patience: Count = 4
    # A kill costs at most a minute of work; saving never takes more than a twentieth of the time.
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0
    # The curve is in metrics.jsonl and in the report anyway; a tracker is for those who look on while it grows.
    tracker: Tracker | None = None

    def __post_init__(self) -> None:
        """UserError for knobs that exclude each other."""
        if self.load_in and self.lora_rank is None:
            raise UserError(
                "train.load_in: weights of 4 bits cannot be trained themselves, and lora_rank is null; set it, or remove load_in."
            )

    @property
    def rate(self) -> float:
        """The learning rate that `learning_rate` says or leaves open."""
        return self.learning_rate or (5e-4 if self.lora_rank else 2e-5)

    @property
    def deciding(self) -> dict[str, Any]:
        """The knobs that decide what is learnt, by name."""
        return {name: value for name, value in asdict(self).items() if name not in self.passing}
