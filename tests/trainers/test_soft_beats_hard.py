"""Where labels are noisy and few, a teacher's distribution teaches more than the label it happened to say."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from llm_distill.models import weights
from llm_distill.records import Answer, Message, Sample, make_prompt
from llm_distill.tasks import Task
from llm_distill.trainers import loop
from llm_distill.trainers.hyper import Hyperparameters
from llm_distill.trainers.logit_kd import logit_kd
from tests.trainers.conftest import sft
from tests.trainers.test_sft import MakeJob

LABELS = ["g", "b"]  # one token each
WORDS = {"good": 1.0, "lovely": 1.0, "bad": -1.0, "awful": -1.0, "day": 0.0, "phone": 0.0}
KNOBS: dict[str, Any] = {
    "lora_rank": None,
    "learning_rate": 3e-3,
    "epochs": 12,
    "batch_size": 8,
    "checkpoint_every_s": 1e9,
}
SEEDS = 5


def reviews(count: int, draw: random.Random) -> list[tuple[str, float]]:
    """Texts, each with how likely the teacher finds the first label."""
    made = []
    for _ in range(count):
        words = draw.choices(list(WORDS), k=3)
        made.append((" ".join(words), 1 / (1 + math.exp(-sum(WORDS[word] for word in words)))))
    return made


def samples(rows: list[tuple[str, float]], draw: random.Random) -> list[Sample]:
    """The teacher answers at temperature 1: it says a label as often as it finds it likely."""
    made = []
    for i, (text, p) in enumerate(rows):
        messages = (Message("user", text),)
        said = LABELS[draw.random() > p]
        answer = Answer(make_prompt(messages), said, "ok", prediction=said, label_probs=(p, 1 - p))
        made.append(Sample(f"r{i}", messages, said, answer=answer))
    return made


def judged(folder: Path, rows: list[tuple[str, float]]) -> tuple[float, float]:
    """How often the student says the likelier label, and the mean squared distance of its probability from the teacher's."""
    tokenizer = weights.load_tokenizer(str(folder))
    with loop.quiet():
        model = weights.load_model(str(folder), device="cpu")
    ids = tokenizer.convert_tokens_to_ids(LABELS)
    right, distances = [], []
    for text, p in rows:
        turns = [{"role": "user", "content": text}]
        begin = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            own = float(model(input_ids=torch.tensor([begin])).logits[0, -1, ids].softmax(-1)[0])
        right.append((own > 0.5) == (p > 0.5))
        distances.append((own - p) ** 2)
    return mean(right), mean(distances)


def interval(gains: list[float]) -> tuple[float, float]:
    """95 % of a mean, by Student's t with four degrees of freedom."""
    half = 2.776 * stdev(gains) / math.sqrt(SEEDS)
    return mean(gains) - half, mean(gains) + half


def test_soft_labels_beat_hard_ones_on_equal_rows(make_job: MakeJob) -> None:
    """Paired over seeds, each with rows, labels and an order of training of its own: intervals above zero."""
    task, accuracy, distance = Task(kind="classify", labels=LABELS), list[float](), list[float]()
    held_out = [row for row in reviews(80, random.Random(0)) if row[1] != 0.5]
    for seed in range(1, SEEDS + 1):
        draw = random.Random(seed)
        rows = samples(reviews(48, draw), draw)
        hard, soft = (replace(make_job(rows, f"{kind}{seed}", task=task), seed=seed) for kind in ("hard", "soft"))
        sft(hard, **KNOBS)
        logit_kd(soft, hyper=Hyperparameters(**KNOBS), alpha=1.0)
        (hard_right, hard_off), (soft_right, soft_off) = (judged(job.out, held_out) for job in (hard, soft))
        accuracy.append(soft_right - hard_right)
        distance.append(hard_off - soft_off)
    assert interval(distance)[0] > 0
    assert interval(accuracy)[0] > 0
