"""The curve in TensorBoard, trackio or wandb as well: what metrics.jsonl says, drawn while it comes.

A tracker draws metrics.jsonl and remembers nothing: training that goes on from a checkpoint is drawn anew from the lines that
were kept, so no step stands there twice. All of it lies in `tracking/` of the run's folder. trackio sends it on where TRACKIO_*
say so, wandb where WANDB_MODE is `online`, with its key from the environment; neither is given anything of recipe or rows.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol

from llm_distill.errors import UserError
from llm_distill.records import content_id
from llm_distill.trainers import TrainingJob

_PROJECT = "llm-distill"
#: A line of metrics.jsonl.
Line = dict[str, Any]
_Draw = Callable[[int, dict[str, float], float], None]


class Drawable(Protocol):
    """A curve: the lines of its steps so far, and what it calls after each."""

    lines: list[Line]
    after: Callable[[], None]


@contextmanager
def tracked(tracker: str | None, curve: Drawable, job: TrainingJob) -> Iterator[None]:
    """Have a tracker draw the curve of a job within the block, from its first step on. What trains in `student/` of a run is
    `student` there, a round of it is named by its own folder. UserError where wandb is to send it and has no key.
    """
    if tracker is None:
        yield
        return
    if tracker == "wandb":
        _check_wandb()
    home = job.answers or job.out.parent
    draw: list[_Draw] = []
    with ExitStack() as stack:

        def after() -> None:
            new = curve.lines[-1:] if draw else curve.lines
            if not draw:  # not before there is a step: what fails until then has drawn nothing
                place = job.out.relative_to(home)
                draw.append(stack.enter_context(_BEGIN[tracker](home, place, new[0])))
            begun = time.time() - curve.lines[-1]["seconds"]
            for line in new:
                numbers = {name: float(value) for name, value in line.items() if name not in ("step", "round")}
                draw[0](line["step"], numbers, begun + line["seconds"])

        curve.after = after
        yield


def _check_wandb() -> None:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode in ("online", "run", "shared") and not os.environ.get("WANDB_API_KEY"):
        raise UserError(
            f"train.tracker: WANDB_MODE is {mode}, but WANDB_API_KEY is not set; export the key, or unset WANDB_MODE "
            "(the curve is then kept in the run's folder, for `wandb sync`)."
        )


@contextmanager
def _tensorboard(home: Path, place: Path, _first: Line) -> Iterator[_Draw]:
    from tensorboardX import SummaryWriter  # writes what TensorBoard reads, and is a hundredth of its size

    folder = home / "tracking" / "tensorboard" / place
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder), flush_secs=5) as writer:

        def draw(step: int, numbers: dict[str, float], at: float) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step, walltime=at)

        yield draw


@contextmanager
def _trackio(home: Path, place: Path, _first: Line) -> Iterator[_Draw]:
    os.environ.setdefault("TRACKIO_DIR", str(home / "tracking" / "trackio"))  # read once, when it is imported
    with redirect_stdout(io.StringIO()):  # it greets
        import trackio

        name = _name(home, place)
        with suppress(ValueError):  # there is nothing yet
            for old in trackio.Api().runs(_PROJECT):
                if old.name == name:
                    old.delete()
        run = trackio.init(project=_PROJECT, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        yield lambda step, numbers, _at: run.log(numbers, step=step)
    finally:
        with redirect_stdout(io.StringIO()):
            trackio.finish()


@contextmanager
def _wandb(home: Path, place: Path, first: Line) -> Iterator[_Draw]:
    import wandb

    folder = home / "tracking" / "wandb" / place
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("wandb/offline-run-*"):
        shutil.rmtree(old)
    name = _name(home, place)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=name,
            # The first step's own clock: the same after a resume, when the server passes over steps that it has; else another.
            id=content_id([name, first])[:16],
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            # What is printed shows a row.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_code=True, disable_git=True, x_disable_meta=True,
                x_disable_machine_info=True, x_disable_stats=True,
            ),
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise UserError(f"train.tracker: wandb cannot begin: {error}. Mend that, or unset WANDB_MODE.") from error
    with run:
        yield lambda step, numbers, _at: run.log(numbers, step=step)


def _name(home: Path, place: Path) -> str:
    """Recipe, run and what of it is trained."""
    return " ".join((*home.resolve().parts[-2:], *place.parts))


_BEGIN: dict[str, Callable[[Path, Path, Line], AbstractContextManager[_Draw]]] = {
    "tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb
}  # fmt: skip
