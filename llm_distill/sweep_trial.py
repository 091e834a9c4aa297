"""One trial of a sweep: a student trained with some knobs and judged on the rows that decide, in a folder of its own.

The folder lies within the recipe's run and is named by all that decides what is learnt and how it is judged. Training is the
run's own stage, and goes on after a kill as there. What the student answered is stamped; then its weights have had their use.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from llm_distill import __version__, pipeline, store
from llm_distill.collect import alone, collect
from llm_distill.errors import DiskFull, FellShort, Unreachable, UserError
from llm_distill.ledger import Ledger
from llm_distill.recipe import Plan
from llm_distill.records import Sampling, content_id
from llm_distill.stages import Run, Watch, trained
from llm_distill.sweep_rows import Dev
from llm_distill.sweep_space import Setting, settled, variant
from llm_distill.variants import RowScores

#: Of a student that was judged: all else was weights.
_STORY = ("training.json", "metrics.jsonl")
#: What a trainer may read: tables without the rows that decide, and what the run has of all rows.
_SHARED, _SHOWN = ("kept.parquet", "answers.parquet"), ("logprobs.parquet", "logprob_tokens.parquet")


@dataclass
class Trial:
    """What was tried: a setting (None: the recipe's own), and the scores of its students."""

    number: int
    setting: Setting | None
    ids: list[str] = field(default_factory=list)
    scores: list[RowScores] = field(default_factory=list)
    seconds: float = 0.0
    cost_usd: float | None = 0.0
    failed: str | None = None


@dataclass(frozen=True)
class Bench:
    """Where trials are made: the recipe's run, the rows on both sides, who looks on."""

    plan: Plan
    full: store.RunFolder
    dev: Dev
    ledger: Ledger
    watch: Watch

    @property
    def home(self) -> Path:
        return self.full.file("sweep")

    def make(self, trial: Trial) -> None:
        """Train and judge a trial, or find that it was."""
        assert self.plan.sweep is not None
        for n in range(self.plan.sweep.seeds):
            plan = variant(self.plan, trial.setting or {}, self.plan.train_seed + n)
            folder = self._student(plan, may_fail=trial.number > 0)
            stamp = folder.stamp("evaluate")
            trial.ids.append(folder.path.name)
            trial.seconds += stamp["seconds"]
            unknown = None in (trial.cost_usd, stamp["cost_usd"])
            trial.cost_usd = None if unknown else (trial.cost_usd or 0.0) + stamp["cost_usd"]
            if failed := stamp.get("failed"):
                trial.failed = failed
                return
            answers = store.read_answers(folder.file("eval/student.parquet"))
            trial.scores.append(self.dev.scores(answers, self.plan.task.kind))

    def _student(self, plan: Plan, *, may_fail: bool) -> store.RunFolder:
        """The folder of a student that was judged."""
        folder = store.RunFolder(self.home / self._id(plan))
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.lock():
            if not _judged(folder) and not self._adopt(folder):
                job = Run(plan, folder, self.ledger, self.watch)
                try:
                    self._train(job, may_fail=may_fail)
                finally:
                    job.make_room()
            for file in folder.path.glob("student/*"):
                if file.name not in _STORY:
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
        return folder

    def _adopt(self, folder: store.RunFolder) -> bool:
        """Take over the same trial of another run of this recipe: under a new title nothing is trained again."""
        for other in self.full.siblings():
            theirs = store.RunFolder(other.file("sweep") / folder.path.name)
            if _judged(theirs):
                for name in ("eval", *(f"student/{story}" for story in _STORY)):
                    store.copy(theirs.file(name), folder.file(name))
                folder.save("evaluate", theirs.stamp("evaluate"))
                return True
        return False

    def _id(self, plan: Plan) -> str:
        """All that decides what is learnt and how it is judged. Words that say the same make no other trial."""
        assert plan.trainer is not None
        learnt = [*(self.home / name for name in _SHARED), *map(self.full.file, _SHOWN)]
        knobs = {name: value for name, value in settled(plan.trainer).items() if name not in plan.trainer.passing}
        words = plan.slice(["task"], plan.pupils), plan.trainer.spec.name, knobs, plan.train_seed
        made = content_id([__version__, store.FORMAT, words, plan.sources, [*map(store.digest, learnt)]])
        return content_id([made, self.dev.digest, _drawn(plan)])[:20]

    def _train(self, job: Run, *, may_fail: bool) -> None:
        folder, start = job.folder, time.perf_counter()
        for name in _SHARED:
            store.copy(self.home / name, folder.file(name))
        for name in _SHOWN:
            store.copy(self.full.file(name), folder.file(name))
        stamp = folder.stamp("train")
        if not stamp or stamp["owed"] or store.digest(folder.file("student")) != stamp["outputs"]["student"]:
            job.watch.stage("train", "running")
            try:
                pipeline.do(job, "train")
            except UserError as error:
                if not may_fail or isinstance(error, DiskFull | Unreachable):  # which other settings would meet as well
                    raise
                # The recipe's own settings could be trained, so it is these that cannot: they diverge, or need more memory.
                folder.save("evaluate", {"failed": str(error), "answers": "absent", "seconds": 0.0, "cost_usd": 0.0})
                return
            stamp = folder.stamp("train")
            if stamp["owed"]:
                raise FellShort(
                    f"sweep: {stamp['owed']:,} questions of training got no answer. Run again to ask for them."
                )
            job.watch.stage("train", "done")
        model = job.model("student", **trained(folder.file("student")))
        asked = alone("student", model, job.plan.task.student_view, _drawn(job.plan))
        collect(job, self.dev.prompts, asked, "eval/student.parquet")
        spent = stamp.get("spent", {"cost_usd": 0.0})["cost_usd"]
        seconds = round(time.perf_counter() - start, 1)
        made = {"answers": store.digest(folder.file("eval")), "seconds": seconds, "cost_usd": spent}
        folder.save("evaluate", made)


def _drawn(plan: Plan) -> Sampling:
    """As in the evaluation, without logprobs: the text is what is judged."""
    return msgspec.structs.replace(plan.drawn, top_logprobs=None)


def _judged(folder: store.RunFolder) -> bool:
    """Whether a trial's stamp vouches for what its student answered, or for there being none."""
    stamp = folder.stamp("evaluate")
    return bool(stamp) and store.digest(folder.file("eval")) == stamp["answers"]
