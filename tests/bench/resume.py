"""A resumed run's loss curve on top of an unbroken one: the quickstart's student, once trained in peace, and once killed in the
middle by SIGKILL and begun again. Prints both as a table in Markdown, draws them, and ends with code 1 where they differ.

    python -m tests.bench.resume [--steps 8] [--kill 5] [--draw docs/resume.svg]

Dropout is on and batches are accumulated, so that the generators' states and the place in the reading order count. It is killed
when a step's line is written and its checkpoint is not, so that this step is done again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BATCH, ACCUMULATION = 1, 2


def train(out: Path, steps: int, kill: int) -> None:
    """Fine-tune on real sentences; kill this process after a step's line was written."""
    from llm_distill.trainers import TrainingJob
    from llm_distill.trainers.hyper import Hyperparameters
    from llm_distill.trainers.sft import sft
    from tests.trainers.test_real_student import STUDENT, samples

    def on_step(step: int, _of: int, _numbers: dict[str, float]) -> None:
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    job = TrainingJob(samples(steps * BATCH * ACCUMULATION), {"model": str(STUDENT), "device": "cpu"}, out, 7, on_step)
    sft(
        job,
        hyper=Hyperparameters(
            epochs=1,
            batch_size=BATCH,
            gradient_accumulation=ACCUMULATION,
            dtype="float32",
            lora_dropout=0.1,
            checkpoint_every_s=0,
        ),
    )


def lines(out: Path) -> list[dict[str, Any]]:
    """A run's curve."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]


def draw(path: Path, whole: list[float], before: list[float], resumed: list[float], again: int) -> None:
    """The unbroken curve as a band, the broken one's two halves as points on it. again: the first step that was done twice."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "resume", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.0), layout="constrained")
        steps = range(1, len(whole) + 1)
        axes.plot(steps, whole, color="#9ab6d6", linewidth=7, solid_capstyle="round", label="never stopped")
        axes.plot(steps[: len(before)], before, "o", color="#b3261e", markersize=6, label="until it was killed")
        axes.plot(steps[again - 1 :], resumed[again - 1 :], ".", color="#12355b", markersize=6, label="gone on with")
        axes.axvline(len(before), color="#b3261e", linewidth=1, linestyle=":")
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Train twice, compare, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--kill", type=int, default=5, help="after which step")
    parser.add_argument("--draw", type=Path, help="an SVG")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(asked.train, asked.steps, asked.kill)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"

        def run(out: Path, kill: int) -> int:
            more = ["--steps", str(asked.steps), "--kill", str(kill)]
            command = [sys.executable, "-m", "tests.bench.resume", "--train", str(out), *more]
            return subprocess.run(command, check=False).returncode

        if run(whole, 0) or run(broken, asked.kill) != -signal.SIGKILL:
            raise SystemExit("A training ended otherwise than was meant.")
        before = lines(broken)
        again = int(max(broken.glob("checkpoints/*/checkpoint-*")).name.rpartition("-")[2]) + 1
        if run(broken, 0):
            raise SystemExit("It could not be gone on with.")
        one, other = lines(whole), lines(broken)
        weights = [(out / "adapter_model.safetensors").read_bytes() for out in (whole, broken)]
    losses = [[line["loss"] for line in curve] for curve in (one, before, other)]
    if asked.draw:
        draw(asked.draw, losses[0], losses[1], losses[2], again)
    print("| step | never stopped | killed | gone on with |\n|---:|---:|---:|---:|")
    for step, loss in enumerate(losses[0], 1):
        cells = (
            f"{found[step - 1]:.6f}" if fits else ""
            for found, fits in ((losses[1], step <= asked.kill), (losses[2], step >= again))
        )
        print(f"| {step} | {loss:.6f} | {' | '.join(cells)} |")
    timeless = [[{n: v for n, v in line.items() if n != "seconds"} for line in curve] for curve in (one, other)]
    same = timeless[0] == timeless[1] and weights[0] == weights[1]
    print(f"\nCurves and adapters, byte by byte: {'the same' if same else 'NOT the same'}.")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
