"""What goes wrong on the way: one message that says what to change, and nothing lost that was whole."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_distill.errors import DiskFull, UserError
from llm_distill.trainers import TrainingJob, checkpoints
from llm_distill.trainers.course import Desk, Lesson, stoppable, train
from llm_distill.trainers.hyper import Hyperparameters
from tests.conftest import Desk as Folder
from tests.trainers.conftest import reviews, sft
from tests.trainers.test_sft import learnt

MakeJob = Callable[..., TrainingJob]


def test_a_loss_that_is_no_number_shows_its_rows(make_job: MakeJob) -> None:
    job = make_job(20)
    with pytest.raises(UserError, match=r"became (nan|inf) at step [2-5]\. Lower learning_rate") as error:
        sft(job, learning_rate=1e30, warmup_ratio=0, checkpoint_every_s=0)
    text = str(error.value)
    assert "It was reading:\n  row r" in text
    assert "Label:<|im_end|>" in text
    assert "The checkpoint before it is kept: " in text
    place = Path(text.partition("is kept: ")[2].partition(".\n")[0])
    assert checkpoints.newest_whole(place.parent) == place
    read = [line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  row ")]
    assert set(read) <= {f"row {s.row_id}" for s in job.samples}


class Nan:
    """An objective that has nothing but one row's loss wrong."""

    parts: Sequence[str] = ()
    digest = "nan"

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def tensors(self, places: Sequence[int]) -> dict[str, Any]:
        return {"bad": torch.tensor([float(place == self.bad) for place in places])}

    def mass(self, batch: Any) -> Any:
        return (batch["labels"] != -100).sum()

    def loss(self, states: Any, head: Any, wanted: Any, more: Any) -> tuple[Any, dict[str, float]]:
        loss = head(states).logsumexp(-1).sum()
        return (loss * float("nan") if more["bad"].any() else loss), {}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_batch_with_the_bad_row_is_the_one_that_is_shown(make_job: MakeJob, accumulation: int) -> None:
    job = make_job(reviews(24))
    desk = Desk(job, Hyperparameters(batch_size=4, gradient_accumulation=accumulation, epochs=1))
    rows = desk.rows()
    with pytest.raises(UserError) as error, stoppable():
        train(desk, Lesson(rows, Nan(17)))
    lines = [line for line in str(error.value).splitlines() if line.startswith("  row ")]
    assert len(lines) == 4
    assert any(line.startswith("  row r17:") for line in lines)


@pytest.mark.parametrize(
    "raised",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_memory_that_runs_out_names_the_knobs(raised: Exception) -> None:
    with pytest.raises(UserError) as error, stoppable():
        raise raised
    assert all(
        f"`{knob}" in str(error.value) for knob in ("batch_size", "activation_checkpointing: true", "max_length")
    )
    with pytest.raises(RuntimeError, match=r"^a bug$"), stoppable():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "raised",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["cuda", "system"],
)
def test_memory_that_runs_out_while_weights_are_loaded_says_the_same(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"^train: out of memory \(.*emory.*\)\. .*needs `lora_rank`, and on CUDA `load_in: 4bit`"
    ):
        sft(make_job(20))
    raised = ValueError("a header is broken")
    with pytest.raises(UserError, match="cannot be loaded: a header is broken"):
        sft(make_job(20))


def full(path: Path) -> bool:
    """A file system of 1 MB, where this user may mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_disk_that_fills_keeps_the_last_checkpoint(make_job: MakeJob, tmp_path: Path) -> None:
    small = tmp_path / "small"
    if not full(small):
        pytest.skip("needs root, to mount a small file system")
    try:
        job = make_job(20)
        job = TrainingJob(job.samples, job.student, small / "student", 7)
        filler = small / "filler"

        def fill(step: int, *_: Any) -> None:
            if step == 2:
                with filler.open("wb", buffering=0) as file, suppress(OSError):  # when it is full
                    while file.write(b"\0" * 4096):
                        pass

        with pytest.raises(UserError, match=r"train: the disk is full.*The last whole checkpoint is kept: make room"):
            sft(TrainingJob(job.samples, job.student, job.out, 7, on_step=fill), lora_rank=2, checkpoint_every_s=0)
        (folder,) = (job.out / "checkpoints").iterdir()
        last = checkpoints.newest_whole(folder)
        assert last is not None
        assert last.name in ("checkpoint-1", "checkpoint-2")
        filler.unlink()
        seen: list[int] = []
        job = TrainingJob(job.samples, job.student, job.out, 7, on_step=lambda step, *_: seen.append(step))
        sft(job, lora_rank=2, checkpoint_every_s=0)
        assert seen[0] == checkpoints.step_of(last) + 1
        sft(make_job(20, "whole"), lora_rank=2)
        assert learnt(job.out) == learnt(make_job(1, "whole").out)
    finally:
        subprocess.run(["umount", str(small)], check=False)


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_what_libraries_say_of_a_full_disk(raised: Exception) -> None:
    with pytest.raises(DiskFull, match="train: the disk is full"), stoppable():
        raise raised


def test_a_student_that_is_an_adapter_is_not_trained(tmp_path: Path) -> None:
    from llm_distill.recipe import load

    desk = Folder(tmp_path)
    desk.seeds(['{"prompt": "good"}'])
    models = {
        "teacher": {"scripted": {"default": "positive"}},
        "student": {"transformers": {"model": "org/name", "adapter": "some/adapter"}},
    }
    with pytest.raises(UserError, match=r"train: models.student.*adapter is .*some/adapter.*export RUN --to merged"):
        load(desk.recipe(models=models, train="sft"))
