"""What a step costs: bare TRL, our sft, our logit_kd on a teacher's top-20 logprobs, with the same student, rows and LoRA; and
on-policy, TRL's DistillationTrainer by itself and our gkd, whose student answers by `--answer` tokens in every step.

Each arm is a process of its own, so that its peak memory is its own; the median step of each is printed as a ratio to that
of our sft, or of bare TRL's on-policy. `--rows` texts of about `--tokens` tokens, of which the last `--trained` are learnt.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from llm_distill.plugs import Plug, Spec

#: Each with the arm that it is held against.
ARMS = {"trl": "sft", "sft": "sft", "logit_kd": "sft", "trl_gkd": "trl_gkd", "gkd": "trl_gkd"}
WEIGHTS = Path(__file__).parents[2] / "data" / "quickstart" / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def measure(arm: str, rows: int, tokens: int, trained: int, batch: int, answer: int) -> dict[str, float]:
    """Seconds of the median step, without the first two, and the process's peak memory above what loading torch took."""
    from llm_distill.models import weights
    from llm_distill.trainers import TrainingJob, loop
    from llm_distill.trainers.gkd import gkd
    from llm_distill.trainers.hyper import Hyperparameters
    from llm_distill.trainers.logit_kd import logit_kd
    from llm_distill.trainers.on_policy import OnPolicy
    from llm_distill.trainers.sft import sft
    from tests.models.conftest import lora

    tokenizer, times = weights.load_tokenizer(str(WEIGHTS)), list[float]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        job = TrainingJob(
            _samples(tokenizer, rows, tokens, trained), {"model": str(WEIGHTS), "device": "cpu"}, out / "student", 0,
            on_step=lambda *_: times.append(time.monotonic()), answers=out, models=_models(),
        )  # fmt: skip
        hyper = Hyperparameters(epochs=1, batch_size=batch, learning_rate=1e-4, dtype="float32", checkpoint_every_s=1e9)
        if arm == "trl":
            _bare(job, tokenizer, hyper, times)
        elif arm == "sft":
            sft(job, hyper=hyper)
        elif arm in ("gkd", "trl_gkd"):  # the teacher is a copy with other weights
            teacher = {
                "model": str(WEIGHTS),
                "adapter": str(lora(Path(weights.prepare(str(WEIGHTS))), out / "teacher")),
            }
            job = replace(job, models={"teacher": Plug(Spec("transformers"), print, teacher)})
            if arm == "gkd":
                own = OnPolicy(lam=1.0, warm_up_epochs=0, max_new_tokens=answer)
                gkd(job, hyper=hyper, own=own)
            else:
                _bare_on_policy(job, tokenizer, hyper, times, answer)
        else:
            with loop.quiet():
                _show(job, tokenizer)
            logit_kd(job, hyper=hyper)
    steps = [later - earlier for earlier, later in pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_s": median(steps), "peak_mb": peak / 1024, "above_mb": (peak - before) / 1024}


def _samples(tokenizer: Any, rows: int, tokens: int, trained: int) -> list[Any]:
    """Words that are a token each, drawn at random."""
    from llm_distill.records import Message, Sample

    draw = random.Random(0)
    words = [word[1:] for word in sorted(tokenizer.get_vocab()) if word[0] == "\u0120"]
    words = [word for word in words if word.isalpha() and word.isascii()]
    made = []
    for i in range(rows):
        asked, said = (" ".join(draw.choices(words, k=n)) for n in (tokens - trained, trained - 1))
        made.append(Sample(f"r{i}", (Message("user", asked),), said))
    return made


def _models() -> dict[str, Any]:
    return {"teacher": Plug(Spec("transformers"), print, {"model": str(WEIGHTS)})}


def _show(job: Any, tokenizer: Any) -> None:
    """A teacher's table of logprobs: at each token it lists twenty, among them the one that came."""
    import numpy as np

    from llm_distill.logprob_table import LOGPROBS
    from llm_distill.logprob_writer import writing
    from llm_distill.logprobs import Logprobs
    from llm_distill.models.vocabulary import Vocabulary

    draw, vocabulary = np.random.default_rng(0), Vocabulary.of(tokenizer)
    with writing(job.answers / LOGPROBS) as add:
        for sample in job.samples:
            ids = [*tokenizer(sample.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            logprobs = np.log(draw.dirichlet(np.ones(21), len(ids))[:, :20])
            tops = np.column_stack([ids, draw.integers(10, 49_000, (len(ids), 19))])
            shown = Logprobs.of_ids(ids, logprobs[:, 0], tops, logprobs, vocabulary.token)
            add(sample.row_id, sample.row_id, WEIGHTS.name, shown.pack(), None)


def _bare(job: Any, tokenizer: Any, hyper: Any, times: list[float]) -> None:
    """As TRL trains by itself."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from llm_distill.models import weights
    from llm_distill.trainers import loop, sft_loop
    from llm_distill.trainers.course import lora_config
    from llm_distill.trainers.rows import make_rows, stop_ids

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            times.append(time.monotonic())

    class Offline(SFTTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            return

    settings = vars(hyper) | {"learning_rate": hyper.rate, "activation_checkpointing": False}
    model = weights.load_model(str(WEIGHTS), device="cpu")
    rows = make_rows(job.samples, tokenizer, stop_ids(model, tokenizer), hyper.max_length)
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    with loop.quiet():
        args = sft_loop.arguments(job.out, settings, 0, on_cpu=True)
        args.remove_unused_columns = True
        Offline(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora_config(hyper, model),
            callbacks=[Clock()],
        ).train()  # fmt: skip


def _bare_on_policy(job: Any, tokenizer: Any, hyper: Any, times: list[float], answer: int) -> None:
    """As TRL distils on-policy by itself."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationTrainer

    from llm_distill.models import weights
    from llm_distill.trainers import loop, on_policy_loop
    from llm_distill.trainers.course import lora_config

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            times.append(time.monotonic())

    class Offline(DistillationTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            return

    knobs = job.models["teacher"].knobs
    teacher = weights.load_model(knobs["model"], adapter=knobs["adapter"], device="cpu").merge_and_unload()
    settings = vars(hyper) | {"learning_rate": hyper.rate, "activation_checkpointing": False, "beta": 0.5}
    plan = on_policy_loop.Rollouts(1.0, 1.0, answer, (), 0)
    prompts = [[{"role": m.role, "content": m.content} for m in sample.messages] for sample in job.samples]
    model = weights.load_model(str(WEIGHTS), device="cpu")
    with loop.quiet():
        Offline(
            model=model, teacher_model=teacher,
            args=on_policy_loop.arguments(job.out, settings, plan, on_cpu=True),
            train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
            peft_config=lora_config(hyper, model), callbacks=[Clock()],
        ).train()  # fmt: skip


def main() -> None:
    """Measure every arm, one after the other, and print them beside each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("rows", 96), ("tokens", 160), ("trained", 120), ("batch", 8), ("answer", 16)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--arm", choices=ARMS)
    asked = vars(parser.parse_args())
    if arm := asked.pop("arm"):
        print(json.dumps(measure(arm, **asked)))
        return
    more = [f"--{name}={value}" for name, value in asked.items()]
    found = {}
    for arm in ARMS:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.training", "--arm", arm, *more],
            capture_output=True,
            text=True,
            check=True,
        )
        found[arm] = json.loads(done.stdout.splitlines()[-1])
    print(f"{asked['rows']} rows of {asked['tokens']} tokens, {asked['trained']} trained, batches of {asked['batch']}:")
    for arm, numbers in found.items():
        ratio = {name: numbers[name] / found[ARMS[arm]][name] for name in ("step_s", "peak_mb")}
        print(
            f"  {arm:<9} {numbers['step_s']:6.2f} s a step ({ratio['step_s']:.2f} of {ARMS[arm]})   "
            f"{numbers['peak_mb']:6,.0f} MB at most ({ratio['peak_mb']:.2f} of {ARMS[arm]})"
        )


if __name__ == "__main__":
    main()
