"""What a tracker draws is metrics.jsonl: each step once, after a resume as well, and the student is the same without it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llm_distill.errors import Interrupted, UserError
from llm_distill.recipe import load
from llm_distill.trainers import TrainingJob, trackers
from llm_distill.trainers.dpo import dpo
from llm_distill.trainers.hyper import Hyperparameters
from tests.conftest import Desk as Folder
from tests.trainers.conftest import sft
from tests.trainers.test_dpo import dull, generate, saying, texts
from tests.trainers.test_sft import curve, learnt

MakeJob = Callable[..., TrainingJob]


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Step, name and number of all that TensorBoard would read in a folder."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for file in folder.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def drawn(lines: list[dict[str, Any]]) -> list[tuple[int, str, Any]]:
    """The same of metrics.jsonl."""
    return [
        (line["step"], name, pytest.approx(value))
        for line in lines
        for name, value in line.items()
        if name not in ("step", "round", "seconds")
    ]


def test_the_curve_is_drawn_once_also_after_a_resume(make_job: MakeJob) -> None:
    """Stopped twice, drawn over again: the events are metrics.jsonl, and the student is the one without a tracker."""
    for at in (2, 5):

        def press(step: int, *_: Any, at: int = at) -> None:
            if step == at:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            sft(make_job(20, on_step=press), tracker="tensorboard", epochs=4)
    job = make_job(20)
    sft(job, tracker="tensorboard", epochs=4)
    found = [event for event in events(job.out.parent / "tracking" / "tensorboard" / "out") if event[1] != "seconds"]
    assert found == drawn(curve(job.out))
    assert [step for step, name, _ in found if name == "loss"] == list(range(1, 11))
    sft(make_job(20, "plain"), epochs=4)
    assert learnt(make_job(1, "plain").out) == learnt(job.out)
    assert not list(job.out.glob("**/events*")), "the student's folder is the student's alone"


def test_a_kill_before_any_checkpoint_leaves_nothing_twice(make_job: MakeJob) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        sft(make_job(20, on_step=kill), tracker="tensorboard")
    job = make_job(20)
    place = job.out.parent / "tracking" / "tensorboard" / "out"
    assert {step for step, *_ in events(place)} == {1, 2}
    sft(job, tracker="tensorboard")
    assert [step for step, name, _ in events(place) if name == "loss"] == [1, 2, 3, 4, 5]


def test_each_part_of_a_training_is_drawn_in_its_own_place(make_job: MakeJob, tmp_path: Path) -> None:
    """The warm-up of dpo and its round: two curves, in a job that says which folder is the run's."""
    job = make_job(texts(8), "run/student", task=generate(), student_answers=saying(dull), answers=tmp_path / "run")
    dpo(job, hyper=Hyperparameters(epochs=1, tracker="tensorboard"))
    home = tmp_path / "run" / "tracking" / "tensorboard" / "student" / "rounds"
    (course,) = home.iterdir()
    lines = curve(job.out)
    for number in (0, 1):
        found = [event for event in events(course / str(number)) if event[1] != "seconds"]
        assert found == drawn([line for line in lines if line["round"] == number])
        assert found


def test_a_training_that_fails_before_its_first_step_draws_nothing(make_job: MakeJob) -> None:
    job = make_job(20)
    with pytest.raises(UserError, match="max_length"):
        sft(job, tracker="tensorboard", max_length=4)
    assert not (job.out.parent / "tracking").exists()


def recipe(folder: Path, train: Any) -> Path:
    desk = Folder(folder)
    desk.seeds(['{"prompt": "good"}'])
    models = {"teacher": {"scripted": {"default": "positive"}}, "student": {"transformers": {"model": "org/name"}}}
    return desk.recipe(models=models, train=train)


def test_a_tracker_makes_no_other_run(tmp_path: Path) -> None:
    """Neither the run nor the stamp of its training knows of it, whatever else is said beside it."""
    for plain, tracked in (
        ("sft", {"sft": {"tracker": "tensorboard"}}),
        ({"sft": {"epochs": 3}}, {"sft": {"tracker": "tensorboard", "epochs": 3, "checkpoint_every_s": 5}}),
    ):
        one, other = (load(recipe(tmp_path, train)) for train in (plain, tracked))
        assert one.digest == other.digest
        assert one.account == other.account
        assert one.slice(["seed", "train"], ["student"]) == other.slice(["seed", "train"], ["student"])
    assert load(recipe(tmp_path, {"sft": {"epochs": 4}})).digest != one.digest
    knobs = Hyperparameters(tracker="tensorboard")
    assert knobs.deciding == Hyperparameters(checkpoint_every_s=1).deciding


def test_a_tracker_that_is_not_there_is_refused_with_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb leaves it behind where it is used, which Python takes for a package
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "site-packages" not in p)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        UserError, match=r"train.sft.tracker: wandb is not installed: pip install 'llm-distill\[wandb\]'"
    ):
        load(recipe(tmp_path, {"sft": {"tracker": "wandb"}}))
    with pytest.raises(UserError, match=r"train.sft.tracker: .*'tensorboard', 'trackio' or 'wandb'; found 'mlflow'"):
        load(recipe(tmp_path, {"sft": {"tracker": "mlflow"}}))


def test_wandb_sends_nothing_unless_told_and_then_wants_its_key(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def begun(*_: Any) -> Any:
        yield lambda *_: None

    monkeypatch.setitem(trackers._BEGIN, "wandb", begun)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(
        UserError, match=r"WANDB_MODE is online, but WANDB_API_KEY is not set; export the key, or unset"
    ):
        sft(make_job(8, "a"), tracker="wandb", epochs=1)
    monkeypatch.delenv("WANDB_MODE")
    sft(make_job(8, "b"), tracker="wandb", epochs=1)


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_what_others_keep_is_the_curve_once(
    make_job: MakeJob, tracker: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where they are installed: offline, stopped and drawn over again, and nothing is printed."""
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    for name in ("WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)

    def press(step: int, *_: Any) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    job = make_job(20)
    monkeypatch.setenv("TRACKIO_DIR", str(job.out.parent / "tracking" / "trackio"))
    with pytest.raises(Interrupted):
        sft(make_job(20, on_step=press), tracker=tracker)
    assert 3 <= curve(job.out)[-1]["step"] < 5
    sft(job, tracker=tracker)
    losses = _kept(tracker, job.out.parent / "tracking")
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in curve(job.out)]
    out, err = capfd.readouterr()
    assert tracker not in (out + err).casefold()


def _kept(tracker: str, folder: Path) -> list[tuple[int, Any]]:
    if tracker == "trackio":
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        (run,) = trackio.Api().runs("llm-distill")
        return [(line["step"], line["loss"]) for line in SQLiteStorage.get_logs("llm-distill", run_id=run.id)]
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/out/wandb/offline-run-*/*.wandb")
    data, found, whole = file.read_bytes()[7:], list[tuple[int, Any]](), b""
    while (
        data
    ):  # LevelDB's log: blocks of 32 KiB, the first with 7 bytes of its own; parts of a record are told by their kind
        room = 32768 - (file.stat().st_size - len(data)) % 32768
        if room < 7 or not any(data[:7]):
            data = data[room:]
            continue
        size, kind = int.from_bytes(data[4:6], "little"), data[6]
        whole, data = whole + data[7 : 7 + size], data[7 + size :]
        if kind in (1, 4):
            record, whole = Record.FromString(whole), b""
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            found += [(int(items["_step"]), float(items["loss"]))] if "loss" in items else []
    return found
