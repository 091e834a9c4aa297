"""Supervised fine-tuning: the student learns to write the teacher's answers, token by token (TRL's SFTTrainer)."""

from __future__ import annotations

from llm_distill.trainers import TrainingJob
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.hyper import Hyperparameters


def sft(job: TrainingJob, *, hyper: Hyperparameters) -> None:
    """Train on the samples' completions and write the adapter (without LoRA: the model) into `job.out`."""
    with stoppable():
        desk = Desk(job, hyper)
        train(desk, Lesson(desk.rows()))
