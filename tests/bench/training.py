"""What a step costs: bare TRL, our sft, our loss on top-20 targets of a teacher, on the same student, rows and LoRA.

Each arm is a process of its own, so that its peak memory is its own; the median step of each is printed as a ratio to that
of our sft. `--rows` texts of `--tokens` tokens, of which the last `--trained` are learnt.
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
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ARMS = ("trl", "sft", "soft")
WEIGHTS = Path(__file__).parents[2] / "data" / "quickstart" / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def measure(arm: str, rows: int, tokens: int, trained: int, batch: int) -> dict[str, float]:
    """Seconds of the median step, without the first two, and the process's peak memory above what loading took."""
    from llm_distill.models import weights
    from llm_distill.trainers import loop
    from llm_distill.trainers.head import lighten
    from llm_distill.trainers.rows import Row

    model, tokenizer = weights.load_model(str(WEIGHTS), device="cpu"), weights.load_tokenizer(str(WEIGHTS))
    draw = random.Random(0)
    made = [Row(f"r{i}", [draw.randrange(10, 49_000) for _ in range(tokens)], tokens - trained) for i in range(rows)]
    times: list[float] = []
    knobs = {
        "batch_size": batch, "gradient_accumulation": 1, "learning_rate": 1e-4, "schedule": "linear", "warmup_ratio": 0.0,
        "weight_decay": 0.0, "dtype": "float32", "activation_checkpointing": False,
    }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as out, loop.quiet():
        args = loop.arguments(Path(out), knobs, 0, on_cpu=True)
        if arm == "trl":
            trainer = _bare(model, tokenizer, made, args, times)
        else:
            objective = _objective(made, draw) if arm == "soft" else None
            trainer = loop.make_trainer(
                model, tokenizer, made, range(rows), args, _lora(), lambda *_: times.append(time.monotonic()),
                loop.Stop(), 1e9, objective,
            )  # fmt: skip
            first = next(iter(trainer.get_train_dataloader()))
            lighten(model, {name: first[name] for name in ("input_ids", "labels", "attention_mask")})
        trainer.train()
    steps = [later - earlier for earlier, later in pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_s": median(steps), "peak_mb": peak / 1024, "above_mb": (peak - before) / 1024}


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def _bare(model: Any, tokenizer: Any, rows: Any, args: Any, times: list[float]) -> Any:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            times.append(time.monotonic())

    class Offline(SFTTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            return

    args.remove_unused_columns = True
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    return Offline(
        model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=_lora(), callbacks=[Clock()]
    )


def _objective(rows: Any, draw: random.Random) -> Any:
    import numpy as np

    from llm_distill.trainers.soft_targets import SoftTargets
    from llm_distill.trainers.targets import Targets

    made = []
    for row in rows:
        ids = np.array([draw.sample(range(49_000), 20) for _ in range(row.trained_tokens)], np.int32)
        logprobs = np.log(np.random.default_rng(0).dirichlet(np.ones(21), len(ids))[:, :20]).astype(np.float32)
        made.append(Targets(ids, logprobs, np.ones(len(ids), bool)))
    return SoftTargets(made)


def main() -> None:
    """Measure every arm, one after the other, and print them beside each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("rows", 96), ("tokens", 160), ("trained", 120), ("batch", 8)):
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
        ratio = {name: numbers[name] / found["sft"][name] for name in ("step_s", "peak_mb")}
        print(
            f"  {arm:<9} {numbers['step_s']:6.2f} s a step ({ratio['step_s']:.2f} of sft)   "
            f"{numbers['peak_mb']:6,.0f} MB at most ({ratio['peak_mb']:.2f} of sft)"
        )


if __name__ == "__main__":
    main()
