"""On-policy distillation from a teacher of the student's vocabulary, of whom every logit is known (TRL's DistillationTrainer)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_distill.plugs import Role
from llm_distill.trainers import TrainingJob
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.on_policy import OnPolicy, Positive, Teaching, learn, teacher_model
from llm_distill.trainers.on_policy_checks import identity, suited

if TYPE_CHECKING:
    from llm_distill.trainers.course import Desk
    from llm_distill.trainers.on_policy_loop import Dense


def gkd(
    job: TrainingJob,
    *,
    hyper: Hyperparameters,
    own: OnPolicy,
    # A transformers model whose tokens are the student's.
    teacher: Role = "teacher",
    # 0: KL(teacher || student), which covers all that the teacher might say; 1: KL(student || teacher), which keeps to what
    # it surely says; between them beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student
    # (TRL's convention and the paper's; towards 0 and 1 this shrinks to nothing, it does not become the KLs).
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5,
    # Of the loss alone; sampling has `sampling_temperature`.
    temperature: Positive = 1.0,
) -> None:
    """Train on the student's own answers against a local teacher's distributions (GKD, arXiv 2306.13649), after a warm-up on
    the teacher's answers; write the adapter into `job.out`.
    """
    plug = suited(job.models, job.student, teacher, "gkd")

    def begin(desk: Desk) -> Dense:
        from llm_distill.trainers.on_policy_loop import Dense

        model = teacher_model(plug, desk)
        _level(model, desk.model)
        return Dense(model, beta, temperature)

    learn(job, hyper, own, Teaching(identity(plug.knobs), begin), {"beta": beta, "temperature": temperature})


def _level(teacher: Any, student: Any) -> None:
    """Give the teacher's embeddings as many rows as the student's, of whom `suited` saw to it that it has no more. What is cut
    is padding: no token has these rows (Qwen2.5 has 151,936 of them up to 3B and 152,064 from 7B on, with equal tokens).
    """
    rows, own = (m.get_output_embeddings().weight.shape[0] for m in (teacher, student))
    if rows > own:
        teacher.resize_token_embeddings(own)
