"""What scorers that read a model's numbers are worth on real weights: `python -m tests.scorers.model_table [RUN]`.

Minutes; needs `make setup` and `make probes`. The numbers are in docs/scorers.md. RUN is a run's folder whose rows have labels
that people gave, filtered by nothing: there it is asked whether a higher score goes with being right.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llm_distill.models.transformers_local import TransformersModel
from llm_distill.scorers import Context
from llm_distill.scorers.student import ifd, perplexity
from llm_distill.tasks import Task
from tests.scorers.probe_table import QUICKSTART, jsonl
from tests.scorers.rows import answer

STUDENT = QUICKSTART / "SmolLM2-135M-Instruct.Q4_1.gguf"


def auroc(high: Sequence[float], low: Sequence[float]) -> str:
    """How often one of the first is above one of the second, in words with its counts; ties are halves."""
    one, other = np.array(high)[:, None], np.array(low)[None, :]
    share = float(np.mean((one > other) + 0.5 * (one == other)))
    return f"{share:.2f} ({len(high)} against {len(low)})"


def sureness(run: Path) -> None:
    """Of each score of a run, and of the agreement of its prompts: how often a right row has a higher one than a wrong row."""
    table = pq.read_table(run / "kept.parquet")
    right = [
        label == stated for label, stated in zip(*(table[n].to_pylist() for n in ("label", "prediction")), strict=True)
    ]
    print(f"right: {sum(right)} of {len(right)}")
    for name in ("agreement", *(name for name in table.column_names if name.startswith("score."))):
        scored = [
            (s, yes)
            for s, yes in zip(table[name].to_pylist(), right, strict=True)
            if s is not None and not math.isnan(s)
        ]
        print(f"{name}:", auroc([s for s, yes in scored if yes], [s for s, yes in scored if not yes]))
        for bound in (0.6, 0.8, 0.9) if name == "score.confidence" else ():
            over = [yes for s, yes in scored if s >= bound]
            print(f"  from {bound}: {sum(over)} of {len(over)} right, of the rest {sum(right) - sum(over)}")


def belonging(count: int = 40) -> None:
    """Answers to questions about money beside their own question, and beside the next one's."""
    model = TransformersModel(model=str(STUDENT), dtype="float32", device="cpu")
    rows = [row for row in jsonl("fiqa.jsonl") if 100 < len(row["answer"]) < 400][:count]
    context = Context(Task(kind="generate"), model=lambda _: model)
    for scorer in (perplexity, ifd):
        own = scorer([answer(row["answer"], prompt=row["question"]) for row in rows], context).values
        questions = [*(row["question"] for row in rows[1:]), rows[0]["question"]]
        next_ = scorer(
            [answer(row["answer"], prompt=q) for row, q in zip(rows, questions, strict=True)], context
        ).values
        paired = sum(b > a for a, b in zip(own, next_, strict=True))
        print(scorer.__name__, "of the wrong question higher:", auroc(next_, own), f"by row {paired} of {len(rows)}")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        sureness(Path(folder))
    belonging()
